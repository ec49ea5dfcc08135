"""The places that the suites of objects and uploads run on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts.places import DiskPlace, Place, s3_place


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "disk":
        yield DiskPlace(tmp_path)
        return
    made = s3_place(request.getfixturevalue("s3_service"), request.getfixturevalue("s3_bucket"))
    yield made
    made.close()
