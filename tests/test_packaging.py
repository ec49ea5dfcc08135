"""What a user installs: the wheel's contents, that its declared requirements suffice, and that it runs."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import ml_dash

from .installed import ROOT, build_wheel, install, metadata_of, run

EXTRAS = {"server", "mongo", "s3", "dev", "all"}

TRAIN = """
from ml_dash import Experiment
with Experiment(name="first", project="installed") as experiment:
    experiment.metric("loss").append(value=0.5, step=0)
    print(experiment.metric("loss").read()["data"][0]["data"]["value"])
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    return build_wheel(folder)


def test_wheel_holds_the_package_and_its_metadata_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"ml_dash", "ml_dash_syncd"}
    assert len(tops) == 3
    shipped = {name for name in names if not name.split("/")[0].endswith(".dist-info")}
    assert {"ml_dash/py.typed", "ml_dash_syncd/py.typed", "ml_dash_syncd/units/ml-dash-syncd.service"} <= shipped
    assert {"ml_dash/dashboard/index.html", "ml_dash/dashboard/vendor/VENDOR.json"} <= shipped
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    in_tree = {
        path.relative_to(parent).as_posix()
        for parent, package in ((ROOT, "ml_dash"), (ROOT / "daemon", "ml_dash_syncd"))
        for path in (parent / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert shipped == in_tree


def test_source_archive_holds_the_dashboard(tmp_path: Path) -> None:
    program = f"import hatchling.build as b; print(b.build_sdist({str(tmp_path)!r}))"
    name = run([sys.executable, "-c", program], ROOT).split()[-1]
    with tarfile.open(tmp_path / name) as archive:
        held = {member.partition("/")[2] for member in archive.getnames()}
    folder = ROOT / "ml_dash" / "dashboard"
    files = {path.relative_to(ROOT).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files
    assert files <= held


def test_metadata_says_what_the_documentation_says(wheel: Path) -> None:
    metadata = metadata_of(wheel)
    assert metadata["Name"] == "ml-dash"
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Version"] == ml_dash.__version__
    assert set(metadata.get_all("Provides-Extra") or []) == EXTRAS
    assert f"## {metadata['Version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_extra_all_holds_the_other_extras_of_a_user(wheel: Path) -> None:
    requirements = metadata_of(wheel).get_all("Requires-Dist") or []

    def of(extra: str) -> set[str]:
        return {r.split(";")[0].strip() for r in requirements if f"extra == '{extra}'" in r.replace('"', "'")}

    assert of("server")
    assert of("all") == of("server") | of("mongo") | of("s3")


def test_on_an_older_python_nothing_is_required_that_pip_could_miss_before_it_compares_the_python(wheel: Path) -> None:
    """pip before 23.1 looks for the requirements first, and would name one of them instead of the Python it needs."""
    metadata = metadata_of(wheel)
    assert metadata["Requires-Python"] == ">=3.10"
    older = {"python_version": "3.9", "python_full_version": "3.9.18"}
    for text in metadata.get_all("Requires-Dist") or []:
        requirement = Requirement(text)
        for extra in EXTRAS - {"dev"}:
            needed = requirement.marker is None or requirement.marker.evaluate({**older, "extra": extra})
            assert not needed or requirement.name == "ml-dash", text


def test_the_editable_install_costs_a_start_of_python_nothing(tmp_path: Path) -> None:
    program = "import sys; before = set(sys.modules); import ml_dash, ml_dash_syncd; print(*before & {'re', 'inspect'})"
    assert run([sys.executable, "-I", "-c", program], tmp_path).strip() == ""


def test_wheel_runs_in_an_environment_that_has_only_what_it_declares(wheel: Path, tmp_path: Path) -> None:
    """Installed by pip, offline: what it requires is copied over from here, and nothing else."""
    python = install(wheel, tmp_path / "venv")
    assert "No broken requirements" in run([str(python), "-m", "pip", "check"], tmp_path)

    work = tmp_path / "work"
    work.mkdir()
    assert run([str(python), "-I", "-c", TRAIN], work).strip() == "0.5"
    command = str(python.parent / "ml-dash")
    assert "first" in run([command, "ls"], work)
    run([command, "verify", "installed/first"], work)
    assert "first" in run([str(python), "-m", "ml_dash", "ls"], work)

    # The daemon comes along, and its unit names the program that was installed, not the one of the repository.
    daemon = python.parent / "ml-dash-syncd"
    assert f"ExecStart={daemon} run\n" in run([str(daemon), "install", "--user", "--print"], work)
    # The server needs its extra, and says so.
    done = subprocess.run(
        [command, "server", "--port", "0"], cwd=work, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert "ml-dash[server]" in done.stderr
    assert "Traceback" not in done.stderr
