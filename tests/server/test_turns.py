"""What only so many may do at once: uploads wait their turn, and are told to come again."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from ml_dash.core.protocol import Refused
from ml_dash.server.engine.changes import Changes
from ml_dash.server.stores import Lease
from ml_dash.server.stores.disk import DiskObjects
from ml_dash.server.stores.sqlite import SqliteDocuments
from ml_dash.sync.login import development_token
from tests.server.conftest import Web, changed_server


def test_an_upload_waits_its_turn_and_is_told_to_come_again(tmp_path: Path) -> None:
    import socket

    with changed_server(
        tmp_path / "data",
        "import ml_dash.server.http.calls as calls, ml_dash.server.http.routes_files as files",
        "calls.UPLOADS = 1; files.ADMISSION_S = 0.2",
    ) as web:
        path = f"/experiments/{web.experiment('turns')}/files"
        host, _, port = web.url.rpartition("/")[2].rpartition(":")
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {web.session.headers['Authorization']!s}\r\n"
            "Content-Length: 1000000\r\nExpect: 100-continue\r\nContent-Type: multipart/form-data; boundary=B\r\n\r\n"
        ).encode()
        with socket.create_connection((host, int(port)), 10) as slow:
            slow.sendall(head)
            # Asked to go on: it is its turn.
            assert slow.recv(25).startswith(b"HTTP/1.1 100")
            answer = web.ask("POST", path, 429, files={"file": ("x", b"x")})
            assert answer.json()["error"]["code"] == "busy"
            assert answer.headers["Retry-After"] == "1"
        # Who had it has gone; the next one that asks has it.
        while web.session.post(web.url + path, files={"file": ("x", b"x")}, timeout=20).status_code == 429:
            pass
        assert [one["filename"] for one in web.get(path)["files"]] == ["x"]


def test_the_list_has_all_experiments_page_by_page(web: Web) -> None:
    mine = Web(web.url, development_token("paging & <co>"))
    names = {f"e & <{number}>" for number in range(203)}
    for name in names:
        mine.experiment(name, "p & <q>")
    seen: set[str] = set()
    query = "project=p+%26+%3Cq%3E&limit=50"
    path = f"/experiments?{query}"
    while True:
        page = mine.get(path)
        assert page["total"] == len(names)
        seen |= {experiment["name"] for experiment in page["experiments"]}
        if page["next"] is None:
            break
        path = f"/experiments?{query}&after={quote(page['next'])}"
    assert seen == names
    mine.session.close()


def test_a_login_that_cannot_be_a_token_is_not_stored(tmp_path: Path) -> None:
    for given in ("two words\n", "\n", "ümlaut\n"):
        done = subprocess.run(
            [sys.executable, "-m", "ml_dash", "login", "--no-check", "http://127.0.0.1:9"], input=given,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert "token" in done.stderr
        assert given.strip() == "" or given.strip() not in done.stderr


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Changes, Changes]]:
    """Two servers over one database."""
    servers = [SqliteDocuments(tmp_path / "data.sqlite") for _ in range(2)]
    objects = DiskObjects(tmp_path / "objects")
    first, second = (Changes(documents, objects, lambda *_: None) for documents in servers)
    yield first, second
    for documents in servers:
        documents.close()


def test_a_request_waits_while_servers_take_turns(
    pair: tuple[Changes, Changes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many requests at once keep an experiment busy for longer than one of them may have it."""
    monkeypatch.setattr("ml_dash.server.engine.changes._LEASE_WAIT_S", 0.01)
    first, second = pair
    held = [first.documents.lease("ns", "run")]
    ask: Callable[[str, str], Lease] = second.documents.lease
    tries = 0

    def asked(ns: str, experiment: str) -> Lease:
        nonlocal tries
        tries += 1
        # The other server ends its turn, and is the first to have the next one.
        first.documents.release(held.pop())
        if tries < 30:
            held.append(first.documents.lease(ns, experiment))
        return ask(ns, experiment)

    monkeypatch.setattr(second.documents, "lease", asked)
    with second.changing("ns", "run"):
        pass
    assert tries == 30


def test_a_request_is_refused_when_another_server_stands_still(
    pair: tuple[Changes, Changes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ml_dash.server.engine.changes._LEASE_WAIT_S", 0.1)
    first, second = pair
    lease = first.documents.lease("ns", "run")
    begun = time.monotonic()
    with pytest.raises(Refused, match="another server is changing this") as refused, second.changing("ns", "run"):
        pass
    assert time.monotonic() - begun >= 0.1
    assert (refused.value.status, refused.value.retry_after_s) == (503, 1)
    first.documents.release(lease)
    with second.changing("ns", "run"):
        pass
