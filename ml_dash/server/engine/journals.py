"""The journals that the server holds: lengths, digests, order, bytes and base; and their removal.

What sync asks about, apart from taking bytes: what is here (for the uploader's cursor), what it hashes to (for the
proof), and the order and bytes themselves (for `pull`). Each answer comes from one snapshot, so lengths, missing
blobs and deaths belong together. Whether objects are there is asked outside of it, because that is another store.

A removed experiment keeps its segments, so that late uploads are compared and acknowledged; its writers are hidden
everywhere: in the order, in the base, in the state.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any, Final

from ...core.names import experiment_id
from ...core.protocol import UNKNOWN, BlobState, Digest, FoundExperiment, JournalState, OrderPage, Refused, SegmentState
from ...core.records import live_files
from ...core.state import Edits, File, State
from ...journal import base as bases
from ..stores import BlobRow, Documents, ExperimentRow, JournalRow, Objects, Read, SegmentRow
from .ingest import STRETCH, Ingest, decode_state

_PIECE_BYTES: Final = 4 << 20


class Journals:
    """The server's copies of journals. `ns` is a namespace. Any thread may call.

    Every method raises Refused (404) for a journal or experiment that is not here.
    """

    def __init__(self, ingest: Ingest, documents: Documents, objects: Objects) -> None:
        self._ingest = ingest
        self._documents = documents
        self._objects = objects

    def journal(self, ns: str, journal: str) -> JournalState:
        """Return what is here of a journal: its segments with their lengths, its blobs, and which blobs are missing."""
        with self._documents.read() as tx:
            journal_row = tx.journal(ns, journal)
            if journal_row is None:
                raise Refused(404, UNKNOWN, "this journal is not here")
            row = tx.experiment(ns, journal_row.experiment)
            state = decode_state(row) if row is not None else State()
            segments = tx.segments(ns, journal)
            writers = {segment.writer for segment in segments}
            files = [file for file in live_files(state) if file.writer in writers]
            # All blobs of the experiment in one query; then those whose file belongs to a writer of this journal.
            rows = {blob.name: blob for blob in tx.blobs(ns, journal_row.experiment)}
        removed = frozenset(row.removed_writers) if row is not None else frozenset[str]()
        whole = {file.blob for file in files if file.blob in rows and self._is_there(rows[file.blob].key, file)}
        return JournalState(
            journal=journal,
            project=journal_row.project,
            name=journal_row.name,
            experiment=journal_row.experiment,
            segments={segment.id: _segment_state(segment, state) for segment in segments},
            blobs={name: _whole(rows[name]) for name in sorted(whole)},
            missing=[file.blob for file in files if file.blob not in whole],
            events=state.events,
            deaths=sorted(writer for writer in writers if writer in state.writers and state.writers[writer].dead),
            removed=sorted(writers & removed),
            tombstone=bool(writers) and writers <= removed,
        )

    def _is_there(self, key: str, file: File) -> bool:
        """True if the object of a file is there and has its size.

        It may be lost with an older backup of the objects.
        """
        return self._objects.size(key) == file.size_bytes

    def digests(self, ns: str, journal: str, wanted: dict[str, int]) -> dict[str, dict[str, Digest]]:
        """Return the SHA-256 of the first bytes of segments: {"segments": {id: digest}}.

        `wanted` says how many bytes of each; where fewer are here, those are hashed. Segments of other journals are
        left out.
        """
        answers: dict[str, Digest] = {}
        for segment, length in wanted.items():
            with self._documents.read() as tx:
                row = tx.segment(ns, segment)
                if row is None or row.journal != journal:
                    continue
                # Of the bytes that both have: one side may be ahead, and that is not a difference.
                upto = max(0, min(length, row.length))
                digest = hashlib.sha256()
                for piece in tx.bytes_of(ns, segment, 0, upto):
                    digest.update(piece)
            answers[segment] = Digest(length=row.length, of=upto, sha256=digest.hexdigest())
        return {"segments": answers}

    # -- bringing an experiment to another machine -------------------------------------------------------------------

    def find_experiment(self, ns: str, project: str, name: str) -> FoundExperiment:
        """Return an experiment by its project and name, with the ids of its journals."""
        identity = experiment_id(project, name)
        with self._documents.read() as tx:
            row, state = _known(tx, ns, identity)
            journals = tx.journals(ns, identity)
        return FoundExperiment(
            experiment=identity,
            project=row.project,
            name=row.name,
            journals=[journal.id for journal in journals],
            events=state.events,
            version=row.version,
            running=sorted(writer for writer in state.alive if not (state.writers[writer].place or {}).get("server")),
        )

    def order(self, ns: str, experiment: str, after: int, limit: int) -> OrderPage:
        """Return what was folded, in its order of arrival, from arrival number `after` on: at most `limit` records.

        A record is [1, segment, start, end] for a stretch or [2, writer, segment, end] for a death.
        """
        with self._documents.read() as tx:
            row, _ = _known(tx, ns, experiment)
            hidden = frozenset(row.removed_writers)
            arrivals = tx.arrivals(ns, experiment, after, limit)
            records: list[list[Any]] = []
            for arrival in arrivals:
                if arrival.kind == STRETCH:
                    segment = tx.segment(ns, arrival.who)
                    if segment is not None and segment.writer not in hidden:
                        records.append([1, arrival.who, arrival.start, arrival.end])
                elif arrival.who not in hidden:
                    records.append([2, arrival.who, arrival.segment, arrival.end])
        # Counted before hidden ones are left out: an empty page in the middle must not look like the end.
        more = len(arrivals) == limit
        return OrderPage(records=records, next=arrivals[-1].n + 1 if more else None)

    def segment_bytes(self, ns: str, segment: str, offset: int, limit: int) -> tuple[bytes, dict[str, str]]:
        """Return at most `limit` raw bytes of a segment from `offset`, and headers: its length, file and journal."""
        with self._documents.read() as tx:
            row = tx.segment(ns, segment)
            if row is None:
                raise Refused(404, UNKNOWN, "there is no such segment")
            data = b"".join(tx.bytes_of(ns, segment, offset, min(row.length, offset + limit)))
        headers = {"X-ML-Dash-Length": str(row.length), "X-ML-Dash-File": row.file, "X-ML-Dash-Journal": row.journal}
        return data, headers

    def base(self, ns: str, experiment: str) -> bytes:
        """Return an encoded base: the folded state now, and the segments that it comes from.

        For a pull of the state only.
        """
        freed: dict[str, bases.FreedSegment] = {}
        with self._documents.read() as tx:
            row, state = _known(tx, ns, experiment)
            hidden = frozenset(row.removed_writers)
            for journal in tx.journals(ns, experiment):
                for segment in tx.segments(ns, journal.id):
                    if segment.writer not in hidden:
                        freed[segment.id] = self._freed_segment(tx, ns, segment)
            here = {blob.name: blob.size for blob in tx.blobs(ns, experiment)}
        blobs = {file.blob: here[file.blob] for file in live_files(state) if file.blob in here}
        return bases.encode(bases.Base(project=row.project, name=row.name, state=state, segments=freed, blobs=blobs))

    def _freed_segment(self, tx: Read, ns: str, segment: SegmentRow) -> bases.FreedSegment:
        """Return what a base says of a segment that it stands for: its length and the SHA-256 of all its bytes."""
        digest = hashlib.sha256()
        for piece in tx.bytes_of(ns, segment.id, 0, segment.length):
            digest.update(piece)
        return bases.FreedSegment(
            id=segment.id, file=segment.file, writer=segment.writer, journal=segment.journal, length=segment.length,
            sha256=digest.hexdigest(),
        )  # fmt: skip

    # -- removal -----------------------------------------------------------------------------------------------------

    def remove_experiment(self, ns: str, experiment: str) -> dict[str, Any]:
        """Hide an experiment, and all that its writers may still send; a new one of its name begins at 0.

        Segments stay stored, so that late uploads of them are acknowledged; contents of files are deleted.
        """
        with self._ingest.writing() as tx:
            row, _ = _known(tx, ns, experiment)
            cached = self._ingest.cached(tx, ns, experiment, row.project, row.name)
            writers = set(row.removed_writers) | set(cached.state.writers)
            for journal in tx.journals(ns, experiment):
                tx.put_journal(ns, JournalRow(journal.id, experiment, journal.project, journal.name, True))
                # Also writers of which nothing could be folded so far.
                writers |= {segment.writer for segment in tx.segments(ns, journal.id)}
            keys = [blob.key for blob in tx.blobs(ns, experiment)]
            for blob in tx.blobs(ns, experiment):
                tx.drop_blob(ns, experiment, blob.name)
            tx.drop_blocks(ns, experiment)
            cached.open_blocks = {}
            cached.state = State(project=row.project, name=row.name)
            # The version grows without an arrival, so that other processes notice that their cached state is old.
            cached.row = replace(cached.row, version=row.version + 1, removed_writers=tuple(sorted(writers)))
            self._ingest.store(tx, ns, cached, Edits())
        self._ingest.notify(ns, cached, keys, removed=True)
        return {"experiment": experiment, "writers": len(writers)}


def _known(tx: Read, ns: str, experiment: str) -> tuple[ExperimentRow, State]:
    """Return an experiment that readers may see. Raises Refused (404)."""
    row = tx.experiment(ns, experiment)
    if row is None or not row.events:
        raise Refused(404, UNKNOWN, "there is no such experiment")
    return row, decode_state(row)


def _whole(blob: BlobRow) -> BlobState:
    """Return the state of a blob that is complete."""
    return BlobState(length=blob.size, size=blob.size, complete=True)


def _segment_state(segment: SegmentRow, state: State) -> SegmentState:
    """Return what an uploader is told of a segment. `ended` is by the fold, so it waits for the closing event."""
    writer = state.writers.get(segment.writer)
    return SegmentState(file=segment.file, length=segment.length, ended=writer is not None and writer.ended is not None)
