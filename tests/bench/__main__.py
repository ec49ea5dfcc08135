"""Run the measurements, each in a process of its own, and print a table (`--markdown` for docs/performance.md)."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("rows", nargs="*", help="which rows (default: all)")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full sizes (1.0: as in the docs)")
    parser.add_argument("--folder", help="where to write (default: a new folder in the working directory)")
    parser.add_argument("--markdown", action="store_true", help="print the table as in docs/performance.md")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ["ML_DASH_QUIET"] = "1"
    from . import (  # noqa: F401 - they register their rows
        browser_rows,
        columns_row,
        documents_row,
        engine_rows,
        local_rows,
        peer_rows,
        reading_rows,
        remote_rows,
        resumed_row,
        server_rows,
        start_row,
    )
    from .rows import ROWS

    if arguments.one:
        print(json.dumps(ROWS[arguments.one][1](Path(arguments.folder), arguments.scale)))
        return
    results = {}
    for name in arguments.rows or ROWS:
        with tempfile.TemporaryDirectory(dir=arguments.folder or ".", prefix=".bench-") as folder:
            command = [sys.executable, "-m", "tests.bench", "--one", name, "--scale", str(arguments.scale)]
            command += ["--folder", str(Path(folder).absolute())]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        results[name] = json.loads(done.stdout.splitlines()[-1])
        if not arguments.markdown:
            print(f"{name:28} {ROWS[name][0]}\n    {shown(results[name])}", flush=True)
    if arguments.markdown:
        print(f"Python {platform.python_version()}, {platform.system()} {platform.release()}, {os.cpu_count()} cores\n")
        print("| what | measured | to reach |\n|---|---|---|")
        for name, figures in results.items():
            print(f"| **`{name}`** | | {ROWS[name][0]} |")
            for figure, value in figures.items():
                print(f"| {figure} | {_number(value)} | |")


def shown(figures: Mapping[str, float | str]) -> str:
    """Figures on one line."""
    return ", ".join(f"{name} {_number(value)}" for name, value in figures.items())


def _number(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


main()
