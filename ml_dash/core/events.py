"""The kinds of events, and the wire form of their bodies.

An event is `(seq, kind, time_ns, body)`. It is identified for ever by (writer id, seq) and never changes. Kinds are
small integers; a reader passes on kinds it does not know. Bodies are plain msgpack values:

| kind          | body                                                                        |
|---------------|-----------------------------------------------------------------------------|
| `OPEN`        | map: see `opening()`                                                        |
| `CLOSE`       | map: `status`; `error` (type, message, traceback) when it failed; `signal`  |
|               | (its number) or `exitCode` where the process was ended by one               |
| `LOG`         | `[level, message, metadata or nil]`                                         |
| `PARAMETERS`  | map of dotted keys to values                                                |
| `POINT`       | `[metric, {field: value}]`                                                  |
| `POINTS`      | `[metric, [field, ...], [column, ...]]`, every point has the same fields    |
| `ROWS`        | `[metric, [{field: value}, ...]]`, the fields vary                          |
| `METRIC`      | `[metric, map]` of the `description`, `tags`, `metadata` that were given    |
| `FILE`        | map: see `file_added()`                                                     |
| `FILE_UPDATE` | map: `id`, and the `description`, `tags`, `metadata` that were given        |
| `FILE_DELETE` | map: `id`                                                                   |
| `UPDATE`      | map of the `description`, `tags`, `folder`, `metadata`, `title`, `notes`,   |
|               | `archived` that were given                                                  |
| `LOST`        | map: `count` of events, `reason`; the numbers `from`..`to` stay unused      |
| `REWIND`      | map: `step`, and `metrics` (a list of names) where not all are meant        |

Bodies are kept for ever, and are read by programs of other versions. So kinds and keys are never used again for
something else; a new meaning gets a new kind or a new key, and who does not know it passes it on.

In maps an absent key means *leave as it is*, nil means *no value*. The functions in the second half check what comes
from disk: they raise Malformed, and the fold counts that.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, cast

from . import limits

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
REWIND: Final = 14

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
    REWIND: "rewind",
}

ENDINGS: Final = ("completed", "failed", "interrupted")
"""The ways in which a run may end; `CLOSE` says which."""
STATUSES: Final = ("running", *ENDINGS)
"""The statuses of an experiment."""

Body = Any
"""A msgpack value; its shape depends on the kind."""

Given = dict[str, Any]
"""Only the arguments that the caller gave: absent means "leave as it is", None means "no value"."""


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
    """Return the body of `OPEN`. `folder_path` leads from the store to the documented folder, in POSIX form.

    `place` says where the writer runs (host, pid, versions, script, git, scheduler variables). A `child` (forked,
    or unpickled in another process) has a `parent` writer and never decides the status.
    """
    body: Given = {"project": project, "name": name, "folderPath": folder_path, **place, **given}
    # Only what says something: an opening event is read at every start.
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
    """Return the body of `FILE`: the prefix as given and in canonical form, the content's SHA-256 in lower-case hex."""
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
    """Return the arguments that are not None."""
    return {key: value for key, value in arguments.items() if value is not None}


def blob_name(digest: str, writer: str, seq: int) -> str:
    """Return the name of the blob of event (writer, seq): its SHA-256 in hex, and the event's identity."""
    return f"{digest}-{writer}-{seq}"


# -- reading: bodies come from disk, and a checksum does not say that they make sense ---------------------------------

# Values nest in each other; a forged body could do so thousands of times.
MAX_DEPTH: Final = 100
"""Deeper values cannot have been recorded (`values.MAX_DEPTH` is less), and would exhaust the stack."""

_LEAVES: Final = frozenset((type(None), bool, int, float, str, bytes))
_TEXT: Final = frozenset((str,))
# Types of registers that are neither tags nor texts.
_TYPES: Final[dict[str, type]] = {"metadata": dict, "archived": bool}


class Malformed(ValueError):
    """The body of an event does not have the shape of its kind."""


def plain(value: Any, depth: int = MAX_DEPTH) -> bool:
    """True if a caller can have recorded this value.

    None, bool, int, float, text, bytes, or lists and mappings of them.
    """
    # Exact types: subclasses cannot come out of msgpack.
    kind = type(value)
    if kind in _LEAVES:
        return True
    if not depth:
        return False
    if kind is list:
        # One set of types first: a list of a million numbers is checked in C.
        return all_leaves(value) or all(plain(item, depth - 1) for item in value)
    if kind is dict:
        items = value.values()
        return set(map(type, value)) <= _TEXT and (all_leaves(items) or all(plain(item, depth - 1) for item in items))
    return False


def all_leaves(values: Iterable[Any]) -> bool:
    """True if all values are of types that are recorded as they are: no lists, mappings or other objects."""
    return set(map(type, values)) <= _LEAVES


def mapping(value: Any) -> dict[str, Any]:
    """Return the value if it is a mapping of text to plain values. Raises Malformed."""
    if type(value) is not dict or not plain(value):
        raise Malformed
    return value


def text(value: Any) -> str:
    """Return the value if it is a text. Raises Malformed."""
    if type(value) is not str:
        raise Malformed
    return value


def natural(value: Any) -> int:
    """Return the value if it is an integer from 0 to 2**63 - 1. Raises Malformed."""
    # An exact type, since True is an int as well.
    if type(value) is not int or not 0 <= value <= limits.INT64_MAX:
        raise Malformed
    return value


def step(value: Any) -> int | float:
    """Return the value if it is a finite number, not negative. Raises Malformed."""
    if type(value) not in (int, float) or not 0 <= value < float("inf"):
        raise Malformed
    return cast("int | float", value)


def changes(body: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Return what a body has of `keys`: `description`, `tags`, `folder`, `metadata`, `title`, `notes`, `archived`.

    Raises Malformed.
    """
    given = {key: body[key] for key in keys if key in body}
    for key, value in given.items():
        if value is None:
            continue
        if key == "tags":
            # Tags are a list of texts.
            if type(value) is not list or not set(map(type, value)) <= _TEXT:
                raise Malformed
        elif type(value) is not _TYPES.get(key, str):
            raise Malformed
    return given
