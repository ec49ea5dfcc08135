"""The facts of all experiments below some places, kept up to date in an index.

The index has a file in the cache, so that the next process begins with what this one knew. A listing looks whether an
experiment has changed by two or three calls of `stat`, and folds those that have; of those that run it also looks at
their segments and locks. Nothing is written where experiments are.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

from ..core.state import RUNNING
from ..errors import JournalError
from .cached import cache_file, mark_used
from .facts import Facts, facts_of
from .index import Index
from .indexing import Indexer
from .live import LiveViews, view_of
from .places import SCAN_EVERY_S, Found, Places, version_of

KIND: Final = "runs"
# A look at all experiments takes at most this share of the time.
_SHARE: Final = 0.05
# Where a look at all takes longer, what was known is shown meanwhile: of about a thousand experiments.
_LONG_S: Final = 0.02
_MANY: Final = 1000
# Experiments that are folded together, between two looks at the clock.
_TOGETHER: Final = 32
_RUNNING_EVERY_S: Final = 0.1


class Runs:
    """The experiments below some places and their facts. Any thread may call."""

    def __init__(self, places: Places, views: LiveViews, indexer: Indexer, cache: Path | None) -> None:
        self.places = places
        self._views = views
        self._indexer = indexer
        name = Path("\n".join(map(str, places.paths)))
        file = cache_file(cache, KIND, name) if cache is not None else None
        if file is not None:
            mark_used(file)
        self.index = Index(file)
        self._lock = threading.Lock()
        # One look at a time; what it found is then taken over under the other lock.
        self._looking = threading.Lock()
        self._due = float("-inf")
        # How long the last look took; None before the first.
        self._taken_s: float | None = None
        self._running_due = float("-inf")
        self._by_key = {one.key: one for one in places.kept().values()}
        # What was found stale and is not folded yet, the newest last: key → version. Beside it what cannot be read.
        self._stale: dict[str, list[Any]] = {}
        self._broken: dict[str, list[Any]] = {}
        # Key → (events, whether it runs, version when that was so).
        self._events: dict[str, tuple[int, bool, list[Any]]] = {}
        for row in self.index.page(None, None, (), 0, len(self.index), archived=True).rows:
            self._note(row.key, row.facts, [])

    def _note(self, key: str, facts: Facts, version: list[Any]) -> None:
        # A death adds no event, so what is known from following a run may be more.
        events = max(facts.events, self._events.get(key, (0,))[0])
        self._events[key] = events, facts.status == RUNNING, version

    # -- up to date ---------------------------------------------------------------------------------------------------

    def refresh(self, *, now: bool = False) -> dict[str, int] | None:
        """Look for what has changed; return {"done", "total"} while not all is known, else None.

        With `now` it is waited for, else only where it is soon done.
        """
        look = (self, "look")
        if now:
            self._look(now=True)
        elif time.monotonic() >= self._due:
            is_long = len(self._by_key) > _MANY if self._taken_s is None else self._taken_s > _LONG_S
            self._indexer.bring({look: self._look_soon}, wait=not is_long)
        if self._stale:
            self._indexer.bring({(self, "runs"): self._fold_some})
        looking = self._indexer.is_busy(look)
        with self._lock:
            left = len(self._stale)
            total = len(self._by_key)
            return {"done": total - left, "total": total} if left or looking else None

    def _look_soon(self) -> bool:
        self._look(now=False)
        return False

    def _look(self, *, now: bool) -> None:
        with self._looking:
            began = time.monotonic()
            found = self.places.all(now=now)
            by_key = {one.key: one for one in found.values()}
            present = {key: version_of(one, running=self._runs(key)) for key, one in by_key.items()}
            stale = [key for key in self.index.stale(present) if self._broken.get(key) != present[key]]
            # The newest last, since the last is taken first: a table shows those first.
            stale.sort(key=lambda key: present[key][0])
            with self._lock:
                self._by_key = by_key
                for gone in self._events.keys() - present.keys():
                    del self._events[gone]
                self._stale = {key: present[key] for key in stale}
            taken = self._taken_s = time.monotonic() - began
            self._due = began + taken + max(SCAN_EVERY_S / 2, taken / _SHARE)

    def _runs(self, key: str) -> bool:
        known = self._events.get(key)
        return known is not None and known[1]

    def _fold_some(self) -> bool:
        """Fold some experiments that have changed; True if there are more."""
        with self._lock:
            chosen = {key: self._stale[key] for key in [*self._stale][-_TOGETHER:]}
            found = [self._by_key[key] for key in chosen if key in self._by_key]
        rows = []
        for one in found:
            # Before the fold: what comes during it makes another version.
            version, deep = version_of(one, running=False), version_of(one, running=True)
            facts = self._facts(one)
            if facts is not None:
                rows.append((one.key, deep if facts.status == RUNNING else version, facts))
        self.index.put_all(rows)
        with self._lock:
            for key, version, facts in rows:
                self._note(key, facts, version)
            self._broken.update({key: chosen[key] for key in chosen.keys() - {key for key, _, _ in rows}})
            # One that has changed meanwhile is stale again.
            for key, version in chosen.items():
                if self._stale.get(key) == version:
                    del self._stale[key]
            more = bool(self._stale)
        if not more:
            self.places.save()
        return more

    def _facts(self, one: Found) -> Facts | None:
        """Return the facts of an experiment as it is now; None if it cannot be read, or is gone."""
        try:
            if self._runs(one.key):
                with self._views.looking(one.located) as current:
                    return facts_of(current.state)
            return facts_of(view_of(one.located).state)
        except (OSError, JournalError):
            return None

    # -- what is there ------------------------------------------------------------------------------------------------

    def found(self, key: str) -> Found | None:
        """Return the experiment of a row of the index."""
        return self._by_key.get(key)

    def events(self, ids: Collection[str] | None) -> Mapping[str, int]:
        """Return a number for each experiment that grows with its events, and with each death that is found.

        Those that run are looked at each time, others as often as lists are.
        """
        self.refresh()
        with self._lock:
            if time.monotonic() >= self._running_due:
                for key, (_, runs, version) in list(self._events.items()):
                    one = self._by_key.get(key)
                    if one is not None and (runs or (ids is not None and one.id in ids)):
                        self._follow(one, version)
                self._running_due = time.monotonic() + _RUNNING_EVERY_S
            wanted = None if ids is None else set(ids)
            # One that is there and was not folded yet has news once it is; without a number it would count as gone.
            return {
                one.id: self._events[key][0] if key in self._events else 1
                for key, one in self._by_key.items()
                if wanted is None or one.id in wanted
            }

    def _follow(self, one: Found, version: list[Any]) -> None:
        """Count the events of an experiment that may have gone on."""
        current = version_of(one, running=True)
        if current == version:
            return
        try:
            with self._views.looking(one.located) as seen:
                deaths = sum(writer.dead for writer in seen.state.writers.values())
                self._events[one.key] = seen.state.events + deaths, seen.state.status == RUNNING, current
        except (OSError, JournalError):
            # It is gone, or damaged: the next look at all of them will say.
            return

    def close(self) -> None:
        """Keep what is known, and close the file of the index."""
        self.places.save()
        self.index.close()
