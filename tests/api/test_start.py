"""What a start loads, and when: little before the first point, the rest in the background, and a fork at any time."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import ml_dash
from ml_dash.core import events
from ml_dash.journal.segment_file import packer
from ml_dash.recording import process

if TYPE_CHECKING:
    from tests.api.conftest import Make, Python

HEAVY = (
    "asyncio", "click", "ctypes", "filelock", "inspect", "json", "msgspec", "requests", "rich", "signal",
    "urllib.request",
)  # fmt: skip
"""Not before the first point."""

NOT_AT_IMPORT = ("dataclasses", "filelock", "logging", "msgpack", "pathlib")

FOR_THE_FIRST_POINT = {
    "core": {"events", "frames", "json_values", "limits", "names", "values", "version"},
    "disk": {"durable", "lock", "places", "settings"},
    "journal": {"backlog", "degraded", "segment", "segment_file", "syncer", "writer"},
    "reading": {"located"},
    "projection": set(),
    "sync": set(),
}

LATER = "from ml_dash.recording import background\nbackground.LOAD_AFTER_S = 3600.0\n"
"""What is loaded in the background is not loaded while the program runs."""

FIRST_POINT = """
from ml_dash import Experiment
experiment = Experiment("first", "cv").open()
metric = experiment.metric("loss")
metric.append(value=0.5, epoch=1)
"""

TELL = "import json as _json\nprint(_json.dumps(sorted(_set)))\n"


def _loaded(python: Python, program: str, before: str = "") -> set[str]:
    """The modules that a program loads, `before` not counted."""
    text = f"import sys\n{before}\n_before = set(sys.modules)\n{program}\n_set = set(sys.modules) - _before\n{TELL}"
    return set(python(text).json)


def test_importing_the_library_loads_next_to_nothing(python: Python) -> None:
    loaded = _loaded(python, "import ml_dash")
    ours = {name for name in loaded if name.startswith("ml_dash")}
    assert ours == {
        "ml_dash", "ml_dash.core", "ml_dash.core.version", "ml_dash.recording", "ml_dash.recording.process"
    }  # fmt: skip
    assert loaded.isdisjoint({*HEAVY, *NOT_AT_IMPORT})


def test_the_first_point_waits_for_nothing_heavy(python: Python) -> None:
    loaded = _loaded(python, LATER + FIRST_POINT, before="import msgpack")
    assert loaded.isdisjoint(HEAVY)


@pytest.mark.parametrize("package", FOR_THE_FIRST_POINT)
def test_the_first_point_waits_for_no_other_module_of_ours(python: Python, package: str) -> None:
    loaded = _loaded(python, LATER + FIRST_POINT)
    beginning = f"ml_dash.{package}."
    assert {n.removeprefix(beginning) for n in loaded if n.startswith(beginning)} == FOR_THE_FIRST_POINT[package]


def test_what_the_folder_needs_is_loaded_in_the_background(python: Python) -> None:
    """And from then on events are packed by msgspec. The points before and after are all there."""
    told = python(
        """
import json, sys, threading
from ml_dash.recording import background, run
background.LOAD_AFTER_S = 0.001
load, done = run.Run.load, threading.Event()

def loading(self):
    before = "msgspec" in sys.modules
    load(self)
    seen.append([threading.current_thread().name, before, "msgspec" in sys.modules])
    done.set()

seen = []
run.Run.load = loading
"""
        + FIRST_POINT
        + """
assert done.wait(60)
seen.append(type(experiment._handle.session.run.writer._file.pack.__self__).__module__)
metric.append(value=1.5, epoch=2)
seen.append([point["data"] for point in metric.read()["data"]])
print(json.dumps(seen))
"""
    ).json
    points = [{"value": 0.5, "epoch": 1}, {"value": 1.5, "epoch": 2}]
    assert told == [["ml-dash-project", False, True], "msgspec.msgpack", points]


def test_without_the_background_everything_is_read_and_closed_all_the_same(python: Python, make: Make) -> None:
    python(LATER + FIRST_POINT + "assert metric.read()['total'] == 1\nmetric.append(value=1.0)\nexperiment.close()")
    with make(read_only=True) as experiment:
        assert experiment.metric("loss").stats()["totalDataPoints"] == 2
        assert experiment.status == "completed"


def test_a_fork_right_after_the_first_point_records_in_both(python: Python, make: Make) -> None:
    python(
        LATER
        + FIRST_POINT
        + """
import os, sys
assert "msgspec" not in sys.modules
child = os.fork()
if not child:
    metric.append(value=1.0, epoch=1)
    experiment.close()
    os._exit(0)
metric.append(value=2.0, epoch=2)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
experiment.close()
"""
    )
    with make(read_only=True) as experiment:
        values = [point["data"]["value"] for point in experiment.metric("loss").read()["data"]]
        assert sorted(values) == [0.5, 1.0, 2.0]
        assert sorted(writer.get("child", False) for writer in experiment.data["writers"]) == [False, True]
        assert {writer["ended"] for writer in experiment.data["writers"]} == {"completed"}


def test_a_fork_waits_until_what_is_being_loaded_is_there(python: Python, tmp_path: Path) -> None:
    """A module that is half loaded at the fork would be so in the child for ever, with its import lock held."""
    (tmp_path / "slow.py").write_text("import hub\nhub.begun.set()\nhub.go.wait(60)\nwhole = True\n", encoding="utf-8")
    (tmp_path / "hub.py").write_text("import threading\nbegun, go = threading.Event(), threading.Event()\n")
    python(
        f"""
import os, signal, sys, threading
sys.path.insert(0, {str(tmp_path)!r})
import hub
import ml_dash.recording.opening
from ml_dash.recording.process import loading

def load():
    with loading():
        import slow

thread = threading.Thread(target=load)
thread.start()
assert hub.begun.wait(60)
# Hooks before a fork are called the last one first: the module is let go on when the fork has begun.
os.register_at_fork(before=threading.Timer(0.2, hub.go.set).start)
child = os.fork()
if not child:
    signal.alarm(20)
    import slow
    os._exit(0 if slow.whole else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
thread.join()
with loading():
    pass
"""
    )


def test_exit_functions_registered_after_the_import_come_before_the_end_of_a_run(python: Python, make: Make) -> None:
    """Also where nothing of the library but its name was loaded when they were registered."""
    python(
        "import atexit\nimport ml_dash\natexit.register(lambda: metric.append(value=1.0))"
        + FIRST_POINT
    )  # fmt: skip
    with make(read_only=True) as experiment:
        assert experiment.metric("loss").stats()["totalDataPoints"] == 2
        assert experiment.status == "completed"


# -- names that are loaded when they are asked for --------------------------------------------------------------------

ENTRANCE = Path(ml_dash.__file__)


def _type_checked() -> dict[str, str]:
    """Name → module, as those who check types see it."""
    tree = ast.parse(ENTRANCE.read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    return {
        alias.name: str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }


def test_each_name_is_what_those_who_check_types_take_it_for() -> None:
    from importlib import import_module

    homes = {name: home for name, home in _type_checked().items() if name in ml_dash.__all__}
    assert set(ml_dash.__all__) - homes.keys() == {"__version__", "experiments"}
    for name, home in homes.items():
        assert getattr(ml_dash, name) is getattr(import_module(f"ml_dash.{home}"), name), name


def test_names_and_modules_are_there_before_anything_else_was_loaded(python: Python) -> None:
    python(
        """
import ml_dash
assert set(ml_dash.__all__) <= set(dir(ml_dash))
assert {"client", "decorator", "errors", "experiment", "files", "log", "metric", "parameters"} <= set(dir(ml_dash))
open("content", "w").close()
assert ml_dash.files.compute_sha256("content").startswith("e3b0c442")
assert issubclass(ml_dash.errors.NotOpen, ml_dash.MLDashError)
assert ml_dash.LogHandler.__module__ == "ml_dash.log"
"""
    )


def test_a_name_that_is_not_there_is_refused() -> None:
    with pytest.raises(AttributeError, match="module 'ml_dash' has no attribute 'Experimint'"):
        _ = ml_dash.Experimint  # type: ignore[attr-defined]
    with pytest.raises(ImportError):
        from ml_dash import Experimint  # type: ignore[attr-defined]  # noqa: F401


# -- two packers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        ("loss", {"value": 0.1, "epoch": 1, "none": None, "yes": True, "text": "ü" * 40, "nan": float("inf")}),
        ("loss", [-(2**63), -129, -128, -33, -32, -1, 0, 127, 128, 255, 256, 65_535, 65_536, 2**32, 2**64 - 1]),
        {"nested": {"list": [[], {}, [1, [2, [3]]]], "bytes": b"\x00" * 300}, "long": "a" * 70_000},
        [{str(number): number for number in range(20)}, list(range(70_000))],
    ],
)
def test_both_packers_make_the_same_bytes(body: object, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    fast = packer(load=True)
    monkeypatch.delitem(sys.modules, "msgspec")
    light = packer(load=False)
    assert type(light.__self__).__module__.startswith("msgpack")  # type: ignore[attr-defined]
    event = (0, events.POINT, 1_700_000_000_000_000_000, body)
    assert light(event) == fast(event)


@pytest.mark.parametrize("value", [2**64, "\ud800", object()])
def test_both_packers_refuse_the_same_and_go_on(value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    fast = packer(load=True)
    monkeypatch.delitem(sys.modules, "msgspec")
    light = packer(load=False)
    for pack in (fast, light):
        with pytest.raises((OverflowError, UnicodeEncodeError, TypeError)):
            pack((0, events.POINT, 1, ("loss", {"first": 1.0, "value": value})))
        assert pack((1,)) == b"\x91\x01"


def test_the_hooks_are_called_in_their_order() -> None:
    """A handle asks its run which writer it had, before the runs are let go of."""
    import ml_dash.recording.run  # noqa: F401 - registers its own

    names = [f"{function.__module__}.{function.__qualname__}" for function in process.in_child]
    assert names == ["ml_dash.recording.lifecycle._after_fork", "ml_dash.recording.run.Registry.after_fork"]
