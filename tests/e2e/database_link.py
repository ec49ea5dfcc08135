"""A TCP proxy before a MongoDB: requests and answers are lost, come late, or are refused, as a plan says for each."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from typing import Final

import bson

PASS: Final = "pass"
LOST: Final = "lost"  # the database does not get the request, and the connection ends
UNANSWERED: Final = "unanswered"  # the database does what is asked, and the connection ends before the answer
CUT: Final = "cut"  # the same, in the middle of the answer
STALL: Final = "stall"  # nothing goes on until the client gives up or the plan changes
SLOW: Final = "slow"  # the answer comes later
REFUSED: Final = "refused"  # the database answers that this user may not

_SLOW_S: Final = 0.15
_STALL_S: Final = 60.0
_HEAD: Final = struct.Struct("<iiii")
_OP_MSG: Final = 2013

Plan = Callable[[str], str]
"""What happens to a command of this name."""


def let_pass(_: str) -> str:
    """The plan of a database without faults."""
    return PASS


class DatabaseLink:
    """Listens on loopback, a thread for each connection. `plan` may change at any time."""

    def __init__(self, upstream: tuple[str, int]) -> None:
        self.upstream = upstream
        self.seen: Counter[str] = Counter()
        self._plan: Plan = let_pass
        self._changed = threading.Condition()
        self._closed = False
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, name="database link")]
        self._threads[0].start()

    @property
    def plan(self) -> Plan:
        """What happens to commands from now on."""
        return self._plan

    @plan.setter
    def plan(self, plan: Plan) -> None:
        with self._changed:
            self._plan = plan
            self._changed.notify_all()

    def cut(self) -> None:
        """End every open connection."""
        with self._changed:
            sockets = list(self._sockets)
        for each in sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End everything; no thread and no socket is left."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        self.cut()
        for thread in self._threads[1:]:
            thread.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(client,), name="database link")
                self._threads.append(thread)
                thread.start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, socket.create_connection(self.upstream, 10) as server:
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._changed:
                if self._closed:
                    return
                self._sockets |= {client, server}
            try:
                while request := message(client):
                    if not self._carry(request, client, server):
                        return
            finally:
                with self._changed:
                    self._sockets -= {client, server}

    def _carry(self, request: bytes, client: socket.socket, server: socket.socket) -> bool:
        """Do with a request what the plan says; False where the connection ends."""
        plan = self._plan
        happens = plan(command_of(request))
        with self._changed:
            self.seen[happens] += 1
            if happens in (STALL, SLOW):
                self._changed.wait_for(
                    lambda: self._closed or self._plan is not plan, _SLOW_S if happens == SLOW else 60
                )
        if happens in (LOST, STALL):
            return False
        if happens == REFUSED:
            client.sendall(refusal(request))
            return True
        server.sendall(request)
        answer = message(server)
        if not answer or happens == UNANSWERED:
            return False
        client.sendall(answer[: len(answer) // 2] if happens == CUT else answer)
        return happens != CUT


def message(source: socket.socket) -> bytes:
    """Read a whole message; empty at the end."""
    found = bytearray()
    wanted = 4
    while len(found) < wanted:
        piece = source.recv(min(1 << 16, wanted - len(found)))
        if not piece:
            return b""
        found += piece
        if wanted == 4 and len(found) == 4:
            wanted = struct.unpack_from("<i", found)[0]
    return bytes(found)


def command_of(request: bytes) -> str:
    """Return the name of the command; empty in an old kind of message, which only the first of a connection is."""
    if _HEAD.unpack_from(request)[3] != _OP_MSG:
        return ""
    # Behind the head: flags, the kind of the section, the length of the document, the type of its first field.
    start = _HEAD.size + 4 + 1 + 4 + 1
    return request[start : request.index(b"\0", start)].decode()


def refusal(request: bytes) -> bytes:
    """Return the answer to a user who may not do this."""
    body = bson.encode({"ok": 0.0, "errmsg": "not authorized to do this", "code": 13, "codeName": "Unauthorized"})
    number = _HEAD.unpack_from(request)[1]
    return _HEAD.pack(_HEAD.size + 5 + len(body), 0, number, _OP_MSG) + bytes(5) + body
