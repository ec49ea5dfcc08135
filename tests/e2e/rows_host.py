"""Rows D12 to D14 and D17: two uploaders, full disks, clocks, and what a service manager does."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from tests.faults import shim
from tests.faults.harness import Row, Trial

from . import proxy as px
from .proxy import Fault
from .rows_reading import SOON, ended
from .servers import spawn_syncd, until
from .verdict import cursor_is_behind, has_all, judged
from .world import Site, World, Writing, site, world

STOP_S: Final = 10.0


# -- D12 -------------------------------------------------------------------------------------------------------------


def two_uploaders(trial: Trial) -> None:
    """D12. Two uploaders on one journal: two hosts, one host with locks that lie, a lock left by the dead."""
    shared: World = trial.shared
    how = ("two hosts", "locks lie", "a stale lock", "locks hold")[trial.index % 4]
    trial.counts[how] += 1
    url = f"http://127.0.0.1:{shared.server.port}"
    with site(trial) as here:
        pen = here.pen()
        pen.any(trial.rng)
        if how == "a stale lock":
            _leave_a_lock(trial, here, url)
        lies = shim.program(trial.folder, *(shim.rule(op, count=0, always=1) for op in ("flock", "fcntl")))
        program = lies if how == "locks lie" else ""
        zygote = shared.shimmed if program else shared.zygote
        other = Site(trial, shared, "other") if how == "two hosts" else here
        if other is not here:
            (other.folder / "store").symlink_to(here.store)
        with Writing(pen, trial.rng, pause_s=0.002):
            one = here.syncd("run", url, zygote=zygote, program=program, impatient=SOON)
            two = None
            if how == "locks hold":
                until(lambda: bool(here.cursors()), 10, what="the first one's cursor")
            if how != "a stale lock":
                two = other.syncd("run", url, zygote=zygote, program=program, impatient=SOON)
            if how == "locks hold" and two is not None:
                status = two.wait(10)
                trial.check(status == 0, f"a second `run` ended with {status}: {two.told()[-600:]}")
                two = None
            trial.check(not one.exited(0.3), f"`run` ended by itself: {one.told()[-600:]}")
        until(lambda: has_all(shared.server.port, here), 20, what=f"all events ({how})")
        for victim in filter(None, (one, two)):
            ended(trial, victim)
        cursor_is_behind(trial, shared.server.port, here)
        pen.close()
        here.drain(url)
        judged(trial, shared.server.port, here)


def _leave_a_lock(trial: Trial, here: Site, url: str) -> None:
    victim = here.syncd("run", url)
    until(lambda: bool(here.cursors()), 20, what="a cursor")
    victim.kill()
    victim.wait()
    lock = here.state / "syncd.lock"
    trial.check(lock.exists(), "there is no syncd.lock")
    lock.write_text(f"{os.getpid()}\n")  # the number belongs to somebody else by now


# -- D13, D14 --------------------------------------------------------------------------------------------------------


def no_room_for_state(trial: Trial) -> None:
    """D13. The disk of cursor and log is full, at any byte: it goes on sending or waits; the cursor is never ahead."""
    shared: World = trial.shared
    url = f"http://127.0.0.1:{shared.server.port}"
    with site(trial) as here:
        pen = here.pen()
        for _ in range(20):
            pen.any(trial.rng)
        if trial.rng.random() < 0.5:
            here.drain(url)
        quota = trial.rng.randrange(0, 4000)
        program = shim.program(here.home, f"quota={quota}")
        victim = here.syncd("run", url, zygote=shared.shimmed, program=program, impatient=SOON)
        with Writing(pen, trial.rng, pause_s=0.003):
            # It may say that it cannot work without its state folder; it must not say nothing.
            if victim.exited(0.25):
                trial.counts["ended"] += 1
                status = victim.wait()
                trial.check(status not in (0, 70), f"`run` ended with {status}: {victim.told()[-600:]}")
                trial.check(victim.told().strip(), "`run` ended without a word")
            else:
                trial.counts["went on"] += 1
                victim.kill()
                victim.wait()
        cursor_is_behind(trial, shared.server.port, here)
        pen.close()
        here.drain(url)
        judged(trial, shared.server.port, here)


HOUR: Final = 3600
SHIFTS: Final = (-HOUR, HOUR, 10 * 365 * 86_400, -30 * 365 * 86_400, None)


def clocks(trial: Trial) -> None:
    """D14. The clock is back an hour, ahead ten years, frozen: no hot loop, and all arrives when it is right again."""
    shared: World = trial.shared
    shift = SHIFTS[trial.index % len(SHIFTS)]
    trial.counts["frozen" if shift is None else f"shifted {shift // HOUR} h"] += 1
    with site(trial) as here, shared.proxy() as link:
        pen = here.pen()
        for _ in range(10):
            pen.any(trial.rng)
        if trial.rng.random() < 0.5:
            here.drain(link.url)
            pen.any(trial.rng)
        program = shim.program(None, "clock=freeze" if shift is None else f"clock=shift:{shift}")
        before = link.seen.requests
        victim = here.syncd("run", link.url, zygote=shared.shimmed, program=program, impatient=SOON)
        if shift is None or abs(shift) <= HOUR:
            until(lambda: has_all(shared.server.port, here), 20, what=f"all events, with a clock shifted by {shift} s")
        trial.check(not victim.exited(0.6), f"`run` ended by itself: {victim.told()[-600:]}")
        requests = link.seen.requests - before
        trial.check(requests < 60, f"{requests} requests for a handful of events: a hot loop")
        ended(trial, victim)
        pen.close()
        here.drain(link.url)
        judged(trial, shared.server.port, here)


# -- D17 -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def notified(folder: Path) -> Iterator[tuple[str, Callable[[str, float], bool]]]:
    """A socket as systemd gives it: its name, and a question: did it say that, within that time?"""
    path = folder / "notify"
    said: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))

        def hears(text: str, seconds: float) -> bool:
            deadline = time.monotonic() + seconds
            while not any(line.startswith(text) for line in said):
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                listener.settimeout(left)
                with contextlib.suppress(TimeoutError):
                    said.extend(listener.recv(4096).decode().splitlines())
            said[:] = [line for line in said if not line.startswith(text)]
            return True

        yield str(path), hears


def tells_the_manager(trial: Trial) -> None:
    """Ready without a network, feeds the watchdog, says that it stops."""
    shared: World = trial.shared
    with site(trial) as here, shared.proxy() as link, notified(here.folder) as (name, hears):
        pen = here.pen()
        pen.any(trial.rng)
        link.down()
        environment = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "300000"}
        victim = here.syncd("run", link.url, env=environment, impatient=SOON)
        trial.check(hears("READY=1", 10), f"no READY=1 without a network: {victim.told()[-600:]}")
        for _ in range(3):
            trial.check(hears("WATCHDOG=1", 1.0), "the watchdog was not fed within a second, without a network")
        link.up()
        link.plan = lambda request: Fault(px.STALL) if request.method == "POST" else Fault()
        for _ in range(3):
            trial.check(hears("WATCHDOG=1", 1.0), "the watchdog was not fed within a second, while a request hung")
        link.plan = px.let_pass
        link.cut()
        until(lambda: has_all(shared.server.port, here), 20, what="all events")
        victim.kill(signal.SIGTERM)
        trial.check(hears("STOPPING=1", 5), "no STOPPING=1")
        trial.check(victim.wait(STOP_S) == 0, f"`run` did not end well: {victim.told()[-600:]}")
        pen.close()
        here.drain(link.url)
        judged(trial, shared.server.port, here)


def stops_in_an_upload(trial: Trial) -> None:
    """SIGTERM while a request hangs: at most ten seconds; a second SIGTERM: at once."""
    shared: World = trial.shared
    twice = trial.rng.random() < 0.5
    with site(trial) as here, shared.proxy(lambda _: Fault(px.STALL)) as link:
        pen = here.pen()
        pen.any(trial.rng)
        victim = here.syncd("run", link.url)
        until(lambda: link.seen.requests > 0, 10, what="a request")
        begun = time.monotonic()
        victim.kill(signal.SIGTERM)
        if twice and not victim.exited(0.1):
            victim.kill(signal.SIGTERM)
        status = victim.wait(STOP_S + 2)
        took = time.monotonic() - begun
        trial.check(took < (1.5 if twice else STOP_S), f"it took {took:.1f} s to end")
        trial.check(status in (0, -15) or twice, f"`run` ended with {status}: {victim.told()[-600:]}")
        link.plan = px.let_pass
        link.cut()
        pen.close()
        here.drain(link.url)
        judged(trial, shared.server.port, here)


def restart_storm(trial: Trial) -> None:
    """Started and stopped ten times in a row, as a real process once."""
    shared: World = trial.shared
    url = f"http://127.0.0.1:{shared.server.port}"
    with site(trial) as here:
        pen = here.pen()
        with Writing(pen, trial.rng, pause_s=0.003):
            for _ in range(10):
                victim = here.syncd("run", url, impatient=SOON)
                trial.check(not victim.exited(trial.rng.random() * 0.1), f"`run` ended: {victim.told()[-600:]}")
                victim.kill(signal.SIGTERM)
                # Before its handler is there, the signal ends it.
                status = victim.wait(STOP_S)
                trial.check(status in (0, -15), f"`run` ended with {status}: {victim.told()[-600:]}")
        pen.close()
        command = ("once", "--store", str(here.store), "--remote", url, "--user", here.user)
        started = spawn_syncd(here.folder, *command, home=here.home)
        trial.check(started.wait() == 0, f"`ml-dash-syncd once` failed: {started.told()[-600:]}")
        judged(trial, shared.server.port, here)


def bad_data(trial: Trial) -> None:
    """Whatever lies about in the store: it goes on, and the good journals are synced."""
    shared: World = trial.shared
    url = f"http://127.0.0.1:{shared.server.port}"
    with site(trial) as here:
        pen = here.pen()
        pen.any(trial.rng)
        _litter(trial, here)
        victim = here.syncd("run", url, impatient=SOON)
        until(lambda: has_all(shared.server.port, here), 20, what="the good journal's events")
        trial.check(not victim.exited(0.1), f"`run` ended on bad data: {victim.told()[-600:]}")
        ended(trial, victim)
        pen.close()
        status = here.once(url)
        trial.check(status != 70, f"`once` crashed on bad data: {here.last_words[-600:]}")
        judged(trial, shared.server.port, here)


def _litter(trial: Trial, here: Site) -> None:
    rng = trial.rng
    for number in range(6):
        place = here.store / f"litter{number}" / "run" / ".journal"
        (place / "segments").mkdir(parents=True)
        name = f"{rng.randrange(10**18):020d}-{rng.randbytes(16).hex()}-000000.seg"
        content = rng.choice((b"", b"\x89MLDASH\n", rng.randbytes(500), b"\x89MLDASH\n\x07\x00" + rng.randbytes(300)))
        (place / "segments" / name).write_bytes(content)
        (place / "order").write_bytes(rng.choice((b"", b"\x89MLDORD\n", rng.randbytes(200))))
    (here.store / "loop").symlink_to(here.store)
    (here.store / "nowhere").symlink_to("/no/such/folder")
    fifo = here.store / "litter0" / "run" / ".journal" / "segments" / f"{1:020d}-{'0' * 32}-000000.seg"
    os.mkfifo(fifo)
    (here.store / "litter1" / "run" / ".journal" / "segments" / f"{2:020d}-{'1' * 32}-000000.seg").mkdir()
    (here.home / "state").mkdir(parents=True, exist_ok=True)


def another_version(trial: Trial) -> None:
    """State left by another version, newer or older, is no reason to fail."""
    shared: World = trial.shared
    url = f"http://127.0.0.1:{shared.server.port}"
    with site(trial) as here:
        pen = here.pen()
        pen.any(trial.rng)
        here.drain(url)
        for path in (*here.cursors(), here.state / "syncd.json"):
            path.write_bytes(trial.rng.choice((b'{"version": 99, "new": true}', b'{"version": 0}', b"\x00" * 40)))
        (here.state / "registered").mkdir(exist_ok=True)
        (here.state / "registered" / ("0" * 32 + ".json")).write_bytes(b'{"journal": 5}')
        pen.any(trial.rng)
        pen.close()
        here.drain(url)
        judged(trial, shared.server.port, here)


SERVICE: Final = (tells_the_manager, stops_in_an_upload, restart_storm, bad_data, another_version)


def under_a_manager(trial: Trial) -> None:
    """D17. What a service manager does to it, and expects of it."""
    kind = SERVICE[trial.index % len(SERVICE)]
    trial.counts[kind.__name__] += 1
    kind(trial)


ROWS = (
    Row("D12", "two uploaders; locks that lie, a stale lock", 500, 4, two_uploaders, world),
    Row("D13", "no room for cursor and log", 500, 5, no_room_for_state, world),
    Row("D14", "clocks back, ahead, frozen", 200, 5, clocks, world),
    Row("D17", "readiness, watchdog, storms, SIGTERM in an upload, bad data, other versions", 250, 5, under_a_manager,
        world),
)  # fmt: skip
