"""Rows S7, S11, S12, S14, W21, X1 and X2: a server in trouble, two machines at once, and everything at once."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tests.faults.harness import Row, Trial

from . import proxy as px
from .asking import Client, login
from .judge import judge
from .load import Promises, Shipper, loading
from .pens import WriterFixture
from .proxy import Fault, Proxy, Request
from .rows_reading import SOON
from .servers import Server, serve, until
from .verdict import has_all
from .world import DRAINED, Site, World, Writing, site, world

_MB: Final = 1 << 20


def _memory(pid: int) -> int:
    """The most memory that a process ever had, in bytes."""
    with Path(f"/proc/{pid}/status").open(encoding="ascii") as status:
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


@contextlib.contextmanager
def own_server(trial: Trial, **options: Any) -> Iterator[Server]:
    """A server of the trial's own."""
    made = serve(trial.shared.zygote, trial.folder / "server", **options).wait_ready()
    try:
        yield made
    finally:
        made.kill()


# -- S7 --------------------------------------------------------------------------------------------------------------

SLOW: Final = 60


def slow_clients(trial: Trial) -> None:
    """S7. Headers, bodies and answers that never end: others are served, and the slow are cut off."""
    how = ("headers", "body", "silent", "after a request")[trial.index % 4]
    trial.counts[how] += 1
    haste = {
        "ml_dash.server.serving:HEADERS_S": 0.6, "ml_dash.server.serving:KEEP_ALIVE_S": 1,
        "ml_dash.server.http.bodies:IDLE_S": 0.6,
    }  # fmt: skip
    begun = {
        "headers": b"GET /health HTTP/1.1\r\nHost: local",
        "body": b"POST /projects/p/experiments HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "
        + login().encode() + b"\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
        "silent": b"",
        "after a request": b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    }[how]  # fmt: skip
    with own_server(trial, impatient=haste) as server, contextlib.ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(server.address, 10)) for _ in range(SLOW)]
        for each in slow:
            each.sendall(begun)
        waits = []
        with Client(server.port) as client:
            for _ in range(20):
                asked = time.monotonic()
                trial.check(client.ask("GET", "/health").status == 200, "others are not served")
                waits.append(time.monotonic() - asked)
        trial.check(max(waits) < 2.0, f"others wait for {max(waits):.2f} s")
        for each in slow:
            each.settimeout(10)
            try:
                while each.recv(65536):
                    pass
            except ConnectionError:
                pass
            except TimeoutError:
                trial.check(False, f"a connection that is slow ({how}) is kept for ever")
                return
        trial.counts["cut off"] += SLOW


# -- S11, S12 --------------------------------------------------------------------------------------------------------


def no_room(trial: Trial) -> None:
    """S11. The disk is full, or the database locked by somebody: 503 and no acknowledgement; and it recovers."""
    how = ("full", "locked")[trial.index % 2]
    trial.counts[how] += 1
    promises = Promises()
    haste = {"ml_dash.server.stores.sqlite:_BUSY_S": 0.05}
    limits = {"RLIMIT_FSIZE": trial.rng.randrange(150_000, 400_000)} if how == "full" else {}
    with site(trial) as here:
        shipper = Shipper(here.pen(), promises, trial.rng)
        with own_server(trial, limits=limits, impatient=haste) as server:
            with Client(server.port) as client:
                for _ in range(4):
                    shipper.step(client)
            lock = sqlite3.connect(server.folder / "data" / "server.sqlite", isolation_level=None)
            if how == "locked":
                lock.execute("BEGIN EXCLUSIVE")
            with Client(server.port) as client:
                refused = Counter[int]()
                for _ in range(60 if how == "full" else 3):
                    shipper.pen.log("x" * 4000)
                    data = shipper.pen.path.read_bytes()
                    offset = shipper.offsets.get(shipper.pen.path, 0)
                    answer = client.post_segment(shipper.journal, shipper.pen.path.name, offset, data[offset:])
                    refused[answer.status] += 1
                    if answer.status == 200:
                        shipper.offsets[shipper.pen.path] = answer.json()["length"]
                    elif answer.status == 503:
                        trial.check("retry-after" in answer.headers, "a 503 without Retry-After")
                        break
                    else:
                        trial.check(answer.code == "gap", f"{answer.status} {answer.body[:200]!r}")
            trial.check(refused[503] > 0, f"nothing was refused although the disk is {how}: {dict(refused)}")
            if how == "locked":
                lock.execute("ROLLBACK")
                with Client(server.port) as client:
                    shipper.send_frames(client)
                    trial.fail(*promises.unexpected[:3])
            lock.close()
        with own_server(trial) as server:
            trial.fail(*promises.check(server.port), *promises.unexpected[:3])
            shipper.pen.close()
            status = here.once(f"http://127.0.0.1:{server.port}")
            trial.check(status == DRAINED, f"`once` ended with {status}: {here.last_words[-500:]}")
            trial.fail(*judge(server.port, here.places, here.pens))


def two_servers(trial: Trial) -> None:
    """S12. A second server on the same folder refuses; the first goes on, whatever its clock says."""
    with site(trial) as here:
        pen = here.pen()
        pen.any(trial.rng)
        with own_server(trial) as server:
            url = f"http://127.0.0.1:{server.port}"
            here.drain(url)
            second = serve(trial.shared.zygote, server.folder)
            status = second.process.wait(20)
            trial.check(status == 1, f"a second server ended with {status}")
            trial.check("another server uses" in second.process.told(), "a second server does not say why it ends")
            pen.any(trial.rng)
            pen.close()
            here.drain(url)
            trial.fail(*judge(server.port, here.places, here.pens))


# -- S14 -------------------------------------------------------------------------------------------------------------

CROWD: Final = 40


def overload(trial: Trial) -> None:
    """S14. Far more than it can hold at once: refused before memory grows; what was answered is there."""
    promises = Promises()
    body = bytes(8 * _MB)
    answers: Counter[int] = Counter()
    with site(trial) as here, own_server(trial) as server:
        shipper = Shipper(here.pen(), promises, trial.rng)

        def push() -> None:
            with Client(server.port) as client:
                name = "01761733800000000000-8f14e45fceea167a5a36dedd4bea2543-000000.seg"
                with contextlib.suppress(OSError, EOFError):
                    answers[client.post_segment("ab" * 16, name, 0, body).status] += 1

        crowd = [threading.Thread(target=push) for _ in range(CROWD)]
        with loading(server.port, [shipper]) as stop:
            for each in crowd:
                each.start()
            for each in crowd:
                each.join()
            stop.set()
        trial.check(set(answers) <= {422, 429}, f"answers to too much: {dict(answers)}")
        trial.check(_memory(server.process.pid) < 700 * _MB, f"memory grew to {_memory(server.process.pid) // _MB} MB")
        trial.counts["refused for now"] += answers[429]
        trial.fail(*promises.check(server.port), *promises.unexpected[:3])
        shipper.pen.close()
        with Client(server.port) as client:
            shipper.finish(client)
        trial.fail(*judge(server.port, here.places, here.pens))


# -- W21 -------------------------------------------------------------------------------------------------------------


def goes_on_elsewhere(trial: Trial) -> None:
    """W21. The job goes on on another machine while the first one still writes: both histories are whole."""
    shared: World = trial.shared
    url = f"http://127.0.0.1:{shared.server.port}"
    with site(trial) as here:
        other = Site(trial, shared, "other")
        first, second = here.pen(), other.pen(other.place("run0"))
        with Writing(first, trial.rng), Writing(second, trial.rng):
            victims = [machine.syncd("run", url, impatient=SOON) for machine in (here, other)]
            trial.check(not victims[0].exited(0.3 + trial.rng.random() * 0.3), "`run` ended by itself")
        for machine, pen, victim in ((here, first, victims[0]), (other, second, victims[1])):
            victim.kill(signal.SIGTERM)
            victim.wait(20)
            if trial.rng.random() < 0.5:
                pen.close()
            else:
                pen.die()
            machine.drain(url)
        trial.fail(*judge(shared.server.port, [*here.places, *other.places], [first, second]))


# -- X1, X2 ----------------------------------------------------------------------------------------------------------

_FAULTS: Final = (
    px.CUT_RESPONSE, px.CUT_REQUEST, px.DUPLICATE, px.REPLAY, px.LATE, px.TRICKLE_REQUEST, px.HOLD,
)  # fmt: skip
_SERVER_POINTS: Final = ("ingest-before-commit", "ingest-after-commit", "blob-staged", "blob-stored")
_UPLOADER_POINTS: Final = ("sync-read", "sync-send", "sync-acked", "cursor-before", "cursor-renamed")


class _Chaos:
    """One soak: a server, an uploader, a proxy between them, pens; and what happens to them."""

    def __init__(self, trial: Trial, here: Site) -> None:
        self.trial, self.here, self.shared = trial, here, trial.shared
        self.server = self._serve()
        self.link = Proxy(self.server.address, px.let_pass)
        self.uploader = here.syncd("run", self.link.url, impatient=SOON)
        self.pens = [here.pen() for _ in range(3)]
        self.guard = threading.Lock()

    def _serve(self, **options: Any) -> Server:
        return serve(self.shared.zygote, self.trial.folder / "server", **options).wait_ready()

    def plan(self, request: Request) -> Fault:
        with self.guard:
            rng = self.trial.rng
            if rng.random() < 0.7:
                return Fault()
            kind = rng.choice(_FAULTS)
            at = rng.randrange(2, 4) if kind == px.DUPLICATE else rng.randrange(0, 300)
            return Fault(kind, at=at, seconds=0.005)

    def kill_server(self) -> None:
        """SIGKILL, and a new one on the same data, perhaps one that dies at a step."""
        self.server.kill()
        rng = self.trial.rng
        fail = f"{rng.choice(_SERVER_POINTS)}:{rng.randrange(1, 20)}:kill" if rng.random() < 0.5 else ""
        self.server = self._serve(env={"ML_DASH_FAIL": fail} if fail else {})
        self.link.upstream = self.server.address

    def kill_uploader(self) -> None:
        """SIGKILL, and a new one, perhaps one that dies at a step."""
        self.uploader.kill()
        self.uploader.wait()
        rng = self.trial.rng
        fail = f"{rng.choice(_UPLOADER_POINTS)}:{rng.randrange(1, 30)}:kill" if rng.random() < 0.5 else ""
        env = {"ML_DASH_FAIL": fail} if fail else {}
        self.uploader = self.here.syncd("run", self.link.url, impatient=SOON, env=env)

    def kill_pen(self) -> None:
        """A writer dies, and another one opens the same experiment."""
        pen = self.trial.rng.choice(self.pens)
        pen.die()
        self.pens[self.pens.index(pen)] = self.here.pen(pen.place)

    def faults(self) -> None:
        """The network becomes bad, or good."""
        self.link.plan = self.plan if self.link.plan is px.let_pass else px.let_pass

    def revive(self) -> None:
        """Whatever died by a fail point is started again."""
        if self.server.process.exited(0):
            self.server = self._serve()
            self.link.upstream = self.server.address
        if self.uploader.exited(0):
            self.uploader = self.here.syncd("run", self.link.url, impatient=SOON)

    def compare(self) -> None:
        """Stop, let it drain, and compare everything."""
        self.link.plan = px.let_pass
        self.link.deliver_late()
        # New ones, which die at no step.
        self.server.kill()
        self.server = self._serve()
        self.link.upstream = self.server.address
        self.uploader.kill()
        self.uploader.wait()
        self.uploader = self.here.syncd("run", self.link.url, impatient=SOON)
        port = self.server.port
        until(lambda: has_all(port, self.here), 60, what="all events after chaos")
        by_place: dict[Any, list[WriterFixture]] = {}
        for pen in self.here.pens:
            by_place.setdefault(pen.place.journal, []).append(pen)
        for pens in by_place.values():
            self.trial.fail(*judge(port, [pens[0].place], pens))
        self.trial.counts["comparisons"] += 1

    def end(self) -> None:
        self.uploader.kill()
        self.uploader.wait()
        self.server.kill()
        self.link.close()


def soak(trial: Trial) -> None:
    """X1. Writers, uploader and server are killed at random, the network is bad; now and then all is compared."""
    minutes = float(os.environ.get("ML_DASH_TEST_MINUTES") or (0.5 if os.environ.get("CI") else 0.15))
    with site(trial) as here:
        chaos = _Chaos(trial, here)
        actions = (chaos.kill_server, chaos.kill_uploader, chaos.kill_pen, chaos.faults, chaos.faults)
        try:
            deadline = time.monotonic() + 60 * minutes
            while time.monotonic() < deadline and not trial.problems:
                for _ in range(12):
                    action = trial.rng.choice(actions)
                    for pen in chaos.pens:
                        for _ in range(trial.rng.randrange(1, 25)):
                            pen.any(trial.rng)
                    action()
                    trial.counts[action.__name__.replace("_", " ")] += 1
                    chaos.revive()
                chaos.compare()
            for pen in chaos.pens:
                pen.close()
            chaos.compare()
        finally:
            chaos.end()


def fault_in_recovery(trial: Trial) -> None:
    """X2. While it recovers from one fault, the next one strikes: the uploader and the server at steps, in turn."""
    rng = trial.rng
    with site(trial) as here:
        pens = [here.pen() for _ in range(2)]
        for round_ in range(rng.randrange(3, 6)):
            for pen in pens:
                for _ in range(rng.randrange(1, 12)):
                    pen.any(rng)
            theirs = f"{rng.choice(_SERVER_POINTS)}:{rng.randrange(1, 4)}:kill" if round_ % 2 else ""
            mine = f"{rng.choice(_UPLOADER_POINTS)}:{rng.randrange(1, 6)}:kill"
            with own_server(trial, env={"ML_DASH_FAIL": theirs} if theirs else {}) as server:
                url = f"http://127.0.0.1:{server.port}"
                victim = here.syncd("once", url, env={"ML_DASH_FAIL": mine}, impatient={"BATCH_BYTES": 700})
                status = victim.wait(30)
                trial.check(status != 70, f"`once` crashed: {victim.told()[-500:]}")
                trial.counts["died" if status == -9 else "survived"] += 1
            if rng.random() < 0.3:
                for path in here.cursors():
                    path.write_bytes(path.read_bytes()[: rng.randrange(50)])
        for pen in pens:
            pen.close()
        with own_server(trial) as server:
            here.drain(f"http://127.0.0.1:{server.port}")
            for pen in pens:
                trial.fail(*judge(server.port, [pen.place], [pen]))


ROWS = (
    Row("S7", "headers, bodies and connections that never end", 40, 4, slow_clients, world),
    Row("S11", "a full disk, a locked database", 200, 4, no_room, world),
    Row("S12", "two servers on one folder", 50, 2, two_servers, world),
    Row("S14", "far more than it can hold at once", 10, 1, overload, world),
    Row("W21", "the job goes on elsewhere while its first process lives", 200, 4, goes_on_elsewhere, world),
    Row("X1", "everything at once, for a while", 1, 1, soak, world),
    Row("X2", "the next fault while it recovers from one", 200, 6, fault_in_recovery, world),
)
