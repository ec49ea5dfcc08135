"""The package as a user has it: its wheel, installed in an environment of its own with what it declares, offline."""

from __future__ import annotations

import email
import email.message
import importlib.metadata
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent


def run(command: list[str], cwd: Path) -> str:
    """What a command prints; it must end well."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def build_wheel(folder: Path) -> Path:
    """The wheel of this checkout, made in a folder."""
    done = run([sys.executable, "-c", f"import hatchling.build as b; print(b.build_wheel({str(folder)!r}))"], ROOT)
    return folder / done.split()[-1]


def metadata_of(wheel: Path) -> email.message.Message:
    """The metadata of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return email.message_from_string(archive.read(name).decode())


def install(wheel: Path, folder: Path) -> Path:
    """Make an environment with the wheel, by pip, and copies of what it requires; the Python of it."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    site = next(folder.glob("lib/python*/site-packages"))
    for name in _closure(metadata_of(wheel).get_all("Requires-Dist") or []):
        _copy_distribution(name, site)
    run([str(python), "-m", "pip", "install", "--no-index", "--quiet", str(wheel)], folder)
    return python


def _closure(requirements: list[str]) -> set[str]:
    """The names of all distributions that these need here, without extras."""
    found: set[str] = set()
    waiting = list(requirements)
    while waiting:
        requirement, _, marker = waiting.pop().partition(";")
        name = re.split(r"[\s<>=!~\[(]", requirement.strip())[0]
        if name in found or "extra ==" in marker.replace("'", "").replace('"', ""):
            continue
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            assert marker, f"{name} is required but not installed"  # for another system or Python
            continue
        found.add(name)
        waiting += distribution.requires or []
    return found


def _copy_distribution(name: str, site: Path) -> None:
    for file in importlib.metadata.distribution(name).files or []:
        source, target = Path(str(file.locate())), site / file
        if ".." not in file.parts and source.is_file() and source.suffix != ".pyc":
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
