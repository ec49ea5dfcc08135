"""Calls that people write by mistake: the error shows the right one, and nothing is recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from ml_dash import UnsupportedType

if TYPE_CHECKING:
    from tests.api.conftest import Make


class _Figure:
    def savefig(self, path: str) -> None:
        raise AssertionError(path)


@pytest.mark.parametrize(
    ("call", "right"),
    [
        (lambda one: one.metric("loss", value=0.5), "experiment.metric('loss').append(value=0.5)"),
        (lambda one: one.file(_Figure()), "figure.savefig('a.png'), then file('a.png')"),
        (lambda one: one.file(b"weights"), "write_bytes(...), then file('a.bin')"),
        (lambda one: one.file(file_path=bytearray(b"weights")), "write_bytes(...), then file('a.bin')"),
    ],
)
def test_the_error_shows_the_right_call(make: Make, call: Any, right: str) -> None:
    with make() as experiment:
        with pytest.raises(UnsupportedType) as raised:
            call(experiment)
        assert right in str(raised.value)
        assert experiment.durable_state()["accepted"] == 1
