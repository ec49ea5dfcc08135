"""What reaches a terminal or a pipe: colours, widths, untrusted text, and ends that are not errors."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ml_dash import Experiment

if TYPE_CHECKING:
    from tests.cli.conftest import Record, Shell

PROGRESS = re.compile("\x1b\\[([0-9;]*m|\\?25[lh]|2K|1A)|\r")  # styles, and what a bar moves with
STYLES = re.compile("\x1b\\[[0-9;]*m")
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\u2066\r\x00\x7f[bold]not bold[/bold] :smile:"
READING = (
    "ls", "show", "logs", "params", "metrics", "metrics cv/hostile loss", "metrics --plot", "files", "files --deleted",
    "diff cv/hostile cv/other", "verify", "dump", "dump --full", "rm cv/hostile --dry-run",
)  # fmt: skip


@pytest.fixture
def hostile(record: Record, tmp_path: Path) -> None:
    """An experiment that has such text wherever text may be."""
    record("other")
    (tmp_path / "plain.bin").write_text("x")
    with pytest.raises(ValueError, match="\x1b"):
        _record_hostile(tmp_path / "plain.bin")


def _record_hostile(file: Path) -> None:
    arguments: dict[str, Any] = {
        "description": HOSTILE,
        "tags": [HOSTILE],
        "folder": HOSTILE,
        "metadata": {HOSTILE: HOSTILE},
    }
    with Experiment("hostile", "cv", **arguments) as experiment:
        experiment.log(HOSTILE, metadata={HOSTILE: HOSTILE})
        experiment.log("first line\n2025-10-29 10:30:00 info  a line of its own?")
        experiment.parameters().set({HOSTILE: HOSTILE, "list": [HOSTILE]})
        experiment.metric("loss").append(**{"value": 1, HOSTILE: HOSTILE, "\x1b[31m": 2})
        experiment.file(str(file), description=HOSTILE, tags=[HOSTILE])
        raise ValueError(HOSTILE)


def _obeyed(text: str) -> list[str]:
    return re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]", text)


@pytest.mark.usefixtures("hostile")
@pytest.mark.parametrize("command", READING)
def test_untrusted_text_never_commands_a_terminal(shell: Shell, command: str) -> None:
    shown = shell.in_terminal(*command.split(), columns=200)
    assert shown.code == 0
    known = PROGRESS if command == "verify" else STYLES
    assert _obeyed(known.sub("", shown.out)) == []
    piped = shell.ok(*command.split())
    assert _obeyed(piped.out + piped.err) == []


@pytest.mark.usefixtures("hostile")
def test_untrusted_text_is_shown_as_it_is_and_not_as_markup(shell: Shell) -> None:
    shown = shell.in_terminal("params", columns=300).out
    assert "[bold]not bold[/bold] :smile:" in shown
    assert "\\x1b[2J" in shown


@pytest.mark.usefixtures("hostile")
@pytest.mark.parametrize("command", [c for c in READING if "--plot" not in c and "--full" not in c])
def test_json_is_harmless_in_a_terminal_and_exact_for_a_program(shell: Shell, command: str) -> None:
    result = shell.ok(*command.split(), "--json")
    assert _obeyed(result.out) == []
    if command == "params":
        assert result.json[HOSTILE] == HOSTILE


@pytest.mark.usefixtures("hostile")
def test_a_log_message_cannot_pose_as_two_entries(shell: Shell) -> None:
    lines = shell.ok("logs").lines
    assert lines[2].startswith("    2025-10-29")


def test_csv_is_exact_in_a_pipe_and_harmless_in_a_terminal(shell: Shell, record: Record) -> None:
    record("first", loss=())
    with Experiment("first", "cv") as experiment:
        experiment.metric("text").append(value="\x1b[31mred")
    assert "\x1b[31mred" in shell.ok("export").out
    assert "\x1b" not in shell.in_terminal("export").out


def test_colours_are_for_terminals_of_people_who_want_them(shell: Shell, record: Record) -> None:
    record("first")
    assert STYLES.search(shell.in_terminal("ls").out)
    assert not STYLES.search(shell.in_terminal("ls", env={"NO_COLOR": "1"}).out)
    assert not STYLES.search(shell.in_terminal("ls", env={"TERM": "dumb"}).out)
    assert "\x1b" not in shell.ok("ls").out
    assert "\x1b" not in shell("show", "nothing").err


def test_a_table_fits_the_terminal_and_is_whole_in_a_pipe(shell: Shell, record: Record) -> None:
    record("a-long-name-" * 4, tags=["tag " * 20])
    shown = STYLES.sub("", shell.in_terminal("ls", columns=70).out)
    assert max(map(len, shown.splitlines())) <= 70
    assert len(shell.ok("ls", env={"COLUMNS": "70"}).lines) == 2


@pytest.mark.parametrize("columns", [20, 60, 80])
def test_what_somebody_may_copy_is_never_broken(
    shell: Shell, record: Record, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    """A name wider than the terminal goes on beyond its edge: the terminal wraps that, and copies it whole."""
    name, metric, key = "a-long-name-" * 9, "a/long/metric/" * 3 + "loss", "optimizer.schedule." * 4 + "rate"
    record(name, parameters={key: "/data/" + "deep/" * 20})
    with Experiment(name, "cv") as experiment:
        experiment.metric(metric).append(acc=0.123456789, value=1e-9, step=1)
    for words, texts in {
        ("ls",): [f"cv/{name}"],
        ("ls", "--wide"): [f"cv/{name}"],
        ("metrics",): [metric, f"{metric}.acc"],
        ("params",): [key, "deep/" * 20],
        ("show",): [metric, key],
    }.items():
        lines = STYLES.sub("", shell.in_terminal(*words, columns=columns).out).splitlines()
        assert not [text for text in texts if not any(text in line for line in lines)], words
    (row,) = STYLES.sub("", shell.in_terminal("ls", "--wide", columns=columns).out).splitlines()[1:]
    assert "completed" in row


@pytest.mark.parametrize("env", [{"LC_ALL": "C"}, {"LC_ALL": "", "LANG": "C"}, {"LC_ALL": "POSIX"}])
@pytest.mark.parametrize("words", [("ls",), ("show",), ("metrics",), ("params",), ("dump",), ("verify",)])
def test_all_that_is_drawn_in_the_c_locale_is_of_ascii(
    shell: Shell, record: Record, env: dict[str, str], words: tuple[str, ...]
) -> None:
    record("first", loss=(1.0, 0.5, 0.25), parameters={"long": "value " * 40})
    assert STYLES.sub("", shell.in_terminal(*words, env=env).out).isascii()


def test_a_terminal_without_unicode_gets_codes_and_no_error(shell: Shell, record: Record) -> None:
    record("größe", loss=(1.0, 2.0))
    environment = {"PYTHONIOENCODING": "ascii"}
    assert "gr\\xf6\\xdfe" in shell.ok("ls", env=environment).out
    assert shell.ok("metrics", "--plot", env=environment).code == 0


def test_a_reader_that_goes_away_is_no_error(shell: Shell, record: Record) -> None:
    record("first", logs=tuple(map(str, range(20_000))))
    process = shell.start("logs")
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().endswith("info  0\n")
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == ""
    process.stderr.close()


def test_logs_are_followed_across_processes_until_interrupted(shell: Shell, record: Record) -> None:
    record("first", logs=("one",))
    process = shell.start("logs", "-f", "cv/first")
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        assert process.stdout.readline().endswith("one\n")
        with Experiment("first", "cv") as experiment:
            experiment.log("two")
            assert process.stdout.readline().endswith("two\n")
            experiment.log("three")
            assert process.stdout.readline().endswith("three\n")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert process.stdout.read() == ""
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()


def test_following_ends_when_nobody_reads_any_more(shell: Shell, record: Record) -> None:
    record("first", logs=("one",))
    process = shell.start("logs", "-f")
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().endswith("one\n")
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == ""
    process.stderr.close()


def test_what_was_there_is_not_followed_when_only_the_last_is_asked_for(shell: Shell, record: Record) -> None:
    record("first", logs=("one", "two"))
    process = shell.start("logs", "-f", "--last", "1", "--json")
    assert process.stdout is not None
    try:
        assert '"two"' in process.stdout.readline()
        with Experiment("first", "cv") as experiment:
            experiment.log("three")
            assert '"three"' in process.stdout.readline()
    finally:
        process.kill()
        process.communicate()


def test_usage_errors_are_told_on_stderr_with_code_2(shell: Shell) -> None:
    for arguments in (
        ["lss"],
        ["ls", "--nothing"],
        ["metrics", "a", "b", "c"],
        ["logs", "--level", "loud"],
        ["diff", "a"],
    ):
        result = shell(*arguments)
        assert result.code == 2
        assert result.out == ""
        assert "Error" in result.err
    assert "Did you mean 'ls'" in shell("lss").err


def test_no_stdout_at_all_is_no_error(shell: Shell, record: Record) -> None:
    record("first")
    command = f"exec {sys.executable} -m ml_dash ls >&-"
    done = subprocess.run(
        ["/bin/sh", "-c", command], cwd=shell.folder, env=shell.environment(), stderr=subprocess.PIPE, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_full_disk_behind_stdout_is_a_failure(shell: Shell, record: Record) -> None:
    if not Path("/dev/full").exists():
        return
    record("first", logs=tuple(map(str, range(5000))))
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "ml_dash", "logs"],
            cwd=shell.folder, env=shell.environment(), stdout=full, stderr=subprocess.PIPE, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert b"No space left" in done.stderr
    assert b"Traceback" not in done.stderr


def test_commands_load_what_they_need_and_no_more(shell: Shell, record: Record) -> None:
    """`ls` is run all day: neither rich nor the training code is loaded for a pipe."""
    record("first")
    program = "import sys; from ml_dash.cli import run; run(['ls']); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=shell.folder,
        env={**os.environ},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = done.stdout.split()
    assert [name for name in loaded if name.split(".")[0] in ("rich", "numpy", "requests")] == []
    unwanted = ("ml_dash.demo", "ml_dash.experiment", "ml_dash.reading.verify")
    assert [name for name in loaded if name.startswith(unwanted)] == []


def test_shell_completion_knows_commands_experiments_and_metrics(shell: Shell, record: Record) -> None:
    record("first")

    def completed(*words: str) -> list[str]:
        line = " ".join(["ml-dash", *words])
        environment = {"_ML_DASH_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words))}
        return [line.split(",")[1] for line in shell(env=environment).lines]

    assert completed("me") == ["metrics"]
    assert completed("show", "cv/") == ["cv/first"]
    assert completed("metrics", "cv/first", "l") == ["loss"]
    for name in ("zsh", "fish"):
        assert "_ML_DASH_COMPLETE" in shell.ok("completion", name).out


def test_a_narrow_list_drops_columns_and_keeps_names_whole(shell: Shell, record: Record) -> None:
    name = "a-name-that-somebody-wants-to-copy"
    record(name, tags=["first", "second", "third"])
    wide = STYLES.sub("", shell.in_terminal("ls", columns=140).out)
    assert all(text in wide for text in (f"cv/{name}", "first, second, third", "updated (UTC)"))
    for columns, gone in ((80, ["first, second"]), (60, ["first, second", "updated", "logs"])):
        shown = STYLES.sub("", shell.in_terminal("ls", columns=columns).out)
        assert f"cv/{name}" in shown
        assert max(map(len, shown.splitlines())) <= columns
        assert not [text for text in gone if text in shown]
        assert "completed" in shown
    assert "third" in STYLES.sub("", shell.in_terminal("ls", "--wide", columns=60).out)


@pytest.mark.parametrize("env", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}, {"LC_ALL": "", "LANG": "C"}])
def test_a_plot_in_the_c_locale_is_of_ascii(shell: Shell, record: Record, env: dict[str, str]) -> None:
    record("first", loss=(1.0, 0.5, 0.25))
    shown = shell.ok("metrics", "--plot", env=env).out
    assert shown.isascii()
    assert "\\u" not in shown
    assert "+---" in shown
    assert set(" .':") & set(shown)
