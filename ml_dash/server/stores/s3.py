"""Objects in a bucket, of AWS S3 or of a service that speaks its protocol.

    PREFIX objects/...         the objects, under names made of their keys
    PREFIX keys/SHA-256        the keys that are too long for a name
    PREFIX uploads/...         what `s3_uploads` keeps

An object appears as a whole when its request, or its upload in several parts, is complete; the service answers once it
is durable. Each request carries the SHA-256 of its body in its signature, and the service stores nothing that differs.
That works everywhere; the checksums that newer clients add by default do not.

A kill leaves no object, or a whole one, or an upload in parts that was not completed: invisible, paid for, and dropped
by `S3Uploads.sweep`.

boto3 and not obstore, though that is smaller and faster: only with it can any process go on with an upload in parts.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from ..settings import S3Settings
from . import Entry, StoreTrouble, s3_keys

_PIECE_BYTES: Final = 1 << 20
_AT_ONCE: Final = 16
_POOL: Final = 32
_CONNECT_S: Final = 5
_READ_S: Final = 60
# Completing an upload in parts, or copying a large object, may take a service that has to move bytes this long.
_MOVE_S: Final = 600
_ATTEMPTS: Final = 4
# Of one reading, without a byte between.
_READ_ATTEMPTS: Final = 3
_PARTS_FROM: Final = 64 << 20
_PART_BYTES: Final = 16 << 20
# S3 copies at most 5 GiB in one request, and less than that takes minutes.
_COPY_PARTS_FROM: Final = 512 << 20
_COPY_PART_BYTES: Final = 256 << 20
_DELETED_AT_ONCE: Final = 1000
_MISSING: Final = ("NoSuchKey", "404", "NotFound")


class Bucket:
    """A bucket and how it is reached. Any thread may use it."""

    def __init__(self, settings: S3Settings, prefix: str = "") -> None:
        import boto3
        from botocore.exceptions import BotoCoreError

        self.name = settings.bucket
        self.prefix = prefix
        try:
            # Of its own: the library's default session is not made for several threads.
            self._session = boto3.session.Session(
                aws_access_key_id=settings.access_key,
                aws_secret_access_key=settings.secret_key,
                region_name=settings.region,
            )
            self.client = self._client(settings, settings.endpoint, _READ_S, _ATTEMPTS)
            self.patient = self._client(settings, settings.endpoint, _MOVE_S, _ATTEMPTS)
            self.hasty = self._client(settings, settings.endpoint, _CONNECT_S, 1)
            public = settings.public_url
            self.public = self._client(settings, public, _READ_S, 1) if public is not None else None
        except (BotoCoreError, ValueError) as error:
            raise _trouble_of(error) from error

    def _client(self, settings: S3Settings, endpoint: str | None, read_s: float, attempts: int) -> Any:
        from botocore.config import Config

        return self._session.client(
            "s3",
            endpoint_url=endpoint,
            config=Config(
                signature_version="s3v4",
                connect_timeout=_CONNECT_S,
                read_timeout=read_s,
                max_pool_connections=_POOL,
                retries={"mode": "standard", "total_max_attempts": attempts},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                s3={"addressing_style": "path" if settings.path_style else "auto", "payload_signing_enabled": True},
            ),
        )

    def close(self) -> None:
        """Close all connections."""
        for client in (self.client, self.patient, self.hasty, self.public):
            if client is not None:
                client.close()

    def pages(self, operation: str, **what: Any) -> Iterator[dict[str, Any]]:
        """Yield the pages of a list. Raises StoreTrouble."""
        with trouble():
            yield from self.client.get_paginator(operation).paginate(Bucket=self.name, **what)

    def names(self, prefix: str) -> Iterator[tuple[str, int, int]]:
        """Yield (name, size, time of the last change in ns) of what begins with `prefix`. Raises StoreTrouble."""
        for page in self.pages("list_objects_v2", Prefix=prefix):
            for found in page.get("Contents", ()):
                yield found["Key"], found["Size"], int(found["LastModified"].timestamp() * 1e9)

    def put(self, name: str, content: bytes) -> None:
        """Store a content under a name. Raises StoreTrouble."""
        from botocore.exceptions import ClientError

        with trouble():
            for attempt in range(_TRIES):
                try:
                    self.client.put_object(Bucket=self.name, Key=name, Body=content)
                    return
                except ClientError as error:
                    # Another request was about to change what lies beside it: the service asks to come again.
                    if error.response["Error"]["Code"] not in _IN_THE_WAY or attempt == _TRIES - 1:
                        raise

    def open(self, name: str, start: int = 0, end: int | None = None) -> Pieces:
        """Return the bytes [start, end) in pieces. Raises FileNotFoundError, StoreTrouble."""
        return Pieces(self, name, start, end)

    def size(self, name: str) -> int | None:
        """Return the size in bytes; None if there is nothing of this name. Raises StoreTrouble."""
        try:
            with trouble():
                return int(self.client.head_object(Bucket=self.name, Key=name)["ContentLength"])
        except FileNotFoundError:
            # That answer is the same if there is no such bucket. It must not look as if all objects were lost.
            self.reach(self.client)
            return None

    def reach(self, client: Any) -> None:
        """Raise StoreTrouble if the bucket cannot be reached, or is not there."""
        try:
            with trouble():
                client.head_bucket(Bucket=self.name)
        except FileNotFoundError:
            hint = "make the bucket, or set S3_BUCKET to one that is there"
            raise StoreTrouble(f"the S3 service has no bucket {self.name}", hint=hint) from None

    def delete(self, names: Iterable[str]) -> None:
        """Delete what has these names, if it is there. Raises StoreTrouble."""
        left = list(dict.fromkeys(names))
        while left:
            batch, left = left[:_DELETED_AT_ONCE], left[_DELETED_AT_ONCE:]
            with trouble():
                answer = self.client.delete_objects(
                    Bucket=self.name, Delete={"Objects": [{"Key": name} for name in batch], "Quiet": True}
                )
            refused = [found for found in answer.get("Errors", ()) if found.get("Code") not in _MISSING]
            if refused:
                first = refused[0]
                raise StoreTrouble(f"the S3 service refused to delete: {first.get('Code')}: {first.get('Message')}")


# Refusals that say that another request is under way, of AWS and of versitygw; and how often a put tries.
_IN_THE_WAY: Final = ("OperationAborted", "ExistingObjectIsDirectory")
_TRIES: Final = 5
_IN_MEMORY_BYTES: Final = 1 << 20
# More sizes than this are asked for by listing.
_LISTED_FROM: Final = 16


class S3Objects:
    """`Objects` in a bucket, below an optional prefix that ends in `/`."""

    def __init__(self, settings: S3Settings, prefix: str = "") -> None:
        self.bucket = Bucket(settings, prefix)
        self._top = f"{prefix}objects/"
        self._room = s3_keys.MOST_BYTES - len(self._top.encode())

    def _name(self, key: str) -> str:
        """Return the name of an object. Raises ValueError for what is not a key."""
        return self._top + s3_keys.name_of(key, self._room)

    def _long_key(self, digest: str) -> str:
        """Return the name of what holds a long key."""
        return f"{self.bucket.prefix}keys/{digest}"

    def _noted(self, key: str, name: str) -> None:
        """Store a key that its name does not hold: before the object, for one without its key cannot be listed."""
        digest = s3_keys.long_digest(name)
        if digest is not None:
            self.bucket.put(self._long_key(digest), key.encode("utf-8", "surrogatepass"))

    def put(self, key: str, path: Path) -> None:
        """Move the file at `path` here; durable on return. Replaces what is there. Raises StoreTrouble."""
        from boto3.s3.transfer import TransferConfig

        name = self._name(key)
        self._noted(key, name)
        with trouble():
            size = path.stat().st_size
            if size <= _IN_MEMORY_BYTES:
                self.bucket.put(name, path.read_bytes())
            elif size < _PARTS_FROM:
                with path.open("rb") as file:
                    self.bucket.client.put_object(Bucket=self.bucket.name, Key=name, Body=file)
            else:
                config = TransferConfig(_PARTS_FROM, max_concurrency=4, multipart_chunksize=_PART_BYTES)
                self.bucket.patient.upload_file(str(path), self.bucket.name, name, Config=config)
            path.unlink()

    def put_contents(self, items: Sequence[tuple[str, bytes]]) -> None:
        """Store many contents, side by side; durable on return."""
        # Of one key the last counts; side by side, an earlier one could be stored after it.
        last = dict(items)
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            # The results are read so that an error in a thread is raised.
            for _ in threads.map(lambda item: self.put_bytes(*item), last.items()):
                pass

    def put_bytes(self, key: str, content: bytes) -> None:
        """Store a content that is in memory; durable on return. Replaces what is there. Raises StoreTrouble."""
        name = self._name(key)
        self._noted(key, name)
        self.bucket.put(name, content)

    def open(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Return the bytes [start, end) in pieces. Raises FileNotFoundError at the call."""
        return self.bucket.open(self._name(key), start, end)

    def size(self, key: str) -> int | None:
        """Return the size in bytes; None if it is not there."""
        return self.bucket.size(self._name(key))

    def sizes(self, keys: Sequence[str]) -> dict[str, int]:
        """Return the sizes in bytes of those that are here: by a list where they are many below one prefix."""
        if len(keys) > _LISTED_FROM:
            wanted = set(keys)
            # Character by character: cut back to whole parts below.
            prefix = os.path.commonprefix(list(wanted))  # noqa: RUF071
            return {key: size for key, size, _ in self.entries(prefix[: prefix.rfind("/") + 1]) if key in wanted}
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            found = list(zip(keys, threads.map(self.size, keys), strict=True))
        return {key: size for key, size in found if size is not None}

    def copy(self, source: str, target: str) -> None:
        """Store the content of `source` under `target` too, within the service. Raises FileNotFoundError."""
        self.copy_name(self._name(source), target)

    def copy_name(self, name: str, target: str) -> None:
        """Store what has a name in the bucket as the object `target`. Raises FileNotFoundError, StoreTrouble."""
        from boto3.s3.transfer import TransferConfig

        place = self._name(target)
        if place == name:
            # The service refuses to copy something to itself.
            if self.bucket.size(name) is None:
                raise FileNotFoundError(target)
            return
        self._noted(target, place)
        config = TransferConfig(
            multipart_threshold=_COPY_PARTS_FROM, multipart_chunksize=_COPY_PART_BYTES, max_concurrency=4
        )
        with trouble():
            self.bucket.patient.copy({"Bucket": self.bucket.name, "Key": name}, self.bucket.name, place, Config=config)

    def delete(self, key: str) -> None:
        """Delete an object, if it is there."""
        self.delete_many([key])

    def delete_many(self, keys: Iterable[str]) -> None:
        """Delete objects, those that are there, up to 1,000 in a request."""
        names = [self._name(key) for key in keys]
        self.bucket.delete(names)
        # After the objects: one without its key cannot be listed.
        self.bucket.delete(self._long_key(digest) for name in names if (digest := s3_keys.long_digest(name)))

    def list(self, prefix: str) -> Iterator[str]:
        """Yield the keys that begin with `prefix`, in no order."""
        for key, _, _ in self.entries(prefix):
            yield key

    def entries(self, prefix: str) -> Iterator[Entry]:
        """Yield (key, size, time of the last change in ns) of the objects whose keys begin with `prefix`."""
        beginning = s3_keys.beginning_of(prefix, self._room)
        if beginning is None:
            return
        for name, size, changed_ns in self.bucket.names(self._top + beginning):
            key = self._key(name.removeprefix(self._top))
            if key is not None and key.startswith(prefix):
                yield key, size, changed_ns

    def _key(self, name: str) -> str | None:
        """Return the key of a name; None if it was long, and deleted since the list was made."""
        digest = s3_keys.long_digest(name)
        if digest is None:
            return s3_keys.key_of(name)
        try:
            return b"".join(self.bucket.open(self._long_key(digest))).decode("utf-8", "surrogatepass")
        except FileNotFoundError:
            return None

    def presigned(self, key: str, filename: str, seconds: int) -> str | None:
        """Return a URL at which a browser may download an object; None if no public address is configured."""
        if self.bucket.public is None:
            return None
        what = {
            "Bucket": self.bucket.name,
            "Key": self._name(key),
            # Saved and never shown: a file may be a page with a script in it.
            "ResponseContentDisposition": f"attachment; filename*=UTF-8''{quote(filename, safe='', errors='replace')}",
            "ResponseContentType": "application/octet-stream",
        }
        with trouble():
            return str(self.bucket.public.generate_presigned_url("get_object", Params=what, ExpiresIn=seconds))

    def check(self) -> None:
        """Raise StoreTrouble if the bucket cannot be used now; asked once, and not for long."""
        self.bucket.reach(self.bucket.hasty)

    def close(self) -> None:
        """Close all connections."""
        self.bucket.close()


class Pieces:
    """An object that is being read. A connection that breaks is made again, from where it broke.

    Opened at the call, so that a missing object is reported there.
    """

    def __init__(self, bucket: Bucket, name: str, start: int, end: int | None) -> None:
        self._bucket = bucket
        self._name = name
        self._at = start
        self._end = end
        self._tag: str | None = None
        self._body: Any = None
        self._tries = 0
        with trouble():
            self._body = self._opened()

    def _opened(self) -> Any:
        """Return the body of an answer; None if no byte is wanted, or none is there."""
        from botocore.exceptions import ClientError

        what: dict[str, Any] = {"Bucket": self._bucket.name, "Key": self._name}
        if self._tag is not None:
            # Not the rest of another content that replaced it meanwhile.
            what["IfMatch"] = self._tag
        if self._end is not None and self._end <= self._at:
            self._bucket.client.head_object(**what)
            return None
        if self._at or self._end is not None:
            what["Range"] = f"bytes={self._at}-{'' if self._end is None else self._end - 1}"
        try:
            answer = self._bucket.client.get_object(**what)
        except ClientError as error:
            # The range begins behind the end.
            if code_of(error) in ("InvalidRange", "416"):
                return None
            raise
        self._tag = answer.get("ETag")
        return answer["Body"]

    def __iter__(self) -> Pieces:
        return self

    def __next__(self) -> bytes:
        with trouble():
            piece = self._piece() if self._body is not None else b""
        if not piece:
            self.close()
            raise StopIteration
        self._at += len(piece)
        self._tries = 0
        return piece

    def _piece(self) -> bytes:
        from botocore.exceptions import BotoCoreError

        while True:
            try:
                return bytes(self._body.read(_PIECE_BYTES)) if self._body is not None else b""
            except (BotoCoreError, OSError):
                self._tries += 1
                if self._tries >= _READ_ATTEMPTS:
                    self.close()
                    raise
            self.close()
            self._body = self._opened()

    def close(self) -> None:
        """Let go of the connection."""
        body, self._body = self._body, None
        if body is not None:
            body.close()


@contextlib.contextmanager
def trouble() -> Iterator[None]:
    """Turn errors of the service and of the way to it into StoreTrouble, and an object that is missing into
    FileNotFoundError.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        if _is_missing(error):
            raise FileNotFoundError("there is no such object") from error
        raise _trouble_of(error) from error
    except (FileNotFoundError, StoreTrouble):
        raise
    except (BotoCoreError, Boto3Error, OSError) as error:
        raise _trouble_of(error) from error


def _trouble_of(error: Exception) -> StoreTrouble:
    """Return what went wrong, in a sentence. No error of the library holds a key."""
    answer = getattr(error, "response", {})
    if answer:
        found, status = answer.get("Error", {}), answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
        text = f"{found.get('Code')} (HTTP status {status}): {found.get('Message')}"
    else:
        text = str(error)
    return StoreTrouble(f"the S3 service refused: {text}", hint="nothing was acknowledged")


def code_of(error: BaseException) -> str:
    """Return the code of an answer that is an error; empty for other errors."""
    return str(getattr(error, "response", {}).get("Error", {}).get("Code", ""))


def _is_missing(error: BaseException) -> bool:
    """True if the answer is that there is no such object."""
    return code_of(error) in _MISSING
