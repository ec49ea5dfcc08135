"""X4: break the library's rules one by one, and see the suite turn red for each: `python -m tests.crash.mutants`.

A mutant is a text substitution in a copy of the source tree. The checks that must notice it run on that copy; if they
all pass, the mutant has survived, and the suite has a hole.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from tests.faults.harness import ROOT, remove_tree

from .mutant_table import MUTANTS, Mutant


def copy_tree(target: Path) -> None:
    """The library and these tests, to be broken."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "ml_dash", target / "ml_dash", ignore=ignore)
    shutil.copytree(ROOT / "daemon", target / "daemon", ignore=ignore)
    # Without it, the package of that name in an editable checkout would be taken instead: no mutant would be noticed.
    (target / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "__init__.py", target / "tests")
    for suite in ("faults", "crash", "e2e", "services"):
        shutil.copytree(ROOT / "tests" / suite, target / "tests" / suite, ignore=ignore)


def run_rows(tree: Path, rows: Iterable[tuple[str, int]], seed: str) -> str:
    """What the first of these rows that fails on that tree says; empty if none does."""
    paths = os.pathsep.join([str(tree), str(tree / "daemon")])
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    for row, count in rows:
        # Rows with the daemon or a server are the other suite's.
        suite = "tests.e2e" if row[0] in "BDS" or row == "W32" else "tests.crash"
        command = [sys.executable, "-m", suite, "--row", row, "--count", str(count), "--seed", seed]
        made = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=1_800, check=False
        )
        if made.returncode:
            said = [line.strip() for line in made.stdout.splitlines() if "trial" in line]
            return f"{row}: {said[1][:150] if len(said) > 1 else (made.stdout + made.stderr)[-150:]}"
    return ""


def notice(mutant: Mutant | None, rows: Iterable[tuple[str, int]], seed: str) -> str:
    """What the suite says of a mutant (or of the tree as it is); empty if it notices nothing."""
    tree = Path(tempfile.mkdtemp(prefix="ml-dash-mutant-"))
    try:
        copy_tree(tree)
        if mutant is not None:
            mutant.apply(tree)
        return run_rows(tree, rows, seed)
    finally:
        remove_tree(tree)


def main() -> int:
    """Exit code: 0 if every mutant was noticed."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.mutants", description=__doc__)
    parser.add_argument("--name", action="append", default=[], help="only mutants whose name contains this")
    parser.add_argument("--seed", default=str(random.SystemRandom().randrange(1 << 32)))
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    chosen = [m for m in MUTANTS if not arguments.name or any(part in m.name for part in arguments.name)]
    if arguments.list:
        for mutant in chosen:
            print(f"{mutant.name}: {mutant.file}, noticed by {', '.join(row for row, _ in mutant.rows)}")
        return 0
    # A suite that is red anyway notices nothing.
    counts: dict[str, int] = {}
    for row, count in (pair for mutant in chosen for pair in mutant.rows):
        counts[row] = max(count, counts.get(row, 0))
    red = notice(None, counts.items(), arguments.seed)
    if red:
        print(f"the suite is red without a mutant: {red}")
        return 1
    survivors = 0
    for mutant in chosen:
        begun = time.monotonic()
        said = notice(mutant, mutant.rows, arguments.seed)
        survivors += not said
        print(
            f"{'killed  ' if said else 'SURVIVED'} {mutant.name} ({time.monotonic() - begun:.0f} s) {said}", flush=True
        )
    print(f"{len(chosen) - survivors} of {len(chosen)} mutants noticed, seed {arguments.seed}")
    return int(bool(survivors))


if __name__ == "__main__":
    sys.exit(main())
