"""Rows W17 to W22: forks, threads, many processes, broken locks, an old writer that wakes up, wrong clocks."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Final

from ml_dash.reading.located import Located
from tests.faults import shim
from tests.faults.harness import Row, Trial

from . import oracle_reader as disk
from .oracle import ear, gaps
from .recovery import ended, hear_or_tell, recovered
from .setups import shimmed, zygote
from .victims import NAME, PROJECT, experiment, located


def _one_file_for_each_writer(trial: Trial, journal: disk.Journal, *, at_least: int) -> None:
    """No file shared, no number missing, as many writers as there were processes."""
    seen: dict[tuple[bytes, int], Path] = {}
    for segment in journal.segments:
        if segment.header is None:
            continue
        key = (segment.header.writer, segment.header.n)
        trial.check(key not in seen, f"{segment.path.name} and {seen.get(key)} are both number {key[1]} of one writer")
        seen[key] = segment.path
    writers = {writer for writer, _ in seen}
    trial.check(len(writers) >= at_least, f"{at_least} processes wrote, there are {len(writers)} writers")
    trial.check(not gaps(journal), f"numbers are missing: {gaps(journal)}")


def forks(trial: Trial) -> None:
    """W17. Children forked while the parent writes in another thread get a writer each; nobody hangs."""
    children = trial.rng.choice((1, 1, 2, 2, 3, 8, 32))
    nested = trial.rng.random() < 0.2
    with ear() as listener:
        victim = trial.shared.start(
            "victims_processes:forks",
            trial.folder,
            pipe=listener.write,
            seed=f"{trial.rng.random()}",
            children=children,
            count=trial.rng.randrange(1, 30),
            how=trial.rng.choice(("raw", "multiprocessing")),
            nested=nested,
        )
        ended(trial, listener, victim, timeout_s=120.0)
        trial.counts["forks"] += children * (2 if nested else 1)
        journal = recovered(trial, listener.ledger, reads=trial.index % 4 == 0)
        _one_file_for_each_writer(trial, journal, at_least=1 + children)
        _status(trial, {"completed"})


def _status(trial: Trial, allowed: set[str]) -> None:
    path = trial.folder / "store" / PROJECT / NAME / "experiment.json"
    status = json.loads(path.read_bytes())["status"]
    trial.check(status in allowed, f"the status is {status}, expected one of {sorted(allowed)}")
    trial.counts[f"status {status}"] += 1


def threads(trial: Trial) -> None:
    """W18. 64 threads, one handle: every call once, in each thread's order."""
    with ear() as listener:
        count = 1_000 if os.environ.get("ML_DASH_TEST_LONG") else 40
        victim = trial.shared.start(
            "victims:threads", trial.folder, pipe=listener.write, seed=f"{trial.rng.random()}", workers=64, count=count
        )
        ended(trial, listener, victim, timeout_s=120.0)
        trial.check(len(listener.ledger.acked) == 64 * count, f"{len(listener.ledger.acked)} calls returned")
        trial.counts["calls"] += len(listener.ledger.acked)
        journal = recovered(trial, listener.ledger)
        _one_file_for_each_writer(trial, journal, at_least=1)


def _beside(trial: Trial, processes: int, *, program: str = "", hosts: bool = False, rebuild: bool = False) -> None:
    # Half of the time all are open before the first one calls.
    together = trial.rng.random() < 0.5
    go = trial.folder / "go"
    with ear() as listener:
        victims = [
            trial.shared.start(
                "victims_processes:beside",
                trial.folder,
                pipe=listener.write,
                seed=f"{trial.rng.random()}",
                worker=worker,
                count=trial.rng.randrange(1, 60 if processes < 8 else 15),
                host=f"node{worker % 2}" if hosts else "",
                crash=trial.rng.random() < 0.3,
                go=str(go) if together else "",
                program=program,
            )
            for worker in range(processes)
        ]
        listener.started()
        if together:
            hear_or_tell(listener, victims[0], "waiting", processes)
            go.touch()
        listener.listen(60.0)
        crashed = 0
        for victim in victims:
            status = victim.wait()
            crashed += status == -signal.SIGKILL
            trial.check(status in (0, -signal.SIGKILL), f"a process ended with {status}: {victim.told()}")
        ledger = listener.finish(5.0)
        trial.counts["processes"] += processes
        trial.counts["killed"] += crashed
        journal = recovered(trial, ledger, reads=trial.index % 4 == 0, rebuild=rebuild)
        _one_file_for_each_writer(trial, journal, at_least=processes)
        if not program:
            # One that died before the others came has ended a run of its own.
            _status(
                trial, {"completed"} if not crashed else {"interrupted"} if together else {"interrupted", "completed"}
            )


def processes(trial: Trial) -> None:
    """W19. 2 processes (500 trials) or 64 (100), also as if from two hosts, in one experiment; some are killed."""
    _beside(trial, 2 if trial.index < 500 else 64, hosts=trial.rng.random() < 0.5, rebuild=trial.index % 4 == 1)


_BROKEN: Final = ("ENOLCK", "EIO", "always")


def broken_locks(trial: Trial) -> None:
    """W20. flock and fcntl answer ENOLCK, EIO, or say yes to everybody."""
    import errno

    how = _BROKEN[trial.index % 3]
    what = {"always": 1} if how == "always" else {"errno": getattr(errno, how)}
    rules = [shim.rule(op, count=0, **what) for op in ("flock", "fcntl")]
    trial.counts[how] += 1
    _beside(trial, trial.rng.randrange(2, 5), program=shim.program(trial.folder / "store", *rules))


def old_writer_wakes(trial: Trial) -> None:
    """W21. A stopped process is given up, another one resumes, then the first goes on: both are kept."""
    from ml_dash.reading.read import view

    with ear() as listener:
        go = trial.folder / "go"
        old = trial.shared.start(
            "victims_processes:beside",
            trial.folder,
            pipe=listener.write,
            seed=f"{trial.rng.random()}",
            worker=0,
            count=2_000,
            go=str(go),
            host="node0",
        )
        hear_or_tell(listener, old, "waiting")
        go.touch()
        listener.wait_for_acks(trial.rng.randrange(1, 300))
        old.kill(signal.SIGSTOP)
        new = trial.shared.start(
            "victims_processes:beside",
            trial.folder,
            pipe=listener.write,
            seed=f"{trial.rng.random()}",
            worker=1,
            count=trial.rng.randrange(1, 200),
            host="node1",
            crash=trial.rng.random() < 0.3,
        )
        status = new.wait()
        trial.check(status in (0, -signal.SIGKILL), f"the new process ended with {status}: {new.told()}")
        # The old one still holds its lock: the experiment runs.
        record = view(located(trial.folder)).record()
        trial.check(record["status"] == "running", f"a process is alive, the status is {record['status']}")
        old.kill(signal.SIGCONT)
        ended(trial, listener, old)
        trial.check(listener.ledger.last("closed") == 1, "the old process did not close")
        journal = recovered(trial, listener.ledger, reads=True, rebuild=trial.index % 4 == 1)
        _one_file_for_each_writer(trial, journal, at_least=2)


_DECIDING: Final = ("name-claimed", "segment-create", "header-written")


def new_names(trial: Trial) -> None:
    """W33. 2 to 64 processes open `resume="new"` at once, some are killed while they decide."""
    from ml_dash.reading.read import find, view

    rng = trial.rng
    store = trial.folder / "store"
    taken = rng.choice((0, 0, 1, 3))
    for number in range(taken):
        experiment(trial.folder, f"run-{number + 1}" if number else "run").open().close()
    count = rng.choice((2, 3, 8, 8, 64)) if trial.index % 10 else 64
    go = trial.folder / "go"
    with ear() as listener:
        victims = []
        for worker in range(count):
            killed = {"ML_DASH_FAIL": f"{rng.choice(_DECIDING)}:1:kill"} if rng.random() < 0.2 else {}
            victims.append(
                trial.shared.start(
                    "victims_processes:newcomer", trial.folder, pipe=listener.write, env=killed, worker=worker,
                    go=str(go), dies=rng.random() < 0.2,
                )
            )  # fmt: skip
        listener.started()
        listener.wait_for("ready", count)
        go.touch()
        if rng.random() < 0.5:
            listener.listen(rng.random() * 0.02)
            victims[rng.randrange(count)].kill()
        for victim in victims:
            status = victim.wait()
            trial.check(status in (0, -signal.SIGKILL), f"a process ended with {status}: {victim.told()}")
        ledger = listener.finish(5.0)
    told = dict(ledger.values.get("name", []))
    trial.check(len(set(told.values())) == len(told), f"two processes have one name: {sorted(told.values())}")
    trial.check(not set(told.values()) & set(range(1, taken + 1)), "a name was given that was taken")
    for one in find(store):
        look = view(one)
        if one.name in {f"run-{number}" if number > 1 else "run" for number in told.values()} and look.state.points:
            points = [point["data"]["value"] for point in look.each_point("who")]
            trial.check(len(points) == 1 and told.get(points[0]) is not None, f"{one.name} holds points of {points}")
    # No name is blocked for ever: those that come now take the gaps, the lowest first.
    for _ in range(count + taken):
        there = {1 if one.name == "run" else int(one.name.removeprefix("run-")) for one in find(store) if _began(one)}
        free = next(number for number in range(1, len(there) + 2) if number not in there)
        with experiment(trial.folder, "run", resume="new") as target:
            expected = "run" if free == 1 else f"run-{free}"
            if not trial.check(target.name == expected, f"the next name is {target.name}, expected {expected}"):
                break
        if free > max(there, default=0):
            break
    trial.counts["processes"] += count
    trial.counts["names"] += len(told)


def _began(located: Located) -> bool:
    return bool(list((located.journal / "segments").glob("*.seg")))


_CLOCKS: Final = ("clock=shift:-3600", "clock=shift:315360000", "clock=freeze", "clock=shift:-1")


def wrong_clock(trial: Trial) -> None:
    """W22. The wall clock goes back an hour, on ten years, stands still, or takes a leap second back."""
    clock = _CLOCKS[trial.index % 4]
    with ear() as listener:
        for worker in range(2):
            victim = trial.shared.start(
                "victims_processes:clocked",
                trial.folder,
                pipe=listener.write,
                seed=f"{trial.rng.random()}",
                worker=worker,
                count=90,
                clock=clock,
            )
            status = victim.wait()
            trial.check(status == 0, f"the victim ended with {status}: {victim.told()}")
            listener.hear()
        ledger = listener.finish()
        trial.check(ledger.last("cpu") < 5_000, f"{ledger.last('cpu')} ms of CPU: a busy loop")
        journal = recovered(trial, ledger, reads=True, rebuild=True)
        trial.check(not gaps(journal), f"numbers are missing: {gaps(journal)}")
        last: dict[str, int] = {}
        for writer, seq, _, time_ns, _ in journal.in_order():
            trial.check(time_ns >= last.get(writer, 0), f"time of {writer} goes back at {seq}")
            last[writer] = time_ns
        record = json.loads((trial.folder / "store" / PROJECT / NAME / "experiment.json").read_bytes())
        trial.check(record["createdAt"] <= record["updatedAt"], "a negative age")
        trial.counts[clock] += 1


ROWS = (
    Row("W17", "forks while another thread writes", 300, 14, forks, zygote),
    Row("W18", "64 threads, one handle", 200, 2, threads, zygote),
    Row("W19", "2 and 64 processes, one experiment", 600, 12, processes, zygote),
    Row("W20", "locks that do not lock", 600, 12, broken_locks, shimmed),
    Row("W21", "an old writer wakes up", 300, 6, old_writer_wakes, zygote),
    Row("W22", "wrong clocks", 800, 12, wrong_clock, shimmed),
    Row("W33", "new names for all that begin at once", 500, 10, new_names, zygote),
)
