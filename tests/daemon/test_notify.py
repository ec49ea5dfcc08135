"""What a service manager is told, over both kinds of sockets."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ml_dash_syncd.notify import Notifier


@pytest.fixture(params=["path", pytest.param("abstract", marks=pytest.mark.skipif(
    sys.platform != "linux", reason="abstract sockets are Linux's"))])  # fmt: skip
def manager(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    name = str(tmp_path / "s") if request.param == "path" else f"@ml-dash-{os.getpid()}-{os.urandom(4).hex()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + name[1:] if name.startswith("@") else name)
        listening.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield listening


def test_each_word_arrives(manager: socket.socket) -> None:
    notifier = Notifier()
    assert notifier.has_manager
    notifier.ready()
    notifier.status("3 experiments")
    notifier.ping_watchdog()
    notifier.stopping()
    assert [manager.recv(200) for _ in range(4)] == [b"READY=1", b"STATUS=3 experiments", b"WATCHDOG=1", b"STOPPING=1"]


def test_what_was_said_is_not_said_again(manager: socket.socket) -> None:
    notifier = Notifier()
    for _ in range(3):
        notifier.status("all sent")
        notifier.ping_watchdog()
    notifier.ready()
    assert [manager.recv(200) for _ in range(3)] == [b"STATUS=all sent", b"WATCHDOG=1", b"READY=1"]


def test_the_watchdog_is_fed_three_times_in_its_period(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "180000000")
    assert Notifier().interval_s == 60
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert Notifier().interval_s == 10, "that one is for another process"


def test_a_manager_that_is_gone_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "none"))
    Notifier().ready()
    monkeypatch.delenv("NOTIFY_SOCKET")
    notifier = Notifier()
    notifier.ready()
    assert not notifier.has_manager


def test_what_a_busy_manager_did_not_take_is_said_again(manager: socket.socket) -> None:
    notifier = Notifier()
    while notifier.send("X=1"):
        pass
    notifier.status("all sent")
    while True:
        try:
            manager.settimeout(0.01)
            manager.recv(200)
        except TimeoutError:
            break
    notifier.status("all sent")
    assert manager.recv(200) == b"STATUS=all sent"
