"""The one thread of a process that syncs its writers and retries refused writes.

`append` only tells the kernel. What makes an event survive a power cut is this thread: it calls `fdatasync` for each
writer within a second, so that no call has to wait for a disk. For writers that are degraded it tries again to write
what waits.

It sleeps until a writer wakes it or something is due. `wake` is called by training loops, so it never waits for a lock:
if another call is starting the thread just now, that one does the work.

If the process is killed, what it wrote is with the kernel, which brings it to the disk by itself. If the thread cannot
be started, `close` syncs. A forked child begins without thread and writers, as threads do not live through a fork.

Locks: `_guard` is not held while a writer is served, and `wake`, which is called inside a writer, only tries it. So no
thread waits for `_guard` while it is inside a writer.
"""

from __future__ import annotations

import logging
import os
import threading
from time import monotonic
from typing import Final

from .writer import Writer

# Seconds from the first event that is not synced to its sync: with the sync itself, a second is promised.
SYNC_AFTER_S: Final = 0.8

log = logging.getLogger("ml_dash")


class Syncer:
    """One thread that serves all writers of a process; starts when first needed, ends with the last writer.

    `_guard` protects `_writers` and the start and end of `_thread`. `wake` reads `_thread` without it.
    """

    def __init__(self) -> None:
        self._writers: set[Writer] = set()
        # Set to end the thread's pause. Each thread has its own, so that one that is ending cannot use up a wake of the
        # next.
        self._event = threading.Event()
        self._thread: threading.Thread | None = None
        self._guard = threading.Lock()
        # True from `open` until the projecting thread calls `start` (see `hold_back`).
        self._held_back = False

    def hold_back(self) -> None:
        """Let `start` start the thread, not the call that first wants it: on a busy machine that takes milliseconds."""
        self._held_back = self._thread is None

    def start(self) -> None:
        """Hold the thread back no longer; start it if it is wanted."""
        self._held_back = False
        if any(writer.dirty_since or writer.retry_at for writer in list(self._writers)):
            self.wake()

    def add(self, writer: Writer) -> None:
        """Serve a writer from now on."""
        with self._guard:
            self._writers.add(writer)
        # Whatever the writer asked for before it was added woke nobody.
        if writer.dirty_since or writer.retry_at:
            self.wake()

    def remove(self, writer: Writer) -> None:
        """Stop serving a writer. After the last one, end the thread, and wait up to 5 s for it."""
        with self._guard:
            self._writers.discard(writer)
            # The thread sees that it is not `_thread` any more, and ends. A writer that is added now gets a new one.
            thread = None if self._writers else self._thread
            if not self._writers:
                self._thread = None
        if thread is not None:
            self._event.set()
            # A thread cannot wait for itself.
            if thread is not threading.current_thread():
                thread.join(5.0)

    def wake(self) -> None:
        """Serve the writers soon: one has something to sync or to write again. Any thread; never waits."""
        if self._thread is None and not self._held_back:
            self._start()
        self._event.set()

    def _start(self) -> None:
        # The lock keeps two calls from starting two threads. Never wait for it: the caller is a training loop.
        if not self._guard.acquire(blocking=False):
            return
        try:
            # Another call may have started it since, or the last writer may be gone.
            if self._thread is None and self._writers:
                self._event = threading.Event()
                thread = threading.Thread(target=self._run, args=(self._event,), name="ml-dash-sync", daemon=True)
                thread.start()
                self._thread = thread
        except RuntimeError as error:
            # No more threads, or the interpreter is ending: close() syncs and retries itself.
            log.warning("ml-dash: no thread to sync with (%s); data is synced at close()", error)
        finally:
            self._guard.release()

    def _run(self, event: threading.Event) -> None:
        """Serve the writers until there are none, or another thread has taken over."""
        pid = os.getpid()
        while self._thread is None or self._thread is threading.current_thread():
            with self._guard:
                writers = list(self._writers)
            if not writers or os.getpid() != pid:
                return
            pause = min((self._serve(writer) for writer in writers), default=60.0)
            event.wait(pause)
            # Before serving, not after: a wake that comes while writers are served must end the next pause.
            event.clear()

    def _serve(self, writer: Writer) -> float:
        """Do what is due for a writer; return the seconds until something is due again."""
        now = monotonic()
        due = 60.0
        if writer.retry_at:
            if now >= writer.retry_at:
                writer.retry()
            # At least 10 ms, so that a disk that refuses at once is not asked in a tight loop.
            due = max(0.01, (writer.retry_at or now + 60.0) - now)
        if writer.dirty_since and writer.durability == "interval":
            # Urgent: 4 MiB were written before the last sync was due.
            wait = 0.0 if writer.urgent else writer.dirty_since + SYNC_AFTER_S - now
            if wait > 0:
                return min(due, wait)
            self._sync(writer)
            return min(due, 0.05 if writer.urgent else SYNC_AFTER_S)
        return due

    def _sync(self, writer: Writer) -> None:
        """Sync a writer; an error is logged and tried again, so that the other writers are served."""
        try:
            writer.sync()
        except OSError as error:
            # A thread hangs in the kernel. Nothing is lost: the frames are kept, and synced in the next round.
            writer.dirty_since = writer.dirty_since or monotonic()
            log.warning("ml-dash: could not sync %s: %s; trying again", writer.journal, error)

    def after_fork(self) -> None:
        """Forget writers and thread, in a forked child: they are the parent's."""
        self._writers = set()
        self._thread = None
        self._guard = threading.Lock()
        self._held_back = False
        self._event = threading.Event()


syncer = Syncer()
"""The syncer of this process."""
