"""The development login is good on this machine alone; web pages of others get nothing; who does not read is cut."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Any

import pytest
import requests

from tests.running import Server
from tests.server.conftest import Web, changed_server


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "dash.example.org"}, {"Host": "dash.example.org:3000"}, {"Host": "127.0.0.1.example.org"},
        {"Host": "localhost.example.org"}, {"Host": "10.0.0.1"}, {"Host": "[::2]:1"}, {"Host": ""},
        {"X-Forwarded-For": "127.0.0.1"}, {"Forwarded": "for=127.0.0.1"}, {"Via": "1.1 proxy"},
        {"X-Forwarded-Host": "localhost"},
    ],
)  # fmt: skip
def test_a_development_login_from_elsewhere_is_none(web: Web, headers: dict[str, str]) -> None:
    web.refused("GET", "/experiments", 401, "unauthorised", headers=headers)
    page = Web(web.url, None)
    assert page.ask("GET", "/login/ways", headers=headers).json() == {"token": True, "name": False, "mode": "server"}
    page.refused("POST", "/login", 400, "malformed", data={"user": "alice"}, headers=headers)
    page.session.close()


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "127.0.0.1", "127.1.2.3:80", "[::1]:9", "LOCALHOST."])
def test_a_name_of_this_machine_is_here(web: Web, host: str) -> None:
    assert web.ask("GET", "/whoami", headers={"Host": host}).json()["userName"] == "alice"


def test_there_is_one_way_to_say_who_asks(web: Web) -> None:
    token = str(web.session.headers["Authorization"])[7:]
    anonymous = Web(web.url, None)
    for given in ("Basic YTpi", token, f"Token {token}", f"Bearer {token} x", "Bearer", "Bearer " + "x" * 5000):
        anonymous.refused("GET", "/whoami", 401, "unauthorised", headers={"Authorization": given})
    assert anonymous.ask("GET", "/whoami", headers={"Authorization": f"bearer {token}"}).status_code == 200
    # Twice is once too often: a proxy and a server may take different ones.
    import http.client

    host, _, port = web.url.rpartition("/")[2].rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=20)
    connection.putrequest("GET", "/whoami")
    for _ in range(2):
        connection.putheader("Authorization", f"Bearer {token}")
    connection.endheaders()
    assert connection.getresponse().status == 401
    connection.close()
    anonymous.session.close()


def test_a_request_has_one_end(web: Web) -> None:
    import socket

    host, _, port = web.url.rpartition("/")[2].rpartition(":")
    token = web.session.headers["Authorization"]
    with socket.create_connection((host, int(port)), 10) as connection:
        connection.sendall(
            f"POST /projects/p/experiments HTTP/1.1\r\nHost: localhost\r\nAuthorization: {token!s}\r\n"
            "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /whoami HTTP/1.1\r\n\r\n".encode()
        )
        connection.settimeout(10)
        had = b""
        while block := connection.recv(65_536):
            had += block
    assert had.count(b"HTTP/1.1 ") == 1
    assert had.startswith(b"HTTP/1.1 400")


def preflight(web: Web, origin: str, status: int) -> Any:
    asked = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
    return web.ask("OPTIONS", "/experiments", status, headers={"Origin": origin, **asked}).headers


def test_pages_of_others_may_ask_only_where_that_is_set(web: Web, tmp_path: Path) -> None:
    preflight(web, "https://dash.example.org", 405)
    answer = web.ask("GET", "/health", headers={"Origin": "https://dash.example.org"})
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]
    server = Server(tmp_path / "data", {"CORS_ORIGIN": "https://dash.example.org"}).start()
    open_to_one = Web(server.url, None)
    assert preflight(open_to_one, "https://dash.example.org", 200)["Access-Control-Allow-Origin"]
    preflight(open_to_one, "https://evil.example.org", 400)
    # A browser's cookie is for pages of this server alone.
    assert "Access-Control-Allow-Credentials" not in preflight(open_to_one, "https://dash.example.org", 200)
    open_to_one.session.close()
    server.end()


def test_an_answer_that_nobody_reads_is_given_up(tmp_path: Path) -> None:
    with changed_server(tmp_path / "data", "import ml_dash.server.http.app as app", "app.UNREAD_S = 0.3") as web:
        identity = web.experiment("unread")
        record = web.ask("POST", f"/experiments/{identity}/files", files={"file": ("x", bytes(32 << 20))}).json()
        path = f"{web.url}/experiments/{identity}/files/{record['id']}/download"
        with requests.get(path, headers=dict(web.session.headers), stream=True, timeout=20) as unread:
            assert unread.status_code == 200
            deadline = monotonic() + 20
            while "ml_dash_active_requests 1.0" not in web.ask("GET", "/metrics").text:
                assert monotonic() < deadline
                Event().wait(0.05)
        assert len(web.ask("GET", path.removeprefix(web.url)).content) == 32 << 20


def test_memory_stays_flat_while_a_file_comes_in(web: Web) -> None:
    def memory() -> float:
        lines = web.ask("GET", "/metrics").text.splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith("process_resident_memory_bytes ")))

    path = f"/experiments/{web.experiment('flat')}/files"
    web.ask("POST", path, files={"file": ("warm", b"x")})
    before = memory()
    most = [before]

    def form() -> Any:
        yield b'--B\r\nContent-Disposition: form-data; name="file"; filename="large"\r\n\r\n'
        for number in range(128):
            yield bytes(1 << 20)
            if number % 32 == 0:
                other = Web(web.url, str(web.session.headers["Authorization"])[7:])
                lines = other.ask("GET", "/metrics").text.splitlines()
                most.append(float(next(x.split()[1] for x in lines if x.startswith("process_resident_memory_bytes "))))
                other.session.close()
        yield b"\r\n--B--\r\n"

    web.ask("POST", path, data=form(), headers={"Content-Type": "multipart/form-data; boundary=B"})
    assert max(*most, memory()) - before < 48 << 20


def test_the_link_of_the_development_server_logs_one_browser_in_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ml_dash", "server", "--dev", "--port", "0", "--data", str(tmp_path / "data")]
    serving = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert serving.stdout is not None
        url = serving.stdout.readline().split()[-1]
        link = serving.stdout.readline().split()[-1]
        assert link.startswith(f"{url}/login?key=")
        for headers in ({"Host": "dash.example.org"}, {"X-Forwarded-For": "127.0.0.1"}):
            refused = requests.get(link, headers=headers, allow_redirects=False, timeout=20)
            assert (refused.status_code, "set-cookie" in refused.headers) == (401, False)
        assert "this link was used" in requests.get(f"{url}/login?key=other", timeout=20).text
        browser = requests.Session()
        page = browser.get(link, timeout=20)
        assert (page.status_code, page.url) == (200, f"{url}/")
        assert browser.get(f"{url}/whoami", timeout=20).json()["kind"] == "login"
        # Used again, it shows the page, which says so, and logs nobody in.
        again = requests.get(link, headers={"Accept": "text/html"}, timeout=20)
        assert (again.status_code, again.text, len(again.cookies)) == (401, page.text, 0)
        browser.close()
    finally:
        serving.terminate()
        serving.wait(20)
        serving.stdout.close()


def test_open_goes_with_the_development_login(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ml_dash", "server", "--open", "--data", str(tmp_path / "data")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "--open goes with --dev" in done.stderr) == (2, True)


def test_the_unit_of_the_server_names_this_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ml_dash.server import install

    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ml-dash").touch()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    path = install.install(tmp_path / "units")
    start = next(line for line in path.read_text().splitlines() if line.startswith("ExecStart="))
    assert start == f"ExecStart={tmp_path}/bin/ml-dash server --data /var/lib/ml-dash --host 127.0.0.1 --port 3000"
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python 3"))
    monkeypatch.setattr(sys, "argv", ["x"])
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path / "scripts"))
    assert f'ExecStart="{tmp_path}/python 3" -m ml_dash server --data' in install.unit()
