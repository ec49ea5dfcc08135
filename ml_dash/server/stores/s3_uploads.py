"""Uploads into a bucket, in pieces that any server may take.

All that is known of an upload is in the bucket, so there is nothing that a process could take with it:

    uploads/NAME/whole             an upload in parts, by S3's own calls: part n holds bytes [8 MiB (n - 1), 8 MiB n)
    uploads/NAME/START-END         bytes that are no part yet: S3 takes no part below 5 MiB but the last
    uploads/NAME/whole             the content, once the parts were put together; not verified yet
    objects/KEY                    the object: verified, and copied within the service

Every name says which bytes it holds, and all parts have one size. So two servers that take the same bytes at the same
time write the same things twice, and nothing is wrong after it, whatever the order. If both begin an upload in parts,
the one that has more of them is continued by both; the other's are sent again.

Order of writing: a piece, or the parts that it completes, then what is left of it, then the small pieces which are in a
part now are deleted. What a kill leaves in between is found by the next one who asks.

`finish` puts a short last part behind the others, completes, reads all of it once for the SHA-256, copies it to its key
and deletes the rest. Killed between, the next one begins with the state it finds; if the object is there already, its
content is compared instead.

Memory: one part, the pieces before it, and the data of one call. Nothing is locked.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, TypeVar

from ...disk.durable import fail_point
from . import Gap, StoreTrouble
from .checks import checked_name, digest_of, is_object, is_upload_name
from .s3 import S3Objects, code_of, trouble

Result = TypeVar("Result")

PART_BYTES: Final = 8 << 20
_WHOLE: Final = "whole"
_PIECE: Final = re.compile(r"([0-9]{13})-([0-9]{13})")
# How often another server may change an upload while this one looks at it.
_TRIES: Final = 5


class _Changed(Exception):
    """Another server has completed or dropped the upload since this one looked."""


@dataclass(frozen=True)
class _Piece:
    name: str
    start: int
    end: int


@dataclass(frozen=True)
class _Here:
    """What is here of an upload.

    `tags` are what S3 calls its full parts; `pieces` follow them, each beginning in or at the end of the one before;
    `whole` is the size of the content if it is put together.
    """

    upload: str | None
    tags: tuple[str, ...]
    pieces: tuple[_Piece, ...]
    whole: int | None

    @property
    def in_parts(self) -> int:
        return len(self.tags) * PART_BYTES

    @property
    def length(self) -> int:
        if self.whole is not None:
            return self.whole
        return self.pieces[-1].end if self.pieces else self.in_parts


class S3Uploads:
    """`Uploads` in the bucket of the objects that they become."""

    def __init__(self, objects: S3Objects) -> None:
        self._objects = objects
        self._bucket = objects.bucket
        self._top = f"{objects.bucket.prefix}uploads/"

    def length(self, name: str) -> int:
        """Return how many bytes are here; 0 for a name that is not known. Raises StoreTrouble."""
        return self._here(name).length

    def append(self, name: str, offset: int, data: bytes) -> int:
        """Take bytes [offset, offset + len(data)); return the length then. Raises Gap, StoreTrouble."""
        return self._repeated(lambda: self._append(name, offset, data))

    def _append(self, name: str, offset: int, data: bytes) -> int:
        here = self._here(name)
        if offset > here.length:
            raise Gap(here.length)
        fresh = memoryview(data)[here.length - offset :]
        if not fresh or here.whole is not None:
            return here.length
        end = here.length + len(fresh)
        if end - here.in_parts < PART_BYTES:
            self._put_piece(name, here.length, fresh)
            return end
        waiting = self._read(here.pieces, here.in_parts) + bytes(fresh)
        upload, tags = here.upload or self._begin(name), list(here.tags)
        full = len(waiting) // PART_BYTES
        for number in range(full):
            tags.append(self._put_part(name, upload, len(tags) + 1, waiting[number * PART_BYTES :][:PART_BYTES]))
            fail_point("upload-part")
        if full * PART_BYTES < len(waiting):
            self._put_piece(name, len(tags) * PART_BYTES, memoryview(waiting)[full * PART_BYTES :])
        # Last: their bytes are in parts now.
        self._bucket.delete(piece.name for piece in here.pieces)
        fail_point("upload-cleared")
        return end

    def finish(self, name: str, size: int, digest: str, key: str) -> bool:
        """Make the upload the object `key`: True; a wrong one is dropped: False. Raises Gap, StoreTrouble."""
        return self._repeated(lambda: self._finish(name, size, digest, key))

    def _finish(self, name: str, size: int, digest: str, key: str) -> bool:
        here = self._here(name)
        if here.length < size and here.whole is None:
            # Perhaps all was done before, and only the answer was lost.
            if is_object(self._objects, key, size, digest):
                self.drop(name)
                return True
            raise Gap(here.length)
        if here.length != size or not (self._placed_small(here, digest, key) or self._placed(name, here, digest, key)):
            self.drop(name)
            return False
        fail_point("upload-placed")
        self.drop(name)
        fail_point("upload-dropped")
        return True

    def _placed_small(self, here: _Here, digest: str, key: str) -> bool:
        """Make the object of a content that has no parts; False if it has, or if the digest is wrong."""
        if here.whole is not None or here.tags:
            return False
        content = self._read(here.pieces, 0)
        if hashlib.sha256(content).hexdigest() != digest:
            return False
        self._objects.put_bytes(key, content)
        return True

    def _placed(self, name: str, here: _Here, digest: str, key: str) -> bool:
        """Make the object of a content in parts; False if the digest is wrong, or there are none."""
        if here.whole is None:
            if here.upload is None or not here.tags:
                return False
            self._complete(name, here)
            fail_point("upload-completed")
        place = self._place(name)
        try:
            # What is stored is checked, and not what was in memory.
            if digest_of(self._bucket.open(place)) != digest:
                return False
            fail_point("upload-verified")
            self._objects.copy_name(place, key)
        except FileNotFoundError:
            raise _Changed from None
        return True

    def _complete(self, name: str, here: _Here) -> None:
        """Put the parts together, with what is no part yet as the last."""
        upload, tags = str(here.upload), list(here.tags)
        if here.pieces:
            rest = self._read(here.pieces, here.in_parts)
            tags.append(self._put_part(name, upload, len(tags) + 1, rest))
            fail_point("upload-last")
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, 1)]
        with _changed():
            self._bucket.patient.complete_multipart_upload(
                Bucket=self._bucket.name, Key=self._place(name), UploadId=upload, MultipartUpload={"Parts": parts}
            )

    def drop(self, name: str) -> None:
        """Forget an upload, if it is there. Raises StoreTrouble."""
        for upload in self._uploads(name):
            self._abort(self._place(name), upload)
        self._bucket.delete([found for found, _, _ in self._bucket.names(f"{self._top}{checked_name(name)}/")])

    def sweep(self, before_s: float) -> int:
        """Drop the uploads that were not continued since, and what killed servers left of large objects.

        Some services list an upload in parts only by its exact name: there, those without a small piece are left to the
        service's own rule for what was not completed.
        """
        newest: dict[str, float] = defaultdict(float)
        for stored, _, changed_ns in self._bucket.names(self._top):
            name = stored.removeprefix(self._top).partition("/")[0]
            newest[name] = max(newest[name], changed_ns / 1e9)
        abandoned = []
        for place, upload, begun_s in self._in_parts(self._bucket.prefix):
            continued = max([begun_s, *(changed_s for _, _, _, changed_s in self._parts(place, upload))])
            if place.startswith(self._top):
                name = place.removeprefix(self._top).partition("/")[0]
                newest[name] = max(newest[name], continued)
            elif continued < before_s:
                abandoned.append((place, upload))
        old = [name for name, changed_s in newest.items() if changed_s < before_s and is_upload_name(name)]
        for name in old:
            self.drop(name)
        for place, upload in abandoned:
            self._abort(place, upload)
        return len(old) + len(abandoned)

    # -- what is in the bucket ---------------------------------------------------------------------------------------

    def _place(self, name: str) -> str:
        return f"{self._top}{checked_name(name)}/{_WHOLE}"

    def _here(self, name: str) -> _Here:
        """Look at all that is here of an upload."""
        place = self._place(name)
        # Small pieces first: those that become a part meanwhile are then seen twice, and not missed.
        stored = list(self._bucket.names(place.removesuffix(_WHOLE)))
        sizes = {found: size for found, size, _ in stored}
        best: tuple[str | None, tuple[str, ...]] = (None, ())
        for upload in self._uploads(name):
            tags = self._full_parts(place, upload)
            if best[0] is None or len(tags) > len(best[1]):
                best = upload, tags
        pieces, at = [], len(best[1]) * PART_BYTES
        for piece in sorted(_pieces(sizes), key=lambda piece: (piece.start, piece.end)):
            if piece.start <= at < piece.end:
                pieces.append(piece)
                at = piece.end
        return _Here(best[0], best[1], tuple(pieces), sizes.get(place))

    def _uploads(self, name: str) -> list[str]:
        """Return the ids of the uploads in parts of this name, in an order that all servers see."""
        place = self._place(name)
        return sorted(upload for found, upload, _ in self._in_parts(place) if found == place)

    def _in_parts(self, prefix: str) -> Iterator[tuple[str, str, float]]:
        """Yield (name, id, when it was begun) of the uploads in parts whose names begin with `prefix`."""
        for page in self._bucket.pages("list_multipart_uploads", Prefix=prefix):
            for found in page.get("Uploads", ()):
                yield found["Key"], found["UploadId"], found["Initiated"].timestamp()

    def _full_parts(self, place: str, upload: str) -> tuple[str, ...]:
        """Return the tags of the full parts from the first on; a short one is left from a `finish` that was killed."""
        tags: list[str] = []
        for number, size, tag, _ in self._parts(place, upload):
            if number != len(tags) + 1 or size != PART_BYTES:
                break
            tags.append(tag)
        return tuple(tags)

    def _parts(self, place: str, upload: str) -> list[tuple[int, int, str, float]]:
        """Return (number, size, tag, time in s) of the parts, in their order; none if the upload is gone."""
        try:
            with _changed():
                pages = list(self._bucket.pages("list_parts", Key=place, UploadId=upload))
        except _Changed:
            return []
        return [
            (part["PartNumber"], part["Size"], part["ETag"], part["LastModified"].timestamp())
            for page in pages
            for part in page.get("Parts", ())
        ]

    def _begin(self, name: str) -> str:
        with trouble():
            answer = self._bucket.client.create_multipart_upload(Bucket=self._bucket.name, Key=self._place(name))
        fail_point("upload-begun")
        return str(answer["UploadId"])

    def _put_part(self, name: str, upload: str, number: int, content: bytes) -> str:
        with _changed():
            answer = self._bucket.client.upload_part(
                Bucket=self._bucket.name, Key=self._place(name), UploadId=upload, PartNumber=number, Body=content
            )
        return str(answer["ETag"])

    def _put_piece(self, name: str, start: int, content: memoryview) -> None:
        stored = f"{self._top}{checked_name(name)}/{start:013d}-{start + len(content):013d}"
        self._bucket.put(stored, bytes(content))
        fail_point("upload-piece")

    def _read(self, pieces: Iterable[_Piece], at: int) -> bytes:
        """Return the bytes of small pieces from `at` on."""
        content = bytearray()
        for piece in pieces:
            try:
                content += b"".join(self._bucket.open(piece.name, at + len(content) - piece.start))
            except FileNotFoundError:
                raise _Changed from None
        return bytes(content)

    def _abort(self, place: str, upload: str) -> None:
        try:
            with _changed():
                self._bucket.client.abort_multipart_upload(Bucket=self._bucket.name, Key=place, UploadId=upload)
        except _Changed:
            # Done by another server.
            return

    def _repeated(self, do: Callable[[], Result]) -> Result:
        """Return `do()`, once more if another server changed the upload meanwhile."""
        for _ in range(_TRIES):
            try:
                return do()
            except _Changed:
                continue
        raise StoreTrouble("other servers keep changing this upload", hint="nothing was acknowledged")


@contextlib.contextmanager
def _changed() -> Iterator[None]:
    """As `trouble`, but an upload that is gone raises _Changed."""
    try:
        with trouble():
            yield
    except StoreTrouble as error:
        if error.__cause__ is not None and code_of(error.__cause__) == "NoSuchUpload":
            raise _Changed from None
        raise
    except FileNotFoundError:
        raise _Changed from None


def _pieces(names: Iterable[str]) -> Iterator[_Piece]:
    for name in names:
        found = _PIECE.fullmatch(name.rpartition("/")[2])
        if found:
            yield _Piece(name, int(found[1]), int(found[2]))
