"""The uploader's notes about what a server has: whole or not there, and never believed when they are odd."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ml_dash.disk import durable
from ml_dash.sync import cursor as cursors
from ml_dash.sync import registrations
from ml_dash.sync.cursor import Cursor, Trouble

JOURNAL = "ab" * 16


def filled() -> Cursor:
    cursor = Cursor(
        JOURNAL,
        {"one.seg": 184, "two.seg": 0},
        {"blob-b", "blob-a"},
        {f"{'cd' * 16}:{'ef' * 16}:184"},
        {"three.seg": "refused: not a segment"},
    )
    cursor.set_trouble("unreachable", "no network")
    return cursor


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "cursors" / "key.json"
    cursor = filled()
    cursors.save(path, cursor)
    found = cursors.load(path, JOURNAL)
    assert found is not None
    assert (found.segments, found.blobs, found.deaths, found.parked) == (
        cursor.segments, cursor.blobs, cursor.deaths, cursor.parked
    )  # fmt: skip
    # That of another process, which has it no more once something succeeds here.
    assert found.trouble == cursor.trouble
    assert found.set_trouble(None)
    assert [entry.name for entry in path.parent.iterdir()] == ["key.json"]
    if os.name == "posix":
        assert path.stat().st_mode & 0o077 == 0


def test_the_library_reads_what_the_uploader_wrote(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    registration = registrations.Registration("/data/run/.journal", "http://localhost:1", "alice")
    cursors.save(registrations.cursors_folder() / f"{registration.key}.json", filled())
    found = registrations.cursor_of(registration)
    assert found is not None
    assert dict(found.segments) == {"one.seg": 184, "two.seg": 0}
    assert found.blobs == {"blob-a", "blob-b"}
    assert dict(found.parked) == {"three.seg": "refused: not a segment"}
    assert found.trouble is not None
    assert (found.trouble.kind, found.trouble.text) == ("unreachable", "no network")


@pytest.mark.parametrize(
    ("field", "value"), [("version", 2), ("journal", "00" * 16), ("segments", None), ("blobs", {"blob-a": 1})]
)
def test_what_the_uploader_does_not_believe_the_library_does_not_believe(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, field: str, value: Any
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    registration = registrations.Registration("/data/run/.journal", "http://localhost:1", "alice", id=JOURNAL)
    path = registrations.cursors_folder() / f"{registration.key}.json"
    cursors.save(path, filled())
    assert registrations.cursor_of(registration) is not None
    path.write_text(json.dumps({**json.loads(path.read_bytes()), field: value}))
    assert (cursors.load(path, JOURNAL), registrations.cursor_of(registration)) == (None, None)


def test_none_where_there_is_none(tmp_path: Path) -> None:
    assert cursors.load(tmp_path / "key.json", JOURNAL) is None
    (tmp_path / "folder.json").mkdir()
    assert cursors.load(tmp_path / "folder.json", JOURNAL) is None


def test_one_of_another_journal_is_none(tmp_path: Path) -> None:
    cursors.save(tmp_path / "key.json", filled())
    assert cursors.load(tmp_path / "key.json", "00" * 16) is None


def test_cut_off_at_any_byte_it_is_none(tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    cursors.save(path, filled())
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        assert cursors.load(path, JOURNAL) is None


def test_a_flipped_bit_raises_nothing(tmp_path: Path) -> None:
    """What it says then may be wrong: so a server is asked before any of it is used."""
    path = tmp_path / "key.json"
    cursors.save(path, filled())
    content = path.read_bytes()
    for position in range(len(content)):
        for bit in range(8):
            changed = bytearray(content)
            changed[position] ^= 1 << bit
            path.write_bytes(changed)
            found = cursors.load(path, JOURNAL)
            assert found is None or all(length >= 0 for length in found.segments.values())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 2),
        ("version", None),
        ("journal", 7),
        ("segments", None),
        ("segments", ["one.seg"]),
        ("segments", {"one.seg": -1}),
        ("segments", {"one.seg": True}),
        ("segments", {"one.seg": 1.5}),
        ("segments", {"one.seg": "184"}),
        ("blobs", {"blob-a": 1}),
        ("blobs", [1]),
        ("blobs", None),
        ("deaths", "all"),
        ("deaths", [None]),
        ("parked", []),
    ],
)
def test_what_cannot_be_is_none(tmp_path: Path, field: str, value: Any) -> None:
    path = tmp_path / "key.json"
    cursors.save(path, filled())
    document = json.loads(path.read_bytes())
    path.write_text(json.dumps({**document, field: value}))
    assert cursors.load(path, JOURNAL) is None


@pytest.mark.parametrize("content", [b"null", b"[]", b"3", b"[" * 100_000, b"\xff\xfe", b'{"version": 1}'])
def test_other_content_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key.json"
    path.write_bytes(content)
    assert cursors.load(path, JOURNAL) is None


def test_a_disk_that_refuses_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key.json"
    cursors.save(path, filled())
    content = path.read_bytes()

    def refuse(fd: int, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "write_all", refuse)
    with pytest.raises(OSError, match="No space left"):
        cursors.save(path, Cursor(JOURNAL))
    assert path.read_bytes() == content
    assert [entry.name for entry in tmp_path.iterdir()] == ["key.json"]


_SAVES = """
import sys
from pathlib import Path
from ml_dash.sync import cursor as cursors
cursors.save(Path(sys.argv[1]), cursors.Cursor("ab" * 16, {"one.seg": 200}))
"""


@pytest.mark.parametrize(("point", "length"), [("cursor-before", 184), ("cursor-renamed", 200)])
def test_killed_while_saving(tmp_path: Path, point: str, length: int) -> None:
    path = tmp_path / "key.json"
    cursors.save(path, filled())
    done = subprocess.run(
        [sys.executable, "-c", _SAVES, str(path)], env={**os.environ, "ML_DASH_FAIL": f"{point}:1:kill"},
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == -9
    found = cursors.load(path, JOURNAL)
    assert found is not None
    assert found.segments["one.seg"] == length


def test_trouble_is_told_once_and_keeps_its_beginning() -> None:
    cursor = Cursor(JOURNAL)
    assert not cursor.set_trouble(None)
    assert cursor.set_trouble("unreachable", "no network")
    assert cursor.trouble is not None
    cursor.trouble = Trouble("unreachable", "no network", 1000.0)
    assert not cursor.set_trouble("unreachable", "no network")
    assert cursor.set_trouble("unreachable", "no answer in time")
    assert cursor.trouble == Trouble("unreachable", "no answer in time", 1000.0)
    assert cursor.set_trouble("login", "not accepted")
    assert cursor.trouble.since is not None
    assert cursor.trouble.since > 1000.0
    assert cursor.set_trouble(None)
    assert cursor.trouble is None
