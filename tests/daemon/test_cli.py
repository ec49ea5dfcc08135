"""The commands, as processes: what they print and how they end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from ml_dash.sync import register
from ml_dash.sync.register import Registration
from ml_dash_syncd.cli import commands, invoke

from .conftest import Home


def test_help_names_the_commands() -> None:
    done = CliRunner().invoke(commands, ["--help"])
    assert done.exit_code == 0
    names = ("run", "once", "exec", "status", "check-config", "forget", "install")
    assert all(f"  {name} " in done.stdout for name in names)


def test_a_command_that_does_not_exist_is_an_error_and_not_taken_for_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["stauts"]) == 2
    assert "No such command 'stauts'" in capsys.readouterr().err


def test_options_alone_are_those_of_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["--listen", "70000"]) == 2
    assert "ml-dash-syncd run" in capsys.readouterr().err


def test_wrong_settings_end_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "syncd.toml"
    path.write_text("stores = 3\n")
    for command in ("run", "once", "status", "check-config"):
        assert invoke([command, "--config", str(path)]) == 2
        assert "stores is 3; give a list of folders" in capsys.readouterr().err
    assert invoke(["exec", "--config", str(path), "--", "touch", str(tmp_path / "ran")]) == 2
    assert not (tmp_path / "ran").exists(), "a mistake is told at once, not at the end of the job"


def test_once_sends_only_what_was_asked_for(home: Home) -> None:
    home.record("a")
    home.record("b")
    key = next(one.key for one in register.registrations() if "/b/" in one.journal)
    assert home.syncd("once", "--registered", key).returncode == 0
    assert (home.logs("a"), home.logs("b")) == (0, 3)


def test_once_with_a_key_of_nothing_is_an_error(home: Home) -> None:
    done = home.syncd("once", "--registered", "0" * 32)
    assert done.returncode == 2
    assert "nothing is registered as 000" in done.stderr


def test_status_of_a_reader_that_leaves(home: Home) -> None:
    home.record()
    done = subprocess.run(
        f"{sys.executable} -m ml_dash_syncd status --json | true", shell=True, capture_output=True, text=True,
        timeout=30, check=False,
    )  # fmt: skip
    assert done.stderr == ""


def test_an_experiment_that_was_removed_leaves_nothing_to_send(home: Home) -> None:
    home.record("kept")
    home.record("removed")
    shutil.rmtree(home.store / "p" / "removed")
    assert home.syncd("once").returncode == 0
    shutil.rmtree(home.store)
    done = home.syncd("once")
    assert done.returncode == 3, "that may be a disk that is away"
    assert "gone from this machine" in done.stderr


def test_check_config_says_where_each_setting_is_from(home: Home) -> None:
    config = home.folder / "syncd.toml"
    config.write_text(f'stores = ["{home.store}"]\nremote = "{home.url}"\n')
    done = home.syncd("check-config", "--config", str(config), env={**os.environ, "ML_DASH_USER_NAME": "bob"})
    assert done.returncode == 0, done.stderr
    for line in (f"stores: from {config}", f"remote: from {config}", "user: from ML_DASH_USER_NAME"):
        assert line in done.stdout


def test_forget_takes_back_what_names_an_experiment_or_a_server(home: Home, tmp_path: Path) -> None:
    wrong, right = "http://127.0.0.1:1", "http://127.0.0.1:2"
    paths = [tmp_path / "runs" / "p" / name / ".journal" for name in ("a", "b")]
    for path in paths:
        path.mkdir(parents=True)
        for url in (wrong, right):
            register.write(Registration(str(path), url, "alice"))
    stuck = register.registrations()[0]
    register.cursors_folder().mkdir(parents=True)
    trouble = {"kind": "unreachable", "text": "nobody answers", "since": time.time() - 2 * 3600 - 60}
    cursor = {"version": 1, "journal": "", "segments": {}, "blobs": [], "deaths": [], "parked": {}, "trouble": trouble}
    (register.cursors_folder() / f"{stuck.key}.json").write_text(json.dumps(cursor))
    shown = home.syncd("status").stdout
    assert f"no answer for 2 h. If the URL is wrong: ml-dash-syncd forget {stuck.remote}" in shown
    assert shown.count("no answer") == 1
    done = home.syncd("forget", wrong + "/")
    assert (done.returncode, done.stdout.count("is no longer sent to http://127.0.0.1:1")) == (0, 2)
    assert {one.remote for one in register.registrations()} == {right}
    assert home.syncd("forget", "p/a").returncode == 0
    assert home.syncd("forget", str(paths[1].parent)).returncode == 0
    assert register.registrations() == []
    assert all(path.is_dir() for path in paths)
    done = home.syncd("forget", "p/a")
    assert done.returncode == 1
    assert "nothing is registered for p/a" in done.stderr
