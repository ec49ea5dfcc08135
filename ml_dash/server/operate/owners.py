"""What belongs to whom in the stores: experiments one by one, and which of them names an object."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ...core.names import file_id
from ...core.state import File, State
from ...journal.segment import parse_blob
from ..engine.contents import TABLES_VERSION, Contents, Reader
from ..stores import Documents, ExperimentRow, View

_EXPERIMENTS_AT_ONCE: Final = 200

FILES: Final = "files/"
BODIES: Final = "bodies/"
CONTENTS: Final = "contents/"
KINDS: Final = (FILES, BODIES, CONTENTS)
"""Beginnings of the keys of all objects that a server makes."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose an object is: `kind` is one of `KINDS`; `experiment` is empty for the body of an event.

    `name` is the rest of the key: of a file its identity, of a body the blob's name.
    """

    kind: str
    ns: str
    experiment: str
    name: str


def owner_of(key: str) -> Owner | None:
    """Return whose an object is, by its key; None for a key that no server makes."""
    kind, _, rest = key.partition("/")
    parts = rest.split("/")
    if not all(parts):
        return None
    ns = _namespace(parts[0])
    if kind == "files" and len(parts) == 5:
        return Owner(FILES, ns, parts[2], parts[3])
    if kind == "bodies" and len(parts) == 2:
        return Owner(BODIES, ns, "", parts[1])
    if kind == "contents" and len(parts) >= 3:
        return Owner(CONTENTS, ns, parts[1], "/".join(parts[2:]))
    return None


def _namespace(part: str) -> str:
    """Return the namespace that a part of a key stands for: the inverse of `one_part`."""
    return "" if part == "%" else part.replace("%2F", "/").replace("%25", "%")


def all_experiments(documents: Documents) -> Iterator[tuple[str, str]]:
    """Yield (namespace, id) of all experiments, sorted, each page of them in a look of its own."""
    after: tuple[str, str] | None = None
    while True:
        with documents.view() as view:
            found = view.all_experiments(after, _EXPERIMENTS_AT_ONCE)
        yield from found
        if len(found) < _EXPERIMENTS_AT_ONCE:
            return
        after = found[-1]


def readable(reader: Reader, view: View, ns: str, row: ExperimentRow | None) -> Contents | None:
    """Return the contents of a head; None if there is no head, or another version of this code has made it."""
    if row is None or row.fold_version != TABLES_VERSION:
        return None
    return reader.contents(view, ns, row)


def file_of(state: State, blob: str) -> File | None:
    """Return the file to which a blob belongs; None if its event is not here."""
    parsed = parse_blob(blob)
    if parsed is None:
        return None
    file = state.files.get(file_id(bytes.fromhex(parsed[1]), parsed[2]))
    return file if file is not None and file.blob == blob else None


def is_live(state: State, blob: str) -> bool:
    """True if a blob is the content of a file that is neither deleted nor replaced."""
    file = file_of(state, blob)
    return file is not None and file.live
