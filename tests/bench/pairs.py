"""The pairs of stores that a server is measured on: SQLite and a folder, MongoDB and S3 (FerretDB and versitygw)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import psutil

from ml_dash.server.settings import ServerSettings, server_settings
from tests.services import Service, running
from tests.services.build import Unavailable

EMBEDDED: Final = "embedded"
PAIR: Final = "mongo + s3"


@dataclass
class Stores:
    """One pair of stores, empty at first: what a server needs to find it, and the services that it consists of."""

    kind: str
    data: Path
    environment: dict[str, str] = field(default_factory=dict)
    services: dict[str, Service] = field(default_factory=dict)

    def settings(self) -> ServerSettings:
        """The settings of a server in this process."""
        return replace(server_settings(data=self.data, env=self.environment), data=self.data)

    def cpu_s(self) -> dict[str, float]:
        """Seconds of CPU that each service has used since it was started."""
        return {name: cpu_s(service.pid) for name, service in self.services.items()}


@contextlib.contextmanager
def pairs(folder: Path) -> Iterator[list[Stores]]:
    """Both pairs; only the embedded one where the services cannot be had."""
    made = [Stores(EMBEDDED, folder / "embedded")]
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(Unavailable):
            made.append(stack.enter_context(_pair(folder)))
        yield made


@contextlib.contextmanager
def _pair(folder: Path) -> Iterator[Stores]:
    mongo, s3 = running.mongo(folder / "mongo").start(), running.s3(folder / "s3").start()
    try:
        client = running.s3_client(s3)
        environment = {
            "MONGODB_URI": running.mongodb_uri(mongo).replace("/?", "/bench?"),
            "S3_ENDPOINT": f"http://{s3.address}",
            "S3_BUCKET": running.bucket(client),
            "S3_ACCESS_KEY": running.ACCESS_KEY,
            "S3_SECRET_KEY": running.SECRET_KEY,
        }
        client.close()
        yield Stores(PAIR, folder / "pair", environment, {"FerretDB": mongo, "versitygw": s3})
    finally:
        mongo.end()
        s3.end()


def cpu_s(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    times: Any = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)
