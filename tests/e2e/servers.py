"""Real servers and uploaders, by process id: forked from the warmed process, or started as anybody would."""

from __future__ import annotations

import contextlib
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from tests.faults.zygote import Victim, Zygote, clean_environment

from .victims import HALTS

LEASE_S: Final = 0.6
_MONGO: Final = "ml_dash.server.stores.mongo"
_S3: Final = "ml_dash.server.stores.s3"
SERVER_HASTE: Final[dict[str, Any]] = {
    f"{_MONGO}:LEASE_S": LEASE_S,
    f"{_MONGO}:_SELECTION_MS": 1_500,
    f"{_MONGO}:_SOCKET_MS": 3_000,
    f"{_S3}:_CONNECT_S": 1,
    f"{_S3}:_READ_S": 2,
}
"""Constants of a server on MongoDB and S3 that trials cannot wait for."""

other_stores: Callable[[Path], dict[str, str]] | None = None
"""The settings of a server on a folder, where rows run on other stores than that folder."""

HALT_S: Final = 0.2
READY_S: Final = 30.0
_URL: Final = re.compile(r"https?://[^\s:/]+:(\d+)")


class Process(Protocol):
    """What both kinds of process can be asked."""

    pid: int

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal."""

    def exited(self, timeout_s: float) -> bool:
        """Has it ended within that time?"""

    def wait(self, timeout_s: float = 60.0) -> int:
        """Its exit status."""

    def told(self) -> str:
        """What it wrote."""


class Started:
    """A process started as anybody would; its output goes to a file."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], errors: Path, cwd: Path) -> None:
        self.errors = errors
        with errors.open("ab") as sink:
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, cwd=cwd
            )
        self.pid = self._process.pid

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def exited(self, timeout_s: float) -> bool:
        """Has it ended within that time?"""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def wait(self, timeout_s: float = 60.0) -> int:
        """Its exit status. Raises TimeoutError after killing it."""
        if not self.exited(timeout_s):
            self.kill()
            self._process.wait()
            raise TimeoutError(f"process {self.pid} did not end within {timeout_s:.0f} s\n{self.told()}")
        return self._process.returncode

    def told(self) -> str:
        """The end of what it wrote."""
        return self.errors.read_text(errors="replace")[-2000:]


def account(home: Path) -> dict[str, str]:
    """The variables of a user whose folders are all under `home`."""
    home.mkdir(parents=True, exist_ok=True)
    names = {"XDG_CONFIG_HOME": "config", "XDG_STATE_HOME": "state", "XDG_CACHE_HOME": "cache"}
    return {"HOME": str(home)} | {name: str(home / folder) for name, folder in names.items()}


def environment_of(home: Path) -> dict[str, str]:
    """A whole environment for a started process."""
    return clean_environment(home) | account(home)


class Server:
    """A server process on a data folder."""

    def __init__(self, process: Process, errors: Path, folder: Path, host: str = "127.0.0.1") -> None:
        self.process = process
        self.host = host
        self.folder = folder
        self._errors = errors
        self._from = 0
        self.port = 0
        self.ended = False

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return self.host, self.port

    def wait_ready(self, timeout_s: float = READY_S) -> Server:
        """Until it accepts connections. Raises RuntimeError with what it wrote if it ends before."""
        deadline = time.monotonic() + timeout_s
        while not self.port:
            match = _URL.search(self._errors.read_text(errors="replace")) if self._errors.exists() else None
            if match:
                self.port = int(match[1])
                break
            if self.process.exited(0.002):
                raise RuntimeError(f"the server ended with {self.wait()}: {self.process.told()}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"the server named no URL within {timeout_s:.0f} s: {self.process.told()}")
        while True:
            with contextlib.suppress(OSError), socket.create_connection(self.address, 1):
                return self
            if self.process.exited(0.002):
                raise RuntimeError(f"the server ended with {self.wait()}: {self.process.told()}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"the server does not listen: {self.process.told()}")

    def halts_no_more(self) -> None:
        """It passes its step from now on, and goes on if it has stopped there."""
        (self.folder / HALTS).unlink(missing_ok=True)
        # Who looked just before may stop a moment later.
        deadline = time.monotonic() + HALT_S
        while time.monotonic() < deadline:
            self.process.kill(signal.SIGCONT)
            select.select([], [], [], 0.01)

    def kill(self) -> None:
        """SIGKILL, and reap."""
        if not self.ended:
            self.process.kill()
            self.wait()

    def stop(self, timeout_s: float = 30.0) -> int:
        """SIGTERM; its exit status."""
        self.process.kill(signal.SIGTERM)
        return self.wait(timeout_s)

    def wait(self, timeout_s: float = 60.0) -> int:
        """Its exit status."""
        self.ended = True
        return self.process.wait(timeout_s)


def serve(
    zygote: Zygote,
    folder: Path,
    *args: str,
    env: dict[str, str] | None = None,
    impatient: dict[str, Any] | None = None,
    limits: dict[str, int] | None = None,
    program: str = "",
    dev: bool = True,
    host: str = "127.0.0.1",
    port: int = 0,
    halt: str = "",
    own: bool = True,
) -> Server:
    """A forked server; not waited for.

    At the step `halt` ("name:nth") it stops as by SIGSTOP, see `Server.halts_no_more`. Its stores
    are its `own`, of the kind that is asked for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if own and other_stores is not None:
        env = other_stores(folder) | (env or {})
        impatient = SERVER_HASTE | (impatient or {})
    if halt:
        (folder / HALTS).touch()
    victim = zygote.start(
        "victims:server",
        folder,
        env=account(folder / "home") | (env or {}),
        program=program,
        args=[*(["--dev"] if dev else []), "--host", host, "--port", str(port), "--data", str(folder / "data"), *args],
        impatient=impatient or {},
        limits=limits or {},
        halt=halt,
    )
    return Server(victim, victim.errors, folder, host)


def spawn_server(folder: Path, *args: str, env: dict[str, str] | None = None) -> Server:
    """A server started by the command line."""
    folder.mkdir(parents=True, exist_ok=True)
    errors = folder / f"server-{time.monotonic_ns()}.txt"
    command = [sys.executable, "-m", "ml_dash", "server", "--dev", "--port", "0", "--data", str(folder / "data"), *args]
    made = environment_of(folder / "home") | (env or {})
    return Server(Started(command, made, errors, folder), errors, folder)


@contextlib.contextmanager
def serving(zygote: Zygote, folder: Path, *args: str, **options: Any) -> Iterator[Server]:
    """A forked server for a while."""
    made = serve(zygote, folder, *args, **options)
    try:
        yield made.wait_ready()
    finally:
        made.kill()


def syncd(
    zygote: Zygote,
    folder: Path,
    *args: str,
    home: Path | None = None,
    env: dict[str, str] | None = None,
    impatient: dict[str, Any] | None = None,
    limits: dict[str, int] | None = None,
    program: str = "",
    reads: str = "",
    watch: str = "",
) -> Victim:
    """A forked uploader; its state is under `home` (default: in `folder`)."""
    folder.mkdir(parents=True, exist_ok=True)
    return zygote.start(
        "victims:syncd",
        folder,
        env=account(home or folder / "home") | (env or {}),
        program=program,
        args=list(args),
        impatient=impatient or {},
        limits=limits or {},
        reads=reads,
        watch=watch,
    )


def spawn_syncd(folder: Path, *args: str, home: Path | None = None, env: dict[str, str] | None = None) -> Started:
    """An uploader started by the command line."""
    folder.mkdir(parents=True, exist_ok=True)
    errors = folder / f"syncd-{time.monotonic_ns()}.txt"
    made = environment_of(home or folder / "home") | (env or {})
    return Started([sys.executable, "-m", "ml_dash_syncd", *args], made, errors, folder)


def until(holds: Any, timeout_s: float = 30.0, *, step_s: float = 0.005, what: str = "it") -> None:
    """Wait until `holds()`. Raises TimeoutError."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come within {timeout_s:.0f} s")
        select.select([], [], [], step_s)
