"""One rule for what comes next in a journal: the same for who folds, who sends on, and who may not write."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from ml_dash.core import events as ev
from ml_dash.core.rewinds import Past
from ml_dash.core.state import Edits
from ml_dash.disk.lock import Turn
from ml_dash.journal.follow import Follower
from ml_dash.journal.merge import joined
from ml_dash.journal.order import Death, MergeRecord, Record
from ml_dash.journal.segment import ORDER, SEGMENTS, list_segments
from ml_dash.projection.checkpoint import Checkpoint
from ml_dash.projection.replay import Replay
from tests.journals import JournalFixture, WriterFixture, flip, recorded

JOURNALS: Final = 60


class Nowhere:
    """A sink that drops what it gets."""

    def apply(self, edits: Edits) -> None:
        edits.clear()

    def history(self, name: str, start: int, end: int) -> Iterator[Past]:
        return iter(())


# -- random journals --------------------------------------------------------------------------------------------------


class Script:
    """Things that happen to a journal, drawn from a seed: the same ones to each desk that it is played on."""

    def __init__(self, seed: str, desk: JournalFixture, *, spoils_order: bool = True) -> None:
        self.rng = random.Random(seed)
        self.desk = desk
        self.elsewhere: JournalFixture | None = None
        # Bytes of a segment that somebody may have read: nothing happens to these.
        self._read: dict[Path, int] = {}
        self._disk = [self._flip, self._chop, self._remove, self._bring]
        if spoils_order:
            self._disk.append(self._spoil_order)

    def happen(self) -> None:
        """Some of what writers do, and at times some of what disks do to it."""
        self._read = {path: path.stat().st_size for _, path in list_segments(self.desk.journal)}
        for _ in range(self.rng.randrange(1, 6)):
            self._write()
        if self.rng.random() < 0.4:
            self.rng.choice(self._disk)()

    def let_go(self) -> None:
        if self.elsewhere is not None:
            self.elsewhere.let_go()

    def _write(self) -> None:
        living = [pen for pen in self.desk.pens if pen._lock >= 0 and pen.segment.exists()]
        what = self.rng.randrange(12)
        if not living or (what == 0 and len(self.desk.pens) < 6):
            self.desk.pen(opens=self.rng.random() < 0.8)
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
            pen.large(ev.LOG, ["info", "x" * 100, None])
        else:
            pen.log("x" * self.rng.randrange(300))

    def _any(self) -> tuple[Path, int, int] | None:
        """A segment, and which bytes of it are new."""
        found = [(path, self._read.get(path, 0), path.stat().st_size) for _, path in list_segments(self.desk.journal)]
        new = [item for item in found if item[1] < item[2]]
        return self.rng.choice(new) if new else None

    def _flip(self) -> None:
        if (found := self._any()) is not None:
            path, start, end = found
            flip(path, self.rng.randrange(start, end), self.rng.randrange(8))

    def _chop(self) -> None:
        if (found := self._any()) is not None:
            path, start, end = found
            os.truncate(path, max(start, end - self.rng.randrange(1, 60)))

    def _remove(self) -> None:
        if (found := self._any()) is not None and found[1] == 0:
            found[0].unlink()

    def _spoil_order(self) -> None:
        path, what, where = self.desk.journal / ORDER, self.rng.randrange(5), self.rng.random()
        if not path.exists() or not path.stat().st_size or not list_segments(self.desk.journal):
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
            self.elsewhere = JournalFixture(self.desk.store / "elsewhere")
            pen = WriterFixture(self.elsewhere, 99)
            self.elsewhere.pens.append(pen)
            pen.open()
        [pen] = self.elsewhere.pens
        pen.log("elsewhere")
        if self.rng.random() < 0.3:
            pen.roll()
        for path in pen.segments if self.rng.random() < 0.9 else pen.segments[-1:]:
            (self.desk.journal / SEGMENTS / path.name).write_bytes(path.read_bytes())


# -- who reads it ------------------------------------------------------------------------------------------------------


def walked(journal: Path) -> list[Record]:
    """What an uploader is told that begins now."""
    return list(Follower(journal, patience_s=0).follow())


def folded(journal: Path, *, record: bool) -> Replay:
    """What a projector knows that begins now."""
    replay = Replay(journal, Checkpoint())
    replay.catch_up(Nowhere(), record=record)
    return replay


def led(records: list[Record]) -> list[Any]:
    """How far records lead, step by step; deaths that were noted together have no order among themselves."""
    found, reached = list[Any](), dict[str, int]()
    for record in records:
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


def scripts(folder: Path, seed: str, **more: Any) -> Iterator[tuple[Script, random.Random]]:
    """Random journals, and what decides about how they are looked at."""
    for number in range(JOURNALS):
        desk = JournalFixture(folder / f"{number}")
        script = Script(f"{seed}-{number}", desk, **more)
        try:
            yield script, random.Random(f"{seed}-{number} looks")
        finally:
            desk.let_go()
            script.let_go()


def test_whoever_comes_second_has_nothing_to_name(tmp_path: Path, seed: str) -> None:
    """What the one has named is all that is new for the other."""
    for script, rng in scripts(tmp_path, seed):
        for _ in range(4):
            script.happen()
            journal = script.desk.journal
            if rng.random() < 0.5:
                named = led(walked(journal))
                assert led(recorded(journal)) == named
                folded(journal, record=True)
            else:
                folded(journal, record=True)
                named = led(recorded(journal))
                walked(journal)
            assert led(recorded(journal)) == named


def test_folding_names_the_order_that_walking_names(tmp_path: Path, seed: str) -> None:
    """The same journal twice: one is followed by those who send on, the other by those who fold."""
    for walking, folding in zip(scripts(tmp_path / "w", seed), scripts(tmp_path / "f", seed), strict=True):
        for _ in range(4):
            walking[0].happen()
            walked(walking[0].desk.journal)
            folding[0].happen()
            folded(folding[0].desk.journal, record=True)
            assert led(recorded(walking[0].desk.journal)) == led(recorded(folding[0].desk.journal))


def test_who_may_not_write_assumes_what_would_be_written(
    tmp_path: Path, seed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Turn, wait_s: float = 0.0) -> bool:
        raise PermissionError(13, "not yours")

    for script, rng in scripts(tmp_path, seed):
        for _ in range(4):
            script.happen()
            journal = script.desk.journal
            if rng.random() < 0.5:
                assumed = folded(journal, record=False)
                written = folded(journal, record=True)
                assert assumed.state == written.state
                assert assumed.at.covered == written.at.covered
                assert assumed.assumed or led(recorded(journal)) == led(walked(journal))
            else:
                with monkeypatch.context() as patch:
                    patch.setattr(Turn, "take", refuse)
                    told = walked(journal)
                assert led(walked(journal)) == led(told)


def test_what_is_taken_piece_by_piece_is_what_is_recorded(tmp_path: Path, seed: str) -> None:
    for script, rng in scripts(tmp_path, seed, spoils_order=False):
        journal = script.desk.journal
        script.happen()
        follower, replay = Follower(journal, patience_s=0), Replay(journal, Checkpoint())
        told: list[Record] = []
        for _ in range(6):
            told += follower.follow()
            assert led(told) == led(recorded(journal))
            if rng.random() < 0.5:
                replay.catch_up(Nowhere(), record=True)
                anew = folded(journal, record=True)
                assert (replay.state, replay.at.covered) == (anew.state, anew.at.covered)
            told += follower.follow()
            script.happen()


def test_stretches_that_go_on_are_joined_with_the_offset_behind_the_last() -> None:
    records: list[tuple[Record, int]] = [
        (MergeRecord("a", 0, 5), 1), (MergeRecord("a", 5, 9), 2), (MergeRecord("b", 9, 12), 3),
        (MergeRecord("b", 13, 14), 4),
        (Death("w"), 5), (Death("w"), 6), (MergeRecord("b", 14, 14 + (8 << 20)), 7),
        (MergeRecord("b", 14 + (8 << 20), 1 << 24), 8),
    ]  # fmt: skip
    assert list(joined(records)) == [(MergeRecord("a", 0, 9), 2), *records[2:]]
    assert list(joined([])) == []
