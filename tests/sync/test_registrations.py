"""Registrations for upload, what the uploader's cursors say, and how it is started."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

import psutil
import pytest

from ml_dash.disk.lock import Turn
from ml_dash.disk.places import state_folder
from ml_dash.disk.settings import Settings, resolve
from ml_dash.errors import InvalidValue
from ml_dash.journal.segment import create_journal
from ml_dash.sync import launch, login, registrations

SERVER = "http://localhost:3999"
# Stands for ml_dash_syncd: says how it was started, and lives until it is ended.
STAND_IN = """
import json, os, sys, time
if __name__ == "__main__":
    found = {
        "arguments": sys.argv[1:], "pid": os.getpid(), "parent": os.getppid(), "session": os.getsid(0),
        "cwd": os.getcwd(), "stdin": os.readlink("/proc/self/fd/0"), "stdout": os.readlink("/proc/self/fd/1"),
        "files": sorted(os.listdir("/proc/self/fd")), "env": dict(os.environ),
    }
    path = os.path.join(os.environ["STAND_IN"], f"{os.getpid()}.json")
    with open(path + ".tmp", "w") as file:
        json.dump(found, file)
    os.rename(path + ".tmp", path)
    print("stand-in is up", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    names = ("config", "state")
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith("ML_DASH_")},
        **{f"XDG_{name.upper()}_HOME": str(tmp_path / name) for name in names},
    }


@pytest.fixture(autouse=True)
def _first_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_attempts", launch._Attempts())


class StandIn:
    """A program in the place of `ml_dash_syncd`, and those of it that were started."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder = folder
        module = folder / "modules" / "ml_dash_syncd"
        module.mkdir(parents=True)
        (module / "__init__.py").touch()
        (module / "__main__.py").write_text(STAND_IN)
        self.env = {**env, "PYTHONPATH": str(module.parent), "STAND_IN": str(folder)}

    @property
    def started(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob("*.json"))]

    def wait(self, count: int = 1) -> list[dict[str, Any]]:
        deadline = monotonic() + 30
        while len(self.started) < count:
            assert monotonic() < deadline, "it was not started"
            threading.Event().wait(0.01)
        return self.started


@pytest.fixture
def stand_in(tmp_path: Path, env: dict[str, str]) -> Iterator[StandIn]:
    stand_in = StandIn(tmp_path / "stand-in", env)
    yield stand_in
    launch.finish_start(10)
    for one in stand_in.started:
        os.kill(one["pid"], signal.SIGKILL)


def settings(**given: Any) -> Settings:
    return resolve(remote=SERVER, env={}, **{"user_name": "alice", **given})


# -- registrations ---------------------------------------------------------------------------------------------------


def test_a_registration_is_read_back(tmp_path: Path, env: dict[str, str]) -> None:
    made = registrations.register(tmp_path / "a" / ".journal", settings(), env)
    assert registrations.read_all(env) == [made]
    assert made == registrations.Registration(str(tmp_path / "a" / ".journal"), SERVER, "alice", None)


def test_the_state_folder_is_the_first_that_can_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    places = {"XDG_STATE_HOME": "one", "HOME": "two", "XDG_RUNTIME_DIR": "three", "TMPDIR": "four"}
    env = {name: str(tmp_path / folder) for name, folder in places.items()}
    (tmp_path / "four").mkdir()
    found = []
    for name in (*places, None):
        found.append(state_folder(env).relative_to(tmp_path).parts[0])
        if name is not None:
            env[name] = str(tmp_path / "file" / "sub")
    # Nowhere: the first is named, and its error tells why.
    assert found == ["one", "two", "three", "four", "file"]
    private = tmp_path / "four" / f"ml-dash-{os.getuid()}"
    assert stat.S_IMODE(private.stat().st_mode) == 0o700


@pytest.mark.parametrize("how", ["open to others", "a link"])
def test_a_private_folder_that_is_not_private_is_not_used(tmp_path: Path, how: str) -> None:
    gone = str(tmp_path / "file" / "sub")
    (tmp_path / "file").write_text("in the way")
    env = {"XDG_STATE_HOME": gone, "HOME": gone, "TMPDIR": str(tmp_path)}
    private = tmp_path / f"ml-dash-{os.getuid()}"
    if how == "a link":
        (tmp_path / "theirs").mkdir(mode=0o700)
        private.symlink_to(tmp_path / "theirs")
    else:
        private.mkdir()
        private.chmod(0o777)
    assert tmp_path / "file" in state_folder(env).parents


def test_a_journal_recorded_anew_at_a_path_inherits_no_registration(tmp_path: Path, env: dict[str, str]) -> None:
    home = tmp_path / "a"
    create_journal(home, "p", "a", sync=False)
    first = registrations.register(home / ".journal", settings(), env)
    known = registrations.by_journal(registrations.read_all(env))
    assert registrations.of_journal(home / ".journal", known, env) == [first]
    shutil.rmtree(home)
    header = create_journal(home, "p", "a", sync=False)
    assert not registrations.is_of(first, header.journal.hex(), env)
    known = registrations.by_journal(registrations.read_all(env))
    assert registrations.of_journal(home / ".journal", known, env) == []
    login.store(SERVER, "mld_bob", "bob", env)
    again = registrations.register_again(home / ".journal", resolve(remote=SERVER, env=env), env)
    assert (again.user, again.id) == ("bob", header.journal.hex())


def test_of_an_old_registration_its_cursor_tells_whose_it_is(tmp_path: Path, env: dict[str, str]) -> None:
    old = registrations.Registration(str(tmp_path / "a" / ".journal"), SERVER, "alice")
    registrations.write(old, env)
    assert registrations.is_of(old, "ab" * 16, env)
    registrations.cursors_folder(env).mkdir(parents=True)
    (registrations.cursors_folder(env) / f"{old.key}.json").write_text('{"version": 1, "journal": "' + "cd" * 16 + '"}')
    assert not registrations.is_of(old, "ab" * 16, env)
    assert registrations.is_of(old, "cd" * 16, env)


def test_its_file_is_what_the_uploader_is_promised(tmp_path: Path, env: dict[str, str]) -> None:
    made = registrations.register(tmp_path, settings(), env)
    (path,) = registrations.registered_folder(env).iterdir()
    assert path.name == f"{made.key}.json"
    assert len(made.key) == 32
    assert json.loads(path.read_text()) == {
        "journal": str(tmp_path), "remote": SERVER, "user": "alice", "login": None, "id": None,
    }  # fmt: skip
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(state_folder(env).stat().st_mode) == 0o700


def test_asking_again_writes_nothing(tmp_path: Path, env: dict[str, str]) -> None:
    made = registrations.register(tmp_path, settings(), env)
    path = registrations.registered_folder(env) / f"{made.key}.json"
    before = path.stat().st_ino
    registrations.register(tmp_path, settings(), env)
    assert path.stat().st_ino == before


@pytest.mark.parametrize("left", [b"", b"{", b"null", b"\0" * 100])
def test_a_registration_that_a_power_cut_has_left_is_written_anew(
    tmp_path: Path, env: dict[str, str], left: bytes
) -> None:
    made = registrations.register(tmp_path, settings(), env)
    path = registrations.registered_folder(env) / f"{made.key}.json"
    path.write_bytes(left)
    assert registrations.read_all(env) == []
    registrations.register(tmp_path, settings(), env)
    assert registrations.read_all(env) == [made]


def test_a_file_under_another_name_is_no_registration(tmp_path: Path, env: dict[str, str]) -> None:
    made = registrations.register(tmp_path, settings(), env)
    folder = registrations.registered_folder(env)
    (folder / f"{made.key}.json").rename(folder / f"{'0' * 32}.json")
    assert registrations.read_all(env) == []


def test_the_same_journal_goes_to_several_servers_and_users(tmp_path: Path, env: dict[str, str]) -> None:
    for name in ("alice", "bob"):
        registrations.register(tmp_path, settings(user_name=name), env)
    registrations.register(tmp_path, resolve(remote="http://127.0.0.1:1", user_name="alice", env={}), env)
    assert len(registrations.read_all(env)) == 3


def test_a_token_given_in_code_goes_to_the_logins_and_not_into_the_registration(
    tmp_path: Path, env: dict[str, str]
) -> None:
    made = registrations.register(tmp_path, settings(api_key="mld_secret"), env)
    assert made.login == login.fingerprint("mld_secret")
    assert made.tokens(env) == ["mld_secret"]
    found = [path for path in state_folder(env).rglob("*") if path.is_file()]
    assert not any(b"mld_secret" in path.read_bytes() for path in found)


TEAM = "https://dash.example.org"


def test_a_stored_login_binds_its_user_and_not_its_token(tmp_path: Path, env: dict[str, str]) -> None:
    """So that the next login of the same user is used for what was registered before."""
    login.store(TEAM, "mld_old", "alice", env)
    made = registrations.register(tmp_path, resolve(remote=TEAM, env=env), env)
    assert (made.user, made.login) == ("alice", None)
    login.store(TEAM, "mld_new", "alice", env)
    assert made.tokens(env) == ["mld_new"]


def test_the_login_of_another_user_does_not_inherit_what_was_registered(tmp_path: Path, env: dict[str, str]) -> None:
    login.store(TEAM, "mld_alice", "alice", env)
    made = registrations.register(tmp_path, resolve(remote=TEAM, env=env), env)
    login.store(TEAM, "mld_bob", "bob", env)
    assert made.tokens(env) == []
    assert not made.has_login(env)


def test_a_login_of_an_unknown_user_binds_its_token(tmp_path: Path, env: dict[str, str]) -> None:
    login.store(TEAM, "mld_unknown", None, env)
    made = registrations.register(tmp_path, resolve(remote=TEAM, env=env), env)
    login.store(TEAM, "mld_bob", "bob", env)
    assert made.tokens(env) == ["mld_unknown"]
    assert made.identity(env) == "the token ending in nown"


def test_without_any_login_it_is_unclaimed_and_nobody_inherits_it(tmp_path: Path, env: dict[str, str]) -> None:
    made = registrations.register(tmp_path, resolve(remote=TEAM, env=env), env)
    assert not made.is_claimed
    login.store(TEAM, "mld_alice", "alice", env)
    assert made.tokens(env) == []
    assert not made.has_login(env)


def test_two_tokens_for_one_journal_are_two_registrations(tmp_path: Path, env: dict[str, str]) -> None:
    """The second must not take what was registered under the first."""
    one = registrations.register(tmp_path, settings(api_key="mld_one"), env)
    two = registrations.register(tmp_path, settings(api_key="mld_two"), env)
    assert {tuple(found.tokens(env)) for found in registrations.read_all(env)} == {("mld_one",), ("mld_two",)}
    assert one.key != two.key


def test_a_registration_of_version_0_1_keeps_its_token_and_its_cursor(tmp_path: Path, env: dict[str, str]) -> None:
    mark = login.remember(SERVER, "mld_secret", env)
    old = registrations.registration_key(tmp_path, SERVER, "alice")
    for folder, content in (
        (
            registrations.registered_folder(env),
            {"journal": str(tmp_path), "remote": SERVER, "user": "alice", "login": mark},
        ),
        (
            registrations.cursors_folder(env),
            {
                "version": 1,
                "journal": "ab" * 16,
                "segments": {"a.seg": 7},
                "blobs": [],
                "deaths": [],
                "parked": {},
                "trouble": None,
            },
        ),
    ):
        folder.mkdir(parents=True)
        (folder / f"{old}.json").write_text(json.dumps(content))
    for _ in range(2):
        (found,) = registrations.read_all(env)
        assert found.tokens(env) == ["mld_secret"]
        cursor = registrations.cursor_of(found, env)
        assert cursor is not None
        assert cursor.segments == {"a.seg": 7}


def test_a_registration_of_version_0_1_that_names_nobody_is_unclaimed(tmp_path: Path, env: dict[str, str]) -> None:
    registrations.write(registrations.Registration(str(tmp_path), SERVER), env)
    login.store(SERVER, "mld_bob", "bob", env)
    (found,) = registrations.read_all(env)
    assert found.tokens(env) == []


def test_a_registration_and_its_cursor_go_together(tmp_path: Path, env: dict[str, str]) -> None:
    made = registrations.register(tmp_path, settings(), env)
    cursors = registrations.cursors_folder(env)
    cursors.mkdir()
    (cursors / f"{made.key}.json").write_text('{"segments": {}}')
    registrations.unregister(made, env)
    assert (registrations.read_all(env), registrations.cursor_of(made, env)) == ([], None)


def test_registering_writes_one_file_and_syncs_nothing(
    tmp_path: Path, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = settings()
    registrations.register(tmp_path, wanted, env)
    placed: list[str] = []
    replace = os.replace

    def counted(source: str, target: str) -> None:
        placed.append(Path(target).name)
        replace(source, target)

    def refused(*_: object) -> None:
        raise AssertionError("a program that trains would wait for the disk")

    monkeypatch.setattr(os, "replace", counted)
    monkeypatch.setattr(os, "fsync", refused)
    monkeypatch.setattr(os, "fdatasync", refused, raising=False)
    made = registrations.register(tmp_path / "one", wanted, env)
    assert placed == [f"{made.key}.json"]


# -- the uploader ----------------------------------------------------------------------------------------------------

needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="looks at /proc")


@needs_proc
def test_the_uploader_is_started_on_its_own(stand_in: StandIn) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    try:
        assert launch.start_daemon(stand_in.env)
        (found,) = stand_in.wait()
    finally:
        os.close(reading)
        os.close(writing)
    assert found["arguments"] == ["run", "--idle-exit", "600"]
    assert found["cwd"] == "/"
    assert found["session"] not in (os.getsid(0), os.getpid())
    assert found["stdin"] == "/dev/null"
    assert found["stdout"] == str(launch.log_path(stand_in.env))
    assert found["files"] in (["0", "1", "2"], ["0", "1", "2", "3"])  # 3 is the listing itself
    assert found["pid"] not in {child.pid for child in psutil.Process().children(recursive=True)}
    assert launch.log_path(stand_in.env).read_text() == "stand-in is up\n"


@needs_proc
def test_the_uploader_is_told_no_token_and_no_fail_point(stand_in: StandIn) -> None:
    secrets = {"ML_DASH_API_KEY": "mld_secret", "ML_DASH_FAIL": "sync-read:1:kill", "ML_DASH_JWT_SECRET": "needed"}
    launch.start_daemon({**stand_in.env, **secrets})
    (found,) = stand_in.wait()
    assert [name for name in secrets if name in found["env"]] == ["ML_DASH_JWT_SECRET"]


@needs_proc
def test_the_caller_does_not_wait_for_the_uploader(stand_in: StandIn) -> None:
    begun = perf_counter()
    launch.start_daemon(stand_in.env)
    assert perf_counter() - begun < 0.1
    stand_in.wait()


@needs_proc
def test_it_is_tried_once_a_minute(stand_in: StandIn) -> None:
    for _ in range(20):
        assert launch.start_daemon(stand_in.env)
    launch.finish_start(30)
    assert len(stand_in.wait()) == 1


def test_none_is_started_where_one_runs(stand_in: StandIn) -> None:
    state_folder(stand_in.env).mkdir(parents=True)
    lock = Turn(launch.lock_path(stand_in.env))
    assert lock.take()
    try:
        assert launch.daemon_runs(stand_in.env)
        assert launch.start_daemon(stand_in.env)
        assert launch._attempts.thread is None
    finally:
        lock.give_back()
    assert not launch.daemon_runs(stand_in.env)


@pytest.mark.parametrize(
    "variables",
    [{"ML_DASH_AUTOSYNC": "0"}, {"ML_DASH_AUTOSYNC": "off"}, {"RANK": "1"}, {"SLURM_PROCID": "3"},
     {"RANK": "8", "LOCAL_RANK": "0"}],
)  # fmt: skip
def test_none_is_started_where_another_process_or_nobody_is_to(stand_in: StandIn, variables: dict[str, str]) -> None:
    assert not launch.start_daemon({**stand_in.env, **variables})
    assert launch._attempts.thread is None


@needs_proc
def test_the_first_rank_of_a_machine_starts_one_for_a_journal_that_only_it_can_see(stand_in: StandIn) -> None:
    assert launch.start_daemon({**stand_in.env, "RANK": "8", "LOCAL_RANK": "0"}, alone=True)
    assert len(stand_in.wait()) == 1


def test_a_switch_that_makes_no_sense_is_an_error() -> None:
    with pytest.raises(InvalidValue, match="ML_DASH_AUTOSYNC"):
        launch.autosync({"ML_DASH_AUTOSYNC": "perhaps"})
    with pytest.raises(InvalidValue, match="ML_DASH_EXIT_WAIT"):
        launch.exit_wait_s({"ML_DASH_EXIT_WAIT": "-1"})
    assert launch.exit_wait_s({"ML_DASH_EXIT_WAIT": "2.5"}) == 2.5


def test_a_state_folder_that_cannot_be_written_is_no_error_of_the_caller(
    stand_in: StandIn, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    nowhere = dict.fromkeys(("XDG_STATE_HOME", "HOME", "XDG_RUNTIME_DIR", "TMPDIR"), str(tmp_path / "file"))
    launch.start_daemon({**stand_in.env, **nowhere})
    launch.finish_start(30)
    assert "ml-dash-syncd was not started" in caplog.text


Run = Callable[[str], str]


@pytest.fixture
def run(stand_in: StandIn) -> Run:
    def run(script: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)], env=stand_in.env, capture_output=True, text=True,
            timeout=60, check=True,
        )  # fmt: skip
        return done.stdout

    return run


@needs_proc
@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_a_child_process_starts_none(run: Run, stand_in: StandIn, tmp_path: Path, how: str) -> None:
    script = tmp_path / "child.py"
    script.write_text(
        textwrap.dedent(
            """
            import multiprocessing, sys
            from ml_dash.sync import launch

            def child(queue):
                queue.put(launch.start_daemon())

            if __name__ == "__main__":
                context = multiprocessing.get_context(sys.argv[1])
                queue = context.Queue()
                process = context.Process(target=child, args=(queue,))
                process.start()
                print(queue.get(timeout=30))
                process.join()
            """
        )
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), how], env=stand_in.env, capture_output=True, text=True,
        timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout == "False\n"
    assert stand_in.started == []


@needs_proc
def test_a_process_that_ends_at_once_has_started_it(run: Run, stand_in: StandIn) -> None:
    run("from ml_dash.sync import launch; launch.start_daemon(); launch.finish_start(10)")
    assert len(stand_in.wait()) == 1


# -- continued -------------------------------------------------------------------------------------------------------


def test_a_journal_that_is_continued_keeps_its_identity_though_another_user_is_logged_in(
    tmp_path: Path, env: dict[str, str]
) -> None:
    login.store(TEAM, "mld_alice", "alice", env)
    made = registrations.register(tmp_path, resolve(remote=TEAM, env=env), env)
    login.store(TEAM, "mld_bob", "bob", env)
    assert registrations.register_again(tmp_path, resolve(remote=TEAM, env=env), env) == made
    assert registrations.read_all(env) == [made]


def test_an_unclaimed_journal_that_is_continued_stays_unclaimed(tmp_path: Path, env: dict[str, str]) -> None:
    made = registrations.register(tmp_path, resolve(remote=TEAM, env=env), env)
    login.store(TEAM, "mld_mallory", "mallory", env)
    assert registrations.register_again(tmp_path, resolve(remote=TEAM, env=env), env) == made
    assert not made.is_claimed
    assert registrations.read_all(env) == [made]
