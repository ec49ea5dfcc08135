"""The contract of `reading.source.Source`: local folders and a server that hold the same give equal answers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import uvicorn

from ml_dash import RemoteClient
from ml_dash.core import events as ev
from ml_dash.core.envelope import as_json
from ml_dash.core.json_values import to_json
from ml_dash.core.names import experiment_id
from ml_dash.errors import InvalidValue, NotFound
from ml_dash.journal.segment import BLOBS, list_segments
from ml_dash.reading.local import LocalSource
from ml_dash.reading.source import Answer, SeriesRequest, Source, decoded
from ml_dash.server.engine.services import Server
from ml_dash.server.engine.source import ServerSource
from ml_dash.server.http.app import make_app
from ml_dash.server.http.auth import Authenticator
from ml_dash.server.serving import listening, url_of
from ml_dash.server.settings import ServerSettings
from tests.journals import JournalFixture, WriterFixture

pytestmark = pytest.mark.leaks("the sources of the module live longer than one test")

NS = "alice"
FULL, OTHER, EMPTY = (experiment_id("cv", name) for name in ("full", "other", "empty"))
NOBODY = "12345"
POINTS = 2600


def _pen(desk: JournalFixture, number: int, **opening: Any) -> WriterFixture:
    """A writer whose ids no other one has: the server tells segments of all experiments apart by them."""
    pen = WriterFixture(desk, number)
    desk.pens.append(pen)
    pen.open(**opening)
    return pen


def _record(store: Path) -> list[JournalFixture]:
    full = JournalFixture(store, "cv", "full")
    pen = _pen(full, 1, description="all of it", tags=["baseline", "big"], folder="/sweeps", metadata={"a": math.nan})
    pen.parameters(lr=0.1, name="NaN", nothing=math.inf, layers=[1, 2])
    for step in range(POINTS):
        value = math.nan if step % 700 == 33 else math.inf if step == 1500 else math.sin(step / 50)
        pen.point("loss", value=value, step=step)
        if step % 4 == 0:
            pen.point("val", acc=step / POINTS, top5=1, step=step, rank=step % 3)
        if step % 2 == 0:
            pen.log(f"Stra\u00dfe {step}", level="error" if step % 100 == 0 else "info", metadata={"step": step})
    pen.rows("plain", *({"value": float(at)} for at in range(70)))
    pen.file(b"content of a model", "model.bin", tags=["best"])
    replaced = pen.file(b"old", "log.txt", prefix="/")
    pen.file(b"new", "log.txt", prefix="/")
    pen.frame(ev.REWIND, {"step": 2000})
    for step in range(2000, 2300):
        pen.point("loss", value=2.0, step=step)
    pen.update_file(replaced, description="was first")
    pen.close()
    other = JournalFixture(store, "cv", "other")
    pen = _pen(other, 2)
    pen.parameters(lr=0.5, name="resnet")
    pen.point("loss", value=1, epoch=3)
    pen.point("loss", value=2, epoch=4)
    pen.close("failed", error={"type": "ValueError", "message": "it \x1b[31mbroke", "traceback": "..."})
    empty = JournalFixture(store, "cv", "empty")
    _pen(empty, 3).close("interrupted")
    return [full, other, empty]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Source]]:
    folder = tmp_path_factory.mktemp("sources")
    desks = _record(folder / "store")
    core = Server(folder / "server")
    for desk in desks:
        journal = desk.identity.journal.hex()
        for _, path in list_segments(desk.journal):
            core.append_segment(NS, journal, path.name, 0, path.read_bytes())
        for blob in sorted((desk.journal / BLOBS).iterdir()):
            core.append_blob(NS, journal, blob.name, 0, blob.stat().st_size, blob.read_bytes(), body=False)
        desk.catch_up()
    local = LocalSource([folder / "store"], cache=folder / "cache")
    with _served(core, folder / "server") as url, RemoteClient(url, user_name=NS) as client:
        yield {"local": local, "server": ServerSource(core, NS), "remote": client.source()}
    local.close()
    core.close()
    for desk in desks:
        desk.let_go()


@contextmanager
def _served(core: Server, data: Path) -> Iterator[str]:
    """The server over HTTP, in a thread of its own."""
    settings = ServerSettings(data, dev=True)
    app = make_app(core, settings, Authenticator(core, settings))
    config = uvicorn.Config(app, ws="none", lifespan="on", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    with listening("127.0.0.1", 0) as listener:
        thread = Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield url_of(listener)
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(params=["local", "server", "remote"])
def source(request: pytest.FixtureRequest, sources: dict[str, Source]) -> Source:
    return sources[request.param]


# -- equal answers ----------------------------------------------------------------------------------------------------

# What says how a store keeps something, or when it heard of it.
OWN = {"heardAt", "version", "journal", "bufferedDataPoints", "chunkedDataPoints", "totalChunks", "indexing"}

ASKED: dict[str, Callable[[Source], Answer]] = {
    "projects": lambda of: of.projects(),
    "experiments": lambda of: of.experiments(),
    "experiments of a query": lambda of: of.experiments(
        where='params.lr > 0.2 or tag:baseline or status = "interrupted"', sort="name:desc",
        columns=["params.lr", "metrics.loss.min", "duration"],
    ),
    "a page of experiments": lambda of: of.experiments(sort="name", start=1, limit=1),
    "fields": lambda of: of.fields("metrics."),
    "a comparison": lambda of: of.comparison([OTHER, NOBODY, FULL], columns=["params.lr", "metrics.loss.max"]),
    "groups": lambda of: of.groups("params.name", columns=["params.lr", "metrics.loss.max"]),
    "an experiment": lambda of: of.experiment(FULL),
    "a failed one": lambda of: of.experiment(OTHER),
    "an experiment as of": lambda of: of.experiment(FULL, as_of=100),
    "parameters": lambda of: of.parameters(FULL),
    "parameters as of": lambda of: of.parameters(FULL, as_of="40"),
    "points as of": lambda of: of.metric_page(FULL, "loss", start=-30, limit=50, superseded=False, as_of=900),
    "statistics as of": lambda of: of.metric_stats(FULL, "val.acc", as_of=1200),
    "logs as of": lambda of: of.logs(FULL, start=-5, limit=10, as_of=1500),
    "errors as of": lambda of: of.logs(FULL, levels=["error"], limit=5, as_of=1500),
    "files as of": lambda of: of.files(FULL, as_of=10**9),
    "metrics": lambda of: of.metrics(FULL),
    "metrics by name": lambda of: of.metrics(FULL, q="A", limit=1, start=1),
    "a metric's statistics": lambda of: of.metric_stats(FULL, "val.acc"),
    "a page of points": lambda of: of.metric_page(FULL, "loss", start=1490, limit=20),
    "the last current points": lambda of: of.metric_page(FULL, "loss", start=-310, limit=20, superseded=False),
    "no points": lambda of: of.metric_page(FULL, "nothing"),
    "a sample": lambda of: of.sampled(FULL, "val", points=40),
    "a sample of a field": lambda of: of.sampled(FULL, "val.acc", start=-200, end=-10, points=10),
    "logs": lambda of: of.logs(FULL, start=-5, limit=3),
    "logs of a level": lambda of: of.logs(FULL, levels=["error"], limit=7),
    "logs with a text": lambda of: of.logs(FULL, q="STRASSE 1", start=900, limit=5),
    "logs by expression": lambda of: of.logs(FULL, regex="[02]8$", start=10, limit=4),
    "files": lambda of: of.files(FULL),
    "files with a tag": lambda of: of.files(FULL, tags=["best"], prefix="models"),
    "history": lambda of: of.history(FULL),
}


@pytest.mark.parametrize("asked", ASKED)
def test_answers_are_equal(sources: dict[str, Source], asked: str):
    local, server, remote = (_plain(decoded(ASKED[asked](sources[name]))) for name in ("local", "server", "remote"))
    for answer in (local, server, remote):
        for one in answer.get("experiments", ()):
            # A list may count more than what is in the facts.
            one["counts"] = {name: one["counts"][name] for name in ("events", "points", "logs", "files")}
    assert local == server == remote


def _plain(answer: Any) -> Any:
    """An answer as JSON, without what each source has for itself."""
    if isinstance(answer, dict):
        return {key: _plain(value) for key, value in answer.items() if key not in OWN}
    if isinstance(answer, list | tuple):
        return [_plain(item) for item in answer]
    # A source may leave NaN to who encodes its answer.
    return to_json(answer)


DRAWN = {
    "all": SeriesRequest((FULL, OTHER, EMPTY), "loss"),
    "points": SeriesRequest((FULL,), "loss", points=10_000),
    "few buckets": SeriesRequest((FULL,), "loss", points=20),
    "one bucket": SeriesRequest((FULL,), "loss", points=1),
    "superseded": SeriesRequest((FULL,), "loss", points=100, superseded=True),
    "a range": SeriesRequest((FULL,), "loss", points=10_000, low=100, high=140.5),
    "a wide range": SeriesRequest((FULL,), "loss", points=30, low=200, high=1900),
    "an empty range": SeriesRequest((FULL,), "loss", low=1e9),
    "by index": SeriesRequest((FULL, OTHER), "loss", points=100, x="index"),
    "by epoch": SeriesRequest((FULL, OTHER), "loss", points=100, x="epoch"),
    "relative": SeriesRequest((FULL, OTHER), "loss", points=100, x="relative"),
    "a relative range": SeriesRequest((FULL,), "loss", points=100, x="relative", low=1, high=2),
    "wall": SeriesRequest((FULL, OTHER), "loss", points=100, x="wall"),
    "without steps": SeriesRequest((FULL,), "plain", points=100),
    "a field": SeriesRequest((FULL, OTHER), "val.acc", points=50),
    "split": SeriesRequest((FULL,), "val.acc", points=50, split="rank"),
    "over a metric": SeriesRequest((FULL,), "loss", points=10_000, x="metric:val.acc"),
    "as of": SeriesRequest((FULL,), "loss", points=10_000, as_of=1000),
    "a range of few buckets as of": SeriesRequest((FULL,), "loss", points=7, low=10, high=300, as_of=800),
    "nobody": SeriesRequest((NOBODY, OTHER), "val.acc"),
}


@pytest.mark.parametrize("asked", DRAWN)
def test_series_are_equal(sources: dict[str, Source], asked: str):
    pages = [sources[name].compare_series(DRAWN[asked]) for name in ("local", "server", "remote")]
    local, server, remote = (json.loads(as_json(page)) for page in pages)
    assert local == server == remote


# -- what they are ----------------------------------------------------------------------------------------------------


def test_a_list_has_what_was_recorded(source: Source):
    page = decoded(source.experiments(where="tag:baseline", columns=["params.lr", "params.nothing", "metrics.val.acc"]))
    (one,) = page["experiments"]
    assert (one["id"], one["name"], one["status"], one["folder"]) == (FULL, "full", "completed", "/sweeps")
    assert one["values"] == {
        "params.lr": 0.1, "params.nothing": "Infinity", "metrics.val.acc": 1996 / POINTS
    }  # fmt: skip
    assert page["total"] == 1


def test_a_series_has_every_point_or_says_so(source: Source):
    (whole,) = source.compare_series(SeriesRequest((FULL,), "loss", points=10_000)).series
    assert (whole.shown + len(whole.marks), whole.total, whole.superseded) == (2300, 2300, 600)
    assert [mark.value for mark in whole.marks] == ["NaN", "NaN", "NaN", "Infinity"]
    assert whole.x[-1] == 2299
    (short,) = source.compare_series(SeriesRequest((FULL,), "loss", points=20)).series
    assert (short.total, short.shown <= 20) == (2300, True)
    assert (min(short.low), max(short.high)) == (min(whole.low), max(whole.high))


def test_a_file_is_read_in_part(source: Source):
    (record,) = decoded(source.files(FULL, tags=["best"]))["files"]
    content = source.open_file(FULL, record["id"], 3, 10)
    assert b"".join(content.blocks) == b"tent of"
    assert (content.size_bytes, content.filename, content.checksum) == (18, "model.bin", record["checksum"])
    assert decoded(source.file(FULL, record["id"]))["sizeBytes"] == 18


def test_events_are_counted(source: Source):
    found = source.events([FULL, OTHER])
    assert found == {FULL: decoded(source.experiment(FULL))["counts"]["events"], OTHER: 5}
    assert source.events().keys() >= {FULL, OTHER, EMPTY}


def test_what_is_not_there_is_not_found(source: Source):
    for ask in (
        lambda: source.experiment(NOBODY), lambda: source.parameters(NOBODY), lambda: source.logs(NOBODY),
        lambda: source.metrics(NOBODY), lambda: source.metric_stats(FULL, "nothing"), lambda: source.history(NOBODY),
        lambda: source.files(NOBODY), lambda: source.file(FULL, NOBODY), lambda: source.open_file(FULL, NOBODY),
    ):  # fmt: skip
        with pytest.raises(Exception) as raised:  # noqa: PT011 - which one is checked below
            ask()
        assert isinstance(raised.value, NotFound) or getattr(raised.value, "status", None) == 404


def test_a_wrong_query_says_where(source: Source):
    with pytest.raises(InvalidValue, match=r"\^"):
        source.experiments(where="status = ")
    with pytest.raises(InvalidValue):
        source.experiments(sort="nothing:up")
