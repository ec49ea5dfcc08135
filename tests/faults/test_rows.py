"""A seeded sample of every row of the fault matrix; `python -m tests.crash` and `tests.e2e` run any at full count."""

from __future__ import annotations

import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.crash.regressions import REGRESSIONS
from tests.crash.table import ROWS as CRASH_ROWS
from tests.e2e.table import ROWS as E2E_ROWS
from tests.e2e.world import on_mongo, world

from .harness import Row, RowReport, fast_folder, remove_tree

# Read before the fixtures clear the environment. Another seed each time, unless one is given.
SEED = (
    os.environ.get("ML_DASH_SEED")
    or os.environ.get("ML_DASH_TEST_SEED")
    or str(random.SystemRandom().randrange(1 << 32))
)
_WORK = os.environ.get("ML_DASH_TEST_WORKDIR")
_IN_CI = bool(os.environ.get("CI"))


@contextmanager
def _folder(suite: str) -> Iterator[Path]:
    """A folder in memory, where there is some, that victims without rights may reach."""
    folder = Path(tempfile.mkdtemp(prefix=f"ml-dash-{suite}-", dir=_WORK or fast_folder()))
    folder.chmod(0o755)
    yield folder
    remove_tree(folder)


@pytest.fixture(scope="module")
def crash_folder() -> Iterator[Path]:
    """For rows without a server."""
    with _folder("crash") as folder:
        yield folder


@pytest.fixture(scope="module")
def e2e_folder() -> Iterator[Path]:
    """With the processes and the server that all rows of that suite share."""
    with _folder("e2e") as folder, world(folder / "world"):
        yield folder


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_DASH_QUIET", "1")


_LEAVES = pytest.mark.leaks("the processes that all rows with a server share")


@pytest.mark.parametrize(
    "row",
    [
        *(pytest.param(row, id=name) for name, row in CRASH_ROWS.items()),
        *(
            pytest.param(row, id=f"{name} with a server" if name in CRASH_ROWS else name, marks=_LEAVES)
            for name, row in E2E_ROWS.items()
        ),
    ],
)
def test_row(row: Row, request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> None:
    folder: Path = request.getfixturevalue("e2e_folder" if row.package == "tests.e2e" else "crash_folder")
    report = row.run(row.sample, SEED, folder / row.id)
    record_property("row", str(report))
    _must_be_clean(report)
    assert report.trials + report.skipped.total() == row.sample


# Rows that run on MongoDB and S3 as well, two servers taking turns where a row shares one; and with how many trials.
_ON_MONGO = {"D1": 1, "D2": 2, "D5": 1, "D6": 1, "S1": 1, "S3": 1, "S4": 6}


@pytest.mark.parametrize("name", _ON_MONGO)
@_LEAVES
def test_row_on_mongo(name: str, e2e_folder: Path, record_property: Callable[[str, object], None]) -> None:
    with on_mongo():
        report = E2E_ROWS[name].run(_ON_MONGO[name], SEED, e2e_folder / f"{name}-on-mongo")
    record_property("row", f"{report} (MongoDB and S3)")
    _must_be_clean(report)
    assert report.trials == _ON_MONGO[name]


@pytest.mark.parametrize(("row", "seed", "trial", "what"), REGRESSIONS, ids=[f"{r[0]}-{r[2]}" for r in REGRESSIONS])
def test_bug_stays_away(row: str, seed: str, trial: int, what: str, crash_folder: Path) -> None:
    _must_be_clean(CRASH_ROWS[row].run(1, seed, crash_folder / f"again-{row}-{trial}", only=trial), what)


def _must_be_clean(report: RowReport, what: str = "") -> None:
    if report.unavailable:
        # Elsewhere than on Linux nothing can be preloaded: a limit of the platform, told in docs/limits.md.
        if _IN_CI and sys.platform.startswith("linux"):
            pytest.fail(f"{report.row} could not be run: {report.unavailable}")
        pytest.skip(f"{report.row}: {report.unavailable}")
    assert not report.failed, f"{what}\n{report}"
    if not report.trials:
        pytest.skip(str(report))
