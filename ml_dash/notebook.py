"""The dashboard from Python: `ml_dash.ui()`, in a notebook as a frame in the page, elsewhere as a link."""

from __future__ import annotations

import os
import sys
import threading
from html import escape
from pathlib import Path
from types import TracebackType
from typing import Final

from .errors import NotOpen

HEIGHT_PX: Final = 720
"""The height of the frame in a notebook."""

_FRAME: Final = """\
<iframe id="{id}" title="ml-dash" width="100%" height="{height}" style="border: 1px solid #8884"></iframe>
<script>(() => {{
  // A browser keeps a login apart for each name of this machine: the frame takes the one of the notebook.
  const here = location.hostname === "127.0.0.1" ? location.hostname : "localhost";
  document.getElementById("{id}").src = "{framed}".replace("127.0.0.1", here);
}})()</script>
<div>ml-dash ui: {paths} · <a href="{link}" target="_blank" rel="noopener">open in a tab</a></div>"""


class Dashboard:
    """A process that shows experiments of some folders; it ends with this one, or by `close`.

    The value of a notebook's cell, it is shown as a frame. It can also be used as a context manager.
    """

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        # Not at the top: `from ml_dash import *` loads this module.
        import subprocess

        self._lock = threading.Lock()
        # It ends at the end of its input: also when this process is killed.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ml_dash.server.local_ui", *map(str, paths)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        first = self._read_link()
        self.url = first.partition("/login")[0]
        """The dashboard's address, for a browser that has followed a link."""
        self._first: str | None = first

    def link(self) -> str:
        """Return a new link: it logs one browser on this machine in, once. Raises NotOpen if the process has ended."""
        with self._lock:
            if self._first is not None:
                first, self._first = self._first, None
                return first
            assert self._process.stdin is not None
            try:
                self._process.stdin.write("\n")
                self._process.stdin.flush()
            except (OSError, ValueError):  # its end is broken, or closed
                raise self._ended() from None
            return self._read_link()

    def close(self) -> None:
        """End the process; a second call does nothing."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.close()
            self._process.wait()
            self._process.stdout.close()

    @property
    def is_open(self) -> bool:
        """True while the process runs."""
        return self._process.poll() is None

    def __enter__(self) -> Dashboard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ml_dash.ui of {self._shown()} at {self.url}{'' if self.is_open else ', ended'}>"

    def _repr_html_(self) -> str:
        if not self.is_open:
            return escape(repr(self))
        framed, link = escape(self.link()), escape(self.link())
        identity = f"ml-dash-{os.urandom(6).hex()}"
        return _FRAME.format(id=identity, height=HEIGHT_PX, framed=framed, link=link, paths=escape(self._shown()))

    def _shown(self) -> str:
        return ", ".join(map(str, self.paths))

    def _read_link(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise self._ended()
        return line

    def _ended(self) -> NotOpen:
        return NotOpen(f"the process that showed {self._shown()} has ended", hint="call ml_dash.ui() again")


_running: dict[tuple[Path, ...], Dashboard] = {}
_starting: Final = threading.Lock()


def ui(*paths: str | os.PathLike[str]) -> Dashboard:
    """Show experiments in a browser on this machine: a frame in a notebook; elsewhere, a printed link that works once.

    A path is a root, store, project or experiment folder. Without one, look where the environment says, else in the
    current folder. Called again for the same folders, it gives the process that runs. Raises NotOpen if it cannot run.
    """
    from .reading import read

    folders = [Path(path).expanduser().absolute() for path in paths] or [read.default_folder()]
    with _starting:
        found = _running.get(tuple(folders))
        if found is None or not found.is_open:
            found = _running[tuple(folders)] = Dashboard(folders)
    if not _in_notebook():
        sys.stdout.write(f"ml-dash ui: {found.link()}\n")
    return found


def _in_notebook() -> bool:
    """True if the value of a cell is shown as HTML: in a kernel of IPython, which is loaded then."""
    shell = sys.modules.get("IPython")
    running = shell.get_ipython() if shell is not None else None
    return hasattr(running, "kernel")
