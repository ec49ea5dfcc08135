"""Row N1: server and uploader on two hosts, each with a network of its own, with a switch between them.

Loopback tells both ends at once when one is gone. Here packets vanish: connections stay half-open, a first packet is
never answered, an address moves away under a connection, large packets are lost and small ones are not.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.faults.harness import Row, Trial, Unavailable, has_network
from tests.faults.zygote import Victim, Zygote, warmed

from .servers import Server, serve, until
from .verdict import judged
from .world import DRAINED, Site, World, site

SERVER: Final = "10.77.0.1"
UPLOADER: Final = "10.77.0.2"
MOVED: Final = "10.77.0.3"
FILE_BYTES: Final = 2 << 20
NARROW: Final = 600
# So slow that an upload is under way when something happens to it.
_RATE: Final = ("rate", "40mbit", "burst", "32kbit", "latency", "100ms")
_SECRET: Final = "a secret that two hosts share, long enough"
_KINDS: Final = ("pulled", "pulled before it starts", "moved", "server lost", "large packets lost")


@dataclass(frozen=True)
class Switch:
    """`br0` is the server's, with its address; its port `port0` leads to `near0`, the uploader's."""

    inside: tuple[str, ...]

    def near(self, *command: str) -> None:
        """Run a command in the uploader's network."""
        _run(*self.inside, *command)

    def connect(self) -> None:
        """Both hosts get their addresses, and the line between them its rate."""
        _run("ip", "link", "add", "br0", "type", "bridge")
        _run("ip", "link", "add", "idle0", "type", "veth", "peer", "name", "idle1")
        _run("ip", "link", "set", "idle1", "up")
        _run("ip", "link", "add", "port0", "type", "veth", "peer", "name", "near0", "netns", self.inside[2])
        # A second port, so that the server's interface is up also when the cable is not plugged in.
        for port in ("idle0", "port0"):
            _run("ip", "link", "set", port, "master", "br0", "up")
        _run("ip", "addr", "add", f"{SERVER}/24", "dev", "br0")
        _run("ip", "link", "set", "br0", "up")
        self.near("ip", "addr", "add", f"{UPLOADER}/24", "dev", "near0")
        self.near("ip", "link", "set", "near0", "up")
        _run("ip", "link", "set", "lo", "up")
        self.near("ip", "link", "set", "lo", "up")
        if shutil.which("tc"):
            self.near("tc", "qdisc", "add", "dev", "near0", "root", "tbf", *_RATE)

    def pull(self) -> None:
        """From now on packets vanish, in both directions, and nobody is told: both interfaces stay up."""
        _run("ip", "link", "set", "port0", "nomaster")

    def plug(self) -> None:
        """Now they arrive again."""
        _run("ip", "link", "set", "port0", "master", "br0")

    def width(self, size: int) -> None:
        """The switch loses packets that are larger."""
        _run("ip", "link", "set", "port0", "mtu", str(size))

    def move(self, old: str, new: str) -> None:
        """The uploader's host gets another address."""
        # In this order: with a first address all others of its network go.
        self.near("ip", "addr", "del", f"{old}/24", "dev", "near0")
        self.near("ip", "addr", "add", f"{new}/24", "dev", "near0")

    def arrived(self) -> int:
        """Bytes that have come from the uploader's host."""
        for line in Path("/proc/self/net/dev").read_text().splitlines():
            name, _, numbers = line.partition(":")
            if name.strip() == "port0":
                return int(numbers.split()[0])
        raise LookupError("port0 is gone")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


@dataclass
class Hosts:
    """The two hosts: a server on one, processes of the uploader on the other."""

    world: World
    switch: Switch
    away: Zygote
    folder: Path
    server: Server

    @property
    def url(self) -> str:
        """Where the server is for the other host."""
        return f"http://{SERVER}:{self.server.port}"

    def start(self, port: int = 0) -> None:
        """The server, with the data that it had."""
        self.server = _server(self.world, self.folder, port)

    def uploader(self, here: Site) -> Victim:
        """`once` on the other host."""
        env = {"ML_DASH_JWT_SECRET": _SECRET}
        return here.syncd("once", self.url, zygote=self.away, env=env, impatient={"BLOB_BYTES": 256 << 10})


def _server(world: World, folder: Path, port: int = 0) -> Server:
    env = {"JWT_SECRET": _SECRET}
    return serve(world.zygote, folder, env=env, dev=False, host=SERVER, port=port).wait_ready()


@contextlib.contextmanager
def hosts(workdir: Path) -> Iterator[Hosts]:
    """Setup. The uploader's network lives as long as a process in it."""
    if not has_network():
        raise Unavailable("no networks can be made here: unshare -n, ip")
    os.environ["ML_DASH_JWT_SECRET"] = _SECRET  # what the judge signs its logins with
    stay = ["unshare", "-n", "sh", "-c", "echo; read end"]
    held = subprocess.Popen(stay, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert held.stdin is not None
    assert held.stdout is not None
    held.stdout.readline()
    switch = Switch(("nsenter", "-t", str(held.pid), "-n"))
    world = World(workdir / "world")
    (workdir / "world").mkdir(parents=True, exist_ok=True)
    try:
        try:
            switch.connect()
        except OSError as error:
            raise Unavailable(f"this kernel has not what a switch needs: {error}") from None
        with warmed("tests.e2e", workdir / "away", prefix=switch.inside) as away:
            made = Hosts(world, switch, away, workdir / "server", _server(world, workdir / "server"))
            yield made
            made.server.kill()
    finally:
        world.close()
        held.stdin.close()
        held.stdout.close()
        held.wait()


def two_hosts(trial: Trial) -> None:
    """N1. Whatever the network between two hosts does: calls of the uploader end, and everything arrives once."""
    made: Hosts = trial.shared
    rng, switch = trial.rng, made.switch
    kind = _KINDS[trial.index % len(_KINDS)]
    trial.counts[kind] += 1
    with site(trial, world=made.world) as here:
        pen = here.pen()
        for _ in range(30):
            pen.any(rng)
        pen.file(rng.randbytes(FILE_BYTES), "large.bin")
        pen.close()
        if kind == "pulled before it starts":
            switch.pull()
            gave_up = made.uploader(here)
            status = gave_up.wait(30)
            trial.check(status not in (DRAINED, 70), f"`once` ended with {status}, unheard: {gave_up.told()}")
            switch.plug()
        victim = made.uploader(here)
        before = switch.arrived()
        if kind != "pulled before it starts":
            mark = before + rng.randrange(FILE_BYTES)
            until(lambda: switch.arrived() >= mark or victim.exited(0), what="the upload")
            trial.counts["while it was sending"] += not victim.exited(0)
            _disturb(trial, made, kind, victim)
        status = victim.wait(60)
        trial.check(status != 70, f"the uploader crashed: {victim.told()}")
        if status != DRAINED:
            trial.counts["given up, started again"] += 1
            last = made.uploader(here)
            status = last.wait(60)
            trial.check(status == DRAINED, f"`once` ended with {status}: {last.told()}")
        judged(trial, made.server.address, here)


def _disturb(trial: Trial, made: Hosts, kind: str, victim: Victim) -> None:
    """Let it happen, for some time, and mend it."""
    switch, for_s = made.switch, trial.rng.choice((0.05, 0.4, 1.5, 3.0))
    if kind == "moved":
        switch.move(UPLOADER, MOVED)
        victim.exited(for_s)
        switch.move(MOVED, UPLOADER)
        return
    if kind == "large packets lost":
        switch.width(NARROW)
        victim.exited(for_s)
        switch.width(1500)
        return
    switch.pull()
    if kind == "server lost":
        port = made.server.port
        made.server.kill()
        victim.exited(for_s)
        made.start(port)
    else:
        victim.exited(for_s)
    switch.plug()


ROWS = (
    Row("N1", "two hosts: cable pulled, address moved, server lost, large packets lost", 400, 4, two_hosts, hosts,
        network=True),
)  # fmt: skip
