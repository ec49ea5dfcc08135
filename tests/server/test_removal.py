"""A removed experiment: its content goes, what its writers still send is accepted and not shown."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ml_dash.core import events as ev
from ml_dash.core.protocol import Refused
from ml_dash.server.engine.services import Server
from ml_dash.server.settings import ServerSettings
from tests.server.sending import EXPERIMENT, NS, SegmentBytes, assert_refolds, folded, held, send, send_blob


@pytest.fixture
def core(pair: ServerSettings) -> Iterator[Server]:
    server = Server(pair.data, pair)
    yield server
    server.close()


def unknown(call: object) -> None:
    with pytest.raises(Refused) as told:
        call()  # type: ignore[operator]
    assert (told.value.status, told.value.code) == (404, "unknown")


@pytest.fixture
def sheet(core: Server) -> SegmentBytes:
    """One that was sent, and its experiment removed."""
    sheet = SegmentBytes().opens().log("one").point(value=1.0)
    name = sheet.adds_file(b"weights")
    send(core, sheet)
    send_blob(core, sheet, name, b"weights")
    assert core.remove_experiment(NS, EXPERIMENT) == {"experiment": EXPERIMENT, "writers": 1}
    return sheet


@pytest.mark.both_ends
def test_nothing_of_it_is_shown(core: Server, sheet: SegmentBytes) -> None:
    unknown(lambda: core.experiment(NS, EXPERIMENT))
    unknown(lambda: core.logs(NS, EXPERIMENT, 0, 9))
    unknown(lambda: core.find_experiment(NS, "cv", "run"))
    unknown(lambda: core.order(NS, EXPERIMENT, 0, 9))
    unknown(lambda: core.base(NS, EXPERIMENT))
    unknown(lambda: core.remove_experiment(NS, EXPERIMENT))
    unknown(lambda: core.set_parameters(NS, EXPERIMENT, {"a": 1}))
    assert core.experiments(NS)["total"] == 0
    assert core.projects(NS) == []
    assert list(core.objects.list("")) == []
    state = core.journal(NS, sheet.journal)
    assert (state["tombstone"], state["removed"], state["missing"], state["events"]) == (True, [sheet.writer], [], 0)


@pytest.mark.both_ends
def test_its_writers_go_on_unseen(core: Server, sheet: SegmentBytes) -> None:
    end = len(sheet.data)
    name = sheet.log("later").adds_file(b"more")
    assert send(core, sheet, end) == {"length": len(sheet.data), "events": 0, "files": False}
    following = SegmentBytes(n=1, seq=sheet.seq).log("another segment")
    assert send(core, following)["length"] == len(following.data)
    assert send_blob(core, sheet, name, b"more")["complete"]
    death = {"writer": sheet.writer, "segment": sheet.id, "end": len(sheet.data)}
    assert core.deaths(NS, sheet.journal, [death]) == {"deaths": 0}
    unknown(lambda: core.experiment(NS, EXPERIMENT))
    # The bytes are there: what was acknowledged can be proven.
    assert core.segment_bytes(NS, sheet.id, 0, 1 << 20)[0] == sheet.data
    assert_refolds(core)


def test_bodies_of_late_events_are_not_asked_for(core: Server, sheet: SegmentBytes) -> None:
    """Nothing takes them, so a refusal for want of them would never end."""
    name, _ = sheet.spills(ev.LOG, ["info", "x" * 3000, None])
    assert core.blob_state(NS, sheet.journal, name)["complete"]
    assert send(core, sheet, sheet.ends[-2])["length"] == len(sheet.data)
    assert_refolds(core)


@pytest.mark.both_ends
def test_a_new_opening_begins_at_zero(core: Server, sheet: SegmentBytes) -> None:
    new = SegmentBytes(2).opens().log("anew")
    send(core, new)
    assert held(core) == folded((new, new.events))
    assert core.logs(NS, EXPERIMENT, 0, 9)["logs"][0]["sequenceNumber"] == 0
    send(core, sheet.log("late"), sheet.ends[-2])
    assert held(core) == folded((new, new.events))
    records = core.order(NS, EXPERIMENT, 0, 9)["records"]
    assert [record[1] for record in records] == [new.id]
    state = core.journal(NS, sheet.journal)
    assert (state["tombstone"], state["removed"]) == (False, [sheet.writer])
    assert_refolds(core)
    assert core.remove_experiment(NS, EXPERIMENT)["writers"] == 2
    unknown(lambda: core.experiment(NS, EXPERIMENT))
    assert_refolds(core)


@pytest.mark.both_ends
def test_writing_by_rest_begins_at_zero_too(core: Server, sheet: SegmentBytes) -> None:
    core.upsert_experiment(NS, "cv", {"name": "run", "description": "anew"})
    assert core.experiment(NS, EXPERIMENT)["counts"]["logs"] == 0
    core.add_logs(NS, EXPERIMENT, [{"message": "hello"}])
    core.remove_experiment(NS, EXPERIMENT)
    core.upsert_experiment(NS, "cv", {"name": "run"})
    core.add_logs(NS, EXPERIMENT, [{"message": "once more"}])
    assert [entry["message"] for entry in core.logs(NS, EXPERIMENT, 0, 9)["logs"]] == ["once more"]
    assert_refolds(core)


def test_who_follows_it_is_told(core: Server) -> None:
    heard: list[int | None] = []
    core.on_change(lambda _ns, _experiment, events: heard.append(events))
    send(core, SegmentBytes().opens())
    core.remove_experiment(NS, EXPERIMENT)
    assert heard == [1, None]


def test_another_namespace_cannot_remove_it(core: Server) -> None:
    send(core, SegmentBytes().opens())
    unknown(lambda: core.remove_experiment("bob", EXPERIMENT))
    assert core.experiment(NS, EXPERIMENT)["counts"]["events"] == 1
