"""Each call of the REST API answers as it is documented (docs/server.md): real HTTP, a real process."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest

from ml_dash.core.names import experiment_id, metric_id
from tests.server.conftest import Web


def test_health_needs_no_login(web: Web) -> None:
    anonymous = Web(web.url, None)
    found = anonymous.get("/health")
    assert (found["status"], found["database"], found["storage"]) == ("ok", "connected", "connected")
    assert found["uptime"] >= 0
    assert anonymous.get("/-/ready") == {"status": "ready"}
    anonymous.refused("GET", "/metrics", 401, "unauthorised")
    figures = web.ask("GET", "/metrics").text
    assert "ml_dash_requests_total" in figures
    anonymous.session.close()


def test_an_experiment_is_made_once_and_changed_by_what_is_given(web: Web) -> None:
    made = web.post("/projects/web/experiments", {"name": "upsert", "description": "one", "tags": ["a", "b"]})
    assert (made["project"], made["namespace"]) == ("web", "alice")
    identity = made["experiment"]["id"]
    assert identity == experiment_id("web", "upsert")
    again = web.post("/projects/web/experiments", {"name": "upsert", "folder": "x/y", "metadata": {"k": [1, None]}})
    found = again["experiment"]
    assert (found["id"], found["description"], found["tags"]) == (identity, "one", ["a", "b"])
    assert (found["folder"], found["metadata"]) == ("x/y", {"k": [1, None]})
    assert web.get(f"/experiments/{identity}")["folder"] == "x/y"


def test_a_write_protected_experiment_takes_metrics_and_logs_but_no_parameters_or_files(web: Web, upload: Path) -> None:
    identity = web.experiment("protected", writeProtected=True)
    path = f"/experiments/{identity}"
    web.refused("POST", f"{path}/parameters", 409, "write_protected", json={"data": {"a": 1}})
    with upload.open("rb") as file:
        web.refused("POST", f"{path}/files", 409, "write_protected", files={"file": ("x", file)})
    assert web.post(f"{path}/metrics/loss/append", {"data": {"value": 1.0}})["index"] == 0
    assert web.post(f"{path}/logs", {"logs": [{"message": "m"}]})["created"] == 1


def test_logs_are_numbered_filtered_and_paged(web: Web) -> None:
    path = f"/experiments/{web.experiment('logs')}/logs"
    entries = [
        {"message": f"line {number}", "level": "warn" if number % 3 == 0 else "info", "metadata": {"n": number},
         "timestamp": "2025-10-25T10:30:00.123Z"}
        for number in range(30)
    ]  # fmt: skip
    assert web.post(path, {"logs": entries}) == {
        "created": 30, "startSequence": 0, "endSequence": 29, "experimentId": path.split("/")[2],
    }  # fmt: skip
    assert web.post(path, {"logs": [{"message": "late"}]})["startSequence"] == 30
    page = web.get(path, startIndex=10, limit=5)
    assert [entry["sequenceNumber"] for entry in page["logs"]] == [10, 11, 12, 13, 14]
    assert (page["startIndex"], page["endIndex"], page["total"], page["hasMore"]) == (10, 14, 5, True)
    first = page["logs"][0]
    assert (first["message"], first["level"], first["metadata"]) == ("line 10", "info", {"n": 10})
    assert first["timestamp"] == "2025-10-25T10:30:00.123000Z"
    assert [entry["message"] for entry in web.get(path, startIndex=-1)["logs"]] == ["late"]
    warned = web.get(path, level="warn", limit=4)
    assert [entry["sequenceNumber"] for entry in warned["logs"]] == [0, 3, 6, 9]
    rest = web.get(path, level="warn", startIndex=warned["endIndex"] + 1)
    assert [entry["sequenceNumber"] for entry in rest["logs"]] == [12, 15, 18, 21, 24, 27]
    assert [entry["message"] for entry in web.get(path, q="LINE 2")["logs"]] == [
        "line 2", *(f"line 2{n}" for n in range(10)),
    ]  # fmt: skip
    web.refused("POST", path, 400, "malformed", json={"logs": [{"message": "m", "level": "loud"}]})
    web.refused("POST", path, 400, "malformed", json={"logs": [{"message": "m", "timestamp": "yesterday"}]})
    web.refused("POST", path, 400, "malformed", json={"logs": []})
    assert web.get(path, startIndex=-1)["logs"][0]["sequenceNumber"] == 30


def test_parameters_are_merged(web: Web) -> None:
    path = f"/experiments/{web.experiment('parameters')}/parameters"
    assert web.get(path)["data"] == {}
    first = web.post(path, {"data": {"lr": 0.1, "model": {"layers": 2}}})
    assert first["data"] == {"lr": 0.1, "model.layers": 2}
    second = web.post(path, {"data": {"lr": 0.01, "nan": "NaN"}})
    assert second["data"] == {"lr": 0.01, "model.layers": 2, "nan": "NaN"}
    assert second["version"] > first["version"]
    assert second["experimentId"] == path.split("/")[2]
    assert web.get(path)["data"] == second["data"]


def test_points_are_appended_read_and_counted(web: Web) -> None:
    identity = web.experiment("metrics")
    path = f"/experiments/{identity}/metrics/train%2Floss"
    one = web.post(f"{path}/append", {"data": {"value": 0.5, "step": 0}, "description": "a loss", "tags": ["t"]})
    assert one == {
        "metricId": metric_id(identity, "train/loss"), "index": 0, "bufferedDataPoints": 1, "chunkSize": 10_000,
    }  # fmt: skip
    batch = web.post(f"{path}/append-batch", {"dataPoints": [{"value": 1 / n, "step": n} for n in range(1, 2500)]})
    assert (batch["startIndex"], batch["endIndex"], batch["count"]) == (1, 2499, 2499)
    page = web.get(f"{path}/data", startIndex=998, limit=4)
    assert [point["index"] for point in page["data"]] == [998, 999, 1000, 1001]
    assert page["data"][0]["data"] == {"value": 1 / 998, "step": 998}
    assert (page["total"], page["hasMore"]) == (4, True)
    assert [point["index"] for point in web.get(f"{path}/data", startIndex=-2)["data"]] == [2498, 2499]
    stats = web.get(f"{path}/stats")
    assert (stats["totalDataPoints"], stats["description"], stats["tags"]) == (2500, "a loss", ["t"])
    series = stats["series"]["train/loss"]
    assert (series["count"], series["first"], series["min"], series["max"]) == (2500, 0.5, 1 / 2499, 1.0)
    [listed] = web.get(f"/experiments/{identity}/metrics")["metrics"]
    assert (listed["name"], listed["totalDataPoints"]) == ("train/loss", 2500)
    assert web.get(f"/experiments/{identity}/metrics/none/data")["data"] == []
    web.refused("GET", f"/experiments/{identity}/metrics/none/stats", 404, "unknown")
    web.refused("POST", f"{path}/append", 400, "malformed", json={"data": {}})


def test_what_json_has_no_word_for_survives(web: Web) -> None:
    path = f"/experiments/{web.experiment('nan')}/metrics/m"
    web.post(f"{path}/append", {"data": {"value": "NaN", "name": "Infinity"}, "text": ["name"]})
    web.post(f"{path}/append", {"data": {"value": "-Infinity"}})
    first, second = web.get(f"{path}/data")["data"]
    assert first["data"] == {"value": "NaN", "name": "Infinity"}
    assert first["text"] == ["name"]
    assert second["data"] == {"value": "-Infinity"}
    assert web.get(f"{path}/stats")["series"]["m"]["min"] == "-Infinity"


def test_a_series_keeps_its_extremes(web: Web) -> None:
    path = f"/experiments/{web.experiment('series')}/metrics/m"
    values = [math.sin(n / 50) for n in range(20_000)]
    values[7_777], values[13_131] = 9.0, -9.0
    for start in range(0, 20_000, 10_000):
        rows = [{"value": value, "step": n} for n, value in enumerate(values[start : start + 10_000], start)]
        web.post(f"{path}/append-batch", {"dataPoints": rows})
    found = web.get(f"{path}/series", points=100)
    assert (found["startIndex"], found["endIndex"], found["totalDataPoints"]) == (0, 19_999, 20_000)
    series = found["series"]["m"]
    assert len(series["index"]) <= 104
    assert series["index"] == sorted(series["index"])
    assert series["count"] == 20_000
    spots = dict(zip(series["index"], series["value"], strict=True))
    assert (spots[7_777], spots[13_131]) == (9.0, -9.0)
    assert (series["index"][0], series["index"][-1]) == (0, 19_999)
    part = web.get(f"{path}/series", points=10, start=7_000, end=8_000)["series"]["m"]
    assert part["count"] == 1000
    assert max(part["value"]) == 9.0
    web.refused("GET", f"{path}/series?field=none", 404, "unknown")


def test_a_file_comes_back_as_it_was_sent(web: Web, upload: Path) -> None:
    path = f"/experiments/{web.experiment('files')}/files"
    content = upload.read_bytes()
    sha = hashlib.sha256(content).hexdigest()
    fields = {
        "prefix": "/models", "checksum": sha, "sizeBytes": str(len(content)), "description": "weights",
        "tags": "best, last", "metadata": json.dumps({"epoch": 3}),
    }  # fmt: skip
    with upload.open("rb") as file:
        record = web.ask("POST", path, files={"file": ("model.bin", file)}, data=fields).json()
    assert (record["filename"], record["prefix"], record["sizeBytes"]) == ("model.bin", "/models/", len(content))
    assert (record["checksum"], record["tags"], record["metadata"]) == (sha, ["best", "last"], {"epoch": 3})
    one = f"{path}/{record['id']}"
    assert web.get(one) == record
    assert web.get(path)["files"] == [record]
    assert web.get(path, prefix="/other")["files"] == []
    assert web.get(path, tags="last")["files"] == [record]
    whole = web.ask("GET", f"{one}/download")
    assert whole.content == content
    assert whole.headers["Content-Disposition"].startswith("attachment")
    assert whole.headers["X-Content-Type-Options"] == "nosniff"
    part = web.ask("GET", f"{one}/download", 206, headers={"Range": "bytes=100-199"})
    assert part.content == content[100:200]
    assert part.headers["Content-Range"] == f"bytes 100-199/{len(content)}"
    assert web.ask("GET", f"{one}/download", 206, headers={"Range": "bytes=-5"}).content == content[-5:]
    web.ask("GET", f"{one}/download", 416, headers={"Range": f"bytes={len(content)}-"})
    assert web.ask("GET", f"{one}/download", 304, headers={"If-None-Match": whole.headers["ETag"]}).content == b""
    changed = web.ask("PATCH", one, json={"description": "better"}).json()
    assert (changed["description"], changed["tags"]) == ("better", ["best", "last"])
    gone = web.ask("DELETE", one).json()
    assert gone["id"] == record["id"]
    assert gone["deletedAt"]
    assert web.get(path)["files"] == []
    web.refused("GET", f"{one}/download", 404, "unknown")


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"checksum": "0" * 64}, 422, "digest"),
        ({"sizeBytes": "1"}, 422, "digest"),
        ({"metadata": "[1]"}, 400, "malformed"),
        ({"metadata": "{"}, 400, "malformed"),
        ({"what": "x"}, 400, "malformed"),
        ({"prefix": "../up"}, 400, "malformed"),
    ],
)
def test_a_bad_upload_leaves_nothing(web: Web, upload: Path, fields: dict[str, str], status: int, code: str) -> None:
    path = f"/experiments/{web.experiment('bad-files')}/files"
    with upload.open("rb") as file:
        web.refused("POST", path, status, code, files={"file": ("model.bin", file)}, data=fields)
    assert web.get(path)["files"] == []


def test_experiments_are_listed_by_page_and_filter(web: Web) -> None:
    for number in range(7):
        tags, folder = ["odd" if number % 2 else "even"], f"f{number % 3}"
        identity = web.experiment(f"e{number}", "listing", tags=tags, folder=folder)
        web.post(f"/experiments/{identity}/metrics/m/append-batch", {"dataPoints": [{"value": 1.0}] * (number + 1)})
    names, after = [], None
    while True:
        page = web.get("/experiments", project="listing", limit=3, sort="name", **({"after": after} if after else {}))
        names += [one["name"] for one in page["experiments"]]
        assert page["total"] == 7
        after = page["next"]
        if after is None:
            break
    assert names == [f"e{number}" for number in range(7)]
    most = web.get("/experiments", project="listing", sort="points", limit=2)["experiments"]
    assert [one["counts"]["points"] for one in most] == [7, 6]
    assert web.get("/experiments", project="listing", tag="odd")["total"] == 3
    assert web.get("/experiments", project="listing", folder="f0")["total"] == 3
    assert [one["name"] for one in web.get("/experiments", q="LISTING/E4")["experiments"]] == ["e4"]
    assert web.get("/experiments", project="listing", status="failed")["total"] == 0
    [project] = [one for one in web.get("/projects")["projects"] if one["name"] == "listing"]
    assert project["experiments"] == 7
    web.refused("GET", "/experiments?sort=sizes", 400, "query")
    web.refused("GET", "/experiments?after=x", 400, "malformed")
    web.refused("GET", "/experiments?limit=0", 400, "malformed")


def test_unknown_things_are_404_and_unknown_methods_405(web: Web) -> None:
    web.refused("GET", "/experiments/1", 404, "unknown")
    web.refused("GET", "/experiments/x", 404, "unknown")
    web.refused("GET", "/nothing/here", 404, "unknown")
    web.refused("PUT", "/projects", 405, "method")


def test_live_readers_hear_of_changes(web: Web) -> None:
    identity = web.experiment("live")
    with web.session.get(f"{web.url}/experiments/{identity}/events", stream=True, timeout=20) as stream:
        lines = stream.iter_lines(decode_unicode=True)
        first = next(line for line in lines if line.startswith("data:"))
        before = json.loads(first[5:])["events"]
        web.post(f"/experiments/{identity}/metrics/m/append", {"data": {"value": 1.0}})
        told = next(line for line in lines if line.startswith("data:"))
        assert json.loads(told[5:])["events"] > before


def test_experiments_are_compared_by_parameters_columns_and_metrics(web: Web) -> None:
    ids = [web.experiment(f"compared-{number}") for number in range(2)]
    for number, identity in enumerate(ids):
        web.post(f"/experiments/{identity}/parameters", {"data": {"lr": number / 10, "model": {"depth": 18}}})
        web.post(f"/experiments/{identity}/metrics/loss/append", {"data": {"value": 1.0 + number}})
    found = web.get("/comparison", experiment=[*reversed(ids), "42"], columns="metrics.loss.min")
    assert [one["id"] for one in found["experiments"]] == list(reversed(ids))
    assert found["experiments"][0]["params"] == {"lr": 0.1, "model.depth": 18}
    assert [one["values"] for one in found["experiments"]] == [{"metrics.loss.min": 2.0}, {"metrics.loss.min": 1.0}]
    assert (found["metrics"], found["missing"]) == ([{"name": "loss", "runs": 2}], ["42"])
    web.refused("GET", "/comparison", 400, "malformed", params={"experiment": [str(number) for number in range(101)]})
