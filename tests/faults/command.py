"""The command that runs rows of the fault matrix: `python -m tests.crash` and `python -m tests.e2e`."""

from __future__ import annotations

import argparse
import logging
import os
import random
import tempfile
from collections.abc import Mapping
from pathlib import Path

from .harness import Row, RowReport, fast_folder, finish_apart, remove_tree, start_apart


def _arguments(package: str) -> argparse.Namespace:
    about = f"`python -m {package}`: run rows of the fault matrix at any count, and print what they found."
    parser = argparse.ArgumentParser(prog=f"python -m {package}", description=about)
    parser.add_argument("--list", action="store_true", help="the rows and their full counts")
    parser.add_argument("--row", action="append", default=[], help="a row's id (may be repeated); all without it")
    parser.add_argument("--full", action="store_true", help="the full count instead of the sample")
    parser.add_argument("--count", type=int, help="so many trials")
    parser.add_argument("--minutes", type=float, help="how long a soak lasts (X1)")
    parser.add_argument(
        "--stores", choices=("folder", "mongo"), help="of servers: a folder (default), or MongoDB and S3"
    )
    parser.add_argument("--seed", help="repeat the trials of that seed (default: a fresh one, printed)")
    parser.add_argument("--only", type=int, help="only the trial of that number")
    parser.add_argument("--jobs", type=int, default=2, help="processes to run the trials in (default 2)")
    parser.add_argument("--workdir", type=Path, help="where trials have their folders (default: a temporary one)")
    parser.add_argument("--share", default="0/1", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main(package: str, table: Mapping[str, Row]) -> int:
    """Exit code: 0 if no trial failed, 1 if one did or a row could not be run."""
    arguments = _arguments(package)
    if arguments.list:
        for row in table.values():
            print(f"{row.id:4} {row.full:>8,} full {row.sample:>6,} sampled  {row.about}")
        return 0
    own_environment()
    if arguments.full:
        # Rows whose single trials have a size (W18, W26, P10) take the full one.
        os.environ["ML_DASH_TEST_LONG"] = "1"
    if arguments.minutes is not None:
        os.environ["ML_DASH_TEST_MINUTES"] = str(arguments.minutes)
    if arguments.stores is not None:
        os.environ["ML_DASH_TEST_STORES"] = arguments.stores
    seed = arguments.seed or str(random.SystemRandom().randrange(1 << 32))
    rows = [table[name] for name in arguments.row] or list(table.values())
    if arguments.json:
        (row,) = rows
        j, _, n = arguments.share.partition("/")
        report = row.run(arguments.count, seed, arguments.workdir, share=(int(j), int(n)), only=arguments.only)
        print(report.to_json())
        return int(bool(report.failed))
    workdir = arguments.workdir or Path(tempfile.mkdtemp(prefix=f"ml-dash-{package[6:]}-", dir=fast_folder()))
    workdir.mkdir(parents=True, exist_ok=True)
    workdir.chmod(0o755)  # victims without rights have their folders here
    bad = 0
    for row in rows:
        count = arguments.count or (row.full if arguments.full else row.sample)
        report = _run_row(row, count, seed, workdir / row.id, jobs=arguments.jobs, only=arguments.only)
        print(report, flush=True)
        bad += bool(report.failed or report.unavailable)
        if not report.failed:
            remove_tree(workdir / row.id)
    if not bad and arguments.workdir is None:
        remove_tree(workdir)
    return int(bool(bad))


def _run_row(row: Row, count: int, seed: str, workdir: Path, *, jobs: int, only: int | None) -> RowReport:
    """Run a row's trials in several processes."""
    jobs = 1 if only is not None else max(1, min(jobs, count))
    started = [
        start_apart(row, count, seed, workdir / f"share-{share}", share=(share, jobs), only=only)
        for share in range(jobs)
    ]
    report = RowReport(row.id, seed)
    for process in started:
        report.add(finish_apart(row, seed, process))
    return report


def own_environment() -> None:
    """No setting or login of whoever runs the trials reaches the library in this process."""
    for name in list(os.environ):
        if name.startswith("ML_DASH_") and not name.startswith("ML_DASH_TEST_"):
            del os.environ[name]
    os.environ["ML_DASH_QUIET"] = "1"
    # What the library warns of is what the trials do to it.
    logging.getLogger("ml_dash").addHandler(logging.NullHandler())
