"""The event stream: tells live readers of an experiment how many events it has, over one long reply.

    writer thread:  commit -> Ingest.notify -> Hub.changed -> _pending, and one wake-up of the loop
    event loop:     _deliver -> Listener.notify -> stream -> "change" with the number of events

A listener is told how many events there are and nothing else; it asks for what it wants to show. So no queue can
grow: ten thousand commits while a reader is slow become one number. A reader that comes back says what it had
(`Last-Event-ID`), and hears at once if there is more.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from typing import Final

from ...core.protocol import BUSY, Refused

# Proxies close connections on which nothing comes for a minute or so.
HEARTBEAT_S: Final = 15.0
MAX_LISTENERS: Final = 1000

Key = tuple[str, str]
"""(namespace, experiment)"""


class Listener:
    """One live reader. It needs only the newest number of events, so there is no queue. For the event loop."""

    def __init__(self) -> None:
        self.events: int | None = None
        self.removed = False
        self.news = asyncio.Event()

    def notify(self, events: int | None) -> None:
        """Note the number of events, or None: the experiment was removed. Wakes the stream."""
        if events is None:
            self.removed = True
        elif self.events is None or events > self.events:
            self.events = events
        self.news.set()


class Hub:
    """The link from the threads that fold to the connections that wait for changes.

    `_pending` is shared between threads, under `_lock`. All else belongs to the event loop; `changed` reads
    `_listeners` from other threads without the lock, and at worst wakes the loop for nobody.
    """

    def __init__(self) -> None:
        self._listeners: dict[Key, set[Listener]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pending: dict[Key, int | None] = {}
        self._lock = threading.Lock()
        self.closing = False
        self.count = 0

    def start(self) -> None:
        """Take the running event loop as the one that serves. Until then changes are dropped."""
        self._loop = asyncio.get_running_loop()

    def changed(self, namespace: str, experiment: str, events: int | None) -> None:
        """Note that an experiment has this many events now; None: it was removed. From any thread; never waits."""
        loop = self._loop
        # Read without a lock: a listener that joins just now reads the number of events itself, after joining.
        if loop is None or (namespace, experiment) not in self._listeners:
            return
        with self._lock:
            first = not self._pending
            # A removal stays pending even if the experiment begins anew at once: streams of the old one must end.
            if self._pending.get((namespace, experiment), 0) is not None:
                self._pending[namespace, experiment] = events
        # One wake-up serves many changes. The loop may have ended since.
        if first and not loop.is_closed():
            loop.call_soon_threadsafe(self._deliver)

    def followed(self) -> list[Key]:
        """Return the experiments that somebody listens to. In the event loop."""
        return list(self._listeners)

    def _deliver(self) -> None:
        """Pass what is pending to the listeners. In the event loop."""
        with self._lock:
            pending, self._pending = self._pending, {}
        for key, events in pending.items():
            for listener in self._listeners.get(key, ()):
                listener.notify(events)

    def close(self) -> None:
        """End all streams, because the server stops. In the event loop."""
        self.closing = True
        for listeners in self._listeners.values():
            for listener in listeners:
                listener.news.set()

    def join(self, namespace: str, experiment: str) -> Listener:
        """Add a listener to an experiment. Raises Refused (429) if there are too many. Call `leave` in the end."""
        if self.count >= MAX_LISTENERS:
            raise Refused(429, BUSY, "too many live readers are connected", retry_after_s=30)
        listener = Listener()
        self._listeners.setdefault((namespace, experiment), set()).add(listener)
        self.count += 1
        return listener

    def leave(self, namespace: str, experiment: str, listener: Listener) -> None:
        """Remove a listener."""
        listeners = self._listeners[namespace, experiment]
        listeners.discard(listener)
        if not listeners:
            del self._listeners[namespace, experiment]
        self.count -= 1

    async def stream(self, experiment: str, listener: Listener, known: int | None) -> AsyncIterator[bytes]:
        """Yield server-sent events: the number of events unless `known`, each growth, and heartbeats as comments."""
        yield b": ml-dash\nretry: 2000\n\n"
        sent = known
        while not self.closing:
            # Before looking, so that what comes after the look ends the wait.
            listener.news.clear()
            if listener.removed:
                yield _event("removed", sent, {"experiment": experiment})
                return
            if listener.events is not None and listener.events != sent:
                sent = listener.events
                yield _event("change", sent, {"experiment": experiment, "events": sent})
                continue
            try:
                await asyncio.wait_for(listener.news.wait(), HEARTBEAT_S)
            except asyncio.TimeoutError:
                yield b": still here\n\n"


def _event(kind: str, number: int | None, data: dict[str, object]) -> bytes:
    """Encode a server-sent event; its id is what a browser sends back when it connects again."""
    mark = "" if number is None else f"id: {number}\n"
    return f"{mark}event: {kind}\ndata: {json.dumps(data)}\n\n".encode()
