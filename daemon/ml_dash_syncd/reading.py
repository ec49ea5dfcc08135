"""Reading a segment for sending: whole frames, and damaged bytes once they have stayed the same for a while.

A network file system may show what is not there, or not yet. So nothing is called damaged at the first look.
"""

from __future__ import annotations

import hashlib
import logging
import time
from typing import Final

from ml_dash.disk.durable import read_at
from ml_dash.journal.reader import Segment, Stretch, frame_size, read, whole_frames

log = logging.getLogger("ml_dash.syncd")

DAMAGE_S: Final = 60.0
"""Bytes that hold no frame are read again after that long, before they are sent as damaged."""

LARGEST_BATCH: Final = 8 << 20


class Reader:
    """What was seen in the segments of one journal that may be damage."""

    def __init__(self) -> None:
        # (segment file, offset) → when bytes that hold no frame were first seen there, and what they were.
        self._suspect: dict[tuple[str, int], tuple[float, bytes]] = {}
        # Frames (segment file, offset) whose checksum holds, and that are no events.
        self._torn: set[tuple[str, int]] = set()

    def suspects_since(self, file: str) -> float | None:
        """Since when there is something in a segment that may be damage (time.monotonic); None if there is nothing."""
        return min((when for (name, _), (when, _) in self._suspect.items() if name == file), default=None)

    def sent(self, file: str, length: int) -> None:
        """So many bytes of it are on the server."""
        self._suspect = {key: seen for key, seen in self._suspect.items() if key[0] != file or key[1] >= length}

    def take_for_torn(self, file: str, at: int) -> bool:
        """The frame there is no event, the server says; False if that was known."""
        known = (file, at) in self._torn
        self._torn.add((file, at))
        return not known

    def next(self, segment: Segment, offset: int, end: int, batch: int) -> tuple[bytes, list[tuple[int, int]]]:
        """The next bytes to send: whole frames, and before them what holds none if that is certain by now."""
        file_name, position = segment.path.name, max(offset, segment.first)
        head = [(0, segment.first)] if segment.damaged and not offset else []
        if (file_name, position) not in self._torn:
            with segment.path.open("rb") as file:
                fd, skip = file.fileno(), position - offset
                cuts = [at for name, at in self._torn if name == file_name and at > position]
                data = read_at(fd, min(end, offset + batch, *cuts) - offset, offset)
                stop = skip + whole_frames(memoryview(data)[skip:], segment.crcs)
                if stop == skip:
                    # One frame may be larger than a batch.
                    data = read_at(fd, min(end - offset, LARGEST_BATCH), offset)
                    stop = skip + whole_frames(memoryview(data)[skip : skip + frame_size(data, skip)], segment.crcs)
                if stop > skip or (skip and position >= end):
                    self._suspect.pop((file_name, position), None)
                    return data[:stop], head
                if len(data) < end - offset and len(data) < LARGEST_BATCH:
                    # The file is shorter than it was.
                    self._suspect.pop((file_name, position), None)
                    return b"", []
        data, gaps = self._around_damage(segment, offset, position, end, batch)
        return data, [*head, *gaps]

    def _around_damage(
        self, segment: Segment, offset: int, position: int, end: int, batch: int
    ) -> tuple[bytes, list[tuple[int, int]]]:
        """What holds no frame, with the frames behind it, once it has stayed the same for a while."""
        key, now = (segment.path.name, position), time.monotonic()
        start = next((item.start for item in read(segment, position, end) if isinstance(item, Stretch)), position)
        if start == position:
            # Nothing follows, or it holds by now.
            self._suspect.pop(key, None)
            return b"", []
        with segment.path.open("rb") as file:
            gap = read_at(file.fileno(), start - position, position)
            digest = hashlib.sha256(gap).digest()
            since, seen = self._suspect.get(key, (now, b""))
            if seen != digest:
                self._suspect[key] = (now, digest)
                log.warning("%s: %d bytes from %d hold no frame; read again later", segment.path, len(gap), position)
                return b"", []
            if now - since < DAMAGE_S:
                return b"", []
            data = read_at(file.fileno(), min(end - offset, max(batch, position - offset + 1)), offset)
        behind = offset + len(data)
        if behind < start:
            # The rest of it was looked at as well.
            self._suspect[segment.path.name, behind] = (since, hashlib.sha256(gap[behind - position :]).digest())
            return data, [(position, behind)]
        if data[position - offset : start - offset] != gap:
            return b"", []
        stop = start - offset + whole_frames(memoryview(data)[start - offset :], segment.crcs)
        cuts = [at - offset for name, at in self._torn if name == segment.path.name and at >= start]
        return data[: min(stop, *cuts) if cuts else stop], [(position, start)]
