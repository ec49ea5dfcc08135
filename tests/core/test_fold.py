"""The fold: what an event means, whatever the stretches, the order of arrival, the repetitions."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_dash.core import events as ev
from ml_dash.core.fold import fold, fold_death, last_ended
from ml_dash.core.limits import INT64_MAX
from ml_dash.core.names import file_id
from ml_dash.core.records import (
    ended_at,
    experiment_counts,
    experiment_document,
    file_record,
    files_document,
    live_files,
    metric_document,
    metric_meant,
    metric_stats,
    parameters_document,
    series_name,
    status_of,
)
from ml_dash.core.shown import Shown, shown_paths
from ml_dash.core.state import FOLD_VERSION, RUNS_KEPT, Edits, Metric, Series, State, WriterState, index_of
from ml_dash.core.upgrade import upgrade
from ml_dash.projection.lines import log_lines, point_lines

A, B, C = "aa" * 16, "bb" * 16, "cc" * 16
OPEN_BODY = {"project": "cv", "name": "run", "folderPath": "cv/run", "journalPath": ".journal", "pid": 7}
CLOSED = {"status": "completed"}


class Folder:
    """A state, all edits so far, and a clock; verbs for what writers do."""

    def __init__(self) -> None:
        self.state = State()
        self.edits = Edits()
        self.numbers: dict[str, int] = {}
        self.now = 1000

    def fold(self, writer: str, *events: tuple[int, Any], at: int | None = None) -> Folder:
        """Fold events of a writer that follow its last one."""
        batch = []
        for kind, body in events:
            self.now += 1
            number = self.numbers.get(writer, 0)
            self.numbers[writer] = number + 1
            batch.append((number, kind, self.now if at is None else at, body))
        fold(self.state, writer, batch, self.edits)
        return self

    def raw(self, writer: str, *events: tuple[int, int, int, Any]) -> Folder:
        fold(self.state, writer, list(events), self.edits)
        return self

    def opens(self, *writers: str, **more: Any) -> Folder:
        for writer in writers:
            self.fold(writer, (ev.OPEN, {**OPEN_BODY, **more}))
        return self

    def closes(self, writer: str, status: str = "completed", **more: Any) -> Folder:
        return self.fold(writer, (ev.CLOSE, {"status": status, **more}))

    def dies(self, writer: str) -> Folder:
        fold_death(self.state, writer, self.edits)
        return self

    def points(self, metric: str = "loss") -> list[Any]:
        return [row for block in self.edits.points.get(metric, []) for row in block.rows]

    def file(self, content: str = "0", place: str = "model.bin", writer: str = A, at: int | None = None) -> str:
        """Add a file; its id."""
        prefix, _, filename = place.rpartition("/")
        body = {
            "path": prefix,
            "prefix": prefix,
            "filename": filename,
            "sizeBytes": 3,
            "checksum": content * 64,
            "contentType": "text/plain",
        }
        self.fold(writer, (ev.FILE, body), at=at)
        return file_id(bytes.fromhex(writer), self.numbers[writer] - 1)


def canonical(value: Any) -> Any:
    """The same for two states that differ in nothing but the order of mappings; NaN equals NaN."""
    if is_dataclass(value):
        return {entry.name: canonical(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, dict):
        return sorted((key, canonical(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return [canonical(item) for item in value]
    return sorted(value) if isinstance(value, set) else repr(value)


def lines(edits: Edits) -> dict[str, bytes]:
    points = {name: b"".join(map(point_lines, blocks)) for name, blocks in edits.points.items()}
    return {**points, "logs": log_lines(edits.logs)}


def documents(state: State) -> list[Any]:
    metrics = [metric_document(state, metric) for _, metric in sorted(state.metrics.items())]
    return canonical([experiment_document(state), parameters_document(state), files_document(state), metrics])  # type: ignore[no-any-return]


# -- laws -------------------------------------------------------------------------------------------------------------

NUMBERS = st.integers(-5, 5) | st.floats() | st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 2**64 - 1, -(2**63)])
VALUES = NUMBERS | st.sampled_from([None, True, "NaN", "text", b"raw", [1], {"a": {"b": 2}}])
FIELDS = st.dictionaries(st.sampled_from(["value", "step", "epoch", "acc", "x"]), VALUES, min_size=1, max_size=3)
METRICS = st.sampled_from(["loss", "acc", "a/b"])
GIVEN = st.fixed_dictionaries(
    {},
    optional={
        "description": st.none() | st.text(max_size=3),
        "tags": st.lists(st.text(max_size=2), max_size=2),
        "metadata": FIELDS,
    },
)
RUBBISH = st.sampled_from(
    [
        None,
        5,
        "abc",
        [],
        {},
        ["loss"],
        ["loss", 5],
        ["loss", {1: 2}],
        ["loss", [1], [[1]]],
        {"id": 5},
        [1, 2, 3],
        {1: 1},
    ]
)
FILES = st.builds(
    lambda place, content, given: {
        "path": "/",
        "prefix": "",
        "filename": place,
        "sizeBytes": 1,
        "checksum": content * 64,
        "contentType": "x",
        **given,
    },
    st.sampled_from(["a", "b"]),
    st.sampled_from("0123"),
    GIVEN,
)
IDS = st.builds(file_id, st.sampled_from([bytes.fromhex(A), bytes.fromhex(B)]), st.integers(0, 12))


@st.composite
def batches(draw: st.DrawFn) -> tuple[int, Any]:
    columns = draw(st.integers(1, 3))
    table = [draw(st.lists(VALUES, min_size=columns, max_size=columns)) for _ in range(2)]
    return ev.POINTS, [draw(METRICS), ["value", "step"], table]


EVENT = st.one_of(
    st.tuples(st.just(ev.POINT), st.tuples(METRICS, FIELDS).map(list)),
    st.tuples(st.just(ev.ROWS), st.tuples(METRICS, st.lists(FIELDS, min_size=1, max_size=3)).map(list)),
    batches(),
    st.tuples(st.just(ev.METRIC), st.tuples(METRICS, GIVEN).map(list)),
    st.tuples(st.just(ev.LOG), st.tuples(st.just("info"), st.text(max_size=3), st.none() | FIELDS).map(list)),
    st.tuples(st.just(ev.PARAMETERS), st.dictionaries(st.sampled_from("abc"), VALUES, max_size=2)),
    st.tuples(st.just(ev.UPDATE), GIVEN),
    st.tuples(st.just(ev.FILE), FILES),
    st.tuples(st.just(ev.FILE_UPDATE), st.builds(lambda id, given: {"id": id, **given}, IDS, GIVEN)),
    st.tuples(st.just(ev.FILE_DELETE), st.builds(lambda id: {"id": id}, IDS)),
    st.tuples(st.just(ev.LOST), st.just({"count": 1, "reason": "full"})),
    st.tuples(st.sampled_from([ev.OPEN, ev.CLOSE]), st.sampled_from([OPEN_BODY, CLOSED])),
    st.tuples(st.integers(0, 20), RUBBISH),
)


@st.composite
def histories(draw: st.DrawFn, writers: int = 2) -> dict[str, list[tuple[int, int, int, Any]]]:
    """What some writers wrote: numbered from 0, times that never go back, each event at a moment of its own."""
    found: dict[str, list[tuple[int, int, int, Any]]] = {}
    for index, writer in enumerate([A, B, C][:writers]):
        events = draw(st.lists(EVENT, max_size=12))
        times = sorted(draw(st.lists(st.integers(0, 60), min_size=len(events), max_size=len(events))))
        found[writer] = [
            (n, kind, 100 + 3 * t + index, body) for n, ((kind, body), t) in enumerate(zip(events, times, strict=True))
        ]
    return found


def folded(stretches: list[tuple[str, list[Any]]]) -> tuple[State, Edits]:
    state, edits = State(), Edits()
    for writer, batch in stretches:
        if batch:
            fold(state, writer, copy.deepcopy(batch), edits)
    return state, edits


@st.composite
def cut(draw: st.DrawFn, history: dict[str, list[Any]]) -> list[tuple[str, list[Any]]]:
    """The history in stretches: every writer's in its order."""
    stretches = []
    for writer, events in history.items():
        cuts = sorted(draw(st.sets(st.integers(0, len(events)), max_size=4)) | {0, len(events)})
        stretches += [(writer, events[a:b]) for a, b in zip(cuts, cuts[1:], strict=False)]
    return stretches


@settings(max_examples=60)
@given(st.data())
def test_a_stretch_gives_the_same_whole_or_in_parts(data: st.DataObject) -> None:
    history = data.draw(histories())
    whole_state, whole_edits = folded(list(history.items()))
    state, edits = folded(data.draw(cut(history)))
    assert canonical(state) == canonical(whole_state)
    assert documents(state) == documents(whole_state)
    assert lines(edits) == lines(whole_edits)


@st.composite
def meetings(draw: st.DrawFn) -> list[tuple[str, list[Any] | None]]:
    """Stretches of three writers in any order; in between some are found dead (None), rightly or not."""
    stretches: list[tuple[str, list[Any] | None]] = list(draw(cut(draw(histories(3)))))
    for writer in draw(st.lists(st.sampled_from([A, B, C]), max_size=3)):
        stretches.insert(draw(st.integers(0, len(stretches))), (writer, None))
    return draw(st.permutations(stretches)) if draw(st.booleans()) else stretches


def met(meeting: list[tuple[str, list[Any] | None]]) -> Iterator[State]:
    """The one state after each stretch and each death."""
    state, edits = State(), Edits()
    for writer, batch in meeting:
        if batch is None:
            fold_death(state, writer, edits)
        elif batch:
            fold(state, writer, copy.deepcopy(batch), edits)
        yield state


@settings(max_examples=200)
@given(st.data())
def test_a_stretch_in_parts_gives_the_same_also_where_writers_end_between(data: st.DataObject) -> None:
    meeting = data.draw(meetings())
    parts: list[tuple[str, list[Any] | None]] = []
    for writer, batch in meeting:
        parts += [(writer, batch)] if batch is None else data.draw(cut({writer: batch}))
    (*_, whole), (*_, state) = [State(), *met(meeting)], [State(), *met(parts)]
    assert canonical(state) == canonical(whole)


@settings(max_examples=200)
@given(meetings())
def test_what_is_counted_at_each_change_is_what_a_walk_over_all_finds(meeting: list[Any]) -> None:
    for state in met(meeting):
        assert state.live_files == len(live_files(state))
        assert state.lost == sum(writer.lost for writer in state.writers.values())
        assert state.last_ended == last_ended(state)
        document = experiment_document(state)
        assert (experiment_counts(state), status_of(state)) == (document["counts"], document["status"])
        assert ended_at(state) == document["endedAt"]


@settings(max_examples=100)
@given(meetings())
def test_tallies_are_those_of_writers_that_live_once_points_come(meeting: list[Any]) -> None:
    before: dict[str, int] = {}
    for state in met(meeting):
        for name, metric in state.metrics.items():
            if metric.count != before.get(name, 0):
                # The writer of these points may have closed in the same stretch.
                gone = [writer for writer in metric.tallies if not state.writers[writer].alive]
                assert len(gone) <= (metric.ends != state.ends)
        before = {name: metric.count for name, metric in state.metrics.items()}


@settings(max_examples=60)
@given(st.data())
def test_what_was_seen_changes_nothing_when_it_comes_again(data: st.DataObject) -> None:
    history = data.draw(histories())
    once = data.draw(cut(history))
    again = [once[index] for index in data.draw(st.lists(st.integers(0, len(once) - 1), max_size=4))] if once else []
    state, edits = folded(once)
    before, written = canonical(state), lines(edits)
    for writer, batch in filter(lambda stretch: stretch[1], again):
        fold(state, writer, batch, edits)
    assert canonical(state) == before
    assert lines(edits) == written


def _opened_once(events: list[tuple[int, int, int, Any]]) -> list[tuple[int, int, int, Any]]:
    """Events of one writer, numbered anew, without openings and ends after the first: no writer writes two.

    Of two in a damaged journal the first to arrive counts, so the order of arrival would matter.
    """
    kinds = [kind for _, kind, *_ in events]
    once = (ev.OPEN, ev.CLOSE)
    kept = [event for place, event in enumerate(events) if event[1] not in once or event[1] not in kinds[:place]]
    return [(number, *event[1:]) for number, event in enumerate(kept)]


@settings(max_examples=60)
@given(st.data())
def test_registers_and_the_set_of_events_do_not_depend_on_the_order_of_arrival(data: st.DataObject) -> None:
    history = {writer: _opened_once(events) for writer, events in data.draw(histories(3)).items()}
    stretches = data.draw(cut(history))
    outcomes = []
    for arrival in (stretches, data.draw(st.permutations(stretches))):
        state, edits = folded(arrival)
        registers = [state.description, state.tags, state.folder, state.metadata, state.journal_path, state.protected]
        outcomes.append(
            canonical(
                [
                    registers,
                    state.parameters,
                    state.places,
                    {id: sorted(map(repr, waiting)) for id, waiting in state.early.items()},
                    {id: (file, file_record(state, file)) for id, file in state.files.items()},
                    {
                        name: (
                            metric.description,
                            metric.tags,
                            metric.metadata,
                            metric.count,
                            metric.created_ns,
                            metric.first_ns,
                            metric.last_ns,
                            metric.updated_ns,
                        )
                        for name, metric in state.metrics.items()
                    },
                    [state.events, state.logs, state.points, state.unknown, state.created_ns, state.updated_ns],
                    {writer: (entry.seen, entry.gaps(), entry.lost) for writer, entry in state.writers.items()},
                    sorted((line.message, repr(line.metadata), line.time_ns) for line in edits.logs),
                    {
                        name: sorted(repr(row) for block in blocks for row in block.rows)
                        for name, blocks in edits.points.items()
                    },
                ]
            )
        )
    assert outcomes[0] == outcomes[1]


@settings(max_examples=60)
@given(st.data())
def test_each_writer_keeps_its_own_order_in_every_series(data: st.DataObject) -> None:
    history = data.draw(histories(2))
    stretches = data.draw(cut(history))
    merged = sorted(stretches, key=lambda stretch: data.draw(st.integers(0, 3)) if stretch[0] == A else 2)
    state, edits = folded(merged)
    for number, line in enumerate(edits.logs):
        assert line.number == number
    for name, blocks in edits.points.items():
        assert [block.start for block in blocks] == [sum(len(b.rows) for b in blocks[:n]) for n in range(len(blocks))]
        assert sum(len(block.rows) for block in blocks) == state.metrics[name].count


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.integers(-3, 40) | st.integers(2**63 - 2, 2**64 - 1),
            st.integers(0, 20),
            st.integers(-(2**63), 2**64 - 1),
            RUBBISH,
        ),
        min_size=1,
        max_size=20,
    )
)
def test_no_event_whatever_stops_the_fold(events: list[Any]) -> None:
    state, edits = folded([(A, events)])
    assert state.events == sum(end - start for start, end in state.writers[A].seen)
    documents(state)
    lines(edits)


@given(st.lists(st.integers(0, 30), max_size=40))
def test_ranges_hold_exactly_the_numbers_seen(numbers: list[int]) -> None:
    writer = WriterState(A)
    for number in numbers:
        assert writer.admit(number) == (number not in numbers[: numbers.index(number)]) or numbers.count(number) > 1
    seen = {number for start, end in writer.seen for number in range(start, end)}
    assert seen == set(numbers)
    assert all(a[1] < b[0] for a, b in zip(writer.seen, writer.seen[1:], strict=False))
    missing = {number for start, end in writer.gaps() for number in range(start, end)}
    assert missing == set(range(max(numbers, default=0))) - seen


# -- exactly once -----------------------------------------------------------------------------------------------------


def test_a_gap_is_told_and_filled_later() -> None:
    folder = Folder().raw(A, (0, ev.LOG, 10, ["info", "0", None]), (3, ev.LOG, 13, ["info", "3", None]))
    assert folder.state.writers[A].gaps() == [(1, 3)]
    folder.raw(A, (2, ev.LOG, 12, ["info", "2", None]), (1, ev.LOG, 11, ["info", "1", None]))
    assert folder.state.writers[A].gaps() == []
    assert [line.message for line in folder.edits.logs] == ["0", "3", "2", "1"]


def test_numbers_that_the_writer_lost_are_no_gap() -> None:
    folder = Folder().raw(
        A,
        (0, ev.LOG, 1, ["info", "", None]),
        (5, ev.LOST, 2, {"count": 2, "from": 1, "to": 2}),
        (6, ev.LOST, 3, {"count": 1, "from": 4, "to": 4}),
    )
    assert folder.state.writers[A].gaps() == [(3, 4)]
    assert folder.state.writers[A].lost == 3


def test_a_sum_of_losses_stays_within_64_bits() -> None:
    folder = Folder()
    for writer in (A, B, C):
        folder.fold(writer, (ev.LOST, {"count": 2**62}), (ev.LOST, {"count": 1}))
    assert folder.state.lost == experiment_document(folder.state)["counts"]["lost"] == INT64_MAX


def test_many_scattered_numbers_take_no_quadratic_time() -> None:
    events = [(number, ev.LOG, 1, ["info", "", None]) for number in range(40_000, 0, -2)]
    state, _ = folded([(A, events)])
    assert state.logs == 20_000


@pytest.mark.parametrize("number", [-1, 2**63 - 1, 2**64 - 1])
def test_a_number_that_no_writer_reaches_is_passed_over(number: int) -> None:
    folder = Folder().raw(A, (number, ev.LOG, 1, ["info", "", None]))
    assert (folder.state.events, folder.state.writers[A].seen) == (0, [])


# -- status -----------------------------------------------------------------------------------------------------------


def test_a_run_is_running_until_it_closes() -> None:
    folder = Folder().opens(A)
    assert folder.state.status == "running"
    assert folder.closes(A, "failed").state.status == "failed"


@pytest.mark.parametrize(
    ("ends", "status"),
    [
        (["completed", "completed"], "completed"),
        (["completed", "failed"], "failed"),
        (["failed", "died"], "failed"),
        (["completed", "died"], "interrupted"),
        (["interrupted", "completed"], "interrupted"),
        (["completed", None], "running"),
        (["failed", None], "running"),
    ],
)
def test_ranks_of_one_job_decide_together(ends: list[str | None], status: str) -> None:
    for order in ((A, B), (B, A)):
        folder = Folder().opens(A, B)
        for writer, end in sorted(zip([A, B], ends, strict=True), key=lambda pair: order.index(pair[0])):
            if end == "died":
                folder.dies(writer)
            elif end is not None:
                folder.closes(writer, end)
        assert folder.state.status == status


def test_a_job_resumed_after_a_crash_ends_completed() -> None:
    assert Folder().opens(A).dies(A).opens(B).closes(B).state.status == "completed"


def test_a_job_resumed_after_a_failure_runs_and_ends_by_its_own() -> None:
    folder = Folder().opens(A).closes(A, "failed").opens(B)
    assert folder.state.status == "running"
    assert folder.closes(B).state.status == "completed"


def test_who_joins_a_running_job_is_counted_with_it() -> None:
    folder = Folder().opens(A, B).closes(A, "failed").opens(C).closes(B).closes(C)
    assert folder.state.status == "failed"
    assert set(folder.state.session) == {A, B, C}


def test_children_never_decide_the_status() -> None:
    folder = Folder().opens(A).opens(B, child=True, parent=A).closes(A)
    assert folder.state.status == "completed"
    assert folder.closes(B, "failed").state.status == "completed"
    assert Folder().opens(B, child=True).closes(B, "failed").opens(A).closes(A).state.status == "completed"


def test_a_dead_child_changes_nothing() -> None:
    folder = Folder().opens(A).opens(B, child=True).dies(B)
    assert folder.state.status == "running"
    assert experiment_document(folder.state)["writers"][1]["ended"] == "died"


def test_a_death_note_is_void_once_a_later_event_is_read() -> None:
    folder = Folder().opens(A).dies(A)
    assert folder.state.status == "interrupted"
    assert folder.fold(A, (ev.LOG, ["info", "alive", None])).state.status == "running"
    assert folder.closes(A).state.status == "completed"


@pytest.mark.parametrize("parts", [1, 2])
def test_a_writer_taken_for_dead_decides_beside_the_one_that_came_after(parts: int) -> None:
    """Whether its last events come in one stretch or in two."""
    folder = Folder().opens(A).dies(A).opens(B)
    last: list[tuple[int, Any]] = [(ev.LOG, ["info", "", None]), (ev.CLOSE, {"status": "failed"})]
    if parts == 1:
        folder.fold(A, *last)
    else:
        folder.fold(A, last[0]).fold(A, last[1])
    assert folder.state.status == "running"
    assert folder.closes(B).state.status == "failed"
    assert folder.state.alive == []


def test_events_that_were_seen_do_not_void_a_death_note() -> None:
    folder = Folder().opens(A).dies(A)
    folder.raw(A, (0, ev.OPEN, 1, OPEN_BODY))
    assert folder.state.status == "interrupted"


def test_a_death_note_of_who_has_closed_or_is_unknown_says_nothing() -> None:
    folder = Folder().opens(A).closes(A).dies(A).dies(B)
    assert folder.state.status == "completed"
    assert B not in folder.state.writers


def test_a_writer_whose_opening_was_lost_still_decides() -> None:
    folder = Folder().opens(A).closes(A).raw(B, (1, ev.CLOSE, 5, {"status": "failed"}))
    assert folder.state.status == "failed"
    folder.raw(B, (0, ev.OPEN, 4, OPEN_BODY))
    assert folder.state.status == "failed"


def test_a_child_whose_opening_comes_late_decides_no_more() -> None:
    folder = (
        Folder()
        .opens(A)
        .raw(B, (1, ev.CLOSE, 5, {"status": "failed"}))
        .raw(B, (0, ev.OPEN, 4, {**OPEN_BODY, "child": True}))
    )
    assert folder.state.session == [A]
    assert folder.closes(A).state.status == "completed"


def test_the_error_of_a_failed_run_is_shown_and_that_of_an_earlier_one_is_not() -> None:
    error = {"type": "ValueError", "message": "m", "traceback": "t"}
    folder = Folder().opens(A).closes(A, "failed", error=error)
    assert experiment_document(folder.state)["error"] == error
    assert experiment_document(folder.opens(B).closes(B).state)["error"] is None


def test_an_interrupted_run_ended_with_its_last_event() -> None:
    folder = Folder().opens(A).fold(A, (ev.LOG, ["info", "", None])).dies(A)
    document = experiment_document(folder.state)
    assert document["endedAt"] == document["updatedAt"]
    assert document["writers"][0]["endedAt"] is None


def test_of_children_alone_the_one_that_ended_last_decides() -> None:
    folder = Folder().opens(A, B, child=True).closes(A, "failed").closes(B)
    assert (folder.state.status, folder.state.last_ended) == ("completed", B)
    assert experiment_document(folder.state)["endedAt"] == experiment_document(folder.state)["updatedAt"]
    folder.opens(C, child=True)
    assert (folder.state.status, ended_at(folder.state)) == ("running", None)
    assert folder.dies(C).state.status == "interrupted"
    assert folder.fold(C, (ev.LOG, ["info", "alive", None])).state.status == "running"
    assert folder.state.last_ended == B


def test_an_experiment_without_events_is_interrupted_and_has_no_times() -> None:
    document = experiment_document(State())
    assert (document["status"], document["createdAt"], document["updatedAt"], document["endedAt"]) == (
        "interrupted",
        None,
        None,
        None,
    )


# -- registers --------------------------------------------------------------------------------------------------------


def test_parameters_merge_and_the_latest_stamp_wins() -> None:
    folder = Folder().fold(A, (ev.PARAMETERS, {"lr": 0.1, "n": 1}), at=50).fold(B, (ev.PARAMETERS, {"lr": 0.2}), at=40)
    assert parameters_document(folder.state) == {"lr": 0.1, "n": 1}
    folder.fold(B, (ev.PARAMETERS, {"lr": None}), at=50)
    assert parameters_document(folder.state) == {"lr": None, "n": 1}


def test_parameters_stand_in_the_order_in_which_they_were_first_set() -> None:
    folder = Folder().fold(A, (ev.PARAMETERS, {"b": 1, "a": 1}), (ev.PARAMETERS, {"c": 1, "b": 2}))
    assert list(parameters_document(folder.state)) == ["b", "a", "c"]


def test_only_what_is_given_anew_is_replaced() -> None:
    folder = Folder().opens(A, description="one", tags=["a"], metadata={"k": 1}).opens(B, description="two", tags=None)
    folder.fold(A, (ev.UPDATE, {"folder": "f"}))
    document = experiment_document(folder.state)
    assert (document["description"], document["tags"], document["folder"], document["metadata"]) == (
        "two",
        None,
        "f",
        {"k": 1},
    )


def test_bytes_are_read_as_base64_text() -> None:
    folder = (
        Folder()
        .opens(A, metadata={"raw": [b"\0"]})
        .fold(A, (ev.PARAMETERS, {"b": b"abc"}), (ev.METRIC, ["m", {"metadata": {"x": b"abc"}}]))
    )
    assert parameters_document(folder.state) == {"b": "YWJj"}
    assert experiment_document(folder.state)["metadata"] == {"raw": ["AA=="]}
    assert metric_stats(folder.state, folder.state.metrics["m"])["metadata"] == {"x": "YWJj"}


def test_protection_holds_from_its_first_stamp_and_marks_what_came_later() -> None:
    folder = Folder().opens(A).fold(A, (ev.PARAMETERS, {"early": 1}), at=1500)
    early = folder.file(at=1600)
    folder.opens(B, write_protected=True).fold(B, (ev.UPDATE, {"writeProtected": True}), at=2000)
    late = folder.file("1", "late", at=3000)
    folder.fold(A, (ev.PARAMETERS, {"late": 2}), at=3000)
    document = experiment_document(folder.state)
    assert (document["writeProtected"], document["afterProtection"]) == (True, {"parameters": ["late"]})
    records = {record["id"]: record for record in files_document(folder.state)["files"]}
    assert "afterProtection" not in records[early]
    assert records[late]["afterProtection"] is True
    folder.fold(A, (ev.FILE_DELETE, {"id": early}), at=3001)
    assert file_record(folder.state, folder.state.files[early])["afterProtection"] is True  # type: ignore[typeddict-item]


def test_what_a_writer_says_of_itself_does_not_hide_what_is_known_of_it() -> None:
    folder = Folder().opens(A, id="forged", ended="forged", host="gpu3")
    (writer,) = experiment_document(folder.state)["writers"]
    assert (writer["id"], writer["ended"], writer["host"]) == (A, None, "gpu3")


# -- metrics ----------------------------------------------------------------------------------------------------------


def point(**data: Any) -> tuple[int, Any]:
    return ev.POINT, ["loss", data]


def at(time_ns: int, event: tuple[int, Any]) -> tuple[int, int, Any]:
    kind, body = event
    return kind, time_ns, body


def test_points_of_every_form_are_numbered_in_their_order() -> None:
    folder = Folder().fold(
        A,
        point(value=0),
        point(value=1),
        (ev.POINTS, ["loss", ["value"], [[2, 3]]]),
        point(value=4),
        (ev.ROWS, ["loss", [{"value": 5}, {"other": 6}]]),
        (ev.POINTS, ["loss", ["value", "a", "b"], [[7], [8], [9]]]),
    )
    rows = [
        {"value": 0},
        {"value": 1},
        {"value": 2},
        {"value": 3},
        {"value": 4},
        {"value": 5},
        {"other": 6},
        {"value": 7, "a": 8, "b": 9},
    ]
    assert folder.points() == rows
    assert folder.state.metrics["loss"].count == folder.state.points == 8


def test_a_metric_begins_with_what_is_first_of_it_a_point_or_a_description() -> None:
    folder = Folder().fold(A, point(value=0), (ev.METRIC, ["loss", {"tags": ["t"]}]), (ev.METRIC, ["acc", {}]))
    metrics = folder.state.metrics
    assert [metrics["loss"].created_ns, metrics["loss"].updated_ns, metrics["acc"].created_ns] == [1001, 1002, 1003]
    stats = metric_stats(folder.state, metrics["acc"])
    assert (stats["totalDataPoints"], stats["firstDataAt"], stats["lastDataAt"]) == (0, None, None)


@settings(max_examples=100)
@given(
    st.lists(st.lists(NUMBERS | st.none() | st.booleans() | st.text(max_size=2), min_size=1, max_size=4), max_size=6)
)
def test_statistics_are_those_of_a_plain_loop(stretches: list[list[Any]]) -> None:
    folder = Folder()
    for values in stretches:
        folder.fold(A, *(point(value=value) for value in values))
    numbers = [value for values in stretches for value in values if type(value) in (int, float)]
    series = folder.state.metrics["loss"].series.get("value") if folder.state.metrics else None
    if series is None:
        assert numbers == []
        return
    known = [value for value in numbers if value == value]
    total = 0.0
    for value in known:
        total += value
    assert (series.count, series.counted) == (len(numbers), len(known))
    assert repr((series.first, series.last)) == repr((numbers[0], numbers[-1]))
    assert repr(series.total) == repr(total)
    assert (series.min, series.max) == ((min(known), max(known)) if known else (None, None))


def test_step_epoch_and_timestamp_are_no_series() -> None:
    folder = Folder().fold(A, point(value=1, step=2, epoch=3, timestamp=4, acc=5))
    assert metric_document(folder.state, folder.state.metrics["loss"])["series"].keys() == {"loss", "loss.acc"}


def test_full_chunks_are_counted_apart() -> None:
    folder = Folder().fold(A, (ev.POINTS, ["loss", ["value"], [[1] * 25_000]]))
    stats = metric_stats(folder.state, folder.state.metrics["loss"])
    assert (stats["totalChunks"], stats["chunkedDataPoints"], stats["bufferedDataPoints"]) == (2, 20_000, 5_000)


def test_the_index_of_a_point_is_found_by_its_writers_own_count() -> None:
    folder = (
        Folder()
        .opens(A, B)
        .fold(A, point(value=0), point(value=1))
        .fold(B, point(value=2))
        .fold(A, point(value=3))
        .fold(B, point(value=4))
    )
    metric = folder.state.metrics["loss"]
    assert [index_of(metric, A, ordinal) for ordinal in range(3)] == [0, 1, 3]
    assert [index_of(metric, B, ordinal) for ordinal in range(2)] == [2, 4]
    assert index_of(metric, C, 0) is None


def test_an_index_of_long_ago_is_not_remembered_and_not_guessed() -> None:
    folder = Folder().opens(A, B)
    for number in range(2 * RUNS_KEPT):
        folder.fold(A if number % 2 else B, point(value=number))
    metric = folder.state.metrics["loss"]
    assert len(metric.runs) == RUNS_KEPT
    assert index_of(metric, B, 0) is None
    assert index_of(metric, A, RUNS_KEPT - 1) == 2 * RUNS_KEPT - 1


def test_after_a_void_death_note_no_index_is_guessed() -> None:
    folder = Folder().opens(A).fold(A, point(value=0)).dies(A).fold(A, point(value=1), point(value=2))
    assert [index_of(folder.state.metrics["loss"], A, ordinal) for ordinal in range(3)] == [None, None, None]


def test_a_writer_that_ended_leaves_no_count_behind_where_points_come_after_it() -> None:
    folder = Folder().opens(A, B, C).fold(A, point(value=0)).fold(B, point(value=0)).closes(A).dies(B)
    assert folder.state.alive == [C]
    folder.fold(C, point(value=0))
    assert folder.state.metrics["loss"].tallies == {C: 1}


def test_the_end_of_a_writer_touches_no_metric() -> None:
    """They may be a hundred thousand, each stored by itself."""
    folder = Folder().opens(A, B).fold(A, *[(ev.POINT, [f"m{n}", {"value": n}]) for n in range(50)])
    before = canonical(folder.state.metrics)
    folder.closes(A).dies(B)
    assert canonical(folder.state.metrics) == before


def test_points_of_a_writer_that_has_ended_change_nothing_about_the_indices_of_others() -> None:
    """Its last ones may arrive late, into a gap."""
    folder = Folder().opens(A, B).fold(B, point(value=0))
    folder.raw(A, (5, ev.CLOSE, 3000, CLOSED)).raw(A, (2, *at(2000, point(value=1))), (3, *at(2001, point(value=2))))
    folder.fold(B, point(value=3), point(value=4))
    metric = folder.state.metrics["loss"]
    assert [index_of(metric, B, ordinal) for ordinal in range(3)] == [0, 3, 4]
    assert (index_of(metric, A, 0), metric.tallies) == (None, {B: 3})


def test_points_of_a_writer_wrongly_taken_for_dead_change_nothing_about_the_indices_of_others() -> None:
    folder = Folder().opens(A, B).fold(A, point(value=0)).dies(A).fold(B, point(value=1))
    folder.fold(A, point(value=2)).fold(B, point(value=3))
    assert [index_of(folder.state.metrics["loss"], B, ordinal) for ordinal in range(2)] == [1, 3]


def test_a_writer_wrongly_taken_for_dead_has_no_count_where_no_points_came_since() -> None:
    folder = Folder().opens(A, B).fold(A, point(value=0), (ev.POINT, ["acc", {"value": 0}])).dies(A)
    folder.fold(B, point(value=1)).fold(A, (ev.LOG, ["info", "alive", None]))
    assert [metric.tallies for metric in folder.state.metrics.values()] == [{B: 1}, {}]


# -- names of metrics and series --------------------------------------------------------------------------------------

PARTS = st.lists(st.sampled_from(["a", "b", "value", ""]), min_size=1, max_size=4).map(".".join)


def walked(state: State, name: str) -> list[str]:
    """The metrics that may be meant, found by looking at all series of all."""
    if name in state.metrics:
        return [name]
    return [
        metric
        for metric, known in state.metrics.items()
        if any(series_name(metric, field) == name for field in known.series)
    ]


@settings(max_examples=300)
@given(st.dictionaries(PARTS.filter(bool), st.lists(PARTS, max_size=3), max_size=5), PARTS)
def test_the_metric_that_is_meant_is_the_one_that_a_walk_over_all_series_finds(
    fields_of: dict[str, list[str]], name: str
) -> None:
    state = State()
    for metric, names in fields_of.items():
        state.metrics[metric] = Metric(metric, 1, series={field: Series(count=1) for field in names})
    # With a dot also for the field `value`, which is not shown so.
    asked = {name, *(f"{metric}.{field}" for metric, names in fields_of.items() for field in names)}
    for one in asked | set(fields_of):
        assert metric_meant(state, one) == max(walked(state, one), key=len, default=one)


def test_of_two_metrics_with_a_series_of_that_name_the_longer_name_is_meant_whatever_came_first() -> None:
    """The order in which metrics come depends on how stretches were cut."""
    events = [(ev.POINT, ["a", {"b.c": 1}]), (ev.POINTS, ["a.b", ["c"], [[2]]])]
    whole, parts = Folder().fold(A, *events), Folder().fold(A, events[0]).fold(A, events[1])
    assert list(whole.state.metrics) != list(parts.state.metrics)
    assert metric_meant(whole.state, "a.b.c") == metric_meant(parts.state, "a.b.c") == "a.b"


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_file_added_again_at_its_path_replaces_the_older_and_releases_it() -> None:
    folder = Folder()
    old, new = folder.file("0"), folder.file("1")
    assert [file.id for file in live_files(folder.state)] == [new]
    assert folder.edits.released == [folder.state.files[old].blob]
    assert (
        file_record(folder.state, folder.state.files[old])["deletedAt"]
        == file_record(folder.state, folder.state.files[new])["uploadedAt"]
    )


def test_a_file_that_comes_late_is_replaced_by_the_one_that_was_added_after_it() -> None:
    folder = Folder()
    last, first, middle = folder.file("3", at=30), folder.file("1", writer=B, at=10), folder.file("2", writer=C, at=20)
    assert [file.id for file in live_files(folder.state)] == [last]
    assert [folder.state.files[file].replaced_ns for file in (first, middle, last)] == [20, 30, 0]
    assert len(folder.edits.released) == 2


def test_a_deleted_file_is_listed_no_more_and_its_place_is_free() -> None:
    folder = Folder()
    gone = folder.file()
    folder.fold(A, (ev.FILE_DELETE, {"id": gone}))
    assert live_files(folder.state) == []
    assert folder.edits.released == [folder.state.files[gone].blob]
    again = folder.file()
    assert [file.id for file in live_files(folder.state)] == [again]
    assert len(folder.edits.released) == 1


def test_the_first_of_two_deletions_counts() -> None:
    folder = Folder()
    gone = folder.file()
    folder.fold(A, (ev.FILE_DELETE, {"id": gone}), at=5000).fold(B, (ev.FILE_DELETE, {"id": gone}), at=4000)
    assert folder.state.files[gone].deleted_ns == 4000


def test_changes_that_come_before_their_file_wait_for_it() -> None:
    folder = Folder()
    coming = file_id(bytes.fromhex(B), 0)
    folder.fold(A, (ev.FILE_UPDATE, {"id": coming, "tags": ["t"]}), (ev.FILE_DELETE, {"id": coming}))
    assert folder.state.malformed == 0
    assert folder.file(writer=B, at=500) == coming
    file = folder.state.files[coming]
    assert (file.tags.value, file.live, folder.state.early) == (["t"], False, {})


def test_files_are_listed_by_prefix_and_tags() -> None:
    folder = Folder()
    a, b, c = folder.file("0", "models/a"), folder.file("1", "models/deep/b"), folder.file("2", "models2/c")
    folder.fold(A, (ev.FILE_UPDATE, {"id": b, "tags": ["x", "y"]}))
    assert [file.id for file in live_files(folder.state)] == [a, b, c]
    assert [file.id for file in live_files(folder.state, "models")] == [a, b]
    assert [file.id for file in live_files(folder.state, "models/deep")] == [b]
    assert [file.id for file in live_files(folder.state, "", ["y", "z"])] == [b]


def test_a_file_that_would_be_anothers_folder_is_shown_under_another_name() -> None:
    folder = Folder()
    folder.file("0", "a/b")
    clash, below = folder.file("1", "a"), folder.file("2", "a/b/c")
    assert set(shown_paths(folder.state)) == {"a/b", f"a%{clash}", f"c%{below}"}


def test_two_names_that_some_file_systems_take_for_one_are_shown_apart() -> None:
    folder = Folder()
    folder.file("0", "m/Model")
    other = folder.file("1", "m/model")
    assert set(shown_paths(folder.state)) == {"m/Model", f"m/model%{other}"}


def test_where_files_are_shown_is_followed_as_they_come_and_go() -> None:
    folder = Folder()
    shown = Shown(folder.state)
    names = ["a/b", "a", "A", "a/b/c", "d/e", "a/b", "D", "d/e/f"]
    added = []
    for number, name in enumerate([*names, *reversed(names)]):
        added.append(folder.file(str(number % 10), name, writer=(A, B)[number % 2], at=(number * 7) % 11 + 1))
        if number % 3 == 2:
            folder.fold(A, (ev.FILE_DELETE, {"id": added[number // 3]}))
        shown.follow(folder.state, folder.edits.moved)
        folder.edits.moved = []
        assert shown.paths == shown_paths(folder.state)


def test_replacing_a_file_many_times_takes_no_quadratic_time() -> None:
    folder = Folder()
    body = {"path": "", "prefix": "", "filename": "f", "sizeBytes": 1, "checksum": "0" * 64, "contentType": "x"}
    folder.fold(A, *[(ev.FILE, body)] * 20_000)
    assert len(live_files(folder.state)) == 1
    assert len(folder.edits.released) == 19_999


# -- what makes no sense ----------------------------------------------------------------------------------------------

DEEP: Any = 1
for _ in range(300):
    DEEP = [DEEP]
FILE_BODY = {"path": "/", "prefix": "", "filename": "f", "sizeBytes": 1, "checksum": "0" * 64, "contentType": "x"}

MALFORMED = [
    (ev.OPEN, None),
    (ev.OPEN, []),
    (ev.OPEN, {}),
    (ev.OPEN, {**OPEN_BODY, "project": 5}),
    (ev.OPEN, {**OPEN_BODY, "tags": "a"}),
    (ev.OPEN, {**OPEN_BODY, "journalPath": 5}),
    (ev.OPEN, {**OPEN_BODY, "host": DEEP}),
    (ev.OPEN, {**OPEN_BODY, 1: 2}),
    (ev.CLOSE, {}),
    (ev.CLOSE, {"status": "running"}),
    (ev.CLOSE, {"status": ["completed"]}),
    (ev.CLOSE, {"status": "failed", "error": 5}),
    (ev.LOG, "abc"),
    (ev.LOG, ["info", "m"]),
    (ev.LOG, ["info", 5, None]),
    (ev.LOG, [None, "m", None]),
    (ev.LOG, ["info", "m", []]),
    (ev.LOG, ["info", "m", {"a": {1: 2}}]),
    (ev.LOG, {"info": 1, "m": 2, None: 3}),
    (ev.PARAMETERS, None),
    (ev.PARAMETERS, [1]),
    (ev.PARAMETERS, {1: 2}),
    (ev.PARAMETERS, {"a": DEEP}),
    (ev.PARAMETERS, {"a": object()}),
    (ev.POINT, None),
    (ev.POINT, ["loss"]),
    (ev.POINT, ["loss", [1]]),
    (ev.POINT, ["", {"a": 1}]),
    (ev.POINT, [5, {"a": 1}]),
    (ev.POINT, [["loss"], {"a": 1}]),
    (ev.POINT, ["a\nb", {"a": 1}]),
    (ev.POINT, ["loss", {1: 1}]),
    (ev.POINT, ["loss", {"a": DEEP}]),
    (ev.POINT, ["loss", {"a": {None: 1}}]),
    (ev.POINT, ["x" * 1001, {"a": 1}]),
    (ev.POINTS, ["loss", [], []]),
    (ev.POINTS, ["loss", ["a"], []]),
    (ev.POINTS, ["loss", ["a", "a"], [[1], [2]]]),
    (ev.POINTS, ["loss", ["a", "b"], [[1], [2, 3]]]),
    (ev.POINTS, ["loss", ["a"], [[]]]),
    (ev.POINTS, ["loss", ["a"], ["xy"]]),
    (ev.POINTS, ["loss", [1], [[1]]]),
    (ev.POINTS, ["loss", "a", [[1]]]),
    (ev.POINTS, ["loss", ["a"], [[DEEP]]]),
    (ev.POINTS, ["loss", ["a"], {"0": [1]}]),
    (ev.POINTS, ["loss", ["a", "b"], [[1]]]),
    (ev.POINTS, [5, ["a"], [[1]]]),
    (ev.ROWS, ["loss", []]),
    (ev.ROWS, ["loss", [5]]),
    (ev.ROWS, ["loss", [{"a": 1}, {1: 2}]]),
    (ev.ROWS, ["loss", "ab"]),
    (ev.ROWS, ["", [{"a": 1}]]),
    (ev.METRIC, ["loss"]),
    (ev.METRIC, ["loss", 5]),
    (ev.METRIC, ["", {}]),
    (ev.METRIC, ["loss", {"tags": 5}]),
    (ev.FILE, {}),
    (ev.FILE, {**FILE_BODY, "checksum": "../../etc/passwd"}),
    (ev.FILE, {**FILE_BODY, "checksum": "A" * 64}),
    (ev.FILE, {**FILE_BODY, "filename": "../f"}),
    (ev.FILE, {**FILE_BODY, "filename": ".."}),
    (ev.FILE, {**FILE_BODY, "prefix": "../x"}),
    (ev.FILE, {**FILE_BODY, "prefix": None}),
    (ev.FILE, {**FILE_BODY, "sizeBytes": -1}),
    (ev.FILE, {**FILE_BODY, "sizeBytes": math.inf}),
    (ev.FILE, {**FILE_BODY, "sizeBytes": "5"}),
    (ev.FILE, {**FILE_BODY, "path": 5}),
    (ev.FILE, {**FILE_BODY, "tags": [[1]]}),
    (ev.FILE_UPDATE, {"id": 5}),
    (ev.FILE_UPDATE, {}),
    (ev.FILE_UPDATE, {"id": "1", "tags": 5}),
    (ev.FILE_DELETE, [1]),
    (ev.FILE_DELETE, {"id": None}),
    (ev.UPDATE, 5),
    (ev.UPDATE, {"metadata": 5}),
    (ev.UPDATE, {"description": 5}),
    (ev.LOST, {}),
    (ev.LOST, {"count": -1}),
    (ev.LOST, {"count": 2**63}),
    (ev.LOST, {"count": 1, "from": 0, "to": 2**63}),
    (ev.LOST, {"count": 1, "from": -1, "to": 3}),
    (ev.LOST, {"count": 1, "from": 1}),
    (ev.LOST, {"count": True}),
]


@pytest.mark.parametrize(
    ("kind", "body"), MALFORMED, ids=[f"{ev.NAMES[kind]}-{n}" for n, (kind, _) in enumerate(MALFORMED)]
)
def test_a_body_that_makes_no_sense_is_counted_and_changes_nothing_else(kind: int, body: Any) -> None:
    folder = Folder().opens(A).fold(A, point(value=1), (ev.PARAMETERS, {"a": 1}))
    before = canonical(folder.state)
    folder.fold(A, (kind, body))
    assert folder.state.malformed == 1
    assert folder.state.events == 4
    after = copy.deepcopy(folder.state)
    after.malformed, after.events, after.updated_ns = 0, 3, 1003
    after.writers[A].seen, after.writers[A].last_ns = [(0, 3)], 1003
    assert canonical(after) == before
    assert experiment_document(folder.state)["malformedEvents"] == 1


# -- states of older versions -----------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(meetings())
def test_a_state_of_version_2_gets_the_counts_that_it_lacks(meeting: list[Any]) -> None:
    (*_, state) = [State(), *met(meeting)]
    older = copy.deepcopy(state)
    older.live_files, older.lost, older.last_ended, older.version = 0, 0, "", 2
    upgrade(older, 2)
    assert older.version == FOLD_VERSION
    assert canonical(older) == canonical(state)


def test_kinds_of_a_later_version_are_passed_over() -> None:
    folder = Folder().fold(A, (99, {"what": "ever"}), (ev.LOG, ["info", "m", None]))
    assert (folder.state.unknown, folder.state.malformed, folder.state.logs, folder.state.events) == (1, 0, 1, 2)


def test_a_second_opening_or_closing_of_one_writer_makes_no_sense() -> None:
    folder = Folder().opens(A).opens(A, description="forged").closes(A, "failed").closes(A)
    assert folder.state.malformed == 2
    assert (folder.state.status, folder.state.description.value) == ("failed", None)


def test_one_point_that_makes_no_sense_costs_only_itself() -> None:
    folder = Folder().fold(
        A, point(value=0), (ev.POINT, ["loss", {1: 1}]), (ev.POINT, ["loss", {"value": DEEP}]), point(value=3)
    )
    assert folder.points() == [{"value": 0}, {"value": 3}]
    assert folder.state.malformed == 2
