"""The reading calls over HTTP: lists by query, charts of many runs, changes, labels, previews, and who may change."""

from __future__ import annotations

import gzip
import json
import struct
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ml_dash.server.settings import ServerSettings
from ml_dash.sync.login import development_token
from tests.running import Server
from tests.server.conftest import Web, environment_of
from tests.server.test_live import events_of, listeners

BINARY = "application/vnd.ml-dash.series"
HEADER = {"X-ML-Dash-Protocol": "1"}


@pytest.fixture
def both(pair: ServerSettings) -> Iterator[Web]:
    """Alice at a server on stores that nobody has used."""
    running = Server(pair.data, environment_of(pair)).start()
    web = Web(running.url, development_token("alice"))
    yield web
    web.session.close()
    running.end()


@pytest.fixture
def fresh(server: Server, request: pytest.FixtureRequest) -> Iterator[Web]:
    """A user of whom the server has nothing."""
    web = Web(server.url, development_token(f"reader-{request.node.name[:40]}"))
    yield web
    web.session.close()


def runs(web: Web, count: int = 6) -> list[str]:
    """Experiments with a parameter and a metric each."""
    ids = []
    for number in range(count):
        identity = web.experiment(f"r{number}", "sweep", tags=["even"] if number % 2 == 0 else ["odd"])
        web.post(f"/experiments/{identity}/parameters", {"data": {"lr": 0.1 * (number + 1), "opt": "adam"}})
        points = [{"value": 1 / (step + 1) + number, "step": step} for step in range(30)]
        web.post(f"/experiments/{identity}/metrics/loss/append-batch", {"dataPoints": points})
        ids.append(identity)
    return ids


def names(page: dict[str, Any]) -> list[str]:
    return [one["name"] for one in page["experiments"]]


# -- lists ------------------------------------------------------------------------------------------------------------


@pytest.mark.both_ends
def test_a_list_is_by_query_order_and_columns_and_knows_of_every_change(both: Web) -> None:
    ids = runs(both)
    page = both.get("/experiments", where="params.lr > 0.35", sort="metrics.loss.min:desc", columns="params.lr,points")
    assert (names(page), page["total"], page["next"]) == (["r5", "r4", "r3"], 3, None)
    assert page["experiments"][0]["values"] == {"params.lr": pytest.approx(0.6), "points": 30}
    first = both.get("/experiments", sort="name", startIndex=0, limit=4)
    assert (names(first), first["total"]) == (["r0", "r1", "r2", "r3"], 6)
    assert names(both.get("/experiments", sort="name", after=first["next"], limit=4)) == ["r4", "r5"]
    # The older parameters are conditions beside a query.
    assert names(both.get("/experiments", where="params.lr > 0.15", tag="even", sort="name")) == ["r2", "r4"]
    assert names(both.get("/experiments", where="loss_is_no_word", q="R2")) == []
    both.post(f"/experiments/{ids[0]}/parameters", {"data": {"lr": 9.0}})
    assert names(both.get("/experiments", where="params.lr = 9")) == ["r0"]
    both.ask("PATCH", f"/experiments/{ids[1]}", json={"archived": True})
    assert both.get("/experiments", startIndex=0)["total"] == 5
    assert names(both.get("/experiments", where="archived = true")) == ["r1"]
    assert both.ask("DELETE", f"/experiments/{ids[2]}").json() == {"id": ids[2], "removed": True}
    assert names(both.get("/experiments", startIndex=0, sort="name")) == ["r0", "r3", "r4", "r5"]
    assert [one["running"] for one in both.get("/projects")["projects"]] == [5]
    assert names(both.get("/running", limit=2)) == ["r0", "r5"]


def test_fields_and_groups_say_what_there_is(fresh: Web) -> None:
    runs(fresh)
    fields = {one["name"]: one for one in fresh.get("/fields", prefix="params.")["fields"]}
    assert fields["params.opt"] == {"name": "params.opt", "kind": "text", "runs": 6, "values": ["adam"]}
    assert fields["params.lr"]["kind"] == "number"
    found = fresh.get("/groups", by="tags", columns="metrics.loss.first")
    assert found["total"] == 2
    assert {one["value"]: one["values"]["metrics.loss.first"]["mean"] for one in found["groups"]} == {
        "even": 3.0, "odd": 4.0,
    }  # fmt: skip


def test_a_wrong_query_says_where_and_what_would_be_right(fresh: Web) -> None:
    body = fresh.refused("GET", "/experiments", 400, "query", params={"where": "staus = failed"})
    assert body["error"]["at"] == 0
    assert "^^^^^" in body["error"]["message"]
    assert "status" in body["error"]["hint"]
    fresh.refused("GET", "/experiments?startIndex=0&columns=nothing", 400, "query")
    fresh.refused("GET", "/groups", 400, "malformed")


# -- charts -----------------------------------------------------------------------------------------------------------


@pytest.mark.both_ends
def test_series_of_many_runs_come_as_json_and_as_numbers(both: Web) -> None:
    ids = runs(both, 3)
    path = f"/series?metric=loss&points=10&experiment={ids[0]}&experiment={ids[2]}&experiment=12345"
    page = both.get(path)
    assert (page["metric"], page["x"], page["missing"]) == ("loss", "step", ["12345"])
    assert [(one["experiment"], one["shown"], one["total"]) for one in page["series"]] == [
        (ids[0], 10, 30), (ids[2], 10, 30),
    ]  # fmt: skip
    assert (page["series"][0]["max"][0], page["series"][0]["min"][-1]) == (1.0, 1 / 30)
    answer = both.ask("GET", path, headers={"Accept": BINARY})
    assert answer.headers["Content-Type"] == BINARY
    (length,) = struct.unpack_from("<I", answer.content)
    head = json.loads(answer.content[4 : 4 + length])
    numbers = array("d", answer.content[4 + length :])
    for one, same in zip(head["series"], page["series"], strict=True):
        for name in ("index", "x", "min", "max"):
            place = one[name]
            assert list(numbers[place["offset"] : place["offset"] + place["count"]]) == same[name]
    short = both.get(path, **{"from": 4, "to": 6.5})["series"][0]
    assert (short["x"], short["min"]) == ([4, 5, 6], [1 / 5, 1 / 6, 1 / 7])
    for wrong in ("x=banana", "x=metric:", "from=nan", "points=0", "experiment=x"):
        both.refused("GET", f"/series?metric=loss&{wrong}", 400, "malformed")


def test_metrics_are_found_by_name_and_paged(fresh: Web) -> None:
    identity = fresh.experiment("wide")
    for name in ("train/loss", "train/acc", "val/loss"):
        fresh.post(f"/experiments/{identity}/metrics/{name.replace('/', '%2F')}/append", {"data": {"value": 1.0}})
    path = f"/experiments/{identity}/metrics"
    assert [one["name"] for one in fresh.get(path, q="LOSS")["metrics"]] == ["train/loss", "val/loss"]
    page = fresh.get(path, prefix="train/", startIndex=1, limit=1)
    assert ([one["name"] for one in page["metrics"]], page["total"]) == (["train/loss"], 2)


# -- changes ----------------------------------------------------------------------------------------------------------


@contextmanager
def feed(web: Web, *ids: str) -> Iterator[Iterator[tuple[str, dict[str, Any]]]]:
    with web.session.get(f"{web.url}/changes", params={"experiment": ids}, stream=True, timeout=20) as stream:
        assert stream.status_code == 200
        yield events_of(stream.iter_lines(chunk_size=1, decode_unicode=True))


@pytest.mark.both_ends
def test_one_stream_tells_of_many_experiments(both: Web) -> None:
    ids = runs(both, 3)
    other = Web(both.url, str(both.session.headers["Authorization"])[7:])
    with feed(both, *ids[:2]) as news:
        kind, known = next(news)
        assert (kind, set(known["experiments"])) == ("change", set(ids[:2]))
        other.post(f"/experiments/{ids[2]}/logs", {"logs": [{"message": "nobody follows this"}]})
        other.post(f"/experiments/{ids[1]}/logs", {"logs": [{"message": "news"}]})
        assert next(news) == ("change", {"experiments": {ids[1]: known["experiments"][ids[1]] + 1}})
        other.ask("DELETE", f"/experiments/{ids[0]}")
        assert next(news) == ("removed", {"experiments": [ids[0]]})
    with feed(both) as news:
        identity = other.experiment("begun", "sweep")
        kind, changed = next(news)
        assert (kind, list(changed["experiments"])) == ("change", [identity])
    other.session.close()


def test_another_user_hears_nothing_and_who_has_gone_is_forgotten(web: Web, server: Server) -> None:
    mallory = Web(server.url, development_token("mallory"))
    identity = web.experiment("secret-feed")
    with feed(mallory) as all_of_mallory, feed(mallory, identity) as one:
        web.post(f"/experiments/{identity}/logs", {"logs": [{"message": "m"}]})
        mine = mallory.experiment("mine")
        assert list(next(all_of_mallory)[1]["experiments"]) == [mine]
        # It is not there for her: she is told what she would be of any other id.
        assert next(one) == ("removed", {"experiments": [identity]})
    mallory.session.close()
    deadline = 200
    while listeners(web) and deadline:
        deadline -= 1
    assert deadline


# -- changing things --------------------------------------------------------------------------------------------------


def test_labels_are_changed_and_taken_away(fresh: Web) -> None:
    identity = fresh.experiment("labels", description="old", tags=["a"])
    changes = {"title": "new name", "notes": "# why", "tags": ["b"], "folder": "/f"}
    record = fresh.ask("PATCH", f"/experiments/{identity}", json=changes).json()
    assert {key: record[key] for key in changes} == changes
    assert (record["name"], record["description"]) == ("labels", "old")
    record = fresh.ask("PATCH", f"/experiments/{identity}", json={"description": None, "notes": None}).json()
    assert (record["description"], record["notes"], record["title"]) == (None, None, "new name")
    assert names(fresh.get("/experiments", where='name = "new name"')) == ["labels"]
    fresh.refused("PATCH", f"/experiments/{identity}", 400, "malformed", json={"title": "../up"})
    fresh.refused("PATCH", f"/experiments/{identity}", 400, "malformed", json={"tags": "b"})


def test_a_cookie_changes_things_only_beside_the_header_that_no_other_site_can_send(fresh: Web) -> None:
    identity = fresh.experiment("cookie")
    token = str(fresh.session.headers.pop("Authorization"))[7:]
    fresh.session.cookies.set("ml_dash_token", token)
    path = f"/experiments/{identity}"
    assert fresh.get(path)["name"] == "cookie"
    fresh.refused("PATCH", path, 401, "unauthorised", json={"notes": "forged"})
    fresh.refused("DELETE", path, 401, "unauthorised")
    assert fresh.ask("PATCH", path, json={"notes": "mine"}, headers=HEADER).json()["notes"] == "mine"
    fresh.ask("DELETE", path, headers=HEADER)
    fresh.refused("GET", path, 404, "unknown")


# -- answers ----------------------------------------------------------------------------------------------------------


def test_what_is_shown_in_place_never_runs(fresh: Web) -> None:
    identity = fresh.experiment("hostile")
    page = b"<script>parent.document.title = 'taken'</script>"
    for name, kind in (("x.html", "text/plain; charset=utf-8"), ("x.svg", None), ("x.png", "image/png")):
        made = fresh.ask("POST", f"/experiments/{identity}/files", files={"file": (name, page)}).json()
        found = fresh.ask(
            "GET", f"/experiments/{identity}/files/{made['id']}/content", headers={"Range": "bytes=0-6"}, status=206
        )
        assert found.content == page[:7]
        assert found.headers["Content-Security-Policy"].startswith("sandbox; default-src 'none'")
        assert found.headers["X-Content-Type-Options"] == "nosniff"
        assert found.headers["Content-Disposition"].startswith("inline")
        assert found.headers["Content-Type"] in (
            (kind,) if kind else ("text/plain; charset=utf-8", "application/octet-stream")
        )


def test_long_json_is_compressed_for_who_takes_it(fresh: Web) -> None:
    runs(fresh)
    plain = fresh.ask("GET", "/experiments?startIndex=0", headers={"Accept-Encoding": "identity"})
    packed = fresh.ask("GET", "/experiments?startIndex=0", headers={"Accept-Encoding": "gzip"}, stream=True)
    assert packed.headers["Content-Encoding"] == "gzip"
    assert packed.headers["Vary"] == plain.headers["Vary"] == "Accept-Encoding"
    body = packed.raw.read(decode_content=False)
    assert len(body) == int(packed.headers["Content-Length"]) < len(plain.content) / 2
    assert json.loads(gzip.decompress(body))["total"] == 6
    assert "Content-Encoding" not in fresh.ask("GET", "/me", headers={"Accept-Encoding": "gzip"}).headers


def test_who_asks_and_what_is_kept(fresh: Web) -> None:
    runs(fresh, 1)
    me = fresh.get("/me")
    assert (me["mode"], me["readOnly"], me["stores"]) == ("server", False, [])
    assert me["can"] == {"edit": True, "remove": True, "archive": True}
    kept = fresh.get("/storage")
    (project,) = kept["projects"]
    assert (project["name"], project["experiments"]) == ("sweep", 1)
    assert 0 < project["bytes"] <= kept["totalBytes"]
    # A browser that goes there gets the page, whoever it is.
    page = Web(fresh.url, None).ask("GET", "/storage", headers={"Accept": "text/html"})
    assert page.headers["Content-Type"].startswith("text/html")
