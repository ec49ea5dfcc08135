"""Batches of a segment to send: whole frames, and damaged bytes once they have stayed the same for a while.

A network file system may show zeros, or old bytes, for what another machine has just written. What is sent as damaged
stays damaged on the server, so bytes without a valid frame are sent only after they were read twice, DAMAGE_S apart,
and were the same.

    |  frames sent  | whole frames | no frame | whole frames | beginning of a frame
                    offset         suspect    start                               end of the file
                    `next` ends a batch before what is suspect; what follows goes in a later one

Bytes without a frame are one of two things. If no frame follows them, they may be the end of a segment that is being
written, and nothing is said about them. If one follows, they are suspect: their place, the time and their SHA-256 are
remembered, and only if the same bytes are read again after DAMAGE_S are they sent, marked as damaged.

All of this is in memory. A daemon that is started anew waits once more.
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
"""Bytes that hold no valid frame are read again after this long, before they are sent as damaged."""

LARGEST_BATCH_BYTES: Final = 8 << 20
"""Most bytes of a batch that has to hold a frame larger than the usual batch."""


class Batches:
    """Reads the batches of one journal, and remembers what may be damage. For one thread at a time."""

    def __init__(self) -> None:
        # (segment file, offset) → when bytes without a valid frame were first seen there, and their SHA-256.
        self._suspect: dict[tuple[str, int], tuple[float, bytes]] = {}
        # (segment file, offset) of frames whose checksum is right, but which the server cannot decode as events.
        self._torn: set[tuple[str, int]] = set()

    def suspect_since(self, file: str) -> float | None:
        """When possible damage was first seen in a segment (time.monotonic); None if there is none."""
        return min((when for (name, _), (when, _) in self._suspect.items() if name == file), default=None)

    def forget_sent(self, file: str, length: int) -> None:
        """Forget possible damage in the first `length` bytes of a segment: the server has them."""
        self._suspect = {key: seen for key, seen in self._suspect.items() if key[0] != file or key[1] >= length}

    def mark_torn(self, file: str, at: int) -> bool:
        """Treat the frame at offset `at` as damage, because the server cannot decode it; False if it already was."""
        known = (file, at) in self._torn
        self._torn.add((file, at))
        return not known

    def next(self, segment: Segment, offset: int, end: int, batch: int) -> tuple[bytes, list[tuple[int, int]]]:
        """Return the next bytes of a segment to send, and (start, end) in the file of each part that is damaged.

        They begin at `offset`, end by `end`, are about `batch` long, and are whole frames, after damaged bytes if those
        have been confirmed. Empty if nothing can be sent now. Raises OSError.
        """
        file_name, position = segment.path.name, max(offset, segment.first)
        head = [(0, segment.first)] if segment.damaged and not offset else []
        if (file_name, position) not in self._torn:
            with segment.path.open("rb") as file:
                fd, skip = file.fileno(), position - offset
                # A frame that the server cannot decode has to begin a batch, because it is sent as damage.
                cuts = [at for name, at in self._torn if name == file_name and at > position]
                data = read_at(fd, min(end, offset + batch, *cuts) - offset, offset)
                stop = skip + whole_frames(memoryview(data)[skip:], segment.crcs)
                if stop == skip:
                    # The next frame may be larger than a batch: read as much as the largest one could take.
                    data = read_at(fd, min(end - offset, LARGEST_BATCH_BYTES), offset)
                    stop = skip + whole_frames(memoryview(data)[skip : skip + frame_size(data, skip)], segment.crcs)
                # Whole frames, or a segment that has only its header so far.
                if stop > skip or (skip and position >= end):
                    self._suspect.pop((file_name, position), None)
                    return data[:stop], head
                if len(data) < end - offset and len(data) < LARGEST_BATCH_BYTES:
                    # The file is shorter than the journal says: a network file system does not show the rest yet.
                    self._suspect.pop((file_name, position), None)
                    return b"", []
        data, gaps = self._around_damage(segment, offset, position, end, batch)
        return data, [*head, *gaps]

    def _around_damage(
        self, segment: Segment, offset: int, position: int, end: int, batch: int
    ) -> tuple[bytes, list[tuple[int, int]]]:
        """Return the bytes without a valid frame at `position`, and the frames after them, once they are confirmed."""
        key, now = (segment.path.name, position), time.monotonic()
        start = next((item.start for item in read(segment, position, end) if isinstance(item, Stretch)), position)
        if start == position:
            # No frame follows, so this may be a frame still being written; or it has become valid.
            self._suspect.pop(key, None)
            return b"", []
        with segment.path.open("rb") as file:
            gap = read_at(file.fileno(), start - position, position)
            digest = hashlib.sha256(gap).digest()
            since, seen = self._suspect.get(key, (now, b""))
            if seen != digest:
                self._suspect[key] = (now, digest)
                text = "%s: %d bytes from offset %d hold no valid frame; reading them again later"
                log.warning(text, segment.path, len(gap), position)
                return b"", []
            if now - since < DAMAGE_S:
                return b"", []
            # At least one byte of the gap, so that the batch brings the server forward even if the header takes all
            # its room.
            data = read_at(file.fileno(), min(end - offset, max(batch, position - offset + 1)), offset)
        behind = offset + len(data)
        if behind < start:
            # Only a part of the gap fits. The rest has been confirmed with it: it need not wait once more.
            self._suspect[segment.path.name, behind] = (since, hashlib.sha256(gap[behind - position :]).digest())
            return data, [(position, behind)]
        if data[position - offset : start - offset] != gap:
            # It changed between the two reads.
            return b"", []
        stop = start - offset + whole_frames(memoryview(data)[start - offset :], segment.crcs)
        # The next undecodable frame ends this batch, and begins another.
        cuts = [at - offset for name, at in self._torn if name == segment.path.name and at >= start]
        return data[: min(stop, *cuts) if cuts else stop], [(position, start)]
