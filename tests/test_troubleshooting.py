"""`docs/troubleshooting.md` names messages that are printed, and all of those that stop the sending."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "troubleshooting.md"
SOURCES = [path for top in ("ml_dash", "daemon") for path in sorted((ROOT / top).rglob("*.py"))]
# What keeps data on this machine is raised here, by these names.
SENDING = [
    *(ROOT / "ml_dash" / "sync" / name for name in ("identity.py", "remote.py")),
    *(ROOT / "daemon" / "ml_dash_syncd" / name for name in ("account.py", "blobs.py", "ship.py")),
]
RAISED = {"Unauthorised", "Unreachable", "ServerRefused", "Replaced", "park"}


def _text(node: ast.AST) -> str | None:
    """A text of the source, with `...` for what is put in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%[a-z]", "...", node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) or "" if isinstance(part, ast.Constant) else "..." for part in node.values)
    return None


def _texts(paths: list[Path]) -> Iterator[str]:
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if (text := _text(node)) is not None:
                yield text


def _messages() -> list[str]:
    """What the sending says when it cannot go on."""
    found = []
    for path in SENDING:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                texts = [text for one in node.args if (text := _text(one)) is not None]
                found += [text for text in texts if name in RAISED and len(text.replace("...", "").strip()) > 8]
    return found


def _rows() -> list[str]:
    """The messages that the page names."""
    tables = PAGE.read_text().partition("## When starting")[2].partition("## Batch jobs")[0]
    return re.findall(r"(?m)^\| `([^`]+)`[^|]*\|", tables)


def _is_in(row: str, text: str) -> bool:
    """Do the fixed parts of a row come in that order in a text?"""
    place = 0
    for part in filter(None, (part.strip() for part in row.split("..."))):
        place = text.find(part, place)
        if place < 0:
            return False
        place += len(part)
    return True


ROWS = _rows()
MESSAGES = _messages()


def test_there_are_messages_and_rows() -> None:
    assert len(ROWS) > 30
    assert len(MESSAGES) > 15


@pytest.mark.parametrize("row", ROWS)
def test_each_row_is_printed_somewhere(row: str) -> None:
    assert any(_is_in(row, text) for text in _texts(SOURCES)), f"no code says {row!r}"


@pytest.mark.parametrize("message", MESSAGES)
def test_each_message_that_stops_the_sending_has_a_row(message: str) -> None:
    assert any(_is_in(row, message) for row in ROWS), f"the page says nothing of {message!r}"
