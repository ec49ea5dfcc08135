"""What a request comes to: which answers count, which error each other one is, and where a login is never shown."""

from __future__ import annotations

import gzip
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import time
from typing import Any

import pytest

from ml_dash import __version__
from ml_dash.core.protocol import PROTOCOL_HEADER, DeathNote
from ml_dash.errors import MLDashError, RemoteError, ServerRefused, Unauthorised, Unreachable
from ml_dash.sync import remote

JOURNAL, SEGMENT = "ab" * 16, "cd" * 16
FILE = f"{1:020d}-{'ef' * 16}-000000.seg"
BLOB = f"{'09' * 32}-{'ef' * 16}-7"


class Request:
    """What came: body as sent, before decompression."""

    def __init__(self, method: str, path: str, headers: Any, body: bytes) -> None:
        self.method, self.path, self.headers, self.body = method, path, headers, body


class Double:
    """Answers as it is told to, and keeps what it was asked."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.raw: Callable[[socket.socket], None] | None = None
        self.status, self.headers, self.body = 200, {PROTOCOL_HEADER: "1"}, b"{}"
        self._connections: list[socket.socket] = []
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                double._connections.append(self.connection)

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                double.requests.append(Request(self.command, self.path, self.headers, body))
                if double.raw is not None:
                    double.raw(self.connection)
                    self.close_connection = True
                    return
                self.send_response(double.status)
                for name, value in double.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(double.body)))
                self.end_headers()
                self.wfile.write(double.body)

            def log_message(self, *_: Any) -> None:
                pass

        for method in ("GET", "POST", "PUT", "DELETE"):
            setattr(Handler, f"do_{method}", Handler.answer)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def says(self, status: int = 200, body: Any = None, *, ours: bool = True, **headers: str) -> None:
        """The next answers; a body that is no bytes is sent as JSON."""
        self.status = status
        self.body = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()
        self.headers = {**({PROTOCOL_HEADER: "1"} if ours else {}), "Content-Type": "application/json"}
        self.headers |= {name.replace("_", "-"): value for name, value in headers.items()}

    def refuses(self, status: int, code: str, **extra: Any) -> None:
        self.says(status, {"error": {"code": code, "message": f"about {code}"}, **extra})

    def end(self) -> None:
        self.server.shutdown()
        # An error that a test has caught keeps its connection open.
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def double() -> Iterator[Double]:
    made = Double()
    yield made
    made.end()


@pytest.fixture
def link(double: Double) -> Iterator[remote.Link]:
    made = remote.Link(double.url, "a-token", timeout_s=(2, 2))
    yield made
    made.close()


# -- what goes out ----------------------------------------------------------------------------------------------------


def test_each_request_says_who_asks_and_in_which_protocol(double: Double, link: remote.Link) -> None:
    link.call("GET", "/somewhere", params={"a": "b c"})
    [request] = double.requests
    assert request.path == "/somewhere?a=b+c"
    assert request.headers["Authorization"] == "Bearer a-token"
    assert request.headers[PROTOCOL_HEADER] == "1"
    assert request.headers["User-Agent"] == f"ml-dash/{__version__}"


def test_connections_are_kept(double: Double, link: remote.Link) -> None:
    ports = set()

    def remember(connection: socket.socket) -> None:
        ports.add(connection.getpeername()[1])
        body = b"{}"
        head = f"HTTP/1.1 200 OK\r\n{PROTOCOL_HEADER}: 1\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)

    for _ in range(3):
        link.call("GET", "/")
    assert len(double.requests) == 3
    # Behind an error, too.
    double.refuses(409, "gap", length=3)
    with pytest.raises(ServerRefused):
        link.call("GET", "/")
    double.raw = remember
    link.call("GET", "/")
    assert len(ports) == 1


def test_the_token_is_asked_for_each_time(double: Double) -> None:
    tokens = iter(["first", "second"])
    link = remote.Link(double.url, lambda: next(tokens))
    link.call("GET", "/")
    link.call("GET", "/")
    link.close()
    assert [request.headers["Authorization"] for request in double.requests] == ["Bearer first", "Bearer second"]


def test_without_a_login_nothing_is_sent(double: Double) -> None:
    link = remote.Link(double.url, lambda: None)
    with pytest.raises(Unauthorised, match=f"no login for {double.url}.*ml-dash login"):
        link.call("GET", "/")
    link.close()
    assert not double.requests


def test_no_other_login_is_shown(double: Double, link: remote.Link, tmp_path: Any, monkeypatch: Any) -> None:
    """`requests` would put that of .netrc in the place of ours."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    link.call("GET", "/")
    assert double.requests[0].headers["Authorization"] == "Bearer a-token"


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def test_this_machine_is_asked_without_a_proxy(double: Double, link: remote.Link, monkeypatch: Any, name: str) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    link.call("GET", "/")
    assert len(double.requests) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("ours", [True, False])
def test_a_redirect_is_never_followed(double: Double, link: remote.Link, status: int, ours: bool) -> None:
    other = Double()
    try:
        body = {"error": {"code": "moved", "message": "go there"}, "length": 4, "events": 1}
        double.says(status, body, ours=ours, Location=f"{other.url}/elsewhere")
        with pytest.raises(Unreachable):
            link.call("POST", "/", data=b"x")
        assert not other.requests
        assert len(double.requests) == 1
    finally:
        other.end()


def test_bytes_are_compressed_where_it_is_worth_it(double: Double, link: remote.Link) -> None:
    double.says(body={"length": 1, "events": 1})
    for data, packs in ((b"x" * 100, False), (b"many the same " * 1000, True), (os.urandom(200_000), False)):
        remote.append_segment(link, JOURNAL, FILE, 0, data)
        request = double.requests[-1]
        assert (request.headers.get("Content-Encoding") == "gzip") is packs
        assert (gzip.decompress(request.body) if packs else request.body) == data
        assert len(request.body) <= len(data)


# -- what comes back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (401, "unauthorised", Unauthorised),
        (403, "forbidden", Unauthorised),
        (408, "slow", Unreachable),
        (425, "early", Unreachable),
        (429, "busy", Unreachable),
        (500, "fault", Unreachable),
        (502, "fault", Unreachable),
        (503, "unavailable", Unreachable),
        (507, "full", Unreachable),
        (400, "malformed", ServerRefused),
        (404, "unknown", ServerRefused),
        (409, "gap", ServerRefused),
        (410, "gone", ServerRefused),
        (413, "too_large", ServerRefused),
        (422, "torn", ServerRefused),
    ],
)
def test_which_error_a_no_is(double: Double, link: remote.Link, status: int, code: str, error: type) -> None:
    double.refuses(status, code, offset=184, blobs=["a"])
    with pytest.raises(RemoteError) as caught:
        link.call("POST", "/", json={})
    assert type(caught.value) is error
    assert isinstance(caught.value, MLDashError)
    assert isinstance(caught.value, ConnectionError)
    assert f"about {code}" in str(caught.value)
    if isinstance(caught.value, ServerRefused):
        assert (caught.value.status, caught.value.code) == (status, code)
        assert caught.value.extra == {"offset": 184, "blobs": ["a"]}
    if isinstance(caught.value, Unreachable):
        assert caught.value.answered


@pytest.mark.parametrize("status", [200, 204, 301, 302, 400, 401, 403, 404, 405, 407, 408, 410, 422, 429, 500, 503])
@pytest.mark.parametrize("body", [b"<html>Sign in to the guest network</html>", b'{"error": "no"}', b"", b"[1]"])
def test_who_is_no_server_of_ours_says_nothing(double: Double, link: remote.Link, status: int, body: bytes) -> None:
    """Neither that it took something, nor that it refused for good, nor that a login is wrong."""
    double.says(status, b"" if status == 204 else body, ours=False, Content_Type="text/html")
    with pytest.raises(Unreachable) as caught:
        remote.append_segment(link, JOURNAL, FILE, 0, b"data")
    assert not caught.value.answered


def test_a_proxy_that_takes_no_large_bodies_makes_them_smaller(double: Double, link: remote.Link) -> None:
    double.says(413, b"<html>Request Entity Too Large</html>", ours=False)
    with pytest.raises(ServerRefused) as caught:
        remote.append_segment(link, JOURNAL, FILE, 0, b"data")
    assert caught.value.code == "too_large"


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b"3", b"{", b"{}", b'{"length": 4}', b'{"events": 4}', b'{"length": "4", "events": 1}',
     b'{"length": -1, "events": 1}', b'{"length": true, "events": 1}', b'{"length": 4.0, "events": 1}',
     b'{"length": null, "events": 1}', b"\xff\xfe"],
)  # fmt: skip
def test_what_is_no_acknowledgement(double: Double, link: remote.Link, body: bytes) -> None:
    double.says(body=body)
    with pytest.raises(Unreachable):
        remote.append_segment(link, JOURNAL, FILE, 0, b"data")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7", 7.0), (" 0 ", 0.0), ("999999999999", 3600.0), ("soon", None), ("-3", None), ("", None), (None, None)],
)
def test_how_long_a_server_asks_to_wait(double: Double, link: remote.Link, text: str | None, seconds: Any) -> None:
    double.refuses(429, "busy")
    if text is not None:
        double.headers["Retry-After"] = text
    with pytest.raises(Unreachable) as caught:
        link.call("GET", "/")
    assert caught.value.retry_after_s == seconds


def test_a_server_may_ask_to_wait_until_a_time(double: Double, link: remote.Link) -> None:
    for ahead, low, high in ((30, 25, 31), (-100, 0, 0)):
        double.says(503, b"<html>later</html>", ours=False, Retry_After=formatdate(time() + ahead, usegmt=True))
        with pytest.raises(Unreachable) as caught:
            link.call("GET", "/")
        assert caught.value.retry_after_s is not None
        assert low <= caught.value.retry_after_s <= high


def test_nobody_listens() -> None:
    closed = socket.create_server(("127.0.0.1", 0))
    port = closed.getsockname()[1]
    closed.close()
    nobody = remote.Link(f"http://127.0.0.1:{port}", "t")
    with pytest.raises(Unreachable, match="cannot be reached"):
        nobody.call("GET", "/")
    nobody.close()


def test_a_name_that_does_not_resolve() -> None:
    link = remote.Link("http://no-such-host.invalid", "t", timeout_s=(2, 2))
    with pytest.raises(Unreachable):
        link.call("GET", "/")
    link.close()


@pytest.mark.parametrize("url", ["http://127.0.0.1:1:2", "http://[::1", "http://exa mple"])
def test_an_address_that_is_none(url: str) -> None:
    link = remote.Link(url, "t")
    with pytest.raises(Unreachable):
        link.call("GET", "/")
    link.close()


def test_no_answer_in_time(double: Double) -> None:
    over = threading.Event()
    double.raw = lambda _: (over.wait(10), None)[1]
    link = remote.Link(double.url, "t", timeout_s=(1, 0.1))
    try:
        with pytest.raises(Unreachable):
            link.call("GET", "/")
    finally:
        over.set()
        link.close()


_WHOLE = f'HTTP/1.1 200 OK\r\n{PROTOCOL_HEADER}: 1\r\nContent-Length: 27\r\n\r\n{{"length": 4, "events": 12}}'.encode()


@pytest.mark.parametrize("size", range(len(_WHOLE)))
def test_an_answer_that_is_cut_at_any_byte_is_none(double: Double, link: remote.Link, size: int) -> None:
    double.raw = lambda connection: connection.sendall(_WHOLE[:size])
    with pytest.raises(Unreachable):
        remote.append_segment(link, JOURNAL, FILE, 0, b"data")


def test_the_same_answer_whole(double: Double, link: remote.Link) -> None:
    double.raw = lambda connection: connection.sendall(_WHOLE)
    assert remote.append_segment(link, JOURNAL, FILE, 0, b"data")["length"] == 4


def test_an_answer_without_end(double: Double, link: remote.Link, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_MAX_ANSWER_BYTES", 3 << 20)
    double.says(body=gzip.compress(bytes(100 << 20), 1), Content_Encoding="gzip")
    with pytest.raises(Unreachable, match="without end"):
        link.call("GET", "/")


def test_strange_answers_leave_no_connection_open(double: Double, link: remote.Link) -> None:
    double.says(200, b"<html>" + bytes(300_000), ours=False)
    for _ in range(3):
        with pytest.raises(Unreachable):
            link.call("GET", "/", stream=True)
    link.close()
    # What is left open is found when the test ends.


# -- the calls --------------------------------------------------------------------------------------------------------


def _asked(double: Double) -> tuple[str, str, bytes]:
    request = double.requests[-1]
    return request.method, request.path, request.body


def test_the_calls_of_the_protocol(double: Double, link: remote.Link) -> None:
    there = {"segments": {}, "blobs": {}, "missing": [], "events": 0, "deaths": [], "removed": [], "tombstone": False}
    double.says(body={**there, "journal": JOURNAL})
    assert remote.journal(link, JOURNAL)["journal"] == JOURNAL
    assert _asked(double)[:2] == ("GET", f"/sync/v1/journals/{JOURNAL}")

    double.says(body={"length": 12, "events": 3})
    found = remote.append_segment(link, JOURNAL, FILE, 8, b"data", damaged=[(8, 9), (10, 12)], without=[BLOB])
    assert found["length"] == 12
    path = f"/sync/v1/journals/{JOURNAL}/segments/{FILE}?offset=8&damaged=8-9%2C10-12&without={BLOB}"
    assert _asked(double) == ("POST", path, b"data")

    double.says(body={"deaths": 1})
    note = DeathNote(writer="ef" * 16, segment=SEGMENT, end=184)
    assert remote.deaths(link, JOURNAL, [note]) == 1
    method, path, body = _asked(double)
    assert (method, path) == ("POST", f"/sync/v1/journals/{JOURNAL}/deaths")
    assert json.loads(body) == {"deaths": [note]}

    double.says(body={"length": 3, "size": 9, "complete": False})
    assert remote.blob_state(link, JOURNAL, BLOB)["length"] == 3
    assert _asked(double)[:2] == ("GET", f"/sync/v1/journals/{JOURNAL}/blobs/{BLOB}/state")
    assert not remote.append_blob(link, JOURNAL, BLOB, 3, 9, b"abc")["complete"]
    assert _asked(double) == ("PUT", f"/sync/v1/journals/{JOURNAL}/blobs/{BLOB}?offset=3&size=9", b"abc")
    remote.append_blob(link, JOURNAL, BLOB, 0, 0, b"", body=True)
    assert _asked(double)[1].endswith("?offset=0&size=0&kind=body")

    double.says(body={"segments": {SEGMENT: {"length": 184, "of": 184, "sha256": "00" * 32}}})
    assert remote.digests(link, JOURNAL, {SEGMENT: 184})[SEGMENT]["of"] == 184
    assert json.loads(_asked(double)[2]) == {"segments": {SEGMENT: 184}}

    double.says(body={"experiment": "47", "journals": [JOURNAL]})
    assert remote.find_experiment(link, "my project", "a/b")["experiment"] == "47"
    assert _asked(double)[1] == "/sync/v1/experiments?project=my+project&name=a%2Fb"

    double.says(body={"records": [], "next": None})
    assert remote.order(link, "47", 5, 100)["next"] is None
    assert _asked(double)[1] == "/sync/v1/experiments/47/order?after=5&limit=100"

    double.says(body=b"bytes", X_ML_Dash_File=FILE, X_ML_Dash_Journal=JOURNAL, X_ML_Dash_Length="5")
    assert remote.segment_bytes(link, SEGMENT, 0, 10) == (b"bytes", FILE, JOURNAL)
    assert _asked(double)[1] == f"/sync/v1/segments/{SEGMENT}?offset=0&limit=10"
    assert remote.base(link, "47") == b"bytes"
    assert b"".join(remote.blob(link, "47", BLOB)) == b"bytes"

    double.says(body={"experiment": "47", "writers": 2})
    assert remote.remove(link, "47") == 2
    assert _asked(double)[:2] == ("DELETE", "/sync/v1/experiments/47")

    double.says(body={"userName": "alice", "readOnly": False})
    assert remote.whoami(link)["userName"] == "alice"


@pytest.mark.parametrize(
    "call",
    [
        lambda link: remote.journal(link, JOURNAL),
        lambda link: remote.deaths(link, JOURNAL, []),
        lambda link: remote.blob_state(link, JOURNAL, BLOB),
        lambda link: remote.append_blob(link, JOURNAL, BLOB, 0, 0, b""),
        lambda link: remote.digests(link, JOURNAL, {}),
        lambda link: remote.find_experiment(link, "p", "n"),
        lambda link: remote.order(link, "47", 0, 1),
        lambda link: remote.segment_bytes(link, SEGMENT, 0, 1),
        lambda link: remote.remove(link, "47"),
        lambda link: remote.whoami(link),
    ],
)
def test_an_answer_without_what_was_promised_is_none(
    double: Double, link: remote.Link, call: Callable[[remote.Link], Any]
) -> None:
    double.says(body={"other": 1})
    with pytest.raises(Unreachable):
        call(link)


def test_a_content_that_breaks_off(double: Double, link: remote.Link) -> None:
    head = f"HTTP/1.1 200 OK\r\n{PROTOCOL_HEADER}: 1\r\nContent-Length: 100\r\n\r\n"
    double.raw = lambda connection: connection.sendall(head.encode() + b"half")
    with pytest.raises(Unreachable, match="broke off"):
        list(remote.blob(link, "47", BLOB))


def test_no_error_tells_the_token(double: Double) -> None:
    link = remote.Link(double.url, "secret-token", timeout_s=(1, 1))
    for status in (200, 401, 404, 500):
        double.says(status, b"<html>", ours=False)
        with pytest.raises(RemoteError) as caught:
            remote.journal(link, JOURNAL)
        assert "secret-token" not in f"{caught.value!r} {caught.value}"
    link.close()
