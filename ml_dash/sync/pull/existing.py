"""Pulling into a journal that is here already: missing bytes added, the server's order adopted."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from zlib import crc32

from ...disk.durable import fail_point, sync_folder
from ...disk.lock import Liveness, probe
from ...errors import Damaged, InvalidValue, JournalError, StillOpen
from ...journal import base as bases
from ...journal import blobs
from ...journal.base import Base
from ...journal.order import DEATH, STRETCH, MergeRecord, Order, death_payload, stretch_payload
from ...journal.reader import Segment, last_frame_end, open_segment
from ...journal.segment import BASE, BLOBS, CHECKPOINT, SEGMENTS, list_segments, read_identity
from ...projection.projector import TURN_WAIT_S, Projector
from ...reading.view import look_anew
from .download import Download, PullReport
from .order import ends, ends_in, joined, lengths, payload, write_order
from .scratch import locked_while_used, scratch_in, sweep

_TRIES: Final = 3


class _BaseChanged(Exception):
    """Another gc or pull has replaced the base meanwhile."""


class Join:
    """One pull into a journal that exists. `mark` identifies the base that the decisions rest on."""

    def __init__(self, download: Download) -> None:
        self.download = download
        self.located = download.located
        self.journal = download.located.journal
        self.server = download.source.name
        self.mark = (0, 0)

    def bring(self, state_only: bool, files: bool, fill: bool) -> PullReport:
        """Download what is missing, put it in place, and fold it; try again if another gc or pull changes the base."""
        for _ in range(_TRIES - 1):
            with contextlib.suppress(_BaseChanged):
                return self._bring(state_only, files, fill)
        try:
            return self._bring(state_only, files, fill)
        except _BaseChanged:
            raise StillOpen(
                f"the base of {self.journal} changed each time that something was brought; nothing was put in place",
                hint="another gc or pull is at work there; try again when it has ended",
            ) from None

    def _bring(self, state_only: bool, files: bool, fill: bool) -> PullReport:
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
        sweep(self.journal.parent, self.journal, self.journal / BLOBS)
        scratch = scratch_in(self.journal)
        (scratch / SEGMENTS).mkdir(parents=True)
        (scratch / BLOBS).mkdir()
        projector = Projector(self.journal, self.located.folder)
        try:
            with locked_while_used(scratch):
                if state_only:
                    self._renew_base(base, projector)
                else:
                    if base is not None and fill:
                        # Only the base records which contents a server alone has, and the base goes.
                        self.download.bring_files(look_anew(self.journal, self.located.folder).state, self.journal)
                    self._complete(base, trouble, fill, scratch, projector)
            self.download.deadline.mark_placed()
            state = look_anew(self.journal, self.located.folder).state
            if files and self.download.bring_files(state, self.journal):
                with projector.having_turn(TURN_WAIT_S) as taken:
                    if not taken:
                        raise StillOpen(f"the folder {self.located.folder} is being written; run: ml-dash rebuild")
                    (self.journal / CHECKPOINT).unlink(missing_ok=True)
                    projector.begin_at_base()
            elif not state_only:
                projector.advance(wait_s=TURN_WAIT_S)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return self.download.report(state, state_only=state_only, new=False)

    @contextlib.contextmanager
    def _turn(self, projector: Projector) -> Iterator[None]:
        """Hold the turn while things are put in place. Raises _BaseChanged if the base is not that of `mark`."""
        with projector.having_turn(TURN_WAIT_S) as taken:
            if not taken:
                raise StillOpen(f"the folder {self.located.folder} is being written; nothing was put in place")
            if _mark(self.journal / BASE) != self.mark:
                raise _BaseChanged
            self.download.deadline.begin_placing()
            fail_point("pull-brought")
            yield

    def _renew_base(self, old: Base | None, projector: Projector) -> None:
        """Replace the base that is here with the server's present state."""
        if old is not None and old.kept:
            raise InvalidValue(
                f"{self.located.folder} keeps lines that gc was told to keep; only the whole journal can replace them",
                hint="pull without --state-only",
            )
        new = self.download.remote_base()
        for identity, stood in (old.segments if old is not None else {}).items():
            if identity not in new.segments or new.segments[identity].length < stood.length:
                raise Damaged(
                    f"{self.server} does not hold segment {stood.file}, for which the base in {self.journal} "
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
        """Keep a base that cannot be read under another name: some of it may still be recovered."""
        os.link(self.journal / BASE, self.journal / f"{BASE}.damaged.{os.urandom(4).hex()}")

    def _complete(
        self, base: Base | None, trouble: JournalError | None, fill: bool, scratch: Path, projector: Projector
    ) -> None:
        """Download segments that are missing; with `fill`, or an unreadable base, also those that it stands for."""
        records = list(joined(self.download.records()))
        totals = lengths(records)
        replaces_base = trouble is not None or (base is not None and fill)
        stood = base.segments if base is not None and not replaces_base else {}
        here = local_segments(self.journal)
        wanted = {
            identity: length
            for identity, length in totals.items()
            if (identity not in stood or stood[identity].length < length)
            and (identity not in here or self._may_replace(here[identity], length))
        }
        self.download.bring_segments(wanted, scratch)
        self.download.bring_bodies(scratch)
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
        """True if no segment was written into this journal: all were downloaded, and so was the order."""
        own = read_identity(self.journal).journal
        here = local_segments(self.journal).values()
        return not bases.exists(self.journal) and all(segment.header.journal != own for segment, _ in here)

    def _follows_otherwise(self, records: list[list[Any]]) -> bool:
        """True for a copy with another order than the server's: a pull that was killed may leave one."""
        order = Order(self.journal)
        order.open(write=False)
        try:
            here = [
                [STRETCH, record.segment, record.start, record.end]
                if isinstance(record, MergeRecord)
                else [DEATH, record.writer, record.segment, record.end]
                for record, _ in order.read(0)
            ]
        finally:
            order.close()
        return self._is_copy() and list(joined(here)) != records

    def _may_replace(self, local: tuple[Segment, int], length: int) -> bool:
        """True if the segment here is a beginning of the server's, and its writer has ended."""
        segment, size = local
        if size >= length:
            return False
        if probe(segment.path.with_name(segment.name.lock)) is not Liveness.GONE:
            self._leave(segment, "the server has more of it, and its writer may be alive here")
            return False
        end = last_frame_end(segment, size)
        proof = self.download.source.digests(segment.header.journal.hex(), {segment.id: end}).get(segment.id)
        if proof is None or (proof["of"], proof["sha256"]) != (end, blobs.digest_of(segment.path, end)):
            self._leave(segment, "other events are in it here than on the server; it was left as it is")
            return False
        return True

    def _leave(self, segment: Segment, why: str) -> None:
        self.download.conflicts[segment.path.name] = why

    def _refuse_loss(self, base: Base | None, here: dict[str, tuple[Segment, int]], totals: dict[str, int]) -> None:
        """Raise Damaged unless every segment that the base stands for is here or on the server, in full length."""
        if base is not None:
            stood = {identity: freed.length for identity, freed in base.segments.items()}
        else:
            stood = ends_in(self.journal)
        for identity, length in stood.items():
            size = here[identity][1] if identity in here else 0
            if max(size, totals.get(identity, 0)) < length:
                raise Damaged(
                    f"{self.server} holds {totals.get(identity, 0)} of {length} bytes of segment {identity}, for "
                    f"which {self.journal / BASE} stands; nothing was changed",
                    hint="another server may hold them, or wait until all has been sent",
                )

    def _place(self, scratch: Path) -> None:
        local = local_segments(self.journal).items()
        here = {segment.path.name: (identity, size) for identity, (segment, size) in local}
        for path in (scratch / BLOBS).iterdir():
            os.replace(path, self.journal / BLOBS / path.name)
        sync_folder(self.journal / BLOBS)
        for identity, (segment, size) in local_segments(scratch).items():
            target = self.journal / SEGMENTS / segment.path.name
            if target.exists() and here.get(target.name, ("", 0))[0] != identity:
                raise Damaged(f"{target} is there, and is not the segment of that name that {self.server} has")
            # Another pull may have brought more of it meanwhile.
            if size > here.get(target.name, ("", 0))[1]:
                os.replace(segment.path, target)
        sync_folder(self.journal / SEGMENTS)

    def _adopt_order(self, records: list[list[Any]], totals: dict[str, int]) -> None:
        """Write the server's order, then the bytes that the server does not have yet, in their present order."""
        payloads = list(map(payload, records))
        order = Order(self.journal)
        order.open(write=False)
        try:
            for record, _ in order.read(0):
                if isinstance(record, MergeRecord):
                    start = max(record.start, totals.get(record.segment, 0))
                    if start < record.end:
                        payloads.append(stretch_payload(record.segment, start, record.end))
        finally:
            order.close()
        identity = read_identity(self.journal)._replace(nonce=os.urandom(8))
        write_order(self.journal, identity, payloads)

    def _append_order(self, records: list[list[Any]], brought: set[str]) -> None:
        """Append to `order`, for the segments that were downloaded, the order in which the server merged them."""
        here = local_segments(self.journal)
        writers = {segment.writer for identity, (segment, _) in here.items() if identity in brought}
        order = Order(self.journal)
        order.open(write=True)
        try:
            named = ends(order)
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


def local_segments(journal: Path) -> dict[str, tuple[Segment, int]]:
    """Return segment id → (segment, size in bytes); segments whose header cannot be read are left out."""
    segments = {}
    for _, path in list_segments(journal):
        with contextlib.suppress(OSError, JournalError):
            segment = open_segment(path)
            if segment is not None:
                segments[segment.id] = segment, path.stat().st_size
    return segments


def _mark(base: Path) -> tuple[int, int]:
    """Return size and CRC-32 of a base, readable or not: different for different bases."""
    try:
        content = base.read_bytes()
    except FileNotFoundError:
        return 0, 0
    return len(content), crc32(content)
