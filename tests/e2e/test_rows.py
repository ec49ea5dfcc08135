"""A seeded sample of every row of remote mode; `python -m tests.e2e` runs any of them at full count."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.harness import fast_folder, remove_tree

from .harness import Row
from .table import ROWS
from .world import world

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
    """A folder in memory, where there is some, with processes and a server that all rows share."""
    folder = Path(tempfile.mkdtemp(prefix="ml-dash-e2e-", dir=_WORK or fast_folder()))
    folder.chmod(0o755)
    with world(folder / "world"):
        yield folder
    remove_tree(folder)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_DASH_QUIET", "1")


@pytest.mark.leaks("the processes that all rows share")
@pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))
def test_row(row: Row, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = row.run(row.sample, SEED, workdir / row.id)
    with capsys.disabled():
        print(f"\n{report}", end="", flush=True)
    assert not report.failed, str(report)
    if report.unavailable:
        assert not _IN_CI, f"{row.id} cannot be run here: {report.unavailable}"
        pytest.skip(f"{row.id}: {report.unavailable}")
