"""A process that has library, server and uploader imported and forks victims: real processes, milliseconds each.

The protocol and the harness's side are those of `tests.crash.zygote`; what is imported, and what may be run, is not.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import resource
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from tests.crash import shim
from tests.crash import zygote as base
from tests.crash.harness import ROOT, Unavailable

from . import reads

MESSAGE: Final = 1 << 16
_PDEATHSIG: Final = 1


class Zygote(base.Zygote):
    """The warmed process, seen from the harness. `start` takes functions as "package.module:name"."""

    def __init__(self, workdir: Path, *, with_shim: bool = False, prefix: Sequence[str] = ()) -> None:
        home = workdir / "home"
        home.mkdir(parents=True, exist_ok=True)
        environment = base.clean_environment(home)
        environment["PYTHONPATH"] = os.pathsep.join([environment["PYTHONPATH"], str(ROOT / "daemon")])
        if with_shim:
            environment["LD_PRELOAD"] = f"{shim.build()}:{reads.build()}"
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._socket, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MESSAGE * 4)
        command = [*prefix, sys.executable, "-m", "tests.e2e.zygote", str(theirs.fileno())]
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment, pass_fds=[theirs.fileno()])
        theirs.close()
        self._ask({"op": "hello"})


@contextlib.contextmanager
def zygote(workdir: Path, prefix: Sequence[str] = ()) -> Iterator[Zygote]:
    """Victims without the shim; `prefix` is a command that runs commands."""
    made = Zygote(workdir, prefix=prefix)
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def shimmed(workdir: Path) -> Iterator[Zygote]:
    """Victims with the shim."""
    try:
        made = Zygote(workdir, with_shim=True)
    except shim.ShimUnavailable as reason:
        raise Unavailable(str(reason)) from None
    try:
        yield made
    finally:
        made.close()


# -- inside the warmed process ---------------------------------------------------------------------------------------


def _become(request: dict[str, Any], descriptors: list[int]) -> None:
    """In the forked child: run the function and leave, without the parent's cleaning up."""
    code = 0
    try:
        os.setpgid(0, 0)
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
        function = getattr(importlib.import_module(module), name)
        function(descriptors[0] if descriptors else -1, Path(request["folder"]), **request["arguments"])
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:  # noqa: BLE001 - the harness reads it in the file of errors
        traceback.print_exc()
        code = base.FAILED
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _main() -> None:
    ours = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(ours.fileno(), False)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    importlib.import_module("tests.e2e.warm")
    gc.collect()
    gc.freeze()
    socket.recv_fds(ours, MESSAGE, 4)
    ours.send(b"{}")
    base._become = _become  # type: ignore[attr-defined]
    base._serve(ours)


if __name__ == "__main__":
    _main()
