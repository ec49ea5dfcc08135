"""The store interfaces of the server: documents (what is folded, and raw bytes) and objects (contents of files).

One module per technology implements a seam; `tests/contracts` holds the suite that each has to pass. Nothing above
knows which one is in use.

Documents are small and searched; objects are large, read by key, and never change. The two are apart because they may
be in different places, and because no transaction covers both. So the order of writing carries the guarantee: an
object is durable before the row that names it, and a row is gone before its object is deleted. What a crash leaves in
between is an object without a row, which is only garbage.

Among the documents nothing rests on a transaction over several rows either. The contents of an experiment are pages,
each inserted once under an id of its own and never changed; the newest *head* of the experiment names the root page,
and so all of them:

    lease     insert (experiment, epoch), first wins      who folds next; taken over when it was unchanged for LEASE_S
    pages     insert, under ids that hold version and epoch: nobody sees them yet
    head      insert (experiment, version), first wins    from here on readers see them; all is durable
    after     pages that only older heads name, and those heads, are deleted

A crash before the head leaves pages that nobody names, and a lease that runs out. Two servers that fold one experiment
at once cannot both insert the next version, whatever their clocks say. What has to be unique beyond one experiment
(which experiment a journal belongs to, which journal a segment) is a *claim*: a row that is inserted once, first wins,
and never changed.

`sqlite` and `disk` implement them for one machine, `mongo` and `s3` for many.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from ...core.ranges import Range
from ...errors import MLDashError, StorageError

LEASE_S: Final = 15.0
"""A lease whose experiment has not changed for this long, by the clock of whoever waits, may be taken over."""


class StoreRefused(MLDashError):
    """The stores cannot be used as they are: damaged, of a newer version, or in use by another server."""


class StoreTrouble(StorageError):
    """The disk, the database or the bucket refused, for now; nothing was acknowledged."""


class Busy(Exception):
    """Another server is folding this experiment; it is worth trying again in a moment.

    `still_s` says for how many seconds that server has done nothing to it, as far as was seen from here. 0: servers
    take turns.
    """

    def __init__(self, experiment: str, still_s: float = 0.0) -> None:
        super().__init__(f"another process is changing experiment {experiment}")
        self.still_s = still_s


class Stale(Exception):
    """The experiment has a newer head than the one that this commit continues: nothing of the commit is visible."""


class Vanished(Exception):
    """A page is not here any more, because a newer head replaced it: begin again in a new view."""


@dataclass(frozen=True, slots=True)
class JournalClaim:
    """Which experiment a journal belongs to, for ever. `id` is 32 hex digits, `experiment` the id of the experiment."""

    id: str
    experiment: str
    project: str
    name: str


@dataclass(frozen=True, slots=True)
class SegmentClaim:
    """Which journal and file a segment belongs to, for ever. `id`, `journal` and `writer` are 32 hex digits."""

    id: str
    journal: str
    file: str
    writer: str
    experiment: str


@dataclass(frozen=True, slots=True)
class ExperimentRow:
    """The head of an experiment: where its contents begin, and what lists show of it.

    `version` grows by one with every commit, `epoch` with every lease. `root` names the root of its pages (empty:
    none), `state` is the part of the folded state that is not in pages, and `arrivals` the number of the next arrival.
    `fold_version` says which version of the code made them. Times are in ns since the epoch; `heard_ns` is the
    server's own time at which something last arrived.

    `project`, `name`, `status`, `folder`, `tags`, `description` and `summary` (`counts` and `endedAt`) are copies of
    what the state says, so that lists need not decode it. `summary` also has `bytes`, the raw bytes of all segments,
    and `deaths`, how often a writer was found dead; absent: never.
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
    root: bytes = b""
    epoch: int = 0
    arrivals: int = 0

    @property
    def events(self) -> int:
        """The number of folded events.

        Without any, readers do not see it: it was removed, or has only begun to arrive.
        """
        return int(self.summary.get("counts", {}).get("events", 0))

    @property
    def news(self) -> int:
        """The number that live readers are told, see `news_of`."""
        return news_of(self.summary)


def news_of(summary: Mapping[str, Any]) -> int:
    """Return the number that live readers are told: of events and of deaths, so that either is news; 0 if removed."""
    events = int(summary.get("counts", {}).get("events", 0))
    return events + int(summary.get("deaths", 0)) if events else 0


class Version(NamedTuple):
    """The version of an experiment, when something of it last arrived (in ns since the epoch), and its `summary`."""

    version: int
    heard_ns: int
    summary: dict[str, Any]

    @property
    def counts(self) -> dict[str, int]:
        """The counts of the experiment."""
        counts: dict[str, int] = self.summary.get("counts", {})
        return counts

    @property
    def events(self) -> int:
        """The number of folded events."""
        return self.counts.get("events", 0)

    @property
    def news(self) -> int:
        """The number that live readers are told, see `news_of`."""
        return news_of(self.summary)


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to commit the next version of an experiment. `row` is its head, None before the first commit."""

    ns: str
    experiment: str
    epoch: int
    row: ExperimentRow | None

    @property
    def version(self) -> int:
        """The version that the commit under this lease has."""
        return self.row.version + 1 if self.row is not None else 1


Page = tuple[str, bytes]
"""(id, content). Ids hold the version and epoch that wrote the page, so none is ever written twice."""


@dataclass(frozen=True, slots=True)
class Commit:
    """All that one change of an experiment writes: `pages` first, then the head, `row`.

    `superseded` are ids of pages that only older heads name.
    """

    row: ExperimentRow
    pages: Sequence[Page] = ()
    superseded: Sequence[str] = ()


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


@dataclass(frozen=True, slots=True)
class OlderSegment:
    """A segment in an older layout: `length` raw bytes, the offset of the first frame, the CRC of the header."""

    id: str
    journal: str
    file: str
    writer: str
    length: int
    first: int
    crc: int
    damaged: tuple[Range, ...]


class Older(Protocol):
    """What an older layout of the documents holds of an experiment: raw bytes, and the order of their arrival."""

    @property
    def journals(self) -> Sequence[tuple[str, str, str, bool]]:
        """(id, project, name, whether it was removed) of the journals."""

    @property
    def segments(self) -> Sequence[OlderSegment]:
        """The segments."""

    @property
    def arrivals(self) -> Sequence[tuple[int, int, str, int, int, str]]:
        """(number, kind, who, start, end, segment) of what was folded, in order."""

    @property
    def removed_writers(self) -> Sequence[str]:
        """The writers whose events are hidden."""

    def bytes_of(self, segment: str, start: int) -> Iterator[bytes]:
        """Yield the raw bytes of a segment from an offset on, where a stretch begins, stretch by stretch."""

    def drop(self) -> None:
        """Delete it: all of it is in pages, and committed."""


class View(Protocol):
    """A look at the documents. `ns` is a namespace.

    Where the store has snapshots it is one: steady until it ends. Elsewhere each row is the newest one, and a page that
    a newer head has replaced raises Vanished. Methods that look up one row return None if there is none. Each raises
    StoreTrouble if the database refuses.
    """

    def experiment(self, ns: str, experiment: str) -> ExperimentRow | None:
        """Return the newest head of an experiment; also one without events."""

    def pages(self, ns: str, experiment: str, ids: Sequence[str]) -> dict[str, bytes]:
        """Return pages of an experiment by their ids. Raises Vanished if one is not here."""

    def journal(self, ns: str, journal: str) -> JournalClaim | None:
        """Return to which experiment a journal belongs, by the journal's id (hex)."""

    def segment(self, ns: str, segment: str) -> SegmentClaim | None:
        """Return to which journal a segment belongs, by the segment's id (hex)."""

    def experiments(self, ns: str, wanted: Filter, limit: int, after: Place | None) -> list[ExperimentRow]:
        """Return at most `limit` experiments after a place, states and roots empty. Those without events are left out.

        Right after a commit a list may show the experiment as it was before, never for longer than the commit takes.
        """

    def count(self, ns: str, wanted: Filter) -> int:
        """Return how many experiments a filter lists on all pages together."""

    def projects(self, ns: str) -> list[dict[str, Any]]:
        """Return {project, experiments (their number), created_ns, updated_ns} of each project, by name."""

    def stale(self, fold_version: int) -> list[tuple[str, str]]:
        """Return (namespace, id) of experiments whose state another version of the fold made."""

    def quiet(self, before_ns: int) -> list[tuple[str, str]]:
        """Return (namespace, id) of running experiments of which nothing arrived since."""

    def all_experiments(self, after: tuple[str, str] | None, limit: int) -> list[tuple[str, str]]:
        """Return at most `limit` (namespace, id) of all experiments, also empty ones, sorted, behind `after`."""

    def events(self, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], tuple[int, int]]:
        """Return (version, `news_of`) of experiments given as (namespace, id); unknown ones are left out."""

    def versions(self, ns: str, ids: Sequence[str] | None = None) -> dict[str, Version]:
        """Return the versions of experiments by their ids, of these or of all; those without events are left out."""

    def usage(self, ns: str) -> int:
        """Return how many bytes a namespace keeps: raw bytes of segments, also of removed experiments, and its blobs.

        The bytes of an experiment are those that its summary names; one without any, stored by an earlier version,
        counts from its next commit on.
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


class Documents(Protocol):
    """The documents of a server. Any thread may call, and any number of processes may use the same place.

    All that a method has stored is durable when it returns. Each raises StoreTrouble if the database refuses; what a
    commit wrote is then visible or not, which the next lease shows.
    """

    def view(self) -> AbstractContextManager[View]:
        """Open a look. It does not wait for a writer. Raises StoreTrouble."""

    def lease(self, ns: str, experiment: str) -> Lease:
        """Return the right to commit the next version, or raise Busy if another process has it.

        Within this process the caller sees to it that one thread at a time asks for an experiment. A lease ends by
        `commit`, by `release`, or when another process takes it over: after LEASE_S in which the experiment has not
        changed, as it was seen from there. Clocks of machines are not compared.
        """

    def release(self, lease: Lease) -> None:
        """Give a lease back, with nothing committed. Never raises: one that stays runs out."""

    def commit(self, lease: Lease, commit: Commit) -> None:
        """Store a version of an experiment, of which all is visible or nothing; its row has the lease's version.

        Raises Stale if that version is taken: another process has taken over, and nothing of this is visible.
        """

    def claim_journal(self, ns: str, claim: JournalClaim) -> JournalClaim:
        """Store the claim unless there is one for this journal; return the one that is stored."""

    def claim_segment(self, ns: str, claim: SegmentClaim) -> SegmentClaim:
        """Store the claim unless there is one for this segment; return the one that is stored."""

    def put_blobs(self, ns: str, rows: Sequence[BlobRow]) -> None:
        """Store complete blobs; each replaces the row of its name."""

    def drop_blobs(self, ns: str, experiment: str, names: Iterable[str]) -> None:
        """Delete rows of blobs that are there; their objects are the caller's to delete, afterwards."""

    def put_token(self, row: TokenRow) -> None:
        """Store a token; of one that is there, only `expires_ns` and `revoked_ns` change."""

    def older(self, ns: str, experiment: str) -> Older | None:
        """Return what an older layout holds of an experiment; None if nothing, or if all is in pages."""

    def mend(self) -> int:
        """Repair what crashes have left: lists that show an older head, old heads. Return how many things it was."""

    def page_ids(self, ns: str, experiment: str) -> Iterator[str]:
        """Yield the ids of all pages of an experiment, also of those that no head names."""

    def drop_pages(self, ns: str, experiment: str, ids: Sequence[str]) -> None:
        """Delete pages of which the caller knows that no head names them, nor will."""

    def facts(self) -> Mapping[str, str]:
        """Return what `server check` shows of the database, in plain words: its kind, version, place.

        `clock` is its time in ISO 8601, where it has one of its own. Raises StoreTrouble.
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

    def put_contents(self, items: Sequence[tuple[str, bytes]]) -> None:
        """Store many contents, given as (key, bytes); durable on return. Replaces what the keys had."""

    def put_bytes(self, key: str, content: bytes) -> None:
        """Store a content that is in memory; durable on return. Replaces what the key had."""

    def open(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Return the bytes [start, end) in pieces. Raises FileNotFoundError, at the call and not at the first piece."""

    def size(self, key: str) -> int | None:
        """Return the size in bytes; None if there is no such object."""

    def sizes(self, keys: Sequence[str]) -> dict[str, int]:
        """Return the sizes in bytes of those of the objects that are here."""

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


@dataclass(frozen=True)
class Stores:
    """All that a server stores things in; `shared`: other servers may use the same documents at the same time."""

    documents: Documents
    objects: Objects
    uploads: Uploads
    shared: bool = False

    def close(self) -> None:
        """Close the documents."""
        self.documents.close()
