"""A TCP proxy that knows just enough HTTP to break it at any byte: what a network may do to a request or its answer."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Final

PASS: Final = "pass"
CUT_REQUEST: Final = "cut request"  # the server gets `at` bytes of the request, then the connection ends
CUT_RESPONSE: Final = "cut response"  # the server answers; the client gets the first `at` (mod its length) bytes
ANSWER: Final = "answer"  # the proxy answers with `answer`; the server hears nothing
DELAY: Final = "delay"  # `seconds` pass before the request goes on
TRICKLE_REQUEST: Final = "trickle request"  # pieces of `at` bytes, `seconds` apart
TRICKLE_RESPONSE: Final = "trickle response"
STALL: Final = "stall"  # nothing goes on; the connection stays open until the client gives up
HALF_OPEN: Final = "half-open"  # `at` bytes of the answer, then silence without an end
DUPLICATE: Final = "duplicate"  # the server gets it `at` times at once; the client gets one of the answers
REPLAY: Final = "replay"  # it passes, and comes again when `at` further requests have passed
LATE: Final = "late"  # the client's connection ends; the server gets the request when `at` further ones have passed
HOLD: Final = "hold"  # waits until `at` further requests have passed, at most `seconds`: they overtake it

_HEAD_END: Final = b"\r\n\r\n"
_LARGEST_HEAD: Final = 1 << 16
_PIECE: Final = 1 << 16
_PATIENCE_S: Final = 60.0
_RESET: Final = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Fault:
    """What happens to one request: `at` a byte or a number of times, as the kind says."""

    kind: str = PASS
    at: int = 0
    seconds: float = 0.0
    answer: bytes = b""
    # Connections end with a reset, else with an orderly end of the stream.
    reset: bool = True


@dataclass(frozen=True)
class Request:
    """A whole request as it came from the client."""

    number: int
    method: str
    target: str
    raw: bytes

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]


Plan = Callable[[Request], Fault]


def let_pass(_: Request) -> Fault:
    """The plan of a network without faults."""
    return Fault()


def answer(status: int, body: bytes = b"", *headers: str, kind: str = "application/json") -> bytes:
    """An HTTP response."""
    lines = [f"HTTP/1.1 {status} Because", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + _HEAD_END + body


class Script:
    """A plan: these faults for the next requests that match, one each; then everything passes."""

    def __init__(self, faults: Iterable[Fault], *, matches: Callable[[Request], bool] = lambda _: True) -> None:
        self._faults = deque(faults)
        self._matches = matches
        self._guard = threading.Lock()
        self.struck = 0

    def __call__(self, request: Request) -> Fault:
        with self._guard:
            if not self._faults or not self._matches(request):
                return Fault()
            self.struck += 1
            return self._faults.popleft()

    @property
    def left(self) -> int:
        """How many faults have not struck yet."""
        return len(self._faults)


@dataclass
class Seen:
    """What passed."""

    requests: int = 0
    # Answered with 2xx by the server, and the client did not get all of that answer.
    lost_acks: int = 0
    connections: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    # Length of the longest answer that passed or was cut.
    longest: int = 0


class _Ended(Exception):
    """This connection goes on no further."""


class Proxy:
    """Listens on loopback, a thread for each connection. `plan` and `upstream` may change at any time."""

    def __init__(self, upstream: tuple[str, int], plan: Plan = let_pass, *, tls: ssl.SSLContext | None = None) -> None:
        self.upstream = upstream
        self.plan = plan
        self.tls = tls
        self.seen = Seen()
        self._guard = threading.Lock()
        self._passed = threading.Condition(self._guard)
        self._later: list[tuple[int, bytes]] = []
        self._sockets: set[socket.socket] = set()
        self._threads: set[threading.Thread] = set()
        self._closed = threading.Event()
        self._listener: socket.socket | None = None
        self.port = 0
        self.up()

    @property
    def url(self) -> str:
        """Where clients are sent."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    one_request_each = False
    """Is each request sent over a connection of its own?"""

    def connect(self) -> socket.socket:
        """A connection to the server."""
        return socket.create_connection(self.upstream, 10)

    # -- up and down -------------------------------------------------------------------------------------------------

    def up(self) -> None:
        """Listen, on the same port as before."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(128)
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._run(lambda: self._accept(listener))

    def down(self) -> None:
        """Refuse connections, and end those that are open."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.cut()

    def cut(self) -> None:
        """End every open connection, without a word."""
        with self._guard:
            sockets = list(self._sockets)
        for each in sockets:
            _end(each, reset=True)

    def close(self) -> None:
        """End everything; no thread and no socket is left."""
        self._closed.set()
        with self._guard:
            self._passed.notify_all()
        self.down()
        while self._threads:
            with self._guard:
                threads = list(self._threads)
            for thread in threads:
                thread.join(_PATIENCE_S)
                if thread.is_alive():
                    raise TimeoutError("a connection of the proxy does not end")

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def deliver_late(self) -> int:
        """Send now what was to come later; how many."""
        with self._guard:
            due, self._later = self._later, []
        for _, raw in due:
            self._send_aside(raw)
        return len(due)

    # -- connections -------------------------------------------------------------------------------------------------

    def _run(self, function: Callable[[], None]) -> None:
        def body() -> None:
            try:
                function()
            finally:
                with self._guard:
                    self._threads.discard(threading.current_thread())

        thread = threading.Thread(target=body, name="proxy", daemon=True)
        with self._guard:
            self._threads.add(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while not self._closed.is_set():
            try:
                client, _ = listener.accept()
            except OSError:
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.settimeout(_PATIENCE_S)
            with self._guard:
                self._sockets.add(client)
                self.seen.connections += 1
            self._run(partial(self._serve, client))

    def _serve(self, plain: socket.socket) -> None:
        client = plain
        if self.tls is not None:
            try:
                client = self.tls.wrap_socket(plain, server_side=True)
            except OSError:  # the client does not like what it sees
                self.disown(plain)
                plain.close()
                return
            self.disown(plain)
            self.adopt(client)
        upstream = _Upstream(self)
        reader = _Reader(client)
        reset = False
        try:
            while True:
                request = self._read_request(reader)
                fault = self.plan(request)
                with self._guard:
                    self.seen.requests += 1
                    self.seen.kinds[fault.kind] += 1
                reset = fault.reset
                self._deliver_due(request.number)
                try:
                    self._carry(request, fault, client, reader, upstream)
                finally:
                    with self._guard:
                        self._passed.notify_all()
        except (_Ended, OSError):
            pass
        finally:
            upstream.close()
            with self._guard:
                self._sockets.discard(client)
            _end(client, reset=reset)
            client.close()

    def _read_request(self, reader: _Reader) -> Request:
        head = reader.head()
        line = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        if len(line) != 3:
            raise _Ended
        if header(head, "expect").lower() == "100-continue":
            reader.go_on()
        raw = head + reader.body(head, is_response=False)
        with self._guard:
            number = self.seen.requests
        return Request(number, line[0], line[1], raw)

    def _carry(
        self, request: Request, fault: Fault, client: socket.socket, reader: _Reader, upstream: _Upstream
    ) -> None:
        kind = fault.kind
        if kind == ANSWER:
            client.sendall(fault.answer)
            return
        if kind == STALL:
            self._wait_for_client(reader)
            raise _Ended
        if kind == CUT_REQUEST:
            upstream.send(request.raw[: fault.at])
            upstream.end(reset=fault.reset)
            raise _Ended
        if kind == LATE:
            with self._guard:
                self._later.append((request.number + fault.at, request.raw))
            raise _Ended
        if kind == REPLAY:
            with self._guard:
                self._later.append((request.number + fault.at, request.raw))
        elif kind == HOLD:
            self._let_overtake(request.number + fault.at, fault.seconds)
        elif kind == DELAY:
            self._closed.wait(fault.seconds)
        if kind == DUPLICATE:
            self._send_copies(request.raw, fault.at - 1)
        self._answer_from(request, fault, client, reader, upstream)

    def _answer_from(
        self, request: Request, fault: Fault, client: socket.socket, reader: _Reader, upstream: _Upstream
    ) -> None:
        if fault.kind == TRICKLE_REQUEST:
            upstream.trickle(request.raw, fault.at, fault.seconds)
            response = upstream.response(request)
        else:
            response = upstream.exchange(request)
        if response is None:  # a stream of events: as it comes
            upstream.relay(client)
            raise _Ended
        self._note(response)
        if fault.kind in (CUT_RESPONSE, HALF_OPEN):
            # An answer's length is not known before: any number stands for one of its bytes.
            at = fault.at % len(response) if fault.kind == CUT_RESPONSE else min(fault.at, len(response))
            if at < len(response) and response[9:10] == b"2":
                with self._guard:
                    self.seen.lost_acks += 1
            client.sendall(response[:at])
            if fault.kind == HALF_OPEN:
                self._wait_for_client(reader)
            raise _Ended
        if fault.kind == TRICKLE_RESPONSE:
            self._trickle(client, response, fault)
        else:
            client.sendall(response)
        if upstream.closed:
            raise _Ended

    def _note(self, response: bytes) -> None:
        with self._guard:
            self.seen.statuses[int(response[9:12])] += 1
            self.seen.longest = max(self.seen.longest, len(response))

    def _trickle(self, client: socket.socket, response: bytes, fault: Fault) -> None:
        for start in range(0, len(response), max(1, fault.at)):
            client.sendall(response[start : start + max(1, fault.at)])
            if self._closed.wait(fault.seconds):
                raise _Ended

    def _wait_for_client(self, reader: _Reader) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline and not self._closed.is_set():
            if reader.gone(0.05):
                return

    def _let_overtake(self, until: int, seconds: float) -> None:
        with self._guard:
            self._passed.wait_for(lambda: self.seen.requests > until or self._closed.is_set(), seconds)

    # -- what comes again --------------------------------------------------------------------------------------------

    def _deliver_due(self, number: int) -> None:
        with self._guard:
            due = [raw for when, raw in self._later if when <= number]
            self._later = [(when, raw) for when, raw in self._later if when > number]
        for raw in due:
            self._send_aside(raw)

    def _send_aside(self, raw: bytes) -> None:
        """Over a connection of its own; nobody waits for the answer but us."""
        upstream = _Upstream(self)
        try:
            response = upstream.exchange(Request(-1, raw.split(b" ", 1)[0].decode("latin-1"), "", raw))
            if response is not None:
                self._note(response)
        except (_Ended, OSError):
            return
        finally:
            upstream.close()

    def _send_copies(self, raw: bytes, count: int) -> None:
        for _ in range(count):
            self._run(lambda: self._send_aside(raw))

    def adopt(self, made: socket.socket) -> None:
        """Count a socket among those that `cut` ends."""
        with self._guard:
            self._sockets.add(made)

    def disown(self, made: socket.socket) -> None:
        """The opposite."""
        with self._guard:
            self._sockets.discard(made)


class _Reader:
    """Bytes of one side, cut into messages."""

    def __init__(self, source: socket.socket) -> None:
        self._source = source
        self._rest = bytearray()

    def _more(self) -> None:
        data = self._source.recv(_PIECE)
        if not data:
            raise _Ended
        self._rest += data

    def take(self, count: int) -> bytes:
        """Exactly that many bytes."""
        while len(self._rest) < count:
            self._more()
        taken = bytes(self._rest[:count])
        del self._rest[:count]
        return taken

    def go_on(self) -> None:
        """Tell the other side that its body is waited for."""
        self._source.sendall(b"HTTP/1.1 100 Continue" + _HEAD_END)

    def until(self, mark: bytes) -> bytes:
        """Everything up to and with the mark."""
        while (at := self._rest.find(mark)) < 0:
            if len(self._rest) > _LARGEST_HEAD and mark == _HEAD_END:
                raise _Ended
            self._more()
        return self.take(at + len(mark))

    def head(self) -> bytes:
        """A message's head."""
        return self.until(_HEAD_END)

    def body(self, head: bytes, *, is_response: bool) -> bytes:
        """The body that belongs to that head, as it is on the wire."""
        length = header(head, "content-length")
        if header(head, "transfer-encoding").lower() == "chunked":
            parts = []
            while True:
                line = self.until(b"\r\n")
                size = int(line.split(b";")[0], 16)
                parts += [line, self.take(size + 2)]
                if not size:
                    return b"".join(parts)
        if length:
            return self.take(int(length))
        return self.rest() if is_response else b""

    def rest(self) -> bytes:
        """Everything up to the end of the stream."""
        with contextlib.suppress(_Ended):
            while True:
                self._more()
        return self.take(len(self._rest))

    def pending(self) -> bytes:
        """What was read and not taken."""
        return self.take(len(self._rest))

    def gone(self, seconds: float) -> bool:
        """Has the other side ended the stream, within that time?"""
        if not select.select([self._source], [], [], seconds)[0]:
            return False
        try:
            self._more()
        except (_Ended, OSError):
            return True
        return False


class _Upstream:
    """The connection to the server that belongs to a client's."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._socket: socket.socket | None = None
        self._reader: _Reader | None = None
        self._endless_head = b""
        self.closed = False

    def _connected(self) -> socket.socket:
        if self._socket is None:
            self._socket = self._proxy.connect()
            self._socket.settimeout(_PATIENCE_S)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._reader = _Reader(self._socket)
            self._proxy.adopt(self._socket)
        return self._socket

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._connected().sendall(data)

    def exchange(self, request: Request) -> bytes | None:
        """Send a request and wait for its answer; None for an endless one. Nothing is ever sent a second time."""
        if self._reader is not None and (self._proxy.one_request_each or self._reader.gone(0)):
            self.close()
        self.send(request.raw)
        return self.response(request)

    def response(self, request: Request) -> bytes | None:
        """The whole answer; None if it is a stream of events."""
        assert self._reader is not None
        head = self._reader.head()
        while head[9:12] == b"100":
            head = self._reader.head()
        if header(head, "content-type").startswith("text/event-stream"):
            self._endless_head = head
            return None
        without = request.method == "HEAD" or head[9:12] in (b"204", b"304")
        body = b"" if without else self._reader.body(head, is_response=True)
        self.closed = header(head, "connection").lower() == "close"
        return head + body

    def relay(self, client: socket.socket) -> None:
        """Pass an endless answer on."""
        assert self._socket is not None
        assert self._reader is not None
        client.sendall(self._endless_head + self._reader.pending())
        while data := self._socket.recv(_PIECE):
            client.sendall(data)

    def trickle(self, data: bytes, size: int, seconds: float) -> None:
        """Send it in small pieces."""
        for start in range(0, len(data), max(1, size)):
            self.send(data[start : start + max(1, size)])
            time.sleep(seconds)

    def end(self, *, reset: bool) -> None:
        """End it as the fault says."""
        if self._socket is not None:
            _end(self._socket, reset=reset)
        self.close()

    def close(self) -> None:
        """Close it."""
        made, self._socket, self._reader = self._socket, None, None
        if made is not None:
            self._proxy.disown(made)
            made.close()


def header(head: bytes, name: str) -> str:
    """The value of a header; empty if there is none."""
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name.encode():
            return value.strip().decode("latin-1")
    return ""


def _end(made: socket.socket, *, reset: bool) -> None:
    with contextlib.suppress(OSError):
        if reset:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            made.shutdown(socket.SHUT_RD)
        else:
            made.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def proxy(upstream: tuple[str, int], plan: Plan = let_pass) -> Iterator[Proxy]:
    """A proxy for one trial."""
    made = Proxy(upstream, plan)
    try:
        yield made
    finally:
        made.close()
