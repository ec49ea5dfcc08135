"""Installation of the server's systemd unit."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ..disk import units

UNIT: Final = "ml-dash-server.service"
FOLDER: Final = Path("/etc/systemd/system")


def unit() -> str:
    """Return the text of the unit."""
    return units.unit(UNIT, units.program("ml-dash", "ml_dash"))


def install(folder: Path = FOLDER) -> Path:
    """Write the unit; return its path. Raises OSError."""
    path = folder / UNIT
    units.write(path, unit())
    return path
