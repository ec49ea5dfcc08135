"""`ml-dash-syncd` as people run it: once, run, exec, status, check-config, install; all of it real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from ml_dash import Experiment
from ml_dash.disk.lock import Liveness, probe
from ml_dash.sync.login import development_token
from ml_dash.sync.register import lock_path, status_path
from ml_dash.sync.remote import Link, find_experiment
from tests.running import Server, once, uploader

SYNCD = [sys.executable, "-m", "ml_dash_syncd"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("server") / "data").start()
    yield running
    running.end()


@pytest.fixture(autouse=True)
def _own_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("ML_DASH_QUIET", "1")


def record(folder: Path, name: str, url: str | None = None, points: int = 50, project: str = "daemon") -> None:
    with Experiment(
        name=name, project=project, local_path=str(folder), remote=url, user_name="alice" if url else None
    ) as experiment:
        for number in range(points):
            experiment.metric("m").append(value=float(number))


def events(server: Server, name: str, project: str = "daemon") -> int:
    link = Link(server.url, development_token("alice"))
    try:
        return find_experiment(link, project, name)["events"]
    except ConnectionError:
        return 0
    finally:
        link.close()


def until(holds: Callable[[], Any], seconds: float = 20.0) -> None:
    deadline = monotonic() + seconds
    while not holds():
        assert monotonic() < deadline
        threading.Event().wait(0.02)


def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SYNCD, *arguments], env={**os.environ, **environment}, capture_output=True, text=True, timeout=60,
        check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


# -- once, status, check-config ---------------------------------------------------------------------------------------


def test_once_sends_what_is_registered_and_status_shows_it(server: Server, tmp_path: Path) -> None:
    record(tmp_path / "store", "once", server.url)
    before = json.loads(call("status", "--json").stdout)
    assert before["daemon"] == {"runs": False, "pid": None, "last": None}
    assert before["experiments"][0]["acknowledgedBytes"] == 0
    assert once() == 0
    assert events(server, "once") == 52
    [after] = json.loads(call("status", "--json").stdout)["experiments"]
    assert after["acknowledgedBytes"] == after["bytes"] > 0
    assert (after["project"], after["name"], after["trouble"], after["parked"]) == ("daemon", "once", None, {})
    assert "daemon/once" in call("status").stdout


def test_once_sends_a_store_that_is_named(server: Server, tmp_path: Path) -> None:
    record(tmp_path / "store", "stored")
    assert once(None, "--store", str(tmp_path / "store"), "--remote", server.url, "--user", "alice") == 0
    assert events(server, "stored") == 52


def test_what_stays_has_exit_code_3_and_a_reason(tmp_path: Path) -> None:
    record(tmp_path / "store", "kept", "http://127.0.0.1:1")
    done = call("once")
    assert done.returncode == 3
    assert "daemon/kept stays here: http://127.0.0.1:1 cannot be reached" in done.stderr
    [shown] = json.loads(call("status", "--json").stdout)["experiments"]
    assert shown["trouble"]["kind"] == "unreachable"


def test_without_a_login_everything_is_kept(tmp_path: Path) -> None:
    record(tmp_path / "store", "kept")
    done = call("once", "--store", str(tmp_path / "store"), "--remote", "https://far.example")
    assert done.returncode == 3
    told = "nobody has claimed what was recorded for https://far.example yet: it is kept here; run: ml-dash login"
    assert told in done.stderr


def test_settings_come_from_options_then_the_file(server: Server, tmp_path: Path) -> None:
    record(tmp_path / "store", "configured")
    settings = Path(os.environ["XDG_CONFIG_HOME"], "ml-dash", "syncd.toml")
    settings.parent.mkdir(parents=True)
    settings.write_text(f'stores = ["{tmp_path / "store"}"]\nremote = "{server.url}"\nuser = "alice"\n')
    shown = call("check-config")
    assert shown.returncode == 0
    for part in (str(settings), f"store: {tmp_path / 'store'} -> {server.url}", "experiments: 1", "as alice: a login"):
        assert part in shown.stdout
    assert once() == 0
    assert events(server, "configured") == 52


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("stores = 1", "stores is 1; give a list of folders"),
        ('store = ["x"]', "has a key 'store'; it takes stores"),
        ("listen = 70000", "listen is 70000; give a port"),
        ('stores = ["x"]', "there are stores to send, but no remote"),
        ("stores = [", "it must be a readable TOML file"),
    ],
)
def test_wrong_settings_are_named_and_end_with_2(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "syncd.toml").write_text(text)
    for command in ("check-config", "run", "once"):
        done = call(command, "--config", str(tmp_path / "syncd.toml"))
        assert (done.returncode, done.stdout) == (2, "")
        assert told in done.stderr
        assert "Traceback" not in done.stderr
    assert call("--no-such-option").returncode == 2


# -- run --------------------------------------------------------------------------------------------------------------


def test_a_daemon_sends_what_is_being_written_and_ends_when_asked(server: Server, tmp_path: Path) -> None:
    with uploader() as process:
        until(lambda: probe(lock_path()) is Liveness.ALIVE)
        second = call("run")
        assert second.returncode == 0
        assert "is already running" in second.stderr
        with Experiment(
            name="live", project="daemon", local_path=str(tmp_path / "store"), remote=server.url, user_name="alice"
        ) as experiment:
            for number in range(1, 6):
                experiment.metric("m").append(value=1.0)
                until(lambda expected=number + 1: events(server, "live") >= expected, 5)
            assert experiment.wait_synced(timeout=20)
        state = json.loads(status_path().read_text())
        assert state["pid"] == process.pid
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert json.loads(status_path().read_text())["ended"] is True
    assert probe(lock_path()) is Liveness.GONE


def test_a_killed_writer_is_shown_as_interrupted(server: Server, tmp_path: Path) -> None:
    program = (
        "import os, signal\n"
        "from ml_dash import Experiment\n"
        f"experiment = Experiment(name='killed', project='daemon', local_path={str(tmp_path / 'store')!r}, "
        f"remote={server.url!r}, user_name='alice').open()\n"
        "experiment.metric('m').append(value=1.0)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with uploader():
        assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == -signal.SIGKILL
        link = Link(server.url, development_token("alice"))

        def status() -> str:
            try:
                found = find_experiment(link, "daemon", "killed")
                shown = link.ask("GET", f"/experiments/{found['experiment']}", ("status",))
            except ConnectionError:
                return ""
            return str(shown["status"])

        until(lambda: status() == "interrupted")
        link.close()


def test_a_daemon_that_has_nothing_to_do_may_end(tmp_path: Path) -> None:
    assert call("run", "--idle-exit", "0.2").returncode == 0


def test_probes_and_figures(server: Server, tmp_path: Path) -> None:
    record(tmp_path / "store", "probed", server.url)
    with uploader(None, "--listen", "0"):
        until(lambda: status_path().exists() and json.loads(status_path().read_text()).get("address"))
        address = json.loads(status_path().read_text())["address"]
        until(lambda: events(server, "probed") == 52)
        asked = {"/-/healthy": "healthy", "/-/ready": "ready", "/metrics": "ml_dash_syncd_sent_bytes"}
        for path, expected in asked.items():
            with urllib.request.urlopen(f"{address}{path}", timeout=10) as response:
                assert expected in response.read().decode()


def test_a_reload_ends_pauses(tmp_path: Path) -> None:
    """The server comes back while the daemon pauses for up to a minute: SIGHUP makes it try at once."""
    gone = Server(tmp_path / "data").start()
    url = gone.url
    gone.end()
    record(tmp_path / "store", "waiting", url)
    with uploader() as process:
        until(lambda: status_path().exists() and json.loads(status_path().read_text())["errors"] > 0)
        gone.start()
        process.send_signal(signal.SIGHUP)
        until(lambda: events(gone, "waiting") == 52, 10)
    gone.end()


# -- exec, install ----------------------------------------------------------------------------------------------------


def test_exec_sends_while_a_job_runs_and_after_and_passes_its_exit_code(server: Server, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from ml_dash import Experiment\n"
        f"with Experiment(name='job', project='daemon', local_path={str(tmp_path / 'store')!r}) as experiment:\n"
        "    for number in range(50): experiment.metric('m').append(value=1.0)\n"
        "sys.exit(7)\n"
    )
    done = call("exec", "--", sys.executable, "-c", program, ML_DASH_REMOTE=server.url, ML_DASH_USER_NAME="alice")
    assert done.returncode == 7, done.stderr
    assert events(server, "job") == 52
    assert call("exec", "--", "no-such-program").returncode == 127


def test_exec_passes_signals_on(tmp_path: Path) -> None:
    program = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(42))\n"
        "print('up', flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([*SYNCD, "exec", "--", sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGUSR1)
        assert process.wait(30) == 42
    killed = call("exec", "--", "/bin/sh", "-c", "kill -9 $$")
    assert killed.returncode == 137


def test_install_writes_the_unit_with_this_installation(tmp_path: Path) -> None:
    shown = call("install", "--user", "--print").stdout
    program = Path(sys.executable).parent / "ml-dash-syncd"
    assert f"ExecStart={program} run\n" in shown
    done = call("install", "--user")
    assert done.returncode == 0
    assert "systemctl --user enable --now ml-dash-syncd" in done.stdout
    unit = Path(os.environ["XDG_CONFIG_HOME"], "systemd", "user", "ml-dash-syncd.service")
    assert unit.read_text() == shown
    assert f"ExecStart={program} run" in call("install", "--system", "--print").stdout
    assert call("install").returncode == 2
