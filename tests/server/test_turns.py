"""What only so many may do at once: uploads wait their turn, and are told to come again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

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
