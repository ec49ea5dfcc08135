"""`ml-dash sync status`: what real processes recorded and sent is proven, and whatever differs is found."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ml_dash import Experiment, RemoteClient, experiments
from ml_dash.core.names import experiment_id
from ml_dash.journal.segment import list_segments
from ml_dash.reading.located import at
from ml_dash.sync import launch, progress
from tests import running
from tests.stored import flip_raw_bit

if TYPE_CHECKING:
    from tests.cli.conftest import Dash, Record, Shell

UNSENT = 3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[running.Server]:
    running.prepare_to_drain()
    serving = running.Server(tmp_path_factory.mktemp("sync") / "data").start()
    yield serving
    serving.end()


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: running.Server) -> None:
    """Registrations, cursors and a server to go to, of the test's own user."""
    for name in ("CONFIG", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / "home" / name))
    monkeypatch.setenv("ML_DASH_REMOTE", server.url)
    monkeypatch.setenv("ML_DASH_USER_NAME", tmp_path.name)
    monkeypatch.setattr(progress, "_process", progress._Process(os.getpid(), progress.deque(), set()))
    monkeypatch.setattr(launch, "_attempts", launch._Attempts())


def journal_of(folder: Path) -> Path:
    located = at(folder)
    assert located is not None
    return located.journal


def killed(shell: Shell, name: str = "first", points: int = 2000) -> None:
    """An experiment whose process was killed while it recorded."""
    code = f"""
import os, signal
from pathlib import Path
from ml_dash import Experiment
experiment = Experiment({name!r}, "cv").open()
for step in range({points}):
    experiment.metric("loss").append(value=1 / (step + 1), step=step)
    if step == {points} // 2:
        Path("weights.bin").write_bytes(bytes(range(256)) * 4096)
        experiment.file("weights.bin", prefix="/models")
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=shell.environment(), cwd=shell.folder, timeout=60, check=False
    )
    assert done.returncode == -signal.SIGKILL


def test_nothing_is_registered(dash: Dash, record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ML_DASH_REMOTE")
    record("first")
    assert dash("sync", "status").out == ""
    assert dash("sync", "status", "--json").json == []
    result = dash("sync", "status", "cv/first", code=1)
    assert "ml-dash push cv/first" in result.err


def test_before_and_after_it_is_sent(dash: Dash, record: Record, server: running.Server) -> None:
    record("first", loss=(1.0,) * 100, files={"a.bin": "a", "b.bin": "b"})
    before = dash("sync", "status", code=UNSENT)
    assert before.lines[0].startswith("cv/first: 0 of 1")
    assert before.lines[0].endswith(f" events, 0 of 2 files, nothing is there yet ({server.url})")
    assert "unknown to the server" in before.out

    assert running.drain() == []
    after = dash("sync", "status", "cv/first")
    total = experiments()[0]["counts"]["events"]
    assert after.lines == [f"cv/first: {total} of {total} events, 2 of 2 files, digests equal ({server.url})"]
    (shown,) = dash("sync", "status", "--json").json
    assert shown["complete"] is True
    assert shown["events"] == {"here": total, "there": total}
    assert shown["files"] == {"here": 2, "there": 2}
    assert shown["segments"] == {"here": 1, "equal": 1}
    assert shown["bytes"]["here"] == shown["bytes"]["there"] > 0
    assert (shown["conflicts"], shown["missingFiles"], shown["reasons"], shown["error"]) == ([], [], [], None)


def test_more_that_is_recorded_is_missing_until_it_is_sent(dash: Dash, record: Record) -> None:
    record("first", loss=(1.0,) * 50)
    assert running.drain() == []
    with Experiment("first", "cv") as experiment:
        experiment.log("more")
        during = dash("sync", "status", "--json", code=UNSENT).json[0]
    assert during["complete"] is False
    assert during["events"]["here"] - during["events"]["there"] == 2
    assert running.drain() == []
    assert "digests equal" in dash("sync", "status").out


def test_what_a_killed_process_left_is_sent_and_proven(shell: Shell) -> None:
    killed(shell)
    (path,) = [path for _, path in list_segments(journal_of(shell.folder / ".ml-dash/cv/first"))]
    with path.open("ab") as file:
        file.write(b"\x50\x00\x00\x00half a frame that the power cut")
    assert running.once() == 0
    result = shell.ok("sync", "status", "cv/first")
    assert "digests equal" in result.out
    assert "1 of 1 files" in result.out
    (shown,) = shell.ok("sync", "status", "--json").json
    assert shown["events"]["there"] == experiments(shell.folder / ".ml-dash")[0]["counts"]["events"] >= 1000


def test_a_copy_that_was_changed_on_the_server_is_found(dash: Dash, record: Record, server: running.Server) -> None:
    folder = record("first", loss=tuple(1 / (n + 1) for n in range(500)))
    record("second")
    assert running.drain() == []
    ((name, path),) = list_segments(journal_of(folder))
    where = path.stat().st_size // 2
    server.end()
    try:
        flip_raw_bit(server.data, name.writer, where)
    finally:
        server.start()
    result = dash("sync", "status", "cv/first", code=UNSENT)
    assert "digests of 1 segment differ" in result.out
    assert f"other bytes from {where:,} on" in result.out
    (shown,) = dash("sync", "status", "cv/first", "--json", code=UNSENT).json
    assert shown["conflicts"] == [path.name]
    assert shown["bytes"]["there"] == where
    assert shown["events"]["here"] * 0.4 < shown["events"]["there"] < shown["events"]["here"] * 0.6
    assert shown["reasons"][0].count("damaged") == 0
    # The other one is what it was, and all together are not all there.
    assert "digests equal" in dash("sync", "status", "cv/second").out
    dash("sync", "status", code=UNSENT)


def test_a_content_that_the_server_has_lost_is_found(dash: Dash, record: Record, server: running.Server) -> None:
    folder = record("first", files={"a.bin": "content that only this experiment has"})
    assert running.drain() == []
    (blob,) = [path.name for path in (journal_of(folder) / "blobs").iterdir()]
    server.end()
    database = sqlite3.connect(server.data / "server.sqlite")
    try:
        with database:
            assert database.execute("DELETE FROM blobs WHERE name = ?", (blob,)).rowcount == 1
    finally:
        database.close()
        server.start()
    (shown,) = dash("sync", "status", "--json", code=UNSENT).json
    assert (shown["complete"], shown["files"]) == (False, {"here": 1, "there": 0})
    assert shown["missingFiles"][0].startswith("models/a.bin (")
    assert shown["segments"]["equal"] == shown["segments"]["here"]


def test_a_server_that_was_put_back_to_an_older_copy_is_found_and_caught_up(
    dash: Dash, record: Record, server: running.Server, tmp_path: Path
) -> None:
    record("first", loss=(1.0,) * 20)
    assert running.drain() == []
    server.end()
    shutil.copytree(server.data, tmp_path / "older")
    server.start()
    record("first", loss=(2.0,) * 30)
    assert running.drain() == []
    assert "digests equal" in dash("sync", "status").out
    server.end()
    shutil.rmtree(server.data)
    shutil.copytree(tmp_path / "older", server.data)
    server.start()
    result = dash("sync", "status", code=UNSENT)
    assert "as far as they go" in result.out
    dash("push", "cv/first")
    assert "digests equal" in dash("sync", "status").out


def test_a_server_that_is_away_is_no_proof(dash: Dash, record: Record, server: running.Server) -> None:
    record("first")
    assert running.drain() == []
    server.end()
    try:
        result = dash("sync", "status", code=UNSENT)
        (shown,) = dash("sync", "status", "--json", code=UNSENT).json
    finally:
        server.start()
    assert "not proven" in result.out
    assert shown["complete"] is False
    assert server.url in shown["error"]


def test_another_users_copy_proves_nothing(dash: Dash, record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    record("first")
    assert running.drain() == []
    monkeypatch.setenv("ML_DASH_USER_NAME", "mallory")
    record("first")
    # The first one's copy lacks what came since, the other's all.
    assert "digests equal (" not in dash("sync", "status", code=UNSENT).out
    assert running.drain() == []
    assert sum("digests equal (" in line for line in dash("sync", "status").lines) == 2


def test_a_login_that_is_missing_is_named(dash: Dash, record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ML_DASH_USER_NAME")
    monkeypatch.setenv("ML_DASH_API_KEY", "mld_never-issued")
    record("first")
    result = dash("sync", "status", code=UNSENT)
    assert "not proven" in result.out
    assert "ml-dash login" in result.out
    assert "mld_never-issued" not in result.out + result.err


def test_one_that_was_removed_there_is_not_there(
    dash: Dash, record: Record, server: running.Server, tmp_path: Path
) -> None:
    record("first")
    assert running.drain() == []
    with RemoteClient(server.url, user_name=tmp_path.name) as client:
        client.remove_experiment(experiment_id("cv", "first"))
    assert "removed there" in dash("sync", "status", code=UNSENT).out


def test_the_path_limits_it(dash: Dash, record: Record, tmp_path: Path) -> None:
    record("first", local_path=tmp_path / "one")
    record("second", local_path=tmp_path / "two")
    assert running.drain() == []
    assert len(dash("sync", "status").lines) == 2
    (line,) = dash("sync", "status", "--path", str(tmp_path / "two")).lines
    assert line.startswith("cv/second: ")
    # By its name, wherever it is.
    (line,) = dash("sync", "status", "cv/first").lines
    assert line.startswith("cv/first: ")


def test_one_that_is_gone_is_said_and_the_rest_goes_on(dash: Dash, record: Record) -> None:
    folder = record("first")
    record("second")
    assert running.drain() == []
    shutil.rmtree(folder)
    result = dash("sync", "status")
    assert [line.partition(":")[0] for line in result.lines] == ["cv/second"]
    assert "gone" in result.err


def test_a_damaged_journal_is_compared_as_far_as_it_can_be_read(dash: Dash, record: Record) -> None:
    folder = record("first", loss=(1.0,) * 300)
    assert running.drain() == []
    ((_, path),) = list_segments(journal_of(folder))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    (shown,) = dash("sync", "status", "--json", code=UNSENT).json
    assert shown["complete"] is False
    assert shown["events"]["there"] < shown["events"]["here"] * 0.6
    assert shown["conflicts"] == [path.name]
    assert shown["bytes"]["there"] == len(data) // 2


def test_a_terminal_shows_names_as_they_are(shell: Shell, record: Record) -> None:
    record("naïve-測定", files={"a.bin": "x"})
    assert running.drain() == []
    shown = shell.in_terminal("sync", "status", columns=200)
    assert shown.code == 0
    assert "naïve-測定" in shown.out
