"""Bodies of requests: read within limits of size, time and memory, decompressed, and decoded.

Limits count decompressed bytes, and are checked before memory is taken. All bodies together have a budget. A request
that comes when it is spent waits, its bytes still on the client's side, for ADMISSION_S, and is then refused (429).

    declared length: too large? -> admit -> chunks -> inflate, 1 MiB at a time -> grow, if needed -> handler -> release

A few kilobytes of gzip can become gigabytes. So the output is taken in steps of _STEP_BYTES, each counted before the
next one is made, and never more than the limit and one step are inflated.

A body whose handler has begun may still need more memory than was admitted. It does not wait for that, since those
that it would wait for may be waiting too; it gets it from a second budget of the same size, or is refused.

What comes too slowly is refused, so that a client that stops in the middle does not hold its memory: nothing for
IDLE_S, or on average less than SLOWEST_BYTES_PER_S.
"""

from __future__ import annotations

import json
import re
import time
import zlib
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, NoReturn

import anyio
import anyio.to_thread
from starlette.requests import ClientDisconnect, Request

from ...core.protocol import BUSY, MALFORMED, TOO_LARGE, Refused

JSON_BYTES: Final = 1 << 20
"""The largest JSON body that describes something, in bytes."""

BUDGET_BYTES: Final = 128 << 20
"""Bytes of bodies in memory at once. Decompression may take up to twice as much, and no more."""

IDLE_S: Final = 20.0
"""Refuse a body of which nothing came for this long."""

SLOWEST_BYTES_PER_S: Final = 1024
"""The lowest average speed of a body, once IDLE_S have passed."""

ADMISSION_S: Final = 10.0
"""How long a body may wait for memory."""

MAX_WAITING: Final = 512
"""Bodies that may wait for memory at once."""

_STEP_BYTES: Final = 1 << 20
# Fewer compressed bytes are inflated in the event loop: a thread would cost more than it saves.
_INLINE_BYTES: Final = 4 << 10
# Taken from the budget for a body whose length is not declared.
_FIRST_BYTES: Final = 64 << 10
# zlib's way of asking for gzip, with its header and checksum, and nothing else.
_GZIP = 16 + zlib.MAX_WBITS
# An escape of half a surrogate pair. Where there is one, the decoded text is encoded again, which fails if the other
# half is missing.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


# -- memory ----------------------------------------------------------------------------------------------------------


class Budget:
    """The bytes of bodies that may be in memory at once. Not thread-safe: for one event loop."""

    def __init__(self, limit: int = BUDGET_BYTES) -> None:
        self.limit = limit
        self.used = 0
        self._waiting: deque[tuple[int, anyio.Event]] = deque()

    async def admit(self, size: int) -> None:
        """Wait for `size` bytes and take them, first come first served. Raises Refused (429) after ADMISSION_S."""
        if not self._waiting and self._fits(size):
            self.used += size
            return
        if len(self._waiting) >= MAX_WAITING:
            raise busy()
        entry = (size, anyio.Event())
        self._waiting.append(entry)
        try:
            with anyio.fail_after(ADMISSION_S):
                await entry[1].wait()
        except BaseException as error:
            if entry in self._waiting:
                self._waiting.remove(entry)
            else:  # admitted at the very moment of giving up
                self.used -= size
            self._let_in()
            if isinstance(error, TimeoutError):
                raise busy() from None
            raise

    def grow(self, size: int) -> None:
        """Take `size` more bytes for a body that turns out larger.

        Raises Refused (429) at once: waiting could deadlock.
        """
        if self.used + size > 2 * self.limit:
            raise busy()
        self.used += size

    def release(self, size: int) -> None:
        """Give bytes back."""
        self.used -= size
        self._let_in()

    def _fits(self, size: int) -> bool:
        """True if so many bytes may be admitted.

        One body alone always may, whatever its size; limits of single bodies are the caller's.
        """
        return self.used == 0 or self.used + size <= self.limit

    def _let_in(self) -> None:
        """Admit the bodies that wait, in their order, as long as they fit.

        A small one does not overtake a large one.
        """
        while self._waiting and self._fits(self._waiting[0][0]):
            size, admitted = self._waiting.popleft()
            self.used += size
            admitted.set()


# -- bytes -----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def body_of(request: Request, limit: int, budget: Budget) -> AsyncIterator[bytes]:
    """Read the whole body, decompressed, at most `limit` bytes. Its memory counts until the end of the `with`.

    Raises Refused: 400 not gzip, 408 too slow, 413 too large, 415 another encoding, 429 no memory.
    """
    compressed = _is_compressed(request)
    declared = declared_length(request)
    # Content that does not compress grows a little under gzip.
    if declared is not None and declared > limit + (limit // 500 + 1024 if compressed else 0):
        raise too_large(limit)
    taken = _FIRST_BYTES if declared is None else declared
    await budget.admit(taken)
    try:
        parts: list[bytes] = []
        have = 0
        async for part in _inflated(request, limit) if compressed else chunks(request):
            have += len(part)
            if have > limit:
                raise too_large(limit)
            if have > taken:
                budget.grow(have - taken)
                taken = have
            parts.append(part)
        yield parts[0] if len(parts) == 1 else b"".join(parts)
    finally:
        budget.release(taken)


async def chunks(request: Request) -> AsyncIterator[bytes]:
    """Yield the body as it comes. Raises Refused (408) if it comes too slowly, ClientDisconnect if it ends early."""
    began, have = time.monotonic(), 0
    while True:
        try:
            with anyio.fail_after(IDLE_S):
                # Backpressure: as long as nobody receives, uvicorn stops reading, and TCP makes the client wait.
                message = await request.receive()
        except TimeoutError:
            _too_slow()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part = message.get("body", b"")
        have += len(part)
        if part:
            yield part
        if not message.get("more_body", False):
            return
        if have < SLOWEST_BYTES_PER_S * (time.monotonic() - began - IDLE_S):
            _too_slow()


async def _inflated(request: Request, limit: int) -> AsyncIterator[bytes]:
    """Yield the body decompressed, in steps; stop soon after `limit` bytes. Raises Refused (400, 408)."""
    inflate = zlib.decompressobj(_GZIP)
    have = 0
    async for chunk in chunks(request):
        if inflate.eof:
            _malformed("the body goes on after its first gzip member")
        rest = chunk
        while True:
            try:
                if len(rest) <= _INLINE_BYTES:
                    part = inflate.decompress(rest, _STEP_BYTES)
                else:
                    part = await anyio.to_thread.run_sync(inflate.decompress, rest, _STEP_BYTES)
            except zlib.error:
                _malformed("the body is not gzip, though Content-Encoding says so")
            have += len(part)
            if part:
                yield part
            if have > limit or len(part) < _STEP_BYTES:
                break
            rest = inflate.unconsumed_tail
        if inflate.unused_data:
            _malformed("the body goes on after its first gzip member")
    if have <= limit and not inflate.eof:
        _malformed("the body's gzip member is not whole")


def declared_length(request: Request) -> int | None:
    """Return `Content-Length`; 0 if there is no body, None if its length is not declared. Raises Refused (400)."""
    text = request.headers.get("content-length")
    if text is None:
        return None if "transfer-encoding" in request.headers else 0
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        _malformed("Content-Length is not a number")
    return int(text)


def _is_compressed(request: Request) -> bool:
    """True for gzip, False for no encoding. Raises Refused (415) for others, and for gzip within gzip."""
    encodings = request.headers.getlist("content-encoding")
    encoding = ", ".join(encodings).strip().lower()
    if encoding in ("", "identity"):
        return False
    if encoding in ("gzip", "x-gzip"):
        return True
    raise Refused(415, MALFORMED, "Content-Encoding may be gzip, once, or be left out")


# -- JSON ------------------------------------------------------------------------------------------------------------


def decode_json(data: bytes) -> Any:
    """Decode strict JSON: UTF-8, no NaN, no key twice, no lone surrogate. Raises Refused (400)."""
    try:
        text = data.decode()
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)
        if _SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeError:
        _malformed("the body is not UTF-8 text, or has half of a surrogate pair")
    except RecursionError:
        _malformed("the body's JSON is nested too deeply")
    except ValueError as error:
        _malformed(f"the body is not JSON: {str(error)[:200]}")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dictionary. Raises ValueError for a key that comes twice: which one is meant?"""
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("an object has a key twice")
    return values


def _constant(name: str) -> NoReturn:
    """Raise ValueError for NaN and infinities, which Python's decoder would accept."""
    raise ValueError(f'{name} is not a JSON number; write the text "{name}"')


def _float(text: str) -> float:
    """Return a number. Raises ValueError for one like 1e999, which would become an infinity."""
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"the number {text[:40]} is out of range")
    return number


# -- refusals --------------------------------------------------------------------------------------------------------


def too_large(limit: int) -> Refused:
    """Return a refusal (413): the body has more than `limit` bytes."""
    text = f"the body has more than {limit} bytes, decompressed; send less at once"
    return Refused(413, TOO_LARGE, text, limit=limit)


def busy() -> Refused:
    """Return a refusal (429): memory for bodies is spent."""
    return Refused(429, BUSY, "too much is being sent at once; send it again", retry_after_s=1)


def _too_slow() -> NoReturn:
    raise Refused(408, "timeout", "the body came too slowly; send it again") from None


def _malformed(message: str) -> NoReturn:
    raise Refused(400, MALFORMED, message) from None
