"""A real server for the tests of this folder, and a plain HTTP client that knows nothing of the library."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from ml_dash.server.settings import ServerSettings
from ml_dash.sync.login import development_token
from tests.contracts.places import s3_settings
from tests.running import Server

PAIRS = ("sqlite+folder", "mongo+s3", "sqlite+s3", "mongo+folder")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests run on SQLite and a folder; those marked with `both_ends` also on MongoDB and S3, or with `every_pair`."""
    for mark, pairs in (("every_pair", PAIRS), ("both_ends", PAIRS[:2])):
        if "pair" in metafunc.fixturenames and metafunc.definition.get_closest_marker(mark):
            metafunc.parametrize("pair", pairs, indirect=True)


@pytest.fixture
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> ServerSettings:
    """Settings with stores that nobody has used."""
    documents, _, objects = getattr(request, "param", PAIRS[0]).partition("+")
    uri, s3 = None, None
    if documents == "mongo":
        address, _, options = request.getfixturevalue("mongo_database")[0].partition("?")
        uri = f"{address}{request.getfixturevalue('mongo_database')[1]}?{options}"
    if objects == "s3":
        endpoint = f"http://{request.getfixturevalue('s3_service').address}"
        s3 = s3_settings(endpoint, request.getfixturevalue("s3_bucket"))
    return ServerSettings(tmp_path / "data", mongodb_uri=uri, s3=s3)


def environment_of(pair: ServerSettings) -> dict[str, str]:
    """Return the environment of a server process on these stores."""
    found = dict(os.environ)
    if pair.mongodb_uri is not None:
        found["MONGODB_URI"] = pair.mongodb_uri
    if pair.s3 is not None:
        found |= {
            "S3_BUCKET": pair.s3.bucket, "S3_ENDPOINT": pair.s3.endpoint or "", "S3_REGION": pair.s3.region,
            "S3_ACCESS_KEY": pair.s3.access_key or "", "S3_SECRET_KEY": pair.s3.secret_key or "",
        }  # fmt: skip
    return found


class Web:
    """Requests to one server as one user."""

    def __init__(self, url: str, token: str | None) -> None:
        self.url = url
        self.session = requests.Session()
        self.session.trust_env = False
        if token is not None:
            self.session.headers["Authorization"] = f"Bearer {token}"

    def ask(self, method: str, path: str, status: int = 200, **how: Any) -> requests.Response:
        """The answer, which must have that status."""
        response = self.session.request(method, self.url + path, timeout=30, allow_redirects=False, **how)
        assert response.status_code == status, f"{method} {path}: {response.status_code} {response.text[:500]}"
        return response

    def get(self, path: str, **query: Any) -> Any:
        """The JSON that a GET answers."""
        return self.ask("GET", path, params=query).json()

    def post(self, path: str, body: Any, status: int = 200) -> Any:
        """The JSON that a POST of JSON answers."""
        return self.ask("POST", path, status, json=body).json()

    def refused(self, method: str, path: str, status: int, code: str, **how: Any) -> dict[str, Any]:
        """The error, of that status and code."""
        body: dict[str, Any] = self.ask(method, path, status, **how).json()
        assert body["error"]["code"] == code
        assert body["error"]["message"]
        return body

    def experiment(self, name: str, project: str = "web", **fields: Any) -> str:
        """The id of a new experiment."""
        made = self.post(f"/projects/{project}/experiments", {"name": name, **fields})
        return str(made["experiment"]["id"])


@contextmanager
def changed_server(data: Path, *changes: str) -> Iterator[Web]:
    """Alice at a server of her own, in which statements have changed constants; it must end well."""
    program = "\n".join(["import sys", *changes, "from ml_dash.cli import main", "main(sys.argv[1:])"])
    command = [sys.executable, "-c", program, "server", "--dev", "--port", "0", "--data", str(data)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            web = Web(process.stdout.readline().split()[-1], development_token("alice"))
            with web.session:
                yield web
        finally:
            process.terminate()
            code = process.wait(30)
    assert code == 0


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all tests that do it no harm."""
    running = Server(tmp_path_factory.mktemp("server") / "data").start()
    yield running
    running.end()


@pytest.fixture
def web(server: Server) -> Iterator[Web]:
    """Alice."""
    made = Web(server.url, development_token("alice"))
    yield made
    made.session.close()


@pytest.fixture
def upload(tmp_path: Path) -> Path:
    """A file to add."""
    path = tmp_path / "model.bin"
    path.write_bytes(bytes(range(256)) * 40)
    return path
