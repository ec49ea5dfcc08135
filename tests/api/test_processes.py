"""Several processes: forked, spawned, pickled, or simply several."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING, Any

import pytest

from ml_dash import Experiment

if TYPE_CHECKING:
    from tests.api.conftest import Make, Python

pytestmark = pytest.mark.skipif("not hasattr(__import__('os'), 'fork')", reason="no fork on this system")

FORK = """
import os, sys, threading
from ml_dash import Experiment

def fork(work):
    child = os.fork()
    if child:
        return child
    try:
        work()
        code = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        code = 1
    os._exit(code)

def wait(*children):
    for child in children:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, child
"""


def _writers(experiment: Experiment) -> dict[bool, list[dict[str, Any]]]:
    """The writers, by whether they are children."""
    found: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for writer in experiment.data["writers"]:
        found[writer.get("child", False)].append(writer)
    return found


# -- fork -------------------------------------------------------------------------------------------------------------


def test_a_forked_child_gets_a_writer_of_its_own_and_never_decides_the_status(python: Python, make: Make) -> None:
    python(
        FORK
        + """
experiment = Experiment("first", "cv", description="d").open()
experiment.log("before")
metric = experiment.metric("loss")

def work():
    assert experiment.is_open
    metric.append(value=1.0)
    experiment.log("from the child")
    experiment.parameters().set(child=os.getpid())
    assert experiment.log().read()["total"] == 2
    experiment.close(status="failed")

wait(fork(work))
experiment.log("after")
assert metric.append(value=2.0)["index"] == 1
"""
    )
    with make(read_only=True) as experiment:
        assert experiment.status == "completed"
        assert [entry["message"] for entry in experiment.log().read()["logs"]] == ["before", "from the child", "after"]
        (child,), (parent,) = _writers(experiment)[True], _writers(experiment)[False]
        assert (child["parent"], child["ended"], parent["ended"]) == (parent["id"], "failed", "completed")
        assert child["pid"] == experiment.parameters().get()["child"] != parent["pid"]


def test_a_forked_child_that_records_nothing_leaves_no_trace(python: Python, make: Make) -> None:
    python(
        FORK
        + """
experiment = Experiment("first", "cv").open()
experiment.log("one")
closing = [lambda: None, experiment.close, lambda: experiment.__exit__(None, None, None), lambda: sys.exit(0)]
children = [fork(work) for work in closing[:3]]
if (child := os.fork()) == 0:
    sys.exit(0)
wait(*children, child)
assert experiment.status == "running"
experiment.log("two")
"""
    )
    experiment = make()
    assert (experiment.status, experiment.data["counts"]["logs"]) == ("completed", 2)
    assert len(experiment.data["writers"]) == 1


def test_a_child_that_dies_does_not_interrupt_the_run(python: Python, make: Make) -> None:
    python(
        FORK
        + """
import signal
experiment = Experiment("first", "cv").open()

def work():
    experiment.log("from the child")
    os.kill(os.getpid(), signal.SIGKILL)

child = fork(work)
os.waitpid(child, 0)
assert experiment.status == "running"
"""
    )
    experiment = make()
    assert (experiment.status, experiment.data["counts"]["logs"]) == ("completed", 1)
    assert _writers(experiment)[True][0]["ended"] == "died"


def test_a_child_of_a_child_and_many_children_at_once(python: Python, make: Make) -> None:
    python(
        FORK
        + """
experiment = Experiment("first", "cv").open()

def deep(level):
    def work():
        experiment.metric("loss").append(level=level)
        if level:
            wait(fork(deep(level - 1)))
    return work

wait(*[fork(deep(3)) for _ in range(8)])
assert experiment.metric("loss").read()["total"] == 32
"""
    )
    experiment = make()
    writers = _writers(experiment)[True]
    assert (experiment.status, len(writers)) == ("completed", 32)
    known = {writer["id"] for writer in experiment.data["writers"]}
    assert all(writer["parent"] in known for writer in writers)


def test_threads_that_call_first_in_a_child_open_it_once(python: Python, make: Make) -> None:
    python(
        FORK
        + """
experiment = Experiment("first", "cv").open()
metric = experiment.metric("loss")
start = threading.Barrier(8)

def call(number):
    start.wait()
    metric.append(value=number)

def work():
    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert metric.stats()["totalDataPoints"] == 8

wait(fork(work))
"""
    )
    assert {kind: len(writers) for kind, writers in _writers(make()).items()} == {True: 1, False: 1}


def test_a_child_does_not_undo_what_was_changed_since_the_opening(python: Python, make: Make) -> None:
    python(
        FORK
        + """
experiment = Experiment("first", "cv", description="old", tags=["old"]).open()
experiment.update(description="new", tags=["new"])
wait(fork(lambda: experiment.log("from the child")))
"""
    )
    assert (make().description, make().tags) == ("new", ["new"])


def test_locks_that_threads_hold_at_the_fork_hang_nobody(python: Python, make: Make) -> None:
    """Forks beside threads that record, read, open and close all the time."""
    python(
        FORK
        + """
experiment = Experiment("first", "cv").open()
stop = threading.Event()

def record():
    while not stop.wait(0.001):
        experiment.metric("loss").append(value=1.0)

def read():
    while not stop.wait(0.001):
        experiment.metric("loss").read(start_index=-1)
        repr(experiment.metric("other").append(value=1))

other = Experiment("other", "cv")

def open_and_close():
    while not stop.is_set():
        with other:
            other.log("x")

threads = [threading.Thread(target=target) for target in (record, record, read, open_and_close)]
for thread in threads:
    thread.start()

def work():
    experiment.log("from the child")
    assert experiment.log().read(limit=10_000)["logs"]
    with Experiment("third", "cv") as third:
        third.log("x")
    other.close()
    other.open().log("from the child")
    other.close()

for _ in range(15):
    wait(fork(work))
stop.set()
for thread in threads:
    thread.join()
"""
    )
    assert (make().data["counts"]["logs"], make().status) == (15, "completed")
    assert make("third").data["counts"]["logs"] == 15


def test_results_of_before_the_fork_know_their_index_in_the_child(python: Python) -> None:
    python(
        FORK
        + """
experiment = Experiment("first", "cv").open()
results = [experiment.metric("loss").append(value=number) for number in range(3)]

def work():
    experiment.metric("loss").append(value=3)
    assert [result["index"] for result in results] == [0, 1, 2]

wait(fork(work))
"""
    )


def test_a_fork_that_the_interpreter_does_not_see_decides_nothing(python: Python, make: Make) -> None:
    """A C library forks: no hook of Python runs, and the child leaves through exit functions."""
    python("""
        import ctypes, os, sys
        from ml_dash import Experiment
        experiment = Experiment("first", "cv").open()
        experiment.log("one")
        child = ctypes.PyDLL(None).fork()
        if child == 0:
            experiment.close()
            sys.exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert experiment.status == "running"
        experiment.log("two")
    """)
    experiment = make()
    assert (experiment.status, experiment.data["counts"]["logs"]) == ("completed", 2)
    assert len(experiment.data["writers"]) == 1


# -- multiprocessing, pickle ------------------------------------------------------------------------------------------

WORKERS = """
import multiprocessing, os, sys
from ml_dash import Experiment

def work(experiment, number, queue=None):
    assert experiment.is_open and not experiment.resumed
    experiment.metric("loss").append(value=float(number), worker=number)
    experiment.log("from a worker", worker=number)
    assert experiment.path.is_absolute() and experiment.path.is_dir()

def pooled(arguments):
    work(*arguments)
    return os.getpid()

if __name__ == "__main__":
    for name in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(name)
        with Experiment(name, "cv", local_path="elsewhere", description="d") as experiment:
            experiment.update(description="changed")
            workers = [context.Process(target=work, args=(experiment, number)) for number in range(2)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
                assert worker.exitcode == 0, name
            with context.Pool(2) as pool:
                pool.map(pooled, [(experiment, number) for number in range(2, 4)])
                pool.close()
                pool.join()
"""


def test_workers_of_multiprocessing_record_under_every_start_method(python: Python, make: Make) -> None:
    ended = python(WORKERS)
    assert ended.err == ""
    for method in ("fork", "spawn", "forkserver"):
        experiment = make(method, local_path="elsewhere")
        assert (experiment.status, experiment.description) == ("completed", "changed"), method
        with make(method, local_path="elsewhere", read_only=True) as reader:
            points = reader.metric("loss").read()["data"]
            assert sorted(point["data"]["worker"] for point in points) == [0, 1, 2, 3], method
            assert [point["index"] for point in points] == [0, 1, 2, 3]
            assert reader.log().read()["total"] == 4
        writers = _writers(experiment)
        (parent,) = writers[False]
        assert {writer["parent"] for writer in writers[True]} == {parent["id"]}
        assert {writer["ended"] for writer in writers[True]} == {"completed"}, method


def test_what_travels_is_absolute_and_holds_no_key(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    made = make(
        local_path="relative", remote="https://far.example", api_key="canary", user_name="alice", tags=["t"],
        metadata={"k": 1}, write_protected=True, strict=True, durability="os", resume="never",
    )  # fmt: skip
    pickled = pickle.dumps(made)
    assert b"canary" not in pickled
    monkeypatch.chdir("/")
    again = pickle.loads(pickled)
    assert (again.path, again.mode, again.id) == (tmp_path / "relative" / "cv" / "first", made.mode, made.id)
    assert (again.tags, again.metadata, again.write_protected, again.is_open) == (["t"], {"k": 1}, True, False)
    assert again.__getstate__() == made.__getstate__()


def test_a_closed_one_stays_closed_and_keeps_its_arguments(make: Make) -> None:
    with make(resume="never"):
        pass
    again = pickle.loads(pickle.dumps(make(resume="never")))
    with pytest.raises(FileExistsError):
        again.open()


def test_a_copy_in_the_same_process_is_another_handle(make: Make, opened: Experiment) -> None:
    opened.update(description="changed")
    for other in (copy.deepcopy(opened), copy.copy(opened), pickle.loads(pickle.dumps(opened))):
        assert other.is_open
        other.log("from a copy")
        other.close()
        assert opened.is_open
    assert opened.log().read()["total"] == 3
    assert (len(opened.data["writers"]), opened.description) == (1, "changed")


class Tracker(Experiment):
    """A class of the user's, with an attribute of its own."""

    def __init__(self, name: str, color: str, path: Any) -> None:
        super().__init__(name, "cv", local_path=path)
        self.color = color


def test_attributes_of_a_derived_class_travel_too(runs: Any) -> None:
    tracker = Tracker("first", "blue", runs)
    for other in (copy.deepcopy(tracker), copy.copy(tracker)):
        assert (type(other), other.color, other.name) == (Tracker, "blue", "first")
        with other:
            other.log("one")


def test_a_model_that_holds_an_experiment_can_be_copied(make: Make) -> None:
    experiment = make(description="d")
    model = {"experiment": experiment, "again": experiment}
    copied = copy.deepcopy(model)
    assert copied["experiment"] is copied["again"] is not experiment
    assert copied["experiment"].description == "d"


def test_a_read_only_one_travels_as_such(make: Make, python: Python) -> None:
    with make() as experiment:
        experiment.log("one")
    with make(read_only=True) as reader:
        pickled = pickle.dumps(reader)
    ended = python(
        """
        import pickle, sys
        reader = pickle.loads(bytes.fromhex(sys.argv[1]))
        assert reader.is_open and reader.log().read()["total"] == 1
        try:
            reader.log("no")
        except RuntimeError as error:
            print(error)
    """,
        pickled.hex(),
    )
    assert "read_only=True" in ended.out


def test_an_unpickled_one_in_another_process_opens_itself_at_its_first_call(
    make: Make, opened: Experiment, python: Python
) -> None:
    before = len(opened.data["writers"])
    ended = python(
        """
        import pickle, sys
        experiment = pickle.loads(bytes.fromhex(sys.argv[1]))
        print(experiment.is_open, len(list(experiment.path.glob(".journal/segments/*.seg"))))
        experiment.metric("loss").append(value=1.0)
        print(len(list(experiment.path.glob(".journal/segments/*.seg"))))
        sys.exit(1)
    """,
        pickle.dumps(opened).hex(),
        code=1,
        env={"ML_DASH_QUIET": ""},
    )
    assert (ended.out.split(), ended.err) == (["True", str(before), str(before + 1)], "")
    assert opened.status == "running"
    assert _writers(opened)[True][0]["parent"] == _writers(opened)[False][0]["id"]


# -- several ----------------------------------------------------------------------------------------------------------


def test_indices_are_exact_for_two_processes_at_once(make: Make, python: Python) -> None:
    """Each learns the index of its own points while the other writes; together they are all, once."""
    script = """
        import json, sys
        from ml_dash import Experiment
        with Experiment("first", "cv") as experiment:
            print("open", flush=True)
            input()
            results = []
            for step in range(300):
                results.append((step, experiment.metric("loss").append(who=int(sys.argv[1]), step=step)))
                if step % 50 == 0:
                    results[-1][1]["index"]
            batch = experiment.metric("loss").append_batch([{"who": int(sys.argv[1]), "step": -n} for n in range(1, 4)])
            known = {step: result["index"] for step, result in results}
            print(json.dumps([known, [batch["startIndex"], batch["endIndex"]]]))
    """
    started = [python.start(script, who) for who in range(2)]
    for one in started:
        assert one.line() == "open"
    for one in started:
        one.tell()
    told = [one.end().json for one in started]
    with make(read_only=True) as experiment:
        points = experiment.metric("loss").read()["data"]
        assert experiment.status == "completed"
    assert [point["index"] for point in points] == list(range(606))
    for who, (known, (first, last)) in enumerate(told):
        of = {str(point["data"]["step"]): point["index"] for point in points if point["data"]["who"] == who}
        assert known == {step: index for step, index in of.items() if int(step) >= 0}
        assert (of["-1"], of["-2"], of["-3"]) == (first, first + 1, last)
    assert make().data["counts"]["points"] == 606


def test_an_index_that_was_passed_by_many_turns_is_still_exact(make: Make, opened: Experiment, python: Python) -> None:
    """The folded state remembers the last 64 turns of the writers; before that, the journal is asked."""
    metric = opened.metric("loss")
    results = [metric.append(value=number) for number in range(2)]
    other = python.start("""
        import sys
        from ml_dash import Experiment
        with Experiment("first", "cv") as experiment:
            for line in sys.stdin:
                experiment.metric("loss").append(value=-1)
                print("appended", flush=True)
    """)
    for _ in range(70):
        other.tell()
        assert other.line() == "appended"
        metric.read(limit=1)
        metric.append(value=9)
        metric.read(limit=1)
    other.end()
    assert metric.stats()["totalDataPoints"] == 142
    assert [result["index"] for result in results] == [0, 1]


def test_the_status_is_that_of_the_writers_together(make: Make, opened: Experiment, python: Python) -> None:
    python("""
        from ml_dash import Experiment
        Experiment("first", "cv").open().close(status="failed")
    """)
    assert opened.status == "running"
    opened.close()
    assert opened.status == "failed"
