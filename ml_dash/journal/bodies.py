"""Bodies too long for a frame: kept as blobs, and put back into their events.

The frame then holds a SHA-256 and a size. The blob's name is that SHA-256, the event's writer and its number, here as
on a server.

A frame holds at most 1 MiB, because larger writes are torn by a kill. A longer body, a batch of many points for
example, is written to a blob, synced, before the frame that names it. Readers put it back here, so that nobody above
sees a difference.

    frame    [seq, kind, time, ext 1: SHA-256, size]  ──▶  blobs/<sha256>-<writer>-<seq>  ──▶  body

A blob may be missing: not arrived yet, on a server, or lost. Then the event cannot be folded, and must not count as
seen. So its frame is left out, its bytes stay a hole, and a later reading finds it again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgpack
import msgspec

from ..core.events import blob_name
from ..core.frames import SPILL, SPILLED, Event
from ..errors import Damaged
from .reader import Stretch, frame_size
from .segment import BLOBS

_any_body = msgspec.msgpack.Decoder().decode

Fetch = Callable[[str, int], Any]
"""(name of a blob, its size in bytes) → the body in it."""


def reference(body: Any) -> tuple[bytes, int] | None:
    """Return (SHA-256, size in bytes) of the blob that holds a body; None if the frame itself holds it."""
    # An exact type, not isinstance: asked of every event. Other extension types are no reference; the fold finds them
    # malformed.
    if type(body) is not msgspec.msgpack.Ext or body.code != SPILLED or len(data := bytes(body.data)) != SPILL.size:
        return None
    digest, size = SPILL.unpack(data)
    return digest, size


def blobs_of(stretch: Stretch, writer: str) -> Iterator[tuple[str, int]]:
    """Yield (name, size in bytes) of the blobs that hold bodies of a stretch."""
    if _has_any(stretch):
        for event in stretch.events:
            if (found := _blob_of(event, writer)) is not None:
                yield found


def with_bodies(
    stretch: Stretch,
    writer: str,
    frames: Callable[[], bytes],
    fetch: Fetch,
    lost: Callable[[Event, Exception], None],
    lost_if: tuple[type[Exception], ...],
    *,
    at_once: int | None = None,
) -> Iterator[Stretch]:
    """Yield a stretch with its bodies, in parts. An event whose body is lost is left out: no part holds its frame.

    `frames` returns the bytes of the stretch, `fetch` a body. A body is lost if `fetch` raises one of `lost_if`; then
    `lost` is called. With `at_once` (bytes) a part ends once its bodies are larger than that.
    """
    # The usual case, at the price of one set of types for the whole stretch.
    if not _has_any(stretch):
        yield stretch
        return
    # Only now: the events alone do not say where each frame begins, its bytes do.
    data = frames()
    begun = position = stretch.start
    events: list[Event] = []
    held = 0
    for event in stretch.events:
        behind = position + frame_size(data, position - stretch.start)
        blob = _blob_of(event, writer)
        try:
            body = event[3] if blob is None else fetch(*blob)
        except lost_if as error:
            lost(event, error)
            if events:
                yield Stretch(begun, position, events)
            # The next part begins behind the frame that is left out.
            begun, events, held = behind, [], 0
        else:
            events.append((event[0], event[1], event[2], body))
            # Events that the frame itself holds are bounded by the size of the stretch.
            held += 0 if blob is None else blob[1]
        position = behind
        if at_once is not None and held > at_once:
            yield Stretch(begun, position, events)
            begun, events, held = position, [], 0
    if events:
        yield Stretch(begun, position, events)


def fetch_body(journal: Path, name: str, size: int) -> Any:
    """Return the body in a blob of a journal, its digest checked. Raises OSError, Damaged or ValueError."""
    path = journal / BLOBS / name
    # Before reading: a file of another size is wrong, and may be far too large for memory.
    if path.stat().st_size != size:
        raise Damaged(f"blob {name} has {path.stat().st_size} bytes, recorded were {size}")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != name.partition("-")[0]:
        raise Damaged(f"blob {name}: the content is not what was recorded")
    return decode(content)


def decode(content: bytes) -> Any:
    """Decode the content of a blob into a body. Raises ValueError."""
    # Keys of any type, as in frames: what is not text is found by the fold, and counted as malformed.
    return msgpack.unpackb(content, strict_map_key=False)


def head_body(writer: str, fetch: Fetch, event: Event) -> Any:
    """Return the body of an event that was read by `decode_head`. Raises ValueError, or what `fetch` raises."""
    body = _any_body(event[3])
    blob = _blob_of((*event[:3], body), writer)
    return body if blob is None else fetch(*blob)


def _has_any(stretch: Stretch) -> bool:
    """True if a body of the stretch is an extension, and so perhaps a reference."""
    return msgspec.msgpack.Ext in set(map(type, map(itemgetter(3), stretch.events)))


def _blob_of(event: Event, writer: str) -> tuple[str, int] | None:
    """Return (name, size in bytes) of the blob that holds an event's body; None if its frame does."""
    stored = reference(event[3])
    return None if stored is None else (blob_name(stored[0].hex(), writer, event[0]), stored[1])
