"""`ml-dash push` and `ml-dash rm --remote`: what was recorded without a server goes to one, and goes from there."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ml_dash import Experiment, NotFound, RemoteClient
from ml_dash.core.names import experiment_id
from ml_dash.journal.segment import list_segments
from ml_dash.reading.located import at
from ml_dash.sync import login, register, sent
from tests import running

if TYPE_CHECKING:
    from tests.cli.conftest import Dash, Record, Shell

FAILURE, USAGE, UNSENT = 1, 2, 3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[running.Server]:
    running.prepare_to_drain()
    serving = running.Server(tmp_path_factory.mktemp("push") / "data").start()
    yield serving
    serving.end()


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registrations and cursors of the test's own user."""
    for name in ("CONFIG", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / "home" / name))
    monkeypatch.setenv("ML_DASH_USER_NAME", tmp_path.name)
    monkeypatch.setattr(sent, "_process", sent._Process(os.getpid(), sent.deque(), set()))


@pytest.fixture
def client(server: running.Server, tmp_path: Path) -> Iterator[RemoteClient]:
    """The test's user, at the server."""
    with RemoteClient(server.url, user_name=tmp_path.name) as client:
        yield client


def test_what_was_recorded_without_a_server_goes_to_one(
    dash: Dash, record: Record, server: running.Server, client: RemoteClient
) -> None:
    record("first", loss=(1.0, 0.5, 0.25), files={"a.bin": "content"})
    record("second")
    assert not register.registrations()
    result = dash("push", "cv/first", "--remote", server.url)
    (line,) = result.lines
    assert line.startswith("cv/first: ")
    assert line.endswith(f"1 of 1 files, digests equal ({server.url})")
    assert [one.remote for one in register.registrations()] == [server.url]

    identity = experiment_id("cv", "first")
    assert [one["id"] for one in client.experiments()["experiments"]] == [identity]
    assert [point["data"]["value"] for point in client.points(identity, "loss")["data"]] == [1.0, 0.5, 0.25]
    (file,) = client.files(identity)
    assert b"".join(client.read_file(identity, file["id"])) == b"content"
    # From now on the uploader has it, and it is pushed by its name alone.
    record("first", loss=(0.125,))
    (shown,) = dash("push", "cv/first", "--json").json
    assert (shown["complete"], shown["user"]) == (True, client.user_name)
    assert len(client.points(identity, "loss")["data"]) == 4


def test_what_is_registered_is_found_by_its_name_from_everywhere(
    dash: Dash, record: Record, shell: Shell, server: running.Server, tmp_path: Path
) -> None:
    record("first")
    dash("push", "cv/first", "--remote", server.url)
    record("first", loss=(1.0,))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    pushed = shell("push", "cv/first", "--json", folder=elsewhere)
    assert [one["complete"] for one in pushed.json] == [True], pushed.err
    assert shell("gc", "--synced", "cv/first", "--dry-run", folder=elsewhere).code == 0
    unknown = shell("push", "cv/second", folder=elsewhere)
    assert (unknown.code, "no experiments in" in unknown.err) == (FAILURE, True)


def test_all_of_them_are_pushed(dash: Dash, record: Record, server: running.Server, client: RemoteClient) -> None:
    for name in ("first", "second", "third"):
        record(name)
    result = dash("push", "--all", "--remote", server.url)
    assert sorted(line.partition(":")[0] for line in result.lines) == ["cv/first", "cv/second", "cv/third"]
    assert client.experiments()["total"] == 3


def test_pushing_again_and_from_a_copy_adds_nothing(
    dash: Dash, record: Record, server: running.Server, client: RemoteClient, tmp_path: Path
) -> None:
    folder = record("first", loss=tuple(float(n) for n in range(50)))
    shutil.copytree(folder, tmp_path / "disk" / "cv" / "first")
    dash("push", "cv/first", "--remote", server.url)
    before = client.experiment(experiment_id("cv", "first"))["counts"]
    dash("push", "cv/first", "--path", str(tmp_path / "disk"), "--remote", server.url)
    dash("push", "cv/first")
    assert client.experiment(experiment_id("cv", "first"))["counts"] == before
    assert before["points"] == 50


def test_experiments_of_killed_processes_and_running_ones_are_pushed(
    dash: Dash, record: Record, server: running.Server, client: RemoteClient
) -> None:
    folder = record("dead")
    (path,) = [path for _, path in list_segments(_journal(folder))]
    with path.open("ab") as file:
        file.write(b"\x99" * 7)
    with Experiment("alive", "cv") as experiment:
        experiment.metric("loss").append(value=1.0)
        shown = dash("push", "--all", "--remote", server.url, "--json").json
    assert [one["complete"] for one in shown] == [True, True]
    assert client.experiment(experiment_id("cv", "alive"))["status"] == "running"


def _journal(folder: Path) -> Path:
    located = at(folder)
    assert located is not None
    return located.journal


def test_what_makes_no_sense(dash: Dash, record: Record, server: running.Server) -> None:
    record("first")
    dash("push", code=USAGE)
    dash("push", "cv/first", "--all", code=USAGE)
    assert "--remote URL" in dash("push", "cv/first", code=USAGE).err
    dash("push", "cv/absent", "--remote", server.url, code=FAILURE)
    dash("push", "cv/first", "--remote", "dash.example.org", code=FAILURE)
    assert not register.registrations()


def test_without_a_login_nothing_is_registered(dash: Dash, record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    record("first")
    result = dash("push", "cv/first", "--remote", "https://dash.example.org", code=FAILURE)
    assert "ml-dash login https://dash.example.org" in result.err
    assert not register.registrations()


def test_a_server_that_is_away_keeps_the_registration(dash: Dash, record: Record, server: running.Server) -> None:
    record("first")
    server.end()
    try:
        result = dash("push", "cv/first", "--remote", server.url, code=UNSENT)
    finally:
        server.start()
    assert "not proven" in result.out
    assert [one.remote for one in register.registrations()] == [server.url]
    assert dash("push", "cv/first").out.count("digests equal") == 1


def test_a_token_that_is_not_accepted_keeps_the_data(
    dash: Dash, record: Record, server: running.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    record("first")
    monkeypatch.delenv("ML_DASH_USER_NAME")
    login.store(server.url, "mld_never-issued")
    result = dash("push", "cv/first", "--remote", server.url, code=UNSENT)
    assert "ml-dash login" in result.out
    assert "mld_never-issued" not in result.out + result.err


def test_pushing_beside_a_running_uploader(
    dash: Dash, record: Record, server: running.Server, client: RemoteClient
) -> None:
    record("first", loss=(1.0,) * 500)
    with running.uploader():
        assert "digests equal" in dash("push", "cv/first", "--remote", server.url).out
    assert client.experiment(experiment_id("cv", "first"))["counts"]["points"] == 500


def test_an_interrupted_push_goes_on_where_it_was(
    dash: Dash, shell: Shell, record: Record, server: running.Server, client: RemoteClient
) -> None:
    record("first", loss=(1.0,) * 500, files={"a.bin": "a" * 100_000})
    environment = shell.environment({"ML_DASH_FAIL": "sync-acked:1:kill"})
    killed = subprocess.run(
        [sys.executable, "-m", "ml_dash", "push", "cv/first", "--remote", server.url], env=environment,
        cwd=shell.folder, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert killed.returncode not in (0, -signal.SIGKILL)
    assert "Traceback" not in killed.stderr
    assert "digests equal" in dash("push", "cv/first").out
    assert client.experiment(experiment_id("cv", "first"))["counts"]["points"] == 500


# -- rm --remote -----------------------------------------------------------------------------------------------------


def test_an_experiment_is_removed_here_and_there(
    dash: Dash, record: Record, server: running.Server, client: RemoteClient
) -> None:
    folder = record("first", remote=server.url)
    kept = record("second", remote=server.url)
    assert running.drain() == []
    identity = experiment_id("cv", "first")
    dry = dash("rm", "cv/first", "--remote", "--dry-run", "--json").json[0]
    assert (dry["remotes"], dry["removed"]) == ([server.url], False)
    assert client.experiment(identity)["counts"]["points"] == 2

    assert dash("rm", "cv/first", "--remote", "--yes", "--json").json[0]["removed"] is True
    assert not folder.exists()
    with pytest.raises(NotFound):
        client.experiment(identity)
    assert [Path(one.journal).parent for one in register.registrations()] == [kept]
    # A new one of that name begins at 0.
    record("first", remote=server.url, loss=(0.5,))
    assert running.drain() == []
    assert [point["data"]["value"] for point in client.points(identity, "loss")["data"]] == [0.5]


def test_one_that_was_never_sent_is_removed_too(dash: Dash, record: Record, server: running.Server) -> None:
    folder = record("first", remote=server.url)
    dash("rm", "cv/first", "--remote", "--yes")
    assert not folder.exists()
    assert not register.registrations()


def test_where_the_server_is_away_nothing_is_removed(dash: Dash, record: Record, server: running.Server) -> None:
    folder = record("first", remote=server.url)
    server.end()
    try:
        result = dash("rm", "cv/first", "--remote", "--yes", code=FAILURE)
    finally:
        server.start()
    assert "nothing was removed" in result.err
    assert folder.exists()
    assert len(register.registrations()) == 1
    # Without --remote it goes, and is asked for no longer.
    dash("rm", "cv/first", "--yes")
    assert not folder.exists()
    assert not register.registrations()


def test_one_that_goes_nowhere_is_not_removed_there(dash: Dash, record: Record) -> None:
    folder = record("first")
    result = dash("rm", "cv/first", "--remote", "--yes", code=FAILURE)
    assert folder.exists()
    assert "leave --remote away" in result.err


def test_what_nobody_claimed_is_claimed_by_naming_it(
    dash: Dash, record: Record, server: running.Server, client: RemoteClient, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    record("first", loss=(1.0,))
    record("second", loss=(1.0,))
    monkeypatch.delenv("ML_DASH_USER_NAME")
    for name in ("first", "second"):
        journal = tmp_path / "disk" / "cv" / name / ".journal"
        journal = journal if journal.exists() else next(tmp_path.rglob(f"{name}/.journal"))
        register.write(register.Registration(str(journal), server.url))
    assert "ml-dash login" in dash("push", "cv/first", code=FAILURE).err
    login.store(server.url, login.development_token(tmp_path.name), tmp_path.name)
    dash("push", "cv/first")
    assert [one.user for one in register.registrations()].count(tmp_path.name) == 1
    assert [one["name"] for one in client.experiments(project="cv")["experiments"]] == ["first"]
    assert len(register.unclaimed(server.url)) == 1


def test_a_login_lists_what_waits_and_claims_it_only_if_told_to(
    dash: Dash, record: Record, server: running.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ML_DASH_API_KEY", login.development_token(tmp_path.name))
    for names, stays, claimed in (
        (["first"], "it stays here; to send it: ", "claimed 1 experiment; ml-dash-syncd sends it"),
        (["second", "third"], "they stay here; to send them: ", "claimed 2 experiments; ml-dash-syncd sends them"),
    ):
        for name in names:
            record(name)
            register.write(register.Registration(str(next(tmp_path.rglob(f"{name}/.journal"))), server.url))
        for more in ([], ["--no-claim"]):
            said = dash("login", server.url, *more).out
            assert all(f"cv/{name}\n" in said for name in names)
            assert f"{stays}ml-dash push EXPERIMENT, or ml-dash login --claim {server.url}" in said
            assert len(register.unclaimed(server.url)) == len(names)
        assert claimed in dash("login", server.url, "--claim").out
        assert not register.unclaimed(server.url)
    assert {one.user for one in register.registrations()} == {tmp_path.name}
