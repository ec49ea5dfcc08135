"""An experiment read as it was at a moment."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import pytest

from ml_dash import Experiment
from ml_dash.errors import InvalidValue, ReadOnly


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Events: opened, lr, three points and a log, rewound, a point; closed. Then opened, title, failed."""
    with Experiment("a", "p", local_path=tmp_path) as experiment:
        experiment.parameters().set(lr=0.1)
        for step in range(3):
            experiment.metric("loss").append(value=step, step=step)
        experiment.log("half")
        experiment.rewind(1)
        experiment.metric("loss").append(value=9, step=1)
    experiment = Experiment("a", "p", local_path=tmp_path).open()
    experiment.update(title="t")
    experiment.close("failed")
    return tmp_path


def test_everything_is_as_it_was_at_an_event(store: Path) -> None:
    with Experiment("a", "p", local_path=store, read_only=True, as_of=5) as then:
        assert (then.status, then.title, then.parameters().get()) == ("running", None, {"lr": 0.1})
        assert then.data["counts"]["events"] == 5
        assert then.metric("loss").stats()["series"]["loss"]["count"] == 3
        assert then.log().read()["logs"] == []
        assert then.last_step == 2
        with pytest.raises(ReadOnly):
            then.log("no")
    with Experiment("a", "p", local_path=store, read_only=True, as_of=8) as then:
        assert [point["data"]["value"] for point in then.metric("loss").read(superseded=False)["data"]] == [0, 9]
    with Experiment("a", "p", local_path=store, read_only=True, as_of=9) as then:
        assert (then.status, then.title) == ("completed", None)


def test_a_time_names_all_that_was_there_then(store: Path) -> None:
    with Experiment("a", "p", local_path=store, read_only=True) as now:
        first, second = now.data["writers"]
        ended = str(first["endedAt"])
    for moment in (ended, datetime.fromisoformat(ended.replace("Z", "+00:00")).astimezone(timezone.utc)):
        with Experiment("a", "p", local_path=store, read_only=True, as_of=moment) as then:
            assert (then.data["counts"]["events"], then.status) == (9, "completed")
    with Experiment("a", "p", local_path=store, read_only=True, as_of=second["startedAt"]) as then:
        assert (then.data["counts"]["events"], then.status) == (10, "running")
    with Experiment("a", "p", local_path=store, read_only=True, as_of="-1h") as then:
        assert then.data["counts"]["events"] == 0


def test_the_future_is_the_present(store: Path) -> None:
    with Experiment("a", "p", local_path=store, read_only=True, as_of=10**6) as then:
        assert (then.status, then.title) == ("failed", "t")


def test_only_readers_look_back_and_only_to_what_is_a_moment(store: Path) -> None:
    with pytest.raises(InvalidValue, match="read_only=True"):
        Experiment("a", "p", local_path=store, as_of=1)
    with pytest.raises(InvalidValue, match="no moment"):
        Experiment("a", "p", local_path=store, read_only=True, as_of="yesterday")
