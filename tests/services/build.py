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
_FERRETDB_MODULE: Final = "github.com/FerretDB/FerretDB"
_VERSITYGW: Final = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"
# This version indexes `_id` by one expression and searches by another, so that SQLite reads a whole collection for each
# document. It is built with the first one in both places, as any MongoDB finds a document by its `_id`.
_ID_FILE: Final = "internal/backends/sqlite/metadata/metadata.go"
_ID_SEARCHED: Final = "DefaultColumn + \"->'$._id'\""
_ID_INDEXED: Final = "DefaultColumn + \"->'_id'\""
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
    return hashlib.sha256(sources + _ID_INDEXED.encode()).hexdigest()[:16]


def _build(go: str, name: str, target: Path) -> None:
    scratch = CACHE / f".building-{name}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    # Pure Go: no C compiler is needed, and the program runs on any machine of this kind.
    environment = {**os.environ, "CGO_ENABLED": "0", "GOBIN": str(scratch)}
    if name == "versitygw":
        command, folder = [go, "install", "-trimpath", _VERSITYGW], scratch
    else:
        modules = f"-modfile={scratch / 'go.mod'}"
        command, folder = [go, "build", "-trimpath", modules, "-o", str(scratch / name), "."], _FERRETDB
    try:
        if name == "ferretdb":
            _modules(go, environment, scratch)
        _ran(name, command, folder, environment)
        # By rename: a program that is there is whole.
        os.replace(scratch / name, target)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{name} was not built within {_BUILD_S:.0f} s") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _modules(go: str, environment: dict[str, str], scratch: Path) -> None:
    """Write a `go.mod` that names a copy of FerretDB with `_ID_FILE` mended. Raises Unavailable."""
    _ran("ferretdb", [go, "mod", "download"], _FERRETDB, environment)
    module = [go, "list", "-m", "-f", "{{.Dir}}", _FERRETDB_MODULE]
    original = _ran("ferretdb", module, _FERRETDB, environment).strip()
    copy = shutil.copytree(original, scratch / "source", copy_function=shutil.copyfile)
    for path in (copy, *copy.rglob("*")):
        if path.is_dir():
            # Go's own copy is read-only, and this one is to be removed again.
            path.chmod(0o700)
    mended = copy / _ID_FILE
    source = mended.read_text()
    assert _ID_SEARCHED in source, f"{_ID_FILE} of this version is another"
    mended.write_text(source.replace(_ID_SEARCHED, _ID_INDEXED))
    modules = Path(_FERRETDB, "go.mod").read_text()
    (scratch / "go.mod").write_text(f"{modules}\nreplace {_FERRETDB_MODULE} => {copy}\n")
    shutil.copy(_FERRETDB / "go.sum", scratch / "go.sum")


def _ran(name: str, command: list[str], folder: Path, environment: dict[str, str]) -> str:
    """Return what a command has printed. Raises Unavailable if it fails."""
    made = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=_BUILD_S, check=False
    )
    if made.returncode:
        raise Unavailable(f"{name} could not be built: {made.stderr.strip()[-500:]}")
    return made.stdout
