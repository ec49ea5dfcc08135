"""Row V1: an experiment as of each of its events is what a reader saw at that event, here and on a server."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, Final

from ml_dash.core.events import PARAMETERS, REWIND
from ml_dash.core.fold import fold, fold_death
from ml_dash.core.names import experiment_id
from ml_dash.core.records import experiment_document, files_document, parameters_document
from ml_dash.core.state import Edits, State
from ml_dash.journal.order import Death, MergeRecord
from ml_dash.journal.reader import Stretch, open_segment, read
from ml_dash.projection.lines import log_lines
from ml_dash.reading.as_of import view_as_of
from ml_dash.reading.history import history
from ml_dash.reading.view import View
from ml_dash.server.engine.queries import Query
from ml_dash.server.engine.services import Server
from tests.core.test_fold import canonical
from tests.faults.harness import Row, Trial
from tests.journals import JournalFixture, WriterFixture, recorded

NS: Final = "alice"
_EVENTS: Final = 40


def every_prefix(trial: Trial) -> None:
    """V1. The fold of every prefix of the order is the experiment as of that event, and what readers saw then."""
    desk = JournalFixture(trial.folder / "store")
    server = Server(trial.folder / "server") if trial.rng.random() < 0.3 else None
    seen: dict[int, Any] = {}
    there: dict[int, Any] = {}
    try:
        _write(trial.rng, desk, seen, server, there)
        _compare_here(trial, desk, seen)
        if server is not None:
            _compare_there(trial, server, there)
    finally:
        desk.let_go()
        if server is not None:
            server.close()


def _write(
    rng: random.Random, desk: JournalFixture, seen: dict[int, Any], server: Server | None, there: dict[int, Any]
) -> None:
    """Let some writers write beside and after each other; readers look now and then, and note what they see."""
    alive: list[WriterFixture] = []
    files: list[str] = []
    sent: dict[Path, int] = {}
    for _ in range(rng.randrange(3, _EVENTS)):
        chance = rng.random()
        if not alive or (chance < 0.06 and len(desk.pens) < 5):
            alive.append(desk.pen(tags=[rng.choice("xy")]))
        elif chance < 0.12:
            pen = alive.pop(rng.randrange(len(alive)))
            pen.die() if rng.random() < 0.5 else pen.close(rng.choice(("completed", "failed", "interrupted")))
        else:
            _record(rng, rng.choice(alive), files)
        if rng.random() < 0.4:
            desk.catch_up()
            view = desk.view()
            seen[view.state.events] = _dead(view.record()), shown(view)
        if server is not None and rng.random() < 0.3:
            _send(rng, desk, server, sent)
            _look(server, there)
    desk.catch_up()
    view = desk.view()
    seen[view.state.events] = _dead(view.record()), shown(view)
    if server is not None:
        for _ in desk.pens:
            _send(rng, desk, server, sent)
        _look(server, there)


def _record(rng: random.Random, pen: WriterFixture, files: list[str]) -> None:
    step = rng.randrange(6)
    kind = rng.randrange(9)
    if kind < 3:
        pen.point(rng.choice(("loss", "acc")), value=rng.random(), step=step)
    elif kind == 3:
        pen.points("loss", value=[rng.random(), float("nan")], step=[step, step + 1])
    elif kind == 4:
        pen.log(f"at {step}", rng.choice(("info", "error")))
    elif kind == 5:
        pen.frame(PARAMETERS, {rng.choice(("lr", "width")): rng.randrange(4)})
    elif kind == 6:
        pen.frame(REWIND, {"step": step})
    elif kind == 7:
        pen.update(**rng.choice(({"title": f"t{step}"}, {"notes": "n"}, {"archived": step > 2}, {"tags": ["z"]})))
    elif files and rng.random() < 0.4:
        pen.delete_file(rng.choice(files))
    else:
        files.append(pen.file(b"%d" % step, filename=rng.choice(("a", "b"))))


def shown(view: View) -> Any:
    """All that a view shows."""
    return canonical([
        view.record(), view.parameters(), view.files(deleted=True), view.logs(limit=10_000)["logs"],
        [
            [view.metric_stats(one["name"]), list(view.each_point(one["name"])),
             list(view.each_point(one["name"], superseded=False))]
            for one in view.metrics()
        ],
    ])  # fmt: skip


def _dead(record: Any) -> int:
    return sum(writer["ended"] == "died" for writer in record["writers"])


def _compare_here(trial: Trial, desk: JournalFixture, seen: dict[int, Any]) -> None:
    present = desk.view()
    order = list(range(present.state.events + 1))
    trial.rng.shuffle(order)
    folded = _prefixes(desk)
    for events in order:
        view = view_as_of(desk.located, events)
        expected, logs = folded[events]
        trial.check(view.state.events == events, f"as of {events}: {view.state.events} events")
        trial.check(
            canonical([view.record(), view.parameters(), view.files(deleted=True)]) == expected,
            f"as of {events}: another state than the fold of that many events",
        )
        text = "".join(json.dumps(line) for line in view.logs(limit=10_000)["logs"])
        trial.check(text == "".join(json.dumps(json.loads(line)) for line in logs), f"as of {events}: other log lines")
        # A death may have been noted after that look, and before the next event.
        if events in seen and _dead(view.record()) == seen[events][0]:
            trial.check(shown(view) == seen[events][1], f"as of {events}: not what a reader saw then")
    _compare_marks(trial, desk, present.state.events)
    trial.counts["prefixes"] += len(order)
    trial.counts["looks of readers"] += len(seen)


def _compare_marks(trial: Trial, desk: JournalFixture, events: int) -> None:
    """What marks say is so as of their event."""
    page = history(desk.located)
    trial.check(page["events"] == events, f"marks of {page['events']} of {events} events")
    for mark in page["marks"]:
        view = view_as_of(desk.located, mark["event"])
        before = view_as_of(desk.located, mark["event"] - 1)
        if mark["kind"] == "parameter":
            shown = view.parameters()
            trial.check(
                all(shown[key] == value for key, value in mark["data"]["values"].items()),
                f"{mark['text']}, and as of event {mark['event']} there is {shown}",
            )
        elif mark["kind"] in ("opened", "joined", "resumed"):
            known = [writer["id"] for writer in view.record()["writers"]]
            trial.check(
                mark["writer"] in known and before.record()["writersTotal"] == len(known) - 1,
                f"{mark['text']} as of event {mark['event']}: {known}",
            )
        elif mark["kind"] == "file":
            trial.check(
                mark["data"]["id"] in [file["id"] for file in view.files(deleted=True)], f"{mark['text']}: not there"
            )
        trial.counts["marks"] += 1


def _prefixes(desk: JournalFixture) -> list[tuple[Any, list[bytes]]]:
    """By the numbers of events: what the documents and logs say, folded one event at a time in the recorded order."""
    segments = {}
    for pen in desk.pens:
        for path in pen.segments:
            segment = open_segment(path)
            assert segment is not None
            segments[segment.id] = segment
    state, edits = State(project=desk.identity.project, name=desk.identity.name), Edits()
    points: dict[str, list[Any]] = {}
    logs: list[bytes] = []
    found: list[tuple[Any, list[bytes]]] = []

    def note() -> None:
        from ml_dash.core.rewinds import recount

        for name, blocks in edits.points.items():
            for block in blocks:
                times = [block.times] * len(block.rows) if isinstance(block.times, int) else block.times
                points.setdefault(name, []).extend(zip(block.rows, times, strict=True))
        logs.extend(log_lines(edits.logs).splitlines())
        edits.clear()
        recount(state, edits, lambda name, start, end: iter([_past(points[name][start:end])]))
        made = canonical([experiment_document(state), parameters_document(state), files_document(state)["files"]])
        del found[state.events :]
        found.append((made, list(logs)))

    note()
    for record in recorded(desk.journal):
        if isinstance(record, Death):
            fold_death(state, record.writer, edits)
            note()
            continue
        assert isinstance(record, MergeRecord)
        for item in read(segments[record.segment], record.start, record.end):
            assert isinstance(item, Stretch)
            for event in item.events:
                fold(state, segments[record.segment].writer, [event], edits)
                note()
    return found


def _past(points: list[tuple[dict[str, Any], int]]) -> Any:
    from ml_dash.core.times import utc_text

    return [row for row, _ in points], [utc_text(time) for _, time in points]


# -- on a server ------------------------------------------------------------------------------------------------------


def _send(rng: random.Random, desk: JournalFixture, server: Server, sent: dict[Path, int]) -> None:
    """Send what is new of one writer, and its death if it was noted."""
    journal = desk.identity.journal.hex()
    pen = rng.choice(desk.pens)
    for path in pen.segments:
        data = path.read_bytes()
        start = sent.get(path, 0)
        if start < len(data):
            server.append_segment(NS, journal, path.name, start, data[start:])
            sent[path] = len(data)
    notes = [one for one in recorded(desk.journal) if isinstance(one, Death)]
    if notes and rng.random() < 0.5 and sent:
        note = rng.choice(notes)
        server.deaths(NS, journal, [{"writer": note.writer, "segment": note.segment, "end": note.end}])


def _look(server: Server, there: dict[int, Any]) -> None:
    if there:
        # Marks are added to what was read before.
        server.history(NS, experiment_id("cv", "run"))
    answers = _answers(server.at(None))
    if answers is not None:
        there[answers[0]["counts"]["events"]] = _dead(answers[0]), canonical(answers)


def _answers(query: Query) -> list[Any] | None:
    from ml_dash.core.protocol import Refused

    identity = experiment_id("cv", "run")
    try:
        record = query.experiment(NS, identity)
    except Refused:
        return None
    metrics = json.loads(query.metrics(NS, identity))["metrics"]
    # Whether a content is here is told as it is now: at another moment it may have come, or gone.
    files = [
        {key: value for key, value in file.items() if key not in ("pending", "released")}
        for file in json.loads(query.list_files(NS, identity))["files"]
    ]
    return [
        {key: value for key, value in record.items() if key != "heardAt"},
        query.get_parameters(NS, identity)["data"], files,
        query.logs(NS, identity, 0, 1000), metrics,
        [
            [json.loads(query.metric_page(NS, identity, one["name"], 0, 1000, superseded=superseded))
             for superseded in (False, True)] + [json.loads(query.series(NS, identity, one["name"], points=5))]
            for one in metrics
        ],
    ]  # fmt: skip


def _compare_there(trial: Trial, server: Server, there: dict[int, Any]) -> None:
    for events in trial.rng.sample(sorted(there), len(there)):
        dead, answers = there[events]
        found = _answers(server.at(events))
        if found is None or _dead(found[0]) == dead:
            trial.check(canonical(found) == answers, f"as of {events}: not what the server answered then")
    if there:
        page = server.history(NS, experiment_id("cv", "run"))
        trial.check(page["events"] == max(there), f"marks of {page['events']} of {max(there)} events on the server")
        opened = sum(mark["kind"] in ("opened", "resumed", "joined") for mark in page["marks"])
        total = server.experiment(NS, experiment_id("cv", "run"))["writersTotal"]
        trial.check(opened == total, f"{opened} of {total} writers are marked on the server")
    trial.counts["looks at a server"] += len(there)


ROWS: Final = (Row("V1", "every moment of the past is as it was seen", 10_000, 40, every_prefix),)
