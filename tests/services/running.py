"""A service in a process of its own: started, killed, stopped and started again on the same port with the same data."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import Any, Final

import psutil

from .build import program

START_S: Final = 60.0
END_S: Final = 10.0
ACCESS_KEY: Final = "ml-dash-tests"
SECRET_KEY: Final = "a-secret-of-the-tests-alone"
REGION: Final = "us-east-1"
# Below the ports that systems give to outgoing connections, so that none takes the port while the service is down.
_PORTS: Final = range(12_000, 32_000)
_DIES_WITH_PARENT: Final = 1  # PR_SET_PDEATHSIG


class Service:
    """One service on 127.0.0.1; the port is chosen at the first start and kept."""

    def __init__(self, name: str, folder: Path, arguments: Callable[[int], list[str]], env: Mapping[str, str]) -> None:
        self.name = name
        self.folder = folder
        self.log = folder / "log"
        self.port = 0
        self._arguments = arguments
        self._environment = {**os.environ, **env}
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The id of its process."""
        assert self._process is not None, f"{self.name} does not run"
        return self._process.pid

    def start(self) -> Service:
        """Start it, and return once it takes connections. Raises Unavailable."""
        assert self._process is None, f"{self.name} runs already"
        deadline = monotonic() + START_S
        while True:
            port = self.port or _free_port()
            process = self._launched(port)
            if _listens(process, port, deadline):
                self.port, self._process = port, process
                return self
            # Ended, most likely because another process was given the port since: tried again, on a new one if it may.
            _ended(process)
            text = self.log.read_text(errors="replace")[-3000:]
            assert monotonic() < deadline, f"{self.name} does not listen on port {port}:\n{text}"

    def end(self, number: int = signal.SIGTERM) -> None:
        """End it, and wait for that; by SIGKILL if it takes too long."""
        process, self._process = self._process, None
        if process is not None:
            # A process that was stopped takes no other signal.
            process.send_signal(signal.SIGCONT)
            process.send_signal(number)
            _ended(process)

    def kill(self) -> None:
        """End it by SIGKILL, wherever it is."""
        self.end(signal.SIGKILL)

    def pause(self) -> None:
        """Stop it where it is (SIGSTOP): connections are accepted, and nobody answers."""
        os.kill(self.pid, signal.SIGSTOP)
        # The signal arrives a moment after the call.
        os.waitpid(self.pid, os.WUNTRACED)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> Service:
        """Kill it and start it again: the same port, the same data."""
        self.kill()
        return self.start()

    def _launched(self, port: int) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as output:
            return subprocess.Popen(
                [str(program(self.name)), *self._arguments(port)], env=self._environment, cwd=self.folder,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, preexec_fn=_dying_with_parent(),
            )  # fmt: skip


def mongo(folder: Path) -> Service:
    """FerretDB with its data in `folder`, not started yet."""
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    return Service("ferretdb", folder, lambda port: [f"127.0.0.1:{port}", str(data)], {})


def mongodb_uri(service: Service) -> str:
    """How to connect: FerretDB has no sessions, which writes that are tried again need."""
    return f"mongodb://{service.address}/?retryWrites=false"


def s3(folder: Path) -> Service:
    """versitygw with its buckets in `folder`, not started yet."""
    data, notes = folder / "data", folder / "metadata"
    for made in (data, notes):
        made.mkdir(parents=True, exist_ok=True)

    def arguments(port: int) -> list[str]:
        # Not every file system of a test machine has the extended attributes that it would use else.
        return ["--quiet", "--keep-alive", "--port", f"127.0.0.1:{port}", "posix", "--sidecar", str(notes), str(data)]

    return Service("versitygw", folder, arguments, {"ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY})


def s3_client(service: Service) -> Any:
    """A client of the S3 service with the rights of its owner."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3", endpoint_url=f"http://{service.address}", region_name=REGION, aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY, config=Config(s3={"addressing_style": "path"}),
    )  # fmt: skip


def bucket(client: Any) -> str:
    """Make a bucket; return its name."""
    name = f"test-{uuid.uuid4().hex}"
    client.create_bucket(Bucket=name)
    return name


def _free_port() -> int:
    """A port that is free now. Others may take it before the service does; so a start is tried again."""
    while True:
        port = random.SystemRandom().choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _listens(process: subprocess.Popen[bytes], port: int, deadline: float) -> bool:
    """Wait until this very process takes connections on the port; False if it ended, or took too long."""
    known = psutil.Process(process.pid)
    while process.poll() is None and monotonic() < deadline:
        with contextlib.suppress(psutil.Error, OSError):
            own = [found.laddr.port for found in known.net_connections("tcp") if found.status == psutil.CONN_LISTEN]
            if port in own:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return True
        threading.Event().wait(0.02)
    return False


def _ended(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _dying_with_parent() -> Callable[[], None] | None:
    """What makes a child end with its parent, so that tests that are killed leave nothing running.

    "Parent" means the thread that starts it; so not in a thread, which may end before the tests do.
    """
    if not sys.platform.startswith("linux") or threading.current_thread() is not threading.main_thread():
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(_DIES_WITH_PARENT, signal.SIGKILL)
