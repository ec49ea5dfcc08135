"""`python -m tests.e2e`: run rows of the fault matrix at any count, and print what they found."""

from __future__ import annotations

import argparse
import logging
import os
import random
import sys
import tempfile
from pathlib import Path

from tests.crash.__main__ import own_environment
from tests.crash.harness import fast_folder, remove_tree

from .harness import Row, RowReport, finish_apart, start_apart
from .table import ROWS


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.e2e", description=__doc__)
    parser.add_argument("--list", action="store_true", help="the rows and their full counts")
    parser.add_argument("--row", action="append", default=[], help="a row's id (may be repeated); all without it")
    parser.add_argument("--full", action="store_true", help="the full count instead of the sample")
    parser.add_argument("--count", type=int, help="so many trials")
    parser.add_argument("--minutes", type=float, help="how long a soak lasts (X1)")
    parser.add_argument("--seed", help="repeat the trials of that seed (default: a fresh one, printed)")
    parser.add_argument("--only", type=int, help="only the trial of that number")
    parser.add_argument("--jobs", type=int, default=2, help="processes to run the trials in (default 2)")
    parser.add_argument("--workdir", type=Path, help="where trials have their folders (default: a temporary one)")
    parser.add_argument("--share", default="0/1", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def run_row(row: Row, count: int, seed: str, workdir: Path, *, jobs: int = 2, only: int | None = None) -> RowReport:
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


def main() -> int:
    """Exit code: 0 if no trial failed, 1 if one did or a row could not be run."""
    arguments = _arguments()
    if arguments.list:
        for row in ROWS.values():
            sizes = f"{row.full:>7,} full {row.sample:>4,} sampled {row.budget_s:>4.0f} s"
            print(f"{row.id:4} {sizes}  {row.title}{f' ({row.unit})' if row.unit else ''}")
        return 0
    own_environment()
    if arguments.full:
        os.environ["ML_DASH_TEST_LONG"] = "1"
    if arguments.minutes is not None:
        os.environ["ML_DASH_TEST_MINUTES"] = str(arguments.minutes)
    seed = arguments.seed or str(random.SystemRandom().randrange(1 << 32))
    rows = [ROWS[name] for name in arguments.row] or list(ROWS.values())
    if arguments.json:
        (row,) = rows
        j, _, n = arguments.share.partition("/")
        report = row.run(arguments.count, seed, arguments.workdir, share=(int(j), int(n)), only=arguments.only)
        print(report.to_json())
        return int(bool(report.failed))
    workdir = arguments.workdir or Path(tempfile.mkdtemp(prefix="ml-dash-e2e-", dir=fast_folder()))
    workdir.mkdir(parents=True, exist_ok=True)
    workdir.chmod(0o755)
    bad = 0
    for row in rows:
        count = arguments.count or (row.full if arguments.full else row.sample)
        report = run_row(row, count, seed, workdir / row.id, jobs=arguments.jobs, only=arguments.only)
        print(report, flush=True)
        bad += bool(report.failed or report.unavailable)
        if not report.failed:
            remove_tree(workdir / row.id)
    if not bad and arguments.workdir is None:
        remove_tree(workdir)
    return int(bool(bad))


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    sys.exit(main())
