"""The demo's server and daemon: started in folders of their own, and ended by their process ids."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Final

from ml_dash.demo.steps import DemoError, environment
from ml_dash.server.install import is_installed

USER: Final = "demo"
START_S: Final = 20.0
"""The server must print where it listens within this time. It takes a second on a machine with nothing else to do."""

END_S: Final = 15.0
"""A process that has not ended this long after SIGTERM is killed."""

_URL = re.compile(r"http://127\.0\.0\.1:(\d+)")


def is_possible() -> bool:
    """True if everything that a server and the daemon need is installed."""
    return is_installed() and find_spec("ml_dash_syncd") is not None


class Services:
    """A server and a daemon in `folder`, with the development login, on a port that was free.

    A context manager: on leaving, both are ended if they still run. For one thread at a time.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._port = 0
        self._server: _Process | None = None
        self._daemon: _Process | None = None

    def __enter__(self) -> Services:
        (self.folder / "server").mkdir(parents=True, exist_ok=True)
        try:
            self.start_server()
            self.wait_for_server()
            self._daemon = _Process("daemon", ["-m", "ml_dash_syncd", "run"], self.folder, self.environment())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        try:
            if self._daemon is not None:
                self._daemon.end()
        finally:
            if self._server is not None:
                self._server.end()

    @property
    def url(self) -> str:
        """URL of the server."""
        return f"http://127.0.0.1:{self._port}"

    def environment(self) -> dict[str, str]:
        """Environment for processes that record for this server: a login, settings and a state folder of their own."""
        return environment(
            {
                "XDG_CONFIG_HOME": str(self.folder / "config"),
                "XDG_STATE_HOME": str(self.folder / "state"),
                "ML_DASH_REMOTE": self.url,
                "ML_DASH_USER_NAME": USER,
                "ML_DASH_AUTOSYNC": "0",
            }
        )

    def start_server(self) -> None:
        """Start the server, on the port and data of the one before; do not wait for it."""
        arguments = ["-m", "ml_dash", "server", "--dev", "--port", str(self._port), "--data", "server"]
        self._server = _Process("server", arguments, self.folder, environment({}))

    def wait_for_server(self) -> None:
        """Wait until the server listens. Raises DemoError if it ends before, or takes longer than START_S."""
        assert self._server is not None
        self._port = int(self._server.wait_for_output(_URL, START_S)[1])

    def kill_server(self) -> None:
        """Kill the server with SIGKILL, in the middle of whatever it is doing."""
        assert self._server is not None
        self._server.kill()
        self._server = None

    def end_pauses(self) -> None:
        """Let the daemon end its pauses, and try again at once."""
        assert self._daemon is not None
        self._daemon.reload()


class _Process:
    """A process whose output goes to `<name>.log`. A thread reads it, so that `wait_for_output` can see it too."""

    def __init__(self, name: str, arguments: list[str], folder: Path, env: Mapping[str, str]) -> None:
        self._name = name
        self._log = folder / f"{name}.log"
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        self._listener = threading.Thread(target=self._listen, name=f"demo {name}", daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._log.open("a", encoding="utf-8") as log:
            for line in self._process.stdout:
                log.write(line)
                log.flush()
                with self._changed:
                    self._lines.append(line)
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait_for_output(self, pattern: re.Pattern[str], timeout_s: float) -> re.Match[str]:
        """Wait for a line that matches `pattern`; return the match. Raises DemoError if none comes in time."""

        def search() -> re.Match[str] | None:
            return next(filter(None, map(pattern.search, self._lines)), None)

        with self._changed:
            self._changed.wait_for(lambda: search() or self._ended, timeout_s)
            match = search()
        if match is None:
            last = self._lines[-1].strip() if self._lines else "it printed nothing"
            raise DemoError(f"the {self._name} did not start: {last}", hint=f"see {self._log}")
        return match

    def reload(self) -> None:
        """Send SIGHUP."""
        self._process.send_signal(signal.SIGHUP)

    def kill(self) -> None:
        """Send SIGKILL, and wait for the end."""
        self._process.kill()
        self._reap()

    def end(self) -> None:
        """Send SIGTERM, and SIGKILL if it has not ended after END_S."""
        self._process.terminate()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._reap()

    def _reap(self) -> None:
        self._process.wait()
        self._listener.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


def sync_status(full: str, path: Path | None, env: Mapping[str, str]) -> tuple[bool, str]:
    """Run `ml-dash sync status` in a process of its own; return (everything is there, what it printed).

    Raises DemoError if it fails.
    """
    where = ["--path", str(path)] if path is not None else []
    command = [sys.executable, "-m", "ml_dash", "sync", "status", full, *where]
    columns = {"COLUMNS": os.environ.get("COLUMNS", "100")}
    done = subprocess.run(
        command, env={**env, **columns}, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", check=False
    )
    if done.returncode not in (0, 3):
        raise DemoError(f"ml-dash sync status ended with exit code {done.returncode}: {done.stderr.strip()}")
    return done.returncode == 0, done.stdout
