"""A real server, and machines that know it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.machines import Machine
from tests.running import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that nothing is wrong with."""
    running = Server(tmp_path_factory.mktemp("server") / "data").start()
    yield running
    running.end()


@pytest.fixture
def first(tmp_path: Path, server: Server) -> Machine:
    return Machine(tmp_path / "first", server.url)


@pytest.fixture
def second(tmp_path: Path, server: Server) -> Machine:
    return Machine(tmp_path / "second", server.url)
