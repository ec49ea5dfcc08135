"""A form with one file in it, as the bytes of a request: streamed, never whole in memory."""

from __future__ import annotations

import hashlib
import mimetypes
import os
import stat
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from ..core.names import check_filename
from ..errors import InvalidValue

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

_BLOCK_BYTES: Final = 4 << 20


class Form:
    """The body of a `multipart/form-data` request (RFC 7578): some fields, then a file. To be used in a `with` block.

    It has `len()` and `read()`, which is all that HTTP libraries need of a body that they stream. `broken` is True once
    the file was found shorter than its size at the beginning.
    """

    def __init__(self, fields: Mapping[str, str], filename: str, media_type: str, file: BinaryIO, size: int) -> None:
        # Random, so that no content holds it.
        boundary = os.urandom(16).hex()
        self.content_type = f"multipart/form-data; boundary={boundary}"
        head = "".join(
            f'--{boundary}\r\nContent-Disposition: form-data; name="{_quoted(name)}"\r\n\r\n{value}\r\n'
            for name, value in fields.items()
        )
        head += (
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{_quoted(filename)}"\r\n'
            f"Content-Type: {media_type}\r\n\r\n"
        )
        self.broken = False
        self._file = file
        self._left = size
        self._head = BytesIO(head.encode())
        self._tail = BytesIO(f"\r\n--{boundary}--\r\n".encode())
        self._size = self._head.getbuffer().nbytes + size + self._tail.getbuffer().nbytes

    @classmethod
    def of_file(cls, path: Path, fields: Mapping[str, str]) -> Form:
        """Return the form that adds a file to an experiment. Reads it once, for its SHA-256. Raises InvalidInput."""
        name = check_filename(path.name)
        try:
            # Looked at first: to open a pipe is to wait for its other end.
            if not stat.S_ISREG(path.stat().st_mode):
                raise InvalidValue(f"file {str(path)!r} is not a regular file; nothing was sent")
            file = path.open("rb")
        except OSError as error:
            raise InvalidValue(f"file {str(path)!r} cannot be read: {error.strerror}; nothing was sent") from error
        try:
            digest, size = _digest(file)
            file.seek(0)
        except BaseException:
            file.close()
            raise
        given = {**fields, "checksum": digest, "sizeBytes": str(size)}
        media_type = mimetypes.guess_type(name, strict=False)[0] or "application/octet-stream"
        return cls(given, name, media_type, file, size)

    def __len__(self) -> int:
        return self._size

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, at most `size`; empty at the end. Raises OSError if the file has become shorter."""
        wanted = _BLOCK_BYTES if size < 0 else size
        data = self._head.read(wanted)
        if data or not wanted:
            return data
        if self._left:
            data = self._file.read(min(wanted, self._left))
            if not data:
                self.broken = True
                raise OSError(f"{self._file.name} became shorter while it was sent")
            self._left -= len(data)
            return data
        return self._tail.read(wanted)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()


def _digest(file: BinaryIO) -> tuple[str, int]:
    digest = hashlib.sha256()
    size = 0
    while block := file.read(_BLOCK_BYTES):
        digest.update(block)
        size += len(block)
    return digest.hexdigest(), size


def _quoted(text: str) -> str:
    """Escape a text for a quoted string (RFC 2183)."""
    return text.replace("\\", "\\\\").replace('"', '\\"')
