"""`verify`, `rebuild`, `dump` and `rm` on experiments that are whole, torn, damaged and alive."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ml_dash import Experiment
from ml_dash.core.frames import LengthCrcs, encode_frame, header_size

if TYPE_CHECKING:
    from tests.cli.conftest import Record, Shell

VICTIM = """
import os, signal
from ml_dash import Experiment
from ml_dash.core.frames import LengthCrcs, encode_frame, header_size
experiment = Experiment("killed", "cv").open()
for step in range(100):
    experiment.metric("loss").append(value=1 / (step + 1), step=step)
os.kill(os.getpid(), signal.SIGKILL)
"""


def _segment(folder: Path) -> Path:
    return sorted((folder / ".journal/segments").glob("*.seg"))[-1]


def _flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x10
    path.chmod(0o644)
    path.write_bytes(content)


def _tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and ".journal" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def killed(shell: Shell) -> Path:
    """An experiment whose process was killed, and that nobody has read since."""
    done = subprocess.run([sys.executable, "-c", VICTIM], cwd=shell.folder, env=shell.environment(), check=False)
    assert done.returncode == -signal.SIGKILL
    return shell.folder / ".ml-dash/cv/killed"


def test_what_is_whole_verifies(shell: Shell, record: Record) -> None:
    record("first", files={"a.bin": "aa"})
    result = shell.ok("verify", "cv/first")
    assert result.out.startswith("cv/first: intact; ")
    report = shell.ok("verify", "--json").json
    assert (report["ok"], report["damaged"], report["findings"], report["blobs"]) == (True, False, [], 1)


def test_damage_ends_with_code_4_and_says_where(shell: Shell, record: Record) -> None:
    folder = record("first", loss=tuple(map(float, range(50))))
    _flip(_segment(folder), _segment(folder).stat().st_size // 2)
    result = shell("verify")
    assert result.code == 4
    assert "DAMAGED" in result.out
    assert _segment(folder).name in result.out
    report = shell("verify", "--json")
    assert report.code == 4
    assert {finding["kind"] for finding in report.json["findings"]} & {"damaged", "gap"}


def test_a_changed_file_content_is_damage(shell: Shell, record: Record) -> None:
    folder = record("first", files={"a.bin": "content"})
    (blob,) = (folder / ".journal/blobs").iterdir()
    _flip(blob, 3)
    result = shell("verify", "--json")
    assert result.code == 4
    assert "changed-blob" in [finding["kind"] for finding in result.json["findings"]]


def test_released_content_is_told_and_is_no_damage(shell: Shell, record: Record) -> None:
    record("first", files={"a.bin": "one"})
    record("first", files={"a.bin": "two"})
    result = shell.ok("verify")
    assert "1 replaced or deleted file was released" in result.out
    assert [finding["kind"] for finding in shell.ok("verify", "--json").json["findings"]] == ["released"]


def test_every_experiment_is_verified_with_all(shell: Shell, record: Record) -> None:
    record("good")
    folder = record("bad", loss=tuple(map(float, range(50))))
    _flip(_segment(folder), _segment(folder).stat().st_size // 2)
    result = shell("verify", "--all", "--json")
    assert result.code == 4
    assert {report["name"]: report["damaged"] for report in result.json} == {"good": False, "bad": True}
    assert shell("verify", "good").code == 0
    assert shell("verify", "good", "--all").code == 2


def test_a_killed_run_is_whole_and_interrupted(shell: Shell, killed: Path) -> None:
    assert shell.ok("verify").out.startswith("cv/killed: intact")
    (entry,) = shell.ok("ls", "--json").json
    assert (entry["status"], entry["counts"]["points"]) == ("interrupted", 100)


def test_reading_a_killed_run_brings_its_folder_up_to_date(shell: Shell, killed: Path) -> None:
    assert shell.ok("metrics", "cv/killed", "loss", "--json").json["totalDataPoints"] == 100
    assert len((killed / "metrics/loss/data.jsonl").read_text().splitlines()) == 100
    assert '"interrupted"' in (killed / "experiment.json").read_text()


def test_a_torn_tail_is_told_and_is_no_damage(shell: Shell, killed: Path) -> None:
    segment = _segment(killed)
    with segment.open("rb+") as file:
        file.truncate(segment.stat().st_size - 5)
    report = shell.ok("verify", "--json").json
    assert [finding["kind"] for finding in report["findings"]] == ["torn"]
    assert shell.ok("metrics", "cv/killed", "loss", "--json").json["totalDataPoints"] == 99
    assert shell.ok("dump", "--json").json_lines[-1]["what"] == "torn tail"


def test_a_read_only_store_is_read_from_memory(shell: Shell, killed: Path) -> None:
    """Root may write anywhere, so the folder cannot be made: a file stands in its place."""
    for part in ("logs", "metrics", "files"):
        shutil.rmtree(killed / part, ignore_errors=True)
        (killed / part).write_text("in the way")
    assert shell.ok("metrics", "cv/killed", "loss", "--json").json["totalDataPoints"] == 100
    assert shell.ok("ls", "--json").json[0]["status"] == "interrupted"


def test_rebuild_makes_the_same_bytes_again(shell: Shell, record: Record) -> None:
    folder = record("first", files={"a.bin": "aa"}, parameters={"lr": 0.1})
    before = _tree(folder)
    for part in folder.iterdir():
        if part.name != ".journal":
            shutil.rmtree(part) if part.is_dir() else part.unlink()
    assert "rebuilt from" in shell.ok("rebuild", "cv/first").out
    assert _tree(folder) == before
    assert shell.ok("verify").code == 0


def test_rebuild_mends_a_folder_that_was_edited(shell: Shell, record: Record) -> None:
    folder = record("first")
    before = _tree(folder)
    (folder / "metrics/loss/data.jsonl").write_text("rubbish\n")
    assert "projection" in [f["kind"] for f in shell("verify", "--json").json["findings"]]
    shell.ok("rebuild")
    assert _tree(folder) == before


def test_dump_shows_frames_and_gaps(shell: Shell, record: Record) -> None:
    folder = record("first", loss=tuple(map(float, range(50))))
    segment = _segment(folder)
    header, *frames = shell.ok("dump", "--json").json_lines
    assert header["what"] == "header"
    assert (header["project"], header["name"], header["number"]) == ("cv", "first", 0)
    assert [frame["sequence"] for frame in frames] == list(range(len(frames)))
    assert {"open", "log", "point", "close"} <= {frame["kind"] for frame in frames}
    assert frames[0]["offset"] == header["size"]
    assert frames[-1]["offset"] + frames[-1]["size"] == segment.stat().st_size
    _flip(segment, frames[20]["offset"] + 10)
    damaged = shell.ok("dump", str(segment), "--json").json_lines
    (gap,) = (entry for entry in damaged if entry["what"] == "gap")
    assert (gap["offset"], gap["size"]) == (frames[20]["offset"], frames[20]["size"])
    assert len(damaged) == len(frames) + 1
    assert len(shell.ok("dump", "--limit", "3").lines) == 1 + 1 + 3


def test_dump_shows_what_lies_in_a_blob(shell: Shell, record: Record) -> None:
    record("first", logs=("x" * (2 << 20),))
    (entry,) = (entry for entry in shell.ok("dump", "--json").json_lines if entry.get("kind") == "log")
    assert set(entry["body"]) == {"blob", "size"}


def test_a_newer_format_is_refused_and_not_taken_for_damage(shell: Shell, record: Record) -> None:
    segment = _segment(record("first"))
    content = segment.read_bytes()
    size = header_size(content)
    header = content[:8] + b"\x02\x00" + content[10 : size - 4]
    crc = zlib.crc32(header)
    newer = header + crc.to_bytes(4, "little")
    while size < len(content):
        (length,) = struct.unpack_from("<I", content, size)
        newer += encode_frame(content[size + 8 : size + 8 + length], LengthCrcs(crc))
        size += 8 + length
    segment.write_bytes(newer)
    result = shell("dump", str(segment))
    assert result.code == 1
    assert "upgrade" in result.err


def test_frames_behind_a_damaged_header_are_shown(shell: Shell, record: Record) -> None:
    segment = _segment(record("first"))
    before = shell.ok("dump", str(segment), "--json").json_lines
    _flip(segment, 2)
    header, *frames = shell.ok("dump", str(segment), "--json").json_lines
    assert header["what"] == "damaged header"
    assert frames == before[1:]
    assert shell("verify").code == 4


def test_rm_asks_and_removes_journal_and_folder(shell: Shell, record: Record) -> None:
    folder = record("first")
    other = record("second")
    assert shell("rm").code == 2
    refused = shell("rm", "first")
    assert refused.code == 2
    assert "--yes" in refused.err
    assert shell.ok("rm", "first", "--dry-run").out.startswith("would remove cv/first: ")
    assert shell.in_terminal("rm", "first", typed="n\n").code == 1
    assert folder.exists()
    assert shell.in_terminal("rm", "first", typed="y\n").code == 0
    assert not folder.exists()
    assert other.exists()
    assert shell("show", "first").code == 1


def test_rm_takes_several_and_none_if_one_is_unknown(shell: Shell, record: Record) -> None:
    folders = [record("first"), record("second", local_prefix="root", local_path="journals")]
    assert shell("rm", "first", "nothing", "--yes").code == 1
    assert all(folder.exists() for folder in folders)
    (removed,) = shell.ok("rm", "first", "first", "--yes", "--json").json
    assert (removed["name"], removed["removed"]) == ("first", True)
    shell.ok("rm", "root/cv/second", "--yes")
    assert not any(folder.exists() for folder in folders)
    assert not (shell.folder / "root/journals/cv").exists()


def test_rm_refuses_while_a_writer_lives(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Experiment("alive", "cv") as experiment:
        result = shell("rm", "alive", "--yes")
        assert result.code == 1
        assert "being written" in result.err
        experiment.log("still here")
    shell.ok("rm", "alive", "--yes")
    assert not experiment.path.exists()


def test_a_question_without_an_answer_removes_nothing(shell: Shell, record: Record) -> None:
    folder = record("first")
    end_of_input = "\x04"
    assert shell.in_terminal("rm", "first", typed=end_of_input).code == 130
    assert folder.exists()


def test_verify_of_a_live_run_finds_nothing_wrong(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Experiment("alive", "cv") as experiment:
        for step in range(1000):
            experiment.metric("loss").append(value=1.0, step=step)
        os.sync()
        assert shell.ok("verify", "--json").json["findings"] == []
        assert shell.ok("ls", "--json", "--status", "running").json[0]["counts"]["points"] == 1000
