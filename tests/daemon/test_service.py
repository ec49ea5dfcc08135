"""`ml-dash-syncd run` under a service manager: what it tells, how it ends, who has the lock."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from ml_dash.disk.lock import Liveness, probe
from ml_dash.sync import launch
from ml_dash_syncd import service

from .conftest import WAIT_S, Home


class Manager:
    """What a service manager hears."""

    def __init__(self, listening: socket.socket) -> None:
        self._socket = listening
        self.said: list[str] = []

    def hear(self, wanted: str) -> str:
        """The next message that begins so."""
        deadline = monotonic() + WAIT_S
        while monotonic() < deadline:
            self.said.append(self._socket.recv(4096).decode())
            if self.said[-1].startswith(wanted):
                return self.said[-1]
        raise AssertionError(self.said)


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(WAIT_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "900000")
        yield Manager(listening)


@contextmanager
def running(*arguments: str, program: str = "", **more: Any) -> Iterator[subprocess.Popen[str]]:
    start = ["-c", program] if program else ["-m", "ml_dash_syncd"]
    process = subprocess.Popen(
        [sys.executable, *start, "run", *arguments], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, cwd="/", **more,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until(holds: Callable[[], Any]) -> None:
    deadline = monotonic() + WAIT_S
    while not holds():
        assert monotonic() < deadline
        threading.Event().wait(0.02)


@contextmanager
def silent_server() -> Iterator[tuple[str, threading.Event]]:
    """Accepts connections and says nothing; the event tells of the first request."""
    asked, done = threading.Event(), threading.Event()
    kept: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.05)

        def listen() -> None:
            while not done.is_set():
                try:
                    connection, _ = listening.accept()
                except TimeoutError:
                    continue
                kept.append(connection)
                asked.set()

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", asked
        finally:
            done.set()
            thread.join()
            for connection in kept:
                connection.close()


def test_a_manager_is_told_all(home: Home, manager: Manager) -> None:
    home.record()
    with running() as process:
        manager.hear("READY=1")
        manager.hear("STATUS=1 experiment, all sent")
        manager.hear("WATCHDOG=1")
        manager.hear("WATCHDOG=1")
        process.send_signal(signal.SIGTERM)
        manager.hear("STOPPING=1")
        assert process.wait(WAIT_S) == 0
    assert home.logs() == 3


def test_it_is_ready_without_a_server(home: Home, manager: Manager) -> None:
    """No network at boot is no failure."""
    home.url = "http://127.0.0.1:1"
    home.record()
    with running():
        manager.hear("READY=1")
        manager.hear("STATUS=1 experiment, 1 being sent, waiting for http://127.0.0.1:1")


def test_the_managers_own_takes_over_when_another_ends(
    home: Home, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.record()
    without = {name: text for name, text in os.environ.items() if name != "NOTIFY_SOCKET"}
    with running(env=without) as first:
        until(lambda: probe(launch.lock_path()) is Liveness.ALIVE and launch.status_path().exists())
        with running() as second:
            manager.hear("READY=1")
            assert f"process {first.pid} has the lock" in manager.hear("STATUS=process")
            manager.hear("WATCHDOG=1")
            first.send_signal(signal.SIGTERM)
            assert first.wait(WAIT_S) == 0
            manager.hear("STATUS=1 experiment")
            second.send_signal(signal.SIGTERM)
            assert second.wait(WAIT_S) == 0


def test_what_was_written_last_is_sent_before_it_ends(home: Home) -> None:
    with home.open() as experiment, running() as process:
        experiment.log("0")
        until(lambda: home.logs() == 1)
        for number in range(20):
            experiment.log(str(number))
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0
        assert home.logs() == 21


def test_a_second_term_ends_it_at_once(home: Home) -> None:
    with silent_server() as (url, asked):
        home.url = url
        home.record()
        with running() as process:
            assert asked.wait(WAIT_S)
            process.send_signal(signal.SIGTERM)
            assert process.stderr is not None
            # It drains now, for as long as the request hangs: up to ten seconds.
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)
            begun = monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(WAIT_S) == 143
            assert monotonic() - begun < 3
            assert "ending at once" in process.stderr.read()
    assert probe(launch.lock_path()) is Liveness.GONE


def test_it_ends_in_time_though_a_request_hangs(home: Home) -> None:
    with silent_server() as (url, asked):
        home.url = url
        home.record()
        short = "from ml_dash_syncd import cli, service; service.DRAIN_S = 1; "
        program = f"import sys; {short}sys.exit(cli.invoke(sys.argv[1:]))"
        with running(program=program) as process:
            assert asked.wait(WAIT_S)
            begun = monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(WAIT_S) == 0
            assert monotonic() - begun < 2
    assert service.DRAIN_S < 10


def test_wrong_settings_at_a_reload_leave_those_before(home: Home) -> None:
    config = home.folder / "syncd.toml"
    config.write_text("")
    with running("--config", str(config)) as process:
        until(launch.status_path().exists)
        config.write_text("stores = 3\n")
        process.send_signal(signal.SIGHUP)
        assert process.stderr is not None
        assert "the settings were not changed" in process.stderr.readline()
        config.write_text(f'stores = ["{home.store}"]\nremote = "{home.url}"\nuser = "{home.user}"\n')
        process.send_signal(signal.SIGHUP)
        home.record()
        until(lambda: home.logs() == 3)


def test_a_port_that_is_taken_is_told(home: Home) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = home.syncd("run", "--listen", str(taken.getsockname()[1]))
    assert done.returncode == 2
    assert "choose another port" in done.stderr


def test_a_long_log_is_begun_anew(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_LOG_BYTES", 100)
    path = launch.log_path()
    path.parent.mkdir(parents=True)
    path.write_text("x" * 200)
    program = (
        "import sys\n"
        "from ml_dash_syncd import service\n"
        "service._LOG_BYTES = 100\n"
        "service.rotate_log()\n"
        "print('new', file=sys.stderr)\n"
    )
    with path.open("ab") as log:
        subprocess.run([sys.executable, "-c", program], stdout=log, stderr=log, timeout=WAIT_S, check=True)
    assert path.read_text() == "new\n"
    assert path.with_name("syncd.log.1").read_text() == "x" * 200
