"""The journals that the server holds: lengths, digests, order, bytes and base; and their removal.

What sync asks about, apart from taking bytes: what is here (for the uploader's cursor), what it hashes to (for the
proof), and the order and bytes themselves (for `pull`). Each answer comes from one version of the experiment, so
lengths, missing blobs and deaths belong together. Whether objects are there is asked of their own store.

A removed experiment keeps its segments, so that late uploads are compared and acknowledged; its writers are hidden
everywhere: in the order, in the base, in the state.
"""

from __future__ import annotations

import hashlib
import logging
from typing import Any

from ...core.names import experiment_id
from ...core.protocol import UNKNOWN, BlobState, Digest, FoundExperiment, JournalState, OrderPage, Refused, SegmentState
from ...core.records import live_files
from ...core.state import State, WriterState
from ...journal import base as bases
from ..stores import BlobRow, ExperimentRow, JournalClaim, StoreTrouble, View
from .changes import STRETCH, Changes
from .contents import Contents, JournalRow, SegmentRow, steady
from .parts import whole_state

log = logging.getLogger("ml_dash.server")


class Journals:
    """The server's copies of journals. `ns` is a namespace. Any thread may call.

    Every method raises Refused (404) for a journal or experiment that is not here.
    """

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self._documents = changes.documents
        self._objects = changes.objects

    @steady
    def journal(self, ns: str, journal: str) -> JournalState:
        """Return what is here of a journal: its segments with their lengths, its blobs, and which blobs are missing."""
        with self._documents.view() as view:
            claim, contents = self._of_journal(view, ns, journal)
            state = contents.state()
            segments = contents.segments(journal)
            writers = {segment.writer for segment in segments}
            files = [file for file in live_files(state) if file.writer in writers]
            # All blobs of the experiment in one query; then those whose file belongs to a writer of this journal.
            rows = {blob.name: blob for blob in view.blobs(ns, claim.experiment)}
            found = {writer: state.writers.get(writer) for writer in writers}
            removed = sorted(writer for writer in writers if contents.is_removed(writer))
            events = state.events
        here = self._objects.sizes([rows[file.blob].key for file in files if file.blob in rows])
        # An object may be lost with an older backup of the objects.
        whole = {file.blob for file in files if file.blob in rows and here.get(rows[file.blob].key) == file.size_bytes}
        return JournalState(
            journal=journal,
            project=claim.project,
            name=claim.name,
            experiment=claim.experiment,
            segments={segment.id: _segment_state(segment, found[segment.writer]) for segment in segments},
            blobs={name: _whole(rows[name]) for name in sorted(whole)},
            missing=[file.blob for file in files if file.blob not in whole],
            events=events,
            deaths=sorted(writer for writer, state in found.items() if state is not None and state.dead),
            removed=removed,
            tombstone=bool(writers) and len(writers) == len(removed),
        )

    def _of_journal(self, view: View, ns: str, journal: str) -> tuple[JournalClaim, Contents]:
        """Return the claim of a journal and the contents of its experiment. Raises Refused (404)."""
        claim = view.journal(ns, journal)
        row = view.experiment(ns, claim.experiment) if claim is not None else None
        contents = self._changes.reader.contents(view, ns, row) if row is not None else None
        # A journal may be claimed and nothing of it be here, after a crash.
        if claim is None or contents is None or contents.journal(journal) is None:
            raise Refused(404, UNKNOWN, "this journal is not here")
        return claim, contents

    @steady
    def digests(self, ns: str, journal: str, wanted: dict[str, int]) -> dict[str, dict[str, Digest]]:
        """Return the SHA-256 of the first bytes of segments: {"segments": {id: digest}}.

        `wanted` says how many bytes of each; where fewer are here, those are hashed. Segments of other journals are
        left out.
        """
        answers: dict[str, Digest] = {}
        for segment, length in wanted.items():
            with self._documents.view() as view:
                found = self._segment(view, ns, segment)
                if found is None or found[1].journal != journal:
                    continue
                contents, row = found
                # Of the bytes that both have: one side may be ahead, and that is not a difference.
                upto = max(0, min(length, row.length))
                digest = hashlib.sha256()
                for piece in contents.bytes_of(segment, 0, upto):
                    digest.update(piece)
            answers[segment] = Digest(length=row.length, of=upto, sha256=digest.hexdigest())
        return {"segments": answers}

    def _segment(self, view: View, ns: str, segment: str) -> tuple[Contents, SegmentRow] | None:
        """Return the contents that hold a segment, and the segment; None if nothing of it is here."""
        claim = view.segment(ns, segment)
        row = view.experiment(ns, claim.experiment) if claim is not None else None
        if claim is None or row is None:
            return None
        contents = self._changes.reader.contents(view, ns, row)
        found = contents.segment(claim.journal, claim.file)
        return (contents, found) if found is not None else None

    # -- bringing an experiment to another machine -------------------------------------------------------------------

    @steady
    def find_experiment(self, ns: str, project: str, name: str) -> FoundExperiment:
        """Return an experiment by its project and name, with the ids of its journals."""
        identity = experiment_id(project, name)
        with self._documents.view() as view:
            contents, state = self._known(view, ns, identity)
            return FoundExperiment(
                experiment=identity,
                project=contents.row.project,
                name=contents.row.name,
                journals=[journal.id for journal in contents.journals()],
                events=state.events,
                version=contents.row.version,
                running=sorted(
                    writer for writer in state.alive if not (state.writers[writer].place or {}).get("server")
                ),
            )

    @steady
    def order(self, ns: str, experiment: str, after: int, limit: int) -> OrderPage:
        """Return what was folded, in its order of arrival, from arrival number `after` on: at most `limit` records.

        A record is [1, segment, start, end] for a stretch or [2, writer, segment, end] for a death.
        """
        with self._documents.view() as view:
            contents, _ = self._known(view, ns, experiment)
            hidden = frozenset(contents.removed_writers())
            writers = {
                segment.id: segment.writer
                for journal in contents.journals()
                for segment in contents.segments(journal.id)
            }
            arrivals = contents.arrivals(after, limit)
        records: list[list[Any]] = []
        for arrival in arrivals:
            if arrival.kind == STRETCH:
                if arrival.who in writers and writers[arrival.who] not in hidden:
                    records.append([1, arrival.who, arrival.start, arrival.end])
            elif arrival.who not in hidden:
                records.append([2, arrival.who, arrival.segment, arrival.end])
        # Counted before hidden ones are left out: an empty page in the middle must not look like the end.
        more = len(arrivals) == limit
        return OrderPage(records=records, next=arrivals[-1].n + 1 if more else None)

    @steady
    def segment_bytes(self, ns: str, segment: str, offset: int, limit: int) -> tuple[bytes, dict[str, str]]:
        """Return at most `limit` raw bytes of a segment from `offset`, and headers: its length, file and journal."""
        with self._documents.view() as view:
            found = self._segment(view, ns, segment)
            if found is None:
                raise Refused(404, UNKNOWN, "there is no such segment")
            contents, row = found
            data = b"".join(contents.bytes_of(segment, offset, min(row.length, offset + limit)))
        headers = {"X-ML-Dash-Length": str(row.length), "X-ML-Dash-File": row.file, "X-ML-Dash-Journal": row.journal}
        return data, headers

    @steady
    def base(self, ns: str, experiment: str) -> bytes:
        """Return an encoded base: the folded state now, and the segments that it comes from.

        For a pull of the state only.
        """
        freed: dict[str, bases.FreedSegment] = {}
        with self._documents.view() as view:
            contents, lazy = self._known(view, ns, experiment)
            for journal in contents.journals():
                for segment in contents.segments(journal.id):
                    if not contents.is_removed(segment.writer):
                        freed[segment.id] = _freed_segment(contents, segment)
            here = {blob.name: blob.size for blob in view.blobs(ns, experiment)}
            state = whole_state(lazy)
        blobs = {file.blob: here[file.blob] for file in live_files(state) if file.blob in here}
        row = contents.row
        return bases.encode(bases.Base(project=row.project, name=row.name, state=state, segments=freed, blobs=blobs))

    def _known(self, view: View, ns: str, experiment: str) -> tuple[Contents, State]:
        """Return an experiment that readers may see, with its state. Raises Refused (404)."""
        contents = self._changes.reader.contents(view, ns, known(view, ns, experiment))
        return contents, contents.state()

    # -- removal -----------------------------------------------------------------------------------------------------

    def remove_experiment(self, ns: str, experiment: str) -> dict[str, Any]:
        """Hide an experiment, and all that its writers may still send; a new one of its name begins at 0.

        Segments stay stored, so that late uploads of them are acknowledged; contents of files are deleted.
        """
        with self._documents.view() as view:
            row = known(view, ns, experiment)
        with self._changes.changing(ns, experiment, row.project, row.name) as change:
            if not change.stored.events:
                raise Refused(404, UNKNOWN, "there is no such experiment")
            draft = change.draft
            writers = set(draft.removed_writers()) | set(change.state.writers)
            for journal in draft.journals():
                draft.put_journal(JournalRow(journal.id, journal.project, journal.name, True))
                # Also writers of which nothing could be folded so far.
                writers |= {segment.writer for segment in draft.segments(journal.id)}
            for writer in sorted(writers):
                draft.put_removed(writer)
            change.forget(row.project, row.name)
            change.commit()
        # After the commit: until then the files are listed, and their contents must be here.
        with self._documents.view() as view:
            names = [blob.name for blob in view.blobs(ns, experiment)]
        try:
            self._changes.drop_blobs(ns, experiment, names)
        except StoreTrouble as error:
            log.warning("contents of the removed experiment %s are still stored: %s", experiment, error)
        return {"experiment": experiment, "writers": len(writers)}


def known(view: View, ns: str, experiment: str) -> ExperimentRow:
    """Return the head of an experiment that readers may see. Raises Refused (404)."""
    row = view.experiment(ns, experiment)
    if row is None or not row.events:
        raise Refused(404, UNKNOWN, "there is no such experiment")
    return row


def _freed_segment(contents: Contents, segment: SegmentRow) -> bases.FreedSegment:
    """Return what a base says of a segment that it stands for: its length and the SHA-256 of all its bytes."""
    digest = hashlib.sha256()
    for piece in contents.bytes_of(segment.id, 0, segment.length):
        digest.update(piece)
    return bases.FreedSegment(
        id=segment.id, file=segment.file, writer=segment.writer, journal=segment.journal, length=segment.length,
        sha256=digest.hexdigest(),
    )  # fmt: skip


def _whole(blob: BlobRow) -> BlobState:
    """Return the state of a blob that is complete."""
    return BlobState(length=blob.size, size=blob.size, complete=True)


def _segment_state(segment: SegmentRow, writer: WriterState | None) -> SegmentState:
    """Return what an uploader is told of a segment. `ended` is by the fold, so it waits for the closing event."""
    return SegmentState(file=segment.file, length=segment.length, ended=writer is not None and writer.ended is not None)
