"""The event streams: tell live readers how many events an experiment, or each of many, has, over one long reply.

    writer thread:  commit -> Ingest.notify -> Hub.changed -> _pending, and one wake-up of the loop
    event loop:     _deliver -> Listener.notify -> stream -> "change" with the number of events
                             -> Feed.notify     -> feed   -> "change" with those of all that have changed

A listener is told how many events there are and nothing else; it asks for what it wants to show. So no queue can
grow: ten thousand commits while a reader is slow become one number. A reader that comes back says what it had
(`Last-Event-ID`), and hears at once if there is more.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Mapping
from typing import Final

from ...core.protocol import BUSY, Refused

# Proxies close connections on which nothing comes for a minute or so.
HEARTBEAT_S: Final = 15.0
# A feed collects changes for this long: a page has better things to do than to ask fifty times a second.
BATCH_S: Final = 0.2
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


class Feed:
    """One live reader of many experiments: of those in `ids`, or of a whole namespace (None). For the event loop.

    It remembers what it has told, so that each number is told once; and of what has changed since, only the newest.
    """

    def __init__(self, ids: frozenset[str] | None, known: Mapping[str, int]) -> None:
        self.ids = ids
        self._known = dict(known)
        self._changed: dict[str, int] = {}
        self._removed: set[str] = set()
        self.news = asyncio.Event()

    def notify(self, experiment: str, events: int | None) -> None:
        """Note the number of events of an experiment, or None: it was removed."""
        if self.ids is not None and experiment not in self.ids:
            return
        if events is None:
            self._known.pop(experiment, None)
            self._changed.pop(experiment, None)
            self._removed.add(experiment)
        elif self._known.get(experiment) != events:
            self._known[experiment] = self._changed[experiment] = events
        else:
            return
        self.news.set()

    def compare(self, events: Mapping[str, int]) -> None:
        """Note all that differs from what there is now; what is not there was removed."""
        for experiment in self._known.keys() - events.keys():
            self.notify(experiment, None)
        for experiment, count in events.items():
            self.notify(experiment, count)

    def take(self) -> tuple[dict[str, int], list[str]]:
        """Return (what has changed, what was removed) since the last call."""
        self.news.clear()
        changed, removed = self._changed, sorted(self._removed)
        self._changed, self._removed = {}, set()
        return changed, removed


class Hub:
    """The link from the threads that fold to the connections that wait for changes.

    `_pending` is shared between threads, under `_lock`. All else belongs to the event loop; `changed` reads
    `_listeners` from other threads without the lock, and at worst wakes the loop for nobody.
    """

    def __init__(self) -> None:
        self._listeners: dict[Key, set[Listener]] = {}
        self._feeds: dict[str, set[Feed]] = {}
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
        if loop is None or ((namespace, experiment) not in self._listeners and namespace not in self._feeds):
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
        """Return the experiments that somebody listens to, one by one. In the event loop."""
        feeds = ((namespace, feed) for namespace, feeds in self._feeds.items() for feed in feeds)
        chosen = [(namespace, experiment) for namespace, feed in feeds for experiment in feed.ids or ()]
        return list(dict.fromkeys([*self._listeners, *chosen]))

    def followed_whole(self) -> list[str]:
        """Return the namespaces of which somebody follows all experiments. In the event loop."""
        return [namespace for namespace, feeds in self._feeds.items() if any(feed.ids is None for feed in feeds)]

    def compare(self, namespace: str, events: Mapping[str, int]) -> None:
        """Tell those that follow a whole namespace what is there now. In the event loop."""
        for feed in self._feeds.get(namespace, ()):
            if feed.ids is None:
                feed.compare(events)

    def _deliver(self) -> None:
        """Pass what is pending to the listeners. In the event loop."""
        with self._lock:
            pending, self._pending = self._pending, {}
        for key, events in pending.items():
            for listener in self._listeners.get(key, ()):
                listener.notify(events)
            for feed in self._feeds.get(key[0], ()):
                feed.notify(key[1], events)

    def close(self) -> None:
        """End all streams, because the server stops. In the event loop."""
        self.closing = True
        for listeners in self._listeners.values():
            for listener in listeners:
                listener.news.set()
        for feeds in self._feeds.values():
            for feed in feeds:
                feed.news.set()

    def join(self, namespace: str, experiment: str) -> Listener:
        """Add a listener to an experiment. Raises Refused (429) if there are too many. Call `leave` in the end."""
        self._check_room()
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

    def join_feed(self, namespace: str, feed: Feed) -> None:
        """Add a feed to a namespace. Raises Refused (429) if there are too many. Call `leave_feed` in the end."""
        self._check_room()
        self._feeds.setdefault(namespace, set()).add(feed)
        self.count += 1

    def leave_feed(self, namespace: str, feed: Feed) -> None:
        """Remove a feed."""
        feeds = self._feeds[namespace]
        feeds.discard(feed)
        if not feeds:
            del self._feeds[namespace]
        self.count -= 1

    def _check_room(self) -> None:
        if self.count >= MAX_LISTENERS:
            raise Refused(429, BUSY, "too many live readers are connected", retry_after_s=30)

    async def feed(self, feed: Feed) -> AsyncIterator[bytes]:
        """Yield server-sent events: what has changed, at most every BATCH_S, and heartbeats as comments."""
        yield b": ml-dash\nretry: 2000\n\n"
        while not self.closing:
            try:
                await asyncio.wait_for(feed.news.wait(), HEARTBEAT_S)
            except asyncio.TimeoutError:
                yield b": still here\n\n"
                continue
            changed, removed = feed.take()
            if changed:
                yield _event("change", None, {"experiments": changed})
            if removed:
                yield _event("removed", None, {"experiments": removed})
            if changed or removed:
                await asyncio.sleep(BATCH_S)

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
