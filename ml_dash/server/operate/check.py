"""Check of a server's surroundings: settings, tokens, disk, database, clock, objects. One line for each thing.

It uses the places that a server would use, as a server would: it takes a lease and gives it back, stores a row and an
object under names that no server makes, reads them, and removes them again.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Literal

from ...disk.durable import free_bytes
from ...errors import MLDashError
from ..settings import ServerSettings
from ..stores import BlobRow, Busy, Documents, Objects, Stores, StoreTrouble
from ..stores.wiring import DATABASE, make_data, open_stores

State = Literal["ok", "warning", "wrong", "skipped"]

_PROBE: Final = "-check"
_CONTENT: Final = bytes(range(256)) * 16
# Less than this on the disk, and uploads will soon be refused.
_LITTLE_BYTES: Final = 5 << 30
_TOO_LITTLE_BYTES: Final = 256 << 20
# Clocks that differ by more: times in lists look wrong; by much more, S3 refuses and a sweep misjudges ages.
_CLOCK_WARNING_S: Final = 10.0
_CLOCK_WRONG_S: Final = 300.0
_PACKAGES: Final = ("starlette", "uvicorn", "msgspec", "filelock")


@dataclass(frozen=True, slots=True)
class Item:
    """What was found of one thing; `do` says what to do about it where it is not ok."""

    name: str
    state: State
    text: str
    do: str = ""


def check(settings: ServerSettings) -> Iterator[Item]:
    """Yield what is found, thing by thing. Raises nothing: what cannot be used is an item."""
    yield _versions(settings)
    data = _data(settings)
    yield data
    if data.state == "wrong":
        return
    if settings.mongodb_uri is None and not (settings.data / DATABASE).exists():
        yield Item("database", "skipped", f"none in {settings.data} yet; the server makes it when it first starts")
        yield _entry(settings, None)
        return
    try:
        stores = open_stores(settings)
    except (MLDashError, OSError) as error:
        yield _wrong("database", error)
        return
    try:
        yield _entry(settings, stores.documents)
        yield from _stores(settings, stores)
    finally:
        stores.close()


def _stores(settings: ServerSettings, stores: Stores) -> Iterator[Item]:
    yield _tried("database", lambda: _database(stores.documents))
    yield _tried("database writes", lambda: _writes(stores.documents))
    yield _tried("experiments", lambda: _experiments(stores.documents))
    yield _clock("database clock", _time_of(stores.documents), 0.0)
    key = f"{_PROBE}/{os.urandom(8).hex()}"
    try:
        began = time.time()
        yield _tried("objects", lambda: _objects(settings, stores.objects, key))
        found = _tried_time(stores.objects, key) if settings.s3 is not None else None
        yield _clock("bucket clock", found, time.time() - began)
    finally:
        yield _tried("objects removed", lambda: _removed(stores.objects, key))


# -- this machine ----------------------------------------------------------------------------------------------------


def _versions(settings: ServerSettings) -> Item:
    wanted = [*_PACKAGES, *(["pymongo"] if settings.mongodb_uri else []), *(["boto3"] if settings.s3 else [])]
    found, missing = [f"Python {sys.version.split()[0]}"], []
    for name in ("ml-dash", *wanted):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        return Item("versions", "wrong", f"not installed: {', '.join(missing)}", "pip install 'ml-dash[server]'")
    return Item("versions", "ok", ", ".join(found))


def _data(settings: ServerSettings) -> Item:
    """Check that the data folder may be written, and how much room its disk has."""
    folder = settings.data
    try:
        if not folder.exists():
            holder = next(parent for parent in folder.parents if parent.exists())
            if not os.access(holder, os.W_OK | os.X_OK):
                return Item("data folder", "wrong", f"{folder} cannot be made: {holder} may not be written",
                            "name another with --data")  # fmt: skip
            return Item("data folder", "ok", f"{folder} is made when the server first starts; {_room(holder)[1]}")
        make_data(folder)
        _write_file(folder)
        free, text = _room(folder)
    except (MLDashError, OSError) as error:
        return _wrong("data folder", error)
    if free is not None and free < _LITTLE_BYTES:
        state: State = "wrong" if free < _TOO_LITTLE_BYTES else "warning"
        return Item("data folder", state, f"{folder}: {text}", "free space: a full disk refuses uploads with 503")
    return Item("data folder", "ok", f"{folder} can be written; {text}")


def _write_file(folder: Path) -> None:
    """Write, sync and remove a file. Raises OSError."""
    path = folder / f".check-{os.urandom(8).hex()}"
    try:
        with path.open("xb") as file:
            file.write(_CONTENT)
            file.flush()
            os.fsync(file.fileno())
    finally:
        path.unlink(missing_ok=True)


def _room(folder: Path) -> tuple[int | None, str]:
    """Return (free bytes or None, what to say of them)."""
    try:
        free, whole = free_bytes(folder)
    except OSError:
        return None, "the free space is not known here"
    return free, f"{free / 2**30:,.1f} GB of {whole / 2**30:,.1f} GB are free"


def _entry(settings: ServerSettings, documents: Documents | None) -> Item:
    """Check that somebody can log in, and not everybody."""
    valid = 0
    if documents is not None:
        try:
            with documents.view() as view:
                now = time.time_ns()
                valid = sum(
                    not row.revoked_ns and not (row.expires_ns and row.expires_ns <= now) for row in view.tokens()
                )
        except StoreTrouble as error:
            return _wrong("who may log in", error)
    ways = [f"{valid} tokens" if valid != 1 else "1 token"] if valid else []
    ways += ["JWT_SECRET"] if settings.jwt_secret else []
    if settings.accepts_development_logins:
        ways.append("the development login, from this machine only")
    if ways:
        return Item("who may log in", "ok", f"with {', '.join(ways)}; it listens on {settings.host}")
    return Item("who may log in", "warning", "nobody yet: there is no token, and no JWT_SECRET",
                "ml-dash server token create USER")  # fmt: skip


# -- the database ----------------------------------------------------------------------------------------------------


def _database(documents: Documents) -> Item:
    documents.check()
    facts = documents.facts()
    return Item(
        "database", "ok", f"{facts['kind']} {facts['version']} at {facts['place']}; its tables and indexes are there"
    )


def _writes(documents: Documents) -> Item:
    """Take a lease and give it back; store a row, read it, remove it."""
    began = time.perf_counter()
    name = os.urandom(8).hex()
    try:
        documents.release(documents.lease(_PROBE, name))
    except Busy:
        return Item(
            "database writes", "wrong", "a lease of a random name is taken", "this is a fault: please report it"
        )
    row = BlobRow(name, "", 0, "", _PROBE)
    try:
        documents.put_blobs(_PROBE, [row])
        with documents.view() as view:
            found = view.blob(_PROBE, _PROBE, name)
    finally:
        documents.drop_blobs(_PROBE, _PROBE, [name])
    if found != row:
        return Item("database writes", "wrong", "a row that was just written is not read",
                    "let the database answer with what it has acknowledged: read from the primary")  # fmt: skip
    return Item("database writes", "ok", f"a lease and a row were written, read and removed in {_ms(began)}")


def _experiments(documents: Documents) -> Item:
    from ..engine.contents import TABLES_VERSION

    with documents.view() as view:
        stale = len(view.stale(TABLES_VERSION))
    if stale:
        return Item("experiments", "warning", f"{stale} were made by another version of ml-dash",
                    "start the server: it brings them up to date, and answers 503 for each until then")  # fmt: skip
    return Item("experiments", "ok", "all are of this version")


def _time_of(documents: Documents) -> float | None:
    """Return the time of the database in s since the epoch; None if it does not say."""
    try:
        text = documents.facts().get("clock")
    except StoreTrouble:
        return None
    return datetime.fromisoformat(text).timestamp() if text else None


def _clock(name: str, found: float | None, spent_s: float) -> Item:
    """Compare a time with this machine's; asking for it took `spent_s`."""
    if found is None:
        return Item(name, "skipped", "it is this machine's, or it does not say")
    apart = abs(time.time() - found)
    text = f"{apart:.1f} s apart from this machine's"
    do = "let both machines take their time from the same server (NTP)"
    if apart > _CLOCK_WRONG_S + spent_s:
        return Item(name, "wrong", text, do)
    if apart > _CLOCK_WARNING_S + spent_s:
        return Item(name, "warning", text, do)
    return Item(name, "ok", text)


# -- the objects -----------------------------------------------------------------------------------------------------


def _objects(settings: ServerSettings, objects: Objects, key: str) -> Item:
    """Do everything that a server does with objects; say which of it is refused."""
    began = time.perf_counter()
    copied = f"{key}-copy"

    def is_written() -> bool:
        objects.put_contents([(key, _CONTENT)])
        return True

    def is_copied() -> bool:
        objects.copy(key, copied)
        return objects.size(copied) == len(_CONTENT)

    def is_deleted() -> bool:
        objects.delete(copied)
        return objects.size(copied) is None

    steps: tuple[tuple[str, Callable[[], bool]], ...] = (
        ("write", is_written),
        ("read", lambda: b"".join(objects.open(key)) == _CONTENT),
        ("read a range of", lambda: b"".join(objects.open(key, 100, 200)) == _CONTENT[100:200]),
        ("ask the size of", lambda: objects.size(key) == len(_CONTENT)),
        ("copy", is_copied),
        ("list", lambda: {key, copied} <= {entry[0] for entry in objects.entries(key)}),
        ("delete", is_deleted),
    )
    where = f"bucket {settings.s3.bucket}" if settings.s3 is not None else str(settings.data / "objects")
    for verb, step in steps:
        try:
            good = step()
        except (MLDashError, OSError) as error:
            return Item("objects", "wrong", f"{where}: cannot {verb} an object: {error}",
                        "give the server's user the right to put, get, list and delete objects there")  # fmt: skip
        if not good:
            return Item("objects", "wrong", f"{where}: to {verb} an object gives something else than was stored",
                        "use a storage that answers with what it has acknowledged")  # fmt: skip
    return Item("objects", "ok", f"{where}: written, read, copied, listed and deleted in {_ms(began)}")


def _tried_time(objects: Objects, key: str) -> float | None:
    """Return the storage's own time of an object that was just put."""
    try:
        return next((entry[2] / 1e9 for entry in objects.entries(key) if entry[0] == key), None)
    except StoreTrouble:
        return None


def _removed(objects: Objects, key: str) -> Item:
    for each in (key, f"{key}-copy"):
        objects.delete(each)
    return Item("objects removed", "ok", "nothing of this check is left")


# -- items -----------------------------------------------------------------------------------------------------------


def _tried(name: str, do: Callable[[], Item]) -> Item:
    try:
        return do()
    except (MLDashError, OSError) as error:
        return _wrong(name, error)


def _wrong(name: str, error: Exception) -> Item:
    return Item(name, "wrong", str(error).partition("\n")[0], getattr(error, "hint", None) or "see what it says")


def _ms(began: float) -> str:
    return f"{(time.perf_counter() - began) * 1000:,.0f} ms"
