"""A seeded sample of every row of the fault matrix; `python -m tests.crash` runs any of them at full count."""

from __future__ import annotations

import os
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness import Row, RowReport, fast_folder, remove_tree
from .regressions import REGRESSIONS
from .table import ROWS

# Read before the fixtures clear the environment. Another seed each time, unless one is given.
SEED = (
    os.environ.get("ML_DASH_SEED")
    or os.environ.get("ML_DASH_TEST_SEED")
    or str(random.SystemRandom().randrange(1 << 32))
)
_WORK = os.environ.get("ML_DASH_TEST_WORKDIR")
_IN_CI = bool(os.environ.get("CI"))


@pytest.fixture(scope="module")
def workdir() -> Iterator[Path]:
    """A folder in memory, where there is some, that victims without rights may reach."""
    folder = Path(tempfile.mkdtemp(prefix="ml-dash-crash-", dir=_WORK or fast_folder()))
    folder.chmod(0o755)
    yield folder
    remove_tree(folder)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_DASH_QUIET", "1")


@pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))
def test_row(row: Row, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = row.run(row.sample, SEED, workdir / row.id)
    with capsys.disabled():
        print(f"\n{report}", end=" ")
    _must_be_clean(report)
    assert report.trials + report.skipped.total() == row.sample


@pytest.mark.parametrize(("row", "seed", "trial", "what"), REGRESSIONS, ids=[f"{r[0]}-{r[2]}" for r in REGRESSIONS])
def test_bug_stays_away(row: str, seed: str, trial: int, what: str, workdir: Path) -> None:
    report = ROWS[row].run(1, seed, workdir / f"again-{row}-{trial}", only=trial)
    _must_be_clean(report, what)


def _must_be_clean(report: RowReport, what: str = "") -> None:
    if report.unavailable:
        # Elsewhere than on Linux nothing can be preloaded: a limit of the platform, told in docs/limits.md.
        if _IN_CI and sys.platform.startswith("linux"):
            pytest.fail(f"{report.row} could not be run: {report.unavailable}")
        pytest.skip(f"{report.row}: {report.unavailable}")
    assert not report.failed, f"{what}\n{report}"
    if not report.trials:
        pytest.skip(str(report))
