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

from ml_dash.demo.story import DemoError, environment

USER: Final = "demo"
START_S: Final = 20.0
"""How long a server may take until it says where it listens; on a machine with nothing else to do it takes one."""
END_S: Final = 15.0

_URL = re.compile(r"http://127\.0\.0\.1:(\d+)")


def is_possible() -> bool:
    """Whether what a server and the daemon need is installed."""
    return all(find_spec(name) is not None for name in ("starlette", "uvicorn", "ml_dash_syncd"))


class Stage:
    """A server and a daemon in `folder`, with the development login, on a port that was free.

    A context manager: on leaving, whatever still runs is ended. One thread at a time.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._port = 0
        self._server: _Process | None = None
        self._daemon: _Process | None = None

    def __enter__(self) -> Stage:
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
        return f"http://127.0.0.1:{self._port}"

    def environment(self) -> dict[str, str]:
        """For what is to send to this server: a login, settings and a state that nobody else has."""
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
        """Starts it, on the port and data of the one before; does not wait for it."""
        arguments = ["-m", "ml_dash", "server", "--dev", "--port", str(self._port), "--data", "server"]
        self._server = _Process("server", arguments, self.folder, environment({}))

    def wait_for_server(self) -> None:
        """Returns once it listens. Raises `DemoError` if it ends before, or takes too long."""
        assert self._server is not None
        self._port = int(self._server.said(_URL, START_S)[1])

    def kill_server(self) -> None:
        """SIGKILL: what it was doing is not finished."""
        assert self._server is not None
        self._server.kill()
        self._server = None

    def hurry(self) -> None:
        """Lets the daemon try at once what it is pausing for."""
        assert self._daemon is not None
        self._daemon.reload()


class _Process:
    """A process whose output goes to `<name>.log`, and can be waited for."""

    def __init__(self, name: str, arguments: list[str], folder: Path, env: Mapping[str, str]) -> None:
        self._name = name
        self._log = folder / f"{name}.log"
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._silent = False
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
                with self._news:
                    self._lines.append(line)
                    self._news.notify_all()
        with self._news:
            self._silent = True
            self._news.notify_all()

    def said(self, pattern: re.Pattern[str], timeout_s: float) -> re.Match[str]:
        """The first match of `pattern` in what it prints."""

        def found() -> re.Match[str] | None:
            return next(filter(None, map(pattern.search, self._lines)), None)

        with self._news:
            self._news.wait_for(lambda: found() or self._silent, timeout_s)
            match = found()
        if match is None:
            last = self._lines[-1].strip() if self._lines else "it said nothing"
            raise DemoError(f"the {self._name} did not start: {last}", hint=f"see {self._log}")
        return match

    def reload(self) -> None:
        self._process.send_signal(signal.SIGHUP)

    def kill(self) -> None:
        self._process.kill()
        self._collect()

    def end(self) -> None:
        """SIGTERM, and SIGKILL if that is not answered in time: nothing here needs a second chance."""
        self._process.terminate()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._collect()

    def _collect(self) -> None:
        self._process.wait()
        self._listener.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


def sync_status(full: str, path: Path | None, env: Mapping[str, str]) -> tuple[bool, str]:
    """(is all there, what `ml-dash sync status` prints), asked in a process of its own, as a user would."""
    where = ["--path", str(path)] if path is not None else []
    command = [sys.executable, "-m", "ml_dash", "sync", "status", full, *where]
    columns = {"COLUMNS": os.environ.get("COLUMNS", "100")}
    done = subprocess.run(
        command, env={**env, **columns}, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", check=False
    )
    if done.returncode not in (0, 3):
        raise DemoError(f"ml-dash sync status ended with exit code {done.returncode}: {done.stderr.strip()}")
    return done.returncode == 0, done.stdout
