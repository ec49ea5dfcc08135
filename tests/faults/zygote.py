"""A process that has imported what a suite's victims need and forks them: real processes, at two milliseconds each.

The harness starts it, tells it over a socket what to run, and kills the victims itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from . import shim
from .harness import ROOT

_MESSAGE: Final = 1 << 16
_LINUX: Final = sys.platform.startswith("linux")
_PDEATHSIG: Final = 1
FAILED: Final = 70
"""Exit code of a victim that raised."""
WATCHDOG_S: Final = 60.0


def clean_environment(home: Path) -> dict[str, str]:
    """An environment without settings, logins or scheduler variables of whoever runs the tests."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("ML_DASH_", "SLURM_", "PYTEST_")) and key not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    }
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        kept[name] = str(home)
    paths = [str(ROOT), str(ROOT / "daemon"), os.environ.get("PYTHONPATH", "")]
    return kept | {"ML_DASH_QUIET": "1", "PYTHONPATH": os.pathsep.join(paths)}


@dataclass
class Victim:
    """A forked process that runs one function of a suite."""

    pid: int
    zygote: Zygote
    errors: Path

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal. It is not reaped before `wait`, so this never hits another process."""
        os.kill(self.pid, number)

    def exited(self, timeout_s: float) -> bool:
        """Wait for its end; False if it still runs."""
        deadline = time.monotonic() + timeout_s
        try:
            handle = os.pidfd_open(self.pid)
        except (AttributeError, OSError):
            return self.zygote.poll(self.pid, deadline)
        try:
            return bool(select.select([handle], [], [], timeout_s)[0])
        finally:
            os.close(handle)

    def wait(self, timeout_s: float = WATCHDOG_S) -> int:
        """Its exit status (negative: killed by that signal). Raises TimeoutError after killing it."""
        if not self.exited(timeout_s):
            self.kill()
            self.zygote.reap(self.pid)
            raise TimeoutError(f"victim {self.pid} did not end within {timeout_s:.0f} s\n{self.told()}")
        return self.zygote.reap(self.pid)

    def told(self) -> str:
        """What it wrote to stderr."""
        return self.errors.read_text(errors="replace")[-2000:] if self.errors.exists() else ""


class Zygote:
    """The warmed process, seen from the harness.

    It imports `<package>.warm`. `preload` are libraries that come before the system's; `prefix` is a command that runs
    commands.
    """

    def __init__(
        self, package: str, workdir: Path, *, preload: Sequence[Path] = (), prefix: Sequence[str] = ()
    ) -> None:
        home = workdir / "home"
        home.mkdir(parents=True, exist_ok=True)
        environment = clean_environment(home)
        if preload:
            environment["LD_PRELOAD"] = ":".join(map(str, preload))
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET if _LINUX else socket.SOCK_DGRAM)
        for end in (self._socket, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MESSAGE * 4)
        command = [*prefix, sys.executable, "-m", "tests.faults.zygote", str(theirs.fileno()), package]
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment, pass_fds=[theirs.fileno()])
        theirs.close()
        self._ask({"op": "hello"})

    def start(
        self,
        function: str,
        folder: Path,
        *,
        pipe: int | None = None,
        env: dict[str, str] | None = None,
        program: str = "",
        **arguments: Any,
    ) -> Victim:
        """Fork a victim that runs `function(pipe, folder, **arguments)`.

        `function` is "module:name", a module of the package; `program` is one for the shim.
        """
        errors = folder / f"stderr-{time.monotonic_ns()}.txt"
        request = {
            "op": "start",
            "function": function,
            "folder": str(folder),
            "env": env or {},
            "program": program,
            "errors": str(errors),
            "arguments": arguments,
        }
        return Victim(self._ask(request, [] if pipe is None else [pipe])["pid"], self, errors)

    def reap(self, pid: int) -> int:
        """Its exit status, as subprocess has it."""
        status: int = self._ask({"op": "reap", "pid": pid})["status"]
        return os.waitstatus_to_exitcode(status)

    def poll(self, pid: int, deadline: float) -> bool:
        """Where there are no pidfds: has it ended?"""
        while not self._ask({"op": "ended", "pid": pid})["ended"]:
            if time.monotonic() > deadline:
                return False
            select.select([], [], [], 0.001)
        return True

    def _ask(self, request: dict[str, Any], descriptors: list[int] | None = None) -> dict[str, Any]:
        socket.send_fds(self._socket, [json.dumps(request).encode()], descriptors or [])
        answer = self._socket.recv(_MESSAGE)
        if not answer:
            raise RuntimeError("the zygote is gone")
        decoded: dict[str, Any] = json.loads(answer)
        return decoded

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(OSError):
            self._socket.send(b'{"op": "end"}')
        self._socket.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def warmed(
    package: str, workdir: Path, *, preload: Sequence[Path] = (), prefix: Sequence[str] = ()
) -> Iterator[Zygote]:
    """A zygote for a while, see `Zygote`."""
    made = Zygote(package, workdir, preload=preload, prefix=prefix)
    try:
        yield made
    finally:
        made.close()


# -- inside the warmed process ---------------------------------------------------------------------------------------


def _serve(ours: socket.socket, package: str) -> None:
    ended: dict[int, int] = {}
    while True:
        message, descriptors, _, _ = socket.recv_fds(ours, _MESSAGE, 4)
        request = json.loads(message) if message else {"op": "end"}
        answer: dict[str, Any] = {}
        if request["op"] == "end":
            return
        if request["op"] == "start":
            sys.stdout.flush()
            pid = os.fork()
            if pid == 0:
                ours.close()
                _become(package, request, descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            answer["pid"] = pid
        elif request["op"] == "reap":
            pid = int(request["pid"])
            answer["status"] = ended.pop(pid) if pid in ended else os.waitpid(pid, 0)[1]
        elif request["op"] == "ended":
            if request["pid"] not in ended:
                pid, status = os.waitpid(int(request["pid"]), os.WNOHANG)
                if pid:
                    ended[pid] = status
            answer["ended"] = request["pid"] in ended
        ours.send(json.dumps(answer).encode())


def _become(package: str, request: dict[str, Any], descriptors: list[int]) -> None:
    """In the forked child: run the function and leave, without the parent's cleaning up."""
    code = 0
    try:
        os.setpgid(0, 0)
        if _LINUX:
            # Whoever runs the trials may be killed: nothing of a trial outlives it.
            ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        errors = os.open(request["errors"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(errors, 1)
        os.dup2(errors, 2)
        os.close(errors)
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        os.environ.update(request["env"])
        if request["program"]:
            shim.configure(request["program"])
        module, _, name = request["function"].partition(":")
        function = getattr(importlib.import_module(f"{package}.{module}"), name)
        function(descriptors[0] if descriptors else -1, Path(request["folder"]), **request["arguments"])
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:  # noqa: BLE001 - the harness reads it in the file of errors
        traceback.print_exc()
        code = FAILED
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _main() -> None:
    ours = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(ours.fileno(), False)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    package = sys.argv[2]
    importlib.import_module(f"{package}.warm")
    gc.collect()
    gc.freeze()
    socket.recv_fds(ours, _MESSAGE, 4)
    ours.send(b"{}")
    _serve(ours, package)


if __name__ == "__main__":
    _main()
