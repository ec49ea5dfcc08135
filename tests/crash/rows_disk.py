"""Rows W10 to W12, W14 and W16: full disks, failing writes, a late close, a disk that hangs. Training lives."""

from __future__ import annotations

import contextlib
import errno
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tests.faults import shim
from tests.faults.harness import Row, Trial, has_mounts
from tests.faults.zygote import Zygote

from . import oracle_reader as disk
from .oracle import Ledger, ear, kept_in
from .recovery import ended, recovered
from .setups import shimmed, zygote
from .victims import journal_of, located
from .victims_disk import mount, unmount

SLOWEST_CALL_US: Final = 1_500_000


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[None]:
    """A tmpfs of that size at `folder`, where we may mount."""
    folder.mkdir(parents=True)
    if not has_mounts():
        yield
        return
    mount("tmpfs", folder, 0, f"size={kilobytes}k")
    try:
        yield
    finally:
        unmount(folder, lazy=True)


@contextlib.contextmanager
def real_or_shimmed(workdir: Path) -> Iterator[Zygote]:
    """A setup: victims with the shim only where a real small disk cannot be had."""
    with (zygote if has_mounts() else shimmed)(workdir) as made:
        yield made


def _lived(trial: Trial, ledger: Ledger) -> None:
    """I5: it closed by itself, and no call took long."""
    trial.check("closed" in ledger.values, "the victim did not come to its end")
    slowest = ledger.last("slowest-us")
    trial.check(slowest < SLOWEST_CALL_US, f"a call took {slowest / 1e6:.2f} s")


def _nothing_behind_a_partial_frame(trial: Trial, journal: disk.Journal) -> None:
    trial.check(not journal.damaged_bytes, f"{journal.damaged_bytes} bytes in the middle of segments hold no frame")
    trial.counts["partial frames"] += sum(segment.tail is not None for segment in journal.segments)


def disk_fills_up(trial: Trial) -> None:
    """W10. A disk fills up within a frame, at any of its bytes; later there is room again, or there is not."""
    free = trial.index % 16 != 0
    kilobytes = trial.rng.choice((512, 768, 1024))
    # Where we may not mount, the shim counts bytes: the same short write, then the same error.
    program = "" if has_mounts() else shim.program(trial.folder / "store", f"quota={kilobytes << 10}")
    trial.counts["real file system" if has_mounts() else "simulated by the shim"] += 1
    with small_disk(trial.folder / "store", kilobytes), ear() as listener:
        victim = trial.shared.start(
            "victims_disk:fill_up",
            trial.folder,
            pipe=listener.write,
            seed=f"{trial.rng.random()}",
            free=free,
            padding=trial.index % 4096,
            pages=trial.rng.randrange(1, 4),
            more=trial.rng.randrange(40, 160),
            program=program,
        )
        ended(trial, listener, victim)
        ledger = listener.ledger
        _lived(trial, ledger)
        trial.counts["degraded"] += any(
            accepted != written
            for (_, accepted), (_, written) in zip(ledger.values["accepted"], ledger.values["written"], strict=True)
        )
        if free:
            trial.check("stuck" not in ledger.values, "events still waited 20 s after there was room again")
            trial.check("storage-error" not in ledger.values, f"close() raised: {victim.told()}")
            journal = recovered(trial, ledger, rebuild=trial.index % 8 == 1)
        else:
            journal = _judge_lost(trial, ledger, victim.told())
        _nothing_behind_a_partial_frame(trial, journal)


def _judge_lost(trial: Trial, ledger: Ledger, told: str) -> disk.Journal:
    """A disk that never came back: what was said to be written is there, what is lost was told, exactly."""
    journal = disk.read_journal(journal_of(trial.folder))
    kept = kept_in(journal, ledger)
    lost = len(ledger.acked) - kept
    match = re.search(r"close: ([0-9,]+) events", told)
    said = int(match[1].replace(",", "")) if match else 0
    # The opening and the closing event may be among those that were lost.
    trial.check(lost <= said <= lost + 2, f"{lost} calls are lost, close() said {said}")
    trial.check(len(journal.events) >= ledger.last("written"), "events said to be written are not there")
    trial.counts["lost and told"] += lost
    from .oracle import judge

    trial.fail(*judge(journal, ledger, may_lose=True))
    return journal


def file_size_limit(trial: Trial) -> None:
    """W11. The segment may not grow beyond some byte (EFBIG, as EDQUOT would)."""
    with ear() as listener:
        victim = trial.shared.start(
            "victims_disk:limited",
            trial.folder,
            pipe=listener.write,
            seed=f"{trial.rng.random()}",
            room=trial.index % 4096,
            more=60,
        )
        ended(trial, listener, victim)
        _lived(trial, listener.ledger)
        trial.check("stuck" not in listener.ledger.values, "events still waited 20 s after the limit was gone")
        journal = recovered(trial, listener.ledger, rebuild=trial.index % 8 == 1)
        _nothing_behind_a_partial_frame(trial, journal)
        trial.counts["more than one segment"] += len(journal.segments) > 1
        _torn_is_not_damaged(trial)


def _torn_is_not_damaged(trial: Trial) -> None:
    """A frame that was cut off and written again elsewhere is no damage."""
    from ml_dash.reading.verify import verify

    report = verify(located(trial.folder))
    found = [finding for finding in report.findings if finding.kind != "torn"]
    trial.check(not found, f"verify finds {found[:3]}")


ERRORS: Final = ("EIO", "EINTR", "EAGAIN", "ESTALE", "EDQUOT", "short")
_WRITE_CASES: Final = tuple(itertools.product(range(1, 201), ERRORS, ("once", "ever")))


def nth_write_fails(trial: Trial) -> None:
    """W12. The n-th write fails, once or from then on, by an error or by taking only a part."""
    nth, error, mode = _WRITE_CASES[trial.index % len(_WRITE_CASES)]
    # A kernel that answers EINTR for ever is none: Python itself would not return.
    count = 1 if mode == "once" else 40 if error == "EINTR" else 0
    what: dict[str, Any] = (
        {"short": trial.rng.randrange(1, 40)} if error == "short" else {"errno": getattr(errno, error)}
    )
    strict = trial.rng.random() < 0.15
    with ear() as listener:
        victim = trial.shared.start(
            "victims_disk:faulty_strict" if strict else "victims_disk:faulty",
            trial.folder,
            pipe=listener.write,
            seed=f"{trial.rng.random()}",
            count=max(20, nth + 20),
            program=shim.program(
                trial.folder / "store", shim.rule("write", match="/segments/", nth=nth, count=count, **what)
            ),
        )
        ended(trial, listener, victim)
        ledger = listener.ledger
        for_good = mode == "ever" and error not in ("EINTR", "short")
        if strict:
            _strictly(trial, ledger)
            return
        _lived(trial, ledger)
        if for_good:
            journal = _judge_lost(trial, ledger, victim.told())
            trial.check("storage-error" in ledger.values, "close() did not raise although events were lost")
        else:
            journal = recovered(trial, ledger, rebuild=trial.index % 8 == 1)
        _nothing_behind_a_partial_frame(trial, journal)
        trial.counts[f"{error} {mode}"] += 1


def _strictly(trial: Trial, ledger: Ledger) -> None:
    """With strict=True a call that returned is on disk, and one that raised is not."""
    if "refused-open" in ledger.values:
        trial.counts["strict: refused at open"] += 1
        return
    journal = recovered(trial, ledger)
    trial.counts["strict: calls that raised"] += len(ledger.raised)
    from .oracle import digest

    there = {digest(kind, body) for _, _, kind, _, body in journal.in_order()}
    wrong = [key for sha, key in ledger.issued.items() if key in ledger.raised and sha in there]
    trial.check(not wrong, f"calls that raised were recorded all the same: {wrong[:5]}")


def close_fails_late(trial: Trial) -> None:
    """W14. close() of a segment fails, as on NFS: told, nothing else."""
    with ear() as listener:
        number = trial.rng.choice((errno.EIO, errno.ENOSPC, errno.EDQUOT))
        rule = shim.rule("close", match=".seg", nth=trial.rng.randrange(1, 3), count=0, errno=number)
        victim = trial.shared.start(
            "victims_disk:faulty",
            trial.folder,
            pipe=listener.write,
            seed=f"{trial.rng.random()}",
            count=120,
            settings={"durability": trial.rng.choice(("interval", "os", "always"))},
            program=shim.program(trial.folder / "store", rule),
        )
        ended(trial, listener, victim)
        _lived(trial, listener.ledger)
        trial.check("closing" in victim.errors.read_text(), f"nobody was told: {victim.told()[-200:]!r}")
        recovered(trial, listener.ledger)


def disk_hangs(trial: Trial) -> None:
    """W16. A write or a sync does not return: only its own call waits, later ones are kept, all is written at last."""
    op = trial.rng.choice(("write", "fdatasync"))
    patience = 1.0 if trial.index % 10 == 0 else 0.2
    with ear() as listener:
        victim = trial.shared.start(
            "victims_disk:hanging",
            trial.folder,
            pipe=listener.write,
            seed=f"{trial.rng.random()}",
            op=op,
            nth=trial.rng.randrange(3, 40) if op == "write" else 1,
            patience=patience,
        )
        listener.started()
        listener.wait_for("hanging")
        ledger = listener.ledger
        trial.check(ledger.last("slowest-us") < 50_000, f"a later call took {ledger.last('slowest-us')} µs")
        limit = 2.5 * patience if op == "write" else 0.05
        trial.check(ledger.last("first-us") < limit * 1e6, f"the first call waited {ledger.last('first-us')} µs")
        if op == "write":
            trial.check(
                ledger.last("written") < ledger.last("accepted"), "durable_state() does not show that events wait"
            )
        (trial.folder / "release").touch()
        ended(trial, listener, victim)
        trial.check("stuck" not in ledger.values, "events still waited 20 s after the disk answered")
        recovered(trial, ledger)
        trial.counts[op] += 1


ROWS = (
    Row(
        "W10", "a disk fills up at every byte of a frame", 4_096 + 200, 48, disk_fills_up, real_or_shimmed, mounts="any"
    ),
    Row("W11", "a file may not grow beyond every byte of a frame", 4_096, 60, file_size_limit, zygote),
    Row("W12", "the n-th write fails", len(_WRITE_CASES), 60, nth_write_fails, shimmed),
    Row("W14", "close fails late", 100, 6, close_fails_late, shimmed),
    Row("W16", "the disk hangs", 50, 3, disk_hangs, shimmed),
)
