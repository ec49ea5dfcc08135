"""Put the packaged systemd unit in its place, with the path of this installation."""

from __future__ import annotations

import os
import re
import sys
from importlib.resources import files
from pathlib import Path
from typing import Final

from ml_dash.durable import replace_file

USER_UNIT: Final = "ml-dash-syncd.service"
SYSTEM_UNIT: Final = "ml-dash-syncd@.service"
_PROGRAM: Final = re.compile(r"^(ExecStart=)\S+", re.MULTILINE)


def program() -> Path:
    """The script of this installation."""
    return Path(sys.executable).parent / "ml-dash-syncd"


def unit(name: str) -> str:
    """The text of a unit."""
    text = (files("ml_dash_syncd") / "units" / name).read_text(encoding="utf-8")
    return _PROGRAM.sub(lambda found: f"{found[1]}{program()}", text)


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
