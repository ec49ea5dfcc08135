"""The server as a writer: events that arrive by REST, in a journal of the server's own for each experiment.

Who records by REST has no journal. So the server keeps one for each experiment, and appends to it the events that a
request stands for, as frames, through `Ingest.take` like bytes from an uploader. So there is one way into the tables,
`pull` brings such events too, and folding anew makes them again.

A segment is continued as long as it is in memory and short enough. After a restart or an error of storage nobody
knows what its end is; then a new journal, writer and segment begin, and the old ones stay as they are. For that
reason a segment is taken out of `_segments` before it is used, and comes back only after success, or after an error
of which it is known that it changed nothing.

`make` runs under the lease of the experiment, with the state as it is then: it may check something and base its events
on that, without another request in between. Another server that writes to the same experiment begins a journal, writer
and segment of its own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import time_ns
from typing import Any, Final, TypeVar

import msgspec

from ...core import events as ev
from ...core.fold import fold_death
from ...core.frames import MAX_PAYLOAD, Header, LengthCrcs, encode_frame, encode_header
from ...core.limits import LATEST_NS
from ...core.names import check_metric_name, check_name, experiment_id
from ...core.protocol import Refused
from ...core.state import State
from ...core.version import __version__
from ...errors import InvalidInput, InvalidValue, WriteProtected
from ...journal.segment import ROLL_BYTES, SegmentName
from ..stores import BlobRow, ExperimentRow, JournalClaim, View
from .changes import DEATH, Change
from .contents import TABLES_VERSION
from .ingest import Ingest
from .journals import known

Answer = TypeVar("Answer")

New = tuple[int, Any, int | None]
"""(kind, body, time in ns or None for now)."""

_encode: Final = msgspec.msgpack.Encoder().encode
# Points in one event. Batches whose event would be longer than a frame are halved.
_ROWS_AT_ONCE: Final = 2_000
# One that is forgotten is not continued: that costs a segment of its own, and nothing else.
_SEGMENTS_REMEMBERED: Final = 1_000
# Of a register the greatest stamp wins. Whoever sets one here has seen the present values, so the new one must be later
# than all of them, also where another machine's clock is ahead.
_REGISTERS: Final = frozenset((ev.PARAMETERS, ev.UPDATE, ev.METRIC, ev.FILE, ev.FILE_UPDATE, ev.FILE_DELETE))


@dataclass(slots=True)
class OpenSegment:
    """The segment to which this server is appending for one experiment, as far as it is committed.

    `seq` is the number of the next event, `length` the bytes that the segment has, `last_ns` the time of its last
    event.

    `crcs` computes the checksums of frames, which start from the header's.
    """

    journal: bytes
    writer: bytes
    name: SegmentName
    crcs: LengthCrcs
    header: bytes
    seq: int = 0
    length: int = 0
    last_ns: int = 0


class ServerWriter:
    """Writer of events that arrive without a journal, by REST. Any thread may call.

    An open segment belongs to whoever has the lease of its experiment (`Changes.changing`); `_guard` protects the
    mapping alone.
    """

    def __init__(self, ingest: Ingest) -> None:
        self._ingest = ingest
        self._changes = ingest.changes
        self._guard = threading.Lock()
        self._segments: dict[tuple[str, str], OpenSegment] = {}

    def write(
        self,
        ns: str,
        project: str,
        name: str,
        make: Callable[[State, str, int], Iterable[New]],
        answer: Callable[[Change], Answer],
        *,
        ends: str | None = None,
        blob: Callable[[str, int], BlobRow] | None = None,
        removes: bool = False,
    ) -> Answer:
        """Store and fold the events that `make(state, writer, next number)` returns.

        Return `answer(change)`, made of the experiment as it is right after them, before any other request changes it.
        The events are durable on return. With `ends`, the writer closes after them in that status. `blob(writer, next
        number)` is stored before the event that names it. With `removes`, no quota forbids it. Raises what `make`
        raises, Refused or StoreTrouble; nothing is changed then.
        """
        identity = experiment_id(project, name)
        key = (ns, identity)
        with self._changes.changing(ns, identity, project, name) as change:
            segment = self._taken(key)
            # None: the first write since the start, after an error of storage, or after many other experiments.
            if (
                segment is None
                or segment.length > ROLL_BYTES
                # The experiment was removed since, and with it all that this writer may still send.
                or change.draft.is_removed(segment.writer.hex())
            ):
                segment = _new_segment(project, name)
            try:
                new: list[New] = []
                if segment.seq == 0:
                    new.append((ev.OPEN, _opening(project, name), None))
                writer = segment.writer.hex()
                # `make` needs the number: the id of a file comes from the writer and number of its event.
                first = segment.seq + len(new)
                new += make(change.state, writer, first)
                if ends is not None:
                    new.append((ev.CLOSE, {"status": ends}, None))
                data, last_ns = _frames(segment, new, change.state.updated_ns)
                if blob is not None:
                    self._changes.documents.put_blobs(ns, [blob(writer, first)])
                claim = JournalClaim(segment.journal.hex(), identity, project, name)
                length = self._ingest.take(change, claim, segment.name, segment.length, data, [], removes=removes)
                if ends is not None:
                    # Those of servers that were killed: they would keep it running.
                    self._note_deaths(change, self._own_writers(change.state))
                change.commit()
            except (Refused, InvalidInput, WriteProtected):
                # The request was at fault, not the storage: the segment as it is stored can be continued.
                if segment.seq:
                    self._remember(key, segment)
                raise
            # Only after the commit: the fields always say what is stored.
            segment.seq += len(new)
            segment.length, segment.last_ns = length, last_ns
            if ends is None:
                self._remember(key, segment)
            return answer(change)

    def end_quiet(self, before_ns: int) -> int:
        """End experiments that were written by REST only, and last before `before_ns`; return how many.

        A client that writes by REST may never say that it has ended. If it writes again, the experiment runs again.
        """
        with self._changes.documents.view() as view:
            quiet = view.quiet(before_ns)
        return sum(self._end_writers(ns, experiment, before_ns) for ns, experiment in quiet)

    def _end_writers(self, ns: str, experiment: str, before_ns: int) -> bool:
        """Note the death of this server's own writers if nothing was heard since `before_ns`; True if there was one."""
        with self._changes.documents.view() as view:
            row = view.experiment(ns, experiment)
            if row is None or row.heard_ns >= before_ns or not self._own(view, ns, row):
                return False
        with self._changes.changing(ns, experiment) as change:
            # Asked once more, now that nobody else writes.
            if change.stored.heard_ns >= before_ns:
                return False
            own = self._own_writers(change.state)
            self._note_deaths(change, own)
            if own:
                change.commit()
        return bool(own)

    def _own(self, view: View, ns: str, row: ExperimentRow) -> bool:
        """True if writers of this server in an experiment have not closed, as far as a look shows."""
        if row.fold_version != TABLES_VERSION:
            return False
        return bool(self._own_writers(self._changes.reader.contents(view, ns, row).state()))

    @staticmethod
    def _own_writers(state: State) -> list[str]:
        """Return the writers of this server that have not closed: opening events of it say so.

        There may be several, since each restart begins another.
        """
        return [writer for writer in state.alive if (state.writers[writer].place or {}).get("server") is True]

    @staticmethod
    def _note_deaths(change: Change, writers: Iterable[str]) -> None:
        for writer in writers:
            fold_death(change.state, writer, change.edits)
            change.arrive(DEATH, writer, 0, 0)

    def _taken(self, key: tuple[str, str]) -> OpenSegment | None:
        """Take out the segment of an experiment, if there is one."""
        with self._guard:
            return self._segments.pop(key, None)

    def _remember(self, key: tuple[str, str], segment: OpenSegment) -> None:
        """Keep a segment to go on with; with too many, drop the one kept for longest."""
        with self._guard:
            self._segments[key] = segment
            if len(self._segments) > _SEGMENTS_REMEMBERED:
                del self._segments[next(iter(self._segments))]

    def known(self, ns: str, experiment: str) -> tuple[str, str]:
        """Return (project, name) of an experiment. Raises Refused (404) if it is not here."""
        with self._changes.documents.view() as view:
            row = known(view, ns, experiment)
        return row.project, row.name


def _new_segment(project: str, name: str) -> OpenSegment:
    """Return a segment of a new writer in a new journal, not stored yet. Raises InvalidInput for the names."""
    check_name("project", project)
    check_name("name", name)
    journal, segment, writer, now = os.urandom(16), os.urandom(16), os.urandom(16), time_ns()
    header = encode_header(Header(journal, segment, writer, 0, 0, now, project, name))
    crc = int.from_bytes(header[-4:], "little")
    return OpenSegment(journal, writer, SegmentName(now, writer.hex(), 0), LengthCrcs(crc), header)


def _opening(project: str, name: str) -> dict[str, Any]:
    """Return the body of the opening event of a writer of this server.

    `child=True`: like a forked process, it has not called `open()` itself, so it does not count for the status where
    programs record the experiment themselves.
    """
    place = {"host": os.uname().nodename, "pid": os.getpid(), "version": __version__, "server": True}
    return ev.opening(
        given={}, project=project, name=name, protected=False, folder_path=f"{project}/{name}", remote=None,
        user_name=None, place=place, parent=None, child=True,
    )  # fmt: skip


def _frames(segment: OpenSegment, new: list[New], newest_ns: int) -> tuple[bytes, int]:
    """Return the bytes to append to the segment, and the time of its last event in ns."""
    parts = [] if segment.length else [segment.header]
    last = segment.last_ns
    for number, (kind, body, time) in enumerate(new, segment.seq):
        # Times of one writer never go back, also if the clock does.
        last = max(time_ns(), last)
        if kind in _REGISTERS:
            last = max(last, min(newest_ns, LATEST_NS) + 1)
        try:
            payload = _encode((number, kind, last if time is None else time, body))
        except (ValueError, OverflowError) as error:
            raise InvalidValue(f"a value cannot be stored: {error}") from None
        if len(payload) > MAX_PAYLOAD:
            raise InvalidValue(f"an event of {len(payload):,} bytes is too long", hint="at most 1 MiB each by REST")
        parts.append(encode_frame(payload, segment.crcs))
    return b"".join(parts), last


def refuse_protected(state: State) -> None:
    """Raise WriteProtected if parameters and files are final."""
    if state.protected is not None:
        raise WriteProtected("the experiment is write-protected: parameters and files are final")


def points_events(metric: str, rows: list[dict[str, Any]]) -> list[New]:
    """Return the events of a batch of points, each small enough for a frame. Raises InvalidInput for the name."""
    check_metric_name(metric)
    events: list[New] = []
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        _add_rows(events, metric, rows[start : start + _ROWS_AT_ONCE])
    return events


def _add_rows(events: list[New], metric: str, rows: list[dict[str, Any]]) -> None:
    """Append the events of these points: by columns, which is shorter, if all have the same fields; else row by row."""
    fields = list(rows[0])
    if all(len(row) == len(fields) and row.keys() == rows[0].keys() for row in rows) and fields:
        body: Any = [metric, fields, [[row[field] for row in rows] for field in fields]]
        kind = ev.POINTS
    else:
        kind, body = ev.ROWS, [metric, rows]
    # 64 bytes are more than enough for the number, kind and time around the body.
    if len(rows) > 1 and len(_encode(body)) > MAX_PAYLOAD - 64:
        middle = len(rows) // 2
        _add_rows(events, metric, rows[:middle])
        _add_rows(events, metric, rows[middle:])
        return
    events.append((kind, body, None))
