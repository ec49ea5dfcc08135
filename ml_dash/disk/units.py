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
    """What starts this installation's `script`, as a unit writes it; `python -m module` where there is no script."""
    beside = Path(sys.executable).parent / script
    scripts = Path(sysconfig.get_path("scripts")) / script
    for path in (beside, Path(sys.argv[0]).absolute(), scripts):
        if path.name == script and path.is_file():
            return _quoted(str(path))
    return f"{_quoted(sys.executable)} -m {module}"


def unit(name: str, start: str) -> str:
    """The text of a unit that starts with the program `start`; all units are packaged together."""
    text = (files("ml_dash_syncd") / "units" / name).read_text(encoding="utf-8")
    return _PROGRAM.sub(lambda found: f"{found[1]}{start}", text)


def write(path: Path, text: str) -> None:
    """Put a unit in its place, for all to read. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text.encode())
    path.chmod(0o644)


def _quoted(path: str) -> str:
    """A path in a unit's command line: `%`, `$` and spaces mean something there."""
    text = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return text if text == path and " " not in path else f'"{text}"'
