"""Which experiments of a project were renamed: a hint beside their folders, so that a title finds its experiment.

`<root>/<project>/.titles` has a line of JSON, `[title, name]`, for each title that was ever projected. It is only read
where no folder has the wanted name, and what it says is checked against `experiment.json`: a line that is missing or
wrong costs nothing but that the title is not found. Appended to by whoever projects, in one write.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from ..journal.segment import EXPERIMENT, TITLES

# Bytes; titles beyond are not found by this way.
_MOST: Final = 4 << 20


def note_title(folder: Path, title: str) -> None:
    """Note that the experiment with this documented folder has a title. Raises OSError."""
    path = folder.parent / TITLES
    line = json.dumps([title, folder.name], ensure_ascii=False)
    if line in _lines(path):
        return
    with path.open("ab") as file:
        file.write(f"{line}\n".encode(errors="surrogatepass"))


def titled(project: Path, title: str) -> list[Path]:
    """Return the documented folders in a project whose experiments are called so now."""
    names = dict.fromkeys(found[1] for line in _lines(project / TITLES) if (found := _pair(line))[0] == title)
    return [folder for folder in (project / name for name in names if _is_name(name)) if title_of(folder) == title]


def title_of(folder: Path) -> str | None:
    """Return the title in a documented folder's `experiment.json`; None if there is none."""
    return _document(folder).get("title")


def names_of(folder: Path) -> list[str]:
    """Return what an experiment is and was called besides its name, by its documented folder."""
    document = _document(folder)
    names = [document.get("title"), *(document.get("names") or ())]
    return [name for name in names if isinstance(name, str)]


def _document(folder: Path) -> dict[str, Any]:
    try:
        document = json.loads((folder / EXPERIMENT).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _lines(path: Path) -> list[str]:
    try:
        if not path.is_file() or path.stat().st_size > _MOST:
            return []
        return path.read_bytes().decode(errors="surrogatepass").splitlines()
    except (OSError, ValueError):
        return []


def _pair(line: str) -> tuple[Any, Any]:
    try:
        title, name = json.loads(line)
    except (ValueError, TypeError, RecursionError):
        return None, None
    return title, name


def _is_name(name: object) -> bool:
    """True if a name stays within the project's folder: the file may have come from anywhere."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set("/\\\0") & set(name)
