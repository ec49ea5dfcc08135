"""Bring an experiment from a server to this machine: all of it, or only its state.

What is brought lies in a journal of this machine's own: segments keep the journal id that their headers name, so that
the uploader knows them for what the server has already, and `order` says how the server merged them. So log entries and
points have here the numbers that they have there. A new journal appears whole, by one rename.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol
from zlib import crc32

import msgspec

from . import blobs
from .durable import fail_point, replace_file, sync_folder, write_all
from .errors import Damaged, ForeignFolder, InvalidValue, JournalError, NotFound, ServerRefused, StillOpen
from .events import blob_name
from .frames import SPILL, SPILLED, LengthCrcs, OrderHeader, decode_header, encode_frame, encode_header
from .journal import base as bases
from .journal.base import Base
from .journal.order import DEATH, STRETCH, Order, Stretch, death_payload, stretch_payload
from .journal.reader import Run, Segment, open_segment, read
from .journal.segment import (
    BASE,
    BLOBS,
    CHECKPOINT,
    JOURNAL,
    ORDER,
    SEGMENTS,
    TURN,
    list_segments,
    parse_blob,
    parse_name,
    read_identity,
)
from .lock import Liveness, Turn, probe
from .projection.project import Projector
from .protocol import Digest, FoundExperiment, OrderPage
from .read import Located
from .state import State
from .view import look_anew

PAGE_BYTES: Final = 4 << 20
PAGE_RECORDS: Final = 10_000
_WAIT_S: Final = 30.0
_STALE_S: Final = 3600.0
_TRIES: Final = 3
_TEMPORARY: Final = ".pull-"
_ID: Final = re.compile(r"[0-9a-f]{32}")

Progress = Callable[[int, int], None]


class Source(Protocol):
    """A server, as far as a pull asks it (see docs/protocol.md)."""

    @property
    def name(self) -> str:
        """Its URL."""

    def find(self, project: str, name: str) -> FoundExperiment | None:
        """The experiment; None if the server does not have it."""

    def order(self, experiment: str, after: int, limit: int) -> OrderPage:
        """A page of what arrived, in the order of arrival."""

    def segment(self, segment: str, offset: int, limit: int) -> tuple[bytes, str, str]:
        """(bytes of a segment from `offset` on, its file name, the id of its journal)."""

    def digests(self, journal: str, wanted: dict[str, int]) -> Mapping[str, Digest]:
        """Segment id → SHA-256 of its first so many bytes."""

    def base(self, experiment: str) -> bytes:
        """The state of the experiment, see `journal.base.decode`."""

    def blob(self, experiment: str, name: str) -> Iterable[bytes]:
        """The content of a blob. Raises ServerRefused (404) if the server does not have it whole."""


@dataclass(frozen=True, slots=True)
class PullReport:
    """What a pull has brought. `missing`: contents that the server does not have yet; `conflicts`: segment → why."""

    located: Located
    events: int
    segments: int
    blobs: int
    bytes: int
    state_only: bool
    new: bool
    missing: tuple[str, ...] = ()
    conflicts: dict[str, str] = field(default_factory=dict)


class _BaseChanged(Exception):
    """Another gc or pull was faster."""


class Stopped(Exception):
    """Whoever asked for a pull does not wait for it any more; nothing was put in place."""


class Permit:
    """May what was brought be put in place? Whoever waits for it may say that it is too late."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._stopped = False
        self._taken = False
        self._placed = threading.Event()

    def take(self) -> None:
        """Raises Stopped if it is too late."""
        with self._guard:
            if self._stopped:
                raise Stopped
            self._taken = True

    def check(self) -> None:
        """The same, before anything else is asked for."""
        if self._stopped:
            raise Stopped

    def done(self) -> None:
        """It is in place."""
        self._placed.set()

    @property
    def placed(self) -> bool:
        """Is it in place?"""
        return self._placed.is_set()

    def wait_placed(self, timeout_s: float) -> bool:
        """Wait until it is in place."""
        return self._placed.wait(timeout_s)

    def stop(self) -> bool:
        """It is too late from now on; False if it was put in place already."""
        with self._guard:
            self._stopped = not self._taken
            return self._stopped


def pull(
    source: Source,
    located: Located,
    *,
    state_only: bool = False,
    files: bool | None = None,
    fill: bool = True,
    permit: Permit | None = None,
    progress: Progress | None = None,
) -> PullReport:
    """Bring the experiment `located.project`/`located.name` to where `located` says, or what of it is missing there.

    With `state_only` a base stands for all segments; contents of files come only with `files` then. Without `fill`
    what a base stands for here stays on the server. On return what was brought is durable.

    Raises NotFound if the server does not have the experiment, InvalidValue if the state alone is asked for of one
    whose journal is here, RemoteError if the server does not answer or answers something else; nothing changed then.
    """
    found = source.find(located.project, located.name)
    if found is None:
        raise NotFound(
            f"{source.name} has no experiment {located.project}/{located.name}",
            hint="it may not be sent yet, or belong to another user; see: ml-dash whoami",
        )
    work = _Pull(source, located, found["experiment"], permit or Permit(), progress)
    with_files = not state_only if files is None else files
    if not (located.journal / SEGMENTS).is_dir():
        with contextlib.suppress(FileExistsError):
            return work.into_nothing(state_only, with_files)
    identity = read_identity(located.journal)
    if (identity.project, identity.name) != (located.project, located.name):
        raise ForeignFolder(
            f"{located.journal} holds experiment {identity.project}/{identity.name}, not "
            f"{located.project}/{located.name}",
            hint="name another place with --path",
        )
    return work.into_journal(state_only, with_files, fill)


class _Pull:
    """One pull of one experiment."""

    def __init__(
        self, source: Source, located: Located, experiment: str, permit: Permit, progress: Progress | None
    ) -> None:
        self.source = source
        self.located = located
        self.journal = located.journal
        self.experiment = experiment
        self.permit = permit
        self.progress = progress or (lambda done, total: None)
        self.segments = 0
        self.blobs = 0
        self.bytes = 0
        self.total = 0
        self.missing: list[str] = []
        self.conflicts: dict[str, str] = {}

    # -- where nothing is yet ----------------------------------------------------------------------------------------

    def into_nothing(self, state_only: bool, files: bool) -> PullReport:
        """A new journal. Raises FileExistsError if another process has made one meanwhile."""
        home = self.journal.parent
        for place in {home, self.located.folder}:
            _refuse_foreign(place)
        _make_store(home.parents[1])
        home.mkdir(parents=True, exist_ok=True)
        _sweep(home)
        temporary = home / f"{JOURNAL}{_TEMPORARY}{os.urandom(6).hex()}.tmp"
        (temporary / SEGMENTS).mkdir(parents=True)
        (temporary / BLOBS).mkdir()
        try:
            with _lived_in(temporary):
                state = self._bring_new(temporary, state_only, files)
                self.permit.take()
                fail_point("pull-brought")
                self._rename(temporary)
                fail_point("pull-placed")
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        for folder in (home, home.parent, home.parent.parent):
            sync_folder(folder)
        self.permit.done()
        if not state_only:
            Projector(self.journal, self.located.folder).advance(wait_s=_WAIT_S)
        return self._report(state, state_only=state_only, new=True)

    def _bring_new(self, into: Path, state_only: bool, files: bool) -> State:
        """Make a journal, complete and synced; its state."""
        identity = OrderHeader(os.urandom(16), self.located.project, self.located.name)
        records: list[bytes] = []
        if state_only:
            bases.save(into, identity, self._remote_base())
        else:
            records = self._bring_all(into)
        _write_order(into, identity, records)
        state = look_anew(into, self.located.folder).state
        if files:
            self._bring_files(state, into)
        for folder in (into / SEGMENTS, into / BLOBS, into):
            sync_folder(folder)
        return state

    def _bring_all(self, into: Path) -> list[bytes]:
        """All segments and the bodies that belong to them; the records of the server's order."""
        records = list(_joined(self._records()))
        self._bring_segments(_totals(records), into)
        self._bring_bodies(into)
        return list(map(_payload, records))

    def _rename(self, temporary: Path) -> None:
        try:
            os.rename(temporary, self.journal)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.EACCES, errno.EISDIR) and self.journal.is_dir():
                raise FileExistsError(error.errno, "another process has made this journal", str(self.journal)) from None
            raise

    def _report(self, state: State, *, state_only: bool, new: bool) -> PullReport:
        return PullReport(
            self.located, state.events, self.segments, self.blobs, self.bytes, state_only, new,
            tuple(sorted(set(self.missing))), dict(sorted(self.conflicts.items())),
        )  # fmt: skip

    # -- what the server says ----------------------------------------------------------------------------------------

    def _remote_base(self) -> Base:
        body = self.source.base(self.experiment)
        self.bytes += len(body)
        try:
            base = bases.decode(body)
        except Damaged as error:
            raise Damaged(f"{self.source.name} answered with something that is no base: {error.message}") from None
        if (base.project, base.name) != (self.located.project, self.located.name):
            raise Damaged(f"{self.source.name} answered with the base of {base.project}/{base.name}")
        # What only this machine could say.
        return replace(base, order_identity="", order_position=0, folder_path="", kept={})

    def _records(self) -> Iterator[list[Any]]:
        after: int | None = 0
        while after is not None:
            page = self.source.order(self.experiment, after, PAGE_RECORDS)
            yield from map(_checked, page["records"])
            following = page["next"]
            after = following if page["records"] and following is not None and following > after else None

    # -- segments ----------------------------------------------------------------------------------------------------

    def _bring_segments(self, totals: dict[str, int], into: Path) -> None:
        """Put so many bytes of each segment into a journal, checked and synced."""
        self.total += sum(totals.values())
        brought: dict[str, dict[str, tuple[int, str]]] = {}
        for identity, length in totals.items():
            journal, digest = self._bring_segment(identity, length, into)
            brought.setdefault(journal, {})[identity] = length, digest
        for journal, segments in brought.items():
            answer = self.source.digests(journal, {identity: length for identity, (length, _) in segments.items()})
            for identity, (length, digest) in segments.items():
                proof = answer.get(identity)
                if proof is None or (proof["of"], proof["sha256"]) != (length, digest):
                    raise Damaged(
                        f"segment {identity} came with other bytes than {self.source.name} says that it has",
                        hint="try again; nothing was put in place",
                    )

    def _bring_segment(self, identity: str, length: int, into: Path) -> tuple[str, str]:
        """(id of its journal, SHA-256 of what came)."""
        digest, offset, file, journal = hashlib.sha256(), 0, "", ""
        temporary = into / SEGMENTS / f".{identity}.tmp"
        with temporary.open("wb") as target:
            while offset < length:
                data, file, journal = self.source.segment(identity, offset, min(PAGE_BYTES, length - offset))
                data = data[: length - offset]
                if not data:
                    raise Damaged(f"{self.source.name} has {offset} bytes of segment {identity}, and said {length}")
                write_all(target.fileno(), data)
                digest.update(data)
                offset += len(data)
                self._count(len(data))
            os.fsync(target.fileno())
        name = parse_name(file)
        with temporary.open("rb") as source:
            header = decode_header(source.read(1 << 16))[0]
        known = (header.segment.hex(), header.writer.hex(), header.journal.hex())
        if name is None or known != (identity, name.writer, journal):
            raise Damaged(f"{self.source.name} answered with something that is not segment {identity}")
        os.replace(temporary, into / SEGMENTS / file)
        self.segments += 1
        return journal, digest.hexdigest()

    def _count(self, size: int) -> None:
        self.permit.check()
        self.bytes += size
        self.progress(self.bytes, self.total)

    # -- blobs -------------------------------------------------------------------------------------------------------

    def _bring_bodies(self, into: Path) -> None:
        """Bodies of events that were too long for a frame: without them their events cannot be folded."""
        for _, path in list_segments(into):
            segment = open_segment(path)
            items = read(segment, segment.first) if segment is not None else ()
            for item in items:
                for name in _spilled(segment, item) if isinstance(item, Run) and segment is not None else ():
                    self._bring_blob(name, into)

    def _bring_files(self, state: State, into: Path) -> bool:
        """The contents of all files that are listed; was there any to bring?"""
        wanted = {file.blob: file.size_bytes for file in state.files.values() if file.live}
        present = blobs.names(into)
        lacking = [name for name, size in wanted.items() if present.get(name) != size]
        self.total += sum(wanted[name] for name in lacking)
        for name in lacking:
            self._bring_blob(name, into)
        return bool(lacking)

    def _bring_blob(self, name: str, into: Path) -> None:
        try:
            bring_blob(self.source, self.experiment, name, into, self._count)
            self.blobs += 1
        except ServerRefused as error:
            if error.status != 404:
                raise
            self.missing.append(name)

    # -- where a journal is ------------------------------------------------------------------------------------------

    def into_journal(self, state_only: bool, files: bool, fill: bool) -> PullReport:
        """Bring what is missing, put it in place, and fold it."""
        for _ in range(_TRIES - 1):
            with contextlib.suppress(_BaseChanged):
                return self._into_journal(state_only, files, fill)
        try:
            return self._into_journal(state_only, files, fill)
        except _BaseChanged:
            raise StillOpen(
                f"the base of {self.journal} changed each time that something was brought; nothing was put in place",
                hint="another gc or pull is at work there; try again when it has ended",
            ) from None

    def _into_journal(self, state_only: bool, files: bool, fill: bool) -> PullReport:
        self.mark = _mark(self.journal / BASE)
        trouble: JournalError | None = None
        base: Base | None = None
        try:
            base = bases.load(self.journal)
        except JournalError as error:
            trouble = error
        if state_only and base is None and trouble is None:
            raise InvalidValue(
                f"{self.located.project}/{self.located.name} is in {self.journal} with its journal, not only its state",
                hint="pull without --state-only brings what is missing there",
            )
        _sweep(self.journal.parent, self.journal, self.journal / BLOBS)
        scratch = self.journal / f"{_TEMPORARY}{os.urandom(6).hex()}.tmp"
        (scratch / SEGMENTS).mkdir(parents=True)
        (scratch / BLOBS).mkdir()
        projector = Projector(self.journal, self.located.folder)
        try:
            with _lived_in(scratch):
                if state_only:
                    self._renew_base(base, projector)
                else:
                    if base is not None and fill:
                        # Only the base says that they are on a server, and it goes.
                        self._bring_files(look_anew(self.journal, self.located.folder).state, self.journal)
                    self._complete(base, trouble, fill, scratch, projector)
            self.permit.done()
            state = look_anew(self.journal, self.located.folder).state
            if files and self._bring_files(state, self.journal):
                with projector.having_turn(_WAIT_S) as taken:
                    if not taken:
                        raise StillOpen(f"the folder {self.located.folder} is being written; run: ml-dash rebuild")
                    (self.journal / CHECKPOINT).unlink(missing_ok=True)
                    projector.begin_at_base()
            elif not state_only:
                projector.advance(wait_s=_WAIT_S)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return self._report(state, state_only=state_only, new=False)

    @contextlib.contextmanager
    def _turn(self, projector: Projector) -> Iterator[None]:
        """To put things in place. Raises _BaseChanged if the base is not the one that was looked at."""
        with projector.having_turn(_WAIT_S) as taken:
            if not taken:
                raise StillOpen(f"the folder {self.located.folder} is being written; nothing was put in place")
            if _mark(self.journal / BASE) != self.mark:
                raise _BaseChanged
            self.permit.take()
            fail_point("pull-brought")
            yield

    def _renew_base(self, old: Base | None, projector: Projector) -> None:
        """The server's state of now instead of the base that is here."""
        if old is not None and old.kept:
            raise InvalidValue(
                f"{self.located.folder} keeps lines that gc was told to keep; only the whole journal can replace them",
                hint="pull without --state-only",
            )
        new = self._remote_base()
        for identity, stood in (old.segments if old is not None else {}).items():
            if identity not in new.segments or new.segments[identity].length < stood.length:
                raise Damaged(
                    f"{self.source.name} does not hold segment {stood.file}, for which the base in {self.journal} "
                    "stands; the base was kept",
                    hint="the server may have been restored from an older backup",
                )
        with self._turn(projector):
            if old is None:
                self._set_base_aside()
            bases.save(self.journal, read_identity(self.journal), new)
            (self.journal / CHECKPOINT).unlink(missing_ok=True)
            projector.begin_at_base()

    def _set_base_aside(self) -> None:
        """A base that cannot be read: what it holds may be of use to somebody all the same."""
        os.link(self.journal / BASE, self.journal / f"{BASE}.damaged.{os.urandom(4).hex()}")

    def _complete(
        self, base: Base | None, trouble: JournalError | None, fill: bool, scratch: Path, projector: Projector
    ) -> None:
        """Bring segments that are missing here; with `fill`, or a useless base, also those that it stands for."""
        records = list(_joined(self._records()))
        totals = _totals(records)
        replaces_base = trouble is not None or (base is not None and fill)
        stood = base.segments if base is not None and not replaces_base else {}
        here = _local_segments(self.journal)
        wanted = {
            identity: length
            for identity, length in totals.items()
            if (identity not in stood or stood[identity].length < length)
            and (identity not in here or self._may_replace(here[identity], length))
        }
        self._bring_segments(wanted, scratch)
        self._bring_bodies(scratch)
        if replaces_base:
            self._refuse_loss(base, here, totals)
        if not wanted and not replaces_base and not self._follows_otherwise(records):
            return
        with self._turn(projector):
            adopts = replaces_base or self._is_copy()
            if not adopts:
                projector.advance_in_turn()
            self._place(scratch)
            fail_point("pull-placed")
            if not adopts:
                self._append_order(records, set(wanted))
                projector.advance_in_turn()
                return
            self._adopt_order(records, totals)
            fail_point("pull-order")
            if trouble is not None:
                self._set_base_aside()
            (self.journal / BASE).unlink(missing_ok=True)
            sync_folder(self.journal)
            fail_point("pull-base")
            (self.journal / CHECKPOINT).unlink(missing_ok=True)
            projector.begin_at_base()

    def _is_copy(self) -> bool:
        """Did nobody write to this journal? Then all that it has came from the server, and so does its order."""
        own = read_identity(self.journal).journal
        here = _local_segments(self.journal).values()
        return not bases.exists(self.journal) and all(segment.header.journal != own for segment, _ in here)

    def _follows_otherwise(self, records: list[list[Any]]) -> bool:
        """Is this a copy with another order than the server's? A pull that was killed may have left it so."""
        order = Order(self.journal)
        order.open(write=False)
        try:
            here = [
                [STRETCH, record.segment, record.start, record.end]
                if isinstance(record, Stretch)
                else [DEATH, record.writer, record.segment, record.end]
                for record, _ in order.read(0)
            ]
        finally:
            order.close()
        return self._is_copy() and list(_joined(here)) != records

    def _may_replace(self, local: tuple[Segment, int], length: int) -> bool:
        """Is what is here only the beginning of what the server has, and of a writer that has ended?"""
        segment, size = local
        if size >= length:
            return False
        if probe(segment.path.with_name(segment.name.lock)) is not Liveness.GONE:
            self.conflicts[segment.path.name] = "the server has more of it, and its writer may be alive here"
            return False
        end = _last_frame_end(segment)
        proof = self.source.digests(segment.header.journal.hex(), {segment.id: end}).get(segment.id)
        if proof is None or (proof["of"], proof["sha256"]) != (end, blobs.digest_of(segment.path, end)):
            self.conflicts[segment.path.name] = "other events are in it here than on the server; it was left as it is"
            return False
        return True

    def _refuse_loss(self, base: Base | None, here: dict[str, tuple[Segment, int]], totals: dict[str, int]) -> None:
        """The base goes only when everything that it stands for is here."""
        if base is not None:
            stood = {identity: one.length for identity, one in base.segments.items()}
        else:
            stood = _ends_in(self.journal)
        for identity, length in stood.items():
            size = here[identity][1] if identity in here else 0
            if max(size, totals.get(identity, 0)) < length:
                raise Damaged(
                    f"{self.source.name} holds {totals.get(identity, 0)} of {length} bytes of segment {identity}, for "
                    f"which {self.journal / BASE} stands; nothing was changed",
                    hint="another server may hold them, or wait until all has been sent",
                )

    def _place(self, scratch: Path) -> None:
        local = _local_segments(self.journal).items()
        here = {segment.path.name: (identity, size) for identity, (segment, size) in local}
        for path in (scratch / BLOBS).iterdir():
            os.replace(path, self.journal / BLOBS / path.name)
        sync_folder(self.journal / BLOBS)
        for identity, (segment, size) in _local_segments(scratch).items():
            target = self.journal / SEGMENTS / segment.path.name
            if target.exists() and here.get(target.name, ("", 0))[0] != identity:
                raise Damaged(f"{target} is there, and is not the segment of that name that {self.source.name} has")
            # Another pull may have brought more of it meanwhile.
            if size > here.get(target.name, ("", 0))[1]:
                os.replace(segment.path, target)
        sync_folder(self.journal / SEGMENTS)

    def _adopt_order(self, records: list[list[Any]], totals: dict[str, int]) -> None:
        """The server's order; behind it, in the order they have here, bytes that the server does not have yet."""
        payloads = list(map(_payload, records))
        order = Order(self.journal)
        order.open(write=False)
        try:
            for record, _ in order.read(0):
                if isinstance(record, Stretch):
                    start = max(record.start, totals.get(record.segment, 0))
                    if start < record.end:
                        payloads.append(stretch_payload(record.segment, start, record.end))
        finally:
            order.close()
        identity = replace(read_identity(self.journal), nonce=os.urandom(8))
        _write_order(self.journal, identity, payloads)

    def _append_order(self, records: list[list[Any]], brought: set[str]) -> None:
        """Say of what was brought in which order the server merged it."""
        here = _local_segments(self.journal)
        writers = {segment.writer for identity, (segment, _) in here.items() if identity in brought}
        order = Order(self.journal)
        order.open(write=True)
        try:
            named = _ends(order)
            payloads = []
            for kind, who, third, end in records:
                if kind != STRETCH and who in writers:
                    payloads.append(death_payload(who, third, end))
                elif kind == STRETCH and who in brought and end > named.get(who, 0):
                    payloads.append(stretch_payload(who, max(third, named.get(who, 0)), end))
            if payloads:
                order.append(payloads)
                order.sync()
        finally:
            order.close()


def bring_blob(
    source: Source, experiment: str, name: str, journal: Path, count: Callable[[int], None] = lambda size: None
) -> Path:
    """Put a blob into a journal, its digest checked and synced; where it lies.

    Raises ServerRefused if the server does not have it whole, Damaged if it sends something else.
    """
    parsed = parse_blob(name)
    assert parsed is not None
    temporary = journal / BLOBS / f"{_TEMPORARY}{os.urandom(8).hex()}.tmp"
    digest = hashlib.sha256()
    try:
        with temporary.open("xb") as target:
            for block in source.blob(experiment, name):
                write_all(target.fileno(), block)
                digest.update(block)
                count(len(block))
            os.fsync(target.fileno())
        if digest.hexdigest() != parsed[0]:
            raise Damaged(
                f"{source.name} sent content with SHA-256 {digest.hexdigest()}, expected {parsed[0]}", hint="try again"
            )
        temporary.chmod(0o444)
        os.replace(temporary, journal / BLOBS / name)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(journal / BLOBS)
    return journal / BLOBS / name


# -- what a server's order says --------------------------------------------------------------------------------------


def _checked(record: Any) -> list[Any]:
    """A record of a server's order; raises Damaged if it is none."""
    kind, who, third, end = record if isinstance(record, list) and len(record) == 4 else (0, "", 0, 0)
    sound = isinstance(who, str) and _ID.fullmatch(who) is not None and type(end) is int and end >= 0
    if kind == STRETCH:
        sound = sound and type(third) is int and 0 <= third <= end
    else:
        sound = sound and kind == DEATH and isinstance(third, str) and _ID.fullmatch(third) is not None
    if not sound:
        raise Damaged(f"the server's order holds {str(record)[:200]!r}, which is no record of an order")
    return [kind, who, third, end]


def _joined(records: Iterable[list[Any]]) -> Iterator[list[Any]]:
    """Stretches that go on where the one before ended are one; uploads come in small pieces."""
    waiting: list[Any] | None = None
    for record in records:
        if waiting is not None and record[:3] == [STRETCH, waiting[1], waiting[3]] and waiting[0] == STRETCH:
            waiting[3] = record[3]
            continue
        if waiting is not None:
            yield waiting
        waiting = list(record)
    if waiting is not None:
        yield waiting


def _totals(records: list[list[Any]]) -> dict[str, int]:
    """Segment id → so many bytes of it the server has merged."""
    totals: dict[str, int] = {}
    for kind, who, _, end in records:
        if kind == STRETCH:
            totals[who] = max(totals.get(who, 0), end)
    return totals


def _payload(record: list[Any]) -> bytes:
    kind, who, third, end = record
    return stretch_payload(who, third, end) if kind == STRETCH else death_payload(who, third, end)


# -- what is here ----------------------------------------------------------------------------------------------------


def _write_order(journal: Path, identity: OrderHeader, payloads: list[bytes]) -> None:
    header = encode_header(identity)
    crcs = LengthCrcs(int.from_bytes(header[-4:], "little"))
    replace_file(journal / ORDER, header + b"".join(encode_frame(payload, crcs) for payload in payloads), sync=True)


def _ends(order: Order) -> dict[str, int]:
    """Segment id → how much of it an order names."""
    named: dict[str, int] = {}
    for record, _ in order.read(0):
        if isinstance(record, Stretch):
            named[record.segment] = max(named.get(record.segment, 0), record.end)
    return named


def _ends_in(journal: Path) -> dict[str, int]:
    order = Order(journal)
    order.open(write=False)
    try:
        return _ends(order)
    finally:
        order.close()


def _local_segments(journal: Path) -> dict[str, tuple[Segment, int]]:
    """Segment id → the segment, and its size in bytes; those whose header cannot be read are left out."""
    found = {}
    for _, path in list_segments(journal):
        with contextlib.suppress(OSError, JournalError):
            segment = open_segment(path)
            if segment is not None:
                found[segment.id] = segment, path.stat().st_size
    return found


def _last_frame_end(segment: Segment) -> int:
    end = segment.first
    for item in read(segment, segment.first):
        if isinstance(item, Run):
            end = item.end
    return end


def _spilled(segment: Segment, run: Run) -> Iterator[str]:
    """The blobs that bodies of a run are kept in."""
    for seq, _, _, body in run.events:
        if not isinstance(body, msgspec.msgpack.Ext) or body.code != SPILLED:
            continue
        if len(data := bytes(body.data)) == SPILL.size:
            yield blob_name(SPILL.unpack(data)[0].hex(), segment.writer, seq)


def _make_store(store: Path) -> None:
    """A store is not for version control."""
    if not store.exists():
        store.mkdir(parents=True, exist_ok=True)
        replace_file(store / ".gitignore", b"*\n")


def _refuse_foreign(home: Path) -> None:
    try:
        found = [entry for entry in os.listdir(home) if not entry.startswith(JOURNAL)]
    except FileNotFoundError:
        return
    if found:
        raise ForeignFolder(
            f"{home} is not empty and holds no journal of ml-dash (it holds {sorted(found)[0]!r}); it was left alone",
            hint="name another place with --path",
        )


def _mark(base: Path) -> tuple[int, int]:
    """What tells this base, good or not, from another one."""
    try:
        content = base.read_bytes()
    except FileNotFoundError:
        return 0, 0
    return len(content), crc32(content)


@contextlib.contextmanager
def _lived_in(temporary: Path) -> Iterator[None]:
    """Keep a lock in a folder, so that others see that somebody works there; it may be renamed meanwhile."""
    turn = Turn(temporary / TURN)
    if os.name != "nt":
        # Windows does not rename a folder with an open file in it. There only its age says that nobody is left.
        turn.take()
    try:
        yield
    finally:
        turn.give_back()


def _sweep(*places: Path) -> None:
    """Remove what pulls have left that were killed."""
    for left in [left for place in places for left in place.glob(f"*{_TEMPORARY}*.tmp")]:
        with contextlib.suppress(OSError):
            lock = left / TURN
            newest = max(path.stat().st_mtime for path in (left, *left.rglob("*")))
            if not (lock.exists() and probe(lock) is Liveness.GONE) and time.time() - newest <= _STALE_S:
                continue
            if not left.is_dir():
                left.unlink()
                continue
            # By another name first: where locks say nothing, whoever is at work there must not find a part of it.
            doomed = left.with_name(f"{left.name.removesuffix('.tmp')}-.tmp")
            left.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
