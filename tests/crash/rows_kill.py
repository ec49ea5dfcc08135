"""Rows W1, W2, W3, W30: SIGKILL at random times, at each named step, inside large writes, between blob and event."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Final

from tests.faults.harness import Row, Trial

from . import oracle_reader as disk
from .oracle import check_blobs, ear
from .recovery import kill_after, recovered
from .setups import zygote
from .victims import journal_of

# Reached by a writer that adds files, syncs and closes.
WRITER_POINTS: Final = (
    "segment-create",
    "header-written",
    "frame-write-before",
    "frame-write-after",
    "roll",
    "sync-before",
    "sync-after",
    "blob-temp",
    "blob-synced",
    "blob-renamed",
    "blob-event",
)
PROJECTOR_POINTS: Final = (
    "order-append",
    "project-lines",
    "project-replace",
    "checkpoint-before",
    "checkpoint-after",
)
_ROLL_BYTES: Final = {"ROLL_BYTES": 40_000}
_RUNS_OF_ONE: Final = 3


def killed_at_random(trial: Trial) -> None:
    """W1. A few runs of one experiment, each killed; the last look must find everything all of them acknowledged."""
    ledgers = []
    runs = trial.rng.randrange(1, _RUNS_OF_ONE + 1)
    for run in range(runs):
        with ear() as listener:
            rolls = _ROLL_BYTES if trial.rng.random() < 0.2 else {}
            victim = trial.shared.start(
                "victims:mixed",
                trial.folder,
                pipe=listener.write,
                seed=f"{trial.rng.random()}",
                worker=run,
                files=trial.rng.random() < 0.4,
                durability=trial.rng.choice(("interval", "interval", "os", "always")),
                impatient=rolls | {"SYNC_AFTER_S": trial.rng.choice((0.8, 0.01))},
            )
            if trial.rng.random() < 0.7:
                listener.started()
                listener.wait_for("open")
            kill_after(trial, listener, victim, trial.rng.uniform(0, 0.05))
            ledgers.append(listener.ledger)
    trial.counts["acknowledged"] += sum(len(ledger.acked) for ledger in ledgers)
    trial.counts["kills"] += runs
    journal = recovered(trial, *ledgers, reads=trial.index % 16 == 0, rebuild=trial.index % 16 == 1)
    trial.counts["torn tails"] += sum(segment.tail is not None for segment in journal.segments)
    if journal.damaged_bytes:
        trial.fail(f"{journal.damaged_bytes} damaged bytes in the middle of segments after a mere SIGKILL")


def killed_at_a_step(trial: Trial) -> None:
    """W2. Killed at the n-th passing of a fail point; the next run goes on."""
    points = WRITER_POINTS + PROJECTOR_POINTS
    point = points[trial.index % len(points)]
    once = point in ("segment-create", "header-written")
    nth = 1 if once and trial.rng.random() < 0.5 else trial.rng.randrange(1, 4 if once else 12)
    ledgers = []
    for run, fail in enumerate((f"{point}:{nth}:kill", "")):
        with ear() as listener:
            victim = trial.shared.start(
                "victims:mixed",
                trial.folder,
                pipe=listener.write,
                seed=f"{trial.rng.random()}",
                worker=run,
                count=200 if fail else 20,
                durability="always" if point.startswith("sync") else "interval",
                impatient={"ROLL_BYTES": 10_000, "SYNC_AFTER_S": 0.005},
                env={"ML_DASH_FAIL": fail} if fail else {},
            )
            kill_after(trial, listener, victim, 30.0)
            ledgers.append(listener.ledger)
            if fail:
                hit = "closed" not in listener.ledger.values
                trial.counts[f"hit {point}" if hit else f"missed {point}"] += 1
    before = len(ledgers[0].acked)
    trial.counts["acknowledged"] += before + len(ledgers[1].acked)
    recovered(trial, *ledgers, reads=trial.index % 4 == 0, rebuild=trial.index % 4 == 1)


def killed_in_a_large_write(trial: Trial) -> None:
    """W3. Bodies and files of 10 to 64 MiB; killed while one is being written."""
    with ear() as listener:
        size = trial.rng.randrange(10, 65) << 20
        victim = trial.shared.start(
            "victims_special:large",
            trial.folder,
            pipe=listener.write,
            seed=f"{trial.rng.random()}",
            size=size,
            kind=trial.rng.choice(("message", "parameter", "file")),
        )
        listener.started()
        listener.wait_for("go")
        if trial.rng.random() < 0.9:
            _wait_for_temporary(journal_of(trial.folder) / "blobs", trial.rng.randrange(size))
        kill_after(trial, listener, victim, trial.rng.choice((0.0, trial.rng.uniform(0, 0.1))))
        path = journal_of(trial.folder)
        torn = [blob for blob in (path / "blobs").iterdir() if blob.suffix == ".tmp" and 0 < blob.stat().st_size < size]
        journal = disk.read_journal(path)
        torn_tails = sum(segment.tail is not None for segment in journal.segments)
        trial.counts["torn"] += bool(torn or torn_tails)
        trial.counts["acknowledged"] += len(listener.ledger.acked)
        recovered(trial, listener.ledger)


def _wait_for_temporary(blobs: Path, size: int) -> None:
    """Until the large write has come that far, or is through."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = [path for path in blobs.iterdir() if path.suffix == ".tmp"]
        with contextlib.suppress(FileNotFoundError):
            if any(path.stat().st_size > size for path in found):
                return
        if not found and any(blobs.iterdir()):
            return
    raise TimeoutError("no large write within 30 s")


def killed_between_blob_and_event(trial: Trial) -> None:
    """W30. An event of a file is never without its whole content; content without an event does no harm."""
    point = ("blob-temp", "blob-synced", "blob-renamed", "blob-event", "frame-write-before")[trial.index % 5]
    with ear() as listener:
        victim = trial.shared.start(
            "victims_special:files",
            trial.folder,
            pipe=listener.write,
            seed=f"{trial.rng.random()}",
            count=12,
            env={"ML_DASH_FAIL": f"{point}:{trial.rng.randrange(1, 10)}:kill"},
        )
        kill_after(trial, listener, victim, 30.0)
        path = journal_of(trial.folder)
        journal = disk.read_journal(path)
        named = {(writer, seq) for writer, seq, kind, _, _ in journal.in_order() if kind == disk.FILE}
        trial.counts["orphan blobs"] += len(set(disk.blobs(path)) - named)
        trial.counts["torn copies"] += sum(1 for _ in (path / "blobs").glob(".*.tmp"))
        trial.fail(*check_blobs(journal))
        recovered(trial, listener.ledger)
    _verify_is_content(trial, path)


def _verify_is_content(trial: Trial, journal: Path) -> None:
    from ml_dash.reading.located import at
    from ml_dash.reading.verify import verify

    found = at(journal)
    assert found is not None
    report = verify(found)
    if report.damaged:
        trial.fail(f"verify finds damage after a mere SIGKILL: {json.dumps([str(f) for f in report.findings])[:500]}")


ROWS = (
    Row("W1", "SIGKILL at a random time (two kills a trial)", 5_000, 90, killed_at_random, zygote),
    Row("W2", "SIGKILL at each named step", 16 * 200, 64, killed_at_a_step, zygote),
    Row("W3", "SIGKILL inside a write of 10 to 64 MiB", 1_000, 12, killed_in_a_large_write, zygote),
    Row("W30", "SIGKILL between blob and event", 1_000, 30, killed_between_blob_and_event, zygote),
)
