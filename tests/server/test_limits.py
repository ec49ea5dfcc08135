"""What a server takes in: limits of size, time and memory hold before there is anything to regret."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import re
import tracemalloc
import zlib
from collections.abc import Iterable
from typing import Any

import pytest
from starlette.requests import Request

from ml_dash.core.protocol import MAX_BATCH_BYTES, Refused
from ml_dash.server.http import bodies
from ml_dash.server.http.bodies import Budget, body_of, decode_json
from tests.server.conftest import Web

LIMIT = 1 << 20


def request_of(parts: Iterable[bytes], *headers: tuple[str, str], stall: bool = False) -> Request:
    """A request whose body comes in these parts and, with `stall`, never ends."""
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    if not stall:
        messages.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> Any:
        if not messages:
            await asyncio.Event().wait()
        return messages.pop(0)

    given = [(name.encode(), value.encode()) for name, value in headers]
    return Request({"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": given}, receive)


def body(request: Request, budget: Budget | None = None) -> bytes:
    spent = budget or Budget()

    async def read() -> bytes:
        async with body_of(request, LIMIT, spent) as data:
            assert spent.used >= len(data)
            return data

    try:
        return asyncio.run(read())
    finally:
        assert spent.used == 0


def refusal(request: Request, budget: Budget | None = None) -> Refused:
    with pytest.raises(Refused) as caught:
        body(request, budget)
    return caught.value


def pieces(data: bytes, size: int = 64 << 10) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


GZIP = ("content-encoding", "gzip")
CHUNKED = ("transfer-encoding", "chunked")


@pytest.mark.parametrize("size", [0, 1, 100_000, LIMIT])
@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("compressed", [True, False])
def test_a_body_within_the_limit_is_read(size: int, declared: bool, compressed: bool) -> None:
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    sent = gzip.compress(data) if compressed else data
    headers = [("content-length", str(len(sent))) if declared else CHUNKED, *([GZIP] if compressed else [])]
    assert body(request_of(pieces(sent), *headers)) == data


def test_one_byte_more_is_too_much() -> None:
    data = b"x" * (LIMIT + 1)
    # Declared, it is refused before a byte is asked for.
    assert refusal(request_of([], ("content-length", str(len(data))), stall=True)).status == 413
    assert refusal(request_of(pieces(data), CHUNKED)).extra == {"limit": LIMIT}
    assert refusal(request_of(pieces(gzip.compress(data)), CHUNKED, GZIP)).status == 413


def test_a_bomb_takes_no_memory() -> None:
    # A gigabyte of zeros in one megabyte.
    inner = zlib.compressobj(9, wbits=31)
    bomb = b"".join(inner.compress(bytes(1 << 20)) for _ in range(1024)) + inner.flush()
    request = request_of(pieces(bomb), ("content-length", str(len(bomb) % LIMIT)), GZIP)
    tracemalloc.start()
    try:
        assert refusal(request).status == 413
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * LIMIT


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"no gzip at all", 400),
        (gzip.compress(b"x" * 1000)[:-4], 400),
        (gzip.compress(b"one") + gzip.compress(b"two"), 400),
        (gzip.compress(b"one") + b"more", 400),
        (b"", 400),
    ],
    ids=["no gzip", "cut off", "two members", "something behind it", "empty"],
)
def test_a_body_that_is_not_one_gzip_member_is_refused(sent: bytes, status: int) -> None:
    assert refusal(request_of(pieces(sent), CHUNKED, GZIP)).status == status
    # And wherever the parts are cut.
    assert refusal(request_of(pieces(sent, 1), CHUNKED, GZIP)).status == status


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "deflate", "gzip,br"])
def test_other_encodings_are_refused(encoding: str) -> None:
    assert refusal(request_of([b"x"], CHUNKED, ("content-encoding", encoding))).status == 415


def test_a_body_that_stalls_or_trickles_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "IDLE_S", 0.05)
    assert refusal(request_of([b"x"], CHUNKED, stall=True)).status == 408
    monkeypatch.setattr(bodies, "IDLE_S", 0.0)
    monkeypatch.setattr(bodies, "SLOWEST_BYTES_PER_S", 1 << 60)
    assert refusal(request_of([b"x"] * 3, CHUNKED)).status == 408


def test_who_comes_when_memory_is_spent_waits_and_is_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "ADMISSION_S", 0.05)

    async def scene() -> None:
        budget = Budget(100)
        await budget.admit(80)
        with pytest.raises(Refused) as caught:
            await budget.admit(30)
        assert (caught.value.status, caught.value.retry_after_s) == (429, 1)
        waiting = asyncio.create_task(budget.admit(30))
        await asyncio.sleep(0)
        # First come, first served: a smaller one does not overtake.
        second = asyncio.create_task(budget.admit(1))
        await asyncio.sleep(0)
        assert budget.used == 80
        budget.release(80)
        await asyncio.gather(waiting, second)
        assert budget.used == 31
        budget.grow(169)
        with pytest.raises(Refused):
            budget.grow(1)
        budget.release(200)
        # One that is larger than all of it is let in alone.
        await budget.admit(1000)
        cancelled = asyncio.create_task(budget.admit(1))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        budget.release(1000)
        assert budget.used == 0

    asyncio.run(scene())


@pytest.mark.parametrize(
    "text",
    [
        b'{"a": NaN}', b'{"a": Infinity}', b'{"a": 1e999}', b'{"a": 1, "a": 2}', b'{"a": "\\ud800"}',
        b'{"a": "\\udc00"}', b"\xff",
        b"\xef\xbb\xbf{}", b"", b"[" * 100_000, b'{"a": 1} x', b"{'a': 1}",
    ],
)  # fmt: skip
def test_json_is_read_strictly(text: bytes) -> None:
    with pytest.raises(Refused) as caught:
        decode_json(text)
    assert caught.value.status == 400


def test_a_pair_of_surrogates_is_a_character() -> None:
    assert decode_json(b'"\\ud83d\\ude00"') == "\N{GRINNING FACE}"


# -- over HTTP --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        '{"a": 18446744073709551616}', '{"a": [-9223372036854775809]}', '{"a": ' + "[" * 70 + "]" * 70 + "}",
        '{"a": ' + '{"b": ' * 70 + "1" + "}" * 71, '{"a": ' + "[" * 950 + "]" * 950 + "}",
    ],
)  # fmt: skip
def test_what_could_not_be_recorded_here_is_not_taken_either(web: Web, values: str) -> None:
    path = f"/experiments/{web.experiment('values')}"
    calls = [
        ("/parameters", '{"data": %s}'), ("/logs", '{"logs": [{"message": "m", "metadata": %s}]}'),
        ("/metrics/m/append", '{"data": %s}'), ("/metrics/m/append-batch", '{"dataPoints": [{"v": 1}, %s]}'),
        ("/metrics/m/append", '{"data": {"v": 1}, "metadata": %s}'),
    ]  # fmt: skip
    headers = {"Content-Type": "application/json"}
    for call, form in calls:
        web.refused("POST", path + call, 400, "malformed", data=form % values, headers=headers)
    form = '{"name": "values", "metadata": %s}'
    web.refused("POST", "/projects/web/experiments", 400, "malformed", data=form % values, headers=headers)
    assert web.get(path)["counts"]["points"] == 0


def test_an_entry_from_before_the_clock_hides_nothing(web: Web) -> None:
    path = f"/experiments/{web.experiment('old')}"
    web.post(f"{path}/logs", {"logs": [{"message": "m", "timestamp": "0001-01-01T00:00:00Z"}]})
    assert web.get(path)["name"] == "old"
    assert web.get(f"{path}/logs")["logs"][0]["timestamp"].startswith("1970-01-01T00:00:00")


def test_a_frame_that_is_too_large_is_refused_before_it_is_sent(web: Web) -> None:
    path = f"/sync/v1/journals/{'0' * 32}/segments/1-{'0' * 32}-0.seg?offset=0"
    found = web.ask("GET", f"/sync/v1/journals/{'0' * 32}", 404)
    assert found.headers["X-ML-Dash-Protocol"] == "1"
    # Nothing of it is sent: the answer comes on what the headers say.
    import http.client

    host, _, port = web.url.rpartition("/")[2].rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=20)
    connection.putrequest("POST", path)
    connection.putheader("Authorization", web.session.headers["Authorization"])
    connection.putheader("Content-Length", str(MAX_BATCH_BYTES + 1))
    connection.putheader("Expect", "100-continue")
    connection.endheaders()
    response = connection.getresponse()
    assert response.status in (400, 413)
    assert response.getheader("Connection") == "close"
    connection.close()


def test_who_has_no_login_is_told_before_a_body_is_read(web: Web) -> None:
    anonymous = Web(web.url, None)

    def endless() -> Iterable[bytes]:
        while True:
            yield b"x" * 65_536

    answer = None
    # It may be cut off while it sends.
    with contextlib.suppress(OSError):
        answer = anonymous.session.post(f"{web.url}/projects/p/experiments", data=endless(), timeout=30)
    assert answer is None or answer.status_code == 401
    anonymous.session.close()
    assert web.get("/experiments", limit=1)["experiments"] is not None


@pytest.mark.parametrize(
    "form",
    [
        b"no form", b"--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x\"\r\n\r\ncut off",
        b"--B\r\nX-Long: " + b"y" * 200_000, b"--B\r\n" + b"X-Many: y\r\n" * 200 + b"\r\n\r\n--B--\r\n",
        b"--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"../../up\"\r\n\r\nx\r\n--B--\r\n",
        b"--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\x00b\"\r\n\r\nx\r\n--B--\r\n",
        b"--B\r\nContent-Disposition: form-data; name=\"prefix\"\r\n\r\n" + b"p" * 300_000 + b"\r\n--B--\r\n",
        b"--B\r\nContent-Disposition: form-data; name=\"prefix\"\r\n\r\nonly\r\n--B--\r\n", b"--B--\r\n", b"",
    ],
)  # fmt: skip
def test_a_form_that_is_none_leaves_nothing_behind(web: Web, server: Any, form: bytes) -> None:
    path = f"/experiments/{web.experiment('forms')}/files"
    web.refused("POST", path, 400, "malformed", data=form, headers={"Content-Type": "multipart/form-data; boundary=B"})
    assert web.get(path)["files"] == []
    assert not list((server.data / "incoming").glob("upload-*"))
    web.refused("POST", path, 415, "malformed", data=form, headers={"Content-Type": "text/plain"})


def test_a_client_that_goes_while_it_sends_a_file_leaves_nothing_behind(web: Web, server: Any) -> None:
    import socket

    identity = web.experiment("left")
    host, _, port = web.url.rpartition("/")[2].rpartition(":")
    head = (
        f"POST /experiments/{identity}/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n"
        f"Authorization: {web.session.headers['Authorization']!s}\r\n"
        "Content-Type: multipart/form-data; boundary=B\r\n\r\n"
        '--B\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    ).encode()
    with socket.create_connection((host, int(port)), 10) as connection:
        connection.sendall(head + b"y" * 100_000)
        wait_until(lambda: list((server.data / "incoming").glob("upload-*")))
    wait_until(lambda: not list((server.data / "incoming").glob("upload-*")))
    assert web.get(f"/experiments/{identity}/files")["files"] == []


def wait_until(condition: Any) -> None:
    from threading import Event
    from time import monotonic

    deadline = monotonic() + 20
    while not condition():
        assert monotonic() < deadline
        Event().wait(0.01)


def test_figures_have_no_label_that_a_client_makes_up(web: Web) -> None:
    for method in ("FOO", "BAR", "A-B"):
        web.refused(method, "/experiments", 405, "method")
        web.refused(method, f"/{method}", 404, "unknown")
    text = web.ask("GET", "/metrics").text
    methods = set(re.findall(r'method="([^"]*)"', text))
    assert methods <= {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "OTHER"}
