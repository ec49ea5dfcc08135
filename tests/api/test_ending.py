"""How a run ends: every way out of a process, what the record says then, and what is printed."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import ml_dash
from ml_dash import Experiment

if TYPE_CHECKING:
    from tests.api.conftest import Make, Python


def _error(experiment: Experiment) -> dict[str, Any]:
    error: dict[str, Any] = experiment.data["error"]
    return error


# -- within a process -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("wrong"), "failed"),
        (SystemExit(3), "failed"),
        (SystemExit("message"), "failed"),
        (SystemExit(0), "completed"),
        (SystemExit(), "completed"),
        (GeneratorExit(), "completed"),
        (KeyboardInterrupt(), "interrupted"),
    ],
    ids=repr,
)
def test_an_exception_decides_how_it_ended_and_goes_on(make: Make, error: BaseException, status: str) -> None:
    experiment = make()
    with pytest.raises(type(error)) as caught, experiment:
        raise error
    assert caught.value is error
    assert experiment.status == status
    assert (experiment.data["error"] is not None) == (status == "failed")
    assert experiment.data["writers"][0]["ended"] == status


def test_a_failure_is_kept_with_type_message_and_traceback(make: Make) -> None:
    experiment = make()
    with pytest.raises(ZeroDivisionError), experiment:
        len([]) / len([])
    error = _error(experiment)
    assert (error["type"], error["message"]) == ("ZeroDivisionError", "division by zero")
    assert error["traceback"].startswith("Traceback (most recent call last):")
    assert "len([]) / len([])" in error["traceback"]


def test_an_error_of_a_library_is_named_with_its_module(make: Make) -> None:
    experiment = make()
    with pytest.raises(json.JSONDecodeError), experiment:
        json.loads("{")
    assert _error(experiment)["type"] == "json.decoder.JSONDecodeError"


def test_an_exception_without_a_text_is_a_failure_like_any_other(make: Make) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    experiment = make()
    with pytest.raises(Mute), experiment:
        raise Mute
    assert experiment.status == "failed"
    assert _error(experiment)["message"] == "<RuntimeError in __str__>"


def test_our_credentials_are_hidden_in_what_is_kept_of_a_failure(
    make: Make, monkeypatch: pytest.MonkeyPatch, runs: Path
) -> None:
    monkeypatch.setenv("ML_DASH_JWT_SECRET", "canary-of-the-environment")
    experiment = make(remote="https://far.example", api_key="canary-of-the-argument")
    error = OSError("neither is canary-of-the-environment")
    error.__cause__ = ValueError("canary-of-the-argument is wrong")
    with pytest.raises(OSError, match="canary"), experiment:
        raise error
    assert _error(experiment)["message"] == "neither is ***"
    assert "ValueError: *** is wrong" in _error(experiment)["traceback"]
    for path in runs.rglob("*"):
        assert not path.is_file() or b"canary" not in path.read_bytes(), path


def test_close_while_an_exception_is_handled_is_a_failure(make: Make) -> None:
    experiment = make().open()
    try:
        raise ValueError("wrong")
    except ValueError:
        experiment.close()
    assert (experiment.status, _error(experiment)["message"]) == ("failed", "wrong")


def test_close_in_a_finally_that_an_exception_passes_is_a_failure(make: Make) -> None:
    experiment = make().open()

    def work() -> None:
        try:
            raise ValueError("wrong")
        finally:
            experiment.close()

    with pytest.raises(ValueError, match="wrong"):
        work()
    assert experiment.status == "failed"


def test_an_exception_that_was_there_at_open_does_not_count(make: Make) -> None:
    try:
        raise ValueError("before")
    except ValueError:
        experiment = make().open()
        experiment.close()
        assert experiment.status == "completed"
        experiment.open()
        try:
            raise KeyError("after")
        except KeyError:
            experiment.close()
    assert (experiment.status, _error(experiment)["type"]) == ("failed", "KeyError")


def test_a_with_block_that_ends_well_in_a_handler_is_completed(make: Make) -> None:
    experiment = make().open()
    try:
        raise ValueError("handled")
    except ValueError:
        with experiment:
            pass
    assert experiment.status == "completed"


@pytest.mark.parametrize("status", ["completed", "failed", "interrupted"])
def test_a_status_that_is_given_wins(make: Make, status: Any) -> None:
    plain, failing = make("plain").open(), make("failing").open()
    plain.close(status=status)
    try:
        raise ValueError("wrong")
    except ValueError:
        failing.close(status)
    assert (plain.status, failing.status) == (status, status)
    assert (failing.data["error"] is not None) == (status == "failed")


def test_the_next_run_begins_anew(make: Make) -> None:
    make().open().close("failed")
    with make() as experiment:
        assert (experiment.status, experiment.data["error"], experiment.data["endedAt"]) == ("running", None, None)
    assert (experiment.status, len(experiment.data["writers"])) == ("completed", 2)


# -- ways out of a process --------------------------------------------------------------------------------------------

WAYS_OUT = {
    "end of script": ("experiment.log('last')", 0, "completed", ""),
    "exception": ("raise ValueError('unhandled')", 1, "failed", "unhandled"),
    "sys.exit": ("sys.exit(3)", 3, "completed", ""),
    "sys.exit in with": ("with experiment: sys.exit(3)", 3, "failed", "3"),
    "sys.exit(0) in with": ("with experiment: sys.exit(0)", 0, "completed", ""),
    "os._exit": ("os._exit(4)", 4, "interrupted", ""),
    "abort": ("os.abort()", -signal.SIGABRT, "interrupted", ""),
    "handled": ("try: 1/0\nexcept ArithmeticError: pass", 0, "completed", ""),
    "SIGTERM": ("wait(signal.SIGTERM)", -signal.SIGTERM, "interrupted", ""),
    "SIGKILL": ("wait(signal.SIGKILL)", -signal.SIGKILL, "interrupted", ""),
    "SIGINT": ("wait(signal.SIGINT)", -signal.SIGINT, "interrupted", ""),
    "SIGINT in with": ("with experiment: wait(signal.SIGINT)", -signal.SIGINT, "interrupted", ""),
    "SIGINT handled": (
        "try: wait(signal.SIGINT)\nexcept KeyboardInterrupt: experiment.log('going on')", 0, "completed", "",
    ),
    "SystemExit of a handler for SIGTERM": (
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\nwith experiment: wait(signal.SIGTERM)",
        143, "interrupted", "",
    ),
    "SystemExit that asks to be tried again": ("with experiment: sys.exit(75)", 75, "interrupted", ""),
    "SystemExit of the last signal": ("with experiment: sys.exit(192)", 192, "interrupted", ""),
    "SystemExit beyond signals": ("with experiment: sys.exit(193)", 193, "failed", "193"),
    "SystemExit of 128": ("with experiment: sys.exit(128)", 128, "failed", "128"),
    "a thread that fails": (
        "thread = threading.Thread(target=lambda: 1/0)\nthread.start()\nthread.join()", 0, "completed", "",
    ),
    "a thread that goes on": (
        "threading.Thread(target=lambda: (time.sleep(0.05), experiment.log('late'))).start()", 0, "completed", "",
    ),
    "closed standard error": ("sys.stderr.close()", 0, "completed", ""),
    "execv": ("os.execv(sys.executable, [sys.executable, '-c', 'pass'])", 0, "interrupted", ""),
}  # fmt: skip

WAY_OUT = """
import os, signal, sys, threading, time
from ml_dash import Experiment

def wait(number):
    os.kill(os.getpid(), number)
    while True:
        signal.pause()

experiment = Experiment(sys.argv[1], "ways").open()
experiment.log("first")
"""


@pytest.fixture(scope="module")
def ways_out(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Every way out, each in a process of its own; two at a time."""
    from tests.api.conftest import Python

    folder = tmp_path_factory.mktemp("ways")
    python = Python(folder)
    ended = {}
    names = list(WAYS_OUT)
    for pair in zip(names[::2], [*names[1::2], None], strict=False):
        scripts = [(name, WAY_OUT + WAYS_OUT[name][0] + "\n") for name in pair if name is not None]
        started = [(name, python.start(script, name, env={"ML_DASH_QUIET": ""})) for name, script in scripts]
        ended |= {name: one.end() for name, one in started}
    return folder / "runs", ended


@pytest.mark.parametrize("name", WAYS_OUT)
def test_every_way_out_of_a_process_is_told_by_the_status(ways_out: tuple[Path, dict[str, Any]], name: str) -> None:
    folder, ended = ways_out
    _, code, status, message = WAYS_OUT[name]
    assert ended[name].code == code, ended[name].err
    with Experiment(name, "ways", local_path=folder, read_only=True) as experiment:
        assert experiment.status == status
        assert experiment.log().read()["logs"][0]["message"] == "first"
        assert (experiment.data["error"] or {}).get("message", "") == message


@pytest.mark.parametrize("name", ["end of script", "sys.exit", "a thread that goes on", "handled"])
def test_a_clean_end_is_silent_but_for_the_first_line(ways_out: tuple[Path, dict[str, Any]], name: str) -> None:
    folder, ended = ways_out
    assert ended[name].err == f"ml-dash: ways/{name} -> {folder}/ways/{name} (new)\n"


def test_a_thread_that_is_still_running_at_exit_is_waited_for(ways_out: tuple[Path, dict[str, Any]]) -> None:
    with Experiment("a thread that goes on", "ways", local_path=ways_out[0], read_only=True) as experiment:
        assert [entry["message"] for entry in experiment.log().read()["logs"]] == ["first", "late"]


def test_exit_functions_registered_after_the_import_may_record(python: Python, make: Make) -> None:
    python("""
        import atexit
        from ml_dash import Experiment
        atexit.register(lambda: experiment.log("registered before open"))
        experiment = Experiment("first", "cv").open()
        atexit.register(lambda: experiment.log("registered after open"))
    """)
    with make(read_only=True) as experiment:
        messages = [entry["message"] for entry in experiment.log().read()["logs"]]
        assert messages == ["registered after open", "registered before open"]
        assert experiment.status == "completed"


def test_an_error_of_an_interactive_session_before_open_does_not_count(python: Python, make: Make) -> None:
    python("""
        import code
        console = code.InteractiveConsole()
        for line in (
            "1 / 0",
            "from ml_dash import Experiment",
            "first = Experiment('first', 'cv').open()",
            "second = Experiment('second', 'cv').open()",
            "second.close()",
        ):
            console.push(line)
    """)
    assert make().status == "completed"


def test_no_signal_handler_and_no_hook_is_installed(python: Python) -> None:
    python("""
        import signal, sys
        def state():
            known = {number: signal.getsignal(number) for number in signal.valid_signals()}
            return known, sys.excepthook, sys.stdout, sys.stderr, signal.getitimer(signal.ITIMER_REAL)
        before = state()
        from ml_dash import Experiment
        with Experiment("first", "cv") as experiment:
            experiment.log("one")
            assert state() == before
        assert state() == before
    """)


def test_an_interrupt_at_close_skips_only_the_folder(python: Python, make: Make, runs: Path, until: Any) -> None:
    """Another process is projecting; close() waits for it, and Ctrl-C ends the waiting, not the recording."""
    fcntl = pytest.importorskip("fcntl")
    started = python.start(
        """
        from ml_dash import Experiment
        experiment = Experiment("first", "cv").open()
        print("open", flush=True)
        input()
        experiment.log("last")
        experiment.close()
        print("went on")
    """,
        env={"ML_DASH_QUIET": ""},
    )
    assert started.line() == "open"
    journal = runs / "cv" / "first" / ".journal"
    with (journal / "turn.lock").open("a") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        started.tell()
        until(lambda: not list((journal / "segments").glob("*.lock")))
        started.process.send_signal(signal.SIGINT)
        ended = started.end()
    assert (ended.code, ended.out) == (0, "went on\n")
    assert "ml-dash: skipped; the journal is complete" in ended.err
    with make(read_only=True) as experiment:
        assert experiment.status == "completed"
        assert experiment.log().read()["logs"][0]["message"] == "last"


def test_descriptors_0_to_2_are_never_written_to(python: Python, make: Make, tmp_path: Path) -> None:
    """A file that gets the number of a closed standard stream holds what its owner wrote, and nothing else."""
    python(
        """
        import os
        for number in (0, 1, 2):
            os.close(number)
        from ml_dash import Experiment
        experiment = Experiment("first", "cv", metadata={"odd": object()}).open()
        experiment.log("one")
        for number in (0, 1, 2):
            os.dup2(os.open(f"own{number}", os.O_RDWR | os.O_CREAT), number)
            os.write(number, b"own")
        for step in range(100):
            experiment.metric("loss").append(value=step)
        experiment.close()
    """,
        env={"ML_DASH_QUIET": ""},
    )
    assert [(tmp_path / f"own{number}").read_bytes() for number in (0, 1, 2)] == [b"own"] * 3
    with make(read_only=True) as experiment:
        assert (experiment.status, experiment.metric("loss").stats()["totalDataPoints"]) == ("completed", 100)


# -- what is printed --------------------------------------------------------------------------------------------------

TELL = """
import os, sys
from ml_dash import Experiment
with Experiment("first", "cv") as experiment:
    for step in range(int(sys.argv[1])):
        experiment.metric("loss").append(value=step)
    experiment.log("one")
with Experiment("second", "cv"):
    pass
"""


def test_the_first_open_tells_where_and_whether_it_continues_and_nothing_else(python: Python, runs: Path) -> None:
    told = python(TELL, 1204, env={"ML_DASH_QUIET": ""})
    assert (told.out, told.err) == ("", f"ml-dash: cv/first -> {runs}/cv/first (new)\n")
    told = python(TELL, 1, env={"ML_DASH_QUIET": ""})
    continued = "continued: 1,204 points, 1 log entry"
    assert (told.out, told.err) == ("", f"ml-dash: cv/first -> {runs}/cv/first ({continued})\n")


def test_it_tells_who_else_has_it_open(python: Python, make: Make, opened: Experiment) -> None:
    told = python(TELL, 1, env={"ML_DASH_QUIET": "0"})
    assert told.err.endswith(f"; also open in pid {os.getpid()} on {os.uname().nodename})\n")


@pytest.mark.parametrize(
    "env", [{"ML_DASH_QUIET": "1"}, {"RANK": "1"}, {"SLURM_PROCID": "3"}, {"ML_DASH_DISABLED": "1"}], ids=str
)
def test_nothing_is_told_where_it_would_be_noise(python: Python, env: dict[str, str]) -> None:
    assert python(TELL, 1, env={"ML_DASH_QUIET": "", **env}).err == ""


def test_rank_0_tells(python: Python) -> None:
    assert python(TELL, 1, env={"ML_DASH_QUIET": "", "RANK": "0", "SLURM_PROCID": "0"}).err.count("\n") == 1


def test_children_tell_nothing(python: Python) -> None:
    """Forked before anything was open, and by multiprocessing."""
    ended = python(
        """
        import multiprocessing, os, sys
        from ml_dash import Experiment

        def work(name):
            with Experiment(name, "cv") as experiment:
                experiment.log("one")

        if __name__ == "__main__":
            if os.fork() == 0:
                work("forked")
                sys.exit()
            os.wait()
            for method in ("fork", "spawn"):
                process = multiprocessing.get_context(method).Process(target=work, args=(method,))
                process.start()
                process.join()
                assert process.exitcode == 0
            work("parent")
    """,
        env={"ML_DASH_QUIET": ""},
    )
    assert ended.err.count("\n") == 1
    assert ended.err.startswith("ml-dash: cv/parent -> ")


def test_values_that_are_kept_as_text_are_told_once_for_each_key(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    with make() as experiment:
        for _ in range(3):
            experiment.parameters().set(optimizer=object())
            experiment.log("x", scheduler=object())
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert '"optimizer" is object, which cannot be recorded; it is kept as text' in caplog.text


# -- lost handles -----------------------------------------------------------------------------------------------------


def test_a_lost_open_handle_is_closed_when_it_is_collected(make: Make, runs: Path, until: Any) -> None:
    def lose() -> None:
        Experiment("lost", "cv", local_path=runs).open().log("one")

    lose()
    until(lambda: make("lost").status == "completed")
    with make("lost", read_only=True) as experiment:
        assert experiment.log().read()["total"] == 1


def test_a_lost_handle_leaves_the_others_alone(make: Make, opened: Experiment, until: Any) -> None:
    other = Experiment("first", "cv", local_path=opened.path.parent.parent).open()
    other.log("from the other")
    events = opened.data["counts"]["events"]
    del other
    until(lambda: opened.status == "running")
    opened.log("goes on")
    assert opened.data["counts"]["events"] == events + 1


def test_a_handle_lost_in_a_cycle_just_before_the_end_is_closed_too(python: Python, make: Make) -> None:
    python("""
        import gc
        from ml_dash import Experiment
        gc.disable()
        experiment = Experiment("first", "cv").open()
        experiment.log("one")
        experiment.itself = experiment
        del experiment
        gc.collect()
    """)
    assert make().status == "completed"


def test_an_exception_goes_on_though_events_were_lost(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """The disk's trouble must not take the place of the error that ended the run."""
    failing, ending = make("failing").open(), make("ending").open()
    for experiment in (failing, ending):
        experiment._handle.session.recording().writer.count_lost()
    with pytest.raises(ValueError, match="the real one"), failing:
        raise ValueError("the real one")
    assert "1 event of cv/failing was lost" in caplog.text
    with pytest.raises(ml_dash.StorageError, match="1 event of cv/ending was lost"):
        ending.close()
