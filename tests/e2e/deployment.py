"""Servers side by side on one MongoDB and one bucket, behind a balancer, with links between that faults are put on."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests import services
from tests.faults.harness import Trial, Unavailable
from tests.services import running

from . import proxy as px
from .asking import Address, Client
from .database_link import DatabaseLink
from .servers import SERVER_HASTE, Server, serve
from .verdict import judged
from .world import Site

if TYPE_CHECKING:
    from .world import World

SERVERS: Final = 2
ARCHIVES_SOON: Final[dict[str, Any]] = {
    "ml_dash.server.engine.changes:ARCHIVED_BYTES": 400,
    "ml_dash.server.engine.archive:_RAW_LEAST": 300,
    "ml_dash.server.engine.archive:_RAW_BYTES": 2_000,
    "ml_dash.server.engine.archive:_REST_BYTES": 200,
}
"""Raw bytes go to the bucket after a few frames."""


class Services:
    """A MongoDB and an S3, for all trials of a process."""

    def __init__(self, folder: Path) -> None:
        try:
            self.mongo = services.mongo(folder / "mongo").start()
            self.s3 = services.s3(folder / "s3").start()
        except services.Unavailable as missing:
            raise Unavailable(str(missing)) from None
        self.client = running.s3_client(self.s3)

    def close(self) -> None:
        """End both."""
        self.client.close()
        self.mongo.kill()
        self.s3.kill()


class Backend:
    """A database and a bucket of a trial's own; with `links`, each is reached through one that can be disturbed."""

    def __init__(self, owner: Services, *, links: bool = False) -> None:
        self.services = owner
        self.database = f"t{uuid.uuid4().hex}"
        self.bucket = running.bucket(owner.client)
        self.mongo_link = DatabaseLink(("127.0.0.1", owner.mongo.port)) if links else None
        self.s3_link = px.Proxy(("127.0.0.1", owner.s3.port)) if links else None

    def environment(self) -> dict[str, str]:
        """The settings of a server."""
        mongo = self.mongo_link.port if self.mongo_link is not None else self.services.mongo.port
        s3 = self.s3_link.port if self.s3_link is not None else self.services.s3.port
        return {
            "MONGODB_URI": f"mongodb://127.0.0.1:{mongo}/{self.database}?retryWrites=false",
            "S3_BUCKET": self.bucket,
            "S3_ENDPOINT": f"http://127.0.0.1:{s3}",
            "S3_REGION": running.REGION,
            "S3_ACCESS_KEY": running.ACCESS_KEY,
            "S3_SECRET_KEY": running.SECRET_KEY,
        }

    @contextlib.contextmanager
    def collections(self) -> Iterator[Any]:
        """The database, past every link."""
        import pymongo

        with pymongo.MongoClient[Any](running.mongodb_uri(self.services.mongo)) as client:
            yield client[self.database]

    def objects(self) -> dict[str, bytes]:
        """All objects, past every link."""
        client = self.services.client
        found: dict[str, bytes] = {}
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket):
            for entry in page.get("Contents", ()):
                with client.get_object(Bucket=self.bucket, Key=entry["Key"])["Body"] as body:
                    found[entry["Key"]] = body.read()
        return found

    def close(self) -> None:
        """Close the links."""
        for link in (self.mongo_link, self.s3_link):
            if link is not None:
                link.close()


class Balancer(px.Proxy):
    """Sends each request to the next server that accepts connections."""

    one_request_each = True

    def __init__(self, upstreams: list[tuple[str, int]]) -> None:
        self.upstreams = upstreams
        self._turn = itertools.count()
        super().__init__(upstreams[0])

    def connect(self) -> socket.socket:
        """Connect to the server whose turn it is; to another one if it refuses. Raises OSError if all do."""
        first = next(self._turn)
        for number in range(len(self.upstreams)):
            upstream = self.upstreams[(first + number) % len(self.upstreams)]
            with contextlib.suppress(ConnectionRefusedError):
                return socket.create_connection(upstream, 10)
        raise ConnectionRefusedError("no server accepts connections")


class Deployment:
    """Servers on one backend, and the balancer before them."""

    def __init__(
        self, world: World, folder: Path, *, links: bool = False, impatient: dict[str, Any] | None = None
    ) -> None:
        self._world = world
        self._folder = folder
        self._impatient = impatient or {}
        self.backend = Backend(world.services, links=links)
        self.servers: list[Server] = []
        self.balancer: Balancer | None = None
        self._options: list[dict[str, Any]] = [{} for _ in range(SERVERS)]

    def start(self, *options: dict[str, Any]) -> Deployment:
        """Start all servers at the same moment, each with options of its own."""
        for number, how in enumerate(options):
            self._options[number] = how
        self.servers = [self._serve(number, how) for number, how in enumerate(self._options)]
        for server in self.servers:
            server.wait_ready()
        if self.balancer is None:
            self.balancer = Balancer([server.address for server in self.servers])
        self.balancer.upstreams = [server.address for server in self.servers]
        return self

    def restart(self, number: int, **options: Any) -> Server:
        """Kill one of them, and start another in its place."""
        assert self.balancer is not None
        self.servers[number].kill()
        self.servers[number] = self._serve(number, options)
        self.servers[number].wait_ready()
        self.balancer.upstreams = [server.address for server in self.servers]
        return self.servers[number]

    def stop(self) -> None:
        """End all servers in order."""
        for server in self.servers:
            server.stop()

    def _serve(self, number: int, options: dict[str, Any]) -> Server:
        env = self.backend.environment() | options.get("env", {})
        impatient = SERVER_HASTE | self._impatient
        zygote = self._world.shimmed if options.get("program") else self._world.zygote
        rest = {name: value for name, value in options.items() if name != "env"}
        return serve(zygote, self._folder / f"server-{number}", env=env, impatient=impatient, own=False, **rest)

    @property
    def url(self) -> str:
        """Where the uploader goes."""
        assert self.balancer is not None
        return self.balancer.url

    @property
    def port(self) -> int:
        """The port of the balancer."""
        assert self.balancer is not None
        return self.balancer.port

    def close(self) -> None:
        """End everything."""
        for server in self.servers:
            server.kill()
        if self.balancer is not None:
            self.balancer.close()
        self.backend.close()

    def judged(self, trial: Trial, *sites: Site) -> None:
        """Every server must show what the machines have recorded, and all the same."""
        for server in self.servers:
            if not trial.problems:
                judged(trial, server.port, *sites)
        if not trial.problems:
            trial.fail(*self._differences(*sites))

    def _differences(self, *sites: Site) -> list[str]:
        problems: list[str] = []
        for site in sites:
            for place in site.places:
                shown = [_shown(server.port, place.identity.hex(), site.user) for server in self.servers]
                problems += [f"the servers answer differently of {name}" for name in shown[0] if _differ(shown, name)]
        return problems


def _differ(shown: list[dict[str, Any]], name: str) -> bool:
    return any(other.get(name) != shown[0][name] for other in shown[1:])


def _shown(port: Address, journal: str, user: str) -> dict[str, Any]:
    """What one server answers of an experiment."""
    with Client(port, user=user) as client:
        state = client.journal(journal)
        if state is None:
            return {"state": None}
        experiment = state["experiment"]
        found: dict[str, Any] = {"state": state, "logs": client.logs(experiment), "files": client.files(experiment)}
        found["parameters"] = client.parameters(experiment)
        for metric in client.metrics(experiment):
            found[metric] = client.points(experiment, metric)
        return found


@contextlib.contextmanager
def deployment(
    trial: Trial, *options: dict[str, Any], links: bool = False, impatient: dict[str, Any] | None = None
) -> Iterator[Deployment]:
    """Two servers of a trial's own."""
    made = Deployment(trial.shared, trial.folder / "deployment", links=links, impatient=impatient)
    try:
        yield made.start(*options)
    finally:
        made.close()


class BalancedServer:
    """Two servers that look like one, for rows that share a server which they do no harm to."""

    host: Final = "127.0.0.1"

    def __init__(self, world: World, folder: Path) -> None:
        self.folder = folder
        self._deployment = Deployment(world, folder).start()
        self.process = self
        self.pid = os.getpid()

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._deployment.port

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return self.host, self.port

    def told(self) -> str:
        """What they wrote."""
        return "".join(server.process.told() for server in self._deployment.servers)

    def exited(self, timeout_s: float) -> bool:
        """Has one of them ended?"""
        return any(server.process.exited(timeout_s) for server in self._deployment.servers)

    def kill(self) -> None:
        """End both."""
        self._deployment.close()


def pause(seconds: float) -> None:
    """Let the trial's processes go on for so long."""
    threading.Event().wait(seconds)


__all__ = ["ARCHIVES_SOON", "BalancedServer", "Deployment", "deployment", "pause"]
