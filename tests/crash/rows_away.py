"""Row W15: the folder of a running experiment is forbidden, removed, moved, replaced, unmounted or made read-only."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.faults.harness import Row, Trial, has_mounts

from . import oracle_reader as disk
from .oracle import ear, judge, kept_in
from .recovery import ended, hear_or_tell, recovered
from .rows_disk import SLOWEST_CALL_US
from .setups import zygote
from .victims import NAME, PROJECT
from .victims_disk import mount, unmount


def _home(folder: Path) -> Path:
    return folder / "store" / PROJECT / NAME


def _chmod(folder: Path, mode: int) -> None:
    segments = _home(folder) / ".journal" / "segments"
    inside_out = (segments, segments.parent, segments.parents[1])
    # Without being root: what is forbidden is reached from outside only.
    for path in inside_out if mode != 0o755 else reversed(inside_out):
        path.chmod(mode)


def _swap_for_link(folder: Path) -> None:
    (folder / "outside").mkdir(mode=0o777)
    _home(folder).rename(folder / "store" / PROJECT / "moved")
    _home(folder).symlink_to(folder / "outside")


def _swap_segments_for_link(folder: Path) -> None:
    (folder / "outside").mkdir(mode=0o777)
    segments = _home(folder) / ".journal" / "segments"
    segments.rename(folder / "store" / PROJECT / "segments")
    segments.symlink_to(folder / "outside")


def _swap_for_file(folder: Path) -> None:
    _home(folder).rename(folder / "store" / PROJECT / "moved")
    _home(folder).write_text("not a folder")


def _nothing(_: Path) -> None:
    pass


Act = Callable[[Path], None]
# A file system that has files open for writing cannot be mounted read-only by hand; EROFS comes from the shim in P5.
# name, what is done, what undoes it, must every call be kept (somewhere)?
CASES: Final[tuple[tuple[str, Act, Act, bool], ...]] = (
    ("read-only", lambda f: _chmod(f, 0o555), lambda f: _chmod(f, 0o755), True),
    ("forbidden", lambda f: _chmod(f, 0o000), lambda f: _chmod(f, 0o755), True),
    ("removed", lambda f: shutil.rmtree(_home(f)), _nothing, False),
    ("renamed", lambda f: _move(_home(f), f / "store" / PROJECT / "moved"), _nothing, True),
    ("store renamed", lambda f: _move(f / "store", f / "moved"), _nothing, True),
    ("replaced by a link", _swap_for_link, _nothing, True),
    ("segments replaced by a link", _swap_segments_for_link, _nothing, True),
    ("replaced by a file", _swap_for_file, _nothing, True),
    ("unmounted", lambda f: unmount(f / "store", lazy=True), _nothing, False),
)


def _move(old: Path, new: Path) -> None:
    old.rename(new)


def folder_goes_away(trial: Trial) -> None:
    """W15. No call raises or takes long, nothing is written elsewhere, and what was kept is told truly."""
    name, spoil, mend, all_kept = CASES[trial.index % len(CASES)]
    folder = trial.folder
    store = folder / "store"
    store.mkdir()
    mounted = name == "unmounted"
    if mounted and not has_mounts():
        trial.counts["not root: nothing can be unmounted"] += 1
        return
    if mounted:
        mount("tmpfs", store, 0, "size=4m")
    if os.geteuid() == 0:
        for path in (folder, store):
            os.chown(path, 65534, 65534)
    try:
        with ear() as listener:
            victim = trial.shared.start(
                "victims_disk:paced",
                folder,
                pipe=listener.write,
                seed=f"{trial.rng.random()}",
                unprivileged=not mounted,
                wait_written=name != "unmounted",
            )
            listener.started()
            for count, (file, act) in enumerate((("break", spoil), ("mend", mend)), 1):
                hear_or_tell(listener, victim, "waiting", count)
                act(folder)
                (folder / file).touch()
            ended(trial, listener, victim)
            ledger = listener.ledger
        trial.counts[name] += 1
        trial.check("closed" in ledger.values, f"{name}: the victim did not come to its end")
        slowest = ledger.last("slowest-us")
        trial.check(slowest < SLOWEST_CALL_US, f"{name}: a call took {slowest / 1e6:.2f} s")
        outside = folder / "outside"
        if outside.exists():
            trial.fail(*(f"{name}: {path} was written outside" for path in outside.rglob("*")))
        if name in ("read-only", "forbidden"):
            recovered(trial, ledger)
            return
        if name == "unmounted":
            return
        journal = _all_journals(folder)
        trial.fail(*judge(journal, ledger, may_lose=not all_kept))
        if not all_kept:
            # Of what was removed nothing can be had back; what was called after that must be there.
            late = {key: sha for key, sha in ledger.acked.items() if key[1] > 75}
            ledger.acked = late
            kept = kept_in(journal, ledger)
            trial.check(
                kept == len(late), f"{name}: {len(late) - kept} of {len(late)} calls after it was noticed are lost"
            )
    finally:
        if mounted:
            unmount(store, lazy=True)


def _all_journals(folder: Path) -> disk.Journal:
    """The events of every segment below the folder, wherever it was moved."""
    union = disk.Journal(folder)
    for path in sorted({segment.parent for segment in folder.rglob("*.seg")}):
        holder = path.parent if path.name == "segments" else path
        if holder == path:
            continue
        found = disk.read_journal(holder)
        union.problems += found.problems
        union.segments += found.segments
        union.events |= found.events
    return _with_moved_segments(folder, union)


def _with_moved_segments(folder: Path, union: disk.Journal) -> disk.Journal:
    moved = folder / "store" / PROJECT / "segments"
    if moved.is_dir():
        shelter = folder / "shelter"
        shelter.mkdir()
        shutil.copytree(moved, shelter / "segments")
        found = disk.read_journal(shelter)
        union.segments += found.segments
        union.events |= found.events
    return union


ROWS = (Row("W15", "the folder goes away", 100 * len(CASES), 20, folder_goes_away, zygote, mounts="root"),)
