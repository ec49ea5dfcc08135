"""The witness: hears of every call before and after it, survives the victim, and judges what is on disk.

A victim sends fixed records down a pipe; nothing that the library says of itself is needed to judge. What an event is,
is told by `digest`: SHA-256 over kind and body as the published format has them.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import select
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgpack

from . import oracle_reader as disk

RECORD: Final = struct.Struct("<cxxxIQ32s")
BEFORE, AFTER, VALUE, RAISED = b"B", b"A", b"V", b"R"
_PIPE_BYTES: Final = 1 << 20
_OWN_KINDS: Final = frozenset((disk.OPEN, disk.CLOSE, disk.METRIC, disk.LOST))


def digest(kind: int, body: Any) -> bytes:
    """What identifies an event whoever numbers it."""
    if kind == disk.FILE:
        body = [body["prefix"], body["filename"], body["sizeBytes"], body["checksum"]]
    if kind in (disk.FILE_UPDATE, disk.FILE_DELETE):
        body = [body["id"], body.get("description")]
    return hashlib.sha256(msgpack.packb([kind, body])).digest()


class Reporter:
    """In the victim: tells the oracle of a call before it and after it. One for each thread or process."""

    def __init__(self, pipe: int, worker: int = 0) -> None:
        self.pipe = pipe
        self.worker = worker
        self.ordinal = 0

    def before(self, kind: int, body: Any) -> int:
        """A call is about to be made that must record this."""
        self.ordinal += 1
        self._send(BEFORE, self.ordinal, digest(kind, body))
        return self.ordinal

    def after(self) -> None:
        """That call has returned."""
        self._send(AFTER, self.ordinal, b"")

    def raised(self) -> None:
        """That call raised: the event may be there or not."""
        self._send(RAISED, self.ordinal, b"")

    def value(self, name: str, value: int) -> None:
        """Something counted, by name."""
        self._send(VALUE, value, name.encode())

    def _send(self, what: bytes, number: int, text: bytes) -> None:
        if self.pipe >= 0:
            os.write(self.pipe, RECORD.pack(what, self.worker, number, text))


@dataclass
class Ledger:
    """In the oracle: what was issued, what was acknowledged."""

    issued: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    acked: dict[tuple[int, int], bytes] = field(default_factory=dict)
    raised: set[tuple[int, int]] = field(default_factory=set)
    values: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    _open: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    _rest: bytes = b""

    def feed(self, data: bytes) -> None:
        """Take bytes from a pipe."""
        data = self._rest + data
        whole = len(data) - len(data) % RECORD.size
        self._rest = data[whole:]
        for what, worker, number, text in RECORD.iter_unpack(data[:whole]):
            if what == BEFORE:
                self.issued[text] = (worker, number)
                self._open[worker] = (number, text)
            elif what == AFTER:
                ordinal, sha = self._open.pop(worker)
                assert ordinal == number, "the victim's reports are out of step"
                self.acked[worker, number] = sha
            elif what == RAISED:
                self.raised.add((worker, number))
                self._open.pop(worker)
            else:
                self.values.setdefault(text.rstrip(b"\0").decode(), []).append((worker, number))

    def last(self, name: str, default: int = 0) -> int:
        """The last value of that name."""
        found = self.values.get(name)
        return found[-1][1] if found else default


class Ear:
    """A pipe to victims and the ledger that it fills."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self._read, self.write = os.pipe()
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            with contextlib.suppress(OSError):
                fcntl.fcntl(self.write, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        os.set_blocking(self._read, False)

    def started(self) -> None:
        """The victims have their end; the oracle's copy would hide that they are gone."""
        if self.write >= 0:
            os.close(self.write)
            self.write = -1

    def hear(self) -> bool:
        """Take what is there; False once every victim's end is closed."""
        while True:
            try:
                data = os.read(self._read, _PIPE_BYTES)
            except BlockingIOError:
                return True
            if not data:
                return False
            self.ledger.feed(data)

    def listen(self, seconds: float) -> bool:
        """Take what comes within that time; False if all victims ended."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if select.select([self._read], [], [], left)[0] and not self.hear():
                return False
        return True

    def wait_for(self, name: str, count: int = 1, timeout_s: float = 60.0) -> None:
        """Listen until that value was reported so often. Raises TimeoutError, EOFError if the victims end before."""
        deadline = time.monotonic() + timeout_s
        while len(self.ledger.values.get(name, [])) < count:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"no {name!r} from the victim within {timeout_s:.0f} s")
            if select.select([self._read], [], [], left)[0] and not self.hear():
                if len(self.ledger.values.get(name, [])) >= count:
                    return
                raise EOFError(f"the victim ended before it reported {name!r}")

    def wait_for_acks(self, count: int, timeout_s: float = 60.0) -> None:
        """Listen until so many calls have returned."""
        deadline = time.monotonic() + timeout_s
        while len(self.ledger.acked) < count:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"{len(self.ledger.acked)} of {count} calls returned within {timeout_s:.0f} s")
            if select.select([self._read], [], [], left)[0] and not self.hear():
                return

    def finish(self, timeout_s: float = 60.0) -> Ledger:
        """All that was said; the victims must be ending."""
        self.started()
        if self.listen(timeout_s):
            raise TimeoutError("somebody still holds the pipe to the oracle")
        return self.ledger

    def close(self) -> None:
        """Close both ends."""
        self.started()
        os.close(self._read)


@contextlib.contextmanager
def ear() -> Iterator[Ear]:
    """An ear for one trial."""
    made = Ear()
    try:
        yield made
    finally:
        made.close()


# -- judging ---------------------------------------------------------------------------------------------------------


def judge(journal: Path | disk.Journal, *ledgers: Ledger, may_lose: bool = False) -> list[str]:
    """What contradicts I1 (acknowledged is kept, once, in order) and I3 (nothing is invented).

    With `may_lose` acknowledged events may be missing (a disk that failed); what is there must still be right.
    """
    found = journal if isinstance(journal, disk.Journal) else disk.read_journal(journal)
    problems = list(found.problems)
    where: dict[bytes, list[tuple[str, int]]] = {}
    order: dict[int, list[int]] = {}
    issued: dict[bytes, tuple[int, int]] = {}
    for ledger in ledgers:
        issued |= ledger.issued
    for writer, seq, kind, _, body in found.in_order():
        if kind in _OWN_KINDS:
            continue
        sha = digest(kind, body)
        where.setdefault(sha, []).append((writer, seq))
        if sha not in issued:
            problems.append(f"event {seq} of {writer} was never issued: {kind} {str(body)[:200]}")
        else:
            worker, ordinal = issued[sha]
            order.setdefault(worker, []).append(ordinal)
    for sha, places in where.items():
        if len(places) > 1:
            problems.append(f"call {issued.get(sha)} stands under {len(places)} numbers: {places[:4]}")
    for worker, ordinals in order.items():
        if ordinals != sorted(ordinals):
            problems.append(f"the calls of worker {worker} are out of order")
    if not may_lose:
        lost = [key for ledger in ledgers for key, sha in ledger.acked.items() if sha not in where]
        if lost:
            problems.append(f"{len(lost)} acknowledged events are lost: {lost[:5]}")
    return problems


def gaps(journal: disk.Journal) -> dict[str, list[int]]:
    """Writer → numbers that are missing below its greatest one and that no `lost` event explains."""
    missing: dict[str, list[int]] = {}
    for writer, numbers in journal.writers().items():
        explained: set[int] = set()
        for number in numbers:
            kind, _, body = journal.events[writer, number]
            if kind == disk.LOST and "from" in body:
                explained.update(range(body["from"], body["to"] + 1))
        holes = [n for n in set(range(numbers[-1])) - set(numbers) if n not in explained]
        if holes:
            missing[writer] = sorted(holes)
    return missing


def kept_in(journal: Path | disk.Journal, ledger: Ledger) -> int:
    """How many of the acknowledged events are in the journal."""
    found = journal if isinstance(journal, disk.Journal) else disk.read_journal(journal)
    there = {digest(kind, body) for _, _, kind, _, body in found.in_order() if kind not in _OWN_KINDS}
    return sum(sha in there for sha in ledger.acked.values())


def check_blobs(journal: Path | disk.Journal, *, released_ok: bool = True) -> list[str]:
    """I-rule 11: an event that names a file is never without its whole content, unless that was released."""
    found = journal if isinstance(journal, disk.Journal) else disk.read_journal(journal)
    there = disk.blobs(found.path)
    problems = []
    later: set[tuple[str, str]] = set()
    for writer, seq, kind, _, body in reversed(list(found.in_order())):
        if kind == disk.FILE_DELETE:
            later.add(("id", str(body["id"])))
        if kind != disk.FILE:
            continue
        place = (str(body["prefix"]), str(body["filename"]))
        identity = ("id", file_id(writer, seq))
        released = released_ok and (place in later or identity in later)
        later.add(place)
        blob = there.get((writer, seq))
        if blob is None:
            if not released:
                problems.append(f"file event {seq} of {writer} has no blob")
            continue
        content = hashlib.sha256(blob.read_bytes()).hexdigest()
        if content != body["checksum"] or not blob.name.startswith(content):
            problems.append(f"blob {blob.name} holds {content}, the event says {body['checksum']}")
    return problems


def file_id(writer: str, seq: int) -> str:
    """The id of an added file: eight bytes of the SHA-256 of its event's identity, as decimal text."""
    identity = bytes.fromhex(writer) + seq.to_bytes(8, "big")
    return str(int.from_bytes(hashlib.sha256(identity).digest()[:8], "big"))
