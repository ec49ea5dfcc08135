"""Launch of `ml-dash-syncd` by a process that records, and the files by which the two find each other."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

from ..disk.lock import Liveness, probe
from ..disk.places import Environment, flag, state_folder
from ..errors import InvalidValue

log = logging.getLogger("ml_dash")


LOCK: Final = "syncd.lock"
STATUS: Final = "syncd.json"
LOG: Final = "syncd.log"
AUTOSYNC: Final = "ML_DASH_AUTOSYNC"
EXIT_WAIT: Final = "ML_DASH_EXIT_WAIT"
EXEC: Final = "ML_DASH_EXEC"
"""Set by `ml-dash-syncd exec` for the job that it runs."""
# An uploader that a process has started ends after so long without work.
IDLE_EXIT_S: Final = 600
_TRY_EVERY_S: Final = 60.0
_COMING_UP_S: Final = 10.0
# The uploader signs in with what is stored, and must not die at a step that a test chose for the process that records.
_NOT_PASSED_ON: Final = ("ML_DASH_API_KEY", "ML_DASH_FAIL", EXEC)


def lock_path(env: Environment | None = None) -> Path:
    """Return the path of the lock that the running uploader holds."""
    return state_folder(env) / LOCK


def status_path(env: Environment | None = None) -> Path:
    """Return the path of the file in which the uploader describes itself."""
    return state_folder(env) / STATUS


def log_path(env: Environment | None = None) -> Path:
    """Return the path of the log of an uploader that was started in the background."""
    return state_folder(env) / LOG


def daemon_runs(env: Environment | None = None) -> bool:
    """True if an uploader of this user runs on this host, as far as its lock shows."""
    return probe(lock_path(env)) is Liveness.ALIVE


def in_exec() -> bool:
    """True in a job that `ml-dash-syncd exec` runs: it sends what is left when the job has ended."""
    return EXEC in os.environ


def daemon_comes_up() -> bool:
    """True if this process launched an uploader so recently that it may not have taken its lock yet."""
    launched = _attempts.launched
    return launched is not None and time.monotonic() - launched < _COMING_UP_S


def autosync(env: Environment | None = None) -> bool:
    """True if a process may start the uploader: not with `ML_DASH_AUTOSYNC=0`. Raises InvalidValue for other texts."""
    environment = os.environ if env is None else env
    return not environment.get(AUTOSYNC) or flag("AUTOSYNC", environment)


def exit_wait_s(env: Environment | None = None) -> float:
    """Return how many seconds a process waits at its end for what is not sent. Raises InvalidValue."""
    text = (os.environ if env is None else env).get(EXIT_WAIT, "").strip()
    try:
        seconds = float(text or 0)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise InvalidValue(f"{EXIT_WAIT} is {text[:80]!a}", hint="give a number of seconds, like 30")
    return seconds


class _Attempts:
    """This process's attempts to start the uploader. `guard` protects `last`, the time of the latest one."""

    def __init__(self) -> None:
        self.guard = threading.Lock()
        self.last = -_TRY_EVERY_S
        self.warned = False
        self.forbidden = False
        self.thread: threading.Thread | None = None
        self.launched: float | None = None

    def due(self) -> bool:
        """True if an attempt may be made now, which then counts: one a minute."""
        now = time.monotonic()
        with self.guard:
            if now - self.last < _TRY_EVERY_S:
                return False
            self.last = now
            return True


_attempts = _Attempts()


def never_start() -> None:
    """Let this process start no uploader from now on: it was forked by one that may."""
    global _attempts
    _attempts = _Attempts()
    _attempts.forbidden = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=never_start)


def start_daemon(env: Environment | None = None, *, alone: bool = False) -> bool:
    """Start the uploader in the background if none runs; True if one runs or may come up now.

    Never waits and never raises: a thread starts a process in its own session, without our descriptors, that is not our
    child. Tried once a minute; not from a forked child or one of `multiprocessing`, and of the ranks of a job
    only by the first (with `alone`, the first of this machine).
    """
    environment = os.environ if env is None else env
    if daemon_runs(environment):
        return True
    try:
        if not autosync(environment) or not _is_the_one(environment, alone):
            return False
    except ValueError as error:
        _warn_once(f"ml-dash-syncd was not started: {error}")
        return False
    if not _attempts.due():
        return True
    thread = threading.Thread(target=_start, args=(dict(environment),), name="ml-dash-start", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        _warn_once(f"ml-dash-syncd was not started: {error}; data is kept here")
        return False
    _attempts.thread = thread
    return True


def finish_start(wait_s: float) -> None:
    """Wait, at the end of a process, for a start that is under way; at most `wait_s` seconds."""
    thread = _attempts.thread
    if thread is not None:
        thread.join(wait_s)


def _is_the_one(env: Environment, alone: bool) -> bool:
    """True if this is the process, of the ranks of a job, that starts the uploader."""
    process = sys.modules.get("multiprocessing.process")
    if _attempts.forbidden or (process is not None and process.parent_process() is not None):
        return False
    first = not any(_number(env.get(name)) for name in ("RANK", "SLURM_PROCID"))
    here = [number for name in ("LOCAL_RANK", "SLURM_LOCALID") if (number := _number(env.get(name))) is not None]
    return first or (alone and bool(here) and not any(here))


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.strip().isdecimal() else None


def _start(env: dict[str, str]) -> None:
    try:
        program = _program()
        folder = state_folder(env)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0)
        output = os.open(folder / LOG, flags, 0o600)
        try:
            _launch([*program, "run", "--idle-exit", str(IDLE_EXIT_S)], output, env)
        finally:
            os.close(output)
        _attempts.launched = time.monotonic()
    except (OSError, ValueError) as error:
        _warn_once(f"ml-dash-syncd was not started: {error}; data is kept here. Start it with: ml-dash-syncd run")


def _launch(command: list[str], output: int, env: dict[str, str]) -> None:
    """Run a command that outlives this process and is not a child of it."""
    import subprocess

    kept = {name: value for name, value in env.items() if name not in _NOT_PASSED_ON}
    shell = "/bin/sh"
    detached: dict[str, Any] = {"start_new_session": True}
    if os.name == "nt":
        flags = ("DETACHED_PROCESS", "CREATE_NEW_PROCESS_GROUP", "CREATE_NO_WINDOW")
        detached = {"creationflags": sum(getattr(subprocess, name, 0) for name in flags[:2])}
    elif os.access(shell, os.X_OK):
        # The shell ends at once, and the command is left to init: no zombie, and nothing that the program's own
        # `os.wait()`, or whoever ends all its children, could meet.
        command = [shell, "-c", '"$@" &', "sh", *command]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=os.path.abspath(os.sep),  # noqa: PTH100
        env=kept, close_fds=True, **detached,
    )  # fmt: skip
    if command[0] == shell:
        process.wait()
    else:
        process.returncode = 0  # no ResourceWarning: nobody waits for it, on purpose


def _program() -> list[str]:
    """Return the command of the uploader in this environment; `sys.executable` may be a program with Python inside."""
    name = Path(sys.executable or "").name.lower()
    if "python" in name or "pypy" in name:
        return [sys.executable, "-m", "ml_dash_syncd"]
    folder = Path(sys.prefix, "Scripts" if os.name == "nt" else "bin")
    for python in ("python3", "python", "python.exe"):
        if (folder / python).exists():
            return [str(folder / python), "-m", "ml_dash_syncd"]
    raise FileNotFoundError(f"no Python interpreter in {folder}")


def _warn_once(text: str) -> None:
    if not _attempts.warned:
        _attempts.warned = True
        log.warning("ml-dash: %s", text)
