"""The facts that can happen to an experiment: their kinds, and the wire form of their bodies.

An event is `(seq, kind, time_ns, body)`. It is identified for ever by (writer id, seq) and never changes. Kinds are
small integers; a reader passes on kinds it does not know. Bodies are plain msgpack values:

| kind          | body                                                                        |
|---------------|-----------------------------------------------------------------------------|
| `OPEN`        | map: see `opening()`                                                        |
| `CLOSE`       | map: `status`, and `error` (type, message, traceback) when it failed        |
| `LOG`         | `[level, message, metadata or nil]`                                         |
| `PARAMETERS`  | map of dotted keys to values                                                |
| `POINT`       | `[metric, {field: value}]`                                                  |
| `POINTS`      | `[metric, [field, ...], [column, ...]]`, every point has the same fields    |
| `ROWS`        | `[metric, [{field: value}, ...]]`, the fields vary                          |
| `METRIC`      | `[metric, map]` of the `description`, `tags`, `metadata` that were given    |
| `FILE`        | map: see `file_added()`                                                     |
| `FILE_UPDATE` | map: `id`, and the `description`, `tags`, `metadata` that were given        |
| `FILE_DELETE` | map: `id`                                                                   |
| `UPDATE`      | map of the `description`, `tags`, `folder`, `metadata` that were given      |
| `LOST`        | map: `count` of events, `reason`; the numbers `from`..`to` stay unused      |
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

OPEN: Final = 1
CLOSE: Final = 2
LOG: Final = 3
PARAMETERS: Final = 4
POINT: Final = 5
POINTS: Final = 6
ROWS: Final = 7
METRIC: Final = 8
FILE: Final = 9
FILE_UPDATE: Final = 10
FILE_DELETE: Final = 11
UPDATE: Final = 12
LOST: Final = 13

NAMES: Final[dict[int, str]] = {
    OPEN: "open",
    CLOSE: "close",
    LOG: "log",
    PARAMETERS: "parameters",
    POINT: "point",
    POINTS: "points",
    ROWS: "rows",
    METRIC: "metric",
    FILE: "file",
    FILE_UPDATE: "file_update",
    FILE_DELETE: "file_delete",
    UPDATE: "update",
    LOST: "lost",
}

Body = Any
"""A msgpack value; its shape depends on the kind."""

Given = dict[str, Any]
"""Only what the caller gave: absent means "leave as it is", None means "no value"."""


class Stamp(NamedTuple):
    """What decides between two values of one register: the greatest stamp wins."""

    time_ns: int
    writer: str
    seq: int


def opening(
    *,
    given: Given,
    project: str,
    name: str,
    protected: bool,
    folder_path: str,
    remote: str | None,
    user_name: str | None,
    place: dict[str, Any],
    parent: str | None,
    child: bool,
) -> Given:
    """The body of `OPEN`. `folder_path` leads from the store to the documented folder, in POSIX form.

    `place` tells where the writer runs (host, pid, versions, script, git, scheduler variables). A `child` (forked,
    or unpickled in another process) has a `parent` writer and never decides the status.
    """
    body: Given = {"project": project, "name": name, "folderPath": folder_path, **place, **given}
    optional = {"writeProtected": protected or None, "remote": remote, "userName": user_name, "parent": parent}
    body.update({key: value for key, value in optional.items() if value is not None})
    if child:
        body["child"] = True
    return body


def file_added(
    *,
    path: str,
    prefix: str,
    filename: str,
    size_bytes: int,
    checksum: str,
    content_type: str,
    given: Given,
) -> Given:
    """The body of `FILE`: the prefix as given and in canonical form, the content's SHA-256 in lower-case hex."""
    return {
        "path": path,
        "prefix": prefix,
        "filename": filename,
        "sizeBytes": size_bytes,
        "checksum": checksum,
        "contentType": content_type,
        **given,
    }


def given(**arguments: Any) -> Given:
    """Those arguments that are not None."""
    return {key: value for key, value in arguments.items() if value is not None}


def blob_name(digest: str, writer: str, seq: int) -> str:
    """The name of the content that event (writer, seq) brought: its SHA-256 in hex, and the event's identity."""
    return f"{digest}-{writer}-{seq}"
