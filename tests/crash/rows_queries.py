"""Row V2: the answer to a query is the same on folders and on a server, and is what asking each experiment gives."""

from __future__ import annotations

import math
import random
import re
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ml_dash.core.events import PARAMETERS
from ml_dash.core.names import experiment_id
from ml_dash.reading.facts import MISSING, Facts, SeriesFacts, shown_value, value_of
from ml_dash.reading.local import LocalSource
from ml_dash.reading.source import Source, decoded
from ml_dash.reading.where import Sort, parse, parse_sort
from ml_dash.server.engine.services import Server
from ml_dash.server.engine.source import ServerSource
from tests.faults.harness import Row, Trial
from tests.journals import JournalFixture, WriterFixture
from tests.reading.queries import NAMES, NOW_NS, PARAMETERS_USED, meant, some_query, some_value

NS: Final = "alice"
_ROUNDS: Final = 3
_QUERIES: Final = 6
_HOUR_NS: Final = 3_600_000_000_000
_COMMIT: Final = "3f0a11c29be2701d" + "0" * 24
_SORTS: Final = (
    "updated", "created:asc", "name:desc", "params.lr", "params.opt.name:desc", "metrics.loss.max:desc",
    "metrics.val.acc", "size:desc", "status", "duration",
)  # fmt: skip
_COLUMNS: Final = (
    "params.lr",
    "params.note",
    "metrics.loss.mean",
    "metrics.loss.min",
    "metrics.val.acc.step",
    "created",
)
# Sources take the time of the question for now.
_RELATIVE: Final = re.compile(r"now|today|yesterday|-\d+[dh]\b")
_PATIENCE_S: Final = 60.0


@dataclass
class Recorded:
    """One experiment: its journal, and what was written to it, as plain values."""

    number: int
    desk: JournalFixture
    project: str
    name: str
    given: dict[str, Any] = field(default_factory=dict)
    titles: list[str] = field(default_factory=list)
    params: dict[str, Any] = field(default_factory=dict)
    points: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    status: str = "running"
    created_ns: int = 0
    ended_ns: int | None = None
    place: dict[str, Any] = field(default_factory=dict)
    pen: WriterFixture | None = None
    sent: dict[Path, int] = field(default_factory=dict)

    def facts(self) -> Facts:
        """What a list should know of it."""
        title = self.given.get("title")
        return Facts(
            id=experiment_id(self.project, self.name),
            project=self.project,
            name=self.name,
            title=title,
            names=[one for one in [self.name, *self.titles] if one != (title or self.name)],
            status=self.status,
            folder=self.given.get("folder"),
            tags=self.given.get("tags") or [],
            description=self.given.get("description"),
            notes=self.given.get("notes"),
            archived=bool(self.given.get("archived")),
            created_ns=self.created_ns,
            updated_ns=self.desk.now_ns,
            ended_ns=self.ended_ns,
            host=self.place.get("host"),
            user=self.place.get("userName"),
            commit=self.place.get("gitCommit"),
            files=len(self.files),
            size=sum(self.files.values()),
            points=sum(map(len, self.points.values())),
            params=dict(self.params),
            metrics={name: facts for metric in self.points for name, facts in self._series(metric)},
        )

    def _series(self, metric: str) -> list[tuple[str, SeriesFacts]]:
        rows = self.points[metric]
        steps = [step for step in map(_step, rows) if step is not None and step < math.inf]
        step = max(steps, default=None)
        names = dict.fromkeys(name for row in rows for name in row if name not in ("step", "epoch"))
        found = []
        for name in names:
            values = [row[name] for row in rows if type(row.get(name)) in (int, float)]
            if values:
                found.append((metric if name == "value" else f"{metric}.{name}", _counted(values, step)))
        return found


def _step(row: dict[str, Any]) -> Any:
    return next((row[key] for key in ("step", "epoch") if type(row.get(key)) in (int, float)), None)


def _counted(values: list[Any], step: Any) -> SeriesFacts:
    numbers = [value for value in values if value == value]
    total = 0.0
    for number in numbers:
        total += number
    mean = total / len(numbers) if numbers else None
    low, high = min(numbers, default=None), max(numbers, default=None)
    return SeriesFacts(len(values), values[0], values[-1], low, high, mean, step)


# -- recording --------------------------------------------------------------------------------------------------------


def _begin(rng: random.Random, number: int, store: Path, project: str, name: str) -> Recorded:
    desk = JournalFixture(store, project, name)
    desk.now_ns = NOW_NS - rng.randrange(1, 240) * _HOUR_NS
    return Recorded(number, desk, project, name)


def _go_on(rng: random.Random, one: Recorded) -> None:
    """Record some more, in a writer of its own; end it, perhaps."""
    if one.pen is None:
        one.place = {"host": rng.choice(("gpu1", "gpu2"))}
        if rng.random() < 0.5:
            one.place |= {"userName": "ann", "gitCommit": _COMMIT}
        # The ids of its segments follow from its number, and a server has them once.
        one.pen = WriterFixture(one.desk, one.number * 1000 + len(one.desk.pens))
        one.desk.pens.append(one.pen)
        one.pen.open(**one.place)
        one.created_ns = one.created_ns or one.desk.now_ns
        one.status, one.ended_ns = "running", None
    for _ in range(rng.randrange(1, 8)):
        _record(rng, one, one.pen)
    if rng.random() < 0.6:
        one.status = rng.choice(("completed", "failed", "interrupted"))
        one.pen.close(one.status)
        one.pen, one.ended_ns = None, one.desk.now_ns
    if rng.random() < 0.5:
        one.desk.catch_up()


def _record(rng: random.Random, one: Recorded, pen: WriterFixture) -> None:
    kind = rng.randrange(8)
    if kind < 2:
        values = {key: some_value(rng) for key in PARAMETERS_USED if rng.random() < 0.4}
        pen.frame(PARAMETERS, values)
        one.params |= values
    elif kind < 5:
        metric = rng.choice(("loss", "val", "train/loss", "m"))
        row = {rng.choice(("value", "acc", "min", "count")): _measured(rng)}
        if rng.random() < 0.7:
            row[rng.choice(("step", "epoch"))] = rng.randrange(10)
        rows = [row] * rng.choice((1, 1, 1, 1000))
        pen.rows(metric, *rows)
        one.points.setdefault(metric, []).extend(rows)
    elif kind == 5:
        content = bytes(rng.choice((0, 1000, 999)))
        name = rng.choice(("a", "b"))
        pen.file(content, filename=name)
        one.files[name] = len(content)
    else:
        given = rng.choice((
            {"tags": rng.sample(("baseline", "best", "a b"), rng.randrange(3))}, {"description": "a ResNet"},
            {"notes": "BEST so far"}, {"archived": rng.random() < 0.4}, {"folder": rng.choice(("a", "a/b"))},
            {"title": rng.choice(NAMES)}, {"description": None},
        ))  # fmt: skip
        pen.update(**given)
        one.given |= given
        if "title" in given and given["title"] not in one.titles:
            one.titles.append(given["title"])
        elif "title" in given:
            one.titles.remove(given["title"])
            one.titles.append(given["title"])


def _measured(rng: random.Random) -> Any:
    return rng.choice((0, 1, 0.1, 12, 1e9, float("nan"), float("inf"), rng.random(), True, "text"))


def _send(server: Server, one: Recorded) -> None:
    for pen in one.desk.pens:
        for path in pen.segments:
            data, start = path.read_bytes(), one.sent.get(path, 0)
            if start < len(data):
                server.append_segment(NS, one.desk.identity.journal.hex(), path.name, start, data[start:])
                one.sent[path] = len(data)


# -- asking -----------------------------------------------------------------------------------------------------------


def equal_answers(trial: Trial) -> None:
    """V2. Random queries over random experiments: local folders, a server on SQLite, and each one asked plainly."""
    with closing(Server(trial.folder / "server")) as server:
        compare(trial, server)


def compare(trial: Trial, server: Server) -> None:
    """Record experiments here and there, and compare answers in between."""
    rng = trial.rng
    places = [(project, name) for project in ("vision", "nlp") for name in NAMES]
    chosen = rng.sample(places, rng.randrange(2, 9))
    runs = [_begin(rng, number, trial.folder / "store", *place) for number, place in enumerate(chosen)]
    try:
        for _ in range(_ROUNDS):
            for one in runs:
                if not one.created_ns or rng.random() < 0.5:
                    _go_on(rng, one)
                    _send(server, one)
            # Another process each time, which begins with the index of the one before.
            with closing(LocalSource([trial.folder / "store"], cache=trial.folder / "cache")) as local:
                _ask(trial, runs, {"folders": local, "server": ServerSource(server, NS)})
    finally:
        for one in runs:
            one.desk.let_go()


def _ask(trial: Trial, runs: list[Recorded], sources: dict[str, Source]) -> None:
    rng = trial.rng
    plain = [one.facts() for one in runs]
    for _ in range(_QUERIES):
        tree = some_query(rng)
        while _RELATIVE.search(str(tree)):
            tree = some_query(rng)
        where, sort = str(tree), rng.choice(_SORTS)
        columns = rng.sample(_COLUMNS, rng.randrange(4))
        archived = "archived" in parse(where).fields
        matching = [facts for facts in plain if meant(tree, facts) and (archived or not facts.archived)]
        expected = [_row(facts, columns) for facts in _ordered(matching, parse_sort(sort))]
        start, limit = rng.randrange(3), rng.randrange(1, 10)
        for name, source in sources.items():
            answer = _whole(source, where=where, sort=sort, columns=columns, start=start, limit=limit)
            rows = [(row["project"], row["name"], row["title"], row["status"], row["values"]) for row in answer]
            trial.check(rows == expected[start : start + limit], f"{name}: {where!r} by {sort}: {rows}, not {expected}")
        trial.counts["queries"] += 1
        trial.counts["matches"] += len(expected)


def _row(facts: Facts, columns: list[str]) -> Any:
    values = {name: value_of(facts, name) for name in columns}
    shown = {name: shown_value(name, value) for name, value in values.items() if value is not MISSING}
    return facts.project, facts.name, facts.title, facts.status, shown


def _whole(source: Source, **asked: Any) -> list[dict[str, Any]]:
    """The page, once the source knows of all experiments."""
    deadline = time.monotonic() + _PATIENCE_S
    while "indexing" in (answer := decoded(source.experiments(**asked))):
        assert time.monotonic() < deadline, "the index does not come to an end"
    found: list[dict[str, Any]] = answer["experiments"]
    return found


def _ordered(matching: list[Facts], sort: Sort) -> list[Facts]:
    """By the field; equal ones by their last event, the latest first, then by name; those without the field last."""
    ordered = sorted(matching, key=lambda facts: (-facts.updated_ns, facts.project, facts.name))
    having = [facts for facts in ordered if _has(facts, sort)]
    return sorted(having, key=lambda facts: _rank(facts, sort), reverse=sort.descending) + [
        facts for facts in ordered if not _has(facts, sort)
    ]


def _has(facts: Facts, sort: Sort) -> bool:
    value = value_of(facts, sort.field)
    return value is not MISSING and value == value


def _rank(facts: Facts, sort: Sort) -> tuple[int, Any]:
    value = value_of(facts, sort.field)
    value = value[0] if isinstance(value, list) and value and isinstance(value[0], str) else value
    return (0, value) if isinstance(value, int | float) else (1, value) if isinstance(value, str) else (2, str(value))


ROWS: Final = (Row("V2", "queries on folders and on a server", 2_000, 8, equal_answers),)
