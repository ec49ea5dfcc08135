"""New data is noticed: by sizes and locks, by hints where there are any, and in folders whose times tell nothing."""

from __future__ import annotations

import errno
import os
import queue
import threading
import time
from pathlib import Path

import pytest

from ml_dash import Experiment
from ml_dash.disk import lock
from ml_dash.journal.segment import SEGMENTS
from ml_dash.sync import login, registrations
from ml_dash.sync.registrations import Registration
from ml_dash_syncd import discover, watch
from ml_dash_syncd.settings import Settings
from ml_dash_syncd.watch import Hints, JournalWatch, PollRate

URL = "http://127.0.0.1:9"
WRITER = "0" * 31 + "1"


def segments(tmp_path: Path) -> Path:
    folder = tmp_path / SEGMENTS
    folder.mkdir()
    return folder


def name(number: int, kind: str) -> str:
    created = f"{1_700_000_000_000_000_000 + number:020d}"
    return f"{created}-{WRITER}-{number:06d}.seg" if kind == "seg" else f"{created}-{WRITER}.lock"


def journal(store: Path, called: str, **more: object) -> Path:
    """A journal with a closed writer."""
    with Experiment(called, "p", local_path=store, **more) as experiment:  # type: ignore[arg-type]
        experiment.log("hello")
    return store / "p" / called / ".journal"


def test_a_live_writer_is_looked_at_and_its_death_is_noticed(tmp_path: Path) -> None:
    with Experiment("live", "p", local_path=tmp_path) as experiment:
        watching = JournalWatch(tmp_path / "p" / "live" / ".journal")
        assert watching.has_changed()
        assert watching.live
        experiment.log("more")
        assert watching.has_changed()
        assert not watching.has_changed()
    assert watching.has_changed()
    assert not watching.live


def test_a_lock_that_nobody_holds_is_told_once(tmp_path: Path) -> None:
    folder = segments(tmp_path)
    (folder / name(1, "seg")).write_bytes(b"x")
    (folder / name(1, "lock")).touch()
    watching = JournalWatch(tmp_path)
    assert watching.has_changed()
    assert not watching.live
    assert not watching.has_changed()
    held = lock.hold(folder / name(1, "lock"))
    assert held is not None
    held.release()


def test_a_file_that_comes_without_a_new_time_of_its_folder_is_found(tmp_path: Path) -> None:
    """Clocks of file systems are coarse: two changes in one tick have one time."""
    folder = segments(tmp_path)
    watching = JournalWatch(tmp_path)
    watching.has_changed()
    before = folder.stat()
    (folder / name(1, "seg")).write_bytes(b"x")
    os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert watching.has_new_file()
    assert not watching.has_new_file()


def test_sizes_tell_what_neither_locks_nor_folders_do(tmp_path: Path) -> None:
    path = segments(tmp_path) / name(1, "seg")
    path.write_bytes(b"x")
    watching = JournalWatch(tmp_path)
    watching.has_changed()
    assert watching.has_grown(), "what came before the first look at the sizes nobody has seen"
    assert not watching.has_grown()
    with path.open("ab") as file:
        file.write(b"y")
    assert not watching.has_changed()
    assert watching.has_grown(listing=False)
    folder = path.parent.stat()
    (path.parent / name(2, "seg")).write_bytes(b"z")
    os.utime(path.parent, ns=(folder.st_atime_ns, folder.st_mtime_ns))
    assert not watching.has_grown(listing=False)
    assert watching.has_grown()
    assert not watching.has_grown()


def test_a_poll_rate_gives_polling_no_more_than_its_share() -> None:
    rate = PollRate(0.2, 2.0, 0.01)
    rate.measure(lambda: None)
    assert rate.interval_s == 0.2
    rate.measure(lambda: time.sleep(0.01))
    assert 1.0 <= rate.interval_s <= 2.0


# -- hints ------------------------------------------------------------------------------------------------------------


class Heard:
    def __init__(self) -> None:
        self.names: list[str] = []
        self.event = threading.Event()

    def __call__(self, told: str) -> None:
        self.names.append(told)
        self.event.set()


def test_a_new_file_is_heard_of(tmp_path: Path) -> None:
    heard = Heard()
    hints = Hints(heard)
    try:
        hints.watch(str(tmp_path), "one")
        (tmp_path / "new").touch()
        assert heard.event.wait(5)
        assert set(heard.names) == {"one"}
    finally:
        hints.close()


def test_a_folder_that_cannot_be_watched_does_not_end_the_watching_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard()
    hints = Hints(heard)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    try:
        hints.watch(str(tmp_path / "file"), "file")
        hints.watch(str(tmp_path / "none"), "none")
        assert not hints.broken
        hints.watch(str(tmp_path / "folder"), "folder")
        (tmp_path / "folder" / "new").touch()
        assert heard.event.wait(5)
    finally:
        hints.close()


def test_limits_end_watching_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Hints, folder: str) -> None:
        raise OSError(errno.ENOSPC, "inotify watch limit reached")

    monkeypatch.setattr(Hints, "_add_shared", refuse)
    hints = Hints(Heard())
    hints.watch(str(tmp_path), "one")
    assert "limit" in hints.broken
    hints.watch(str(tmp_path), "one")
    hints.close()


def test_another_version_of_watchdog_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: Hints, folder: str) -> None:
        raise ImportError

    monkeypatch.setattr(Hints, "_add_shared", missing)
    heard = Heard()
    hints = Hints(heard)
    try:
        hints.watch(str(tmp_path), "one")
        (tmp_path / "new").touch()
        assert heard.event.wait(5)
        assert heard.names[0] == "one"
    finally:
        hints.close()


# -- what there is to send --------------------------------------------------------------------------------------------


@pytest.fixture
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.mark.usefixtures("_state")
def test_a_registration_written_in_the_same_tick_is_found(tmp_path: Path) -> None:
    registrations.write(Registration("/a/.journal", URL))
    discovery = discover.Discovery(Settings())
    first = discovery.find()
    assert len(first) == 1
    assert discovery.find() is first
    folder = registrations.registered_folder()
    before = folder.stat()
    registrations.write(Registration("/b/.journal", URL))
    os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert len(discovery.find()) == 2


@pytest.mark.usefixtures("_state")
def test_an_experiment_in_a_store_is_found_though_its_journal_came_after_its_folder(tmp_path: Path) -> None:
    store = tmp_path / "store"
    (store / "p" / "one").mkdir(parents=True)
    discovery = discover.Discovery(Settings(stores=(store,), remote=URL, user="alice"))
    assert not discovery.find()
    made = journal(tmp_path / "elsewhere", "one")
    made.rename(store / "p" / "one" / ".journal")
    (found,) = discovery.find().values()
    assert (found.journal, found.remote, found.user) == (str(store / "p" / "one" / ".journal"), URL, "alice")


@pytest.mark.usefixtures("_state")
def test_what_a_store_held_for_one_login_does_not_go_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    made = tmp_path / "store" / "p" / "one" / ".journal"
    made.parent.mkdir(parents=True)
    journal(tmp_path / "elsewhere", "one").rename(made)
    discovery = discover.Discovery(Settings(stores=(tmp_path / "store",), remote=URL))
    assert [one.is_claimed for one in discovery.find().values()] == [False]
    login.store(URL, "of-alice", "alice")
    assert [one.user for one in discovery.find().values()] == ["alice"]
    login.store(URL, "of-bob", "bob")
    for again in (discovery, discover.Discovery(discovery.settings)):
        again.forget()
        assert [(one.journal, one.user) for one in again.find().values()] == [(str(made), "alice")]


@pytest.mark.usefixtures("_state")
def test_only_what_was_asked_for(tmp_path: Path) -> None:
    one, two = Registration("/a/.journal", URL), Registration("/b/.journal", URL)
    registrations.write(one)
    registrations.write(two)
    assert set(discover.Discovery(Settings(), [two.key]).find()) == {two.key}


@pytest.mark.usefixtures("_state")
def test_a_folder_of_registrations_that_cannot_be_read_leaves_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    registrations.write(Registration("/a/.journal", URL))
    discovery = discover.Discovery(Settings())
    assert len(discovery.find()) == 1

    def refuse() -> list[Registration]:
        raise OSError(errno.ESTALE, "stale")

    registrations.write(Registration("/b/.journal", URL))
    with monkeypatch.context() as broken:
        broken.setattr(registrations, "read_all", refuse)
        assert len(discovery.find()) == 1
    assert len(discovery.find()) == 2


@pytest.mark.parametrize("shared", [True, False])
def test_a_hint_is_for_all_who_watch_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, shared: bool) -> None:
    """A journal that goes to two servers is watched for both."""
    told: queue.Queue[str] = queue.Queue()
    hints = watch.Hints(told.put)
    if not shared:

        def absent(folder: str) -> None:
            raise ImportError(folder)

        monkeypatch.setattr(hints, "_add_shared", absent)
    try:
        for name in ("one", "two", "one"):
            hints.watch(str(tmp_path), name)
        (tmp_path / "new").touch()
        assert {told.get(timeout=30), told.get(timeout=30)} == {"one", "two"}
    finally:
        hints.close()


def test_the_bounds_are_those_of_the_documentation() -> None:
    assert (watch.LIVE_S, watch.FULL_S) == (0.2, 30.0)
