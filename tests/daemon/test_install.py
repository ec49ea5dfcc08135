"""The units that `install` writes: with the path of this installation, in the right place."""

from __future__ import annotations

import configparser
import stat
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from ml_dash_syncd import install
from ml_dash_syncd.cli import commands


def start(text: str) -> str:
    parsed = configparser.RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#",))
    parsed.read_string(text)
    return parsed["Service"]["ExecStart"]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation in a folder of its own."""
    folder = tmp_path / "env" / "bin"
    folder.mkdir(parents=True)
    (folder / "ml-dash-syncd").write_text("#!/bin/sh\n")
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    return folder / "ml-dash-syncd"


@pytest.mark.parametrize("name", [install.USER_UNIT, install.SYSTEM_UNIT])
def test_a_unit_names_this_installation(script: Path, name: str) -> None:
    assert start(install.unit(name)) == f"{script} run"


def test_a_path_that_means_something_to_systemd_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "50% of $HOME"
    folder.mkdir()
    (folder / "ml-dash-syncd").touch()
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    assert start(install.unit(install.USER_UNIT)) == f'"{tmp_path}/50%% of $$HOME/ml-dash-syncd" run'


def test_without_a_script_the_module_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(sys, "argv", ["x"])
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    assert start(install.unit(install.USER_UNIT)) == f"{tmp_path}/python -m ml_dash_syncd run"


def test_print_shows_the_unit_and_writes_nothing(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    done = CliRunner().invoke(commands, ["install", "--user", "--print"])
    assert (done.exit_code, done.stdout) == (0, install.unit(install.USER_UNIT))
    assert not (tmp_path / "config").exists()


def test_the_users_unit_is_written(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    done = CliRunner().invoke(commands, ["install", "--user"])
    path = tmp_path / "config" / "systemd" / "user" / install.USER_UNIT
    assert done.exit_code == 0
    assert path.read_text() == install.unit(install.USER_UNIT)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert f"wrote {path}" in done.stdout
    assert "systemctl --user daemon-reload" in done.stdout


def test_the_units_for_all_are_where_systemd_looks() -> None:
    assert install.place(install.SYSTEM_UNIT) == Path("/etc/systemd/system/ml-dash-syncd@.service")


def test_one_has_to_say_for_whom() -> None:
    done = CliRunner().invoke(commands, ["install"])
    assert done.exit_code == 2
    assert "--user or --system" in done.output
