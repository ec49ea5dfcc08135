"""Records the terminal pictures of the docs: `python docs/pictures/record.py`, with ml-dash installed.

Runs the real commands in a pseudo terminal, in an empty folder, and writes what they printed as SVG files
beside this one.
"""

from __future__ import annotations

import os
import pty
import shutil
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
</g>
</svg>
"""


def in_terminal(command: str, folder: Path) -> str:
    """What `command` prints to a terminal of our width. Its stderr, where bars move, is not recorded."""
    ours, theirs = pty.openpty()
    ioctl(theirs, TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("ML_DASH_", "NO_COLOR"))
    }
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


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    for name, commands in PICTURES.items():
        console = Console(record=True, width=COLUMNS, file=StringIO(), markup=False, highlight=False)
        for command in commands:
            console.print(Text(f"$ {command}", style="bold cyan"))
            console.print(Text.from_ansi(in_terminal(command, folder)))
        console.save_svg(str(HERE / name), title=commands[0], code_format=FRAME, unique_id=name.split(".")[0])
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
