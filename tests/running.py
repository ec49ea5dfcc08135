"""A real server and a real uploader for tests, in processes of their own, ended by their ids."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Final

from ml_dash.disk.lock import Liveness, probe

START_S: Final = 60.0
END_S: Final = 30.0
_URL = re.compile(r"http://127\.0\.0\.1:\d+")


class Server:
    """`ml-dash server --dev` on a data folder and a port that was free; it may be ended and started again there."""

    def __init__(self, data: Path, environment: Mapping[str, str] | None = None) -> None:
        self.data = data
        self.url = ""
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Server:
        """Returns once it says where it listens."""
        port = self.url.rpartition(":")[2] or "0"
        log = self.data.with_name(f"{self.data.name}.log")
        command = [sys.executable, "-m", "ml_dash", "server", "--dev", "--port", port, "--data", str(self.data)]
        log.touch()
        said = log.stat().st_size
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, env=self._environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                cwd=self.data.parent,
            )  # fmt: skip
        deadline = monotonic() + START_S
        while True:
            text = log.read_bytes()[said:].decode(errors="replace")
            if found := _URL.search(text):
                self.url = found[0]
                return self
            assert self._process.poll() is None, f"the server ended with {self._process.returncode}:\n{text[-3000:]}"
            assert monotonic() < deadline, f"the server does not listen:\n{text[-3000:]}"
            threading.Event().wait(0.02)

    def end(self, number: int = signal.SIGTERM) -> None:
        """Ends it, and waits for that."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


@contextmanager
def uploader(environment: Mapping[str, str] | None = None, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """`ml-dash-syncd run` while the block runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ml_dash_syncd", "run", *arguments], env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
    )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def once(environment: Mapping[str, str] | None = None, *arguments: str) -> int:
    """`ml-dash-syncd once`; its exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "ml_dash_syncd", "once", *arguments], env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False, cwd="/",
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    # Shown where a test fails.
    print(done.stdout, done.stderr)
    return done.returncode


def prepare_to_drain() -> None:
    """Start watchdog's one thread, which stays with the process, before a test that drains is looked at for leaks."""
    with suppress(ImportError):
        from watchdog.observers.inotify_c import InotifyFD

        InotifyFD.get_instance()


def drain(*keys: str) -> list[str]:
    """The same as `ml-dash-syncd once`, in this process: quicker; what stays. See `prepare_to_drain`."""
    from ml_dash_syncd import service, settings

    left = service.once(settings.read(stores=(), remote=None, user=None, config=None), keys, signals=service.Signals())
    return [f"{task.name}: {service.stays(task)}" for task in left]


def end_started(state: Path) -> None:
    """Ends the uploader that processes with this state folder have started in the background, if any runs."""
    path = state / "syncd.json"
    deadline = monotonic() + END_S
    while probe(state / "syncd.lock") is Liveness.ALIVE:
        assert monotonic() < deadline, "the uploader does not end"
        with suppress(OSError, ValueError, KeyError):
            os.kill(json.loads(path.read_text())["pid"], signal.SIGTERM)
        threading.Event().wait(0.05)
