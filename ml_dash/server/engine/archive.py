"""Archiving: full blocks move from pages to chunks in the object store, raw bytes of segments to objects.

The database keeps what is recent, and the summaries that charts are made of; what no longer changes goes where bytes
are cheap. Readers see the same lines either way (`blocks.blocks_of`, `contents.bytes_of`).

    look       in a view: which ranges of 10,000 lines are full, which raw bytes lie in pages
    objects    each chunk is put under a new id: nobody names it yet
    commit     under the lease: the entry of a chunk takes the place of those of its blocks, if these are still there
    after      pages of the blocks are superseded

It may die at any step. Before the commit it leaves objects that nobody names, which `sweep` frees; after it, nothing.
An object is made outside of the lease, so uploads of the experiment wait for the commit alone.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Final

from ...core.protocol import Refused
from ...core.sampling import LINES, Extremes, extend
from ...disk.durable import fail_point
from ..stores import StoreTrouble, Vanished
from .blocks import CHUNK_BLOCKS, LOGS, Block, ChunkIndex, block_in, extremes_of, summary_of, with_pages
from .changes import Changes
from .columns import encode_chunk
from .contents import BlockEntry, Contents, Draft, RawEntry, object_key
from .series import LEVEL
from .summaries import decode_summaries, encode_summaries

CHUNK_LINES: Final = CHUNK_BLOCKS * LINES
# Raw bytes of one object; and how many have to be together before there is one.
_RAW_BYTES: Final = 8 << 20
_RAW_LEAST: Final = 4 << 20
# Of a segment that is complete, what is left is merged in one page, or moved if it is more than this.
_REST_BYTES: Final = 256 << 10
# A chunk of long lines may have more than this; then its blocks stay in pages.
_CHUNK_BYTES: Final = 64 << 20
# Bytes that are put, and then committed together.
_AT_ONCE_BYTES: Final = 16 << 20
_SEEN: Final = 10_000

log = logging.getLogger("ml_dash.server")


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A full range of lines of a series: its blocks, and what takes their place."""

    series: str
    blocks: tuple[BlockEntry, ...]
    index: ChunkIndex
    entry: BlockEntry
    content: bytes


@dataclass(frozen=True, slots=True)
class _Raw:
    """Consecutive raw bytes of a segment that lie in pages. They go into one object, or a page if `id` is empty."""

    segment: str
    entries: tuple[RawEntry, ...]
    id: str
    content: bytes


def archive(changes: Changes, ns: str, experiment: str, series: Sequence[str] | None = None) -> int:
    """Move what is full; return how many chunks and objects were made. Of all series, or of some.

    Raises StoreTrouble, and Refused (503) where another server changes the experiment.
    """
    made = 0
    while True:
        found = _found(changes, ns, experiment, series)
        if found is None:
            return made
        chunks, raws = found
        items = [(object_key(ns, experiment, chunk.entry.chunk), chunk.content) for chunk in chunks]
        items += [(object_key(ns, experiment, raw.id), raw.content) for raw in raws if raw.id]
        if not chunks and not raws:
            return made
        changes.objects.put_contents(items)
        fail_point("archive-stored")
        with changes.changing(ns, experiment) as change:
            done = sum(_move_chunk(change.draft, chunk) for chunk in chunks)
            done += sum(_move_raw(change.draft, raw) for raw in raws)
            if done:
                change.changed = True
                fail_point("archive-before-commit")
                change.commit()
                fail_point("archive-after-commit")
        made += done
        # Another server was first, or the experiment was folded anew: not worth a second look now.
        if not done:
            return made


def _found(
    changes: Changes, ns: str, experiment: str, series: Sequence[str] | None
) -> tuple[list[_Chunk], list[_Raw]] | None:
    """Return what can be moved next, about _AT_ONCE_BYTES of it; None where there is no such experiment."""
    try:
        with changes.documents.view() as view:
            row = view.experiment(ns, experiment)
            if row is None:
                return None
            contents = changes.reader.contents(view, ns, row)
            chunks: list[_Chunk] = []
            size = 0
            for name in series if series is not None else contents.all_series():
                for blocks in _full_ranges(contents, name):
                    chunk = _chunk(contents, name, blocks)
                    if chunk is not None:
                        chunks.append(chunk)
                        size += len(chunk.content)
                    if size > _AT_ONCE_BYTES:
                        return chunks, []
            raws: list[_Raw] = []
            for raw in _raws(contents):
                raws.append(raw)
                size += len(raw.content)
                if size > _AT_ONCE_BYTES:
                    break
            return chunks, raws
    except Vanished:
        # It has changed meanwhile, and whoever did will ask again.
        return [], []


def _full_ranges(contents: Contents, series: str) -> Iterator[tuple[BlockEntry, ...]]:
    """Yield the blocks of ranges of CHUNK_LINES that are full."""
    entries = contents.blocks(series, contents.archived(series), 1 << 62)
    for place, group in groupby((entry for entry in entries if not entry.chunk), lambda one: one.first // CHUNK_LINES):
        blocks = tuple(group)
        first, behind = blocks[0].first, blocks[-1].first + blocks[-1].count
        if first == place * CHUNK_LINES and behind == first + CHUNK_LINES and all(block.full for block in blocks):
            yield blocks


def _chunk(contents: Contents, series: str, blocks: tuple[BlockEntry, ...]) -> _Chunk | None:
    """Return the chunk of some blocks; None if it would be too large."""
    found: list[Block] = []
    size = 0
    for entry, page in with_pages(contents, blocks):
        found.append(block_in(page, series, entry))
        size += len(found[-1].data)
        if size > _CHUNK_BYTES:
            return None
    content, places = encode_chunk([block.data for block in found])
    whole: Extremes = {}
    each: list[Extremes] = []
    parts: list[Extremes] = []
    if series != LOGS:
        for entry, block in zip(blocks, found, strict=True):
            each.append(extremes_of(entry.summary))
            extend(whole, each[-1])
            parts += decode_summaries(block.parts)
    index = ChunkIndex(
        [(entry.first, entry.count, *place) for entry, place in zip(blocks, places, strict=True)],
        encode_summaries(each, deflate=True),
        encode_summaries(parts, deflate=True),
    )
    entry = BlockEntry(blocks[0].first, CHUNK_LINES, True, "", summary_of(whole), os.urandom(8).hex())
    return _Chunk(series, blocks, index, entry, content)


def _move_chunk(draft: Draft, chunk: _Chunk) -> bool:
    """Let a chunk take the place of its blocks, if they are all still there."""
    first = chunk.entry.first
    if tuple(draft.blocks(chunk.series, first, first + CHUNK_LINES)) != chunk.blocks:
        return False
    draft.put_chunk(chunk.series, replace(chunk.entry, page=draft.page(chunk.index.encoded())), chunk.blocks)
    begun = first - first % LEVEL
    if chunk.series != LOGS and first + CHUNK_LINES == begun + LEVEL:
        whole: Extremes = {}
        count = 0
        for entry in draft.blocks(chunk.series, begun, begun + LEVEL):
            extend(whole, extremes_of(entry.summary))
            count += entry.count
        if count == LEVEL:
            draft.put_level(chunk.series, begun, count, summary_of(whole))
    return True


def _raws(contents: Contents) -> Iterator[_Raw]:
    """Yield consecutive raw bytes in pages that are enough for an object, or the rest of a complete segment."""
    state = contents.state()
    for journal in contents.journals():
        segments = contents.segments(journal.id)
        newest = {segment.writer: segment.file for segment in segments}
        for segment in segments:
            writer = state.writers.get(segment.writer)
            complete = newest[segment.writer] != segment.file or (writer is not None and not writer.alive)
            for entries in _together([entry for entry in contents.raw(segment.id, 0, segment.length) if entry.page]):
                size = sum(entry.length for entry in entries)
                if size < _RAW_LEAST and (not complete or (len(entries) == 1 and size < _REST_BYTES)):
                    continue
                pages = contents.pages_of([entry.page for entry in entries])
                content = b"".join(pages[entry.page] for entry in entries)
                yield _Raw(segment.id, entries, os.urandom(8).hex() if size >= _REST_BYTES else "", content)


def _together(entries: list[RawEntry]) -> Iterator[tuple[RawEntry, ...]]:
    """Yield entries that follow each other, about _RAW_BYTES together."""
    group: list[RawEntry] = []
    size = 0
    for entry in entries:
        follows = group and group[-1].start + group[-1].length == entry.start
        if group and (not follows or size + entry.length > _RAW_BYTES):
            yield tuple(group)
            group, size = [], 0
        group.append(entry)
        size += entry.length
    if group:
        yield tuple(group)


def _move_raw(draft: Draft, raw: _Raw) -> bool:
    """Let one object or page take the place of several pages, if they are all still there."""
    start = raw.entries[0].start
    if tuple(draft.raw(raw.segment, start, start + len(raw.content))) != raw.entries:
        return False
    for entry in raw.entries:
        draft.drop_raw(raw.segment, entry)
    page = "" if raw.id else draft.page(raw.content)
    draft.put_raw_entry(raw.segment, RawEntry(start, len(raw.content), page, raw.id))
    return True


class Archiver:
    """The thread that archives beside the requests. Any thread may call `notice`; `close` ends it."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self._wake = threading.Condition()
        # Experiment → its series that have something to move; in order.
        self._waiting: dict[tuple[str, str], set[str]] = {}
        # Experiments of which all series were looked at since the start: a crash forgets what was noted.
        self._seen: dict[tuple[str, str], None] = {}
        self._thread: threading.Thread | None = None
        self._busy = False
        self._closing = False

    def notice(self, ns: str, experiment: str, series: set[str]) -> None:
        """Note what a commit has filled."""
        with self._wake:
            self._waiting.setdefault((ns, experiment), set()).update(series)
            if self._thread is None and not self._closing:
                self._thread = threading.Thread(target=self._run, name="archive", daemon=True)
                self._thread.start()
            self._wake.notify_all()

    def wait(self) -> None:
        """Wait until all that was noted is done."""
        with self._wake:
            while self._waiting or self._busy:
                self._wake.wait()

    def close(self) -> None:
        """End the thread after what it is doing. What was noted is found again with the next chunk that is full."""
        with self._wake:
            self._closing = True
            self._waiting = {}
            self._wake.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._busy = False
                self._wake.notify_all()
                while not self._waiting and not self._closing:
                    self._wake.wait()
                if self._closing:
                    return
                key = next(iter(self._waiting))
                series = sorted(self._waiting.pop(key))
                self._busy = True
            try:
                archive(self._changes, *key, series if key in self._seen else None)
                self._remember(key)
            except (StoreTrouble, Refused, OSError) as error:
                # Nothing is lost: it stays where it is until the next chunk is full.
                log.warning("experiment %s of %s could not be archived now: %s", key[1], key[0], error)

    def _remember(self, key: tuple[str, str]) -> None:
        self._seen[key] = None
        if len(self._seen) > _SEEN:
            del self._seen[next(iter(self._seen))]
