"""Routes for files: uploads streamed to disk, records, and downloads by range."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypedDict

import anyio
from starlette.responses import Response

from ...core.names import check_filename, check_prefix
from ...core.protocol import DIGEST, Refused
from ...errors import WriteProtected
from ...files import get_mime_type
from ...reading.source import decoded
from .bodies import ADMISSION_S, busy, chunks, declared_length, decode_json, too_large
from .calls import READ, WRITE, Call, Route, answer, encoded, malformed, recorded
from .downloads import Opened, download

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartParser

_FIELD_BYTES: Final = 256 << 10
_FIELDS: Final = frozenset(("prefix", "checksum", "sizeBytes", "description", "tags", "metadata", "text"))
# What the form around the file may add.
_OVERHEAD_BYTES: Final = 1 << 20
_SYNC_EVERY_BYTES: Final = 64 << 20
# How long a link to the object store is good: to begin a download, which may then take any time.
_LINK_S: Final = 300


class FileChange(TypedDict, total=False):
    """The body of `PATCH` of a file."""

    description: str | None
    tags: list[str] | None
    metadata: dict[str, Any] | None
    text: list[str]


async def add_file(call: Call) -> Response:
    """Add a file: multipart, streamed to disk, never whole in memory."""
    experiment = call.experiment()
    # Check permission and existence before accepting the upload.
    document = await call.read(call.core.experiment, call.namespace, experiment)
    if document["writeProtected"]:
        raise WriteProtected("the experiment is write-protected: parameters and files are final")
    limit = call.services.settings.max_file_size
    declared = declared_length(call.request)
    if declared is not None and declared > limit + _OVERHEAD_BYTES:
        raise too_large(limit)
    # What the form adds is not known; its file is measured once it is here.
    await call.read(call.core.require_room, call.namespace, max(1, (declared or 0) - _OVERHEAD_BYTES))
    upload = _Upload(call.core.staging / f"upload-{os.urandom(12).hex()}", limit)
    try:
        parser = _parser(call, upload)
        async with _turn(call):
            received = 0
            async for part in chunks(call.request):
                received += len(part)
                if received > limit + _OVERHEAD_BYTES:
                    raise too_large(limit)
                await call.write(_feed, parser, part)
            fields = await call.write(upload.finish)
            return answer(await call.write(call.core.add_file, call.namespace, experiment, upload.path, fields))
    finally:
        with anyio.CancelScope(shield=True):
            await call.write(upload.close)


@asynccontextmanager
async def _turn(call: Call) -> AsyncIterator[None]:
    """Hold one of the places for uploads. Raises Refused (429) if none becomes free within ADMISSION_S."""
    uploads = call.services.uploads
    try:
        with anyio.fail_after(ADMISSION_S):
            await uploads.acquire()
    except TimeoutError:
        raise busy() from None
    try:
        yield
    finally:
        uploads.release()


async def files(call: Call) -> Response:
    """Records of files that are not deleted, oldest first."""
    prefix, tags = check_prefix(call.text("prefix") or ""), call.text("tags")
    wanted = [tag for tag in (tags or "").split(",") if tag] or None
    return encoded(
        await call.read(call.source.files, call.experiment(), prefix=prefix, tags=wanted, as_of=call.moment())
    )


async def file(call: Call) -> Response:
    """The record of one file."""
    return encoded(await call.read(call.source.file, call.experiment(), call.file(), call.moment()))


async def update_file(call: Call) -> Response:
    """Change description, tags or metadata of a file."""
    async with call.json(FileChange) as body:
        changes: dict[str, Any] = {name: value for name, value in body.items() if value is not None and name != "text"}
        if "metadata" in changes:
            changes["metadata"] = recorded(changes["metadata"], body.get("text", ()))
        return answer(await call.write(call.core.update_file, call.namespace, call.experiment(), call.file(), changes))


async def delete_file(call: Call) -> Response:
    """Delete a file; its content is released."""
    return answer(await call.write(call.core.delete_file, call.namespace, call.experiment(), call.file()))


async def download_file(call: Call) -> Response:
    """The content of a file, whole or by range; a large one may be sent to the object store (307)."""
    return await _content(call, preview=False)


async def file_content(call: Call) -> Response:
    """The content of a file, whole or by range, to be shown in a page; sandboxed, and text unless it is a picture."""
    return await _content(call, preview=True)


async def _content(call: Call, *, preview: bool) -> Response:
    experiment, identity = call.experiment(), call.file()
    source, core, namespace = call.source, call.services.core, call.namespace
    record = decoded(await call.read(source.file, experiment, identity))

    def open_at(start: int, end: int) -> Opened:
        content = source.open_file(experiment, identity, start, end)
        return content.blocks, content.size_bytes

    def link() -> str | None:
        # A page may not read what another origin answers.
        return None if preview or core is None else core.link_file(namespace, experiment, record, _LINK_S)

    return await download(
        call,
        open_at,
        checksum=record["checksum"],
        filename=record["filename"],
        content_type=record["contentType"],
        link=link,
        preview=preview,
    )


# -- uploads ----------------------------------------------------------------------------------------------------------


@dataclass
class _Upload:
    """A form that is being received: small fields in memory, the file written to `path` and hashed on the way."""

    path: Path
    limit: int
    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None
    size: int = 0
    ended: bool = False
    _digest: Any = field(default_factory=hashlib.sha256)
    _file: BinaryIO | None = None
    _name: str = ""
    _value: bytearray = field(default_factory=bytearray)
    _unsynced: int = 0
    _header: bytearray = field(default_factory=bytearray)
    _header_value: bytearray = field(default_factory=bytearray)
    _headers: dict[bytes, bytes] = field(default_factory=dict)

    def callbacks(self) -> Any:
        """Return the callbacks for the parser."""
        return {
            "on_part_begin": self._part_begin,
            "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._header_value.extend(data[start:end]),
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def _part_begin(self) -> None:
        self._headers = {}

    def _header_end(self) -> None:
        self._headers[bytes(self._header).lower()] = bytes(self._header_value)
        self._header.clear()
        self._header_value.clear()

    def _headers_finished(self) -> None:
        from python_multipart.multipart import parse_options_header

        kind, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if kind != b"form-data" or not (name == "file" or name in _FIELDS):
            malformed(f"the form has a part {name[:60]!r}; it takes file, {', '.join(sorted(_FIELDS))}")
        if name in self.fields or (name == "file" and self.filename is not None):
            malformed(f"the form has {name} twice")
        self._name = name
        self._value.clear()
        if name == "file":
            self.filename = check_filename(_text(options.get(b"filename", b""), "the file's name"))
            self._file = self.path.open("xb")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._file is None:
            if len(self._value) + end - start > _FIELD_BYTES:
                malformed(f"{self._name} has more than {_FIELD_BYTES} bytes")
            self._value += data[start:end]
            return
        piece = data[start:end]
        self.size += len(piece)
        if self.size > self.limit:
            raise too_large(self.limit)
        self._digest.update(piece)
        self._file.write(piece)
        self._unsynced += len(piece)
        if self._unsynced > _SYNC_EVERY_BYTES:
            # Sync in steps, so that the client does not wait for all of it at the end.
            self._file.flush()
            os.fsync(self._file.fileno())
            self._unsynced = 0

    def _part_end(self) -> None:
        if self._file is None:
            self.fields[self._name] = _text(bytes(self._value), self._name)
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None

    def _end(self) -> None:
        self.ended = True

    def finish(self) -> dict[str, Any]:
        """Return the fields for `Server.add_file`. Raises Refused if size or SHA-256 differ from what the form says."""
        if not self.ended or self.filename is None:
            malformed("the form has no file" if self.ended else "the form is not whole")
        checksum, size = self._digest.hexdigest(), str(self.size)
        given = self.fields.get("checksum") or checksum
        if given.lower() != checksum or (self.fields.get("sizeBytes") or size) != size:
            raise Refused(422, DIGEST, f"what came has {size} bytes and SHA-256 {checksum}, not what the form says")
        metadata = self.fields.get("metadata")
        value = decode_json(metadata.encode()) if metadata else None
        if value is not None and not isinstance(value, dict):
            malformed("metadata is not a JSON object")
        texts = decode_json(self.fields["text"].encode()) if self.fields.get("text") else []
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            malformed("text is not a JSON list of names")
        return {
            "filename": self.filename,
            "prefix": self.fields.get("prefix") or "/",
            "description": self.fields.get("description") or None,
            "tags": [tag.strip() for tag in self.fields.get("tags", "").split(",") if tag.strip()] or None,
            "metadata": recorded(value, texts) if value is not None else None,
            "contentType": get_mime_type(self.filename),
            "sizeBytes": self.size,
            "checksum": checksum,
        }

    def close(self) -> None:
        """Close and remove the staged file, if it is still there."""
        if self._file is not None:
            self._file.close()
        self.path.unlink(missing_ok=True)


def _parser(call: Call, upload: _Upload) -> MultipartParser:
    # Not at the top: where only folders are shown, it need not be installed.
    from python_multipart.multipart import MultipartParser, parse_options_header

    kind, options = parse_options_header(call.request.headers.get("content-type", ""))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 1 <= len(boundary) <= 200:
        raise Refused(415, "malformed", "a file is sent as multipart/form-data with a boundary")
    if "content-encoding" in call.request.headers:
        raise Refused(415, "malformed", "a file is sent as it is, without Content-Encoding")
    return MultipartParser(boundary, upload.callbacks())


def _feed(parser: MultipartParser, data: bytes) -> None:
    from python_multipart.exceptions import FormParserError

    try:
        parser.write(data)
    except FormParserError as error:
        malformed(f"the form is not multipart/form-data as RFC 7578 has it: {str(error)[:100]}")


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        malformed(f"{what} is not UTF-8")


_FILE: Final = "/experiments/{experiment}/files/{file}"

READING: Final = [
    Route("GET", "/experiments/{experiment}/files", files, READ),
    Route("GET", _FILE, file, READ),
    Route("GET", f"{_FILE}/download", download_file, READ),
    Route("GET", f"{_FILE}/content", file_content, READ),
]

WRITING: Final = [
    Route("POST", "/experiments/{experiment}/files", add_file, WRITE),
    Route("PATCH", _FILE, update_file, WRITE),
    Route("DELETE", _FILE, delete_file, WRITE),
]
