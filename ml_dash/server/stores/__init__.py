"""The two seams of the server: documents (what is folded, and the raw stretches) and objects (contents of files).

One module per technology implements a seam; `tests/contracts` holds the suite that each has to pass. Nothing above
knows which one is in use.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ...core.ranges import Range
from ...errors import MLDashError, StorageError


class StoreRefused(MLDashError):
    """The data folder cannot be used as it is: damaged, of a newer version, or in use by another server."""


class StoreTrouble(StorageError):
    """The disk or the database refused for now; nothing was acknowledged."""


class Claimed(Exception):
    """An insert under an id that is taken: another one came first. The transaction is given up."""


@dataclass(frozen=True, slots=True)
class SegmentRow:
    """A segment as far as it is here. `length` bytes are durable and folded; `damaged` ranges hold no frame."""

    id: str
    journal: str
    file: str
    writer: str
    experiment: str
    length: int = 0
    first: int = 0
    crc: int = 0
    damaged: tuple[Range, ...] = ()


@dataclass(frozen=True, slots=True)
class JournalRow:
    """A journal of an experiment; one that was removed is out of sight."""

    id: str
    experiment: str
    project: str
    name: str
    removed: bool = False


@dataclass(frozen=True, slots=True)
class ExperimentRow:
    """What lists show of an experiment, and its folded state (encoded); `version` counts arrivals."""

    id: str
    project: str
    name: str
    version: int
    fold_version: int
    state: bytes
    status: str
    created_ns: int
    updated_ns: int
    heard_ns: int
    folder: str = ""
    tags: tuple[str, ...] = ()
    description: str = ""
    summary: dict[str, Any] = field(default_factory=dict)
    # Writers whose events are kept out of sight since the experiment was removed.
    removed_writers: tuple[str, ...] = ()

    @property
    def events(self) -> int:
        """How many were folded. One without any is not there for readers: it was removed, or has only begun to come."""
        return int(self.summary.get("counts", {}).get("events", 0))


@dataclass(frozen=True, slots=True)
class Arrival:
    """The n-th thing that was folded into an experiment: a stretch of a segment, or the death of a writer."""

    n: int
    kind: int
    who: str
    start: int
    end: int
    segment: str = ""


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive lines of one series of lines (`logs`, or `points/<metric>`), the first with number `first`.

    `summary` and `parts` are what down-sampling needs; `packed`: no line is added to it any more.
    """

    series: str
    first: int
    count: int
    packed: bool
    lines: bytes
    summary: bytes
    parts: bytes = b""


@dataclass(frozen=True, slots=True)
class BlobRow:
    """The content of an event, whole and verified, and where it is. That of a body belongs to no experiment: `""`."""

    name: str
    digest: str
    size: int
    key: str
    experiment: str


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A token, by the SHA-256 of its text. Times in ns since the epoch; 0 is never."""

    id: str
    digest: str
    user: str
    read_only: bool
    read_all: bool
    created_ns: int
    expires_ns: int
    revoked_ns: int


@dataclass(frozen=True, slots=True)
class Filter:
    """Which experiments are listed; `sort`: newest first by `updated` or `created`, by `name`, or most `points`."""

    project: str | None = None
    status: str | None = None
    tag: str | None = None
    folder: str | None = None
    text: str | None = None
    since_ns: int = 0
    sort: str = "updated"


Place = tuple[int | str, str]
"""Where a page of experiments ended: what the last one was sorted by, and its id."""


def place_of(row: ExperimentRow, sort: str) -> Place:
    """The place behind which the page that follows `row` begins."""
    values: dict[str, int | str] = {
        "updated": row.updated_ns,
        "created": row.created_ns,
        "name": row.name,
        "points": points_of(row),
    }
    return values[sort], row.id


def points_of(row: ExperimentRow) -> int:
    """How many points an experiment has."""
    return int(row.summary.get("counts", {}).get("points", 0))


def searched_text(row: ExperimentRow) -> str:
    """What `Filter.text` is looked for in, without case; that is to be casefolded too."""
    return "\n".join((f"{row.project}/{row.name}", row.description, *row.tags)).casefold()


class Read(Protocol):
    """A consistent look at the documents. `ns` is a namespace. What it returns may be used only within it."""

    def experiment(self, ns: str, experiment: str) -> ExperimentRow | None: ...
    def experiments(self, ns: str, wanted: Filter, limit: int, after: Place | None) -> list[ExperimentRow]:
        """Those of a page, without their states: the first ones behind a place. Those without events are not listed."""

    def count(self, ns: str, wanted: Filter) -> int: ...
    def projects(self, ns: str) -> list[dict[str, Any]]: ...
    def stale(self, fold_version: int) -> list[tuple[str, str]]: ...
    def quiet(self, before_ns: int) -> list[tuple[str, str]]:
        """(namespace, id) of experiments that run, and of which nothing was heard since."""

    def journal(self, ns: str, journal: str) -> JournalRow | None: ...
    def journals(self, ns: str, experiment: str) -> list[JournalRow]: ...
    def segment(self, ns: str, segment: str) -> SegmentRow | None: ...
    def segment_by_file(self, ns: str, journal: str, file: str) -> SegmentRow | None: ...
    def segments(self, ns: str, journal: str) -> list[SegmentRow]: ...
    def bytes_of(self, ns: str, segment: str, start: int, end: int) -> Iterator[bytes]:
        """The raw bytes [start, end) of a segment, in pieces."""

    def arrivals(self, ns: str, experiment: str, after: int, limit: int) -> list[Arrival]: ...
    def has_death(self, ns: str, experiment: str, who: str, segment: str, end: int) -> bool:
        """Was exactly this death noted before?"""

    def blocks(self, ns: str, experiment: str, series: str, first: int, end: int) -> Iterator[Block]:
        """The blocks of a series that hold any of the lines [first, end), one by one."""

    def last_block(self, ns: str, experiment: str, series: str) -> Block | None: ...
    def summaries(
        self, ns: str, experiment: str, series: str, first: int, end: int, *, parts: bool = False
    ) -> list[tuple[int, int, bytes]]:
        """(first, count, summary) of those blocks, or with `parts` what they have as `parts`."""

    def blob(self, ns: str, experiment: str, name: str) -> BlobRow | None: ...
    def blobs(self, ns: str, experiment: str) -> list[BlobRow]: ...
    def same_content(self, ns: str, digest: str, size: int) -> list[BlobRow]:
        """A few blobs of that content, of any experiment."""

    def token(self, digest: str) -> TokenRow | None: ...
    def tokens(self) -> list[TokenRow]: ...
    def setting(self, name: str) -> str | None: ...


class Write(Read, Protocol):
    """One transaction: all of it is durable when the block ends, or none of it is there."""

    def claim_stretch(self, ns: str, segment: str, start: int, content: bytes) -> None:
        """Keep raw bytes under the id (ns, segment, start). Raises Claimed if that is taken."""

    def replace_bytes(self, ns: str, segment: str, start: int, content: bytes) -> None:
        """Put verified bytes in the place of some that never verified."""

    def claim_arrival(self, ns: str, experiment: str, arrival: Arrival) -> None:
        """Note what was folded as number `arrival.n`. Raises Claimed if that is taken."""

    def put_segment(self, ns: str, row: SegmentRow) -> None: ...
    def put_journal(self, ns: str, row: JournalRow) -> None: ...
    def put_experiment(self, ns: str, row: ExperimentRow) -> None: ...
    def put_blocks(self, ns: str, experiment: str, blocks: Iterable[Block]) -> None: ...
    def drop_blocks(self, ns: str, experiment: str) -> None: ...
    def put_blob(self, ns: str, row: BlobRow) -> None: ...
    def drop_blob(self, ns: str, experiment: str, name: str) -> None: ...
    def put_token(self, row: TokenRow) -> None: ...
    def put_setting(self, name: str, value: str) -> None: ...


class Documents(Protocol):
    """The documents of a server. Any thread may call; one writes at a time."""

    def read(self) -> AbstractContextManager[Read]: ...
    def write(self) -> AbstractContextManager[Write]: ...
    def check(self) -> None:
        """Raises StoreTrouble if it cannot be used now."""

    def close(self) -> None: ...


class Objects(Protocol):
    """Contents by key, immutable. Any thread may call; raises StoreTrouble if the storage refuses.

    A key is parts joined by `/`, each a text that is not empty; it is never taken for a path. ValueError for others.
    """

    def put(self, key: str, path: Path) -> None:
        """Take the file at `path` (it is gone from there afterwards); durable on return. Replaces what is there."""

    def put_many(self, items: Sequence[tuple[str, Path]]) -> None:
        """Take many files, (key, path), as `put` does."""

    def open(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes [start, end) in pieces. Raises FileNotFoundError at the call."""

    def size(self, key: str) -> int | None: ...
    def copy(self, source: str, target: str) -> None:
        """Put the content of `source` under another key too; replaces what is there. Raises FileNotFoundError."""

    def delete(self, key: str) -> None: ...
    def list(self, prefix: str) -> Iterator[str]:
        """The keys that begin with `prefix`, in no order."""

    def check(self) -> None:
        """Raises StoreTrouble if it cannot be used now."""
