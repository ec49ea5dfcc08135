"""The interface of a pull to its server, and to the caller's deadline."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from ...core.protocol import Digest, FoundExperiment, OrderPage

Progress = Callable[[int, int], None]


class Source(Protocol):
    """A server, as far as a pull asks it (see docs/protocol.md)."""

    @property
    def name(self) -> str:
        """The URL of the server."""

    def find(self, project: str, name: str) -> FoundExperiment | None:
        """The experiment; None if the server does not have it."""

    def order(self, experiment: str, after: int, limit: int) -> OrderPage:
        """A page of what arrived, in the order of arrival."""

    def segment(self, segment: str, offset: int, limit: int) -> tuple[bytes, str, str]:
        """(bytes of a segment from `offset` on, its file name, the id of its journal)."""

    def digests(self, journal: str, wanted: dict[str, int]) -> Mapping[str, Digest]:
        """Segment id → SHA-256 of its first so many bytes."""

    def base(self, experiment: str) -> bytes:
        """The state of the experiment, see `journal.base.decode`."""

    def blob(self, experiment: str, name: str) -> Iterable[bytes]:
        """The content of a blob. Raises ServerRefused (404) if the server does not have it whole."""


class Stopped(Exception):
    """Whoever asked for a pull does not wait for it any more; nothing was put in place."""


class Permit:
    """May what was brought be put in place? Whoever waits for it may say that it is too late."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._stopped = False
        self._taken = False
        self._placed = threading.Event()

    def take(self) -> None:
        """Raises Stopped if it is too late."""
        with self._guard:
            if self._stopped:
                raise Stopped
            self._taken = True

    def check(self) -> None:
        """Raises Stopped if the pull was given up; called before each request."""
        if self._stopped:
            raise Stopped

    def done(self) -> None:
        """Note that all is in place."""
        self._placed.set()

    @property
    def placed(self) -> bool:
        """Is it in place?"""
        return self._placed.is_set()

    def wait_placed(self, timeout_s: float) -> bool:
        """Wait until it is in place."""
        return self._placed.wait(timeout_s)

    def stop(self) -> bool:
        """It is too late from now on; False if it was put in place already."""
        with self._guard:
            self._stopped = not self._taken
            return self._stopped
