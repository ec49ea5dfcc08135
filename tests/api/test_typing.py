"""What type checkers make of the documented calls: mypy --strict and pyright accept them, and know what they give."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

CALLS = """
from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from typing_extensions import assert_type

import ml_dash
from ml_dash import (
    Experiment, FileBuilder, FileEntry, LogBuilder, LogHandler, LogLevel, MetricBuilder, MetricsBuilder, OperationMode,
    ParametersBuilder, ml_dash_experiment,
)


class Tracker(Experiment):
    pass


def experiment_and_attributes() -> None:
    with Experiment(name="first", project="cv") as experiment:
        assert_type(experiment, Experiment)
    with Tracker(
        "first", "cv", description="d", tags=["a"], folder="f", metadata={"k": [1]}, write_protected=True,
        local_path=Path("runs"), local_prefix="~", remote="http://localhost", user_name="a", api_key="k", resume="must",
        resume_from_remote=False, read_only=False, durability="always", strict=True,
    ) as tracker:
        assert_type(tracker, Tracker)
    assert_type(Experiment("first", "cv").open(), Experiment)
    experiment.close()
    experiment.close(status="failed")
    experiment.update(description="d", tags=["a"], folder="f", metadata={"k": 1})
    assert_type(experiment.name, str)
    assert_type(experiment.tags, "list[str] | None")
    assert_type(experiment.metadata, "dict[str, Any] | None")
    assert_type(experiment.path, Path)
    assert_type(experiment.mode, OperationMode)
    assert_type(experiment.resumed, bool)
    assert_type(experiment.durable_state()["lost"], int)
    assert_type(experiment.wait_synced(timeout=1), bool)
    assert_type(experiment.data["counts"]["points"], "int | Any")
    for found in ml_dash.experiments("runs", project="cv"):
        assert_type(found["status"], str)


def logs(experiment: Experiment) -> None:
    experiment.log("one")
    experiment.log("one", "warn", {"k": 1})
    experiment.log("one", level=LogLevel.WARN, metadata={"k": 1}, loss=0.5, epoch=3)
    assert_type(experiment.log(), LogBuilder)
    builder = experiment.log(metadata={"k": 1}, epoch=3)
    assert_type(builder, LogBuilder)
    builder.warn("two", loss=0.5)
    page = experiment.log().read(start_index=-10, limit=10, level="warn")
    assert_type(page["logs"][0]["message"], str)
    assert_type(page["hasMore"], bool)
    assert_type(LogLevel.validate("WARNING"), str)
    logging.getLogger().addHandler(LogHandler(experiment))


def parameters(experiment: Experiment) -> None:
    assert_type(experiment.parameters().set(lr=0.1, layers=[1]), ParametersBuilder)
    experiment.parameters().set({"model": {"layers": 2}}, lr=0.1).set(**{"a.b": 1})
    assert_type(experiment.parameters().get(flatten=False), "dict[str, Any]")
    assert_type(ParametersBuilder.flatten_dict({"a": {"b": 1}}, parent_key="p", sep="/"), "dict[str, Any]")
    assert_type(ParametersBuilder.unflatten_dict({"a.b": 1}), "dict[str, Any]")


def metrics(experiment: Experiment) -> None:
    loss = experiment.metric("train/loss", description="d", tags=["a"], metadata={"unit": "nats"})
    assert_type(loss, MetricBuilder)
    assert_type(loss.append(value=0.5, step=1, name="x")["index"], int)
    assert_type(loss.append_batch([{"value": 0.5}, {"value": 1, "note": "x"}])["endIndex"], int)
    loss.append_batch({"value": float(number)} for number in range(3))
    points = [{"value": 0.5, "step": 1}]
    loss.append_batch(points)
    page = loss.read(start_index=0, limit=100)
    assert_type(page["data"][0]["index"], int)
    assert_type(page["data"][0]["data"], "dict[str, Any]")
    stats = loss.stats()
    assert_type(stats["totalDataPoints"], int)
    assert_type(stats["series"]["train/loss"]["mean"], "float | None")
    assert_type(experiment.metric(), MetricsBuilder)
    assert_type(experiment.metric().list_all()[0]["name"], str)
    assert_type(loss.list_all()[0]["totalDataPoints"], int)


def files(experiment: Experiment) -> None:
    record = experiment.file("model.pth", prefix="/models", description="d", tags=["a"], metadata={"k": 1})
    assert_type(record, FileEntry)
    assert_type(record.save(), FileEntry)
    print(record["id"], record["sizeBytes"])
    assert_type(experiment.file(file_path="model.pth", prefix="/"), FileBuilder)
    assert_type(experiment.file(file_prefix="model.pth", prefix="/").save(), FileEntry)
    assert_type(experiment.file().list()[0]["tags"], "list[str] | None")
    assert_type(experiment.file(prefix="/models", tags=["a"]).list()[0]["id"], str)
    assert_type(experiment.file(file_id="1", dest_path=Path("copy")).download(), str)
    assert_type(experiment.file(file_id="1").delete()["deletedAt"], str)
    assert_type(experiment.file(file_id="1", description="d", tags=[], metadata={}).update()["updatedAt"], str)


@ml_dash_experiment(name="first", project="cv")
def train_model(experiment: Experiment, epochs: int = 3) -> float:
    return 0.5


def named(seed: int) -> str:
    return f"seed-{seed}"


@ml_dash_experiment(name=named, project="cv", tags=["a"], durability="os")
async def later(seed: int, *, experiment: Experiment) -> int:
    return seed


@ml_dash_experiment("first", "cv")
def values(experiment: Experiment) -> Iterator[int]:
    yield 1


@ml_dash_experiment("first", "cv")
async def many(experiment: Experiment) -> AsyncIterator[int]:
    yield 1


class Trainer:
    @ml_dash_experiment(name="first", project="cv")
    def fit(self, experiment: Experiment, epochs: int) -> str:
        return "done"


async def decorated(mine: Experiment) -> None:
    assert_type(train_model(), float)
    assert_type(train_model(epochs=1), float)
    assert_type(train_model(experiment=mine, epochs=1), float)
    assert_type(await later(3), int)
    assert_type(list(values()), "list[int]")
    assert_type([number async for number in many()], "list[int]")
    assert_type(Trainer().fit(epochs=3), str)
    assert_type(Trainer().fit(3), str)
    print(train_model.__name__)


def what_is_wrong(experiment: Experiment) -> None:
    experiment.metric(5)  # type: ignore[call-overload]  # pyright: ignore
    experiment.close(status="done")  # type: ignore[arg-type]  # pyright: ignore
    experiment.name = "other"  # type: ignore[misc]  # pyright: ignore
    experiment.file("model.pth", prefx="/")  # type: ignore[call-overload]  # pyright: ignore
    experiment.metric("loss").read()["points"]  # type: ignore[typeddict-item]  # pyright: ignore
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("typing") / "calls.py"
    path.write_text(CALLS, encoding="utf-8")
    return path


def _check(command: list[str], folder: Path) -> None:
    environment = {**os.environ, "MYPYPATH": str(ROOT), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_mypy_strict_knows_every_documented_call(program: Path) -> None:
    _check(["mypy", "--strict", "--cache-dir", str(ROOT / ".mypy_cache"), str(program)], program.parent)


def test_pyright_knows_every_documented_call(program: Path) -> None:
    (program.parent / "pyrightconfig.json").write_text(
        f'{{"typeCheckingMode": "strict", "extraPaths": ["{ROOT}"], "reportUnusedExpression": false}}', encoding="utf-8"
    )
    _check(["pyright", "--pythonpath", sys.executable, str(program)], program.parent)
