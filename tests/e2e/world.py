"""What all rows share: the warmed processes, one server for the rows that do no harm to it, and users' machines."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.faults import shim
from tests.faults.harness import Trial
from tests.faults.zygote import Victim, Zygote, warmed

from . import proxy as px
from . import reads, servers
from .asking import Client
from .pens import Place, WriterFixture, make_place
from .servers import Server, account, serve, syncd

if TYPE_CHECKING:
    from .deployment import Backend, BalancedServer, Services

HASTE: Final[dict[str, Any]] = {
    "ml_dash_syncd.backoff:FIRST_S": 0.005,
    "ml_dash_syncd.backoff:LONGEST_S": 0.05,
    "ml_dash_syncd.batches:DAMAGE_S": 0.5,
    "ml_dash_syncd.blobs:ASK_AGAIN_S": 0.2,
    "ml_dash.sync.remote:CONNECT_S": 1.0,
    "ml_dash.sync.remote:ANSWER_S": 1.0,
}
"""Constants of the uploader's that trials cannot wait for."""

DRAINED: Final = 0
SOMETHING_STAYS: Final = 3


class World:
    """Warmed processes and a server, started when first asked for."""

    def __init__(self, workdir: Path) -> None:
        self.workdir = workdir
        self._stack = contextlib.ExitStack()
        self._plain: Zygote | None = None
        self._shimmed: Zygote | None = None
        # By whether it is on MongoDB and S3.
        self._servers: dict[bool, Server | BalancedServer] = {}
        self._services: Services | None = None
        self._backends: dict[Path, Backend] = {}

    @property
    def services(self) -> Services:
        """A MongoDB and an S3."""
        if self._services is None:
            from .deployment import Services

            self._services = Services(self.workdir / "services")
        return self._services

    def other_stores(self, folder: Path) -> dict[str, str]:
        """The settings of a server on a folder, where rows run on MongoDB and S3: the same for the same folder."""
        from .deployment import Backend

        if folder not in self._backends:
            self._backends[folder] = Backend(self.services)
        return self._backends[folder].environment()

    @property
    def zygote(self) -> Zygote:
        """Forks victims without the shim."""
        if self._plain is None:
            self._plain = self._stack.enter_context(warmed("tests.e2e", self.workdir / "plain"))
        return self._plain

    @property
    def shimmed(self) -> Zygote:
        """Forks victims with the shim."""
        if self._shimmed is None:
            self._shimmed = self._stack.enter_context(
                warmed("tests.e2e", self.workdir / "shimmed", preload=[shim.build(), reads.build()])
            )
        return self._shimmed

    @property
    def server(self) -> Server | BalancedServer:
        """A server that no trial may harm; another one if it died. On MongoDB and S3, two that take turns."""
        is_other = servers.other_stores is not None
        known = self._servers.get(is_other)
        if known is None or known.process.exited(0):
            folder = self.workdir / f"server-{len(list(self.workdir.glob('server-*')))}"
            if is_other:
                from .deployment import BalancedServer

                folder.mkdir()
                known = BalancedServer(self, folder)
            else:
                known = serve(self.zygote, folder).wait_ready()
            self._servers[is_other] = known
        return known

    def client(self, **options: Any) -> Client:
        """A client of that server."""
        return Client(self.server.port, **options)

    def proxy(self, plan: px.Plan = px.let_pass) -> px.Proxy:
        """A proxy before that server."""
        return px.Proxy(self.server.address, plan)

    def close(self) -> None:
        """End it all."""
        for server in self._servers.values():
            server.kill()
        self._stack.close()
        if self._services is not None:
            self._services.close()


STORES: Final = "ML_DASH_TEST_STORES"
"""The stores of the servers of rows: `mongo`, or those of a folder."""

_active: World | None = None


@contextlib.contextmanager
def world(workdir: Path) -> Iterator[World]:
    """The setup of rows: the world that is there, or a new one."""
    global _active
    if _active is not None:
        yield _active
        return
    workdir.mkdir(parents=True, exist_ok=True)
    _active = World(workdir)
    try:
        with on_mongo() if os.environ.get(STORES) == "mongo" else contextlib.nullcontext():
            yield _active
    finally:
        _active.close()
        _active = None


@contextlib.contextmanager
def on_mongo() -> Iterator[None]:
    """Servers are on MongoDB and S3 meanwhile, in the world that is there."""
    assert _active is not None
    servers.other_stores = _active.other_stores
    try:
        yield
    finally:
        servers.other_stores = None


@dataclass
class Site:
    """A user's machine: a store, a home, and the uploader there."""

    trial: Trial
    world: World
    name: str = "site"
    user: str = "alice"
    pens: list[WriterFixture] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """Everything of this machine."""
        made = self.trial.folder / self.name
        made.mkdir(exist_ok=True)
        return made

    @property
    def store(self) -> Path:
        """Its journals."""
        return self.folder / "store"

    @property
    def home(self) -> Path:
        """The user's home."""
        return self.folder / "home"

    @property
    def project(self) -> str:
        """A project of this trial's own: trials share a server."""
        return f"p{os.getpid()}-{self.trial._folder.name}"

    def place(self, name: str = "run", identity: bytes | None = None) -> Place:
        """A new journal."""
        made = make_place(self.store, self.project, name, identity)
        self.places.append(made)
        return made

    def pen(self, place: Place | None = None, **options: Any) -> WriterFixture:
        """A writer; in a new journal if none is given."""
        made = WriterFixture(place or self.place(f"run{len(self.places)}"), **options)
        self.pens.append(made)
        return made

    def syncd(
        self,
        command: str,
        url: str,
        *args: str,
        zygote: Zygote | None = None,
        impatient: dict[str, Any] | None = None,
        **options: Any,
    ) -> Victim:
        """`ml-dash-syncd COMMAND` for the store of this machine."""
        return syncd(
            zygote or self.world.zygote,
            self.folder,
            command,
            "--store",
            str(self.store),
            "--remote",
            url,
            "--user",
            self.user,
            *args,
            home=self.home,
            impatient=HASTE | (impatient or {}),
            **options,
        )

    def once(self, url: str, *args: str, timeout_s: float = 60.0, **options: Any) -> int:
        """`once`, to its end; its exit status."""
        victim = self.syncd("once", url, *args, **options)
        status = victim.wait(timeout_s)
        self.last_words = victim.told()
        return status

    def drain(self, url: str, **options: Any) -> None:
        """`once` must drain everything."""
        status = self.once(url, **options)
        self.trial.check(status == DRAINED, f"`once` ended with {status}: {self.last_words[-800:]}")

    last_words: str = ""

    @property
    def state(self) -> Path:
        """Where the uploader keeps its state."""
        hosts = list((Path(account(self.home)["XDG_STATE_HOME"]) / "ml-dash").glob("*"))
        if len(hosts) != 1:
            raise LookupError(f"{len(hosts)} folders of hosts: {hosts}")
        return hosts[0]

    def cursors(self) -> list[Path]:
        """The files of its cursors."""
        try:
            return sorted((self.state / "cursors").glob("*.json"))
        except LookupError:
            return []

    def acknowledged(self) -> dict[str, int]:
        """Segment file → how many bytes the cursors say are on the server; unreadable cursors say nothing."""
        found: dict[str, int] = {}
        for path in self.cursors():
            with contextlib.suppress(ValueError, OSError):
                cursor = json.loads(path.read_bytes())
                found.update({name: int(end) for name, end in cursor.get("segments", {}).items()})
        return found

    def let_go(self) -> None:
        """Writers that still live die."""
        for pen in self.pens:
            pen.die()


@contextlib.contextmanager
def site(trial: Trial, name: str = "site", *, user: str = "alice", world: World | None = None) -> Iterator[Site]:
    """A machine for one trial."""
    made = Site(trial, world or trial.shared, name, user)
    try:
        yield made
    finally:
        made.let_go()


class Writing:
    """A thread of the harness that lets a pen write at irregular moments: the live writer of a trial."""

    def __init__(
        self, pen: WriterFixture, rng: Any, *, pause_s: float = 0.002, files: bool = True, pieces: bool = False
    ) -> None:
        self.pen = pen
        self._rng = rng
        self._pause_s = pause_s
        self._files = files
        self._pieces = pieces
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="writing")
        self.failure: BaseException | None = None

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                for _ in range(self._rng.randrange(1, 6)):
                    self.pen.any(self._rng, files=self._files)
                if self._rng.random() < 0.03:
                    self.pen.roll()
                self._stop.wait(self._rng.random() * 2 * self._pause_s)
        except BaseException as error:  # noqa: BLE001 - raised in the trial
            self.failure = error

    def __enter__(self) -> Writing:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self.failure is not None:
            raise self.failure
