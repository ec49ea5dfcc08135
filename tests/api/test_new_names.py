"""`resume="new"`: the next free name, decided among all processes on one store."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ml_dash import Experiment, InvalidValue, experiments, ml_dash_experiment

from .conftest import Make

AT_ONCE = 64
# The children wait for the parent to close its end: they open in the same moment.
RACE = f"""
import os, sys
from ml_dash import Experiment
barrier, go = os.pipe()
children = []
for number in range({AT_ONCE}):
    pid = os.fork()
    if not pid:
        os.close(go)
        os.read(barrier, 1)
        experiment = Experiment("run", "race", local_path=sys.argv[1], resume="new").open()
        experiment.metric("who").append(value=number)
        experiment.close()
        with open(os.path.join(sys.argv[2], str(number)), "w") as file:
            file.write(experiment.name)
        os._exit(0)
    children.append(pid)
os.close(go)
failed = [pid for pid in children if os.waitpid(pid, 0)[1]]
sys.exit(len(failed))
"""


def test_each_opening_has_a_name_of_its_own(make: Make) -> None:
    names = []
    for _ in range(3):
        with make("run", resume="new") as experiment:
            names.append((experiment.name, experiment.resumed, experiment.path.name))
            experiment.log("once")
            assert experiment.log().read()["total"] == 1
    assert names == [("run", False, "run"), ("run-2", False, "run-2"), ("run-3", False, "run-3")]


def test_names_that_are_taken_and_folders_of_others_are_passed_over(make: Make, runs: Path) -> None:
    for name in ("run", "run-3"):
        make(name, "project").open().close()
    (runs / "project" / "run-2").mkdir(parents=True)
    (runs / "project" / "run-2" / "mine.txt").write_text("not an experiment")
    with make("run", "project", resume="new") as one, make("run", "project", resume="new") as two:
        assert (one.name, two.name) == ("run-4", "run-5")
    assert (runs / "project" / "run-2" / "mine.txt").read_text() == "not an experiment"


def test_two_that_are_open_in_one_process_have_two_names(make: Make) -> None:
    with make("run", resume="new") as one, make("run", resume="new") as two:
        assert (one.name, two.name) == ("run", "run-2")
        assert one.id != two.id


def test_the_same_handle_goes_on_with_the_name_it_got(make: Make) -> None:
    make("run").open().close()
    experiment = make("run", resume="new").open()
    experiment.close()
    experiment.open()
    assert (experiment.name, experiment.resumed) == ("run-2", True)
    experiment.close()


def test_processes_that_begin_at_once_get_as_many_names(tmp_path: Path) -> None:
    told = tmp_path / "told"
    told.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", RACE, str(tmp_path / "runs"), str(told)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    names = [path.read_text() for path in told.iterdir()]
    assert len(names) == len(set(names)) == AT_ONCE
    found = {one["name"]: one for one in experiments(tmp_path / "runs")}
    assert set(found) == set(names)
    assert all(one["counts"]["points"] == 1 for one in found.values())


@pytest.mark.parametrize("point", ["name-claimed", "segment-create"])
def test_a_name_whose_process_was_killed_while_deciding_is_given_to_the_next(
    tmp_path: Path, make: Make, point: str
) -> None:
    program = "import sys; from ml_dash import Experiment\n"
    program += 'Experiment("run", "p", local_path=sys.argv[1], resume="new").open()'
    command = [sys.executable, "-c", program, str(tmp_path / "runs")]
    killed = subprocess.run(command, env={**os.environ, "ML_DASH_FAIL": f"{point}:1:kill"}, timeout=60, check=False)
    assert killed.returncode == -9
    with make("run", project="p", resume="new") as experiment:
        assert experiment.name == "run"


def test_the_environment_says_it_too(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_DASH_RESUME", "new")
    assert [_opened(make) for _ in range(2)] == ["run", "run-2"]
    monkeypatch.setenv("ML_DASH_RESUME", "sometimes")
    with pytest.raises(InvalidValue, match=r"ML_DASH_RESUME is 'sometimes'; use one of allow, must, never, new"):
        make("run")
    with make("run", resume="must") as experiment:
        assert experiment.resumed


def _opened(make: Make) -> str:
    with make("run") as experiment:
        return experiment.name


def test_a_decorated_function_has_a_new_one_for_each_call(runs: Path) -> None:
    @ml_dash_experiment(name="sweep", project="p", local_path=runs, resume="new")
    def trial(experiment: Experiment) -> str:
        return experiment.name

    assert [trial() for _ in range(3)] == ["sweep", "sweep-2", "sweep-3"]
