"""Rows P9 and P10: journals that mean harm, and journals that are very large."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from tests.faults.harness import ROOT, Row, Trial, remove_tree

from . import oracle_reader as disk
from .compare import Tree, tree
from .hostile import write_journal

LONG: Final = bool(os.environ.get("ML_DASH_TEST_LONG"))


def hostile_journal(trial: Trial) -> None:
    """P9. Whatever a journal with right checksums says: nothing outside its folder is made, changed, or removed."""
    from ml_dash.errors import MLDashError
    from ml_dash.projection.project import catch_up, rebuild
    from ml_dash.reading.located import at
    from ml_dash.reading.read import find, view
    from ml_dash.reading.verify import verify

    folder = trial.folder
    home = folder / "deep" / "er" / "store" / "project" / "name"
    home.mkdir(parents=True)
    write_journal(home, trial.rng, project="project", name="name")
    (folder / "bait").write_text("bait")
    before = _outside(folder)
    place = at(home)
    trial.check(place is not None, "the journal is not found")
    if place is None:
        return
    # Where a journal's own words lead outside, readers may refuse; what they must not do is to follow.
    for step in (
        catch_up,
        rebuild,
        verify,
        lambda located: view(located).record(),
        lambda _: find(folder / "deep" / "er"),
    ):
        try:
            step(place)
        except (MLDashError, OSError) as error:
            trial.counts[f"refused with {type(error).__name__}"] += 1
    after = _outside(folder)
    changed = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    trial.check(not changed, f"outside its folder: {changed[:5]}")
    links = [path for path in home.rglob("*") if path.is_symlink()]
    trial.check(not links, f"links were made: {links[:3]}")


def _outside(folder: Path) -> Tree:
    """What is not the experiment's own: it may be in the store, or beside a store that is kept in the root."""
    own = ("deep/er/store/project/name", "deep/er/project/name")
    return {key: value for key, value in tree(folder).items() if not key.startswith(own)}


_SCALE: Final = """
import resource, sys, time
from pathlib import Path
from ml_dash.projection.project import catch_up
from ml_dash.reading.read import at
from ml_dash.reading.verify import verify
place = at(Path(sys.argv[1]))
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
begun = time.process_time()
catch_up(place)
report = verify(place)
assert report.ok, report.findings[:3]
print(report.events, time.process_time() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used)
"""


def _many_events(home: Path, count: int) -> None:
    """A journal of that many points, written by the published format."""
    path = home / ".journal"
    (path / "segments").mkdir(parents=True)
    (path / "blobs").mkdir()
    writer, created, seq = b"W" * 16, 1_700_000_000_000_000_000, 0
    per_segment = 500_000
    for n in range(-(-count // per_segment)):
        header = disk.make_header(writer, segment=n.to_bytes(16, "big"), n=n, first_seq=seq, created_ns=created)
        with (path / "segments" / disk.segment_name(writer, n=n, created_ns=created)).open("wb") as file:
            file.write(header)
            if n == 0:
                body = {"project": "p", "name": "e", "folderPath": "p/e", "journalPath": ".journal"}
                file.write(disk.make_frame(header, 0, disk.OPEN, created, body))
                seq = 1
            for _ in range(min(per_segment, count - n * per_segment)):
                file.write(
                    disk.make_frame(
                        header, seq, disk.POINT, created + seq, [f"m{seq % 8}", {"value": seq * 0.5, "step": seq}]
                    )
                )
                seq += 1


def very_many_events(trial: Trial) -> None:
    """P10. Twice the events cost about twice the time, and no more memory."""
    small = 2_500_000 if LONG else 40_000
    figures = []
    for count in (small, 4 * small):
        home = trial.folder / f"store-{count}" / "p" / "e"
        _many_events(home, count)
        made = subprocess.run(
            [sys.executable, "-c", _SCALE, str(home)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=3_000,
            check=False,
        )
        trial.check(made.returncode == 0, made.stderr[-600:])
        if made.returncode:
            return
        figure = made.stdout.split()
        figures.append((int(figure[0]), float(figure[1]), int(figure[2])))
        remove_tree(home)
    (_, fast, _), (events, slow, more) = figures
    trial.counts["events"] += events
    trial.counts["ms per 1,000 events"] += int(slow / events * 1e6)
    trial.check(slow < 4 * fast * 1.8 + 0.5, f"4 times the events took {slow / fast:.1f} times as long")
    trial.check(more < 120_000, f"memory grew by {more:,} KB")


def very_many_experiments(trial: Trial) -> None:
    """P10. A store of very many experiments is listed in time that grows with their number."""
    from ml_dash.reading.read import find

    small = 10_000 if LONG else 300
    figures = []
    for count in (small, 4 * small):
        store = trial.folder / f"store-{count}"
        for number in range(count):
            home = store / f"p{number % 20}" / f"e{number}"
            write_journal(home, trial.rng, project=f"p{number % 20}", name=f"e{number}", events=1)
        begun = time.process_time()
        found = find(store)
        figures.append(time.process_time() - begun)
        trial.check(len(found) == count, f"{len(found)} of {count} experiments are found")
    trial.check(
        figures[1] < 4 * figures[0] * 2 + 0.5, f"4 times as many took {figures[1] / figures[0]:.1f} times as long"
    )
    trial.counts["experiments"] += 4 * small
    trial.counts["largest resident KB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def very_large(trial: Trial) -> None:
    """P10. Events in the first trials, experiments in the last."""
    (very_many_experiments if trial.index == 4 else very_many_events)(trial)


ROWS = (
    Row("P9", "journals that mean harm", 20_000, 200, hostile_journal),
    Row("P10", "very many events and experiments", 5, 1, very_large),
)
