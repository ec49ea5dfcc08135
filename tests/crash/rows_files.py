"""Row W29: files that change, vanish, are no files, or are far too large, while they are being added."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ml_dash.errors import InvalidInput
from tests.faults.harness import Row, Trial

from . import oracle_reader as disk
from .oracle import check_blobs
from .recovery import recovered
from .victims import experiment, journal_of

_SIZE: Final = 6 << 20


def _plain(trial: Trial, path: Path) -> None:
    path.write_bytes(trial.rng.randbytes(trial.rng.choice((0, 1, 4096, 100_000))))


def _large(trial: Trial, path: Path) -> None:
    path.write_bytes(trial.rng.randbytes(1 << 16) * (_SIZE >> 16))


def _sparse(_: Trial, path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def _sparse_small(_: Trial, path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(32 << 20)
        file.seek(16 << 20)
        file.write(b"island")


def _fifo(_: Trial, path: Path) -> None:
    os.mkfifo(path)


def _loop(_: Trial, path: Path) -> None:
    path.symlink_to(path.name)


def _dangling(_: Trial, path: Path) -> None:
    path.symlink_to("nothing")


def _socket(_: Trial, path: Path) -> None:
    made = socket.socket(socket.AF_UNIX)
    here = Path.cwd()
    os.chdir(path.parent)  # socket paths are short
    try:
        made.bind(path.name)
    finally:
        os.chdir(here)
        made.close()


def _device(_: Trial, path: Path) -> None:
    path.symlink_to("/dev/zero")


def _folder(_: Trial, path: Path) -> None:
    path.mkdir()


def _missing(_: Trial, path: Path) -> None:
    del path


Change = Callable[[Path, threading.Event], None]


def _append_to(path: Path, stop: threading.Event) -> None:
    with path.open("ab") as file:
        while not stop.is_set():
            file.write(b"appended" * 512)
            file.flush()


def _overwrite(path: Path, stop: threading.Event) -> None:
    number = 0
    with path.open("r+b") as file:
        while not stop.is_set():
            number += 1
            file.seek(number * 4093 % _SIZE)
            file.write(b"changed%d" % number)
            file.flush()


def _truncate(path: Path, stop: threading.Event) -> None:
    size = _SIZE
    while not stop.is_set() and size > 4096:
        size -= 4096
        os.truncate(path, size)


def _vanish(path: Path, _: threading.Event) -> None:
    path.unlink()


# name, what is at the path, what happens to it meanwhile, may it be refused, must it be?
CASES: Final[tuple[tuple[str, Any, Change | None, bool, bool], ...]] = (
    ("plain", _plain, None, False, False),
    ("sparse, 32 MiB", _sparse_small, None, False, False),
    ("grows", _large, _append_to, False, False),
    ("is overwritten", _large, _overwrite, False, False),
    ("shrinks", _large, _truncate, False, False),
    ("vanishes", _large, _vanish, True, False),
    ("sparse, 1 TiB", _sparse, None, True, True),
    ("a FIFO", _fifo, None, True, True),
    ("a link to itself", _loop, None, True, True),
    ("a link to nothing", _dangling, None, True, True),
    ("a socket", _socket, None, True, True),
    ("a device", _device, None, True, True),
    ("a folder", _folder, None, True, True),
    ("missing", _missing, None, True, True),
)


def strange_files(trial: Trial) -> None:
    """W29. Either the recorded hash is that of the stored bytes, or the call says what is wrong and records nothing."""
    name, make, change, may_refuse, must_refuse = CASES[trial.index % len(CASES)]
    source = trial.folder / "source.bin"
    make(trial, source)
    stop, refused = threading.Event(), ""
    meanwhile = threading.Thread(target=change, args=(source, stop)) if change is not None else None
    target = experiment(trial.folder).open()
    try:
        if meanwhile is not None:
            meanwhile.start()
        entry = target.file(str(source), prefix="/data")
    except InvalidInput as error:
        refused = str(error)
    finally:
        stop.set()
        if meanwhile is not None:
            meanwhile.join()
    trial.counts[name] += 1
    trial.check(not refused or may_refuse, f"{name}: refused: {refused}")
    trial.check(refused or not must_refuse, f"{name}: accepted")
    if not refused and source.is_file():
        _later_changes_do_no_harm(trial, name, source, entry)
    target.log("and on")
    target.close()
    journal = disk.read_journal(journal_of(trial.folder))
    files = [body for _, _, kind, _, body in journal.in_order() if kind == disk.FILE]
    trial.check(len(files) == (0 if refused else 1), f"{name}: {len(files)} file events")
    trial.check(not list((journal.path / "blobs").glob(".*")), f"{name}: a temporary copy was left")
    trial.fail(*check_blobs(journal))
    leftover = sum(path.stat().st_size for path in (journal.path / "blobs").iterdir())
    trial.check(not refused or leftover == 0, f"{name}: {leftover} bytes left of a refused file")
    _check_all(trial)


def _later_changes_do_no_harm(trial: Trial, name: str, source: Path, entry: Any) -> None:
    (blob,) = disk.blobs(journal_of(trial.folder)).values()
    trial.check(blob.stat().st_ino != source.stat().st_ino, f"{name}: the user's own file was hard-linked")
    with source.open("ab") as file:
        file.write(b"later")
    stored = hashlib.sha256(blob.read_bytes()).hexdigest()
    trial.check(stored == entry["checksum"], f"{name}: recorded {entry['checksum']}, stored {stored}")
    trial.check(blob.stat().st_size == entry["sizeBytes"], f"{name}: another size is recorded")


def _check_all(trial: Trial) -> None:
    from .oracle import Ledger, digest

    ledger = Ledger()
    for _, _, kind, _, body in disk.read_journal(journal_of(trial.folder)).in_order():
        ledger.issued[digest(kind, body)] = (0, len(ledger.issued))
    recovered(trial, ledger)


ROWS = (Row("W29", "strange files", 50 * len(CASES), 28, strange_files),)
