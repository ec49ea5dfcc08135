"""What a server needs on a machine: its packages, and its systemd unit."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Final

from ..disk import units

UNIT: Final = "ml-dash-server.service"
FOLDER: Final = Path("/etc/systemd/system")

_PACKAGES: Final = ("starlette", "uvicorn", "python_multipart", "prometheus_client")


def is_installed() -> bool:
    """True if all packages that a server with SQLite and a folder imports are there."""
    return all(find_spec(name) is not None for name in _PACKAGES)


def unit() -> str:
    """Return the text of the unit."""
    return units.unit(UNIT, units.program("ml-dash", "ml_dash"))


def install(folder: Path = FOLDER) -> Path:
    """Write the unit; return its path. Raises OSError."""
    path = folder / UNIT
    units.write(path, unit())
    return path
