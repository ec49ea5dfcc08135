"""RemoteClient, call by call, against a real server: what it writes comes back as it was, and errors say what to do."""

from __future__ import annotations

import hashlib
import json
import math
import os
import socket
import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ml_dash import (
    ChecksumMismatch,
    Experiment,
    InvalidName,
    InvalidValue,
    NotFound,
    RemoteClient,
    ServerRefused,
    Unauthorised,
    Unreachable,
    cli,
    client,
)
from tests.running import Server
from tests.server.conftest import changed_server

NAN, INFINITY = float("nan"), float("inf")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("client")
    serving = Server(folder / "data", {"ML_DASH_AUTOSYNC": "0", "MAX_FILE_SIZE": "40MB"}).start()
    yield serving
    serving.end()


@pytest.fixture
def alice(server: Server) -> Iterator[RemoteClient]:
    with RemoteClient(server.url, user_name="alice") as client:
        yield client


@pytest.fixture
def made(alice: RemoteClient, request: pytest.FixtureRequest) -> str:
    """The id of an experiment of the test's own."""
    found = alice.create_experiment("digits", f"{request.node.name.partition('[')[0]} {os.urandom(4).hex()}")
    return str(found["experiment"]["id"])


# -- the server ------------------------------------------------------------------------------------------------------


def test_health_needs_no_login(server: Server) -> None:
    with RemoteClient(server.url) as nobody:
        health = nobody.health()
    assert (health["status"], health["database"], health["storage"]) == ("ok", "connected", "connected")
    assert health["uptime"] >= 0


def test_who_is_asking(alice: RemoteClient) -> None:
    found = alice.whoami()
    assert (found["userName"], found["namespace"], found["readOnly"]) == ("alice", "alice", False)


def test_without_a_login_the_fix_is_named(server: Server) -> None:
    with RemoteClient(server.url) as nobody, pytest.raises(Unauthorised, match="ml-dash login"):
        nobody.projects()


def test_a_token_that_is_not_accepted(server: Server) -> None:
    with RemoteClient(server.url, api_key="mld_not-one-of-yours") as stranger, pytest.raises(Unauthorised):
        stranger.projects()


def test_a_namespace_of_another_user_is_refused_where_it_is_not_allowed(server: Server) -> None:
    nosy = RemoteClient(server.url, user_name="mallory", namespace="alice")
    with nosy, pytest.raises(NotFound, match="namespace"):
        nosy.projects()


def test_no_token_is_shown(server: Server) -> None:
    assert "secret-token" not in repr(RemoteClient(server.url, api_key="secret-token"))


# -- experiments -----------------------------------------------------------------------------------------------------


def test_an_experiment_is_created_and_continued(alice: RemoteClient) -> None:
    made = alice.create_experiment(
        "vision", "a/b".replace("/", " "), description="one", tags=["x", "y,z"], folder="/cv",
        metadata={"seed": 7, "bound": INFINITY, "path": Path("/data")},
    )  # fmt: skip
    again = alice.create_experiment("vision", "a b", description="two")
    assert made["project"] == "vision"
    assert made["namespace"] == "alice"
    assert again["experiment"]["id"] == made["experiment"]["id"]
    found = alice.experiment(made["experiment"]["id"])
    assert (found["description"], found["tags"], found["folder"]) == ("two", ["x", "y,z"], "/cv")
    assert found["metadata"] == {"seed": 7, "bound": INFINITY, "path": "/data"}


def test_experiments_are_listed_by_pages_and_filters(alice: RemoteClient) -> None:
    for number in range(5):
        alice.create_experiment("lists", f"run {number}", tags=["even"] if number % 2 == 0 else None)
    first = alice.experiments(project="lists", sort="name", limit=2)
    second = alice.experiments(project="lists", sort="name", limit=2, after=first["next"])
    assert [one["name"] for one in (*first["experiments"], *second["experiments"])] == [f"run {n}" for n in range(4)]
    assert first["total"] == 5
    assert alice.experiments(project="lists", tag="even")["total"] == 3
    assert [one["name"] for one in alice.experiments(project="lists", q="RUN 3")["experiments"]] == ["run 3"]
    assert {"name": "lists", "experiments": 5}.items() <= {
        key: value for one in alice.projects() if one["name"] == "lists" for key, value in one.items()
    }.items()


def test_a_removed_experiment_is_gone(alice: RemoteClient, made: str) -> None:
    alice.append(made, "loss", value=1.0)
    alice.remove_experiment(made)
    with pytest.raises(NotFound):
        alice.experiment(made)
    assert all(one["id"] != made for one in alice.experiments()["experiments"])


@pytest.mark.parametrize("identity", ["12345", "no-number", "../../health", "%00"])
def test_what_the_server_does_not_have_is_not_found(alice: RemoteClient, identity: str) -> None:
    with pytest.raises(NotFound):
        alice.experiment(identity)
    with pytest.raises(NotFound):
        alice.append(identity, "loss", value=1.0)


def test_what_makes_no_sense_is_refused(alice: RemoteClient) -> None:
    with pytest.raises(ServerRefused) as refused:
        alice.create_experiment("vision", "../up")
    assert refused.value.status == 400
    with pytest.raises(InvalidValue, match="there is no field 'colour'"):
        alice.experiments(sort="colour")


def test_a_live_reader_is_told_of_news(alice: RemoteClient, made: str, server: Server) -> None:
    news = alice.watch(made)
    begun = next(news)
    with RemoteClient(server.url, user_name="alice") as writer:
        writer.append(made, "loss", value=1.0)
        assert next(news) == begun + 1
    news.close()


def test_a_live_reader_is_told_of_a_removal(alice: RemoteClient, made: str, server: Server) -> None:
    news = alice.watch(made)
    assert next(news) > 0
    with RemoteClient(server.url, user_name="alice") as writer:
        writer.remove_experiment(made)
    assert list(news) == []


# -- logs and parameters ---------------------------------------------------------------------------------------------


@pytest.fixture
def searching(tmp_path: Path) -> Iterator[str]:
    """The URL of a server that examines one block of log entries for each page of a search."""
    change = "from ml_dash.server.engine import log_search", "log_search.SEARCH_S = 0"
    with changed_server(tmp_path / "data", *change) as web:
        yield web.url


def test_a_search_goes_on_through_pages_without_a_match(
    searching: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From Python and from the command line, however many of the pages are empty."""
    with RemoteClient(searching, user_name="alice") as client:
        experiment = Experiment("long", "p", local_path=tmp_path / "store", remote=searching, user_name="alice")
        with experiment.open():
            experiment.log("here too")
        made = str(client.create_experiment("p", "long")["experiment"]["id"])
        warned = (5, 1700)
        client.add_logs(made, [
            {"message": f"line {number}", "level": "warn" if number in warned else "info"} for number in range(2100)
        ])  # fmt: skip
        page = client.logs(made, q="LINE 1700")
        assert (page["logs"], page["endIndex"], page["hasMore"]) == ([], 999, True)
        assert [entry["message"] for entry in client.each_log(made, q="LINE 1700")] == ["line 1700"]
        assert [entry["message"] for entry in client.each_log(made, level="warn")] == ["line 5", "line 1700"]
        assert [entry["message"] for entry in client.each_log(made, 6, level="warn")] == ["line 1700"]
        assert len(list(client.each_log(made))) == 2100
        assert list(client.each_log(made, q="nowhere")) == []
    monkeypatch.setenv("ML_DASH_LOCAL_PATH", str(tmp_path / "store"))
    for arguments, lines in (((), ["line 5", "line 1700"]), (("--last", "1"), ["line 1700"])):
        assert cli.run(["logs", "p/long", "--remote", "--level", "warn", "--json", *arguments]) == 0
        shown = [json.loads(line)["message"] for line in capsys.readouterr().out.splitlines()]
        assert shown == lines


def test_logs_come_back(alice: RemoteClient, made: str) -> None:
    moment = datetime(2025, 10, 29, 10, 30, tzinfo=timezone.utc)
    told = alice.add_logs(made, [
        {"message": "begin", "timestamp": moment},
        {"message": "müde", "level": "warning", "timestamp": "2025-10-29T12:30:00+02:00", "metadata": {"loss": NAN}},
        {"message": "later", "metadata": {}},
    ])  # fmt: skip
    assert (told["created"], told["startSequence"], told["endSequence"]) == (3, 0, 2)
    page = alice.logs(made)
    first, second, third = page["logs"]
    assert first["timestamp"] == second["timestamp"] == "2025-10-29T10:30:00.000000Z"
    assert (second["level"], second["message"]) == ("warn", "müde")
    assert second["metadata"] is not None
    assert math.isnan(second["metadata"]["loss"])
    assert (first["metadata"], third["metadata"]) == (None, {})
    assert third["timestamp"] > first["timestamp"]
    assert [entry["sequenceNumber"] for entry in alice.logs(made, 1, 1)["logs"]] == [1]
    assert [entry["message"] for entry in alice.logs(made, level="warn")["logs"]] == ["müde"]
    assert [entry["message"] for entry in alice.logs(made, q="LATER")["logs"]] == ["later"]


def test_parameters_are_merged(alice: RemoteClient, made: str) -> None:
    alice.set_parameters(made, {"model": {"depth": 3, "width": 64}, "lr": 0.1, "limit": INFINITY})
    record = alice.set_parameters(made, {"model": {"depth": 4}, "layers": [1, [2, NAN]]})
    assert record["experimentId"] == made
    read = alice.parameters(made)["data"]
    assert {name: read[name] for name in ("model.depth", "model.width", "lr", "limit")} == {
        "model.depth": 4, "model.width": 64, "lr": 0.1, "limit": INFINITY,
    }  # fmt: skip
    assert math.isnan(read["layers"][1][1])


# -- metrics ---------------------------------------------------------------------------------------------------------

VALUES: list[dict[str, Any]] = [
    {"value": 1.5}, {"value": NAN, "note": "NaN"}, {"value": -INFINITY, "deep": {"a": ["Infinity", INFINITY]}},
    {"value": 2**64 - 1, "low": -(2**63)}, {"flag": True, "none": None, "text": "äöü\n", "epoch": 3},
    {"a.b": "NaN", "value": 1e308}, {"value": 0.1 + 0.2}, {"value": 5e-324},
]  # fmt: skip


def same(one: Any, other: Any) -> bool:
    """Equal, NaN to NaN too, and of the same type."""
    if isinstance(one, float) and math.isnan(one):
        return isinstance(other, float) and math.isnan(other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)


@pytest.mark.parametrize(
    "metric", ["loss", "train/loss", "..", "/abs", "a//b", ".", "a/../b", "50 % ä?#&", "%2F", "append"]
)
def test_points_come_back_as_they_were(alice: RemoteClient, made: str, metric: str) -> None:
    told = alice.append_batch(made, metric, VALUES)
    assert (told["startIndex"], told["endIndex"], told["count"]) == (0, 7, 8)
    for number, row in enumerate(VALUES):
        assert alice.append_point(made, metric, row)["index"] == 8 + number
    page = alice.points(made, metric)
    assert all(map(same, VALUES * 2, [point["data"] for point in page["data"]]))
    assert [point["index"] for point in page["data"]] == list(range(16))
    assert [metric] == [one["name"] for one in alice.metrics(made)]


def test_the_same_values_come_back_from_here_and_from_there(
    alice: RemoteClient, made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ML_DASH_QUIET", "1")
    with Experiment("first", "digits", local_path=tmp_path) as experiment:
        for row in VALUES:
            experiment.metric("loss").append(**row)
        here = experiment.metric("loss").read()
        stats = experiment.metric("loss").stats()
    alice.append_batch(made, "loss", VALUES)
    there = alice.points(made, "loss")
    assert all(same(a["data"], b["data"]) for a, b in zip(here["data"], there["data"], strict=True))
    found = alice.stats(made, "loss")
    assert same(stats["series"], found["series"])
    assert same(stats["series"], alice.metrics(made)[0]["series"])


def test_pages_and_counts(alice: RemoteClient, made: str) -> None:
    alice.append_batch(made, "loss", [{"value": n} for n in range(100)])
    assert alice.append(made, "loss", value=100, epoch=1)["index"] == 100
    page = alice.points(made, "loss", -3, 2)
    assert [point["data"]["value"] for point in page["data"]] == [98, 99]
    assert (page["startIndex"], page["endIndex"], page["hasMore"]) == (98, 99, True)
    assert alice.points(made, "unknown")["data"] == []
    with pytest.raises(NotFound):
        alice.stats(made, "unknown")
    with pytest.raises(ServerRefused):
        alice.points(made, "loss", 0, 10_001)


def test_a_point_that_cannot_be_kept_is_refused_before_it_is_sent(alice: RemoteClient, made: str) -> None:
    with pytest.raises(TypeError, match="value"):
        alice.append(made, "loss", value=object())
    with pytest.raises(InvalidValue):
        alice.append(made, "loss", value=2**64)
    assert alice.metrics(made) == []


def test_a_series_keeps_its_extremes(alice: RemoteClient, made: str) -> None:
    alice.append_batch(made, "loss", [{"value": float(n % 7), "grad": float(-n), "step": 2 * n} for n in range(5000)])
    alice.append(made, "loss", value=1000.0, grad=NAN, step=10_000)
    found = alice.series(made, "loss", 100)
    assert (found["startIndex"], found["endIndex"], found["totalDataPoints"]) == (0, 5000, 5001)
    values = found["series"]["loss"]
    assert len(values["value"]) <= 104
    assert (max(values["value"]), values["count"]) == (1000.0, 5001)
    assert values["x"] == [2 * index for index in values["index"]]
    assert min(found["series"]["loss.grad"]["value"]) == -4999.0
    only = alice.series(made, "loss", 10, start=10, end=20, field="grad")
    assert list(only["series"]) == ["loss.grad"]
    assert set(only["series"]["loss.grad"]["index"]) <= set(range(10, 20))


# -- files -----------------------------------------------------------------------------------------------------------


def test_a_file_there_and_back(alice: RemoteClient, made: str, tmp_path: Path) -> None:
    content = os.urandom((3 << 20) + 17)
    source = tmp_path / "model.pth"
    source.write_bytes(content)
    record = alice.upload_file(
        made, source, "/models/best", description="the best", tags=["a", "b"], metadata={"loss": NAN, "epoch": 3}
    )
    assert record["checksum"] == hashlib.sha256(content).hexdigest()
    assert (record["filename"], record["prefix"], record["sizeBytes"]) == ("model.pth", "/models/best/", len(content))
    assert (record["description"], record["tags"]) == ("the best", ["a", "b"])
    assert record["metadata"] is not None
    assert math.isnan(record["metadata"]["loss"])
    assert same(record, alice.file(made, record["id"]))
    assert same([record], alice.files(made, prefix="models", tags=["b", "z"]))
    assert alice.files(made, prefix="elsewhere") == []

    copy = alice.download_file(made, record["id"], tmp_path / "there" / "copy.pth")
    assert Path(copy).read_bytes() == content
    assert Path(alice.download_file(made, record["id"], f"{tmp_path / 'in'}{os.sep}")) == tmp_path / "in" / "model.pth"
    assert b"".join(alice.read_file(made, record["id"], 100, 2_000_000)) == content[100:2_000_000]
    assert b"".join(alice.read_file(made, record["id"], len(content) - 5)) == content[-5:]
    with pytest.raises(InvalidValue):
        alice.read_file(made, record["id"], 5, 5)

    changed = alice.update_file(made, record["id"], tags=["c,d"], metadata={"epoch": 4})
    assert (changed["tags"], changed["metadata"], changed["description"]) == (["c,d"], {"epoch": 4}, "the best")
    assert alice.delete_file(made, record["id"])["id"] == record["id"]
    assert alice.files(made) == []
    with pytest.raises(NotFound):
        alice.delete_file(made, record["id"])


@pytest.mark.parametrize("name", ["plain.txt", 'with "quotes".txt', "back\\slash", "ä ö%22;=.bin", "empty"])
def test_names_of_files_come_back(alice: RemoteClient, made: str, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"" if name == "empty" else b"--boundary\r\n\r\n--")
    record = alice.upload_file(made, tmp_path / name)
    assert (record["filename"], record["path"], record["prefix"]) == (name, "/", "/")
    (tmp_path / "copies").mkdir()
    copy = alice.download_file(made, record["id"], tmp_path / "copies")
    assert Path(copy) == tmp_path / "copies" / name
    assert Path(copy).read_bytes() == (tmp_path / name).read_bytes()


def test_what_is_no_file_is_not_sent(alice: RemoteClient, made: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "absent"):
        with pytest.raises(InvalidValue, match="nothing was sent"):
            alice.upload_file(made, path)
    (tmp_path / "two\nlines").touch()
    with pytest.raises(InvalidName):
        alice.upload_file(made, tmp_path / "two\nlines")
    with pytest.raises(InvalidValue, match="comma"):
        alice.upload_file(made, __file__, tags=["a,b"])
    assert alice.files(made) == []


def test_a_file_that_becomes_shorter_while_it_is_sent_is_not_added(
    alice: RemoteClient, made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "growing.bin"
    source.write_bytes(bytes(1 << 20))
    hashed = hashlib.sha256

    class Cutting:
        """Cuts the file off once it was hashed."""

        def __init__(self) -> None:
            self._digest = hashed()
            self.update = self._digest.update

        def hexdigest(self) -> str:
            os.truncate(source, 1000)
            return self._digest.hexdigest()

    monkeypatch.setattr("ml_dash.sync.multipart.hashlib.sha256", Cutting)
    with pytest.raises(InvalidValue, match="changed while it was sent"):
        alice.upload_file(made, source)
    monkeypatch.undo()
    assert alice.files(made) == []
    assert alice.upload_file(made, source)["sizeBytes"] == 1000


def test_a_file_that_is_too_large_is_refused(alice: RemoteClient, made: str, tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(42 << 20)
    with pytest.raises(ServerRefused) as refused:
        alice.upload_file(made, tmp_path / "large")
    assert (refused.value.status, refused.value.code) == (413, "too_large")


def test_a_bad_copy_is_removed(alice: RemoteClient, made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"content")
    record = alice.upload_file(made, tmp_path / "file")
    monkeypatch.setattr(client.RemoteClient, "read_file", lambda *_: iter([b"contend"]))
    with pytest.raises(ChecksumMismatch):
        alice.download_file(made, record["id"], tmp_path / "copy")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_protected_experiments_refuse(alice: RemoteClient, tmp_path: Path) -> None:
    identity = alice.create_experiment("digits", "final", write_protected=True)["experiment"]["id"]
    with pytest.raises(ServerRefused) as refused:
        alice.set_parameters(identity, {"lr": 1})
    assert refused.value.status == 409
    (tmp_path / "file").touch()
    with pytest.raises(ServerRefused):
        alice.upload_file(identity, tmp_path / "file")
    assert alice.append(identity, "loss", value=1.0)["index"] == 0


# -- what is no server -----------------------------------------------------------------------------------------------


def test_nobody_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with RemoteClient(url, user_name="alice") as client:
            for call in (client.health, client.projects):
                with pytest.raises(Unreachable, match="cannot be reached"):
                    call()


@pytest.fixture
def portal() -> Iterator[str]:
    """What a network with a sign-in page answers to everything."""

    class Portal(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            page = b"<html>Please sign in</html>"
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        do_GET = do_POST = do_DELETE = _answer  # noqa: N815 - names that the library gives

        def log_message(self, *_: Any) -> None:
            """Nothing is said."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Portal) as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()
        thread.join()


def test_a_sign_in_page_is_no_answer(portal: str) -> None:
    with RemoteClient(portal, user_name="alice") as client:
        for call in (client.health, client.projects, lambda: client.append("1", "loss", value=1.0)):
            with pytest.raises(Unreachable, match="did not answer like an ml-dash server"):
                call()


@pytest.mark.parametrize("url", ["dash.example.org", "ftp://dash.example.org", "https://alice:pw@dash.example.org", ""])
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(ValueError, match="base_url"):
        RemoteClient(url, api_key="x")


def test_a_client_goes_on_after_its_server_was_away(tmp_path: Path) -> None:
    serving = Server(tmp_path / "data").start()
    with RemoteClient(serving.url, user_name="alice") as client:
        identity = client.create_experiment("digits", "first")["experiment"]["id"]
        serving.end()
        with pytest.raises(Unreachable):
            client.append(identity, "loss", value=1.0)
        serving.start()
        try:
            assert client.append(identity, "loss", value=2.0)["index"] == 0
        finally:
            serving.end()
