"""How things look in a terminal and in a pipe: safe text, colours, tables, numbers, JSON."""

from __future__ import annotations

import json
import math
import os
import re
import select
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import StringIO, TextIOWrapper
from typing import Any, NamedTuple, TextIO, cast

# Columns of a terminal between two of a table.
_BETWEEN = 3
MAX_RICH_ROWS = 300
"""Longer tables are laid out here: rich takes 0.3 ms a row, and `ls` has a second for 5,000."""

_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}

# What can move the cursor, change the terminal or turn the reading order around: C0, DEL, C1, marks of
# direction, line and paragraph separators, and lone surrogates.
_CONTROLS = "\x00-\x1f"
_OTHERS = "\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_UNSAFE = re.compile(f"[{_CONTROLS}{_OTHERS}]")
_JSON_UNSAFE = re.compile(f"[{_OTHERS}]")  # the others json.dumps has escaped itself


class Styled(NamedTuple):
    """Text with one of our styles."""

    text: str
    style: str


Cell = str | Styled

Tell = Callable[[int, int], None]
"""Shows (done, all) as progress."""


def prepare_streams() -> None:
    """Lets a terminal that cannot show a character show its code, where Python would raise."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def safe(text: str) -> str:
    """`text` on one line, with everything that a terminal would obey made visible."""
    return _UNSAFE.sub(_code, text)


def safe_lines(text: str, indent: str) -> str:
    """As `safe`, but line breaks stay; lines after the first are indented: none can pose as another entry."""
    return f"\n{indent}".join(safe(line) for line in text.replace("\r\n", "\n").rstrip("\n").split("\n"))


def _code(match: re.Match[str]) -> str:
    number = ord(match[0])
    named = {9: "\\t", 10: "\\n", 13: "\\r"}.get(number)
    return named or (f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}")


def on_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def coloured(stream: TextIO | None) -> bool:
    """Whether `stream` gets colours: a terminal that has them, and a person who wants them (NO_COLOR)."""
    return on_terminal(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def styled(text: str, style: str, stream: TextIO | None = None) -> str:
    if not coloured(stream or sys.stdout):
        return text
    return f"\x1b[{';'.join(_STYLES[part] for part in style.split())}m{text}\x1b[0m"


def is_plain(stream: TextIO | None = None) -> bool:
    """Does a stream, stdout if none is named, take ASCII alone, or was the C locale asked for?"""
    named = [os.environ.get(name) for name in ("LC_ALL", "LC_CTYPE", "LANG")]
    # Where LANG is C, Python itself sets LC_CTYPE to one of these.
    if next((one for one in named if one and one not in ("C.UTF-8", "C.utf8", "UTF-8")), "") in ("C", "POSIX"):
        # Python writes UTF-8 there all the same; whoever asked for that locale does not read it.
        return True
    try:
        "\u2800\u2524\u2502\u2514\u2500".encode(getattr(stream or sys.stdout, "encoding", None) or "ascii")
    except (UnicodeError, LookupError):
        return True
    return False


class _AsciiText(StringIO):
    """Text for rich, which draws lines and bars of ASCII where the encoding is that."""

    encoding = "ascii"


class _Ascii:
    """Another stream, to rich one of ASCII."""

    encoding = "ascii"

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def width() -> int:
    return shutil.get_terminal_size().columns


def say(text: str = "") -> None:
    """One or more lines on stdout. `text` is already safe."""
    if sys.stdout is not None:
        sys.stdout.write(text + "\n")


def flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def reader_is_gone() -> bool:
    """Whether nobody reads stdout any more. Writing would tell, but there may be nothing to write for long."""
    if sys.stdout is None or not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def note(text: str) -> None:
    """A line on stderr: not a result, and not an error either."""
    if sys.stderr is not None:
        sys.stderr.write(styled(safe(text), "dim", sys.stderr) + "\n")


def complain(text: str) -> None:
    if sys.stderr is not None:
        flush()
        sys.stderr.write(f"{styled('ml-dash:', 'red', sys.stderr)} {safe(text)}\n")


def say_json(value: object, indent: int | None = 2) -> None:
    """`value` as JSON on stdout; a list with one element a line."""
    if isinstance(value, list) and value and indent:
        say("[\n" + ",\n".join(f"  {json_text(item)}" for item in value) + "\n]")
    else:
        say(json_text(value, indent))


def json_text(value: object, indent: int | None = None) -> str:
    """`value` as strict JSON that no terminal takes for commands: NaN and infinities are texts."""
    from ml_dash.core.values import to_json

    text = json.dumps(to_json(value), ensure_ascii=False, allow_nan=False, indent=indent)
    return _JSON_UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def number(value: object) -> str:
    """A recorded value, short: six digits of a float, texts without quotes."""
    if isinstance(value, float):
        if math.isfinite(value):
            return f"{value:.6g}"
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, str):
        return safe(value)
    from ml_dash.core.values import to_json

    return safe(json.dumps(to_json(value), ensure_ascii=False))


def size(count: int) -> str:
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def plural(count: int, noun: str) -> str:
    """`1 entry`, `1,204 entries`."""
    if count != 1:
        noun = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{count:,} {noun}"


def moment(text: object) -> str:
    """`2025-10-29T10:30:00.123456Z` as `2025-10-29 10:30:00`; all times are UTC."""
    return text[:19].replace("T", " ") if isinstance(text, str) else "-"


def say_table(headers: Sequence[str], rows: Iterable[Sequence[Cell]], *, drop: Sequence[str] = ()) -> None:
    """A table on stdout. A header that starts with `>` is above numbers. Cells are already safe.

    On a terminal that is too narrow, the columns named in `drop` go, the first one first. What is left is never broken
    inside a cell, which somebody may want to copy: a row that is still too long is left to the terminal.
    """
    table = [list(row) for row in rows]
    if not on_terminal(sys.stdout):
        say(_plain_table(headers, table))
        return
    headers, table = _narrowed(list(headers), table, drop, width())
    fits = _width_of(headers, table) <= width()
    say(_rich_table(headers, table) if fits and len(table) <= MAX_RICH_ROWS else _plain_table(headers, table))


def _narrowed(
    headers: list[str], rows: list[list[Cell]], drop: Sequence[str], wide: int
) -> tuple[list[str], list[list[Cell]]]:
    """The table without as many of the columns in `drop` as it takes to fit."""
    for name in drop:
        if _width_of(headers, rows) <= wide:
            break
        if name not in headers:
            continue
        place = headers.index(name)
        headers = [*headers[:place], *headers[place + 1 :]]
        rows = [[*row[:place], *row[place + 1 :]] for row in rows]
    return headers, rows


def _width_of(headers: Sequence[str], rows: list[list[Cell]]) -> int:
    texts = [[c if isinstance(c, str) else c.text for c in row] for row in rows]
    titles = [header.removeprefix(">") for header in headers]
    columns = [max(map(_columns, column)) for column in zip(titles, *texts, strict=True)]
    return sum(columns) + _BETWEEN * (len(columns) - 1)


def _rich_table(headers: Sequence[str], rows: list[list[Cell]]) -> str:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for header in headers:
        table.add_column(
            Text(header.removeprefix(">")), justify="right" if header.startswith(">") else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*(Text(c) if isinstance(c, str) else Text(c.text, style=c.style) for c in row))
    return rendered(table).strip("\n")


def rendered(thing: Any) -> str:
    """What rich makes of `thing` for this terminal, as text: all output takes one way out."""
    from rich.console import Console

    ours = coloured(sys.stdout)
    console = Console(
        file=_AsciiText() if is_plain() else StringIO(), width=width(), force_terminal=ours,
        color_system="standard" if ours else None, legacy_windows=False, markup=False, highlight=False, emoji=False,
    )  # fmt: skip
    with console.capture() as capture:
        console.print(thing)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _plain_table(headers: Sequence[str], rows: list[list[Cell]]) -> str:
    texts = [[c if isinstance(c, str) else c.text for c in row] for row in rows]
    titles = [header.removeprefix(">") for header in headers]
    widths = [max(map(_columns, column)) for column in zip(titles, *texts, strict=True)]
    lines = []
    for texts_of_row in [titles, *texts]:
        cells = []
        for header, text, wide in zip(headers, texts_of_row, widths, strict=True):
            space = " " * (wide - _columns(text))
            cells.append(space + text if header.startswith(">") else text + space)
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _columns(text: str) -> int:
    """How many columns of a terminal `text` takes."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


@contextmanager
def progress(title: str) -> Iterator[Tell | None]:
    """A function that takes (done, all) and shows them on stderr; None where nobody would see it."""
    if not on_terminal(sys.stderr):
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    title_column = TextColumn("{task.description}", markup=False)
    columns = (title_column, BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    stream = cast("TextIO", _Ascii(sys.stderr)) if is_plain(sys.stderr) else sys.stderr
    console = Console(file=stream, color_system="auto" if coloured(sys.stderr) else None, markup=False)
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(safe(title), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
