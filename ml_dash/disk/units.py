"""Installation of a packaged systemd unit, with the path of this Python environment filled in."""

from __future__ import annotations

import re
import sys
import sysconfig
from importlib.resources import files
from pathlib import Path
from typing import Final

from .durable import replace_file

_PROGRAM: Final = re.compile(r"^(ExecStart=)\S+", re.MULTILINE)


def program(script: str, module: str) -> str:
    """Return the command of this installation's `script` for a unit; `python -m module` if there is no script."""
    beside = Path(sys.executable).parent / script
    scripts = Path(sysconfig.get_path("scripts")) / script
    for path in (beside, Path(sys.argv[0]).absolute(), scripts):
        if path.name == script and path.is_file():
            return _quoted(str(path))
    return f"{_quoted(sys.executable)} -m {module}"


def unit(name: str, start: str) -> str:
    """Return the text of a packaged unit that starts the program `start`."""
    text = (files("ml_dash_syncd") / "units" / name).read_text(encoding="utf-8")
    return _PROGRAM.sub(lambda found: f"{found[1]}{start}", text)


def write(path: Path, text: str) -> None:
    """Write a unit to its path, readable by all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text.encode())
    path.chmod(0o644)


def _quoted(path: str) -> str:
    """Quote a path for a unit's command line, where `%`, `$` and spaces have a meaning."""
    text = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return text if text == path and " " not in path else f'"{text}"'
