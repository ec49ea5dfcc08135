"""Marks: what happened to an experiment, one entry for each thing that somebody may want to go back to.

A mark has the number of events after which it is so: the experiment as of that event shows it (see `as_of`). Marks are
made from the order, like the state, but from few of its events: of points, log lines and descriptions only the number
and the time are looked at.

    opened      the first writer                     parameter   values that have changed
    resumed     a writer, when none was running      updated     title, notes, tags and the like
    joined      a writer beside others               file, fileDeleted
    rewound     points from a step on superseded     lost        events that a disk refused
    completed, failed, interrupted                   merged      data older than what was there came in
    crashed     an observer found a writer dead

Memory grows with the marks, and with the parameters, not with points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypedDict

from . import events as ev
from .events import Malformed
from .frames import Event
from .names import file_id
from .state import BEFORE_ALL, StampTuple, State, WriterState
from .times import utc_text

# What a body of the wrong shape makes this code raise.
_ERRORS: Final = (TypeError, ValueError, LookupError, ArithmeticError)
# Older than the newest event by so much, data counts as brought in late: clocks and batches differ by less.
_LATE_NS: Final = 60 * 10**9
# Changes of parameters by one writer that follow each other within this are one mark.
_TOGETHER_NS: Final = 10**9
_VALUE_CHARACTERS: Final = 200
_KEYS_IN_TEXT: Final = 5
_LABELS: Final = ("title", "notes", "archived", "description", "tags", "folder", "metadata", "writeProtected")
# All others make no mark, and their bodies are not decoded: most events are points and log lines.
_KINDS: Final = frozenset((
    ev.OPEN, ev.CLOSE, ev.PARAMETERS, ev.FILE, ev.FILE_DELETE, ev.UPDATE, ev.LOST, ev.REWIND,
))  # fmt: skip

Bodies = Callable[[Event], Any]
"""body_of(event): the body of an event that was read without it. Raises ValueError or LookupError if it is lost."""


class Mark(TypedDict):
    """One mark: it is so after `event` events; `time` is that of its event, `host` where its writer runs."""

    event: int
    time: str
    kind: str
    writer: str
    host: str | None
    text: str
    data: dict[str, Any]


class _Since(TypedDict, total=False):
    since: int


class MarkPage(_Since):
    """A page of `total` marks from number `startIndex` on, and what they are of: `events`, the first and last time.

    `since`: the marks of so many events at the beginning are elsewhere, where those events are.
    """

    marks: list[Mark]
    total: int
    startIndex: int
    events: int
    firstAt: str | None
    lastAt: str | None


class Marks:
    """The marks of an experiment, made by adding its order stretch by stretch. For one thread at a time."""

    def __init__(self, begun: State | None = None) -> None:
        """`begun`: the state from which the order is followed, where a base stands for what came before."""
        state = State() if begun is None else begun
        self.marks: list[Mark] = []
        self.events = state.events
        # What came before is not known: marks of it are where the events are.
        self.since = state.events
        self.first_ns = state.created_ns
        self.newest_ns = state.updated_ns
        self.alive: list[str] = list(state.alive)
        self._seen = {writer.id: WriterState(writer.id, list(writer.seen)) for writer in state.writers.values()}
        self._places = {writer.id: writer.place or {} for writer in state.writers.values()}
        self._last_ns = {writer.id: writer.last_ns for writer in state.writers.values()}
        self._values: dict[str, tuple[Any, StampTuple]] = {
            key: (register.value, register.stamp) for key, register in state.parameters.items()
        }
        self._files = {file.id: file.place for file in state.files.values()}
        # Writers that came to change a title, notes or the like.
        self._relabels: set[str] = set()
        # Writer → its mark as dead, which a later event of it makes void.
        self._dead: dict[str, Mark | None] = {writer.id: None for writer in state.writers.values() if writer.dead}

    def knows(self, writer: str) -> bool:
        """True if an event of a writer was added."""
        return writer in self._last_ns

    def death(self, writer: str) -> None:
        """Add the death of a writer that an observer noted."""
        if writer not in self.alive:
            return
        self.alive.remove(writer)
        place = self._places.get(writer, {})
        where = f"process {place.get('pid', '?')} on {place.get('host', 'an unknown host')}"
        self._dead[writer] = self._add(
            "crashed", self.events, self._last_ns.get(writer, 0), writer, f"{where} was killed or lost", {}
        )

    def add(self, writer: str, events: Sequence[Event], body_of: Bodies) -> None:
        """Add a stretch of one writer's events; those that were added before are passed over."""
        events = self._new(writer, events)
        if not events:
            return
        base, late = self.events, events[-1][2] < self.newest_ns - _LATE_NS
        self.events += len(events)
        if writer in self._dead and (mark := self._dead.pop(writer)) is not None:
            self.marks.remove(mark)
            self.alive.append(writer)
        for place, event in enumerate(events):
            if event[1] in _KINDS:
                try:
                    self._make(writer, base + place + 1, event, body_of)
                except _ERRORS:
                    # A body that makes no sense, or is lost: the fold counts it.
                    continue
        if late:
            self._merged(writer, len(events), events[0][2], events[-1][2])
        if writer not in self._last_ns and writer not in self.alive and writer not in self._places:
            # Its opening event is lost.
            self.alive.append(writer)
        self._last_ns[writer] = max(events[-1][2], self._last_ns.get(writer, 0))
        self.first_ns = min(self.first_ns or events[0][2], events[0][2])
        self.newest_ns = max(self.newest_ns, events[-1][2])

    def _new(self, writer: str, events: Sequence[Event]) -> Sequence[Event]:
        """Return the events that were not added before, and note that they were."""
        seen = self._seen.setdefault(writer, WriterState(writer))
        expected = seen.seen[-1][1] if seen.seen else 0
        first, behind = events[0][0], events[-1][0] + 1
        # The usual case: numbers follow each other, and what was seen.
        if first == expected and behind - first == len(events):
            seen.seen[-1:] = [(seen.seen[-1][0] if seen.seen else 0, behind)]
            return events
        return [event for event in events if seen.admit(event[0])]

    # -- the kinds ---------------------------------------------------------------------------------------------------

    def _make(self, writer: str, number: int, event: Event, body_of: Bodies) -> None:
        """Make the mark of one event."""
        seq, kind, time_ns, _ = event
        body = ev.mapping(body_of(event))
        made: tuple[str, str, dict[str, Any]]
        if kind == ev.OPEN:
            made = self._opened(writer, body, time_ns)
            if body.get("relabels") is True:
                # What it changes is what happened, not that it came for that.
                self._relabels.add(writer)
                return
        elif kind == ev.CLOSE:
            made = self._closed(writer, body)
            if writer in self._relabels:
                return
        elif kind == ev.PARAMETERS:
            self._parameters(writer, number, time_ns, body, (time_ns, writer, seq))
            return
        elif kind == ev.FILE:
            path = f"{ev.text(body['prefix'])}/{ev.text(body['filename'])}".lstrip("/")
            identity = file_id(bytes.fromhex(writer), seq)
            self._files[identity] = path
            made = "file", f"added {path}", {"id": identity, "path": path, "sizeBytes": ev.natural(body["sizeBytes"])}
        elif kind == ev.FILE_DELETE:
            identity = ev.text(body["id"])
            path = self._files.get(identity, identity)
            made = "fileDeleted", f"deleted {path}", {"id": identity, "path": path}
        elif kind == ev.UPDATE:
            given: dict[str, Any] = {key: body[key] for key in _LABELS if key in body}
            made = "updated", _update_text(given), _short(given)
        elif kind == ev.LOST:
            count = ev.natural(body["count"])
            made = "lost", f"the disk refused {count:,} events", {"count": count, "reason": body.get("reason")}
        else:
            step, names = ev.step(body["step"]), body.get("metrics")
            text = f"went back to step {step:g}" + (f" of {', '.join(names)}" if names else "")
            made = "rewound", text, {"step": step, **({"metrics": names} if names else {})}
        self._add(made[0], number, time_ns, writer, made[1], made[2])

    def _opened(self, writer: str, body: dict[str, Any], time_ns: int) -> tuple[str, str, dict[str, Any]]:
        if writer in self._places:
            raise Malformed
        place = self._places[writer] = {key: body[key] for key in ("host", "pid", "rank", "gitCommit") if key in body}
        child = body.get("child") is True
        # One that still wrote when this one began ran beside it, also if its end was read before.
        beside = len(self.alive) - (writer in self.alive) or int(self.newest_ns > time_ns)
        kind = "joined" if child or beside else "resumed" if len(self._places) > 1 else "opened"
        if writer not in self.alive:
            self.alive.append(writer)
        data = {**_short(place), **({"child": True} if child else {}), **({"beside": beside} if beside else {})}
        return kind, f"{kind} by process {place.get('pid', '?')} on {place.get('host', 'an unknown host')}", data

    def _closed(self, writer: str, body: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
        status = body["status"]
        if status not in ev.ENDINGS:
            raise Malformed
        if writer in self.alive:
            self.alive.remove(writer)
        # So that it is not taken for one whose opening event is lost.
        self._places.setdefault(writer, {})
        error = body.get("error") or {}
        data: dict[str, Any] = {key: body[key] for key in ("signal", "exitCode") if key in body}
        if error.get("type"):
            data |= {"type": str(error["type"]), "message": _cut(str(error.get("message", "")))}
        shown = f": {data['type']}: {data['message']}".rstrip(": ") if "type" in data else ""
        return status, f"{status}{shown}", data

    def _parameters(self, writer: str, number: int, time_ns: int, body: dict[str, Any], stamp: StampTuple) -> None:
        """Make the mark of values that have changed; one that comes right behind another goes into that."""
        values: dict[str, Any] = {}
        before: dict[str, Any] = {}
        for key, value in body.items():
            known, since = self._values.get(key, (None, BEFORE_ALL))
            if stamp > since:
                self._values[key] = value, stamp
                if since == BEFORE_ALL or type(known) is not type(value) or known != value:
                    values[key] = value
                    if since != BEFORE_ALL:
                        before[key] = known
        if not values:
            return
        last = self.marks[-1] if self.marks else None
        is_next = last is not None and last["kind"] == "parameter" and last["writer"] == writer
        if last is not None and is_next and time_ns - self._parameters_ns < _TOGETHER_NS:
            data = last["data"]
            data["before"] |= _short({key: old for key, old in before.items() if key not in data["values"]})
            data["values"] |= _short(values)
            data["keys"] = list(data["values"])
            last["event"], last["time"], last["text"] = number, utc_text(time_ns), _set_text(data["values"])
            return
        self._parameters_ns = time_ns
        shown = _short(values)
        data = {"keys": list(shown), "values": shown, "before": _short(before)}
        self._add("parameter", number, time_ns, writer, _set_text(shown), data)

    _parameters_ns = 0

    def _merged(self, writer: str, count: int, first_ns: int, last_ns: int) -> None:
        """Make the mark of data that came late; what follows of the same writer goes into it."""
        last = self.marks[-1] if self.marks else None
        data: dict[str, Any] = {"events": count, "from": utc_text(first_ns), "to": utc_text(last_ns)}
        if last is not None and last["kind"] == "merged" and last["writer"] == writer:
            data |= {"events": count + last["data"]["events"], "from": last["data"]["from"]}
            self.marks.pop()
        text = f"{data['events']:,} events from {data['from'][:19]} to {data['to'][:19]} came in late"
        self._add("merged", self.events, last_ns, writer, text, data)

    def _add(self, kind: str, event: int, time_ns: int, writer: str, text: str, data: dict[str, Any]) -> Mark:
        host = self._places.get(writer, {}).get("host")
        mark = Mark(
            event=event, time=utc_text(time_ns), kind=kind, writer=writer,
            host=host if isinstance(host, str) else None, text=text, data=data,
        )  # fmt: skip
        self.marks.append(mark)
        return mark


def _update_text(given: dict[str, Any]) -> str:
    told = {
        "title": f"renamed to {_cut(str(given.get('title')))}",
        "archived": "archived" if given.get("archived") else "unarchived",
        "tags": f"tagged {_cut(', '.join(map(str, given.get('tags') or ())))}",
        "writeProtected": "made final",
    }
    return ", ".join(told.get(key, f"changed the {key}") for key in given) or "changed nothing"


def _set_text(values: dict[str, Any]) -> str:
    shown = ", ".join(f"{key} = {value}" for key, value in list(values.items())[:_KEYS_IN_TEXT])
    return f"set {shown}" + (f" and {len(values) - _KEYS_IN_TEXT} more" if len(values) > _KEYS_IN_TEXT else "")


def _short(values: dict[str, Any]) -> dict[str, Any]:
    """Return values for a mark: numbers and flags as they are, anything else as text of bounded length."""
    return {
        key: value if value is None or type(value) in (bool, int, float) else _cut(str(value))
        for key, value in values.items()
    }


def _cut(text: str) -> str:
    return text if len(text) <= _VALUE_CHARACTERS else text[:_VALUE_CHARACTERS] + "..."
