"""Downloads of files: whole or in part, and never run by a browser."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final
from urllib.parse import quote

from starlette.responses import Response, StreamingResponse

from .calls import Call

Opened = tuple[Iterator[bytes], int]
"""(blocks to send, size of the whole content in bytes)."""

Link = Callable[[], "str | None"]
"""link(): the URL at which the object store gives the content to anybody; None if it has none."""

LINKED_FROM_BYTES: Final = 64 << 10
"""Smaller contents are passed on: they are here sooner than a second connection is made."""

INERT: Final = {
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}
"""Headers that keep a browser from running a file's content, or treating it as part of this site."""

SHOWN: Final = {
    **INERT,
    "Content-Security-Policy": "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'",
}
"""The same for what is shown within a page: it may have colours, and nothing that runs or asks for more."""

_PICTURES: Final = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
_TEXTS: Final = re.compile(r"text/.*|application/(json|xml|x-.*|javascript|yaml|toml)|.*\+(json|xml)")
_HARMLESS: Final = frozenset(
    {"image/png", "image/jpeg", "image/gif", "image/webp", "text/plain", "text/csv", "application/json"}
)
_RANGE: Final = re.compile(r"bytes=\s*([0-9]{0,18})\s*-\s*([0-9]{0,18})\s*")


async def download(
    call: Call,
    open_at: Callable[[int, int], Opened],
    *,
    checksum: str,
    filename: str,
    content_type: str = "application/octet-stream",
    link: Link | None = None,
    preview: bool = False,
) -> Response:
    """Answer with the content from `open_at(start, end)`, or the range that the request asks for.

    200, 206 for a range, 304 if the client has it, 416 for a range outside. `checksum` becomes the ETag. With `link`,
    a GET of a large content is sent there (307), and takes its range along. With `preview`, it may be shown in place.
    """
    tag = f'"{checksum}"'
    # Opening reads nothing. It gives the size, without which the requested range is not known.
    blocks, size = await call.read(open_at, 0, 0)
    await call.read(_close, blocks)
    headers = {
        "ETag": tag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "Content-Disposition": _disposition(filename, "inline" if preview else "attachment"),
        "Content-Type": _shown_type(content_type) if preview else _content_type(content_type),
        **(SHOWN if preview else INERT),
    }
    if _lists(call.request.headers.get("if-none-match"), tag):
        return Response(status_code=304, headers=headers)
    part = _part(call, size, tag)
    if part is None:
        return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{size}"})
    if link is not None and size >= LINKED_FROM_BYTES and _may_be_sent_elsewhere(call):
        location = await call.read(link)
        if location is not None:
            headers = {"Location": location, "Cache-Control": "no-store", **INERT}
            return Response(status_code=307, headers=headers)
    start, end, status = part
    headers["Content-Length"] = str(end - start)
    if status == 206:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    if call.request.method == "HEAD" or start == end:
        return Response(status_code=status, headers=headers)
    blocks, _ = await call.read(open_at, start, end)
    return StreamingResponse(_streamed(call, blocks), status, headers)


def _may_be_sent_elsewhere(call: Call) -> bool:
    """True for a GET, unless a script of a page asks: it may read of another site only what that site allows."""
    return call.request.method == "GET" and call.request.headers.get("sec-fetch-mode") in (None, "navigate", "no-cors")


async def _streamed(call: Call, blocks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the blocks, each read in a thread once the one before is sent."""
    try:
        while (block := await call.read(next, blocks, b"")) != b"":
            yield block
    finally:
        _close(blocks)


def _close(blocks: Any) -> None:
    """Close the file; a plain iterator has nothing to close."""
    close = getattr(blocks, "close", None)
    if close is not None:
        close()


def _part(call: Call, size: int, tag: str) -> tuple[int, int, int] | None:
    """Return (start, end, status) of the requested range; None if it is outside. A range not understood means all."""
    whole = (0, size, 200)
    text = call.request.headers.get("range")
    condition = call.request.headers.get("if-range")
    match = _RANGE.fullmatch(text) if text else None
    if match is None or (condition is not None and condition.strip() != tag):
        return whole
    first, last = match[1], match[2]
    if not first and not last:
        return whole
    if not first:
        count = int(last)
        return (max(0, size - count), size, 206) if count and size else None
    start = int(first)
    end = min(int(last) + 1, size) if last else size
    if last and int(last) < start:
        return whole
    return (start, end, 206) if start < size else None


def _lists(header: str | None, tag: str) -> bool:
    """True if `If-None-Match` names the present content."""
    if header is None:
        return False
    return header.strip() == "*" or tag in (part.strip().removeprefix("W/") for part in header.split(","))


def _disposition(filename: str, how: str) -> str:
    """Return a header that makes it a download (`attachment`), or has it shown in place (`inline`).

    A name that does not fit in a header is sent encoded, beside a plain one.
    """
    plain = re.sub(r"[^A-Za-z0-9._ ()+-]", "_", filename)[:150] or "file"
    return f"{how}; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"


def _content_type(recorded: str) -> str:
    kind = recorded.partition(";")[0].strip().lower()
    if kind not in _HARMLESS:
        return "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


def _shown_type(recorded: str) -> str:
    """Return the type with which a content is shown: pictures as such, all that is text (HTML, SVG) as plain text."""
    kind = recorded.partition(";")[0].strip().lower()
    if kind in _PICTURES:
        return kind
    return "text/plain; charset=utf-8" if _TEXTS.fullmatch(kind) else "application/octet-stream"
