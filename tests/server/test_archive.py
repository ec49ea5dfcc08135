"""Archiving: the same answers before and after, truthful counts, nothing lost at any step, nothing named twice."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import pytest

from ml_dash.core import events as ev
from ml_dash.server.engine.archive import archive
from ml_dash.server.engine.services import Server
from ml_dash.server.settings import ServerSettings
from tests.server.conftest import environment_of
from tests.server.sending import EXPERIMENT, NS, SegmentBytes, assert_refolds, forget, held, send

POINTS = 23_456


def hurried(pair: ServerSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """What MongoDB leaves for others to finish with or to take over, it leaves no longer than a moment."""
    if pair.mongodb_uri is not None:
        monkeypatch.setattr("ml_dash.server.stores.mongo.GRACE_S", 0.0)
        monkeypatch.setattr("ml_dash.server.stores.mongo.LEASE_S", 0.1)


@pytest.fixture
def core(pair: ServerSettings, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("ml_dash.server.engine.archive._RAW_LEAST", 64 << 10)
    monkeypatch.setattr("ml_dash.server.engine.archive._RAW_BYTES", 256 << 10)
    monkeypatch.setattr("ml_dash.server.engine.archive._REST_BYTES", 8 << 10)
    hurried(pair, monkeypatch)
    opened = Server(pair.data, pair)
    # By hand, so that each test decides when.
    opened._changes.archiver = None
    yield opened
    opened.close()


def recorded(seed: int = 1, points: int = POINTS) -> SegmentBytes:
    """A segment of points of two fields and log entries."""
    rng = random.Random(seed)
    sheet = SegmentBytes().opens()
    for number in range(points):
        sheet.point("loss", value=rng.random(), step=number)
        if number % 2 == 0:
            sheet.log(f"line {number}")
    return sheet


def put(core: Server, sheet: SegmentBytes, pieces: int = 40) -> None:
    """Send a segment in pieces."""
    ends = [*sheet.ends[:: max(1, len(sheet.ends) // pieces)], len(sheet.data)]
    begin = 0
    for end in ends:
        if end > begin:
            send(core, sheet, begin, end)
            begin = end


def answers(core: Server) -> list[Any]:
    """What readers see."""
    found: list[Any] = [core.experiment(NS, EXPERIMENT), core.order(NS, EXPERIMENT, 0, 1000)]
    for start, limit in ((0, 1000), (9_990, 25), (9_999, 2), (19_500, 1000), (-30, 30)):
        found.append(core.metric_page(NS, EXPERIMENT, "loss", start, limit))
        found.append(core.logs(NS, EXPERIMENT, start, limit))
    for points in (10, 100, 1000):
        for low, high in ((None, None), (5, 20_001), (9_000, 11_000), (10_000, 20_000)):
            found.append(core.series(NS, EXPERIMENT, "loss", points=points, start=low, end=high))
    return found


def raw(core: Server, sheet: SegmentBytes) -> bytes:
    """The raw bytes that the server has of a segment."""
    return core.segment_bytes(NS, sheet.id, 0, 1 << 30)[0]


def unnamed(core: Server) -> set[str]:
    """Keys of objects and ids of pages that the newest version does not name."""
    with core.documents.view() as view:
        row = view.experiment(NS, EXPERIMENT)
        assert row is not None
        contents = core._changes.reader.contents(view, NS, row)
        named = {*contents.pages(), *contents.objects(), *(blob.key for blob in view.blobs(NS, EXPERIMENT))}
    return {*core.documents.page_ids(NS, EXPERIMENT), *core.objects.list("")} - named


@pytest.mark.both_ends
def test_answers_are_the_same_and_counts_are_true(core: Server) -> None:
    sheet = recorded()
    put(core, sheet)
    before, bytes_before = answers(core), raw(core, sheet)
    stats = core.metric_stats(NS, EXPERIMENT, "loss")
    assert (stats["bufferedDataPoints"], stats["chunkedDataPoints"], stats["totalChunks"]) == (POINTS, 0, 0)
    assert archive(core._changes, NS, EXPERIMENT) > 3
    assert answers(core) == before
    assert raw(core, sheet) == bytes_before == bytes(sheet.data)
    stats = core.metric_stats(NS, EXPERIMENT, "loss")
    assert (stats["bufferedDataPoints"], stats["chunkedDataPoints"], stats["totalChunks"]) == (3456, 20_000, 2)
    assert unnamed(core) == set()
    # A second time there is nothing to do.
    assert archive(core._changes, NS, EXPERIMENT) == 0
    forget(core)
    send(core, sheet.point("loss", value=1.0, step=POINTS), sheet.ends[-2])
    assert core.metric_page(NS, EXPERIMENT, "loss", -1, 1).startswith(b'{"data":[{"index":23456,')
    assert_refolds(core)
    # What was folded anew lies in pages again, and the old objects are named by nobody.
    assert core.metric_stats(NS, EXPERIMENT, "loss")["totalChunks"] == 0
    assert all(key.startswith("contents/") for key in unnamed(core))


def test_a_rewind_reads_chunks_again(core: Server) -> None:
    sheet = recorded()
    put(core, sheet)
    archive(core._changes, NS, EXPERIMENT)
    other = SegmentBytes(2, journal=2).opens().add(ev.REWIND, {"step": 9_000}, at=1 << 61)
    send(core, other)
    stats = core.metric_stats(NS, EXPERIMENT, "loss")
    assert stats["superseded"] == [[9_000, POINTS]]
    assert stats["series"]["loss"]["count"] == 9_000
    assert_refolds(core)


@pytest.mark.every_pair
def test_the_rest_of_a_complete_segment_is_merged(core: Server) -> None:
    sheet = SegmentBytes().opens()
    send(core, sheet)
    for number in range(100):
        begin = len(sheet.data)
        send(core, sheet.log(f"line {number}"), begin)
    pages = len(list(core.documents.page_ids(NS, EXPERIMENT)))
    assert archive(core._changes, NS, EXPERIMENT) == 0
    begin = len(sheet.data)
    send(core, sheet.closes(), begin)
    assert archive(core._changes, NS, EXPERIMENT) == 1
    assert raw(core, sheet) == bytes(sheet.data)
    assert len(list(core.documents.page_ids(NS, EXPERIMENT))) < pages - 90
    assert unnamed(core) == set()


def test_the_thread_does_it_by_itself(pair: ServerSettings) -> None:
    core = Server(pair.data, pair)
    sheet = recorded()
    put(core, sheet)
    core.archiver.wait()
    stats = core.metric_stats(NS, EXPERIMENT, "loss")
    assert (stats["chunkedDataPoints"], stats["totalChunks"]) == (20_000, 2)
    assert unnamed(core) == set()
    core.close()


@pytest.mark.parametrize("pair", ["mongo+folder"], indirect=True)
def test_servers_that_take_turns_count_together_what_is_to_be_archived(
    pair: ServerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ml_dash.server.engine.changes.ARCHIVED_BYTES", 1 << 10)
    noticed: list[str] = []
    cores = [Server(pair.data, pair) for _ in range(2)]
    try:
        for core in cores:
            core._changes.archiver = lambda _ns, experiment, _series: noticed.append(experiment)
        sheet = SegmentBytes().opens()
        send(cores[0], sheet)
        for number in range(60):
            begin = len(sheet.data)
            send(cores[number % 2], sheet.log(f"line {number}"), begin)
        assert set(noticed) == {EXPERIMENT}
    finally:
        for core in cores:
            core.close()


PROGRAM = """
import sys
from pathlib import Path
from ml_dash.server.engine import archive as module
from ml_dash.server.engine.services import Server
from ml_dash.server.settings import server_settings
module._RAW_LEAST, module._RAW_BYTES, module._REST_BYTES = 64 << 10, 256 << 10, 8 << 10
settings = server_settings(data=Path(sys.argv[1]))
core = Server(settings.data, settings)
core._changes.archiver = None
print(module.archive(core._changes, sys.argv[2], sys.argv[3]), flush=True)
core.close()
"""


@pytest.mark.both_ends
@pytest.mark.parametrize("point", ["archive-stored", "archive-before-commit", "commit-pages", "archive-after-commit"])
def test_it_may_die_at_any_step(pair: ServerSettings, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    hurried(pair, monkeypatch)
    core = Server(pair.data, pair)
    core._changes.archiver = None
    sheet = recorded(points=10_400)
    put(core, sheet)
    before = held(core), answers(core)
    core.close()
    command = [sys.executable, "-c", PROGRAM, str(pair.data), NS, EXPERIMENT]
    killed = subprocess.run(command, env={**environment_of(pair), "ML_DASH_FAIL": f"{point}:1:kill"}, check=False)
    assert killed.returncode == -9
    core = Server(pair.data, pair)
    core._changes.archiver = None
    assert (held(core), answers(core)) == before
    assert raw(core, sheet) == bytes(sheet.data)
    # What the killed one has put is named, or garbage; a second run does what is left.
    archive(core._changes, NS, EXPERIMENT)
    assert core.metric_stats(NS, EXPERIMENT, "loss")["totalChunks"] == 1
    assert (held(core), answers(core)) == before
    # Pages that a crash has left in MongoDB are found by a sweep alone.
    assert pair.mongodb_uri or all(key.startswith("contents/") for key in unnamed(core))
    core.close()
