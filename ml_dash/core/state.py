"""The state of an experiment after folding its events, and the edits handed to a sink.

A state is stored in checkpoints and bases, and by servers, under the names of these fields. Whoever renames a field, or
lets it mean something else, has to raise FOLD_VERSION, and to say in `upgrade` how an older state gets it. Ids of
writers are in hex, times in ns since the epoch, and a time of 0 means *none*. `fold` and `rewinds` change a state;
everything else reads it.

Its size does not depend on the number of points or log lines. It grows with writers, metrics and their fields,
parameters and files, and with the gaps in the numbers of events.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any, Final

from . import events as ev
from .ranges import Range

FOLD_VERSION: Final = 4
"""Grows when the fold gives the same events another state: states of older versions are then made again."""
RUNNING: Final = "running"
# Indices are asked for soon after a point was appended, and each run is stored with every checkpoint.
RUNS_KEPT: Final = 64
"""Entries of `Metric.runs` that are kept."""
TITLES_KEPT: Final = 100
"""Names of an experiment that are remembered, the newest ones."""
NOBODY: Final = ""
"""The writer of a run whose points cannot be found by ordinals."""
# Numbers of events are below this, so that the end of a range fits into 64 bits as well.
_NUMBERS: Final = 1 << 63

StampTuple = tuple[int, str, int]
BEFORE_ALL: Final[StampTuple] = (-1, "", -1)


@dataclass(slots=True)
class Register:
    """A value of which only the one with the greatest stamp counts.

    Two events never have the same stamp, so the result does not depend on which value was offered first.
    """

    value: Any = None
    stamp: StampTuple = BEFORE_ALL

    def offer(self, value: Any, stamp: StampTuple) -> None:
        """Take a value if its stamp is the greatest so far."""
        if stamp > self.stamp:
            self.value, self.stamp = value, stamp


@dataclass(slots=True)
class Series:
    """Statistics of one numeric field. NaN is counted, but is neither minimum nor maximum nor part of the mean."""

    count: int = 0
    first: float | int | None = None
    last: float | int | None = None
    min: float | int | None = None
    max: float | int | None = None
    total: float = 0.0
    # Values that are neither NaN nor left out otherwise: the mean is `total / counted`.
    counted: int = 0


@dataclass(slots=True)
class Reach:
    """The steps and times of some points, by which a rewind is compared with them. Superseded points do not count.

    `low` and `high` are the least and the greatest step (else epoch), None if no point has one; `bare`: some have none.
    The times are the earliest and the latest, cut to microseconds.
    """

    points: int = 0
    low: float | int | None = None
    high: float | int | None = None
    bare: bool = False
    first_ns: int = 0
    last_ns: int = 0


@dataclass(slots=True)
class Span:
    """Consecutive points of a metric, up to index `end`, after which counting anew can begin.

    `series` are the statistics from the metric's first point to the last one of the span.
    """

    end: int
    reach: Reach
    series: dict[str, Series] = field(default_factory=dict)


@dataclass(slots=True)
class Rewind:
    """A rewind: points of an earlier time with at least this step are superseded, of some metrics or of all (None).

    `before_ns` is the time that counts, see `rewinds.settle`; -1 until it is settled.
    """

    time_ns: int
    writer: str
    step: float | int
    metrics: list[str] | None = None
    before_ns: int = -1


@dataclass(slots=True)
class Metric:
    """One metric: the number and times of its points, and the statistics of its series (current points only)."""

    name: str
    created_ns: int
    count: int = 0
    first_ns: int = 0
    last_ns: int = 0
    updated_ns: int = 0
    description: Register = field(default_factory=Register)
    tags: Register = field(default_factory=Register)
    metadata: Register = field(default_factory=Register)
    series: dict[str, Series] = field(default_factory=dict)
    # (writer, ordinal, index): where a writer's consecutive points begin. Newest last, at most RUNS_KEPT of them.
    # By these an index that a caller asks for is found from the writer's own count of its points (its ordinals); a run
    # of NOBODY is of points whose ordinals are not known.
    runs: list[tuple[str, int, int]] = field(default_factory=list)
    # Writer → how many points it brought. Those that have ended are dropped when the next points come, and only if a
    # writer has ended since: `ends` is what `State.ends` was when they were dropped last.
    tallies: dict[str, int] = field(default_factory=dict)
    ends: int = 0
    # The points, in spans that are longer the older they are; and the reach of the points after the last span.
    spans: list[Span] = field(default_factory=list)
    reach: Reach = field(default_factory=Reach)
    # Indices [start, end) of points that a rewind has superseded.
    superseded: list[Range] = field(default_factory=list)
    # A rewind hit points that are not on this machine, so `superseded` and the statistics may be wrong.
    unsure: bool = False


@dataclass(slots=True)
class File:
    """One added file. It is listed (`live`) until it is deleted or a later one is added at its path."""

    id: str
    writer: str
    seq: int
    added_ns: int
    path: str
    prefix: str
    filename: str
    size_bytes: int
    checksum: str
    content_type: str
    changed: StampTuple
    description: Register = field(default_factory=Register)
    tags: Register = field(default_factory=Register)
    metadata: Register = field(default_factory=Register)
    deleted_ns: int = 0
    replaced_ns: int = 0

    @property
    def stamp(self) -> StampTuple:
        """The stamp of the event that added it."""
        return self.added_ns, self.writer, self.seq

    @property
    def live(self) -> bool:
        """True if the file is listed: neither deleted nor replaced."""
        return not self.deleted_ns and not self.replaced_ns

    @property
    def blob(self) -> str:
        """The name of the blob with its content."""
        return ev.blob_name(self.checksum, self.writer, self.seq)

    @property
    def place(self) -> str:
        """Prefix and file name: two files with the same place replace each other."""
        return f"{self.prefix}/{self.filename}" if self.prefix else self.filename


@dataclass(slots=True)
class WriterState:
    """One writer: where it runs, how it ended, and which of its event numbers were seen."""

    id: str
    # Ranges [start, end), sorted. Kept for ever: an event may be sent again after years. One range, if nothing is
    # missing.
    seen: list[Range] = field(default_factory=list)
    first_ns: int = 0
    last_ns: int = 0
    # What the opening event says of where it runs; None until that is read.
    place: dict[str, Any] | None = None
    child: bool = False
    # The status in its closing event; None until that is read.
    ended: str | None = None
    ended_ns: int = 0
    error: dict[str, Any] | None = None
    # The number of the signal, or the exit code, that ended its process, if its closing event says so.
    signal: int | None = None
    exit_code: int | None = None
    dead: bool = False
    # It was wrongly taken for dead, and its tallies may have been dropped: no indices are noted for it any more.
    uncounted: bool = False
    lost: int = 0
    # Numbers that no event will have, by `LOST` events.
    unused: list[Range] = field(default_factory=list)

    @property
    def alive(self) -> bool:
        """True if it has neither closed nor been found dead."""
        return self.ended is None and not self.dead

    @property
    def end_ns(self) -> int:
        """The time of its closing event; of its last event if it has none."""
        return self.ended_ns or self.last_ns

    def gaps(self) -> list[Range]:
        """Return the ranges of numbers that are missing before the last one seen and that no `LOST` event explains."""
        missing: list[Range] = []
        expected, last = 0, self.seen[-1][1] if self.seen else 0
        for start, end in sorted([*self.seen, *self.unused]):
            if start >= last:
                break
            if start > expected:
                missing.append((expected, start))
            expected = max(expected, end)
        return missing

    def is_new(self, number: int) -> bool:
        """True if an event may have this number and it was not seen yet."""
        # The index of the first range that begins after the number: only the one before it can hold it.
        after = bisect_right(self.seen, (number, _NUMBERS))
        return 0 <= number < _NUMBERS - 1 and not (after and number < self.seen[after - 1][1])

    def admit(self, number: int) -> bool:
        """Note that a number was seen; False if it was seen before, or no event may have it."""
        if not self.is_new(number):
            return False
        seen = self.seen
        after = bisect_right(seen, (number, _NUMBERS))
        joins_last = after > 0 and seen[after - 1][1] == number
        joins_next = after < len(seen) and seen[after][0] == number + 1
        # It may lengthen the range before, the one after, or close the gap between both.
        start = seen[after - 1][0] if joins_last else number
        end = seen[after][1] if joins_next else number + 1
        seen[after - joins_last : after + joins_next] = [(start, end)]
        return True


@dataclass(slots=True)
class State:
    """The folded state of an experiment: everything but its points and log lines."""

    version: int = FOLD_VERSION
    project: str = ""
    name: str = ""
    events: int = 0
    malformed: int = 0
    unknown: int = 0
    created_ns: int = 0
    updated_ns: int = 0
    status: str = RUNNING
    # The writers that decide the status: those that opened since the status was last something else than `running`.
    session: list[str] = field(default_factory=list)
    # The writers that are neither closed nor found dead.
    alive: list[str] = field(default_factory=list)
    # How many times a writer has closed or was found dead.
    ends: int = 0
    # Of the writers with an opening event that are not alive, the one that ended last.
    last_ended: str = ""
    # The least stamp of an event that protects parameters and files from changes.
    protected: StampTuple | None = None
    description: Register = field(default_factory=Register)
    tags: Register = field(default_factory=Register)
    folder: Register = field(default_factory=Register)
    metadata: Register = field(default_factory=Register)
    # What it is called instead of its name, remarks in Markdown, and whether it is put away.
    title: Register = field(default_factory=Register)
    notes: Register = field(default_factory=Register)
    archived: Register = field(default_factory=Register)
    # Every title that it was given → the greatest stamp at which; at most TITLES_KEPT of them.
    titles: dict[str, StampTuple] = field(default_factory=dict)
    journal_path: Register = field(default_factory=Register)
    parameters: dict[str, Register] = field(default_factory=dict)
    logs: int = 0
    points: int = 0
    # Events that writers reported as lost; at most INT64_MAX.
    lost: int = 0
    metrics: dict[str, Metric] = field(default_factory=dict)
    files: dict[str, File] = field(default_factory=dict)
    # How many of `files` are listed.
    live_files: int = 0
    # Place → ids of the files added there, sorted by their stamps.
    places: dict[str, list[str]] = field(default_factory=dict)
    # File id → changes that came before the file: (kind, stamp, body).
    early: dict[str, list[tuple[int, StampTuple, dict[str, Any]]]] = field(default_factory=dict)
    writers: dict[str, WriterState] = field(default_factory=dict)
    # Sorted by time. Rewinds that later ones cover are kept: the time from which each counts may still change.
    rewinds: list[Rewind] = field(default_factory=list)


@dataclass(slots=True)
class LogLine:
    """One numbered log entry."""

    number: int
    time_ns: int
    level: str
    message: str
    metadata: dict[str, Any] | None


@dataclass(slots=True)
class Block:
    """Consecutive points of a metric: their first index, their fields, and their times in ns (or one for all)."""

    start: int
    rows: list[dict[str, Any]]
    times: list[int] | int


@dataclass(slots=True)
class Edits:
    """The work of a sink: log lines and points to add, and documents to write again.

    `metrics`, `parameters`, `files` and `experiment` mark documents that are older than the state; `released` are blobs
    that are not needed any more.

    A sink applies them after each stretch or after many: marks add up, and documents are written from the state as it
    is then. If it is killed in between, they are made again by folding from its checkpoint.
    """

    logs: list[LogLine] = field(default_factory=list)
    points: dict[str, list[Block]] = field(default_factory=dict)
    metrics: set[str] = field(default_factory=set)
    released: list[str] = field(default_factory=list)
    # Ids of files that were added, deleted or replaced, so that what is shown under files/ changes.
    moved: list[str] = field(default_factory=list)
    # Metric → the index from which its statistics must be counted anew, once its lines are applied.
    rewound: dict[str, int] = field(default_factory=dict)
    parameters: bool = False
    files: bool = False
    experiment: bool = False

    def clear(self) -> None:
        """Drop log lines and points, which were applied; marks of documents stay."""
        self.logs = []
        self.points = {}


def index_of(metric: Metric, writer_id: str, ordinal: int) -> int | None:
    """Return the index of a writer's `ordinal`-th point of a metric; None if that is not known any more."""
    # The newest first: within one run, ordinals and indices grow together.
    for writer, first_ordinal, first_index in reversed(metric.runs):
        if writer == writer_id and first_ordinal <= ordinal:
            return first_index + ordinal - first_ordinal
    return None
