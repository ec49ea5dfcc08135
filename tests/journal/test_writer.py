"""The writer: numbers, times, segments, and what it does when writing goes wrong."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ml_dash.core.events import LOG, LOST, POINT
from ml_dash.disk.lock import Liveness, probe
from ml_dash.errors import InvalidValue, StorageError
from ml_dash.journal import segment_file
from ml_dash.journal import writer as writing
from ml_dash.journal.reader import Frame, Gap, scan
from ml_dash.journal.segment import BLOBS, JOURNAL, SEGMENTS, create_journal, list_segments
from ml_dash.journal.writer import Tally, Writer, WriterGone, open_writer


class Unattended:
    """Stands where the syncer is: these tests sync and recover by hand."""

    def wake(self) -> None:
        """Nobody is there."""


class WriterFolder:
    """A journal and the writers opened on it."""

    def __init__(self, home: Path) -> None:
        self.identity = create_journal(home, "project", "name", sync=False)
        self.journal = home / JOURNAL
        self.writers: list[Writer] = []

    def writer(self, durability: str = "interval", *, strict: bool = False, floor_ns: int = 0) -> Writer:
        opened = open_writer(
            self.journal, self.identity, Unattended(), durability=durability, strict=strict, floor_ns=floor_ns
        )
        self.writers.append(opened)
        return opened

    def frames(self) -> list[Frame]:
        return [item for _, path in list_segments(self.journal) for item in scan(path) if isinstance(item, Frame)]

    def bodies(self) -> list[Any]:
        return [frame.body for frame in self.frames()]

    def segment_count(self) -> int:
        return len(list_segments(self.journal))


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[WriterFolder]:
    desk = WriterFolder(tmp_path / "project" / "name")
    yield desk
    for writer in desk.writers:
        writer.abandon()


def failing(error: int, times: int = 1) -> Any:
    """A system call that fails so often, and succeeds from then on."""
    left = [times]

    def call(real: Any, *arguments: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise OSError(error, os.strerror(error))
        return real(*arguments)

    return call


def test_events_are_on_disk_when_append_returns(desk: WriterFolder) -> None:
    writer = desk.writer()
    assert [writer.append(LOG, ["info", str(n), None]) for n in range(3)] == [0, 1, 2]
    assert [(frame.seq, frame.kind, frame.body) for frame in desk.frames()] == [
        (n, LOG, ["info", str(n), None]) for n in range(3)
    ]


def test_a_tally_gives_ordinals_of_points_not_numbers_of_events(desk: WriterFolder) -> None:
    writer, tally = desk.writer(), Tally()
    assert writer.append(POINT, ["loss", {"value": 1}], tally) == 0
    assert writer.append(POINT, ["loss", {"value": 1}], tally, 10) == 1
    assert writer.append(POINT, ["loss", {"value": 1}], tally) == 11


def test_times_never_decrease_and_start_above_what_is_there(
    desk: WriterFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = desk.writer(floor_ns=5_000_000_000_000_000_000)
    clock = iter([7_000_000_000_000_000_000, 6_000_000_000_000_000_000, 8_000_000_000_000_000_000])
    monkeypatch.setattr(writing, "time_ns", lambda: next(clock))
    for _ in range(3):
        writer.append(LOG, ["info", "", None])
    assert writer.created_ns > 5_000_000_000_000_000_000
    assert [frame.time_ns // 10**18 for frame in desk.frames()] == [7, 7, 8]


def test_a_full_segment_is_followed_by_another_with_the_next_number(
    desk: WriterFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "ROLL_BYTES", 400)
    writer = desk.writer()
    for number in range(50):
        writer.append(LOG, ["info", str(number), None])
    assert desk.segment_count() > 3
    assert [frame.seq for frame in desk.frames()] == list(range(50))
    assert writer.sync()
    assert writer.durable_counts()["synced"] == 50


def test_a_body_over_one_mebibyte_is_a_blob_that_the_frame_names(desk: WriterFolder) -> None:
    writer = desk.writer()
    writer.append(LOG, ["info", "x" * 3_000_000, None])
    writer.append(LOG, ["info", "next", None])
    assert [frame.seq for frame in desk.frames()] == [0, 1]
    (blob,) = (desk.journal / BLOBS).iterdir()
    assert blob.stat().st_size > 3_000_000
    assert blob.name.endswith(f"-{writer.id}-0")


@pytest.mark.parametrize("body", [2**64, "\ud800", -(2**63) - 1, [object()]])
def test_what_cannot_be_encoded_is_refused_and_leaves_no_number(desk: WriterFolder, body: Any) -> None:
    writer = desk.writer()
    with pytest.raises(InvalidValue):
        writer.append(LOG, body)
    assert writer.append(LOG, ["info", "good", None]) == 0


def test_the_lock_is_held_while_the_writer_lives_and_gone_after_a_clean_close(desk: WriterFolder) -> None:
    writer = desk.writer()
    (lock,) = (desk.journal / SEGMENTS).glob("*.lock")
    assert probe(lock) is Liveness.ALIVE
    writer.close({"status": "completed"})
    assert not lock.exists()
    assert probe(lock) is Liveness.GONE
    with pytest.raises(WriterGone):
        writer.append(LOG, ["info", "late", None])


def test_a_short_write_is_finished_before_anything_else_is_written(
    desk: WriterFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = desk.writer()
    monkeypatch.setattr(writing, "os_write", lambda fd, frame: os.write(fd, frame[:10]))
    assert writer.append(LOG, ["info", "first", None]) == 0
    monkeypatch.setattr(writing, "os_write", os.write)
    assert writer.append(LOG, ["info", "second", None]) == 1
    assert desk.bodies() == [["info", "first", None], ["info", "second", None]]
    assert desk.segment_count() == 1


def test_a_partial_frame_that_cannot_be_finished_ends_its_segment(
    desk: WriterFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = desk.writer()
    writer.append(LOG, ["info", "before", None])
    full = failing(errno.ENOSPC, 1000)
    monkeypatch.setattr(writing, "os_write", lambda fd, frame: os.write(fd, frame[:10]))
    monkeypatch.setattr(segment_file.os, "write", lambda fd, data: full(os.pwrite, fd, data))
    for number in range(3):
        assert writer.append(LOG, ["info", str(number), None]) == 1 + number
    assert writer.degraded is not None
    assert desk.bodies() == [["info", "before", None]]
    assert writer.durable_counts() == {"accepted": 4, "written": 1, "synced": 0, "lost": 0}
    monkeypatch.undo()
    assert writer.recover()
    assert writer.degraded is None
    assert [(frame.seq, frame.body[1]) for frame in desk.frames()] == [(0, "before"), (1, "0"), (2, "1"), (3, "2")]
    assert desk.segment_count() == 2


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG, errno.ESTALE])
def test_training_goes_on_when_the_disk_refuses_and_nothing_is_lost(
    desk: WriterFolder, monkeypatch: pytest.MonkeyPatch, error: int, caplog: pytest.LogCaptureFixture
) -> None:
    writer = desk.writer()
    refuse = failing(error, 10_000)
    monkeypatch.setattr(writing, "os_write", lambda *a: refuse(os.write, *a))
    monkeypatch.setattr(segment_file.os, "write", lambda *a: refuse(os.pwrite, *a))
    for number in range(100):
        writer.append(LOG, ["info", str(number), None])
    assert len([r for r in caplog.records if "cannot write" in r.getMessage()]) == 1
    monkeypatch.undo()
    writer.recover()
    assert [frame.body[1] for frame in desk.frames()] == [str(number) for number in range(100)]


def test_what_memory_cannot_hold_is_counted_told_in_the_journal_and_raised_at_close(
    desk: WriterFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ml_dash.journal.backlog.LIMIT_BYTES", 1000)
    writer = desk.writer()
    refuse = failing(errno.ENOSPC, 10_000)
    monkeypatch.setattr(writing, "os_write", lambda *a: refuse(os.write, *a))
    monkeypatch.setattr(segment_file.os, "write", lambda *a: refuse(os.pwrite, *a))
    results = [writer.append(LOG, ["info", "x" * 100, None]) for _ in range(50)]
    lost = results.count(None)
    assert lost > 30
    assert writer.durable_counts()["lost"] == lost
    monkeypatch.undo()
    assert writer.recover()
    (told,) = [frame.body for frame in desk.frames() if frame.kind == LOST]
    assert told["count"] == lost
    assert told["to"] - told["from"] + 1 == lost
    with pytest.raises(StorageError, match=f"{lost} events of project/name were lost"):
        writer.close({"status": "completed"})


@pytest.mark.parametrize("recorded", [True, False])
def test_what_close_says_of_lost_events_names_no_folder_that_is_not_there(
    desk: WriterFolder, monkeypatch: pytest.MonkeyPatch, recorded: bool
) -> None:
    if not recorded:
        shutil.rmtree(desk.journal.parent)
        desk.journal.parent.write_text("in the way")
    writer = desk.writer()
    writer.append(LOG, ["info", "one", None])
    if recorded:
        shutil.rmtree(desk.journal.parent)
        desk.journal.parent.write_text("in the way")
        monkeypatch.setattr(writing, "os_write", lambda *a: failing(errno.EIO)(os.pwrite, *a))
        writer.append(LOG, ["info", "two", None])
    with pytest.raises(StorageError, match="events of project/name were lost") as raised:
        writer.close({"status": "completed"})
    assert str(desk.journal) not in str(raised.value)
    assert "no others are on disk" in str(raised.value)


def test_strict_raises_at_the_call_and_goes_on_with_a_new_number(
    desk: WriterFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = desk.writer(strict=True)
    refuse = failing(errno.ENOSPC, 10_000)
    monkeypatch.setattr(writing, "os_write", lambda *a: refuse(os.write, *a))
    monkeypatch.setattr(segment_file.os, "write", lambda *a: refuse(os.pwrite, *a))
    with pytest.raises(StorageError, match="No space left on device"):
        writer.append(LOG, ["info", "refused", None])
    monkeypatch.undo()
    writer.append(LOG, ["info", "kept", None])
    assert ["info", "kept", None] in desk.bodies()
    assert ["info", "refused", None] not in desk.bodies()
    numbers = [frame.seq for frame in desk.frames()]
    assert len(numbers) == len(set(numbers))


@pytest.mark.parametrize("append", ["append", "append_apart"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_strict_refuses_once_what_was_cut_short_and_could_not_be_finished(
    desk: WriterFolder, monkeypatch: pytest.MonkeyPatch, append: str, error: int
) -> None:
    writer = desk.writer(strict=True)
    writer.append(LOG, ["info", "before", None])
    full, write = failing(error, 1000), os.write
    monkeypatch.setattr(writing, "os_write", lambda fd, frame: write(fd, frame[:10]))
    monkeypatch.setattr(segment_file.os, "write", lambda *a: full(os.pwrite, *a))
    with pytest.raises(StorageError, match="could not write an event"):
        getattr(writer, append)(LOG, ["info", "refused", None])
    assert writer.seq == 2
    assert writer.durable_counts() == {"accepted": 1, "written": 1, "synced": 0, "lost": 0}
    monkeypatch.undo()
    writer.append(LOG, ["info", "after", None])
    kept = [(frame.seq, frame.body) for frame in desk.frames() if frame.kind == LOG]
    assert [body[1] for _, body in kept] == ["before", "after"]
    assert writer.recover()
    (told,) = [frame.body for frame in desk.frames() if frame.kind == LOST]
    assert (told["count"], told["from"], told["to"]) == (1, 1, 1)


def test_after_a_failed_sync_everything_since_the_last_good_one_is_written_again_under_its_numbers(
    desk: WriterFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = desk.writer()
    writer.append(LOG, ["info", "safe", None])
    assert writer.sync()
    for number in range(3):
        writer.append(LOG, ["info", str(number), None])
    once = failing(errno.EIO)
    real = writing.data_sync
    monkeypatch.setattr(writing, "data_sync", lambda fd: once(real, fd))
    assert not writer.sync()
    assert writer.durable_counts()["synced"] == 1
    newest = list_segments(desk.journal)[-1][1]
    again = [(frame.seq, frame.body[1]) for frame in scan(newest) if isinstance(frame, Frame)]
    assert again == [(1, "0"), (2, "1"), (3, "2")]
    assert writer.sync()
    assert writer.durable_counts()["synced"] == 4


def test_an_interrupt_between_write_and_count_never_uses_a_number_twice(
    desk: WriterFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = desk.writer()

    def interrupted(fd: int, frame: bytes) -> int:
        os.write(fd, frame)
        raise KeyboardInterrupt

    monkeypatch.setattr(writing, "os_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        writer.append(LOG, ["info", "interrupted", None])
    monkeypatch.undo()
    writer.append(LOG, ["info", "after", None])
    assert [(frame.seq, frame.body[1]) for frame in desk.frames()] == [(0, "interrupted"), (1, "after")]


def test_an_interrupt_before_the_write_leaves_no_gap(desk: WriterFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = desk.writer()

    def interrupted(fd: int, frame: bytes) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(writing, "os_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        writer.append(LOG, ["info", "interrupted", None])
    monkeypatch.undo()
    assert writer.append(LOG, ["info", "after", None]) == 0
    assert desk.segment_count() == 1


def test_other_threads_go_on_while_one_hangs_in_the_kernel_and_nothing_is_lost(
    desk: WriterFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "PATIENCE_S", 0.05)
    writer = desk.writer()
    inside, answers = threading.Event(), threading.Event()

    def hanging(fd: int, frame: bytes) -> int:
        inside.set()
        assert answers.wait(30)
        return os.write(fd, frame)

    monkeypatch.setattr(writing, "os_write", hanging)
    stuck = threading.Thread(target=writer.append, args=(LOG, ["info", "stuck", None]))
    stuck.start()
    assert inside.wait(30)
    for number in range(100):
        assert writer.append(LOG, ["info", str(number), None]) is None
    assert writer.durable_counts()["accepted"] == 100
    monkeypatch.setattr(writing, "os_write", os.write)
    answers.set()
    stuck.join(30)
    writer.append(LOG, ["info", "last", None])
    assert [frame.body[1] for frame in desk.frames()] == ["stuck", *map(str, range(100)), "last"]
    assert [frame.seq for frame in desk.frames()] == list(range(102))


def test_a_lock_that_an_interrupt_left_taken_does_not_stop_recording(
    desk: WriterFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "PATIENCE_S", 0.02)
    writer = desk.writer()
    assert writer._acquire(False)
    assert writer.append(LOG, ["info", "on", None]) == 0
    assert desk.bodies() == [["info", "on", None]]


def test_a_removed_folder_is_made_again_and_what_was_not_synced_is_written_there(desk: WriterFolder) -> None:
    writer = desk.writer()
    writer.append(LOG, ["info", "kept in memory", None])
    shutil.rmtree(desk.journal.parent)
    assert not writer.sync()
    writer.append(LOG, ["info", "after", None])
    assert [frame.body[1] for frame in desk.frames()] == ["kept in memory", "after"]
    (lock,) = (desk.journal / SEGMENTS).glob("*.lock")
    assert probe(lock) is Liveness.ALIVE


def test_a_renamed_folder_is_followed(desk: WriterFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "ROLL_BYTES", 300)
    writer = desk.writer()
    writer.append(LOG, ["info", "0", None])
    moved = desk.journal.parent.with_name("moved")
    desk.journal.parent.rename(moved)
    for number in range(1, 20):
        writer.append(LOG, ["info", str(number), None])
    assert writer.degraded is None
    desk.journal = moved / JOURNAL
    assert [frame.body[1] for frame in desk.frames()] == [str(number) for number in range(20)]


def test_no_symlink_leads_a_writer_out_of_its_folder(desk: WriterFolder, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / SEGMENTS).mkdir(parents=True)
    writer = desk.writer()
    shutil.rmtree(desk.journal)
    desk.journal.symlink_to(elsewhere)
    writer.sync()
    writer.append(LOG, ["info", "x", None])
    writer.recover()
    assert list((elsewhere / SEGMENTS).iterdir()) == []
    assert writer.degraded is not None


@pytest.mark.parametrize("durability", ["interval", "always", "os"])
def test_each_level_says_what_it_has_reached(desk: WriterFolder, durability: str) -> None:
    writer = desk.writer(durability)
    writer.append(LOG, ["info", "x", None])
    expected = {"interval": 0, "always": 1, "os": 0}[durability]
    assert writer.durable_counts() == {"accepted": 1, "written": 1, "synced": expected, "lost": 0}


# -- what an interrupt or a hanging disk must not do ------------------------------------------------------------------


def _interrupt_write(monkeypatch: pytest.MonkeyPatch, nth: int, share: float) -> None:
    """The n-th write outside of `append` gets so far, and a KeyboardInterrupt comes."""
    real, left = os.write, [nth]

    def interrupted(fd: int, data: Any) -> int:
        left[0] -= 1
        if left[0]:
            return real(fd, data)
        monkeypatch.undo()
        real(fd, data[: int(len(data) * share)])
        raise KeyboardInterrupt

    monkeypatch.setattr(segment_file.os, "write", interrupted)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("nth", [1, 2, 4], ids=["header", "first event", "third event"])
def test_an_interrupt_while_waiting_events_are_written_loses_and_doubles_nothing(
    desk: WriterFolder, monkeypatch: pytest.MonkeyPatch, nth: int, share: float
) -> None:
    writer = desk.writer()
    refuse = failing(errno.ENOSPC, 1000)
    monkeypatch.setattr(writing, "os_write", lambda *a: refuse(os.write, *a))
    monkeypatch.setattr(segment_file.os, "write", lambda *a: refuse(os.pwrite, *a))
    for number in range(5):
        writer.append(LOG, ["info", str(number), None])
    monkeypatch.undo()
    _interrupt_write(monkeypatch, nth, share)
    with pytest.raises(KeyboardInterrupt):
        writer.recover()
    writer.recover()
    writer.append(LOG, ["info", "after", None])
    known = {frame.seq: frame.body[1] for frame in desk.frames()}
    assert known == {0: "0", 1: "1", 2: "2", 3: "3", 4: "4", 5: "after"}
    # Twice on disk is allowed, with equal content: readers know an event by its number.
    assert all(frame.body[1] == known[frame.seq] for frame in desk.frames())
    items = [item for _, path in list_segments(desk.journal) for item in scan(path)]
    assert not [item for item in items if isinstance(item, Gap)]


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_an_interrupt_while_a_loss_is_reported_leaves_its_number_to_no_other_event(
    desk: WriterFolder, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    writer = desk.writer()
    writer.append(LOG, ["info", "before", None])
    writer.count_lost()
    _interrupt_write(monkeypatch, 1, share)
    with pytest.raises(KeyboardInterrupt):
        writer.recover()
    writer.append(LOG, ["info", "after", None])
    by_number: dict[int, set[int]] = {}
    for frame in desk.frames():
        by_number.setdefault(frame.seq, set()).add(frame.kind)
    assert all(len(kinds) == 1 for kinds in by_number.values()), by_number


def test_a_body_that_cannot_be_encoded_is_refused_also_while_a_thread_hangs(
    desk: WriterFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "PATIENCE_S", 0.02)
    writer = desk.writer()
    assert writer._acquire(False)
    writer._inside = True
    with pytest.raises(InvalidValue, match="cannot record"):
        writer.append(LOG, ["info", 2**64, None])
    writer._inside = False
    writer._release()
    assert writer.append(LOG, ["info", "good", None]) == 0


def test_memory_is_bounded_while_a_sync_hangs_and_all_is_synced_afterwards(
    desk: WriterFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 64 << 10
    monkeypatch.setattr(writing, "ROLL_BYTES", 16 << 10)
    monkeypatch.setattr(writing, "SYNC_BYTES", 4 << 10)
    monkeypatch.setattr(writing, "UNSYNCED_BYTES", limit)
    writer = desk.writer()
    hangs, answers, synced = threading.Event(), threading.Event(), []
    real = writing.data_sync

    def hanging(fd: int) -> None:
        hangs.set()
        assert answers.wait(30)
        real(fd)
        synced.append(os.fstat(fd).st_ino)

    monkeypatch.setattr(writing, "data_sync", hanging)
    writer.append(LOG, ["info", "first", None])
    syncing = threading.Thread(target=writer.sync)
    syncing.start()
    assert hangs.wait(30)
    for number in range(400):
        writer.append(LOG, ["info", f"{number}" + "x" * 1000, None])
        assert writer._file.unsynced_bytes() <= limit + (16 << 10)
    answers.set()
    syncing.join(30)
    assert writer.sync()
    assert set(synced) == {path.stat().st_ino for _, path in list_segments(desk.journal)}
    assert writer.durable_counts() == {"accepted": 401, "written": 401, "synced": 401, "lost": 0}
