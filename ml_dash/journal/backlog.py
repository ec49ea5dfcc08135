"""What a degraded writer keeps in memory until the disk takes it, and the count of what memory could not hold."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

LIMIT_BYTES: Final = 64 << 20


Aside = tuple[int, Any, Any, int]
"""Kind, body, tally and points of a call that could not wait for the thread that hangs inside the kernel."""


class Backlog:
    """Payloads in the order of their numbers, at most 64 MiB; beyond that events are counted as lost."""

    def __init__(self) -> None:
        self.payloads: deque[bytes] = deque()
        self.aside: deque[Aside] = deque()
        self.lost = 0
        self.refused = 0
        self.holes = 0
        self._bytes = 0
        self._aside_bytes = 0
        self._untold = 0
        self._from = self._to = -1

    def __bool__(self) -> bool:
        return bool(self.payloads or self.aside)

    def __len__(self) -> int:
        return len(self.payloads) + len(self.aside)

    @property
    def size(self) -> int:
        """How much is kept."""
        return self._bytes + self._aside_bytes

    def push(self, payload: bytes) -> None:
        """Keep a numbered payload, whatever the limit."""
        self.payloads.append(payload)
        self._bytes += len(payload)

    def push_if_it_fits(self, seq: int, payload: bytes) -> bool:
        """Keep a numbered payload; False if memory is full: the event is lost, its number stays unused."""
        if self._bytes + len(payload) > LIMIT_BYTES:
            self.lost += 1
            self._hole(seq)
            return False
        self.push(payload)
        return True

    def push_front(self, payloads: list[bytes]) -> None:
        """Put payloads before all others: they were written once, but not safely."""
        self.payloads.extendleft(reversed(payloads))
        self._bytes += sum(map(len, payloads))

    def pop(self) -> None:
        """The first payload is on disk."""
        self._bytes -= len(self.payloads.popleft())

    def set_aside(self, call: Aside, size: int) -> None:
        """Keep a call that is not numbered yet, or count it as lost."""
        if self._aside_bytes + size > LIMIT_BYTES:
            self.count_lost()
            return
        self._aside_bytes += size
        self.aside.append(call)

    def take_aside(self) -> Aside:
        """The oldest call set aside."""
        call = self.aside.popleft()
        if not self.aside:
            self._aside_bytes = 0
        return call

    def count_lost(self) -> None:
        """Something was lost that has no number."""
        self.lost += 1
        self._untold += 1

    def refuse(self, seq: int) -> None:
        """Strict mode raised at the call: the event was not accepted, its number stays unused."""
        self.refused += 1
        self._hole(seq)

    def _hole(self, seq: int) -> None:
        self.holes += 1
        self._untold += 1
        if self._from < 0:
            self._from = seq
        self._to = seq

    def untold(self) -> dict[str, Any] | None:
        """The body of a `LOST` event for what no such event has told yet."""
        if not self._untold:
            return None
        body: dict[str, Any] = {"count": self._untold, "reason": "the disk refused, and the memory buffer was full"}
        if self._from >= 0:
            body |= {"from": self._from, "to": self._to}
        return body

    def told(self) -> None:
        """That event is on disk."""
        self._untold = 0
        self._from = self._to = -1

    def clear(self) -> None:
        """Forget everything: a forked child does not write its parent's events."""
        self.payloads.clear()
        self.aside.clear()
        self._bytes = self._aside_bytes = 0
