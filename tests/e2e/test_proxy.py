"""The proxy against a small real HTTP server: every fault does what its name says."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from . import proxy as px
from .proxy import Fault, Proxy, Request, Script


class Echo(ThreadingHTTPServer):
    """Answers with what it got; remembers every body it got whole."""

    daemon_threads = False

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Echo

    def do_POST(self) -> None:
        size = int(self.headers["Content-Length"])
        body = self.rfile.read(size)
        if len(body) < size:
            self.close_connection = True
            return
        self.server.bodies.append(body)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    with px.proxy(("127.0.0.1", echo.server_address[1])) as made:
        yield made


def post(proxy: Proxy, body: bytes, timeout: float = 10.0) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=timeout)
    try:
        connection.request("POST", "/echo?x=1", body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


FAILURES = (OSError, http.client.HTTPException)


def until(holds: object, seconds: float = 10.0) -> None:
    assert callable(holds)
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        threading.Event().wait(0.002)


def test_without_a_fault_everything_passes_on_one_connection(proxy: Proxy, echo: Echo) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
    for number in range(5):
        connection.request("POST", "/", b"%d" % number)
        assert connection.getresponse().read() == b"%d" % number
    connection.close()
    assert echo.bodies == [b"0", b"1", b"2", b"3", b"4"]
    assert proxy.seen.connections == 1
    assert proxy.seen.statuses == {200: 5}


def test_a_request_cut_at_any_byte_never_arrives_whole(proxy: Proxy, echo: Echo) -> None:
    seen: list[Request] = []

    def cut(request: Request) -> Fault:
        seen.append(request)
        return Fault(px.CUT_REQUEST, at=len(seen) - 1, reset=len(seen) % 2 == 0)

    proxy.plan = cut
    while not seen or len(seen) < len(seen[0].raw):
        with pytest.raises(FAILURES):
            post(proxy, b"0123456789")
    assert seen[0].method == "POST"
    assert seen[0].path == "/echo"
    assert echo.bodies == []
    proxy.plan = px.let_pass
    assert post(proxy, b"whole") == (200, b"whole")


def test_a_response_cut_at_any_byte_is_a_lost_acknowledgement(proxy: Proxy, echo: Echo) -> None:
    post(proxy, b"body")
    length = proxy.seen.longest
    for at in range(length):
        proxy.plan = Script([Fault(px.CUT_RESPONSE, at=at, reset=at % 2 == 0)])
        # A stream that ends within the head is taken by http.client for an answer without a body.
        with contextlib.suppress(*FAILURES):
            assert post(proxy, b"body")[1] != b"body"
    assert proxy.seen.lost_acks == length
    assert len(echo.bodies) == length + 1


def test_the_proxy_answers_itself(proxy: Proxy, echo: Echo) -> None:
    proxy.plan = Script([Fault(px.ANSWER, answer=px.answer(429, b"{}", "Retry-After: 1")), Fault()])
    assert post(proxy, b"x") == (429, b"{}")
    assert post(proxy, b"y") == (200, b"y")
    assert echo.bodies == [b"y"]


def test_duplicates_reach_the_server_together(proxy: Proxy, echo: Echo) -> None:
    proxy.plan = Script([Fault(px.DUPLICATE, at=3)])
    assert post(proxy, b"x") == (200, b"x")
    until(lambda: echo.bodies == [b"x"] * 3)


def test_what_is_late_comes_after_what_followed_it(proxy: Proxy, echo: Echo) -> None:
    proxy.plan = Script([Fault(px.LATE, at=2)])
    with pytest.raises(FAILURES):
        post(proxy, b"early")
    for body in (b"1", b"2", b"3"):
        post(proxy, body)
    assert echo.bodies == [b"1", b"early", b"2", b"3"]


def test_what_is_replayed_comes_twice(proxy: Proxy, echo: Echo) -> None:
    proxy.plan = Script([Fault(px.REPLAY, at=9)])
    for body in (b"1", b"2"):
        post(proxy, body)
    assert proxy.deliver_late() == 1
    assert echo.bodies == [b"1", b"2", b"1"]


def test_what_is_held_is_overtaken(proxy: Proxy, echo: Echo) -> None:
    proxy.plan = Script([Fault(px.HOLD, at=1, seconds=10)])
    thread = threading.Thread(target=post, args=(proxy, b"held"))
    thread.start()
    until(lambda: proxy.seen.requests == 1)
    post(proxy, b"second")
    thread.join()
    assert sorted(echo.bodies) == [b"held", b"second"]


@pytest.mark.parametrize("fault", [Fault(px.STALL), Fault(px.HALF_OPEN, at=20)], ids=["stall", "half-open"])
def test_silence_lasts_until_the_client_gives_up(proxy: Proxy, fault: Fault) -> None:
    proxy.plan = Script([fault])
    with pytest.raises(TimeoutError):
        post(proxy, b"x", timeout=0.1)
    assert post(proxy, b"y") == (200, b"y")


@pytest.mark.parametrize("kind", [px.TRICKLE_REQUEST, px.TRICKLE_RESPONSE])
def test_a_trickle_arrives_whole(proxy: Proxy, kind: str) -> None:
    proxy.plan = Script([Fault(kind, at=7, seconds=0.0005)])
    assert post(proxy, b"slowly" * 9) == (200, b"slowly" * 9)


def test_down_refuses_and_up_is_the_same_port(proxy: Proxy) -> None:
    port = proxy.port
    post(proxy, b"x")
    proxy.down()
    with pytest.raises(ConnectionRefusedError):
        post(proxy, b"x")
    proxy.up()
    assert proxy.port == port
    assert post(proxy, b"y") == (200, b"y")


def test_a_server_that_is_gone_ends_the_connection(echo: Echo) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with px.proxy(nobody.getsockname()) as proxy, pytest.raises(FAILURES):
            post(proxy, b"x")


def test_chunked_bodies_pass(proxy: Proxy) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
    seen: list[Request] = []

    def refuse(request: Request) -> Fault:
        seen.append(request)
        return Fault(px.ANSWER, answer=px.answer(200))

    proxy.plan = refuse
    connection.request("POST", "/", iter([b"one", b"two"]), encode_chunked=True)
    assert connection.getresponse().status == 200
    connection.close()
    assert seen[0].raw.endswith(b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")
