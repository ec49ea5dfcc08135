"""The programs of the services: built from Go modules of fixed versions, once, and kept outside the checkout."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from filelock import FileLock

# Taken at import: each test is given a cache folder of its own by the environment.
CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ml-dash-tests" / "services"
NAMES: Final = ("ferretdb", "versitygw")

_FERRETDB: Final = Path(__file__).with_name("ferretdb")
_VERSITYGW: Final = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"
# Seconds for one program, with all it downloads, on a busy machine.
_BUILD_S: Final = 1200.0


class Unavailable(Exception):
    """A service cannot be had on this machine; the message says why."""


def program(name: str) -> Path:
    """Return the path of a service's program, which is built if it is not there. Raises Unavailable."""
    target = CACHE / f"{name}-{_version(name)}"
    if target.exists():
        return target
    go = shutil.which("go")
    if go is None:
        raise Unavailable(f"{name} is not built, and there is no Go to build it with")
    CACHE.mkdir(parents=True, exist_ok=True)
    # Processes that run tests side by side want it at the same moment.
    with FileLock(CACHE / f"{name}.lock"):
        if not target.exists():
            _build(go, name, target)
    return target


def _version(name: str) -> str:
    """Return a text that changes with what the program is made from."""
    if name == "versitygw":
        return _VERSITYGW.rpartition("@")[2]
    sources = b"".join(Path(_FERRETDB, file).read_bytes() for file in ("go.mod", "go.sum", "main.go"))
    return hashlib.sha256(sources).hexdigest()[:16]


def _build(go: str, name: str, target: Path) -> None:
    scratch = CACHE / f".building-{name}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    # Pure Go: no C compiler is needed, and the program runs on any machine of this kind.
    environment = {**os.environ, "CGO_ENABLED": "0", "GOBIN": str(scratch)}
    if name == "versitygw":
        command, folder = [go, "install", "-trimpath", _VERSITYGW], scratch
    else:
        command, folder = [go, "build", "-trimpath", "-o", str(scratch / name), "."], _FERRETDB
    try:
        made = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=_BUILD_S, check=False
        )
        if made.returncode:
            raise Unavailable(f"{name} could not be built: {made.stderr.strip()[-500:]}")
        # By rename: a program that is there is whole.
        os.replace(scratch / name, target)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{name} was not built within {_BUILD_S:.0f} s") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
