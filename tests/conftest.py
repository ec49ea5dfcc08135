"""What every test gets: an environment of its own, a printed seed, a check for leaked threads and files."""

from __future__ import annotations

import gc
import os
import random
import re
import signal
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.services.fixtures import (  # noqa: F401
    mongo_database,
    mongo_service,
    s3_bucket,
    s3_client,
    s3_service,
    told_once,
)

if TYPE_CHECKING:
    from tests.journals import JournalFixture

settings.register_profile("ml-dash", deadline=None, print_blob=True)
settings.load_profile("ml-dash")

SEED = int(os.environ.get("ML_DASH_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
# Read once by those test modules that draw from a seed of their own, so that one number repeats a whole run.
os.environ["ML_DASH_TEST_SEED"] = str(SEED)

_OPEN_FILES = Path("/proc/self/fd") if Path("/proc/self/fd").is_dir() else Path("/dev/fd")
_SCHEDULER = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


# A shell that starts this in the background ignores Ctrl-C, for this process and for all that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "leaks(reason): the test leaves a thread or a file open on purpose")
    config.addinivalue_line("markers", "every_pair: the test runs on every pair of stores (tests/server)")
    config.addinivalue_line("markers", "console(*patterns): expected errors in a page's console (tests/browser)")
    config.addinivalue_line("markers", "both_ends: the test runs on SQLite and a folder, and on MongoDB and S3")


def pytest_unconfigure() -> None:
    # What tests have left unsent on purpose is no news for who ran them.
    os.environ["ML_DASH_QUIET"] = "1"


def pytest_report_header() -> str:
    return f"seed: {SEED} (ML_DASH_TEST_SEED={SEED} repeats it)"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test wrote may hold characters that are no Unicode; the way to the process that reports takes none."""
    report = yield
    told_once(report)
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What each row of the fault matrix found: the processes that run tests side by side cannot print it themselves."""
    reports = (report for kind in ("passed", "failed", "skipped") for report in terminalreporter.getreports(kind))
    told = [text for report in reports for name, text in report.user_properties if name == "row"]
    if told:
        terminalreporter.section("rows of the fault matrix")
        for text in told:
            terminalreporter.write_line(text)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> str:
    """A seed of this test's own, the same whichever other tests run."""
    return f"{SEED}:{request.node.nodeid}"


@pytest.fixture
def rng(seed: str) -> random.Random:
    return random.Random(seed)


@pytest.fixture(autouse=True)
def _own_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> None:
    """No setting, login or scheduler variable of whoever runs the tests reaches the code under test."""
    for name in list(os.environ):
        ours = name.startswith("ML_DASH_") and not name.startswith("ML_DASH_TEST_")
        if ours or name in (*_SCHEDULER, "MONGODB_URI") or name.startswith(("SLURM_", "S3_")):
            monkeypatch.delenv(name)
    # A test that wants the uploader started in the background says so, and ends it.
    monkeypatch.setenv("ML_DASH_AUTOSYNC", "0")
    home = _home(tmp_path_factory, request.config)
    for variable in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, str(home / variable.lower()))


@pytest.fixture
def own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Settings, state and logins of this test alone, for one that looks at all of them."""
    home = tmp_path / "own-home"
    for variable in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, str(home / variable.lower()))
    return home


def _home(factory: pytest.TempPathFactory, config: pytest.Config) -> Path:
    home: Path | None = config.stash.get(_HOME, None)
    if home is None:
        home = config.stash[_HOME] = factory.mktemp("home")
    return home


_HOME = pytest.StashKey[Path]()


@pytest.fixture(autouse=True)
def _nothing_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves a thread running or a file open."""
    if request.node.get_closest_marker("leaks"):
        yield
        return
    threads, files = set(threading.enumerate()), _open_files()
    yield
    left = [thread for thread in threading.enumerate() if thread not in threads]
    for thread in left:
        thread.join(timeout=2)
    running = [thread.name for thread in left if thread.is_alive()]
    assert not running, f"threads left running: {running}"
    if _new(files):
        gc.collect()  # what only a reference cycle keeps open is closed by this
    assert not _new(files), f"files left open: {sorted(_new(files).values())}"


def _new(before: dict[str, str]) -> dict[str, str]:
    return {
        number: target
        for number, target in _open_files().items()
        if before.get(number) != target and re.match("/(?!dev/|proc/)", target)
    }


def _open_files() -> dict[str, str]:
    """Descriptor → what it leads to; empty where the system does not tell (macOS)."""
    found = {}
    for entry in _OPEN_FILES.iterdir():
        try:
            found[entry.name] = str(entry.readlink())
        except OSError:  # closed since, as the one of this listing is; or no link
            continue
    return found


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[JournalFixture]:
    """A journal written byte by byte, see `tests.journals`."""
    from tests.journals import JournalFixture

    desk = JournalFixture(tmp_path / "store")
    yield desk
    desk.let_go()
