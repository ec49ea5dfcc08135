"""Calls that people write by mistake: the error shows the right one, and nothing is recorded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
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
        (lambda one: one.metric("loss", value=0.5, step=3), "experiment.metric('loss').append(value=0.5, step=3)"),
        (lambda one: one.metric("loss", 0.5), "experiment.metric('loss').append(value=0.5)"),
        (lambda one: one.metric("loss", 0.5, step=3), "experiment.metric('loss').append(value=0.5, step=3)"),
        (lambda one: one.file(_Figure()), "figure.savefig('a.png'), then file('a.png')"),
        (lambda one: one.file(b"weights"), "write it to a file first"),
    ],
)
def test_the_error_shows_the_right_call(make: Make, call: Any, right: str) -> None:
    with make() as experiment:
        with pytest.raises(UnsupportedType) as raised:
            call(experiment)
        assert right in str(raised.value)
        assert experiment.durable_state()["accepted"] == 1


_LATE = """
import threading
from ml_dash import Experiment
experiment = Experiment("first", "cv").open()
begun = threading.Event()
def work():
    try:
        while True:
            experiment.metric("loss").append(value=1.0)
            experiment.log("one")
            begun.set()
    except Exception:
        print("an exception")
threading.Thread(target=work, daemon=True).start()
begun.wait()
"""


def test_a_thread_that_records_while_the_process_ends_gets_no_traceback(tmp_path: Path) -> None:
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", _LATE], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "")
        assert "Traceback" not in done.stderr
        # One line, where the thread came to record before the interpreter stopped it.
        assert done.stderr.count("threads still recorded into cv/first") <= 1
