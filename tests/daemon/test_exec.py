"""`ml-dash-syncd exec`: whatever happens to the sending, the job runs, and its end is ours."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ml_dash import Experiment
from ml_dash.disk.lock import hold
from ml_dash.sync import register
from ml_dash_syncd import exec_job
from ml_dash_syncd.settings import Settings

from .conftest import WAIT_S, Home

EXEC = [sys.executable, "-m", "ml_dash_syncd", "exec", "--"]


def test_a_state_folder_that_cannot_be_written_does_not_keep_the_job_from_running(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home.folder / "file").touch()
    for name in ("XDG_STATE_HOME", "HOME", "XDG_RUNTIME_DIR", "TMPDIR"):
        monkeypatch.setenv(name, str(home.folder / "file"))
    done = home.syncd("exec", "--", "/bin/sh", "-c", "echo ran; exit 5")
    assert (done.returncode, done.stdout) == (5, "ran\n")
    assert "nothing is sent while the job runs" in done.stderr
    assert "Traceback" not in done.stderr


def test_trouble_with_sending_is_not_the_jobs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In this process: the job is waited for, also if our own code fails."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    before = {number: signal.getsignal(number) for number in signal.valid_signals() if number < 32}

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no disk")

    monkeypatch.setattr(exec_job, "_send_while_running", fail)
    monkeypatch.setattr(exec_job, "once", refuse)
    try:
        command = ["/bin/sh", "-c", f"sleep 0.2; touch {tmp_path / 'ran'}; exit 3"]
        assert exec_job.run_job(command, Settings()) == (3, [])
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)
    assert (tmp_path / "ran").exists()


def test_with_another_daemon_it_sends_what_is_left_at_the_end(home: Home) -> None:
    register.lock_path().parent.mkdir(parents=True)
    held = hold(register.lock_path())
    assert held is not None
    home.record()
    try:
        done = home.syncd("exec", "--", "/bin/sh", "-c", "exit 4")
    finally:
        held.release()
    assert done.returncode == 4, done.stderr
    assert home.logs() == 3


def test_the_job_is_sent_while_it_runs(home: Home) -> None:
    program = (
        "import sys\n"
        "from ml_dash import Experiment\n"
        f"with Experiment('one', 'p', local_path={str(home.store)!r}, remote={home.url!r}, "
        f"user_name={home.user!r}) as experiment:\n"
        "    experiment.log('0')\n"
        "    sys.exit(0 if experiment.wait_synced(20) else 9)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = home.syncd("exec", "--", sys.executable, "-c", program, env=environment)
    assert done.returncode == 0, done.stderr
    assert home.logs() == 1


def test_a_job_does_not_tell_of_what_is_sent_after_it(home: Home) -> None:
    register.lock_path().parent.mkdir(parents=True)
    held = hold(register.lock_path())
    assert held is not None
    program = (
        "from ml_dash import Experiment\n"
        f"with Experiment('one', 'p', local_path={str(home.store)!r}, remote={home.url!r}, "
        f"user_name={home.user!r}) as experiment:\n"
        "    experiment.log('0')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "ML_DASH_QUIET": "0"}
    try:
        done = home.syncd("exec", "--", sys.executable, "-c", program, env=environment)
    finally:
        held.release()
    assert done.returncode == 0, done.stderr
    assert "ml-dash: p/one -> " in done.stderr
    assert "not on" not in done.stderr
    assert home.logs() == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_job_that_is_ended_by_a_signal_ends_us_with_128_and_its_number(home: Home, number: signal.Signals) -> None:
    with subprocess.Popen(
        [*EXEC, "/bin/sh", "-c", "echo up; exec sleep 60"], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(number)
        assert process.wait(WAIT_S) == 128 + number


def test_signals_that_come_before_the_job_are_kept_for_it() -> None:
    forwarding = exec_job._Forwarding()
    forwarding._forward(signal.SIGTERM, None)
    with subprocess.Popen(["/bin/sleep", "60"]) as job:
        forwarding.job = job
        forwarding.pass_on()
        assert job.wait(WAIT_S) == -signal.SIGTERM


def test_under_nohup_the_job_goes_on(home: Home) -> None:
    program = "import signal, sys; sys.exit(signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN)"
    command = ["nohup", *EXEC, sys.executable, "-c", program]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=WAIT_S, check=False, cwd=home.folder
    )
    assert done.returncode == 0, done.stderr


def test_what_cannot_be_started_is_told_as_by_a_shell(home: Home) -> None:
    (home.folder / "text").write_text("no program")
    done = home.syncd("exec", "--", str(home.folder / "text"))
    assert done.returncode == 126
    assert "cannot be started" in done.stderr


def test_a_second_signal_while_it_sends_leaves_the_jobs_exit_code(home: Home) -> None:
    """The server takes connections and answers nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with Experiment("one", "p", local_path=home.folder / "runs") as experiment:
            experiment.log("kept")
            journal = experiment.path / ".journal"
        register.write(register.Registration(str(journal), url, "alice"))
        started = subprocess.Popen([*EXEC, "/bin/sh", "-c", "exit 7"], stderr=subprocess.PIPE, text=True)
        silent.settimeout(WAIT_S)
        connection, _ = silent.accept()
        with connection:
            until = time.monotonic() + WAIT_S
            while started.poll() is None and time.monotonic() < until:
                started.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    started.wait(0.05)
        _, said = started.communicate(timeout=WAIT_S)
    assert (started.returncode, "ending at once" in said) == (7, True)
