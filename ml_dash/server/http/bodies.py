"""Bodies of requests: read within limits of size, time and memory, decompressed, and decoded.

Limits count decompressed bytes, and hold before memory is taken. All bodies together have a budget: who comes when it
is spent waits with its bytes still on its own side, a while, and is then told to come again (429).
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
"""The largest JSON body that describes something."""

BUDGET_BYTES: Final = 128 << 20
"""Bodies in memory at once. Decompression may take it to twice that, and no further."""

IDLE_S: Final = 20.0
"""A body of which nothing comes for so long is given up."""

SLOWEST: Final = 1024
"""Bytes a second that a body must make on average, once IDLE_S have passed."""

ADMISSION_S: Final = 10.0
WAITING: Final = 512

_STEP: Final = 1 << 20
_INLINE: Final = 4 << 10
_FIRST: Final = 64 << 10
_MEMBERS = 16 + zlib.MAX_WBITS
_SURROGATE = re.compile(rb"\\u[dD][89abAB]")


# -- memory ----------------------------------------------------------------------------------------------------------


class Budget:
    """Bytes of bodies that may be in memory at once. For one event loop."""

    def __init__(self, limit: int = BUDGET_BYTES) -> None:
        self.limit = limit
        self.used = 0
        self._waiting: deque[tuple[int, anyio.Event]] = deque()

    async def admit(self, size: int) -> None:
        """Take `size` bytes, first come first served. Raises Refused (429) if it takes too long, or too many wait."""
        if not self._waiting and self._fits(size):
            self.used += size
            return
        if len(self._waiting) >= WAITING:
            raise busy()
        entry = (size, anyio.Event())
        self._waiting.append(entry)
        try:
            with anyio.fail_after(ADMISSION_S):
                await entry[1].wait()
        except BaseException as error:
            if entry in self._waiting:
                self._waiting.remove(entry)
            else:  # let in at the very moment of giving up
                self.used -= size
            self._let_in()
            if isinstance(error, TimeoutError):
                raise busy() from None
            raise

    def grow(self, size: int) -> None:
        """Take more for a body that turns out larger. Raises Refused (429): waiting could be for ever."""
        if self.used + size > 2 * self.limit:
            raise busy()
        self.used += size

    def release(self, size: int) -> None:
        """Give bytes back."""
        self.used -= size
        self._let_in()

    def _fits(self, size: int) -> bool:
        return self.used == 0 or self.used + size <= self.limit

    def _let_in(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            size, admitted = self._waiting.popleft()
            self.used += size
            admitted.set()


# -- bytes -----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def body_of(request: Request, limit: int, budget: Budget) -> AsyncIterator[bytes]:
    """The whole body, decompressed, at most `limit` bytes; its memory counts until the end of the `with`.

    Raises Refused: 400, 408, 413, 415, 429.
    """
    compressed = _is_compressed(request)
    declared = declared_length(request)
    # What does not compress grows by its wrapping.
    if declared is not None and declared > limit + (limit // 500 + 1024 if compressed else 0):
        raise too_large(limit)
    taken = _FIRST if declared is None else declared
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
    """The body as it comes. Raises Refused (408) where it comes too slowly, ClientDisconnect where it ends early."""
    began, have = time.monotonic(), 0
    while True:
        try:
            with anyio.fail_after(IDLE_S):
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
        if have < SLOWEST * (time.monotonic() - began - IDLE_S):
            _too_slow()


async def _inflated(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body decompressed, in steps; stops soon after `limit`."""
    inflate = zlib.decompressobj(_MEMBERS)
    have = 0
    async for chunk in chunks(request):
        if inflate.eof:
            _malformed("the body goes on after its first gzip member")
        rest = chunk
        while True:
            try:
                if len(rest) <= _INLINE:
                    part = inflate.decompress(rest, _STEP)
                else:
                    part = await anyio.to_thread.run_sync(inflate.decompress, rest, _STEP)
            except zlib.error:
                _malformed("the body is not gzip, though Content-Encoding says so")
            have += len(part)
            if part:
                yield part
            if have > limit or len(part) < _STEP:
                break
            rest = inflate.unconsumed_tail
        if inflate.unused_data:
            _malformed("the body goes on after its first gzip member")
    if have <= limit and not inflate.eof:
        _malformed("the body's gzip member is not whole")


def declared_length(request: Request) -> int | None:
    """`Content-Length`, if it is there."""
    text = request.headers.get("content-length")
    if text is None:
        return None if "transfer-encoding" in request.headers else 0
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        _malformed("Content-Length is not a number")
    return int(text)


def _is_compressed(request: Request) -> bool:
    encodings = request.headers.getlist("content-encoding")
    encoding = ", ".join(encodings).strip().lower()
    if encoding in ("", "identity"):
        return False
    if encoding in ("gzip", "x-gzip"):
        return True
    raise Refused(415, MALFORMED, "Content-Encoding may be gzip, once, or be left out")


# -- JSON ------------------------------------------------------------------------------------------------------------


def decode_json(data: bytes) -> Any:
    """The value that strict JSON stands for: UTF-8, no NaN, no key twice, no lone surrogate. Raises Refused (400)."""
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
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("an object has a key twice")
    return made


def _constant(name: str) -> NoReturn:
    raise ValueError(f'{name} is no JSON number; write the text "{name}"')


def _float(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"the number {text[:40]} is out of range")
    return number


# -- refusals --------------------------------------------------------------------------------------------------------


def too_large(limit: int) -> Refused:
    """413: the body has more than `limit` bytes."""
    text = f"the body has more than {limit} bytes, decompressed; send less at once"
    return Refused(413, TOO_LARGE, text, limit=limit)


def busy() -> Refused:
    """429: memory for bodies is spent."""
    return Refused(429, BUSY, "too much is being sent at once; send it again", retry_after_s=1)


def _too_slow() -> NoReturn:
    raise Refused(408, "timeout", "the body came too slowly; send it again") from None


def _malformed(message: str) -> NoReturn:
    raise Refused(400, MALFORMED, message) from None
