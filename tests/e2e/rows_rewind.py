"""Row W32: jobs that are killed past their checkpoints and go on from them, again and again.

The trial knows when each run began and from which step it went on; what was recorded is read from the journals by the
independent reader. A point is current unless a later run went on from its step or an earlier one.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ml_dash.core import rewinds
from tests.crash import oracle_reader as disk
from tests.crash.compare import points_of, tree, tree_difference
from tests.crash.oracle import ear
from tests.faults.harness import Row, Trial

from .asking import Client, login
from .victims import FEW
from .world import Site, World, site, world

Points = dict[str, list[dict[str, Any]]]
_FAR: Final = 1_000_000


@dataclass
class _Job:
    """All runs of one job so far, on one machine or two."""

    trial: Trial
    sites: list[Site]
    # For each run: the step that it went on from, and the machines that its ranks ran on.
    runs: list[tuple[int, set[int]]] = field(default_factory=list)
    reached: int = 0
    # For each machine: (writer, number) → (kind, body) of all that was ever in its journal.
    events: list[dict[tuple[str, int], tuple[int, Any]]] = field(default_factory=list)

    def run(self) -> None:
        """One more: every rank is open, and has recorded since, before any dies."""
        rng, session = self.trial.rng, len(self.runs)
        start = 0 if not session else rng.choice((0, rng.randrange(self.reached + 1), self.reached, _FAR))
        ranks = rng.choice((1, 1, 2, 3, 8))
        machines = [rng.randrange(len(self.sites)) for _ in range(ranks)]
        steps = rng.randrange(1, 30)
        go = self.trial.folder / f"go{session}"
        with ear() as listener:
            victims = [
                self.trial.shared.zygote.start(
                    "victims:rank",
                    self.sites[machine].folder,
                    pipe=listener.write,
                    store=str(self.sites[machine].store),
                    project=self.sites[0].project,
                    number=number,
                    session=session,
                    start=start,
                    steps=steps,
                    seed=f"{rng.random()}",
                    dies=rng.random() < 0.7,
                    go=str(go),
                )
                for number, machine in enumerate(machines)
            ]
            listener.started()
            listener.wait_for("open", ranks)
            go.touch()
            for number in range(ranks):
                while not any(worker == number for worker, _ in listener.ledger.values.get("going", [])):
                    listener.listen(0.001)
            if rng.random() < 0.5:
                victims[rng.randrange(ranks)].kill()
            for victim in victims:
                status = victim.wait()
                self.trial.check(status in (0, -9), f"a rank ended with {status}: {victim.told()[-600:]}")
        self.runs.append((start, set(machines)))
        self.reached = max(self.reached, start + steps) if start < _FAR else self.reached
        self.trial.counts["runs"] += 1
        self.trial.counts["ranks"] += ranks

    def recorded(self, machines: set[int]) -> Points:
        """All points in the journals of these machines."""
        found: Points = {}
        events: dict[tuple[str, int], tuple[int, Any]] = {}
        for machine in machines:
            self.read(machine)
            events |= self.events[machine]
        for kind, body in events.values():
            if kind in (disk.POINT, disk.POINTS, disk.ROWS):
                found.setdefault(body[0], []).extend(points_of(kind, body))
        return found

    def read(self, machine: int) -> None:
        """Remember what is in a journal: later it may be freed."""
        path = _home(self, machine) / ".journal"
        if path.exists():
            journal = disk.read_journal(path)
            self.events[machine].update({key: (kind, body) for key, (kind, _, body) in journal.events.items()})

    def is_current(self, point: dict[str, Any], machines: set[int]) -> bool:
        """As far as these machines know."""
        step = point.get("step", point.get("epoch"))
        later = [start for start, where in self.runs[point["session"] + 1 :] if where & machines]
        return step is None or not any(start <= step for start in later)


def _same(points: list[dict[str, Any]]) -> list[str]:
    return sorted(repr(sorted(point.items())) for point in points)


Reader = Callable[[str, bool], list[dict[str, Any]]]
"""All lines of a metric: with what is superseded, or without."""


def _compare(
    job: _Job, what: str, machines: set[int], stats: dict[str, dict[str, Any]], read: Reader, recorded: Points
) -> None:
    """What one place shows, by pages and by statistics, against what was recorded."""
    trial = job.trial
    trial.check(stats.keys() == recorded.keys(), f"{what}: metrics {sorted(stats)}, expected {sorted(recorded)}")
    for name in stats.keys() & recorded.keys():
        everything, current = read(name, True), read(name, False)
        expected = [point for point in recorded[name] if job.is_current(point, machines)]
        trial.check(
            _same([line["data"] for line in everything]) == _same(recorded[name]), f"{what}: {name} is not all there"
        )
        found = _same([line["data"] for line in current])
        trial.check(
            found == _same(expected), f"{what}: {name} has {len(found)} current points, expected {len(expected)}"
        )
        indices = {line["index"] for line in current}
        shown = stats[name]
        hidden = [index for start, end in shown["superseded"] for index in range(start, end)]
        trial.check(
            sorted([*indices, *hidden]) == list(range(len(everything))), f"{what}: {name}: ranges and pages differ"
        )
        trial.check(shown["supersededDataPoints"] == len(hidden), f"{what}: {name}: the count of its ranges is wrong")
        values = [line["data"]["value"] for line in current]
        total = 0.0
        for value in values:
            total += value
        expected_series = {} if not values else {
            "count": len(values), "first": values[0], "last": values[-1], "min": min(values), "max": max(values),
            "mean": total / len(values),
        }  # fmt: skip
        series = dict(shown["series"].get(name, {}))
        trial.check(series == expected_series, f"{what}: {name}: {series}, expected {expected_series}")
        trial.counts["points superseded"] += len(hidden)
        trial.counts["points current"] += len(values)


def _compare_counts(
    job: _Job, what: str, machines: set[int], name: str, shown: dict[str, Any], points: list[dict[str, Any]]
) -> None:
    """Where the lines are not here: what does not depend on their order."""
    values = [point["value"] for point in points if job.is_current(point, machines)]
    job.trial.check(shown["supersededDataPoints"] == len(points) - len(values), f"{what}: {name}: count of its ranges")
    series = shown["series"].get(name, {})
    found = (series.get("count", 0), series.get("min"), series.get("max"))
    expected = (len(values), min(values, default=None), max(values, default=None))
    job.trial.check(found == expected, f"{what}: {name}: {found}, expected {expected}")


def _check_place(job: _Job, what: str, folder: Path, machines: set[int], *, freed: bool = False) -> None:
    """A folder with a journal, as a reader finds it; where lines were freed, metrics may say that they are unsure."""
    from ml_dash.reading.located import at
    from ml_dash.reading.read import view

    located = at(folder)
    assert located is not None
    look = view(located)
    stats: dict[str, dict[str, Any]] = {one["name"]: {**look.metric_stats(one["name"])} for one in look.metrics()}
    points = job.recorded(machines)
    if freed:
        unsure = {name for name, shown in stats.items() if shown.get("supersededElsewhere")}
        job.trial.counts["unsure when freed"] += len(unsure)
        # What is here of the others is a part: their statistics are of all.
        job.trial.check(stats.keys() == points.keys(), f"{what}: metrics {sorted(stats)}, expected {sorted(points)}")
        for name in stats.keys() - unsure:
            _compare_counts(job, what, machines, name, stats[name], points[name])
        return

    def read(name: str, superseded: bool) -> list[Any]:
        return list(look.each_point(name, superseded=superseded))

    _compare(job, what, machines, stats, read, points)
    current = [point for found in points.values() for point in found if job.is_current(point, machines)]
    steps = [point.get("step", point.get("epoch")) for point in current]
    greatest = max((step for step in steps if step is not None), default=None)
    job.trial.check(look.last_step() == greatest, f"{what}: the last step is {look.last_step()}, expected {greatest}")


def _check_server(job: _Job, port: Any, user: str) -> str:
    """What the server shows; the id of the experiment."""
    machines = set(range(len(job.sites)))
    with Client(port, user=user) as client:
        listed = client.json("GET", "/experiments", params={"project": job.sites[0].project})["experiments"]
        job.trial.check(len(listed) == 1, f"{len(listed)} experiments are on the server")
        identity: str = listed[0]["id"]
        base = f"/experiments/{identity}/metrics"
        stats = {name: client.json("GET", f"{base}/{name}/stats") for name in client.metrics(identity)}

        def read(name: str, superseded: bool) -> list[Any]:
            found: list[Any] = []
            start = 0
            while True:
                params = {"startIndex": start, "limit": 37, "superseded": "true" if superseded else "false"}
                page = client.json("GET", f"{base}/{name}/data", params=params)
                found += page["data"]
                if not page["hasMore"]:
                    return found
                start = page["endIndex"] + 1

        _compare(job, "server", machines, stats, read, job.recorded(machines))
        for name, shown in stats.items():
            drawn = client.json("GET", f"{base}/{name}/series", params={"points": 10_000, "field": "value"})["series"]
            found = {index for line in drawn.values() for index in line["index"]}
            hidden = {index for start, end in shown["superseded"] for index in range(start, end)}
            job.trial.check(not found & hidden, f"the series of {name} shows points that are superseded")
            job.trial.check(
                len(found) == shown["totalDataPoints"] - len(hidden), f"the series of {name} has {len(found)} points"
            )
    return identity


@contextlib.contextmanager
def _connected(url: str, user: str) -> Iterator[Any]:
    from ml_dash.sync.remote import Link

    with contextlib.closing(Link(url, login(user))) as link:
        yield link


@contextlib.contextmanager
def _spans_of_few_points() -> Iterator[None]:
    """Trials have few points: spans are so short that it matters, here as in the processes that `warm` prepares."""
    usual = rewinds.SPAN
    rewinds.SPAN = FEW  # type: ignore[misc]
    try:
        yield
    finally:
        rewinds.SPAN = usual  # type: ignore[misc]


@_spans_of_few_points()
def goes_on_from_checkpoints(trial: Trial) -> None:
    """W32. Killed past a checkpoint, resumed, again and again, by 1 to 8 ranks on one machine or two."""
    shared: World = trial.shared
    rng = trial.rng
    sends = trial.index % 4 == 0
    with contextlib.ExitStack() as stack:
        sites = [stack.enter_context(site(trial, f"site{number}")) for number in range(rng.choice((1, 1, 2)))]
        job = _Job(trial, sites, events=[{} for _ in sites])
        url = f"http://127.0.0.1:{shared.server.port}" if sends else ""
        for _ in range(rng.randrange(2, 6)):
            job.run()
            if rng.random() < 0.3:
                _check_machines(job, rng)
            if sends and rng.random() < 0.3:
                _send(job, url, rng)
        _check_machines(job, rng, rebuilds=True)
        if sends:
            _send(job, url, rng)
            _check_server(job, shared.server.port, sites[0].user)
            _brought(job, url)
            _freed(job, url, rng)
            trial.counts["sent"] += 1


def _machines_with_data(job: _Job) -> list[int]:
    return [number for number in range(len(job.sites)) if any(number in where for _, where in job.runs)]


def _home(job: _Job, machine: int) -> Path:
    return job.sites[machine].store / job.sites[0].project / "run"


def _check_machines(job: _Job, rng: random.Random, *, rebuilds: bool = False) -> None:
    from ml_dash.projection.project import catch_up, rebuild
    from ml_dash.reading.located import at

    for machine in _machines_with_data(job):
        home = _home(job, machine)
        if rng.random() < 0.5:
            _check_place(job, f"machine {machine}, before its folder", home, {machine})
        located = at(home)
        assert located is not None
        catch_up(located)
        _check_place(job, f"machine {machine}", home, {machine})
        if rebuilds:
            before = tree(home)
            rebuild(located)
            job.trial.fail(*(f"rebuilt: {text}" for text in tree_difference(before, tree(home))))


def _send(job: _Job, url: str, rng: random.Random) -> None:
    """In any order of arrival."""
    machines = _machines_with_data(job)
    rng.shuffle(machines)
    for machine in machines:
        job.sites[machine].drain(url)


def _brought(job: _Job, url: str) -> None:
    """On a third machine, where nothing was."""
    from ml_dash.reading.located import Located
    from ml_dash.sync.pull.pull import pull
    from ml_dash.sync.remote import ServerSource

    home = job.trial.folder / "third" / job.sites[0].project / "run"
    with _connected(url, job.sites[0].user) as link:
        pull(ServerSource(link), Located(job.sites[0].project, "run", home, home / ".journal"))
    machines = set(range(len(job.sites)))
    _check_place(job, "brought", home, machines)


def _freed(job: _Job, url: str, rng: random.Random) -> None:
    """What the server holds is freed here; the job goes on; what is here is right, or says that it cannot tell."""
    from ml_dash.reading.located import at
    from ml_dash.reading.read import view
    from ml_dash.sync import gc
    from ml_dash.sync.pull.pull import pull
    from ml_dash.sync.remote import ServerHolder, ServerSource

    machine = rng.choice(_machines_with_data(job))
    home = _home(job, machine)
    located = at(home)
    assert located is not None
    job.read(machine)
    before = {one["name"]: view(located).metric_stats(one["name"]) for one in view(located).metrics()}
    keep = rng.random() < 0.5
    with _connected(url, job.sites[0].user) as link:
        gc.collect(located, [ServerHolder(link)], keep_projection=keep)
    after = {one["name"]: view(located).metric_stats(one["name"]) for one in view(located).metrics()}
    job.trial.check(before == after, "statistics are not the same when segments were freed")
    job.run()
    job.recorded(set(_machines_with_data(job)))
    _check_place(job, "freed", home, {machine}, freed=True)
    _send(job, url, rng)
    _check_server(job, job.trial.shared.server.port, job.sites[0].user)
    with _connected(url, job.sites[0].user) as link:
        pull(ServerSource(link), located)
    _check_place(job, "brought back", home, set(range(len(job.sites))))


ROWS: Final = (Row("W32", "goes on from its checkpoints, again and again", 3_000, 24, goes_on_from_checkpoints, world),)
