"""The two store interfaces of the server: documents (folded rows and raw bytes) and objects (contents of files).

One module per technology implements a seam; `tests/contracts` holds the suite that each has to pass. Nothing above
knows which one is in use.

Documents are small, are searched, and change in transactions; objects are large, are read by key, and never change.
The two are apart because they may be in different places, and because no transaction covers both. So the order of
writing carries the guarantee: an object is durable before the row that names it, and a row is gone before its object
is deleted. What a crash leaves in between is an object without a row, which is only garbage.

Uniqueness does not rest on a transaction either, but on two claims, each an insert under an id that is computed and
not chosen:

    claim_stretch   (namespace, segment, start)       the same bytes are stored once
    claim_arrival   (namespace, experiment, number)   one order of folding, whichever process folds

`sqlite` and `disk` implement them for one machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ...core.ranges import Range
from ...errors import MLDashError, StorageError


class StoreRefused(MLDashError):
    """The data folder cannot be used as it is: damaged, of a newer version, or in use by another server."""


class StoreTrouble(StorageError):
    """The disk or the database refused, for now; nothing was acknowledged."""


class Claimed(Exception):
    """An insert under an id that is taken: another transaction was first. This one is rolled back."""


@dataclass(frozen=True, slots=True)
class SegmentRow:
    """A segment as far as it is here: `length` bytes are durable and folded.

    `first` is the offset of the first frame, `crc` that of the header, with which checksums of frames begin. `damaged`
    are ranges of bytes that never verified.

    `file` is the name of the segment's file, `journal` and `id` are 32 hex digits, `experiment` is the id of the
    experiment.
    """

    id: str
    journal: str
    file: str
    writer: str
    experiment: str
    length: int = 0
    first: int = 0
    crc: int = 0
    damaged: tuple[Range, ...] = ()


@dataclass(frozen=True, slots=True)
class JournalRow:
    """A journal of an experiment; `removed`: the experiment was removed, and later events of its writers are hidden."""

    id: str
    experiment: str
    project: str
    name: str
    removed: bool = False


@dataclass(frozen=True, slots=True)
class ExperimentRow:
    """An experiment as lists show it, and its folded state (encoded).

    `version` is the number of the next arrival, and grows with every change. Times are in ns since the epoch;
    `heard_ns` is the server's own time at which something last arrived. `summary` holds `counts` and `endedAt`.

    `project`, `name`, `status`, `folder`, `tags`, `description` and `summary` are copies of what the state says, so
    that lists need not decode it. `fold_version` says which version of the code made state and blocks.
    """

    id: str
    project: str
    name: str
    version: int
    fold_version: int
    state: bytes
    status: str
    created_ns: int
    updated_ns: int
    heard_ns: int
    folder: str = ""
    tags: tuple[str, ...] = ()
    description: str = ""
    summary: dict[str, Any] = field(default_factory=dict)
    # Writers that had a part in it when it was removed: whatever they still send is stored and hidden.
    removed_writers: tuple[str, ...] = ()

    @property
    def events(self) -> int:
        """The number of folded events.

        Without any, readers do not see it: it was removed, or has only begun to arrive.
        """
        return int(self.summary.get("counts", {}).get("events", 0))


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
class Block:
    """Consecutive lines of one series of lines (`logs`, or `points/<metric>`), the first with number `first`.

    `summary` and `parts` are encoded summaries for down-sampling. `packed`: it is full, and never changes.
    """

    series: str
    first: int
    count: int
    packed: bool
    lines: bytes
    summary: bytes
    parts: bytes = b""


@dataclass(frozen=True, slots=True)
class BlobRow:
    """A blob that is complete and verified; `key` names its object, `digest` is its SHA-256 in hex, `size` in bytes.

    `experiment` is empty for the body of an event, and for a file set otherwise.
    """

    name: str
    digest: str
    size: int
    key: str
    experiment: str


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A token, by the SHA-256 of its text. Times in ns since the epoch; 0 means never."""

    id: str
    digest: str
    user: str
    read_only: bool
    read_all: bool
    created_ns: int
    expires_ns: int
    revoked_ns: int


@dataclass(frozen=True, slots=True)
class Filter:
    """Which experiments are listed, and in which order: `updated` or `created` or `points`, descending, or `name`."""

    project: str | None = None
    status: str | None = None
    tag: str | None = None
    folder: str | None = None
    text: str | None = None
    since_ns: int = 0
    sort: str = "updated"


Place = tuple[int | str, str]
"""Where a page of experiments ended: (value that the last one was sorted by, its id)."""


def place_of(row: ExperimentRow, sort: str) -> Place:
    """Return the place after which the page that follows `row` begins.

    The id decides between equal values: without it, a page could begin in the middle of them and leave some out.
    """
    values: dict[str, int | str] = {
        "updated": row.updated_ns,
        "created": row.created_ns,
        "name": row.name,
        "points": points_of(row),
    }
    return values[sort], row.id


def points_of(row: ExperimentRow) -> int:
    """Return how many points an experiment has."""
    return int(row.summary.get("counts", {}).get("points", 0))


def searched_text(row: ExperimentRow) -> str:
    """Return the text, casefolded, in which `Filter.text` is searched; that must be casefolded as well."""
    return "\n".join((f"{row.project}/{row.name}", row.description, *row.tags)).casefold()


class Read(Protocol):
    """A consistent snapshot of the documents. `ns` is a namespace.

    Iterators that it returns may be used only within it. Methods that look up one row return None if there is none.
    Each raises StoreTrouble if the database refuses.
    """

    def experiment(self, ns: str, experiment: str) -> ExperimentRow | None:
        """Return an experiment by its id, with its state; also one without events."""

    def experiments(self, ns: str, wanted: Filter, limit: int, after: Place | None) -> list[ExperimentRow]:
        """Return at most `limit` experiments after a place, with empty states. Those without events are left out."""

    def count(self, ns: str, wanted: Filter) -> int:
        """Return how many experiments a filter lists on all pages together."""

    def projects(self, ns: str) -> list[dict[str, Any]]:
        """Return {project, experiments (their number), created_ns, updated_ns} of each project, by name."""

    def stale(self, fold_version: int) -> list[tuple[str, str]]:
        """Return (namespace, id) of experiments whose state another version of the fold made."""

    def quiet(self, before_ns: int) -> list[tuple[str, str]]:
        """Return (namespace, id) of running experiments of which nothing arrived since."""

    def journal(self, ns: str, journal: str) -> JournalRow | None:
        """Return a journal by its id (hex)."""

    def journals(self, ns: str, experiment: str) -> list[JournalRow]:
        """Return the journals of an experiment, by id, removed ones too."""

    def segment(self, ns: str, segment: str) -> SegmentRow | None:
        """Return a segment by its id (hex)."""

    def segment_by_file(self, ns: str, journal: str, file: str) -> SegmentRow | None:
        """Return a segment by its journal and the name of its file."""

    def segments(self, ns: str, journal: str) -> list[SegmentRow]:
        """Return the segments of a journal, by the names of their files: those of one writer in their order."""

    def bytes_of(self, ns: str, segment: str, start: int, end: int) -> Iterator[bytes]:
        """Yield the raw bytes [start, end) of a segment in pieces; fewer if fewer are here."""

    def arrivals(self, ns: str, experiment: str, after: int, limit: int) -> list[Arrival]:
        """Return at most `limit` arrivals from number `after` on, which is included, in their order."""

    def has_death(self, ns: str, experiment: str, who: str, segment: str, end: int) -> bool:
        """True if exactly this death was recorded before."""

    def blocks(self, ns: str, experiment: str, series: str, first: int, end: int) -> Iterator[Block]:
        """Yield the blocks of a series that hold any of the lines [first, end), in their order."""

    def last_block(self, ns: str, experiment: str, series: str) -> Block | None:
        """Return the newest block of a series."""

    def summaries(
        self, ns: str, experiment: str, series: str, first: int, end: int, *, parts: bool = False
    ) -> list[tuple[int, int, bytes]]:
        """Return (first, count, summary) of the blocks that hold any of the lines [first, end).

        With `parts`, the third is the summaries of their parts. Lines are not read.
        """

    def blob(self, ns: str, experiment: str, name: str) -> BlobRow | None:
        """Return a complete blob by its name; `experiment` is empty for bodies of events."""

    def blobs(self, ns: str, experiment: str) -> list[BlobRow]:
        """Return the complete blobs of an experiment."""

    def same_content(self, ns: str, digest: str, size: int) -> list[BlobRow]:
        """Return a few blobs of this SHA-256 (hex) and size in bytes, of any experiment of the namespace."""

    def token(self, digest: str) -> TokenRow | None:
        """Return a token by the SHA-256 (hex) of its text, also an expired or revoked one."""

    def tokens(self) -> list[TokenRow]:
        """Return all tokens, oldest first."""

    def setting(self, name: str) -> str | None:
        """Return a setting."""


class Write(Read, Protocol):
    """One transaction: all of it is durable when the block ends, or none of it is stored.

    A `put_...` replaces the row of the same key. Reads see what the transaction has written.
    """

    def claim_stretch(self, ns: str, segment: str, start: int, content: bytes) -> None:
        """Store raw bytes of a segment under the id (ns, segment, start). Raises Claimed if that is taken.

        The caller passes the segment's present length as `start`: so two transactions cannot both continue it.
        """

    def replace_bytes(self, ns: str, segment: str, start: int, content: bytes) -> None:
        """Replace stored bytes that never verified by verified ones, of the same length, from `start` on."""

    def claim_arrival(self, ns: str, experiment: str, arrival: Arrival) -> None:
        """Record what was folded as number `arrival.n`. Raises Claimed if that is taken.

        So of two processes that fold into one experiment at once, one is refused and starts again.
        """

    def put_segment(self, ns: str, row: SegmentRow) -> None:
        """Store a segment; of one that is there, only `length` and `damaged` change.

        Raises Claimed if another has its file.
        """

    def put_journal(self, ns: str, row: JournalRow) -> None:
        """Store a journal."""

    def put_experiment(self, ns: str, row: ExperimentRow) -> None:
        """Store an experiment; lists show it once it has events."""

    def put_blocks(self, ns: str, experiment: str, blocks: Iterable[Block]) -> None:
        """Store blocks, each under (series, first)."""

    def drop_blocks(self, ns: str, experiment: str) -> None:
        """Delete all blocks of an experiment."""

    def put_blob(self, ns: str, row: BlobRow) -> None:
        """Store a complete blob."""

    def drop_blob(self, ns: str, experiment: str, name: str) -> None:
        """Delete the row of a blob, if it is there; its object is the caller's to delete, after the commit."""

    def put_token(self, row: TokenRow) -> None:
        """Store a token; of one that is there, only `expires_ns` and `revoked_ns` change.

        Raises Claimed if another has its digest.
        """

    def put_setting(self, name: str, value: str) -> None:
        """Store a setting."""


class Documents(Protocol):
    """The documents of a server. Any thread may call; one writes at a time."""

    def read(self) -> AbstractContextManager[Read]:
        """Open a snapshot. It does not wait for a writer. Raises StoreTrouble."""

    def write(self) -> AbstractContextManager[Write]:
        """Open a transaction, after those of other threads; committed, and synced, when the block ends.

        An exception within the block rolls it back. Raises Claimed, StoreTrouble; nothing is stored then.
        """

    def check(self) -> None:
        """Raise StoreTrouble if it cannot be used now."""

    def close(self) -> None:
        """Close it. Later calls raise StoreTrouble."""


Entry = tuple[str, int, int]
"""An object: (key, size in bytes, time of the last change in ns since the epoch)."""


class Objects(Protocol):
    """Contents by key, immutable. Any thread may call; every method raises StoreTrouble if the storage refuses.

    A key is parts joined by `/`, each a text that is not empty; it is never used as a path. ValueError for others.
    """

    def put(self, key: str, path: Path) -> None:
        """Move the file at `path` here; durable on return. Replaces what the key had."""

    def put_many(self, items: Sequence[tuple[str, Path]]) -> None:
        """Move many files here, given as (key, path); durable on return. Replaces what the keys had."""

    def put_bytes(self, key: str, content: bytes) -> None:
        """Store a content that is in memory; durable on return. Replaces what the key had."""

    def open(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Return the bytes [start, end) in pieces. Raises FileNotFoundError, at the call and not at the first piece."""

    def size(self, key: str) -> int | None:
        """Return the size in bytes; None if there is no such object."""

    def copy(self, source: str, target: str) -> None:
        """Store the content of `source` under `target` as well; replaces what is there. Raises FileNotFoundError."""

    def delete(self, key: str) -> None:
        """Delete an object, if it is there."""

    def delete_many(self, keys: Iterable[str]) -> None:
        """Delete objects, those that are there. After StoreTrouble some of them may be gone."""

    def list(self, prefix: str) -> Iterator[str]:
        """Yield the keys that begin with `prefix`, in no order."""

    def entries(self, prefix: str) -> Iterator[Entry]:
        """Yield (key, size in bytes, time of the last change in ns) of the objects whose keys begin with `prefix`.

        The time is what the storage's clock says.
        """

    def presigned(self, key: str, filename: str, seconds: int) -> str | None:
        """Return a URL that anybody may download an object from, as `filename`, for so many seconds.

        None if this storage has none. Whether the object is there is not asked.
        """

    def check(self) -> None:
        """Raise StoreTrouble if it cannot be used now."""


class Gap(Exception):
    """A piece of an upload does not follow what is here, or some are missing: `length` bytes are here."""

    def __init__(self, length: int) -> None:
        super().__init__(f"{length} bytes are here")
        self.length = length


class Uploads(Protocol):
    """Contents that arrive in pieces. Any thread of any server may call, also for one upload at the same time.

    A `name` is chosen by the caller: hex digits and dashes, at most 200 (ValueError for others). Whoever uses it again
    sends the same content. Every method raises StoreTrouble if the storage refuses; nothing was acknowledged then.
    """

    def length(self, name: str) -> int:
        """Return how many bytes are here and durable; 0 for a name that is not known.

        It may be less than before after two servers have begun one upload in the same moment, or after `drop`.
        """

    def append(self, name: str, offset: int, data: bytes) -> int:
        """Take bytes [offset, offset + len(data)); return the length then. Durable on return.

        Bytes before the present length are ignored, not compared: the digest of the whole decides. Raises Gap if
        `offset` is beyond the length.
        """

    def finish(self, name: str, size: int, digest: str, key: str) -> bool:
        """Make the upload the object `key`: True. If `digest` (SHA-256 in hex) or size differ, it is dropped: False.

        Once more after a crash at any step does what is left, also if all was done. Raises Gap if bytes are missing.
        """

    def drop(self, name: str) -> None:
        """Forget an upload, if it is there."""

    def sweep(self, before_s: float) -> int:
        """Drop the uploads that were not continued since (seconds since the epoch); return how many."""
