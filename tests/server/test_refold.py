"""Folding anew: what another version of the fold has made is made again at the start, from the raw bytes."""

from __future__ import annotations

import sqlite3
from dataclasses import replace

import pytest

from ml_dash.core import events as ev
from ml_dash.server.engine.services import Server
from ml_dash.server.settings import ServerSettings
from ml_dash.server.stores import Commit, StoreRefused
from ml_dash.server.stores.wiring import open_stores
from tests.server.sending import EXPERIMENT, NS, SegmentBytes, held, send, send_blob
from tests.server.test_contents import code


def made(pair: ServerSettings) -> tuple[Server, SegmentBytes, str]:
    """A server with something of everything, and the name of a body."""
    core = Server(pair.data, pair)
    sheet = SegmentBytes().opens().logs(1200).parameters(lr=0.1)
    for number in range(50):
        sheet.point("loss", value=float(number))
    name, content = sheet.spills(ev.LOG, ["info", "x" * 3000, None])
    send_blob(core, sheet, name, content, body=True)
    blob = sheet.adds_file(b"weights")
    send(core, sheet, 0, sheet.ends[700])
    send(core, sheet, sheet.ends[700])
    send_blob(core, sheet, blob, b"weights")
    core.deaths(NS, sheet.journal, [{"writer": sheet.writer, "segment": sheet.id, "end": len(sheet.data)}])
    other = SegmentBytes(2, journal=2).opens().log("two").closes()
    send(core, other)
    return core, sheet, name


def spoil(pair: ServerSettings) -> None:
    """As an older version of the fold has left it: its own state, its own lines."""
    stores = open_stores(pair)
    documents = stores.documents
    lease = documents.lease(NS, EXPERIMENT)
    assert lease.row is not None
    row = replace(lease.row, version=lease.version, epoch=lease.epoch, fold_version=0, state=b"of long ago")
    documents.commit(lease, Commit(row))
    stores.close()


def begun(pair: ServerSettings) -> Server:
    """A server that is up to date."""
    core = Server(pair.data, pair)
    assert code(lambda: core.experiment(NS, EXPERIMENT)) == "unavailable"
    assert core.bring_up_to_date() == 1
    assert core.bring_up_to_date() == 0
    return core


@pytest.mark.both_ends
def test_a_start_makes_everything_again(pair: ServerSettings) -> None:
    core, sheet, _ = made(pair)
    before = held(core), core.experiment(NS, EXPERIMENT), core.order(NS, EXPERIMENT, 0, 99), core.experiments(NS)
    core.close()
    spoil(pair)
    core = begun(pair)
    after = held(core), core.experiment(NS, EXPERIMENT), core.order(NS, EXPERIMENT, 0, 99), core.experiments(NS)
    assert after == before
    # And goes on from there.
    send(core, sheet.log("on"), sheet.ends[-2])
    assert core.logs(NS, EXPERIMENT, -1, 1)["logs"][0]["sequenceNumber"] == 1202
    core.close()


@pytest.mark.both_ends
def test_a_body_that_was_lost_since_costs_its_event_and_not_the_start(pair: ServerSettings) -> None:
    core, _, name = made(pair)
    events = core.experiment(NS, EXPERIMENT)["counts"]["events"]
    for key in list(core.objects.list("bodies/")):
        assert name in key
        core.objects.delete(key)
    core.close()
    spoil(pair)
    core = begun(pair)
    assert core.experiment(NS, EXPERIMENT)["counts"]["events"] == events - 1
    core.close()


def test_bytes_that_do_not_hold_are_refused_loudly_and_nothing_is_changed(pair: ServerSettings) -> None:
    core, sheet, _ = made(pair)
    core.archiver.wait()
    core.close()
    spoil(pair)
    with sqlite3.connect(pair.data / "server.sqlite") as database:
        held = database.execute("SELECT id, content FROM pages").fetchall()
        (page,) = [
            (page, content) for page, content in held if content.startswith(bytes(sheet.data[: sheet.ends[700]]))
        ]
        content = bytearray(page[1])
        content[sheet.ends[5] + 9 : sheet.ends[5] + 11] = b"\xff\xff"
        database.execute("UPDATE pages SET content=? WHERE id=?", (bytes(content), page[0]))
    database.close()
    core = Server(pair.data, pair)
    for _ in range(2):
        with pytest.raises(StoreRefused, match=f"does not hold at byte {sheet.ends[5]}"):
            core.bring_up_to_date()
        assert code(lambda: core.experiment(NS, EXPERIMENT)) == "unavailable"
    core.close()


def test_a_second_server_on_one_folder_is_refused(pair: ServerSettings) -> None:
    core = Server(pair.data, pair)
    with pytest.raises(StoreRefused, match="another server"):
        Server(pair.data, pair)
    core.close()
    Server(pair.data, pair).close()
