"""Fixtures of the services: one of each per process that runs tests, and a database or bucket of its own per test."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from . import running
from .build import Unavailable
from .running import Service

_SEE = "see docs/contributing.md"


def started(make: Callable[[Path], Service], folder: Path) -> Service:
    """Return a running service. Skips the test if it cannot be had here, and fails it if `CI` is true."""
    try:
        return make(folder).start()
    except Unavailable as missing:
        text = f"{missing} ({_SEE})"
        if os.environ.get("CI") == "true":
            pytest.fail(text, pytrace=False)
        pytest.skip(text)


def told_once(report: pytest.TestReport) -> None:
    """Give all tests that miss a service the same place in the source, so that the summary counts them in one line."""
    if report.skipped and isinstance(report.longrepr, tuple) and _SEE in report.longrepr[2]:
        report.longrepr = (__file__, 0, report.longrepr[2])


@pytest.fixture(scope="session")
def mongo_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """FerretDB, running. Tests that kill one start their own."""
    service = started(running.mongo, tmp_path_factory.mktemp("mongo"))
    yield service
    service.end()


@pytest.fixture(scope="session")
def s3_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The S3 service, running. Tests that kill one start their own."""
    service = started(running.s3, tmp_path_factory.mktemp("s3"))
    yield service
    service.end()


@pytest.fixture
def mongo_database(mongo_service: Service) -> tuple[str, str]:
    """(URI, the name of a database that is not there yet)."""
    return running.mongodb_uri(mongo_service), f"test_{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def s3_client(s3_service: Service) -> Iterator[Any]:
    """A client of the S3 service with the rights of its owner."""
    client = running.s3_client(s3_service)
    yield client
    client.close()


@pytest.fixture
def s3_bucket(s3_client: Any) -> str:
    """The name of an empty bucket."""
    return running.bucket(s3_client)
