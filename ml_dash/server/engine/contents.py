"""The contents of an experiment, read from one version of its tree: segments, arrivals, blocks of lines, state.

    key                          value
    journal   id                 project, name, whether it was removed
    segment   journal, file      id, writer, length, first frame, CRC of the header, what never verified
    raw       segment, start     length, and the page that has the bytes, or the object and where in it they begin
    arrival   number             what was folded
    death     writer, segment, end                        this death was recorded before
    removed   writer             its events are stored and hidden
    block     series, first      count, whether it is full, its page, its summary; of a chunk also its object
    level     series, first      summary of the 100,000 lines from there on
    archived  series             how many of its first lines are in chunks
    metric, file, writer, place, early, parameter         parts of the folded state, see `parts`

Parts of a key are joined by NUL, which no name contains; numbers are 16 hex digits, so that they sort.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar, cast

import msgspec

from ...core.limits import INT64_MAX
from ...core.protocol import UNAVAILABLE, Refused
from ...core.ranges import Range
from ...core.state import FOLD_VERSION, State
from ..stores import ExperimentRow, Objects, StoreTrouble, Vanished, View
from .parts import drop_parts, open_state
from .tree import Node, NodeCache, Tree

# Bytes of nodes that a server keeps in memory.
_CACHE_BYTES: Final = 24 << 20
_PIECE_BYTES: Final = 1 << 20
_LOOKS: Final = 10
TABLES_VERSION: Final = 100 * FOLD_VERSION + 3
"""Version of the code that makes states and blocks: those of another version are folded anew."""
_encode: Final = msgspec.msgpack.Encoder().encode
_END: Final = "\x01"

_Look = TypeVar("_Look", bound=Callable[..., Any])

Fetch = Callable[[Sequence[str]], dict[str, bytes]]
"""fetch(ids): pages of the experiment. Raises Vanished."""


@dataclass(frozen=True, slots=True)
class SegmentRow:
    """A segment as far as it is here: `length` bytes are durable and folded.

    `first` is the offset of the first frame, `crc` that of the header, with which checksums of frames begin. `damaged`
    are ranges of bytes that never verified.

    `file` is the name of the segment's file, `journal` and `id` are 32 hex digits.
    """

    id: str
    journal: str
    file: str
    writer: str
    length: int = 0
    first: int = 0
    crc: int = 0
    damaged: tuple[Range, ...] = ()


@dataclass(frozen=True, slots=True)
class JournalRow:
    """A journal of an experiment; `removed`: the experiment was removed, and later events of its writers are hidden."""

    id: str
    project: str
    name: str
    removed: bool = False


@dataclass(frozen=True, slots=True)
class Arrival:
    """The n-th thing that was folded into an experiment: a stretch of a segment, or the death of a writer.

    Of a stretch (kind 1), `who` is the segment and [start, end) its bytes. Of a death (kind 2), `who` is the writer,
    and `segment` and `end` say how far it had been read when it was found dead.
    """

    n: int
    kind: int
    who: str
    start: int
    end: int
    segment: str = ""


@dataclass(frozen=True, slots=True)
class BlockEntry:
    """Where a block is: `count` lines of a series from number `first` on, in a page; `summary` as `blocks` encodes it.

    `full`: no line is added to it any more. A short block has no page: its `content` is here. Of a chunk, `chunk` is
    the id of its object, and `page` holds its index.
    """

    first: int
    count: int
    full: bool
    page: str
    summary: bytes
    chunk: str = ""
    content: bytes = b""


@dataclass(frozen=True, slots=True)
class RawEntry:
    """Where raw bytes of a segment are: `length` of them from `start` on.

    In a page; or, if `page` is empty, in the object of the id `object`, from `offset` on.
    """

    start: int
    length: int
    page: str
    object: str = ""
    offset: int = 0


class _Segment(msgspec.Struct, array_like=True):
    id: str
    writer: str
    length: int
    first: int
    crc: int
    damaged: list[Range]


_segment: Final = msgspec.msgpack.Decoder(_Segment)
_journal: Final = msgspec.msgpack.Decoder(tuple[str, str, bool])
_raw: Final = msgspec.msgpack.Decoder(tuple[int, str, str, int])
_arrival: Final = msgspec.msgpack.Decoder(tuple[int, str, int, int, str])
_block: Final = msgspec.msgpack.Decoder(tuple[int, bool, str, bytes, str, bytes])
_level: Final = msgspec.msgpack.Decoder(tuple[int, bytes])
_number: Final = msgspec.msgpack.Decoder(int)


class Reader:
    """What is needed to read contents: the objects, and the nodes that were used lately. Any thread may use it."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self.cache = NodeCache(_CACHE_BYTES)

    def contents(self, view: View, ns: str, row: ExperimentRow) -> Contents:
        """Return the contents of an experiment at a version, read in a view."""
        if row.fold_version != TABLES_VERSION:
            message = "this experiment is being brought up to date after an update of the server"
            raise Refused(503, UNAVAILABLE, message, retry_after_s=2)
        return Contents(self, ns, row, lambda ids: view.pages(ns, row.id, ids))


def steady(look: _Look) -> _Look:
    """Make a function that looks at contents begin again where a newer version has taken the place of what it read."""

    @functools.wraps(look)
    def repeated(*args: Any, **named: Any) -> Any:
        for _ in range(_LOOKS):
            try:
                return look(*args, **named)
            except Vanished:
                continue
        raise Refused(503, UNAVAILABLE, "the experiment changes faster than it can be read", retry_after_s=1)

    return cast("_Look", repeated)


class Contents:
    """The contents of one version of an experiment; `ns` is its namespace. For one thread at a time.

    Reading raises Vanished where a newer version has taken the place of this one, and StoreTrouble.
    """

    def __init__(self, reader: Reader, ns: str, row: ExperimentRow, fetch: Fetch) -> None:
        self.ns = ns
        self.row = row
        self.fetch = fetch
        self._reader = reader
        self.tree = Tree(row.root, self._load)

    def _load(self, ids: Sequence[str]) -> dict[str, Node]:
        found = self._reader.cache.get(self.ns, self.row.id, ids)
        missing = [identity for identity in ids if identity not in found]
        if missing:
            pages = self.fetch(missing)
            nodes = [Node.decoded(identity, pages[identity]) for identity in missing]
            self._reader.cache.add(self.ns, self.row.id, nodes)
            found.update((node.id, node) for node in nodes)
        return found

    # A draft is changed, everything else only read.
    only_read = True

    def state(self) -> State:
        """Return the folded state, whose parts are loaded when they are touched."""
        state = open_state(self.tree, self.row.state, only_read=self.only_read)
        state.project, state.name = state.project or self.row.project, state.name or self.row.name
        return state

    # -- journals and segments ---------------------------------------------------------------------------------------

    def journals(self) -> list[JournalRow]:
        """Return the journals, by id, removed ones too."""
        items = self.tree.items("journal\x00", "journal" + _END)
        return [JournalRow(key.split("\x00")[1], *_journal.decode(value)) for key, value in items]

    def journal(self, journal: str) -> JournalRow | None:
        """Return a journal by its id (hex)."""
        value = self.tree.get(f"journal\x00{journal}")
        return JournalRow(journal, *_journal.decode(value)) if value is not None else None

    def segment(self, journal: str, file: str) -> SegmentRow | None:
        """Return a segment by its journal and the name of its file."""
        value = self.tree.get(f"segment\x00{journal}\x00{file}")
        return _segment_row(journal, file, value) if value is not None else None

    def segments(self, journal: str) -> list[SegmentRow]:
        """Return the segments of a journal, by the names of their files: those of one writer in their order."""
        items = self.tree.items(f"segment\x00{journal}\x00", f"segment\x00{journal}{_END}")
        return [_segment_row(journal, key.rpartition("\x00")[2], value) for key, value in items]

    def is_removed(self, writer: str) -> bool:
        """True if the experiment was removed when this writer had a part in it: all of its events are hidden."""
        return self.tree.get(f"removed\x00{writer}") is not None

    def removed_writers(self) -> list[str]:
        """Return the writers whose events are hidden."""
        return [key.split("\x00")[1] for key, _ in self.tree.items("removed\x00", "removed" + _END)]

    # -- raw bytes and arrivals --------------------------------------------------------------------------------------

    def raw(self, segment: str, start: int, end: int) -> Iterator[RawEntry]:
        """Yield where the raw bytes [start, end) of a segment are, in their order."""
        behind = f"raw\x00{segment}{_END}"
        # The entry that holds `start` begins at or before it.
        before = self.tree.last(f"raw\x00{segment}\x00", _after(f"raw\x00{segment}", start))
        first = before[0] if before is not None else f"raw\x00{segment}\x00"
        for key, value in self.tree.items(first, min(behind, f"raw\x00{segment}\x00{number(end)}")):
            yield RawEntry(int(key.rpartition("\x00")[2], 16), *_raw.decode(value))

    def bytes_of(self, segment: str, start: int, end: int) -> Iterator[bytes]:
        """Yield the raw bytes [start, end) of a segment in pieces; fewer if fewer are here."""
        for entries in _groups(self.raw(segment, start, end)):
            pages = self.pages_of([entry.page for entry in entries if entry.page])
            for entry in entries:
                low, high = max(start, entry.start), min(end, entry.start + entry.length)
                if low >= high:
                    continue
                if entry.page:
                    yield pages[entry.page][low - entry.start : high - entry.start]
                else:
                    at = entry.offset - entry.start
                    yield from self.object(entry.object, low + at, high + at)

    def object(self, identity: str, start: int, end: int) -> Iterator[bytes]:
        """Return the bytes [start, end) of an object of the experiment in pieces. Raises StoreTrouble if it is lost."""
        key = object_key(self.ns, self.row.id, identity)
        try:
            return self._reader.objects.open(key, start, end)
        except FileNotFoundError:
            hint = "restore the objects from a backup; ml-dash server scrub says what is lost"
            raise StoreTrouble(f"the object {key} is not in the store", hint=hint) from None

    def pages_of(self, ids: Sequence[str]) -> dict[str, bytes]:
        """Return pages by their ids. Raises Vanished."""
        return self.fetch(ids) if ids else {}

    def arrivals(self, after: int, limit: int) -> list[Arrival]:
        """Return at most `limit` arrivals from number `after` on, which is included, in their order."""
        found = []
        for key, value in self.tree.items(f"arrival\x00{number(after)}", "arrival" + _END):
            found.append(Arrival(int(key[8:], 16), *_arrival.decode(value)))
            if len(found) == limit:
                break
        return found

    def has_death(self, who: str, segment: str, end: int) -> bool:
        """True if exactly this death was recorded before."""
        return self.tree.get(f"death\x00{who}\x00{segment}\x00{number(end)}") is not None

    # -- blocks ------------------------------------------------------------------------------------------------------

    def blocks(self, series: str, first: int, end: int) -> Iterator[BlockEntry]:
        """Yield where the blocks of a series are that hold any of the lines [first, end), in their order."""
        before = self.tree.last(f"block\x00{series}\x00", _after(f"block\x00{series}", first))
        start = before[0] if before is not None else f"block\x00{series}\x00"
        for key, value in self.tree.items(start, f"block\x00{series}\x00{number(end)}"):
            yield BlockEntry(int(key.rpartition("\x00")[2], 16), *_block.decode(value))

    def last_block(self, series: str) -> BlockEntry | None:
        """Return the newest block of a series."""
        found = self.tree.last(f"block\x00{series}\x00", f"block\x00{series}{_END}")
        if found is None:
            return None
        return BlockEntry(int(found[0].rpartition("\x00")[2], 16), *_block.decode(found[1]))

    def levels(self, series: str, first: int, end: int) -> Iterator[tuple[int, int, bytes]]:
        """Yield (first line, count, summary) of ranges of 100,000 lines that begin in [first, end), in their order."""
        prefix = f"level\x00{series}\x00"
        for key, value in self.tree.items(prefix + number(first), prefix + number(end)):
            yield (int(key[len(prefix) :], 16), *_level.decode(value))

    def archived(self, series: str) -> int:
        """Return how many of the first lines of a series are in chunks."""
        value = self.tree.get(f"archived\x00{series}")
        return _number.decode(value) if value is not None else 0

    def all_series(self) -> Iterator[str]:
        """Yield all series that have a block, sorted."""
        key = "block\x00"
        while True:
            found = next(self.tree.items(key, "block" + _END), None)
            if found is None:
                return
            series = found[0].split("\x00")[1]
            yield series
            key = f"block\x00{series}{_END}"

    # -- all that it names -------------------------------------------------------------------------------------------

    def pages(self) -> Iterator[str]:
        """Yield the ids of all pages that this version names."""
        yield from self.tree.pages()
        for kind in ("raw", "block"):
            for key, value in self.tree.items(kind + "\x00", kind + _END):
                if page := page_in(key, value):
                    yield page

    def objects(self) -> Iterator[str]:
        """Yield the keys of all objects that this version names, apart from those of blobs; some more than once."""
        for _, value in self.tree.items("raw\x00", "raw" + _END):
            if identity := _raw.decode(value)[2]:
                yield object_key(self.ns, self.row.id, identity)
        for _, value in self.tree.items("block\x00", "block" + _END):
            if identity := _block.decode(value)[4]:
                yield object_key(self.ns, self.row.id, identity)


class Draft(Contents):
    """The next version of an experiment, while it is being made: contents to which things are added.

    `page` gives ids to new pages; nobody sees them before the commit.
    """

    only_read = False

    def __init__(self, reader: Reader, ns: str, row: ExperimentRow, fetch: Fetch) -> None:
        super().__init__(reader, ns, row, fetch)
        self.new: dict[str, bytes] = {}
        self.new_bytes = 0
        self._prefix = ""
        self._pages = 0

    def begin(self, row: ExperimentRow, prefix: str) -> None:
        """Begin a version; ids of its pages begin with the prefix, which no other version has."""
        self.row = row
        self._prefix, self._pages = prefix, 0
        self.new = {}
        self.new_bytes = 0

    def name(self) -> str:
        """Return the id of a new page."""
        self._pages += 1
        return f"{self._prefix}.{self._pages:x}"

    def page(self, content: bytes) -> str:
        """Add a page; return its id."""
        identity = self.name()
        self.new[identity] = content
        self.new_bytes += len(content)
        return identity

    def drop_page(self, page: str) -> None:
        """Note that a page is not needed in this version; one that was added to it is not stored at all."""
        if self.new.pop(page, None) is None:
            self.tree.supersede(page)

    def pages_of(self, ids: Sequence[str]) -> dict[str, bytes]:
        """Return pages, those of this version too."""
        stored = [page for page in ids if page not in self.new]
        found = self.fetch(stored) if stored else {}
        return found | {page: self.new[page] for page in ids if page in self.new}

    # -- adding ------------------------------------------------------------------------------------------------------

    def put_journal(self, row: JournalRow) -> None:
        """Store a journal."""
        self.tree.put(f"journal\x00{row.id}", _encode((row.project, row.name, row.removed)))

    def put_segment(self, row: SegmentRow) -> None:
        """Store a segment."""
        value = _Segment(row.id, row.writer, row.length, row.first, row.crc, list(row.damaged))
        self.tree.put(f"segment\x00{row.journal}\x00{row.file}", _encode(value))

    def put_raw(self, segment: str, start: int, content: bytes) -> None:
        """Store raw bytes of a segment from `start` on, where none are yet."""
        self.put_raw_entry(segment, RawEntry(start, len(content), self.page(content)))

    def put_raw_entry(self, segment: str, entry: RawEntry) -> None:
        """Note where raw bytes of a segment are."""
        value = _encode((entry.length, entry.page, entry.object, entry.offset))
        self.tree.put(f"raw\x00{segment}\x00{number(entry.start)}", value)

    def replace_bytes(self, segment: str, start: int, content: bytes) -> None:
        """Replace stored bytes that never verified by verified ones, of the same length, from `start` on."""
        end = start + len(content)
        # A range that is mended may lie in several stretches; each keeps its length.
        for entry in list(self.raw(segment, start, end)):
            low, high = max(entry.start, start), min(entry.start + entry.length, end)
            if low >= high:
                continue
            old = b"".join(self.bytes_of(segment, entry.start, entry.start + entry.length))
            new = old[: low - entry.start] + content[low - start : high - start] + old[high - entry.start :]
            if entry.page:
                self.drop_page(entry.page)
            self.put_raw_entry(segment, RawEntry(entry.start, entry.length, self.page(new)))

    def put_arrival(self, arrival: Arrival) -> None:
        """Record what was folded."""
        value = _encode((arrival.kind, arrival.who, arrival.start, arrival.end, arrival.segment))
        self.tree.put(f"arrival\x00{number(arrival.n)}", value)

    def put_death(self, who: str, segment: str, end: int) -> None:
        """Record that a death was folded, so that it is not folded again."""
        self.tree.put(f"death\x00{who}\x00{segment}\x00{number(end)}", b"")

    def put_removed(self, writer: str) -> None:
        """Hide the events of a writer from now on."""
        self.tree.put(f"removed\x00{writer}", b"")

    def put_block(self, series: str, entry: BlockEntry) -> None:
        """Note where a block is."""
        value = _encode((entry.count, entry.full, entry.page, entry.summary, entry.chunk, entry.content))
        self.tree.put(f"block\x00{series}\x00{number(entry.first)}", value)

    def put_chunk(self, series: str, entry: BlockEntry, blocks: Sequence[BlockEntry]) -> None:
        """Note where a chunk is, in place of the blocks that are in it."""
        for block in blocks:
            self.tree.delete(f"block\x00{series}\x00{number(block.first)}")
            if block.page:
                self.drop_page(block.page)
        self.put_block(series, entry)
        self.tree.put(f"archived\x00{series}", _encode(entry.first + entry.count))

    def put_level(self, series: str, first: int, count: int, summary: bytes) -> None:
        """Store the summary of 100,000 lines."""
        self.tree.put(f"level\x00{series}\x00{number(first)}", _encode((count, summary)))

    def drop_raw(self, segment: str, entry: RawEntry) -> None:
        """Delete the note of where raw bytes are, which are stored elsewhere as well."""
        self.tree.delete(f"raw\x00{segment}\x00{number(entry.start)}")
        if entry.page:
            self.drop_page(entry.page)

    def drop_state(self) -> None:
        """Delete all parts of the folded state."""
        drop_parts(self.tree)
        self.row = replace(self.row, state=b"")

    def drop_blocks(self) -> None:
        """Delete all blocks."""
        for key, value in list(self.tree.items("block\x00", "block" + _END)):
            if page := page_in(key, value):
                self.drop_page(page)
        for kind in ("block", "level", "archived"):
            self.tree.drop(kind + "\x00", kind + _END)


def _groups(entries: Iterator[RawEntry]) -> Iterator[list[RawEntry]]:
    """Yield entries of which the bytes are read together: about _PIECE_BYTES, or a single entry."""
    group: list[RawEntry] = []
    size = 0
    for entry in entries:
        if group and size + entry.length > _PIECE_BYTES:
            yield group
            group, size = [], 0
        group.append(entry)
        size += entry.length
    if group:
        yield group


def page_in(key: str, value: bytes) -> str:
    """Return the id of the page that an entry of the tree names; empty if it names none."""
    if key.startswith("raw\x00"):
        return _raw.decode(value)[1]
    return _block.decode(value)[2] if key.startswith("block\x00") else ""


def with_page(key: str, value: bytes, page: str) -> bytes:
    """Return the value of an entry that names a page, naming another one."""
    if key.startswith("raw\x00"):
        length, _, identity, offset = _raw.decode(value)
        return _encode((length, page, identity, offset))
    count, full, _, *rest = _block.decode(value)
    return _encode((count, full, page, *rest))


def object_key(ns: str, experiment: str, identity: str) -> str:
    """Return the key of an object that holds contents of an experiment."""
    return f"contents/{one_part(ns)}/{experiment}/{identity}"


def one_part(ns: str) -> str:
    """Return a namespace as one part of a key, whatever the user is called."""
    return ns.replace("%", "%25").replace("/", "%2F") or "%"


def number(value: int) -> str:
    """Return a number as it stands in keys; greater ones than fit count as the greatest."""
    return f"{min(value, INT64_MAX):016x}"


def _after(prefix: str, value: int) -> str:
    """Return the least key behind that of a number."""
    return f"{prefix}\x00{number(value)}{_END}"


def _segment_row(journal: str, file: str, value: bytes) -> SegmentRow:
    row: Any = _segment.decode(value)
    return SegmentRow(row.id, journal, file, row.writer, row.length, row.first, row.crc, tuple(row.damaged))
