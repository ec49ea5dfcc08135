"""Actors that take turns at each call of a store, in an order that a seed decides; and stores that make them pause."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

_local = threading.local()


class Killed(BaseException):
    """What a killed process does: nothing more, not even what its `except Exception` says."""


class Turns:
    """Threads of which one runs at a time, until it pauses."""

    def __init__(self, seed: int, kills: float = 0.0) -> None:
        self.random = random.Random(seed)
        self.kills = kills
        self._actors: list[_Actor] = []

    def add(self, work: Callable[[], None], weight: float = 1.0) -> None:
        """An actor more; one of twice the weight has twice as many turns."""
        self._actors.append(_Actor(self, work, weight))

    @property
    def others(self) -> int:
        """How many actors are not done, apart from the one that asks."""
        return sum(not actor.done for actor in self._actors) - 1

    def run(self) -> None:
        """Let all actors do their work; raise what the first one raised."""
        running = list(self._actors)
        while running:
            (actor,) = self.random.choices(running, [one.weight for one in running])
            actor.turn()
            if not actor.thread.is_alive() or actor.done:
                actor.thread.join()
                running.remove(actor)
        for actor in self._actors:
            if actor.error is not None:
                raise actor.error

    def pause(self) -> None:
        """Give the turn back; outside of an actor nothing happens. Raises Killed now and then where that is allowed."""
        actor: _Actor | None = getattr(_local, "actor", None)
        if actor is None:
            return
        actor.pause()
        if getattr(_local, "mortal", False) and self.random.random() < self.kills:
            raise Killed


def mortal(value: bool) -> None:
    """Say whether this actor may be killed from here on."""
    _local.mortal = value


class _Actor:
    def __init__(self, turns: Turns, work: Callable[[], None], weight: float) -> None:
        self._work = work
        self.weight = weight
        self._mine, self._theirs = threading.Semaphore(0), threading.Semaphore(0)
        self.done = False
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        _local.actor = self
        self._mine.acquire()
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - raised again by `run`
            self.error = error
        self.done = True
        self._theirs.release()

    def turn(self) -> None:
        self._mine.release()
        self._theirs.acquire()

    def pause(self) -> None:
        self._theirs.release()
        self._mine.acquire()


class Pausing:
    """A store whose calls begin and end with a pause, but for those in `at_once`; all else is the store's own."""

    def __init__(self, store: Any, turns: Turns, at_once: tuple[str, ...] = ()) -> None:
        self._store = store
        self._turns = turns
        self._at_once = at_once

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if not callable(found) or name in self._at_once:
            return found

        def called(*args: Any, **named: Any) -> Any:
            self._turns.pause()
            answer = found(*args, **named)
            # A look is a context that must not stay open over a pause that kills, and needs none.
            if name not in ("view", "release", "entries"):
                self._turns.pause()
            return answer

        return called
