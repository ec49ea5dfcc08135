"""Types of the sync protocol's requests and replies. No HTTP library.

docs/protocol.md is the normative text. Both ends import what is here, so that they cannot drift apart.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any, Final, TypedDict

PREFIX: Final = "/sync/v1"
PROTOCOL: Final = 1
PROTOCOL_HEADER: Final = "X-ML-Dash-Protocol"

MAX_BATCH_BYTES: Final = 8 << 20
"""The largest body of one request of frames or blob bytes, decompressed."""

MAX_BLOBS: Final = 1000
"""The most contents of small files in one request."""

ORDER_PAGE: Final = 10_000
"""So many records of the order may be asked for at once."""

BATCH_BYTES: Final = 4 << 20
"""The bytes that a daemon sends at once while it is behind; less after a 413."""

# -- codes of errors that a client acts upon --------------------------------------------------------------------------

GAP: Final = "gap"  # 409, `length`: the server has only that many bytes
CONFLICT: Final = "conflict"  # 409, `offset`: other valid frames are stored there; the first are kept
NEEDS_BLOBS: Final = "needs_blobs"  # 409, `blobs`: send these bodies first
NO_EVENT: Final = "no_event"  # 409: the event that names this blob has not arrived
TORN: Final = "torn"  # 422, `offset`: no whole frame there, and not marked as damaged
DIGEST: Final = "digest"  # 422: the content is not what its name says
TOO_LARGE: Final = "too_large"  # 413, `limit` in bytes
BUSY: Final = "busy"  # 429, Retry-After
UNAVAILABLE: Final = "unavailable"  # 503, Retry-After
QUOTA: Final = "quota"  # 507, `used` and `limit` in bytes: the namespace may not keep more
UNKNOWN: Final = "unknown"  # 404
MALFORMED: Final = "malformed"  # 400 or 422
QUERY: Final = "query"  # 400, `at` and `hint` in the error: a query, an order or columns cannot be understood
UNAUTHORISED: Final = "unauthorised"  # 401
FORBIDDEN: Final = "forbidden"  # 403


class Refused(Exception):
    """A request that the server refuses, as it is answered: HTTP status, code, text and further fields."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        retry_after_s: int | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s
        self.extra = extra

    def body(self) -> dict[str, Any]:
        """Return the JSON body of the answer."""
        return {"error": {"code": self.code, "message": self.message}, **self.extra}


# -- replies ----------------------------------------------------------------------------------------------------------


class SegmentState(TypedDict):
    """A segment as a server has it: its file name, the durable length in bytes, whether its writer has ended."""

    file: str
    length: int
    ended: bool


class BlobState(TypedDict):
    """A blob as a server has it: bytes so far, its size if known, whether it is complete and verified."""

    length: int
    size: int | None
    complete: bool


class JournalState(TypedDict):
    """A journal as a server has it; segments by their id in hex, blobs by their name.

    `removed`: writers whose events it hides; `tombstone`: those are all of them.
    """

    journal: str
    project: str
    name: str
    experiment: str
    segments: dict[str, SegmentState]
    blobs: dict[str, BlobState]
    missing: list[str]
    events: int
    deaths: list[str]
    removed: list[str]
    tombstone: bool


class Appended(TypedDict):
    """The answer to an append: bytes [0, length) of the segment are durable and folded.

    `events` is the experiment's number of events; `files` is true if it has files, whose contents may be missing.
    """

    length: int
    events: int
    files: bool


class Digest(TypedDict):
    """The SHA-256 of the first `of` bytes of a segment of which the server has `length`."""

    length: int
    of: int
    sha256: str


class DeathNote(TypedDict):
    """A death as an observer noted it in `order`: the writer's lock was free, its `segment` read to byte `end`."""

    writer: str
    segment: str
    end: int


class OrderPage(TypedDict):
    """A page of a server's order; `next` is what to give as `after` for the next page, None at the end.

    A record is [1, segment, start, end] for a stretch or [2, writer, segment, end] for a death.
    """

    records: list[list[Any]]
    next: int | None


class FoundExperiment(TypedDict):
    """An experiment as a server has it, for a pull; `running` are its writers that have not ended."""

    experiment: str
    project: str
    name: str
    journals: list[str]
    events: int
    version: int
    running: list[str]


def journal_path(journal: str) -> str:
    """Return the path of a journal's calls; its id is in hex."""
    return f"{PREFIX}/journals/{journal}"


def segment_path(journal: str, file: str) -> str:
    """Return the path to which a segment's bytes are sent."""
    return f"{journal_path(journal)}/segments/{file}"


def blob_path(journal: str, name: str) -> str:
    """Return the path to which a blob's bytes are sent."""
    return f"{journal_path(journal)}/blobs/{name}"


# -- the development login --------------------------------------------------------------------------------------------

DEVELOPMENT_SECRET: Final = "your-secret-key-change-this-in-production"
"""The public key of development logins; servers accept it only with `--dev`, on a loopback address."""


def user_id(name: str) -> str:
    """Return the id of a user by name: decimal text, at most ten digits. "alice" is 3159282601."""
    return str(int(sha256(name.encode()).hexdigest()[:16], 16))[:10]
