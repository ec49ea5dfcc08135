"""Waking a thread that waits, also from a signal handler that interrupts that thread."""

from __future__ import annotations

import contextlib
from queue import Empty, SimpleQueue


class Bell:
    """Like threading.Event, but `ring` may interrupt `wait` at any place.

    An event holds a lock for moments of its `wait`: a handler that sets it then, in the same thread, waits for ever.
    """

    def __init__(self) -> None:
        self._rung: SimpleQueue[None] = SimpleQueue()

    def ring(self) -> None:
        """End the wait that is under way, or the next one. From any thread, and from signal handlers."""
        self._rung.put(None)

    def wait(self, seconds: float) -> None:
        """Wait until it is rung, for at most so long; what was rung until now counts as heard."""
        with contextlib.suppress(Empty):
            self._rung.get(timeout=max(0.0, seconds))
            for _ in range(self._rung.qsize()):
                self._rung.get_nowait()
