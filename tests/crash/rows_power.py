"""Rows W4 and W13: power cuts at every operation, and syncs that fail once and then lie."""

from __future__ import annotations

import contextlib
import errno
import itertools
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.faults import shim
from tests.faults.harness import Row, Trial
from tests.faults.shim import Operation
from tests.faults.zygote import Zygote

from . import oracle_reader as disk
from .compare import changed_segments, check_folder, segment_hashes, tree, tree_difference
from .oracle import Ledger, check_blobs, digest, ear, gaps, judge
from .powercut import DAMAGES, PREFIX_KEPT, Disk
from .recovery import ended, recovered
from .setups import shimmed
from .victims import NAME, PROJECT, journal_of, located

_STATES_OF_ONE: Final = 40


@dataclass
class Recording:
    """One run under the record: its operations, and what it issued."""

    operations: list[Operation]
    ledger: Ledger
    root: Path
    store_existed: bool
    # For each operation: how many calls had returned, and how many events were said to be synced.
    safe: list[int] = field(default_factory=list)


_recordings: dict[int, Recording] = {}


def _record(trial: Trial, zygote: Zygote) -> Recording:
    """The recording of this trial's group: one run serves many states."""
    group = trial.index // _STATES_OF_ONE
    known = _recordings.get(group)
    if known is None:
        _recordings.clear()
        folder = trial.folder
        root = folder / "root"
        # In half of the runs the store was there before, and safe.
        (root / "store").mkdir(parents=True) if trial.rng.random() < 0.5 else root.mkdir()
        existed = (root / "store").exists()
        with ear() as listener:
            victim = zygote.start(
                "victims_special:recorded",
                root,
                pipe=listener.write,
                seed=f"{trial.rng.random()}",
                durability=trial.rng.choice(("always", "interval", "interval")),
                count=trial.rng.randrange(20, 80),
                resumes=trial.rng.randrange(2),
                program=shim.program(root, log=folder / "operations"),
            )
            ended(trial, listener, victim)
            known = Recording(list(shim.read_log(folder / "operations")), listener.ledger, root, existed)
        safe = 0
        for operation in known.operations:
            if operation.kind == shim.MARK:
                safe = max(safe, int(operation.data))
            known.safe.append(safe)
        _recordings[group] = known
    return known


def power_cut(trial: Trial) -> None:
    """W4. The power goes after some operation: what was said to be synced is there, in order, and nothing invented."""
    recording = _record(trial, trial.shared)
    at = trial.rng.randrange(len(recording.operations))
    damage = trial.index % len(DAMAGES)
    model = Disk(recording.root, *(["store"] if recording.store_existed else []))
    for operation in recording.operations[: at + 1]:
        model.feed(operation)
    left = trial.folder / "left"
    model.cut(left, damage, trial.rng)
    trial.counts[DAMAGES[damage]] += 1
    state = Trial(f"{trial.index}-state", 0, "", trial.folder, None, Counter())
    judge_state(state, left, recording.ledger, recording.safe[at], damage)
    where = f"cut after operation {at} of {len(recording.operations)}, {DAMAGES[damage]}"
    trial.fail(*(f"{where}: {problem}" for problem in state.problems))


def judge_state(trial: Trial, left: Path, ledger: Ledger, safe: int, damage: int) -> None:
    """Judge one crash state: the first `safe` calls were said to be synced."""
    path = left / "store" / PROJECT / NAME / ".journal"
    journal = disk.read_journal(path)
    trial.fail(*(problem for problem in judge(journal, ledger, may_lose=True)))
    there = {digest(kind, body) for _, _, kind, _, body in journal.in_order()}
    gone = [key for key, sha in ledger.acked.items() if key[1] <= safe and sha not in there]
    trial.check(not gone, f"{len(gone)} of {safe} synced events are gone, such as {gone[:3]}")
    trial.fail(*check_blobs(journal))
    if damage in PREFIX_KEPT:
        trial.check(not gaps(journal), f"what is left is not an unbroken beginning: {gaps(journal)}")
    if not any(segment.header for segment in journal.segments):
        return
    _judge_library(trial, left, path, journal, damage)


def _judge_library(trial: Trial, left: Path, path: Path, journal: disk.Journal, damage: int) -> None:
    from ml_dash.reading.verify import verify

    before = segment_hashes(path)
    place = located(left)
    report = verify(place)
    missing = sum(map(len, gaps(journal).values()))
    if missing:
        found = sum(finding.events for finding in report.findings if finding.kind == "gap")
        trial.check(found == missing, f"{missing} numbers are missing, verify says {found}")
    with _after_a_reboot():
        _judge_folder(trial, place, journal, damage)
    trial.fail(*changed_segments(path, before))


def _judge_folder(trial: Trial, place: Any, journal: disk.Journal, damage: int) -> None:
    from ml_dash.projection.projector import catch_up, rebuild

    catch_up(place)
    wrong = check_folder(place.folder, journal)
    if damage not in PREFIX_KEPT:
        # Records of `order` may be among the sectors that were lost: what they named is numbered after the rest.
        wrong = [text for text in wrong if "the order of" not in text]
    trial.fail(*wrong)
    kept = tree(place.folder)
    rebuild(place)
    trial.fail(*(f"rebuilt folder differs: {text}" for text in tree_difference(kept, tree(place.folder))))


@contextlib.contextmanager
def _after_a_reboot() -> Iterator[None]:
    """A power cut is followed by a boot: what the library takes for the boot's identity is another one."""
    homes: list[Any] = [
        m for name, m in list(sys.modules.items()) if name.startswith("ml_dash.") and hasattr(m, "boot_id")
    ]
    assert homes, "the library does not tell one boot from another any more"
    kept = homes[0].boot_id
    try:
        for module in homes:
            module.boot_id = lambda: "another boot"
        yield
    finally:
        for module in homes:
            module.boot_id = kept


_SYNC_CASES: Final = tuple(itertools.product(range(1, 101), ("EIO", "ENOSPC")))


def sync_fails_once(trial: Trial) -> None:
    """W13. The n-th fdatasync fails and the next one succeeds: what it did not write must be written elsewhere."""
    nth, error = _SYNC_CASES[trial.index % len(_SYNC_CASES)]
    root = trial.folder / "root"
    (root / "store").mkdir(parents=True)
    count = 1 if trial.rng.random() < 0.7 else trial.rng.randrange(2, 5)
    durability = "always" if nth > 4 or trial.rng.random() < 0.5 else "interval"
    rule = shim.rule("fdatasync", match="/segments/", nth=nth, count=count, errno=getattr(errno, error))
    with ear() as listener:
        victim = trial.shared.start(
            "victims_special:recorded",
            root,
            pipe=listener.write,
            seed=f"{trial.rng.random()}",
            durability=durability,
            count=nth + 15,
            resumes=0,
            files=False,
            settle=nth if durability == "interval" else 1,
            program=shim.program(root, rule, log=trial.folder / "log"),
        )
        ended(trial, listener, victim)
        ledger = listener.ledger
    operations = list(shim.read_log(trial.folder / "log"))
    failed = [n for n, operation in enumerate(operations) if operation.kind == shim.SYNC_FAILED]
    trial.counts["failed syncs"] += len(failed)
    trial.check(failed, "no sync failed")
    safe, model = 0, Disk(root, "store")
    for number, operation in enumerate(operations):
        model.feed(operation)
        if operation.kind == shim.MARK:
            safe = max(safe, int(operation.data))
        if failed and failed[0] <= number <= failed[-1] + 60 and trial.rng.random() < 0.3:
            _after_a_cut(trial, model, ledger, safe, number)
    _after_a_cut(trial, model, ledger, len(ledger.acked), len(operations))
    (trial.folder / "store").symlink_to(root / "store")
    journal = recovered(trial, ledger)
    trial.counts["written twice"] += journal.rewritten
    trial.check(journal.rewritten, "nothing was written again")


def _after_a_cut(trial: Trial, model: Disk, ledger: Ledger, safe: int, number: int) -> None:
    left = trial.folder / f"left-{number}"
    model.cut(left, 0, trial.rng)
    journal = disk.read_journal(left / "store" / PROJECT / NAME / ".journal")
    there = {digest(kind, body) for _, _, kind, _, body in journal.in_order()}
    gone = [key for key, sha in ledger.acked.items() if key[1] <= safe and sha not in there]
    trial.check(not gone, f"cut after operation {number}: {len(gone)} of {safe} synced events are gone: {gone[:3]}")
    trial.counts["power cuts"] += 1


ROWS: tuple[Row, ...] = (
    Row("W4", "power cuts", 20_000, 120, power_cut, shimmed),
    Row("W13", "a sync fails, the next one lies", 200, 8, sync_fails_once, shimmed),
)
__all__: list[Any] = ["ROWS", "journal_of"]
