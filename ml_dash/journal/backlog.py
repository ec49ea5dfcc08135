"""The backlog of a degraded writer: events in memory until the disk accepts them, and a count of those lost.

    payloads    numbered events in the order of their numbers, packed: what the disk refused or could not sync
    aside       calls that found a thread hanging inside: not numbered yet
    holes       numbers that no event will have, because memory was full or strict mode refused

Each of `payloads` and `aside` has a limit of LIMIT_BYTES. Beyond it an event that comes is lost, not one that waits.
Every loss is counted at once and reported in a LOST event later, once.

Memory only: nothing here touches a file, and a process that ends takes all of it along.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

# Bytes: some minutes of a busy run, and small beside what a training process needs.
LIMIT_BYTES: Final = 64 << 20


Aside = tuple[int, Any, Any, int]
"""Kind, body, tally and points of an event whose call could not wait for a thread that hangs inside the kernel."""


class Backlog:
    """Events that wait in memory, in the order of their numbers: at most LIMIT_BYTES, beyond which they count as lost.

    `payloads` and `holes` belong to the thread inside the writer. `set_aside` and `count_lost` may be called by any
    thread.
    """

    def __init__(self) -> None:
        self.payloads: deque[bytes] = deque()
        # Any thread appends, the one inside takes: a deque does each in one step.
        self.aside: deque[Aside] = deque()
        # Events lost so far, reported or not; calls that strict mode refused; numbers that no event will have.
        self.lost = 0
        self.refused = 0
        self.holes = 0
        self._bytes = 0
        self._aside_bytes = 0
        # Losses since the last LOST event, and the first and last of their numbers (-1: none had one).
        self._unreported = 0
        self._from = self._to = -1

    def __bool__(self) -> bool:
        return bool(self.payloads or self.aside)

    def __len__(self) -> int:
        return len(self.payloads) + len(self.aside)

    @property
    def size(self) -> int:
        """The bytes of waiting events."""
        return self._bytes + self._aside_bytes

    def push(self, payload: bytes) -> None:
        """Add a numbered payload, whatever the limit."""
        self.payloads.append(payload)
        self._bytes += len(payload)

    def push_if_it_fits(self, seq: int, payload: bytes) -> bool:
        """Add a numbered payload; False if memory is full. The event is lost then, and its number stays unused."""
        if self._bytes + len(payload) > LIMIT_BYTES:
            self.lost += 1
            self._hole(seq)
            return False
        self.push(payload)
        return True

    def push_front(self, payloads: list[bytes]) -> None:
        """Put payloads before all others: they were written once, but the sync of them failed."""
        # `extendleft` turns its argument round. No limit: these events were acknowledged as written.
        self.payloads.extendleft(reversed(payloads))
        self._bytes += sum(map(len, payloads))

    def pop(self) -> None:
        """Remove the first payload, which is on disk now."""
        self._bytes -= len(self.payloads.popleft())

    def set_aside(self, call: Aside, size: int) -> None:
        """Keep an event that is not numbered yet; if memory is full, count it as lost."""
        if self._aside_bytes + size > LIMIT_BYTES:
            self.count_lost()
            return
        self._aside_bytes += size
        self.aside.append(call)

    def take_aside(self) -> Aside:
        """Remove and return the oldest event set aside."""
        call = self.aside.popleft()
        # Not counted down one by one: sizes are not kept. The limit is for a hanging thread, and that has come out.
        if not self.aside:
            self._aside_bytes = 0
        return call

    def count_lost(self) -> None:
        """Count a loss that has no event number."""
        self.lost += 1
        self._unreported += 1

    def refuse(self, seq: int) -> None:
        """Count an event that strict mode refused with an exception; its number stays unused."""
        self.refused += 1
        self._hole(seq)

    def _hole(self, seq: int) -> None:
        self.holes += 1
        self._unreported += 1
        # One range for all losses since the last report. Numbers in between may have events after all: readers go by
        # what they see.
        if self._from < 0:
            self._from = seq
        self._to = seq

    def unreported(self) -> dict[str, Any] | None:
        """Return the body of a `LOST` event for losses not reported yet; None if there are none."""
        if not self._unreported:
            return None
        body: dict[str, Any] = {"count": self._unreported, "reason": "the disk refused, and the memory buffer was full"}
        if self._from >= 0:
            body |= {"from": self._from, "to": self._to}
        return body

    def mark_reported(self) -> None:
        """Forget the losses that the `LOST` event reports: it is on disk."""
        self._unreported = 0
        self._from = self._to = -1

    def clear(self) -> None:
        """Forget all events. In a forked child: they are the parent's to write."""
        self.payloads.clear()
        self.aside.clear()
        self._bytes = self._aside_bytes = 0
