"""Records the terminal pictures of the docs: `python docs/pictures/record.py`, with ml-dash installed.

Runs the real commands in a pseudo terminal, in an empty folder, and writes what they printed as SVG files
beside this one.
"""

from __future__ import annotations

import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
from fcntl import ioctl
from io import StringIO
from pathlib import Path
from termios import TIOCSWINSZ

from rich.console import Console
from rich.text import Text

HERE = Path(__file__).parent
COLUMNS = 96
PICTURES = {
    "demo.svg": ["ml-dash demo"],
    "metrics.svg": ["ml-dash metrics", "ml-dash metrics demo/iris-1 accuracy --plot"],
}

# What rich writes, without the web font that it would have every reader load.
FRAME = """<svg class="{unique_id}" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: "Fira Code", "DejaVu Sans Mono", Menlo, Consolas, monospace;
    font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
DOTS
</g>
</svg>
"""

# How rich lays characters out: 20 high, 0.61 of that wide, lines 1.22 of it apart.
CELL_WIDTH, LINE_HEIGHT, TOP = 12.2, 24.4, 1.5


def in_terminal(command: str, folder: Path) -> str:
    """What `command` prints to a terminal of our width. Its stderr, where bars move, is not recorded."""
    ours, theirs = pty.openpty()
    ioctl(theirs, TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ML_DASH_", "NO_COLOR"))}
    environment = {**kept, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    process = subprocess.Popen(
        command.split(), cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL
    )
    os.close(theirs)
    printed = b""
    while block := _read(ours):
        printed += block
    os.close(ours)
    if process.wait() != 0:
        raise SystemExit(f"{command} ended with exit code {process.returncode}")
    return printed.decode().replace("\r\n", "\n")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux tells with EIO that nobody has the other end open any more
        return b""


def dots(lines: list[str]) -> str:
    """The Braille patterns of a plot as circles: few fonts have them, and fewer in the width of their letters."""
    circles = []
    for row, line in enumerate(lines):
        for column, character in enumerate(line):
            for bit in range(8 if "\u2800" <= character <= "\u28ff" else 0):
                if (ord(character) - 0x2800) >> bit & 1:
                    right, down = (bit // 3, bit % 3) if bit < 6 else (bit - 6, 3)
                    x = (column + 0.25 + 0.5 * right) * CELL_WIDTH
                    y = (row + 0.125 + 0.25 * down) * LINE_HEIGHT + TOP
                    circles.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.2"/>')
    return '<g fill="#c5c8c6">' + "".join(circles) + "</g>"


def picture(commands: list[str], folder: Path, name: str) -> str:
    """The SVG of a terminal in which `commands` were typed."""
    console = Console(record=True, width=COLUMNS, file=StringIO(), markup=False, highlight=False)
    lines: list[str] = []
    for command in commands:
        shown = Text.from_ansi(in_terminal(command, folder))
        typed = Text(f"$ {command}", style="bold cyan")
        lines += [typed.plain, *shown.plain.split("\n")]
        console.print(typed)
        console.print(shown)
    svg = console.export_svg(title=commands[0], code_format=FRAME, unique_id=name)
    return re.sub("[\u2800-\u28ff]", "&#160;", svg).replace("DOTS", dots(lines))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, commands in PICTURES.items():
            (HERE / name).write_text(picture(commands, Path(folder), name.split(".")[0]), encoding="utf-8")


if __name__ == "__main__":
    main()
