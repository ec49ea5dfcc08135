"""Places where documents may lie, one kind for each technology; several openings of one stand for several servers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from ml_dash.server.stores import Commit, Documents, ExperimentRow, Page

NS: Final = "alice"
ID: Final = "1001"


def open_documents(kind: str, where: str) -> Documents:
    """Open the documents of a kind at a place."""
    if kind == "sqlite":
        from ml_dash.server.stores.sqlite import SqliteDocuments

        return SqliteDocuments(Path(where))
    if kind == "mongo":
        from ml_dash.server.stores.mongo import MongoDocuments

        return MongoDocuments(*where.split())
    raise ValueError(kind)


def module_of(kind: str) -> ModuleType:
    """Return the module that implements a kind."""
    if kind == "sqlite":
        from ml_dash.server.stores import sqlite

        return sqlite
    if kind == "mongo":
        from ml_dash.server.stores import mongo

        return mongo
    raise ValueError(kind)


@dataclass
class Place:
    """One place, and all that was opened there."""

    kind: str
    where: str
    opened: list[Documents] = field(default_factory=list)

    def open(self) -> Documents:
        """Open it once more, as another server would."""
        documents = open_documents(self.kind, self.where)
        self.opened.append(documents)
        return documents

    def start(self, act: str, *arguments: str, fail: str = "") -> subprocess.Popen[str]:
        """Start another process that does an act of `document_process` there; `fail` names a step at which it dies."""
        command = [sys.executable, "-m", "tests.contracts.document_process", self.kind, self.where, act, *arguments]
        environment = {**os.environ, **({"ML_DASH_FAIL": f"{fail}:1:kill"} if fail else {})}
        return subprocess.Popen(
            command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )  # fmt: skip

    def run(self, act: str, *arguments: str, fail: str = "") -> list[str]:
        """Do an act in another process and return the lines that it printed; it has to die if `fail` is given."""
        with self.start(act, *arguments, fail=fail) as process:
            said, _ = process.communicate(timeout=120)
        assert process.returncode == (-signal.SIGKILL if fail else 0), said
        return said.splitlines()

    def close(self) -> None:
        """Close all that was opened."""
        for documents in self.opened:
            documents.close()


@dataclass
class Clock:
    """A monotonic clock that stands until it is set forward."""

    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += seconds


def experiment(number: int = 1, **fields: Any) -> ExperimentRow:
    """Return a row in which every column says something."""
    row = ExperimentRow(
        id=str(1000 + number), project="cv", name=f"run-{number:03}", version=1, fold_version=1,
        state=b"state %d" % number, status="running", created_ns=1000 + number, updated_ns=2000 + number,
        heard_ns=3000 + number, folder="sweeps", tags=("a", "b"), description=f"number {number}",
        summary={"counts": {"points": number, "events": 1}}, root=b"root %d" % number, arrivals=5,
    )  # fmt: skip
    return replace(row, **fields)


def put(
    documents: Documents,
    row: ExperimentRow,
    pages: dict[str, bytes] | None = None,
    superseded: tuple[str, ...] = (),
    ns: str = NS,
) -> ExperimentRow:
    """Commit a row under a lease of its own, and return it as it was stored."""
    lease = documents.lease(ns, row.id)
    row = replace(row, version=lease.version, epoch=lease.epoch)
    named: list[Page] = list((pages or {}).items())
    documents.commit(lease, Commit(row, named, superseded))
    return row


def first_version(documents: Documents) -> ExperimentRow:
    """Commit what `second_version` replaces."""
    return put(documents, experiment(root=json.dumps(["a1", "b1"]).encode()), {"a1": b"old a", "b1": b"old b"})


def second_version(documents: Documents) -> ExperimentRow:
    """Commit a version that replaces the first page, keeps the others, and is seen in lists."""
    lease = documents.lease(NS, ID)
    old = json.loads(lease.row.root) if lease.row is not None else []
    page = f"a{lease.version}-{lease.epoch}"
    row = experiment(
        version=lease.version, epoch=lease.epoch, name="renamed", state=b"second",
        root=json.dumps([page, *old[1:]]).encode(), summary={"counts": {"points": 9, "events": 2}},
    )  # fmt: skip
    documents.commit(lease, Commit(row, [(page, b"new a")], old[:1]))
    return row
