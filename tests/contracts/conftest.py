"""Documents at places of each kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ml_dash.server.stores import Documents

from .document_places import Clock, Place, module_of

KINDS = ["sqlite"]
"""Another technology joins by a line here, and in `document_places`."""


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """An empty place; all that was opened there is closed."""
    made = Place(request.param, str(tmp_path / "server.sqlite"))
    yield made
    made.close()


@pytest.fixture
def documents(place: Place) -> Documents:
    """The place, opened."""
    return place.open()


@pytest.fixture
def other(place: Place, documents: Documents) -> Documents:
    """The same place, opened by another server."""
    return place.open()


@pytest.fixture
def clock(place: Place, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock by which the documents see leases run out."""
    made = Clock()
    monkeypatch.setattr(module_of(place.kind), "time", made)
    return made
