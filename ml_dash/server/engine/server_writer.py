"""What comes by REST becomes events: the server is a writer of its own, in a journal of its own for each experiment."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import time_ns
from typing import Any, Final

import msgspec

from ...core import events as ev
from ...core.fold import fold_death
from ...core.frames import MAX_PAYLOAD, Header, LengthCrcs, encode_frame, encode_header
from ...core.limits import LATEST_NS
from ...core.names import check_metric_name, check_name, experiment_id
from ...core.protocol import UNKNOWN, Refused
from ...core.state import Edits, State
from ...core.version import __version__
from ...errors import InvalidInput, InvalidValue, WriteProtected
from ...journal.segment import ROLL_BYTES, SegmentName
from ..stores import Write
from .ingest import DEATH, Ingest, Live

New = tuple[int, Any, int | None]
"""(kind, body, time in ns or None for now)."""

_encode: Final = msgspec.msgpack.Encoder().encode
_ROWS_AT_ONCE: Final = 2_000
_PENS_KEPT: Final = 1_000
# A register goes to the greatest stamp: what is set here, by somebody who saw the rest, comes behind all of that.
_REGISTERS: Final = frozenset((ev.PARAMETERS, ev.UPDATE, ev.METRIC, ev.FILE, ev.FILE_UPDATE, ev.FILE_DELETE))


@dataclass(slots=True)
class Pen:
    """The segment of this server for one experiment, as far as it is committed."""

    journal: bytes
    writer: bytes
    segment: SegmentName
    crcs: LengthCrcs
    header: bytes
    seq: int = 0
    length: int = 0
    last_ns: int = 0


class Scribe:
    """Writes events for those that have no journal. Any thread may call."""

    def __init__(self, ingest: Ingest) -> None:
        self._ingest = ingest
        self._guard = threading.Lock()
        self._pens: dict[tuple[str, str], Pen] = {}

    def write(
        self,
        ns: str,
        project: str,
        name: str,
        make: Callable[[State, str, int], Iterable[New]],
        *,
        before: Callable[[Write, State, str, int], None] | None = None,
        ends: str | None = None,
    ) -> Live:
        """Fold the events that `make(state, writer, next number)` gives; what the experiment is then, durably.

        `before` runs in the same transaction, ahead of the events. `ends` is the status in which the writer closes
        behind them. Raises what `make` raises; nothing is changed then.
        """
        identity = experiment_id(project, name)
        with self._guard:
            pen = self._pens.pop((ns, identity), None)
            if pen is None or pen.length > ROLL_BYTES:
                pen = _new_pen(project, name)
            try:
                with self._ingest.writing() as tx:
                    live = self._ingest.live(tx, ns, identity, project, name)
                    if pen.writer.hex() in live.row.removed_writers:
                        # The experiment was removed since: what this writer goes on to say is out of sight.
                        pen = _new_pen(project, name)
                    new: list[New] = []
                    if pen.seq == 0:
                        new.append((ev.OPEN, _opening(project, name), None))
                    writer = pen.writer.hex()
                    first = pen.seq + len(new)
                    if before is not None:
                        before(tx, live.state, writer, first)
                    new += make(live.state, writer, first)
                    if ends is not None:
                        new.append((ev.CLOSE, {"status": ends}, None))
                    data, last_ns = _frames(pen, new, live.state.updated_ns)
                    length, _, released = self._ingest.take(tx, ns, pen.journal.hex(), pen.segment, pen.length, data)
            except (Refused, InvalidInput, WriteProtected):
                # Nothing of the storage went wrong: it can be written with again.
                if pen.seq:
                    self._keep((ns, identity), pen)
                raise
            pen.seq += len(new)
            pen.length, pen.last_ns = length, last_ns
            if ends is None:
                self._keep((ns, identity), pen)
        self._ingest.told(ns, live, released)
        if ends is not None:
            self._end_writers(ns, identity)
        return live

    def end_quiet(self, before_ns: int) -> int:
        """Take writers of the server for gone where nothing was written since; of how many experiments.

        Who writes by REST may never say that it has ended. If it goes on, so does the experiment.
        """
        with self._ingest.documents.read() as tx:
            found = tx.quiet(before_ns)
        return sum(self._end_writers(ns, experiment, before_ns) for ns, experiment in found)

    def _end_writers(self, ns: str, experiment: str, before_ns: int = LATEST_NS) -> bool:
        """Note the death of those that are neither closed nor at hand (`before_ns`: nor were heard of since)."""
        with self._guard, self._ingest.writing() as tx:
            row = tx.experiment(ns, experiment)
            if row is None or row.heard_ns >= before_ns:
                return False
            live = self._ingest.live(tx, ns, experiment)
            pen = self._pens.get((ns, experiment)) if before_ns == LATEST_NS else None
            own = [
                writer
                for writer in live.state.alive
                if (live.state.writers[writer].place or {}).get("server") is True
                and (pen is None or pen.writer.hex() != writer)
            ]
            edits = Edits()
            for writer in own:
                fold_death(live.state, writer, edits)
                self._ingest.arrive(tx, ns, live, DEATH, writer, 0, 0)
            if own:
                self._ingest.store(tx, ns, live, edits)
        if own:
            self._ingest.told(ns, live)
        return bool(own)

    def _keep(self, key: tuple[str, str], pen: Pen) -> None:
        self._pens[key] = pen
        if len(self._pens) > _PENS_KEPT:
            del self._pens[next(iter(self._pens))]

    def known(self, ns: str, experiment: str) -> tuple[str, str]:
        """Project and name of an experiment that is here. Raises Refused."""
        with self._ingest.documents.read() as tx:
            row = tx.experiment(ns, experiment)
        if row is None or not row.events:
            raise Refused(404, UNKNOWN, "there is no such experiment")
        return row.project, row.name


def _new_pen(project: str, name: str) -> Pen:
    check_name("project", project)
    check_name("name", name)
    journal, segment, writer, now = os.urandom(16), os.urandom(16), os.urandom(16), time_ns()
    header = encode_header(Header(journal, segment, writer, 0, 0, now, project, name))
    crc = int.from_bytes(header[-4:], "little")
    return Pen(journal, writer, SegmentName(now, writer.hex(), 0), LengthCrcs(crc), header)


def _opening(project: str, name: str) -> dict[str, Any]:
    place = {"host": os.uname().nodename, "pid": os.getpid(), "version": __version__, "server": True}
    return ev.opening(
        given={}, project=project, name=name, protected=False, folder_path=f"{project}/{name}", remote=None,
        user_name=None, place=place, parent=None, child=True,
    )  # fmt: skip


def _frames(pen: Pen, new: list[New], newest_ns: int) -> tuple[bytes, int]:
    """The bytes that follow what the segment has, and the time of the last of them."""
    parts = [] if pen.length else [pen.header]
    last = pen.last_ns
    for number, (kind, body, time) in enumerate(new, pen.seq):
        last = max(time_ns(), last)
        if kind in _REGISTERS:
            last = max(last, min(newest_ns, LATEST_NS) + 1)
        try:
            payload = _encode((number, kind, last if time is None else time, body))
        except (ValueError, OverflowError) as error:
            raise InvalidValue(f"a value cannot be stored: {error}") from None
        if len(payload) > MAX_PAYLOAD:
            raise InvalidValue(f"an event of {len(payload):,} bytes is too long", hint="at most 1 MiB each by REST")
        parts.append(encode_frame(payload, pen.crcs))
    return b"".join(parts), last


def refuse_protected(state: State) -> None:
    """Raises WriteProtected if parameters and files are final."""
    if state.protected is not None:
        raise WriteProtected("the experiment is write-protected: parameters and files are final")


def points_events(metric: str, rows: list[dict[str, Any]]) -> list[New]:
    """The events of a batch of points, each small enough for a frame."""
    check_metric_name(metric)
    events: list[New] = []
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        _add_rows(events, metric, rows[start : start + _ROWS_AT_ONCE])
    return events


def _add_rows(events: list[New], metric: str, rows: list[dict[str, Any]]) -> None:
    fields = list(rows[0])
    if all(len(row) == len(fields) and row.keys() == rows[0].keys() for row in rows) and fields:
        body: Any = [metric, fields, [[row[field] for row in rows] for field in fields]]
        kind = ev.POINTS
    else:
        kind, body = ev.ROWS, [metric, rows]
    if len(rows) > 1 and len(_encode(body)) > MAX_PAYLOAD - 64:
        middle = len(rows) // 2
        _add_rows(events, metric, rows[:middle])
        _add_rows(events, metric, rows[middle:])
        return
    events.append((kind, body, None))
