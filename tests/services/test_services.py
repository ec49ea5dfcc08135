"""The services are real, and faults can be made with them: killed, stopped and restarted, they keep what they had."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.services import Service, mongo, s3
from tests.services.fixtures import started
from tests.services.running import bucket, mongodb_uri
from tests.services.running import s3_client as new_client

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=[mongo, s3], ids=["mongo", "s3"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    made = started(request.param, tmp_path / "service")
    yield made
    made.end()


@pytest.fixture
def database(mongo_database: tuple[str, str]) -> Iterator[Any]:
    import pymongo

    with pymongo.MongoClient[Any](mongo_database[0]) as client:
        yield client[mongo_database[1]]


def test_documents_are_stored_and_an_id_is_taken_once(database: Any) -> None:
    from pymongo.errors import DuplicateKeyError

    database.rows.insert_one({"_id": "a", "n": 1})
    with pytest.raises(DuplicateKeyError):
        database.rows.insert_one({"_id": "a", "n": 2})
    assert database.rows.find_one({"_id": "a"})["n"] == 1


def test_objects_are_stored(s3_client: Any, s3_bucket: str) -> None:
    s3_client.put_object(Bucket=s3_bucket, Key="a/b", Body=b"weights")
    assert s3_client.get_object(Bucket=s3_bucket, Key="a/b")["Body"].read() == b"weights"


def _written(service: Service) -> Callable[[], object]:
    """Write something; return how to read it again."""
    if service.name == "versitygw":
        client = new_client(service)
        name = bucket(client)
        client.put_object(Bucket=name, Key="k", Body=b"v")
        client.close()

        def object_there() -> object:
            client = new_client(service)
            with client.get_object(Bucket=name, Key="k")["Body"] as body:
                return body.read()

        return object_there
    import pymongo

    with pymongo.MongoClient[Any](mongodb_uri(service)) as mongo_client:
        mongo_client.test.rows.insert_one({"_id": 1, "v": b"v"})

    def row_there() -> object:
        with pymongo.MongoClient[Any](mongodb_uri(service)) as mongo_client:
            found: dict[str, object] | None = mongo_client.test.rows.find_one({"_id": 1})
            return found["v"] if found else None

    return row_there


def test_killed_and_started_again_it_has_the_same_port_and_data(service: Service) -> None:
    port, read, before = service.port, _written(service), service.pid
    service.kill()
    assert not psutil.pid_exists(before)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    service.start()
    assert service.port == port
    assert read() == b"v"
    service.restart()
    assert read() == b"v"


def test_paused_it_does_not_answer_and_resumed_it_does(service: Service) -> None:
    read = _written(service)
    service.pause()
    assert psutil.Process(service.pid).status() == psutil.STATUS_STOPPED
    with socket.create_connection(("127.0.0.1", service.port), timeout=5) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)
    service.resume()
    assert read() == b"v"
    service.pause()  # and it can be ended while it is paused


def test_a_taken_port_is_not_taken_for_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.services import running

    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        free = running._free_port
        offered = iter([taken])
        monkeypatch.setattr(running, "_free_port", lambda: next(offered, None) or free())
        service = started(s3, tmp_path / "service")
        assert service.port != taken
        service.end()


def test_without_go_and_a_built_program_the_message_says_so(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PATH": "/nonexistent"}
    ended = subprocess.run(
        [sys.executable, "-m", "tests.services", "build"], cwd=ROOT, env=environment, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    assert ended.stderr.count("there is no Go") == 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux ends a child with its parent")
def test_a_killed_test_run_leaves_no_service(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tests.services import s3\n"
        "print(s3(Path(sys.argv[1])).start().pid, flush=True); sys.stdin.read()"
    )
    started(s3, tmp_path / "first").end()  # it can be had here, or this is skipped
    from tests.services.build import CACHE

    environment = {**os.environ, "XDG_CACHE_HOME": str(CACHE.parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "second")], cwd=ROOT, env=environment, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as parent:  # fmt: skip
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
    with suppress(psutil.NoSuchProcess):
        child.wait(10)
    assert not child.is_running()
