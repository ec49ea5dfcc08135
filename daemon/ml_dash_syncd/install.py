"""Installation of the daemon's systemd unit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from ml_dash.disk import units

USER_UNIT: Final = "ml-dash-syncd.service"
SYSTEM_UNIT: Final = "ml-dash-syncd@.service"


def unit(name: str) -> str:
    """Return the text of a unit, with the path of this installation."""
    return units.unit(name, units.program("ml-dash-syncd", "ml_dash_syncd"))


def place(name: str) -> Path:
    """Return the path at which systemd looks for a unit."""
    if name == SYSTEM_UNIT:
        return Path("/etc/systemd/system", name)
    config = os.environ.get("XDG_CONFIG_HOME", "")
    base = Path(config) if Path(config).is_absolute() else Path("~/.config").expanduser()
    return base / "systemd" / "user" / name


def install(name: str) -> Path:
    """Write a unit; return its path. Raises OSError."""
    path = place(name)
    units.write(path, unit(name))
    return path
