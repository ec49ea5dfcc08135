"""What rows do at their end: drain what is left, and let the judge compare every experiment of the trial."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from tests.crash import oracle_reader as disk
from tests.faults.harness import Trial

from .asking import Address, Client
from .judge import check_same_as_folder, judge
from .pens import Place, WriterFixture
from .world import Site


def judged(trial: Trial, port: Address, *sites: Site, contents: bool = True, folder: bool = False) -> None:
    """Every experiment of these machines, on the server at `port`; with `folder` also its numbering."""
    groups: dict[tuple[str, str], list[Place]] = defaultdict(list)
    pens: dict[tuple[str, str], list[WriterFixture]] = defaultdict(list)
    for site in sites:
        for place in site.places:
            groups[place.project, place.name].append(place)
        for pen in site.pens:
            pens[pen.place.project, pen.place.name].append(pen)
    for key, places in groups.items():
        trial.fail(*judge(port, places, pens[key], user=sites[0].user, contents=contents))
        trial.counts["events"] += sum(len(pen.issued) for pen in pens[key])
        if folder and len(places) == 1 and not trial.problems:
            trial.fail(*_same_numbers(port, places[0], sites[0].user))


def _same_numbers(port: Address, place: Place, user: str) -> list[str]:
    from ml_dash.projection.projector import catch_up
    from ml_dash.reading.located import at

    found = at(place.journal)
    assert found is not None
    catch_up(found)
    with Client(port, user=user) as client:
        state = client.journal(place.identity.hex())
        assert state is not None
        return check_same_as_folder(client, state["experiment"], found.folder)


def cursor_is_behind(trial: Trial, port: Address, site: Site) -> None:
    """I8, now: whatever the cursors call acknowledged is on the server."""
    acknowledged = site.acknowledged()
    if not acknowledged:
        return
    with Client(port, user=site.user) as client:
        for place in site.places:
            state: dict[str, Any] = client.journal(place.identity.hex()) or {"segments": {}}
            there = {found["file"]: found["length"] for found in state["segments"].values()}
            names = {path.name for path in place.segments.iterdir()}
            for name in names & acknowledged.keys():
                behind = acknowledged[name] <= there.get(name, 0)
                trial.check(behind, f"the cursor says {acknowledged[name]} of {name}, the server has {there.get(name)}")


def has_all(port: Address, *sites: Site) -> bool:
    """Has the server every byte that the pens wrote, and every blob it waits for?"""
    for site in sites:
        with Client(port, user=site.user) as client:
            for place in site.places:
                state = client.journal(place.identity.hex())
                if state is None or state["missing"]:
                    return False
                there = {found["file"]: found["length"] for found in state["segments"].values()}
                for path in place.segments.glob("*.seg"):
                    frames = disk.read_bytes(path.read_bytes()).frames
                    if frames and there.get(path.name, 0) < frames[-1].end:
                        return False
    return True


def events_on_disk(place: Place) -> int:
    """How many events the journal holds, by the independent reader."""
    return len(disk.read_journal(place.journal).events)
