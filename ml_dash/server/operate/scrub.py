"""Scrub: read all that is stored once more, and compare it with its checksums. Runs beside servers.

    raw bytes      the checksum of each frame, but for what is marked as damaged; as many bytes as the segment has
    blocks         the checksum of each, in pages and chunks; as many lines as their entry says, without a gap
    blobs          the SHA-256 and size of each object

With `repair`: a file's content that is wrong is dropped, row first, so that uploaders send it again; an experiment
whose blocks do not hold, or whose tree cannot be read where it leads to them, is folded anew, if its raw bytes are
whole: those are the truth. Wrong raw bytes are only reported: they come from a backup, or, since a journal is
immutable, from whoever still has it.

Each look reads a few megabytes, so that neither the database nor the memory holds much for a slow scrub.
"""

from __future__ import annotations

import hashlib
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final, Literal

import msgspec

from ...core.frames import Event, LengthCrcs, might_grow, walk
from ...core.protocol import Refused
from ...core.ranges import holes
from ...errors import Damaged, NewerFormat
from ...journal.reader import decode_event
from ..engine.blocks import LOGS, Block, block_of, extremes_of, index_of
from ..engine.changes import Changes
from ..engine.compare import header_of
from ..engine.contents import BlockEntry, Contents, Reader, SegmentRow, steady
from ..engine.ingest import Ingest
from ..engine.refold import refold
from ..engine.summaries import decode_summaries
from ..stores import BlobRow, StoreRefused, Stores, StoreTrouble, View
from .owners import all_experiments, is_live, readable

Kind = Literal["segment", "blocks", "index", "file", "body"]

_WINDOW_BYTES: Final = 4 << 20
_BLOCKS_AT_ONCE: Final = 50
_WRONG: Final = (Damaged, NewerFormat, zlib.error, msgspec.DecodeError, ValueError, KeyError, IndexError, TypeError)
"""What bytes raise that are not what was stored."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Stored bytes that are not what was stored once. `where` names a segment and byte, a series and line, or a blob.

    `repaired`: it was dropped, to come again, or folded anew.
    """

    kind: Kind
    namespace: str
    experiment: str
    where: str
    what: str
    repaired: bool = False


class Scrub:
    """One scrub over the stores. `faults` does it; `read` counts what was read so far, in bytes."""

    def __init__(
        self,
        stores: Stores,
        *,
        repair: bool = False,
        rate_bytes: int | None = None,
        wait: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare to read at most `rate_bytes` per second (default: as fast as it goes)."""
        self._documents, self._objects = stores.documents, stores.objects
        self._repair = repair
        self._rate = rate_bytes
        self._wait, self._clock = wait, clock
        self._began = clock()
        # For reading alone: nothing of it is cached between two looks, since it is what is stored that is checked.
        self._ingest = Ingest(Changes(stores.documents, stores.objects, lambda *_: None))
        self.read = 0
        self.experiments = self.blobs = self.segments = self.left = 0

    def faults(self) -> Iterator[Fault]:
        """Read everything; yield each fault when it is found. Raises StoreTrouble if the stores cannot be reached."""
        last: str | None = None
        for ns, experiment in all_experiments(self._documents):
            if ns != last:
                last = ns
                yield from self._blobs(ns, "")
            yield from self._experiment(ns, experiment)
            yield from self._blobs(ns, experiment)

    def _took(self, size: int) -> None:
        """Count bytes that were read, and wait until as many are allowed."""
        self.read += size
        if self._rate is not None:
            ahead = self.read / self._rate - (self._clock() - self._began)
            if ahead > 0:
                self._wait(ahead)

    # -- one experiment ----------------------------------------------------------------------------------------------

    def _experiment(self, ns: str, experiment: str) -> Iterator[Fault]:
        self.experiments += 1
        raw: list[Fault] = []
        folded: list[Fault] = []
        version = self._version(ns, experiment)
        try:
            # What stands in the tree is needed to find the rest; where it cannot be read, nothing below it can.
            names = self._names(ns, experiment)
            if names is None:
                self.left += 1
                return
            segments, series = names
            for journal, file in segments:
                raw += self._segment(ns, experiment, journal, file)
            for name in series:
                folded += self._series(ns, experiment, name)
        except Refused:
            if self._version(ns, experiment) == version:
                folded.append(Fault("index", ns, experiment, "tree", "pages of the newest version are not here"))
            else:
                # It is being folded anew, or changes faster than it can be read.
                self.left += 1
        except _WRONG as error:
            folded.append(Fault("index", ns, experiment, "tree", f"a page of the contents cannot be read: {error}"))
        yield from raw
        if folded and self._repair and not raw and self._refolded(ns, experiment):
            folded = [replace(one, repaired=True) for one in folded]
        yield from folded

    def _refolded(self, ns: str, experiment: str) -> bool:
        """Fold an experiment anew; return False where that cannot be."""
        try:
            refold(self._ingest, ns, experiment)
        except (StoreRefused, Refused, *_WRONG):
            return False
        return True

    def _version(self, ns: str, experiment: str) -> int:
        with self._documents.view() as view:
            row = view.experiment(ns, experiment)
        return row.version if row is not None else 0

    def _contents(self, view: View, ns: str, experiment: str) -> Contents | None:
        return readable(Reader(self._objects), view, ns, view.experiment(ns, experiment))

    @steady
    def _names(self, ns: str, experiment: str) -> tuple[list[tuple[str, str]], list[str]] | None:
        """Return (journal, file) of all segments and the names of all series; None if it cannot be read now."""
        with self._documents.view() as view:
            contents = self._contents(view, ns, experiment)
            if contents is None:
                return None
            # All parts of the state are read as well.
            state = contents.state()
            for part in (state.metrics, state.files, state.writers, state.parameters):
                for _ in part.items():
                    pass
            segments = [
                (journal.id, segment.file)
                for journal in contents.journals()
                for segment in contents.segments(journal.id)
            ]
            return segments, list(contents.all_series())

    # -- raw bytes ---------------------------------------------------------------------------------------------------

    def _segment(self, ns: str, experiment: str, journal: str, file: str) -> list[Fault]:
        self.segments += 1
        at = 0
        while True:
            found = self._window(ns, experiment, journal, file, at)
            if found is None:
                return []
            row, data = found
            self._took(len(data))
            end = min(row.length, at + _WINDOW_BYTES)
            if len(data) < end - at:
                return [Fault("segment", ns, experiment, f"{file} byte {at + len(data)}",
                              f"the bytes from there on are not here; {row.length:,} were acknowledged")]  # fmt: skip
            stop, wrong = _checked(row, at, data, end == row.length)
            if wrong:
                return [Fault("segment", ns, experiment, f"{file} byte {stop}", "a frame does not hold")]
            if end == row.length:
                return []
            at = stop

    @steady
    def _window(self, ns: str, experiment: str, journal: str, file: str, at: int) -> tuple[SegmentRow, bytes] | None:
        """Return a segment, and its bytes from `at` on, at most _WINDOW_BYTES; None if it is not here any more."""
        with self._documents.view() as view:
            contents = self._contents(view, ns, experiment)
            row = contents.segment(journal, file) if contents is not None else None
            if contents is None or row is None:
                return None
            data = bytearray()
            end = min(row.length, at + _WINDOW_BYTES)
            try:
                for piece in contents.bytes_of(row.id, at, end):
                    data += piece
            except StoreTrouble:
                # One that is lost, or storage that cannot be reached: the latter is no fault of these bytes.
                self._objects.check()
            return row, bytes(data)

    # -- blocks ------------------------------------------------------------------------------------------------------

    def _series(self, ns: str, experiment: str, series: str) -> list[Fault]:
        first = 0
        while True:
            found = self._blocks(ns, experiment, series, first)
            if isinstance(found, Fault):
                return [found]
            size, behind = found
            self._took(size)
            if behind is None:
                return []
            first = behind

    @steady
    def _blocks(self, ns: str, experiment: str, series: str, first: int) -> Fault | tuple[int, int | None]:
        """Check some blocks from line `first` on; return a fault, or (bytes read, the line behind them, if any)."""
        with self._documents.view() as view:
            contents = self._contents(view, ns, experiment)
            if contents is None:
                return 0, None
            size, at = 0, first
            for entry in islice(contents.blocks(series, first, 1 << 62), _BLOCKS_AT_ONCE):
                if entry.first < at and entry.first + entry.count <= at:
                    # The one before: a search begins with what may hold the line.
                    continue
                if entry.first != at:
                    return Fault(
                        "blocks", ns, experiment, f"{series} line {at}", f"the next block begins at {entry.first}"
                    )
                try:
                    for block in _blocks_of(contents, series, entry):
                        size += _check(block, at)
                        at += block.count
                    extremes_of(entry.summary)
                except _WRONG as error:
                    return Fault("blocks", ns, experiment, f"{series} line {at}", f"a block does not hold: {error}")
                except StoreTrouble as error:
                    self._objects.check()
                    return Fault("blocks", ns, experiment, f"{series} line {at}", str(error).partition("\n")[0])
                if at != entry.first + entry.count:
                    return Fault("blocks", ns, experiment, f"{series} line {at}",
                                 f"{entry.count} lines from {entry.first} on are named")  # fmt: skip
            return size, at if at > first else None

    # -- blobs -------------------------------------------------------------------------------------------------------

    def _blobs(self, ns: str, experiment: str) -> Iterator[Fault]:
        with self._documents.view() as view:
            rows = view.blobs(ns, experiment)
        for row in rows:
            self.blobs += 1
            wrong = self._wrong(row)
            # Once more, from the row that is there now: the first time it may have been replaced while it was read.
            if wrong is None or self._same(ns, row) is None:
                continue
            wrong = self._wrong(row)
            if wrong is None:
                continue
            kind: Kind = "file" if experiment else "body"
            repaired = self._repair and kind == "file" and self._dropped(ns, row)
            yield Fault(kind, ns, experiment, row.name, f"{row.key}: {wrong}", repaired)

    def _wrong(self, row: BlobRow) -> str | None:
        """Return what is wrong with an object; None if it is what its row says."""
        digest, size = hashlib.sha256(), 0
        try:
            for piece in self._objects.open(row.key):
                digest.update(piece)
                size += len(piece)
                self._took(len(piece))
        except FileNotFoundError:
            return "it is not there"
        if size != row.size:
            return f"it has {size:,} bytes and not {row.size:,}"
        return None if digest.hexdigest() == row.digest else "its SHA-256 is another one"

    def _same(self, ns: str, row: BlobRow) -> BlobRow | None:
        """Return the row that is stored, if it is still this one, of a content that is wanted."""
        with self._documents.view() as view:
            stored = view.blob(ns, row.experiment, row.name)
        return stored if stored == row and self._is_wanted(ns, row) else None

    @steady
    def _is_wanted(self, ns: str, row: BlobRow) -> bool:
        """True unless the content is of a file that was deleted meanwhile: that is not lost but released."""
        if not row.experiment:
            return True
        with self._documents.view() as view:
            contents = self._contents(view, ns, row.experiment)
            return contents is None or is_live(contents.state(), row.name)

    def _dropped(self, ns: str, row: BlobRow) -> bool:
        """Drop a content, so that it counts as missing and comes again: first the row, then the object."""
        self._documents.drop_blobs(ns, row.experiment, [row.name])
        self._objects.delete(row.key)
        return True


def _checked(row: SegmentRow, at: int, data: bytes, whole: bool) -> tuple[int, bool]:
    """Return (where the next window begins, or the byte that is wrong; whether one is), of the bytes from `at` on.

    `whole`: the segment ends with them.
    """
    end = at + len(data)
    if at == 0 and not any(low == 0 for low, _ in row.damaged):
        try:
            if header_of(data, False)[1:] != (row.first, row.crc):
                return 0, True
        except Refused:
            return 0, True
    crcs = LengthCrcs(row.crc)
    for low, high in holes(row.damaged, max(at, row.first), row.length):
        if low >= end:
            break
        events: list[Event] = []
        part = data[low - at : min(high, end) - at]
        stop = low + walk(part, 0, crcs, decode_event, events)
        if stop == high:
            continue
        # The frame may go on behind this window.
        if high > end and stop > at and might_grow(part, stop - low):
            return stop, False
        return stop, True
    return end, False


def _blocks_of(contents: Contents, series: str, entry: BlockEntry) -> Iterator[Block]:
    """Yield the blocks of an entry: itself, or those of a chunk."""
    if not entry.chunk:
        yield block_of(contents, series, entry)
        return
    index = index_of(contents, entry)
    decode_summaries(index.blocks)
    decode_summaries(index.parts)
    for first, count, offset, length in index.entries:
        yield Block(series, first, count, b"".join(contents.object(entry.chunk, offset, offset + length)), b"")


def _check(block: Block, first: int) -> int:
    """Return how many bytes a block has. Raises one of _WRONG where it does not hold, or begins elsewhere."""
    if block.first != first:
        raise Damaged(f"a block begins at line {block.first} and not at {first}")
    if block.series == LOGS:
        count = zlib.decompress(block.data).count(b"\n")
    else:
        count = block.points().count
        if block.parts:
            decode_summaries(block.parts)
    if count != block.count:
        raise Damaged(f"a block has {count} lines and not {block.count}")
    return len(block.data)
