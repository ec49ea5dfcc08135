"""Reads: pages put together are the whole, negative starts count from the end, filters keep the numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml_dash.core.protocol import Refused
from ml_dash.errors import InvalidValue
from ml_dash.reading.log_search import wanted
from ml_dash.server.engine.services import Server
from tests.server.sending import EXPERIMENT, NS, SegmentBytes, send

COUNT = 2345


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("core"))
    sheet = SegmentBytes().opens()
    for number in range(COUNT):
        sheet.log(f"Zeile {number} Ärger" if number % 500 == 7 else f"line {number}")
        sheet.point(value=float(number))
    send(server, sheet)
    for number in range(25):
        other = SegmentBytes(100 + number, journal=100 + number, name=f"n{number:02}", project=f"p{number % 2}").opens()
        send(server, other)
    yield server
    server.close()


pytestmark = pytest.mark.leaks("the server of the module lives longer than one test")


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(-COUNT - 50, COUNT + 50), limit=st.integers(1, 1500))
def test_pages_are_what_a_slice_is(core: Server, start: int, limit: int) -> None:
    begin = max(0, COUNT + start) if start < 0 else start
    expected = list(range(COUNT))[begin : begin + limit]
    logs = core.logs(NS, EXPERIMENT, start, limit)
    page = json.loads(core.metric_page(NS, EXPERIMENT, "loss", start, limit))
    assert [entry["sequenceNumber"] for entry in logs["logs"]] == expected
    assert [(point["index"], point["data"]["value"]) for point in page["data"]] == [(n, float(n)) for n in expected]
    for found in (logs, page):
        where = found["startIndex"], found["endIndex"], found["total"]
        assert where == (begin, begin + len(expected) - 1, len(expected))
        assert found["hasMore"] == (bool(expected) and expected[-1] < COUNT - 1)
    assert page["totalDataPoints"] == COUNT


def test_pages_of_long_lines_are_shorter(core: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ml_dash.server.engine.queries._PAGE_BYTES", 2_000)
    found: list[int] = []
    more = True
    while more and len(found) < 100:
        page = core.logs(NS, EXPERIMENT, len(found), 1000)
        assert 0 < page["total"] < 50
        found += [entry["sequenceNumber"] for entry in page["logs"]]
        more = page["hasMore"]
    assert found == list(range(len(found)))
    points = json.loads(core.metric_page(NS, EXPERIMENT, "loss", 0, 1000))
    assert 0 < points["total"] < 50
    assert points["hasMore"]


@pytest.mark.parametrize("start", [10**15, -(10**15), 1 << 63, 1 << 70])
def test_far_places_are_answered(core: Server, start: int) -> None:
    assert core.logs(NS, EXPERIMENT, start, 1)["total"] in (0, 1)
    assert json.loads(core.metric_page(NS, EXPERIMENT, "loss", start, 1))["total"] in (0, 1)


def test_a_filter_keeps_the_numbers_and_says_where_to_go_on(core: Server) -> None:
    expected = [number for number in range(COUNT) if number % 500 == 7]
    found: list[int] = []
    start, more = 0, True
    while more:
        page = core.logs(NS, EXPERIMENT, start, 2, wanted((), "äRGER", None))
        found += [entry["sequenceNumber"] for entry in page["logs"]]
        start, more = page["endIndex"] + 1, page["hasMore"]
    assert found == expected
    assert core.logs(NS, EXPERIMENT, 0, 10, wanted(("error",), None, None))["logs"] == []
    assert len(core.logs(NS, EXPERIMENT, 0, 10, wanted(("info",), None, None))["logs"]) == 10


def searched(core: Server, start: int = 0, limit: int = 1000) -> tuple[list[int], list[int]]:
    """The numbers that a search finds by going on while there is more, and how many were examined for each page."""
    found: list[int] = []
    examined: list[int] = []
    more = True
    while more:
        page = core.logs(NS, EXPERIMENT, start, limit, wanted((), "äRGER", None))
        found += [entry["sequenceNumber"] for entry in page["logs"]]
        examined.append(page["endIndex"] + 1 - start)
        start, more = page["endIndex"] + 1, page["hasMore"]
    return found, examined


MATCHING = [number for number in range(COUNT) if number % 500 == 7]


def test_a_search_from_the_end_gives_the_last_that_match(core: Server) -> None:
    page = core.logs(NS, EXPERIMENT, -2, 10, wanted((), "äRGER", None))
    assert [entry["sequenceNumber"] for entry in page["logs"]] == MATCHING[-2:]
    page = core.logs(NS, EXPERIMENT, -3, 10, wanted(("info",), None, None))
    assert [entry["sequenceNumber"] for entry in page["logs"]] == [COUNT - 3, COUNT - 2, COUNT - 1]
    assert (page["matching"], page["totalEntries"], page["hasMore"]) == (COUNT, COUNT, False)
    assert core.logs(NS, EXPERIMENT, -3, 10, wanted(("error",), None, None))["logs"] == []


def test_a_search_ends_when_its_time_is_over_and_has_examined_a_block_at_least(
    core: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ml_dash.server.engine.log_search.SEARCH_S", 0.0)
    page = core.logs(NS, EXPERIMENT, 8, 10, wanted((), "äRGER", None))
    assert (page["endIndex"], page["hasMore"]) == (999, True)
    page = core.logs(NS, EXPERIMENT, COUNT - 1, 10, wanted((), "äRGER", None))
    assert (page["logs"], page["endIndex"], page["hasMore"]) == ([], COUNT - 1, False)
    assert searched(core)[0] == MATCHING
    assert searched(core, 2000) == ([2007], [COUNT - 2000])


def test_a_search_answers_with_so_many_bytes_and_the_next_page_has_the_rest(
    core: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ml_dash.server.engine.log_search._PAGE_BYTES", 1)
    found, examined = searched(core)
    assert found == MATCHING
    assert len(examined) == 3
    page = core.logs(NS, EXPERIMENT, 0, 10, wanted(("info",), None, None))
    assert ([entry["sequenceNumber"] for entry in page["logs"]], page["endIndex"], page["hasMore"]) == ([0], 0, True)
    page = core.logs(NS, EXPERIMENT, -10, 10, wanted(("info",), None, None))
    assert [entry["sequenceNumber"] for entry in page["logs"]] == [COUNT - 1]


def test_an_expression_and_levels_and_a_text_all_count(core: Server) -> None:
    page = core.logs(NS, EXPERIMENT, 0, 1000, wanted(("info", "warn"), "ÄRGER", "^.{3,}$"))
    assert [entry["sequenceNumber"] for entry in page["logs"]] == MATCHING
    assert core.logs(NS, EXPERIMENT, 0, 1000, wanted((), None, "^nothing of this kind$"))["logs"] == []
    with pytest.raises(InvalidValue, match="regex"):
        wanted((), None, "(a+)+")


def test_a_page_begins_at_a_time(core: Server) -> None:
    for number in (0, 1, 999, 1000, 1500, COUNT - 1):
        at = core.logs(NS, EXPERIMENT, number, 1)["logs"][0]["timestamp"]
        page = core.logs(NS, EXPERIMENT, 0, 5, at=at)
        assert page["logs"][0]["timestamp"] == at
        before = page["startIndex"] - 1
        assert before < 0 or core.logs(NS, EXPERIMENT, before, 1)["logs"][0]["timestamp"] < at
    assert core.logs(NS, EXPERIMENT, 0, 5, at="2099-01-01")["logs"] == []


@pytest.mark.parametrize("sort", ["updated", "created", "name", "points"])
def test_pages_of_experiments_are_the_whole_list(core: Server, sort: str) -> None:
    names: list[str] = []
    after: str | None = None
    while True:
        page: dict[str, Any] = core.experiments(NS, sort=sort, limit=4, after=after)
        assert page["total"] == 26
        names += [row["name"] for row in page["experiments"]]
        after = page["next"]
        if after is None:
            break
    assert len(names) == len(set(names)) == 26
    if sort == "name":
        assert names == sorted(names)
    if sort == "points":
        assert names[0] == "run"


def test_experiments_are_filtered(core: Server) -> None:
    assert core.experiments(NS, project="p1")["total"] == 12
    assert core.experiments(NS, q="P1/N0")["total"] == 5
    assert core.experiments(NS, status="running")["total"] == 26
    assert core.experiments("bob")["total"] == 0
    assert [(row["name"], row["experiments"]) for row in core.projects(NS)] == [("cv", 1), ("p0", 13), ("p1", 12)]


@pytest.mark.parametrize("after", ["", "x", "1", "1:", ":1", "1:x", "1:-5", "1:" + "9" * 30, "'; DROP TABLE listed"])
def test_what_is_no_place_is_refused(core: Server, after: str) -> None:
    with pytest.raises(Refused) as told:
        core.experiments(NS, after=after)
    assert told.value.code == "malformed"


@pytest.mark.parametrize("after", ["1:0", "0:9999999999999999999", "99999999999999999999999999:5"])
def test_a_place_that_nobody_was_at_is_a_place(core: Server, after: str) -> None:
    assert core.experiments(NS, after=after)["total"] == 26


def test_what_is_not_there_is_unknown(core: Server) -> None:
    for ask in (
        lambda: core.experiment(NS, "1"),
        lambda: core.experiment("bob", EXPERIMENT),
        lambda: core.logs("bob", EXPERIMENT, 0, 1),
        lambda: core.metric_stats(NS, EXPERIMENT, "nothing"),
        lambda: core.file_record(NS, EXPERIMENT, "1"),
        lambda: core.segment_bytes("bob", SegmentBytes().id, 0, 1),
        lambda: core.order("bob", EXPERIMENT, 0, 1),
    ):
        with pytest.raises(Refused) as told:
            ask()
        assert (told.value.status, told.value.code) == (404, "unknown")


def test_figures_of_a_metric(core: Server) -> None:
    stats = core.metric_stats(NS, EXPERIMENT, "loss")
    assert stats["totalDataPoints"] == COUNT
    assert stats["series"]["loss"]["max"] == COUNT - 1
    (summary,) = json.loads(core.metrics(NS, EXPERIMENT))["metrics"]
    assert summary["series"] == stats["series"]
