"""What every row does after the fault: judge the journal from outside, then the folder and the reads of the library."""

from __future__ import annotations

import time
from pathlib import Path

from tests.faults.harness import Trial
from tests.faults.zygote import Victim

from . import oracle_reader as disk
from .compare import changed_segments, check_folder, check_reads, segment_hashes, tree, tree_difference
from .oracle import Ear, Ledger, check_blobs, judge
from .victims import NAME, experiment, journal_of, located


def recovered(
    trial: Trial, *ledgers: Ledger, name: str = NAME, may_lose: bool = False, reads: bool = False, rebuild: bool = False
) -> disk.Journal:
    """Judge what is on disk; note all that is wrong.

    With `reads` the calls of a read-only handle are compared too; with `rebuild` the folder is made again and must be
    the same, byte for byte.
    """
    from ml_dash.projection.project import catch_up
    from ml_dash.projection.project import rebuild as make_again

    path = journal_of(trial.folder, name)
    journal = disk.read_journal(path)
    trial.fail(*judge(journal, *ledgers, may_lose=may_lose))
    if not journal.events:
        # Killed before there was anything to find.
        return journal
    trial.fail(*check_blobs(journal))
    before = segment_hashes(path)
    place = located(trial.folder, name)
    if reads:
        reader = experiment(trial.folder, name, read_only=True).open()
        trial.fail(*check_reads(reader, journal))
        reader.close()
    catch_up(place)
    trial.fail(*check_folder(place.folder, journal))
    if rebuild:
        kept = tree(place.folder)
        make_again(place)
        trial.fail(*(f"rebuilt folder differs: {text}" for text in tree_difference(kept, tree(place.folder))))
    trial.fail(*changed_segments(path, before))
    return journal


def kill_after(trial: Trial, ear: Ear, victim: Victim, seconds: float) -> None:
    """Listen for that long, then SIGKILL, then hear the rest; a victim that ended by itself must have ended well."""
    ear.started()
    if ear.listen(seconds):
        victim.kill()
    status = victim.wait()
    ear.finish()
    if status not in (0, -9):
        trial.fail(f"the victim ended with {status}: {victim.told()}")


def ended(trial: Trial, ear: Ear, *victims: Victim, timeout_s: float = 60.0) -> None:
    """Hear the victims out; all must end by themselves, and well."""
    ear.started()
    deadline = time.monotonic() + timeout_s
    alive = ear.listen(timeout_s)
    for victim in victims:
        status = victim.wait(max(1.0, deadline - time.monotonic()))
        if status:
            trial.fail(f"a victim ended with {status}: {victim.told()}")
    if alive:
        ear.finish(5.0)


def hear_or_tell(ear: Ear, victim: Victim, name: str, count: int = 1, timeout_s: float = 60.0) -> None:
    """Listen until that value was reported so often; a victim that ends before is quoted."""
    try:
        ear.wait_for(name, count, timeout_s)
    except (EOFError, TimeoutError) as error:
        raise RuntimeError(f"{error}; it told: {victim.told()}") from error


def size_of(folder: Path) -> int:
    """Bytes in all files under a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
