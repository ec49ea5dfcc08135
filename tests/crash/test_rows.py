"""A seeded sample of every row of the fault matrix; `python -m tests.crash` runs any of them at full count."""

from __future__ import annotations

import os
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness import Row, remove_tree
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
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="ml-dash-crash-", dir=_WORK or memory))
    folder.chmod(0o755)
    yield folder
    remove_tree(folder)


@pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))
def test_row(row: Row, workdir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_DASH_QUIET", "1")
    report = row.run(row.sample, SEED, workdir / row.id)
    with capsys.disabled():
        print(f"\n{report}", end=" ")
    if report.unavailable:
        # Elsewhere than on Linux nothing can be preloaded: a limit of the platform, told in docs/limits.md.
        if _IN_CI and sys.platform.startswith("linux"):
            pytest.fail(f"{row.id} could not be run: {report.unavailable}")
        pytest.skip(f"{row.id}: {report.unavailable}")
    assert not report.failed, str(report)
    assert report.trials == row.sample
