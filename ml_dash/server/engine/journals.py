"""The journals that the server holds: lengths, digests, order, bytes and base; and their removal."""

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

_PIECE: Final = 4 << 20


class Journals:
    """The server's copies of journals. `ns` is a namespace. Any thread may call; raises Refused."""

    def __init__(self, ingest: Ingest, documents: Documents, objects: Objects) -> None:
        self._ingest = ingest
        self._documents = documents
        self._objects = objects

    def journal(self, ns: str, journal: str) -> JournalState:
        """What is here of a journal, and which contents are still missing."""
        with self._documents.read() as tx:
            known = tx.journal(ns, journal)
            if known is None:
                raise Refused(404, UNKNOWN, "nothing of this journal is here")
            row = tx.experiment(ns, known.experiment)
            state = decode_state(row) if row is not None else State()
            segments = tx.segments(ns, journal)
            writers = {segment.writer for segment in segments}
            files = [file for file in live_files(state) if file.writer in writers]
            rows = {blob.name: blob for blob in tx.blobs(ns, known.experiment)}
        removed = frozenset(row.removed_writers) if row is not None else frozenset[str]()
        whole = {file.blob for file in files if file.blob in rows and self._is_there(rows[file.blob].key, file)}
        return JournalState(
            journal=journal,
            project=known.project,
            name=known.name,
            experiment=known.experiment,
            segments={segment.id: _segment_state(segment, state) for segment in segments},
            blobs={name: _whole(rows[name]) for name in sorted(whole)},
            missing=[file.blob for file in files if file.blob not in whole],
            events=state.events,
            deaths=sorted(writer for writer in writers if writer in state.writers and state.writers[writer].dead),
            removed=sorted(writers & removed),
            tombstone=bool(writers) and writers <= removed,
        )

    def _is_there(self, key: str, file: File) -> bool:
        return self._objects.size(key) == file.size_bytes

    def digests(self, ns: str, journal: str, wanted: dict[str, int]) -> dict[str, dict[str, Digest]]:
        """SHA-256 of the first bytes of segments, by their ids; as many as were asked for, or as many as are here."""
        found: dict[str, Digest] = {}
        for segment, length in wanted.items():
            with self._documents.read() as tx:
                row = tx.segment(ns, segment)
                if row is None or row.journal != journal:
                    continue
                upto = max(0, min(length, row.length))
                digest = hashlib.sha256()
                for piece in tx.bytes_of(ns, segment, 0, upto):
                    digest.update(piece)
            found[segment] = Digest(length=row.length, of=upto, sha256=digest.hexdigest())
        return {"segments": found}

    # -- bringing an experiment to another machine -------------------------------------------------------------------

    def find_experiment(self, ns: str, project: str, name: str) -> FoundExperiment:
        """An experiment by its names, and the journals that it came in."""
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
        """What was folded, in its order of arrival, from number `after` on."""
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
        more = len(arrivals) == limit
        return OrderPage(records=records, next=arrivals[-1].n + 1 if more else None)

    def segment_bytes(self, ns: str, segment: str, offset: int, limit: int) -> tuple[bytes, dict[str, str]]:
        """Raw bytes of a segment from `offset`, and headers that say how long it is and whose."""
        with self._documents.read() as tx:
            row = tx.segment(ns, segment)
            if row is None:
                raise Refused(404, UNKNOWN, "there is no such segment")
            data = b"".join(tx.bytes_of(ns, segment, offset, min(row.length, offset + limit)))
        headers = {"X-ML-Dash-Length": str(row.length), "X-ML-Dash-File": row.file, "X-ML-Dash-Journal": row.journal}
        return data, headers

    def base(self, ns: str, experiment: str) -> bytes:
        """The folded state and the segments that it came from, as they stand now: for a pull of the state only."""
        stood: dict[str, bases.Stood] = {}
        with self._documents.read() as tx:
            row, state = _known(tx, ns, experiment)
            hidden = frozenset(row.removed_writers)
            for journal in tx.journals(ns, experiment):
                for segment in tx.segments(ns, journal.id):
                    if segment.writer not in hidden:
                        stood[segment.id] = self._stood(tx, ns, segment)
            here = {blob.name: blob.size for blob in tx.blobs(ns, experiment)}
        blobs = {file.blob: here[file.blob] for file in live_files(state) if file.blob in here}
        return bases.encode(bases.Base(project=row.project, name=row.name, state=state, segments=stood, blobs=blobs))

    def _stood(self, tx: Read, ns: str, segment: SegmentRow) -> bases.Stood:
        digest = hashlib.sha256()
        for piece in tx.bytes_of(ns, segment.id, 0, segment.length):
            digest.update(piece)
        return bases.Stood(
            id=segment.id, file=segment.file, writer=segment.writer, journal=segment.journal, length=segment.length,
            sha256=digest.hexdigest(),
        )  # fmt: skip

    # -- removal -----------------------------------------------------------------------------------------------------

    def remove_experiment(self, ns: str, experiment: str) -> dict[str, Any]:
        """Put an experiment out of sight, with what its writers may still send; whoever opens it anew begins at 0."""
        with self._ingest.writing() as tx:
            row, _ = _known(tx, ns, experiment)
            cached = self._ingest.cached(tx, ns, experiment, row.project, row.name)
            writers = set(row.removed_writers) | set(cached.state.writers)
            for journal in tx.journals(ns, experiment):
                tx.put_journal(ns, JournalRow(journal.id, experiment, journal.project, journal.name, True))
                writers |= {segment.writer for segment in tx.segments(ns, journal.id)}
            keys = [blob.key for blob in tx.blobs(ns, experiment)]
            for blob in tx.blobs(ns, experiment):
                tx.drop_blob(ns, experiment, blob.name)
            tx.drop_blocks(ns, experiment)
            cached.open_blocks = {}
            cached.state = State(project=row.project, name=row.name)
            cached.row = replace(cached.row, version=row.version + 1, removed_writers=tuple(sorted(writers)))
            self._ingest.store(tx, ns, cached, Edits())
        self._ingest.notify(ns, cached, keys, removed=True)
        return {"experiment": experiment, "writers": len(writers)}


def _known(tx: Read, ns: str, experiment: str) -> tuple[ExperimentRow, State]:
    row = tx.experiment(ns, experiment)
    if row is None or not row.events:
        raise Refused(404, UNKNOWN, "there is no such experiment")
    return row, decode_state(row)


def _whole(blob: BlobRow) -> BlobState:
    return BlobState(length=blob.size, size=blob.size, complete=True)


def _segment_state(segment: SegmentRow, state: State) -> SegmentState:
    writer = state.writers.get(segment.writer)
    return SegmentState(file=segment.file, length=segment.length, ended=writer is not None and writer.ended is not None)
