"""The interface of a pull to its server, and to the caller's deadline."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from ...core.protocol import Digest, FoundExperiment, OrderPage

Progress = Callable[[int, int], None]
"""(bytes downloaded so far, bytes in all), called after each piece."""


class Source(Protocol):
    """A server that a pull downloads from (see docs/protocol.md). Every method may raise RemoteError."""

    @property
    def name(self) -> str:
        """The URL of the server."""

    def find(self, project: str, name: str) -> FoundExperiment | None:
        """Return an experiment by its names; None if the server does not have it."""

    def order(self, experiment: str, after: int, limit: int) -> OrderPage:
        """Return at most `limit` merge records and deaths behind arrival `after` (0: from the first), oldest first."""

    def segment(self, segment: str, offset: int, limit: int) -> tuple[bytes, str, str]:
        """Return (at most `limit` bytes of a segment from `offset` on, its file name, the id of its journal)."""

    def digests(self, journal: str, wanted: dict[str, int]) -> Mapping[str, Digest]:
        """Return the SHA-256 of the first `wanted[id]` bytes of each segment; unknown segments are left out."""

    def base(self, experiment: str) -> bytes:
        """Return the server's state of the experiment, encoded as a base (see `journal.base.decode`)."""

    def blob(self, experiment: str, name: str) -> Iterable[bytes]:
        """Yield the content of a blob in pieces. Raises ServerRefused (404) if the server does not have all of it."""


class Stopped(Exception):
    """The deadline of a pull has expired; nothing was put in place."""


class Deadline:
    """The time by which what a pull has downloaded must begin to be put in place, as decided by whoever waits for it.

    Any thread may call. Either `begin_placing` or `expire` succeeds, whichever comes first.
    """

    def __init__(self) -> None:
        # Guards the decision: `_expired` and `_placing` are never both true.
        self._guard = threading.Lock()
        self._expired = False
        self._placing = False
        self._placed = threading.Event()

    def begin_placing(self) -> None:
        """Note that the download is being put in place from now on. Raises Stopped if the deadline has expired."""
        with self._guard:
            if self._expired:
                raise Stopped
            self._placing = True

    def check(self) -> None:
        """Raise Stopped if the deadline has expired; called after each piece that was downloaded."""
        if self._expired:
            raise Stopped

    def mark_placed(self) -> None:
        """Note that all is in place."""
        self._placed.set()

    @property
    def placed(self) -> bool:
        """True once all is in place."""
        return self._placed.is_set()

    def wait_placed(self, timeout_s: float) -> bool:
        """Wait until all is in place; False if it is not within `timeout_s` seconds."""
        return self._placed.wait(timeout_s)

    def expire(self) -> bool:
        """Let the pull put nothing in place from now on; False if it has begun to."""
        with self._guard:
            self._expired = not self._placing
            return self._expired
