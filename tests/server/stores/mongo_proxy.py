"""A TCP proxy that knows where messages of MongoDB's protocol begin, and loses or delays one of them."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

REQUEST_LOST: Final = "the server does not get the request, and the connection ends"
ANSWER_LOST: Final = "the server does what is asked, and the connection ends before the answer"
REQUEST_LATE: Final = "the connection ends, and the server gets the request when `deliver` is called"
HAPPENINGS: Final = (REQUEST_LOST, ANSWER_LOST)


@dataclass(frozen=True)
class Fault:
    """What happens to the next command of this name on this collection."""

    command: str
    collection: str
    happening: str

    def matches(self, message: bytes) -> bool:
        name = self.collection.encode() + b"\0"
        return b"\x02" + self.command.encode() + b"\0" + struct.pack("<i", len(name)) + name in message


class MongoProxy:
    """Listens on a port of its own, for one client library and one server."""

    def __init__(self, host: str, port: int) -> None:
        self._server = host, port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.faults: deque[Fault] = deque()
        # What happens to a message for which there is no fault; "" is nothing.
        self.plan: Callable[[bytes], str] = lambda _: ""
        self._late: list[bytes] = []
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def deliver(self) -> int:
        """Send what is late to the server, and wait for the answers; return how many they are."""
        late, self._late = self._late, []
        for message in late:
            with socket.create_connection(self._server) as server:
                server.sendall(message)
                assert _message(server)
        return len(late)

    def close(self) -> None:
        """End all connections and threads."""
        for made in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                made.shutdown(socket.SHUT_RDWR)
            made.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._threads.append(threading.Thread(target=self._serve, args=(client,)))
                self._threads[-1].start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, socket.create_connection(self._server) as server:
            self._open |= {client, server}
            while message := _message(client):
                happening = self._happening(message)
                if happening == REQUEST_LATE:
                    self._late.append(message)
                if happening in (REQUEST_LATE, REQUEST_LOST):
                    return
                server.sendall(message)
                answer = _message(server)
                if happening == ANSWER_LOST:
                    return
                client.sendall(answer)

    def _happening(self, message: bytes) -> str:
        if self.faults and self.faults[0].matches(message):
            return self.faults.popleft().happening
        return self.plan(message)


def _message(source: socket.socket) -> bytes:
    """Read a whole message: its length comes first. Empty at the end."""
    found = bytearray()
    wanted = 4
    while len(found) < wanted:
        piece = source.recv(1 << 16 if wanted > 4 else 4)
        if not piece:
            return b""
        found += piece
        if wanted == 4 and len(found) >= 4:
            wanted = struct.unpack_from("<i", found)[0]
    return bytes(found)
