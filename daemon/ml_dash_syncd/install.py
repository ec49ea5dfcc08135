"""Put the packaged systemd unit in its place, with the path of this installation."""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from importlib.resources import files
from pathlib import Path
from typing import Final

from ml_dash.disk.durable import replace_file

USER_UNIT: Final = "ml-dash-syncd.service"
SYSTEM_UNIT: Final = "ml-dash-syncd@.service"
_PROGRAM: Final = re.compile(r"^(ExecStart=)\S+", re.MULTILINE)


def program() -> str:
    """What starts this installation, as a unit writes it."""
    beside = Path(sys.executable).parent / "ml-dash-syncd"
    scripts = Path(sysconfig.get_path("scripts")) / "ml-dash-syncd"
    for path in (beside, Path(sys.argv[0]).absolute(), scripts):
        if path.name == "ml-dash-syncd" and path.is_file():
            return _quoted(str(path))
    return f"{_quoted(sys.executable)} -m ml_dash_syncd"


def _quoted(path: str) -> str:
    """A path in a unit's command line: `%`, `$` and spaces mean something there."""
    text = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return text if text == path and " " not in path else f'"{text}"'


def unit(name: str) -> str:
    """The text of a unit."""
    text = (files("ml_dash_syncd") / "units" / name).read_text(encoding="utf-8")
    start = program()
    return _PROGRAM.sub(lambda found: f"{found[1]}{start}", text)


def place(name: str) -> Path:
    """Where a unit goes."""
    if name == SYSTEM_UNIT:
        return Path("/etc/systemd/system", name)
    config = os.environ.get("XDG_CONFIG_HOME", "")
    base = Path(config) if Path(config).is_absolute() else Path("~/.config").expanduser()
    return base / "systemd" / "user" / name


def install(name: str) -> Path:
    """Write a unit; where it is. Raises OSError."""
    path = place(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, unit(name).encode())
    path.chmod(0o644)
    return path
