"""Output to a terminal or a pipe: safe text, colours, tables, numbers, JSON."""

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

# Columns of the terminal between two columns of a table.
_BETWEEN = 3
MAX_RICH_ROWS = 300
"""Longer tables are laid out without rich, which takes 0.3 ms a row: `ls` of 5,000 experiments must take one second."""

_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}

# What can move the cursor, change the terminal or turn the reading order around: C0, DEL, C1, marks of
# direction, line and paragraph separators, and lone surrogates.
_CONTROLS = "\x00-\x1f"
_OTHERS = "\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_UNSAFE = re.compile(f"[{_CONTROLS}{_OTHERS}]")
_JSON_UNSAFE = re.compile(f"[{_OTHERS}]")  # the others json.dumps has escaped itself


class Styled(NamedTuple):
    """Text with the name of a style, a key of `_STYLES`."""

    text: str
    style: str


Cell = str | Styled

ShowProgress = Callable[[int, int], None]
"""A function that shows progress; called with (done, total), in any one unit."""


def prepare_streams() -> None:
    """Let stdout and stderr print a character that their encoding lacks as its code, instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def safe(text: str) -> str:
    """Return `text` on one line, with every character that a terminal would act on replaced by its code."""
    return _UNSAFE.sub(_code, text)


def safe_lines(text: str, indent: str) -> str:
    """Return `text` made safe with its line breaks, later lines indented so that none looks like another entry."""
    return f"\n{indent}".join(safe(line) for line in text.replace("\r\n", "\n").rstrip("\n").split("\n"))


def _code(match: re.Match[str]) -> str:
    number = ord(match[0])
    named = {9: "\\t", 10: "\\n", 13: "\\r"}.get(number)
    return named or (f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}")


def on_terminal(stream: TextIO | None) -> bool:
    """True if `stream` is a terminal."""
    return stream is not None and stream.isatty()


def coloured(stream: TextIO | None) -> bool:
    """True if `stream` is a terminal with colours, and NO_COLOR is not set."""
    return on_terminal(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def styled(text: str, style: str, stream: TextIO | None = None) -> str:
    """Return `text` in a style (keys of `_STYLES`, separated by spaces), or as it is where there are no colours."""
    if not coloured(stream or sys.stdout):
        return text
    return f"\x1b[{';'.join(_STYLES[part] for part in style.split())}m{text}\x1b[0m"


def is_plain(stream: TextIO | None = None) -> bool:
    """True if a stream (stdout) should get nothing but ASCII: its encoding has no more, or the locale is C."""
    named = [os.environ.get(name) for name in ("LC_ALL", "LC_CTYPE", "LANG")]
    # Where LANG is C, Python itself sets LC_CTYPE to one of these.
    if next((one for one in named if one and one not in ("C.UTF-8", "C.utf8", "UTF-8")), "") in ("C", "POSIX"):
        # Python writes UTF-8 there nevertheless, but a user who asked for that locale cannot read it.
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
    """Columns of the terminal; 80 if there is none."""
    return shutil.get_terminal_size().columns


def print_text(text: str = "") -> None:
    """Print lines on stdout. `text` must be safe already. Does nothing where there is no stdout."""
    if sys.stdout is not None:
        sys.stdout.write(text + "\n")


def flush() -> None:
    """Flush stdout."""
    if sys.stdout is not None:
        sys.stdout.flush()


def reader_is_gone() -> bool:
    """True if the reader of stdout has gone. Writing would show that, but there may be nothing to write for hours."""
    if sys.stdout is None or not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def print_note(text: str) -> None:
    """Print a line on stderr that is neither a result nor an error."""
    if sys.stderr is not None:
        sys.stderr.write(styled(safe(text), "dim", sys.stderr) + "\n")


def print_error(text: str) -> None:
    """Print `ml-dash: text` on stderr, after what is on its way to stdout."""
    if sys.stderr is not None:
        flush()
        sys.stderr.write(f"{styled('ml-dash:', 'red', sys.stderr)} {safe(text)}\n")


def print_error_lines(text: str) -> None:
    """Print an error of several lines, which stay under each other."""
    if sys.stderr is not None:
        flush()
        sys.stderr.write(f"{styled('ml-dash:', 'red', sys.stderr)} {safe_lines(text, '')}\n")


def print_json(value: object, indent: int | None = 2) -> None:
    """Print `value` as JSON on stdout; of a list, each element on a line of its own."""
    if isinstance(value, list) and value and indent:
        print_text("[\n" + ",\n".join(f"  {json_text(item)}" for item in value) + "\n]")
    else:
        print_text(json_text(value, indent))


def json_text(value: object, indent: int | None = None) -> str:
    """Return `value` as strict JSON without characters that a terminal acts on; NaN and infinities become texts."""
    from ml_dash.core.json_values import to_json

    text = json.dumps(to_json(value), ensure_ascii=False, allow_nan=False, indent=indent)
    return _JSON_UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def value_text(value: object) -> str:
    """Return a recorded value in short: a float with six digits, a text without quotes, anything else as JSON."""
    if isinstance(value, float):
        if math.isfinite(value):
            return f"{value:.6g}"
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, str):
        return safe(value)
    from ml_dash.core.json_values import to_json

    return safe(json.dumps(to_json(value), ensure_ascii=False))


def size_text(count: int) -> str:
    """Return a number of bytes with a decimal unit: `61.3 MB`."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def duration_text(seconds: float) -> str:
    """Return a duration in its two largest units: `12.3 s`, `4 min 5 s`, `2 h 30 min`, `3 d 4 h`."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = int(seconds)
    for size, unit, below, smaller in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size} {unit} {rest} {smaller}" if rest else f"{whole // size} {unit}"
    raise AssertionError(seconds)


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: `1 entry`, `1,204 entries`."""
    if count != 1:
        noun = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{count:,} {noun}"


def time_text(text: object) -> str:
    """Return `2025-10-29T10:30:00.123456Z` as `2025-10-29 10:30:00` (UTC); `-` for anything but text."""
    return text[:19].replace("T", " ") if isinstance(text, str) else "-"


def print_table(headers: Sequence[str], rows: Iterable[Sequence[Cell]], *, drop: Sequence[str] = ()) -> None:
    """Print a table on stdout. A header that begins with `>` stands above numbers. Cells must be safe already.

    On a terminal that is too narrow, columns are left out in the order of `drop` until the rest fits. What is left is
    never broken inside a cell, which somebody may want to copy: a row that is still too long is left to the terminal.
    """
    table = [list(row) for row in rows]
    if not on_terminal(sys.stdout):
        print_text(_plain_table(headers, table))
        return
    headers, table = _narrowed(list(headers), table, drop, width())
    fits = _width_of(headers, table) <= width()
    print_text(_rich_table(headers, table) if fits and len(table) <= MAX_RICH_ROWS else _plain_table(headers, table))


def _narrowed(
    headers: list[str], rows: list[list[Cell]], drop: Sequence[str], wide: int
) -> tuple[list[str], list[list[Cell]]]:
    """Return the table without as many columns of `drop` as have to go for it to fit."""
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
    """Return what rich makes of `thing` for this terminal, as text. So all output goes through `print_text`."""
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
    """Columns of the terminal that `text` takes."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


@contextmanager
def progress(title: str) -> Iterator[ShowProgress | None]:
    """Yield a function that shows (done, total) as a bar on stderr; None if stderr is not a terminal."""
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
