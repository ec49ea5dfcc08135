"""One server process from start to end: it drains, it refuses damage, it describes itself truly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import content_type_conformance, response_schema_conformance

from ml_dash.sync.login import development_token
from tests.running import Server
from tests.server.conftest import Web


def test_what_is_under_way_at_the_end_is_answered(tmp_path: Path) -> None:
    server = Server(tmp_path / "data").start()
    web = Web(server.url, development_token("alice"))
    identity = web.experiment("drained")
    half, ended = threading.Event(), []

    def body() -> Any:
        yield b'{"dataPoints": ['
        half.set()
        yield b'{"value": 1.0}' + b',{"value": 2.0}' * 20_000
        yield b"]}"

    def send() -> None:
        path = f"{server.url}/experiments/{identity}/metrics/m/append-batch"
        ended.append(web.session.post(path, data=body(), timeout=30))

    thread = threading.Thread(target=send)
    thread.start()
    assert half.wait(10)
    server.end(signal.SIGTERM)
    thread.join()
    assert [response.status_code for response in ended] == [200]
    web.session.close()
    with_it = Server(tmp_path / "data").start()
    again = Web(with_it.url, development_token("alice"))
    assert again.get(f"/experiments/{identity}/metrics/m/stats")["totalDataPoints"] == 20_001
    again.session.close()
    with_it.end()


@pytest.mark.parametrize("place", ["/proc/ml-dash", "file", "file/data"])
@pytest.mark.parametrize("what", [["server", "--port", "0"], ["server", "token", "create", "alice"]])
def test_a_data_folder_that_cannot_be_is_told_in_a_sentence(tmp_path: Path, place: str, what: list[str]) -> None:
    (tmp_path / "file").write_text("mine")
    command = [sys.executable, "-m", "ml_dash", *what, "--data", place]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert place in done.stderr
    assert "cannot be" in done.stderr
    assert "Errno" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_database_that_is_damaged_is_refused(tmp_path: Path) -> None:
    server = Server(tmp_path / "data").start()
    server.end()
    database = tmp_path / "data" / "server.sqlite"
    database.write_bytes(b"not SQLite" + database.read_bytes()[10:])
    command = [sys.executable, "-m", "ml_dash", "server", "--port", "0", "--data", str(tmp_path / "data")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "is damaged" in done.stderr
    assert "backup" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_without_its_extra_says_what_to_install(tmp_path: Path) -> None:
    program = (
        "import sys, importlib.util as u\n"
        "found = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'uvicorn' else found(name, *a)\n"
        "from ml_dash.cli import main\n"
        "main(['server', '--port', '0'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "pip install 'ml-dash[server]'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_logs_are_lines_of_json_without_secrets(tmp_path: Path) -> None:
    server = Server(tmp_path / "data").start()
    token = development_token("alice")
    web = Web(server.url, token)
    web.get("/experiments", q="hidden-words")
    web.refused("GET", "/experiments/1", 404, "unknown")
    web.session.close()
    server.end()
    text = (tmp_path / "data.log").read_text()
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert [line["status"] for line in lines if line["message"] == "request"] == [200, 404]
    assert {"started", "ended"} <= {line["message"] for line in lines}
    assert token not in text
    assert "hidden-words" not in text


def description(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = requests.get(f"{server.url}/openapi.json", timeout=10).json()
    return found


def test_every_call_is_described(server: Server) -> None:
    from ml_dash.server.http.app import ROUTES

    paths = description(server)["paths"]
    described = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert described == {(route.method, route.path.replace("...}", "}")) for route in ROUTES}


def test_whatever_is_asked_the_answer_is_as_described(server: Server) -> None:
    """schemathesis makes requests of the description, good and bad ones: no 5xx, and answers of the forms told."""
    schema = schemathesis.openapi.from_dict(description(server))
    schema.config.update(base_url=server.url)
    headers = {"Authorization": f"Bearer {development_token('fuzz')}"}
    limits = settings(
        max_examples=200 if os.environ.get("ML_DASH_TEST_LONG") else 8, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    asked = 0

    def answers_as_described(case: Any) -> None:
        nonlocal asked
        asked += 1
        response = case.call(headers=headers, timeout=20)
        assert response.status_code < 500, f"{case.method} {case.path}: {response.status_code} {response.text[:300]}"
        case.validate_response(response, checks=[content_type_conformance, response_schema_conformance])

    for found in schema.get_all_operations():
        operation: Any = found.ok()
        # A stream of events is an answer without an end.
        if not operation.path.endswith(("/events", "/changes")):
            limits(given(case=operation.as_strategy())(answers_as_described))()
    assert asked > 100


def test_the_connection_of_one_who_does_not_finish_a_request_is_cut(tmp_path: Path) -> None:
    import socket

    # The limit is a constant of twenty seconds: a process of our own has it shortened.
    program = (
        "import ml_dash.server.serving as serving, sys\nserving.HEADERS_S = 0.3\n"
        "from ml_dash.cli import main\nmain(sys.argv[1:])\n"
    )
    arguments = ["server", "--dev", "--port", "0", "--data", str(tmp_path / "data")]
    with subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), 10) as slow:
            slow.settimeout(10)
            slow.sendall(b"GET /health HTTP/1.1\r\nHost: loc")
            assert slow.recv(1) == b""
        with socket.create_connection(("127.0.0.1", port), 10) as steady:
            steady.settimeout(10)
            steady.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert steady.recv(12) == b"HTTP/1.1 200"
        process.terminate()
        assert process.wait(30) == 0


@pytest.mark.parametrize("path", ["/-/ready", "/health"])
def test_probes_answer_while_uploads_run(server: Server, path: str) -> None:
    assert requests.get(f"{server.url}{path}", timeout=10).status_code == 200
