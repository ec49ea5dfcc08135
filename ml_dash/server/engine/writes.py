"""Writes by REST: each call becomes events of the server's own journal, and is answered once they are durable.

Checks and answers are here; numbers, times, frames and the transaction are in `server_writer`. What depends on the
present state (is it protected, is there such a file?) is checked in `make`, within the transaction, so that no other
request comes between the check and the event.

Indices in answers are read from the state after the fold. They are those of this request, because the events of one
request are folded together, and last.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from time import time_ns
from typing import Any

from ...core import events as ev
from ...core.limits import CHUNK_SIZE
from ...core.names import check_filename, check_name, check_prefix, experiment_id, file_id
from ...core.protocol import UNKNOWN, Refused
from ...core.records import experiment_document, metric_id_of
from ...core.state import RUNNING, State
from ...core.times import parse_time, utc_text
from ...disk.durable import fail_point
from ...errors import InvalidInput, InvalidValue, WriteProtected
from ...log import LogLevel
from ..stores import BlobRow, Documents, Objects, StoreTrouble
from .blocks import series_of
from .changes import Change
from .queries import file_answer, parameters_answer
from .quota import Quota
from .server_writer import Answer, New, ServerWriter, points_events, refuse_protected
from .uploads import file_key


class Writes:
    """Writes by REST. `ns` is a namespace, `experiment` an id. Any thread may call. All is durable on return.

    Raises Refused, InvalidInput, WriteProtected; nothing is changed then.
    """

    def __init__(self, writer: ServerWriter, documents: Documents, objects: Objects, quota: Quota) -> None:
        self._writer = writer
        self._documents = documents
        self._objects = objects
        self._quota = quota

    def upsert_experiment(self, ns: str, project: str, body: dict[str, Any]) -> dict[str, Any]:
        """Create an experiment, or change the given fields of the one of that name; return its document.

        A `status` other than running ends it. Where programs record the experiment themselves, they decide the status.
        """
        # False for writeProtected says nothing: a protection cannot be taken back.
        apart = ("name", "status")
        given = {key: value for key, value in body.items() if key not in apart and (key != "writeProtected" or value)}
        events: list[New] = [(ev.UPDATE, given, None)] if given else []
        status = body.get("status", RUNNING)
        ends = None if status == RUNNING else status

        def answer(change: Change) -> dict[str, Any]:
            document = experiment_document(change.state)
            return {"experiment": document, "project": project, "folder": document["folder"], "namespace": ns}

        return self._writer.write(ns, project, body["name"], lambda *_: events, answer, ends=ends)

    def update_experiment(self, ns: str, experiment: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Change title, notes, archived, description, tags or folder; return the document. None takes a value away.

        Raises InvalidName for a title that could not be a name.
        """
        if changes.get("title") is not None:
            check_name("title", changes["title"])
        events: list[New] = [(ev.UPDATE, dict(changes), None)] if changes else []
        return self._write(ns, experiment, lambda *_: events, lambda change: {**experiment_document(change.state)})

    # -- logs and parameters -----------------------------------------------------------------------------------------

    def add_logs(self, ns: str, experiment: str, logs: list[dict[str, Any]]) -> dict[str, Any]:
        """Add log entries; return their numbers. Each has its own timestamp, or the present time."""
        entries = [_log_event(number, entry) for number, entry in enumerate(logs)]
        end = self._write(ns, experiment, lambda *_: entries, lambda change: change.state.logs)
        return {
            "created": len(entries),
            "startSequence": end - len(entries),
            "endSequence": end - 1,
            "experimentId": experiment,
        }

    def set_parameters(self, ns: str, experiment: str, data: dict[str, Any]) -> dict[str, Any]:
        """Merge flat parameters into those that are there; return all of them."""

        def make(state: State, writer: str, first: int) -> list[New]:
            refuse_protected(state)
            return [(ev.PARAMETERS, data, None)] if data else []

        def answer(change: Change) -> dict[str, Any]:
            return parameters_answer(experiment, change.state, change.stored.version)

        return self._write(ns, experiment, make, answer)

    # -- metrics -----------------------------------------------------------------------------------------------------

    def append_points(
        self,
        ns: str,
        experiment: str,
        metric: str,
        rows: list[dict[str, Any]],
        *,
        description: str | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Append points with consecutive indices; return those.

        A given description, tags or metadata replaces the old.
        """
        events = points_events(metric, rows)
        given = ev.given(description=description, tags=tags, metadata=metadata)
        # The metric's event goes before its points.
        if given:
            events.insert(0, (ev.METRIC, [metric, given], None))

        def answer(change: Change) -> dict[str, Any]:
            count = change.state.metrics[metric].count
            return {
                "metricId": metric_id_of(change.state, metric),
                "startIndex": count - len(rows),
                "endIndex": count - 1,
                "count": len(rows),
                "bufferedDataPoints": count - change.draft.archived(series_of(metric)),
                "chunkSize": CHUNK_SIZE,
            }

        return self._write(ns, experiment, lambda *_: events, answer)

    # -- files -------------------------------------------------------------------------------------------------------

    def add_file(self, ns: str, experiment: str, staged: Path, fields: dict[str, Any]) -> dict[str, Any]:
        """Add the file at `staged`, which is moved from there; return its record. `fields` has its size and SHA-256."""
        filename = check_filename(fields["filename"])
        prefix = check_prefix(fields["prefix"])
        path = fields["prefix"] or "/"
        body = ev.file_added(
            path=path,
            prefix=prefix,
            filename=filename,
            size_bytes=fields["sizeBytes"],
            checksum=fields["checksum"],
            content_type=fields["contentType"],
            given=ev.given(**{key: fields.get(key) for key in ("description", "tags", "metadata")}),
        )
        project, name = self._writer.known(ns, experiment)
        self._quota.check(ns, fields["sizeBytes"])
        # The object first, then its row, then the event. The id of a file is made of the writer and number of its
        # event, which is not known before; so a random part takes its place in the key.
        key = file_key(ns, project, experiment, os.urandom(8).hex(), filename)
        self._objects.put(key, staged)
        fail_point("file-stored")
        named: list[BlobRow] = []
        ids: list[str] = []

        def make(state: State, writer: str, first: int) -> list[New]:
            refuse_protected(state)
            ids.append(file_id(bytes.fromhex(writer), first))
            return [(ev.FILE, body, None)]

        def blob(writer: str, first: int) -> BlobRow:
            name = ev.blob_name(fields["checksum"], writer, first)
            named.append(BlobRow(name, fields["checksum"], fields["sizeBytes"], key, experiment))
            return named[0]

        def answer(change: Change) -> dict[str, Any]:
            file = change.state.files[ids[0]]
            return file_answer(change.state, file, {file.blob})

        try:
            added = self._writer.write(ns, project, name, make, answer, blob=blob)
        except (Refused, InvalidInput, WriteProtected, StoreTrouble) as error:
            # No event names it, unless the storage failed in the commit: then nobody knows, and the sweep decides.
            if not named or not isinstance(error, StoreTrouble):
                self._documents.drop_blobs(ns, experiment, [row.name for row in named])
                self._objects.delete(key)
            raise
        self._quota.took(ns, fields["sizeBytes"])
        return added

    def update_file(self, ns: str, experiment: str, file_id: str, changes: dict[str, Any]) -> dict[str, Any]:
        """Change description, tags or metadata of a file; return its record. What is not given stays."""

        def make(state: State, writer: str, first: int) -> list[New]:
            refuse_protected(state)
            _live_file(state, file_id)
            return [(ev.FILE_UPDATE, {"id": file_id, **changes}, None)] if changes else []

        def answer(change: Change) -> dict[str, Any]:
            file = change.state.files[file_id]
            return file_answer(change.state, file, {file.blob})

        return self._write(ns, experiment, make, answer)

    def delete_file(self, ns: str, experiment: str, file_id: str) -> dict[str, Any]:
        """Delete a file and release its content; return {"id", "deletedAt"}."""

        def make(state: State, writer: str, first: int) -> list[New]:
            refuse_protected(state)
            _live_file(state, file_id)
            return [(ev.FILE_DELETE, {"id": file_id}, None)]

        def answer(change: Change) -> dict[str, Any]:
            return {"id": file_id, "deletedAt": utc_text(change.state.files[file_id].deleted_ns)}

        return self._write(ns, experiment, make, answer, removes=True)

    def _write(
        self, ns: str, experiment: str, make: Any, answer: Callable[[Change], Answer], *, removes: bool = False
    ) -> Answer:
        """Write to an experiment that is here, given by its id. Raises Refused (404) for others.

        The names are looked up first, because the id of an experiment is computed from them and a new segment's
        header needs them.
        """
        project, name = self._writer.known(ns, experiment)
        assert experiment_id(project, name) == experiment
        return self._writer.write(ns, project, name, make, answer, removes=removes)


def _live_file(state: State, file_id: str) -> None:
    """Raise Refused (404) unless there is such a file, not deleted and not replaced."""
    file = state.files.get(file_id)
    if file is None or not file.live:
        raise Refused(404, UNKNOWN, "there is no such file")


def _log_event(number: int, entry: dict[str, Any]) -> New:
    """Return the event of a log entry, the `number`-th of its request. Raises InvalidValue for a level or time."""
    level = LogLevel.validate(entry.get("level") or "info")
    text = entry.get("timestamp")
    try:
        # A time in the future would keep the experiment the newest until then; 0 means no time.
        time = None if text is None else max(1, min(parse_time(text), time_ns()))
    except ValueError:
        raise InvalidValue(
            f"logs[{number}].timestamp is {text!r:.60}", hint="use ISO 8601, as 2025-10-25T10:30:00.123Z"
        ) from None
    return ev.LOG, [level, entry["message"], entry.get("metadata")], time
