"""One rule for what comes next: the same for whoever folds and whoever sends on, and the same as it was."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from ml_dash.core import events as ev
from ml_dash.core.rewinds import Past
from ml_dash.core.state import Edits
from ml_dash.errors import JournalError
from ml_dash.journal.follow import Follower
from ml_dash.journal.merge import OrderChanged, joined
from ml_dash.journal.order import Death, Order, Record
from ml_dash.journal.segment import ORDER, SEGMENTS, list_segments
from ml_dash.journal.sequence import Restart, Sequence
from ml_dash.projection.replay import Replay
from ml_dash.projection.start import begin
from tests.journal import former_replay
from tests.journals import START_NS, Desk, Pen, flip

JOURNALS: Final = 150


class Nowhere:
    """A sink that drops what it gets."""

    def apply(self, edits: Edits) -> None:
        edits.clear()

    def history(self, name: str, start: int, end: int) -> Iterator[Past]:
        return iter(())


def recorded(journal: Path) -> list[Record]:
    order = Order(journal)
    try:
        order.open(write=False)
        return [record for record, _ in order.read(0)]
    finally:
        order.close()


# -- random journals --------------------------------------------------------------------------------------------------


class Script:
    """Things that happen to a journal, drawn from a seed: the same ones to each desk that it is played on."""

    def __init__(self, seed: str, desk: Desk, *, tame: bool) -> None:
        self.rng = random.Random(seed)
        self.desk = desk
        self.elsewhere: Desk | None = None
        self._tame = tame
        # Not with damage: where an opening event is lost, it was open who died before its writer came.
        self._brings = not tame and self.rng.random() < 0.3

    def happen(self) -> None:
        """Some of what writers do, and at times some of what disks do."""
        for _ in range(self.rng.randrange(1, 6)):
            self._write()
        if self.rng.random() < 0.4:
            happens = [self._bring] if self._brings else [self._flip, self._chop, self._remove]
            self.rng.choice(happens if self._tame else [self._spoil_order, *happens])()

    def let_go(self) -> None:
        if self.elsewhere is not None:
            self.elsewhere.let_go()

    def _write(self) -> None:
        living = [pen for pen in self.desk.pens if pen._lock >= 0 and pen.segment.exists()]
        what = self.rng.randrange(12)
        if not living or (what == 0 and len(self.desk.pens) < 6):
            self.desk.pen(opens=self._brings or self.rng.random() < 0.8)
            return
        pen = self.rng.choice(living)
        if what == 1:
            pen.roll()
        elif what == 2:
            pen.raw(self.rng.randbytes(self.rng.randrange(1, 40)))
        elif what == 3:
            pen.die()
        elif what == 4:
            pen.close()
        elif what == 5:
            pen.raw(b"\x40\x00\x00\x00half")
            pen.roll()
        elif what == 6:
            pen.large(ev.LOG, ["info", "x" * 100, None], keeps_blob=self.rng.random() < 0.5)
        else:
            pen.log("x" * self.rng.randrange(300))

    def _any(self) -> Path | None:
        found = list_segments(self.desk.journal)
        return self.rng.choice(found)[1] if found else None

    def _flip(self) -> None:
        path, where = self._any(), self.rng.random()
        if path is not None and path.stat().st_size:
            flip(path, int(where * path.stat().st_size), self.rng.randrange(8))

    def _chop(self) -> None:
        path, size = self._any(), self.rng.randrange(1, 60)
        if path is not None:
            path.write_bytes(path.read_bytes()[:-size])

    def _remove(self) -> None:
        path = self._any()
        if path is not None and self.rng.random() < 0.5:
            path.unlink()

    def _spoil_order(self) -> None:
        path, what, where = self.desk.journal / ORDER, self.rng.randrange(5), self.rng.random()
        if not path.exists() or not path.stat().st_size:
            return
        if what == 0:
            path.unlink()
        elif what == 1:
            path.write_bytes(path.read_bytes()[: -self.rng.randrange(1, 90)])
        else:
            flip(path, int(where * path.stat().st_size), self.rng.randrange(8))

    def _bring(self) -> None:
        """Segments of a writer elsewhere come, or grow."""
        if self.elsewhere is None:
            self.elsewhere = Desk(self.desk.store / "elsewhere")
            pen = Pen(self.elsewhere, 9)
            self.elsewhere.pens.append(pen)
            pen.open()
        [pen] = self.elsewhere.pens
        pen.log("elsewhere")
        if self.rng.random() < 0.3:
            pen.roll()
        for path in pen.segments if self.rng.random() < 0.9 else pen.segments[-1:]:
            (self.desk.journal / SEGMENTS / path.name).write_bytes(path.read_bytes())


# -- those who are compared -------------------------------------------------------------------------------------------


@dataclass
class Walking:
    """Follows as uploaders do."""

    make: Callable[[Path], Any]
    # Where `order` is damaged its end was named again, and the damage was not noticed.
    tame: bool = True

    def begin(self, journal: Path) -> None:
        self._reader = self.make(journal)

    def look(self) -> list[Record]:
        return list(self._reader.follow())

    def position(self) -> Any:
        return sorted(self._reader.troubles)


@dataclass
class Folding:
    """Follows as projectors do."""

    make: Callable[[Path, Any], Any]
    records: bool = True
    tame: bool = False

    def begin(self, journal: Path) -> None:
        self._replay = self.make(journal, begin(journal))

    def look(self) -> list[Record]:
        self._replay.catch_up(Nowhere(), record=self.records)
        return []

    def position(self) -> Any:
        at = self._replay.at
        return deepcopy([at.covered, at.settled, at.state, self._replay.assumed, sorted(self._replay.troubles)])


def play(folder: Path, seed: str, subject: Walking | Folding) -> list[Any]:
    """What one of them says of a random journal while it is written, each time it looks."""
    desk = Desk(folder)
    desk.now_ns = START_NS
    script = Script(seed, desk, tame=subject.tame)
    rng, told = random.Random(f"{seed} looks"), list[Any]()
    begun = False
    try:
        for _ in range(rng.randrange(2, 10)):
            script.happen()
            anew = not begun or rng.random() < 0.3
            try:
                if anew:
                    subject.begin(desk.journal)
                begun = True
                told.append(subject.look())
                told.append(subject.position())
            except (Restart, OrderChanged, former_replay.OrderChanged):
                told.append("anew")
                begun = False
            except (OSError, JournalError) as error:
                told.append(type(error).__name__)
                begun = False
            told.append(recorded(desk.journal))
    finally:
        desk.let_go()
        script.let_go()
    return told


def ends(told: list[Any]) -> list[Any]:
    """Of each list of records how far it leads, step by step; deaths noted together have no order among themselves."""
    return [led(entry) if entry and isinstance(entry[0], Record) else entry for entry in told]


def led(records: list[Record]) -> list[Any]:
    found, reached = list[Any](), dict[str, int]()
    for record, _ in joined((record, 0) for record in records):
        if isinstance(record, Death):
            if not found or not isinstance(found[-1], set):
                found.append(set())
            found[-1].add(record)
        elif record.end > reached.get(record.segment, 0):
            reached[record.segment] = record.end
            if found and isinstance(found[-1], tuple) and found[-1][0] == record.segment:
                found.pop()
            found.append((record.segment, record.end))
    return found


PAIRS: Final = {
    "walking": (Walking(lambda j: Sequence(j, patience_s=60)), Walking(lambda j: Follower(j, patience_s=60))),
    "walking without patience": (
        Walking(lambda j: Sequence(j, patience_s=0)), Walking(lambda j: Follower(j, patience_s=0))
    ),
    "folding": (Folding(former_replay.Replay), Folding(Replay)),
    "folding without the turn": (Folding(former_replay.Replay, records=False), Folding(Replay, records=False)),
}  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS)
def test_what_comes_next_is_what_came_next_before(tmp_path: Path, pair: str) -> None:
    before, now = PAIRS[pair]
    moved = 0
    for number in range(JOURNALS):
        one = ends(play(tmp_path / f"{number}-before", f"{pair}, {number}", before))
        other = ends(play(tmp_path / f"{number}-now", f"{pair}, {number}", now))
        if one != other:
            # The former two did not agree when a writer counts as new, if there are only damaged events of it.
            assert [apart(entry) for entry in one] == [apart(entry) for entry in other], number
            moved += 1
    assert moved < JOURNALS / 25


def apart(entry: Any) -> Any:
    """How far records lead, without where between them deaths are noted."""
    if not entry or not isinstance(entry[0], (tuple, set)):
        return type(entry)
    reached = dict(item for item in entry if isinstance(item, tuple))
    return reached, sorted(death.writer for item in entry if isinstance(item, set) for death in item)
