"""Put the packaged systemd unit of the server in its place, with the path of this installation."""

from __future__ import annotations

import re
import sys
from importlib.resources import files
from pathlib import Path
from typing import Final

from ..disk.durable import replace_file

UNIT: Final = "ml-dash-server.service"
FOLDER: Final = Path("/etc/systemd/system")
_PROGRAM: Final = re.compile(r"^(ExecStart=)\S+", re.MULTILINE)


def program() -> str:
    """What starts this installation, as a unit writes it: `%`, `$` and spaces mean something there."""
    for path in (Path(sys.executable).parent / "ml-dash", Path(sys.argv[0]).absolute()):
        if path.name == "ml-dash" and path.is_file():
            return _quoted(str(path))
    return f"{_quoted(sys.executable)} -m ml_dash"


def _quoted(path: str) -> str:
    text = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return text if text == path and " " not in path else f'"{text}"'


def unit() -> str:
    """The text of the unit; all units are packaged together."""
    text = (files("ml_dash_syncd") / "units" / UNIT).read_text(encoding="utf-8")
    start = program()
    return _PROGRAM.sub(lambda found: f"{found[1]}{start}", text)


def install(folder: Path = FOLDER) -> Path:
    """Write the unit; where it is. Raises OSError."""
    path = folder / UNIT
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, unit().encode())
    path.chmod(0o644)
    return path
