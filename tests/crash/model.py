"""What an experiment is, in a hundred lines: the model that random programs are compared with."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ml_dash.errors import InvalidInput, NotFound

from .victims import experiment


@dataclass
class Model:
    """All that a user may have told an experiment, in the plainest form."""

    logs: list[tuple[str, str, Any]] = field(default_factory=list)
    metrics: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    # id → (prefix, filename, checksum, description), in the order of adding; only live ones
    files: dict[str, tuple[str, str, str, Any]] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)


class Program:
    """Random calls, made on the model and on the library alike."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder = folder
        self.rng = rng
        self.model = Model()
        self.target = experiment(folder).open()
        self.count = 0
        self.steps = [
            self.log,
            self.log,
            self.point,
            self.point,
            self.batch,
            self.parameters,
            self.file,
            self.delete,
            self.describe_file,
            self.update,
            self.reopen,
            self.second_handle,
            self.look,
        ]

    def run(self, length: int) -> None:
        """That many calls, then close."""
        for _ in range(length):
            self.count += 1
            self.rng.choice(self.steps)()
        self.target.close()

    def log(self) -> None:
        """A log entry."""
        level, metadata = (
            self.rng.choice(("debug", "INFO", "warning", "error")),
            self.rng.choice((None, {}, {"n": self.count})),
        )
        self.target.log(f"entry {self.count}", level=level, metadata=metadata)
        self.model.logs.append(({"warning": "warn"}.get(level, level.lower()), f"entry {self.count}", metadata))

    def point(self) -> None:
        """A point."""
        name, fields = self.rng.choice(("a", "a/b", "loss")), {"value": self.rng.random(), "step": self.count}
        index = self.target.metric(name).append(**fields)["index"]
        points = self.model.metrics.setdefault(name, [])
        assert index == len(points), f"index {index} is told, expected {len(points)}"
        points.append(fields)

    def batch(self) -> None:
        """Some points at once."""
        rows = [
            {"value": n, "k": self.count} if self.rng.random() < 0.8 else {"other": n}
            for n in range(self.rng.randrange(1, 6))
        ]
        self.target.metric("batch").append_batch(rows)
        self.model.metrics.setdefault("batch", []).extend(rows)

    def parameters(self) -> None:
        """Parameters, nested or flat."""
        key, value = self.rng.choice(("x", "y", "deep")), self.rng.choice((self.count, None, [1, 2], "text"))
        if key == "deep":
            self.target.parameters().set({"deep": {"a": value, "b": {"c": self.count}}})
            self.model.parameters |= {"deep.a": value, "deep.b.c": self.count}
        else:
            self.target.parameters().set(**{key: value})
            self.model.parameters[key] = value

    def file(self) -> None:
        """A file, which may replace another one."""
        source = self.folder / f"f{self.rng.randrange(3)}"
        source.write_bytes(f"{self.count}".encode() * self.rng.randrange(1, 50))
        prefix = self.rng.choice(("", "models", "models/deep"))
        entry = self.target.file(str(source), prefix=f"/{prefix}")
        for known in [id_ for id_, file in self.model.files.items() if file[:2] == (prefix, source.name)]:
            del self.model.files[known]
        checksum = hashlib.sha256(source.read_bytes()).hexdigest()
        self.model.files[entry["id"]] = (prefix, source.name, checksum, None)

    def _any_file(self) -> str:
        return self.rng.choice([*self.model.files, "12345"])

    def delete(self) -> None:
        """Delete a file, or one that is not there."""
        which = self._any_file()
        try:
            self.target.file(file_id=which).delete()
        except NotFound:
            assert which not in self.model.files, f"file {which} is not found"
        else:
            assert self.model.files.pop(which, None), f"file {which} was deleted, but never added"

    def describe_file(self) -> None:
        """Describe a file."""
        which = self._any_file()
        if which in self.model.files:
            self.target.file(file_id=which, description=f"d{self.count}").update()
            self.model.files[which] = (*self.model.files[which][:3], f"d{self.count}")

    def update(self) -> None:
        """Describe the experiment."""
        key: str
        value: Any
        key, value = self.rng.choice(
            (("description", f"d{self.count}"), ("tags", [f"t{self.count}"]), ("metadata", {"n": self.count}))
        )
        self.target.update(**{key: value})
        self.model.told[key] = value

    def reopen(self) -> None:
        """Close, and open again."""
        self.target.close()
        self.target.open()
        assert self.target.resumed

    def second_handle(self) -> None:
        """Another handle of this process."""
        with experiment(self.folder) as other:
            other.log(f"second {self.count}")
        self.model.logs.append(("info", f"second {self.count}", None))

    def look(self) -> None:
        """Read while it is open: this process sees all that it has written."""
        self.compare(self.target)

    def compare(self, target: Any) -> None:
        """Everything that the library reads must be what the model says. Raises AssertionError."""
        model = self.model
        entries = target.log().read(limit=10_000)["logs"]
        assert [(e["level"], e["message"], e["metadata"]) for e in entries] == model.logs, "logs"
        assert {s["name"]: s["totalDataPoints"] for s in target.metric().list_all()} == {
            n: len(p) for n, p in model.metrics.items()
        }
        for name, points in model.metrics.items():
            page = target.metric(name).read(limit=10_000)
            assert [(p["index"], p["data"]) for p in page["data"]] == list(enumerate(points)), f"metric {name}"
            assert target.metric(name).stats()["totalDataPoints"] == len(points), f"stats of {name}"
        assert target.parameters().get() == model.parameters, "parameters"
        records = target.file().list()
        listed = [(r["id"], (r["prefix"].strip("/"), r["filename"], r["checksum"], r["description"])) for r in records]
        assert listed == list(model.files.items()), f"files: {listed} / {list(model.files.items())}"
        assert all(target.data.get(key) == value for key, value in model.told.items()), (
            "what was told of the experiment"
        )


def clash_is_refused(target: Any, source: Path) -> bool:
    """Is a file refused whose path is another one's folder?"""
    target.file(str(source), prefix="/here")
    try:
        target.file(str(source), prefix=f"/here/{source.name}")
    except InvalidInput:
        return True
    return False
