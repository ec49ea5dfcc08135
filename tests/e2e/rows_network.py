"""Rows D4 to D7 and D19: a server that answers anything, acknowledgements lost at every byte, duplicates, silence."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Final

from tests.faults.harness import Row, Trial

from . import proxy as px
from .asking import Client
from .proxy import Fault, Proxy, Request, Script
from .servers import until
from .verdict import cursor_is_behind, has_all, judged
from .world import DRAINED, Site, World, site, world

TINY: Final = {"BATCH_BYTES": 120}
STUBBORN: Final = {"ONCE_TRIES": 1000, "ml_dash_syncd.backoff:LONGEST_S": 0.002}
SMALL: Final = {"BATCH_BYTES": 600}
_HTML: Final = b"<html><body>Welcome to the hotel. Please log in.</body></html>"


def is_data(request: Request) -> bool:
    """Does it send bytes that are to be acknowledged?"""
    return request.method in ("POST", "PUT")


def written(trial: Trial, here: Site, *, events: int = 30, journals: int = 1, files: bool = True) -> None:
    """Journals with that many events each, closed."""
    for _ in range(journals):
        pen = here.pen()
        for _ in range(events):
            pen.any(trial.rng, files=files)
        pen.close()


def drained_after(trial: Trial, here: Site, url: str, tries: int, *, stubborn: bool = False) -> None:
    """`once` may give up while faults last; after them it must drain. If `stubborn` it goes on instead."""
    status = -1
    for _ in range(tries):
        status = here.once(url, impatient=TINY | (STUBBORN if stubborn else {}))
        if status == DRAINED:
            return
    trial.fail(f"`once` still ends with {status} after {tries} times: {here.last_words[-600:]}")


# -- D4 --------------------------------------------------------------------------------------------------------------


def _error(code: str, **more: object) -> bytes:
    return json.dumps({"error": {"code": code, "message": "the proxy says so"}, **more}).encode()


ANSWERS: Final[dict[str, bytes]] = {
    "500": px.answer(500, b"Internal Server Error", kind="text/plain"),
    "502 HTML": px.answer(502, b"<html>Bad Gateway</html>", kind="text/html"),
    "503 Retry-After": px.answer(503, _error("unavailable"), "Retry-After: 1"),
    "429": px.answer(429, _error("busy")),
    "429 Retry-After": px.answer(429, _error("busy"), "Retry-After: 1"),
    "408": px.answer(408, b""),
    "HTML 200": px.answer(200, _HTML, kind="text/html"),
    "HTML 200 called JSON": px.answer(200, _HTML, "X-ML-Dash-Protocol: 1"),
    "JSON of another kind": px.answer(200, b'{"ok": true}', "X-ML-Dash-Protocol: 1"),
    "a JSON list": px.answer(200, b"[]", "X-ML-Dash-Protocol: 1"),
    "a length that is text": px.answer(200, b'{"length": "99999", "events": 1}', "X-ML-Dash-Protocol: 1"),
    "a negative length": px.answer(200, b'{"length": -1, "events": 1}', "X-ML-Dash-Protocol: 1"),
    "a length nobody sent": px.answer(200, b'{"length": 999999999, "events": 1}', "X-ML-Dash-Protocol: 1"),
    "without the header": px.answer(200, b'{"length": 999999, "events": 1, "complete": true}'),
    "an empty 200": px.answer(200, b"", "X-ML-Dash-Protocol: 1"),
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
}
LASTING: Final = ("401", "403", "301", "308")
KINDS: Final = (*ANSWERS, *LASTING, "413", "poison 422", "poison 400", "down")


def answers_anything(trial: Trial) -> None:
    """D4. Only a proper acknowledgement counts; what can be tried again is; nothing is lost."""
    shared: World = trial.shared
    kind = KINDS[trial.index % len(KINDS)]
    trial.counts[kind] += 1
    with site(trial) as here, shared.proxy() as link:
        written(trial, here, events=trial.rng.randrange(4, 20), journals=2)
        if kind in ANSWERS:
            faults = trial.rng.randrange(1, 3 if "Retry-After" in kind else 7)
            # Questions are answered as badly as data is.
            pick: Callable[[Request], bool] = is_data if trial.rng.random() < 0.6 else lambda _: True
            link.plan = Script([Fault(px.ANSWER, answer=ANSWERS[kind])] * faults, matches=pick)
            drained_after(trial, here, link.url, faults + 3)
        elif kind == "413":
            _limit(trial, here, link)
        elif kind == "down":
            _down(trial, here, link)
        elif kind.startswith("poison"):
            _poison(trial, here, link, int(kind.split()[1]))
        else:
            _lasting(trial, here, link, kind)
        cursor_is_behind(trial, shared.server.port, here)
        link.plan = px.let_pass
        drained_after(trial, here, link.url, 2)
        judged(trial, shared.server.port, here)


def _limit(trial: Trial, here: Site, link: Proxy) -> None:
    limit = trial.rng.choice((700, 1500))

    def plan(request: Request) -> Fault:
        _head, _, body = request.raw.partition(b"\r\n\r\n")
        if len(body) > limit and "/segments/" in request.path:
            return Fault(px.ANSWER, answer=px.answer(413, _error("too_large", limit=limit)))
        return Fault()

    link.plan = plan
    status = here.once(link.url)
    said = here.last_words[-600:]
    trial.check(status == DRAINED, f"with a limit of {limit} bytes `once` ended with {status}: {said}")


def _down(trial: Trial, here: Site, link: Proxy) -> None:
    link.down()
    victim = here.syncd("run", link.url)
    trial.check(not victim.exited(trial.rng.random() * 0.3), f"`run` ended without a server: {victim.told()}")
    link.up()
    try:
        until(lambda: has_all(trial.shared.server.port, here), 20, what="all events, after the server came back")
    finally:
        victim.kill(15)
        trial.check(victim.wait(15) == 0, f"`run` did not end well: {victim.told()[-600:]}")


def _poison(trial: Trial, here: Site, link: Proxy, status: int) -> None:
    """One experiment is refused for good: it is set aside and shown, the other one goes on."""
    bad, good = here.places
    identity = bad.identity.hex()
    code = "torn" if status == 422 else "malformed"
    refusal = Fault(px.ANSWER, answer=px.answer(status, _error(code, offset=0)))
    link.plan = lambda request: refusal if identity in request.path and "/segments/" in request.path else Fault()
    found = here.once(link.url)
    trial.check(found not in (DRAINED, 70), f"`once` ended with {found} although a segment was refused")
    trial.check(link.seen.requests < 200, f"{link.seen.requests} requests for a segment that is refused for good")
    with Client(trial.shared.server.port) as client:
        state = client.journal(good.identity.hex())
        ends = sum(path.stat().st_size for path in good.segments.glob("*.seg"))
        have = sum(segment["length"] for segment in state["segments"].values()) if state else 0
        trial.check(have == ends, f"the other experiment did not go on: {have} of {ends} bytes")


def _lasting(trial: Trial, here: Site, link: Proxy, kind: str) -> None:
    """401, 403: stop, keep the data, wait. 301: never follow with a token."""
    with _trap() as (port, caught):
        headers = [f"Location: http://127.0.0.1:{port}/elsewhere"] if kind.startswith("30") else []
        code = {"401": "unauthorised", "403": "forbidden"}.get(kind, "moved")
        link.plan = lambda _: Fault(px.ANSWER, answer=px.answer(int(kind), _error(code), *headers))
        status = here.once(link.url)
        trial.check(status not in (DRAINED, 70), f"`once` ended with {status} although all was answered {kind}")
        trial.check(link.seen.requests <= 40, f"{link.seen.requests} requests although all were answered {kind}")
        trial.check(not any(b"uthorization" in text for text in caught), "the token was sent to where a redirect leads")


@contextlib.contextmanager
def _trap() -> Iterator[tuple[int, list[bytes]]]:
    """A port, and what was sent there."""
    caught: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def take() -> None:
        while True:
            try:
                made, _ = listener.accept()
            except OSError:
                return
            with made:
                made.settimeout(2)
                with contextlib.suppress(OSError):
                    caught.append(made.recv(65536))
                    made.sendall(px.answer(404))

    thread = threading.Thread(target=take, name="trap")
    thread.start()
    try:
        yield listener.getsockname()[1], caught
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


# -- D5 --------------------------------------------------------------------------------------------------------------


class LoseAcks:
    """A plan: the answer to whatever is sent for the first time is cut, each time at the next byte."""

    def __init__(self, first: int, *, kind: str = px.CUT_RESPONSE, pick: Callable[[Request], bool] = is_data) -> None:
        self._at = first
        self._kind = kind
        self._pick = pick
        self._seen: set[tuple[str, str, bytes]] = set()
        self._guard = threading.Lock()

    def __call__(self, request: Request) -> Fault:
        if not self._pick(request):
            return Fault()
        key = (request.method, request.target, request.raw.partition(b"\r\n\r\n")[2])
        with self._guard:
            if key in self._seen:
                return Fault()
            self._seen.add(key)
            self._at += 1
            whole = 420 if self._kind == px.CUT_RESPONSE else len(request.raw)
            return Fault(self._kind, at=self._at % (whole + 1), reset=self._at // (whole + 1) % 2 == 0)


EVENTS_OF_ONE: Final = 80


def lost_acknowledgements(trial: Trial) -> None:
    """D5. The server has it, the answer is cut at any byte; what is sent again takes effect once."""
    shared: World = trial.shared
    with site(trial) as here, shared.proxy() as link:
        written(trial, here, events=EVENTS_OF_ONE, files=trial.index % 5 == 0)
        link.plan = LoseAcks(trial.index * EVENTS_OF_ONE)
        drained_after(trial, here, link.url, 2 * EVENTS_OF_ONE, stubborn=trial.index % 4 != 0)
        trial.counts["lost acknowledgements"] += link.seen.lost_acks
        trial.counts["longest answer (sum over trials)"] += link.seen.longest
        judged(trial, shared.server.port, here, contents=False)


# -- D6 --------------------------------------------------------------------------------------------------------------


def duplicated_and_reordered(trial: Trial) -> None:
    """D6. The network delivers twice, late, out of order; in half of the trials two uploaders ship the same journal."""
    shared: World = trial.shared
    rng, guard = trial.rng, threading.Lock()

    def plan(request: Request) -> Fault:
        with guard:
            if not is_data(request) or rng.random() < 0.4:
                return Fault()
            kind = rng.choice((px.REPLAY, px.REPLAY, px.LATE, px.DUPLICATE, px.DUPLICATE, px.HOLD, px.CUT_RESPONSE))
            at = rng.randrange(2, 5) if kind == px.DUPLICATE else rng.randrange(0, 12)
            return Fault(kind, at=at, seconds=0.02)

    with site(trial) as here, shared.proxy(plan) as link:
        written(trial, here, events=50)
        other = Site(trial, shared, "other")
        if trial.index % 2:
            (other.folder / "store").symlink_to(here.store)
            victim = other.syncd("once", link.url, impatient=TINY)
            drained_after(trial, here, link.url, 100)
            trial.check(victim.wait() != 70, f"the other uploader crashed: {victim.told()[-600:]}")
        else:
            drained_after(trial, here, link.url, 100)
        link.plan = px.let_pass
        link.deliver_late()
        for kind in (px.REPLAY, px.LATE, px.DUPLICATE, px.HOLD):
            trial.counts[kind] += link.seen.kinds[kind]
        drained_after(trial, here, link.url, 2)
        judged(trial, shared.server.port, here)


# -- D7 --------------------------------------------------------------------------------------------------------------


def broken_transport(trial: Trial) -> None:
    """D7. Requests cut at every byte, trickles, stalls, half-open connections, names and certificates that fail."""
    shared: World = trial.shared
    kinds = ("cut", "cut", "cut", "trickle", "stall", "half-open", "silent port", "no such host")
    kind = kinds[trial.index % len(kinds)]
    trial.counts[kind] += 1
    with site(trial) as here, shared.proxy() as link:
        written(trial, here, events=30 if kind == "cut" else 12)
        if kind == "cut":
            link.plan = LoseAcks(trial.index * 30, kind=px.CUT_REQUEST, pick=lambda _: True)
        elif kind == "trickle":
            link.plan = Script(
                Fault(trial.rng.choice((px.TRICKLE_REQUEST, px.TRICKLE_RESPONSE)), at=40, seconds=0.001)
                for _ in range(10)
            )
        elif kind in ("stall", "half-open"):
            silent = Fault(px.STALL if kind == "stall" else px.HALF_OPEN, at=trial.rng.randrange(300))
            link.plan = Script([silent] * trial.rng.randrange(1, 4))
        elif kind == "silent port":
            with socket.create_server(("127.0.0.1", 0), backlog=0) as nobody:
                _gives_up(trial, here, f"http://127.0.0.1:{nobody.getsockname()[1]}")
        else:
            _gives_up(trial, here, "http://no-such-host.invalid")
        drained_after(trial, here, link.url, 80)
        trial.counts["requests cut"] += link.seen.kinds[px.CUT_REQUEST]
        judged(trial, shared.server.port, here, contents=False)


def _gives_up(trial: Trial, here: Site, url: str) -> None:
    status = here.once(url, timeout_s=30)
    trial.check(status not in (DRAINED, 70), f"`once` ended with {status} although nobody answers: {here.last_words}")


# -- D19 -------------------------------------------------------------------------------------------------------------

PART: Final = 2000


def broken_parts(trial: Trial) -> None:
    """D19. A blob's upload is broken at each of its parts; content that the server has is not sent again."""
    shared: World = trial.shared
    broken = trial.index % 9
    with site(trial) as here, shared.proxy() as link:
        pen = here.pen()
        content = trial.rng.randbytes(trial.rng.randrange(7 * PART, 8 * PART))
        pen.file(content, "first.bin")
        parts = 0

        def plan(request: Request) -> Fault:
            nonlocal parts
            if request.method != "PUT" or "/blobs/" not in request.path:
                return Fault()
            parts += 1
            if parts - 1 != broken:
                return Fault()
            kind = trial.rng.choice((px.CUT_REQUEST, px.CUT_RESPONSE, px.LATE, px.REPLAY, px.DUPLICATE))
            return Fault(kind, at=trial.rng.randrange(2, 400) if "cut" in kind else 2)

        link.plan = plan
        for _ in range(8):
            if here.once(link.url, impatient={"BLOB_BYTES": PART}) == DRAINED:
                break
        trial.counts["parts sent"] += parts
        trial.check(parts <= 8 + 4, f"{parts} parts of {len(content)} bytes were sent: it did not go on where it was")
        link.plan = px.let_pass
        link.deliver_late()
        before = link.seen.requests
        second = here.pen()
        second.file(content, "second.bin")
        second.close()
        pen.close()
        sent = 0

        def count(request: Request) -> Fault:
            nonlocal sent
            sent += len(request.raw) if request.method == "PUT" else 0
            return Fault()

        link.plan = count
        drained_after(trial, here, link.url, 3)
        trial.check(link.seen.requests > before, "nothing was sent")
        trial.check(sent < len(content) // 2, f"{sent} bytes of PUT for content that the server has")
        judged(trial, shared.server.port, here)


ROWS = (
    Row("D4", "the server answers anything at all", 200 * len(KINDS), 24, answers_anything, world),
    Row("D5", "acknowledgements lost at every byte of the answer", 1700, 4, lost_acknowledgements, world,
        unit="about 60 lost acknowledgements each"),
    Row("D6", "duplicates, late and reordered deliveries", 1500, 4, duplicated_and_reordered, world,
        unit="about 40 deliveries each"),
    Row("D7", "requests cut at every byte, trickles, stalls, half-open, no such host", 1600, 8, broken_transport,
        world),
    Row("D19", "a blob broken at each part; content the server has already", 450, 9, broken_parts, world),
)  # fmt: skip
