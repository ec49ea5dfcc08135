"""Replacing a file: the old content or the new, readable by those who may, and nothing left behind."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from ml_dash.disk import durable
from ml_dash.disk.durable import replace_file

CONTENT = b"new"


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("private", [False, True])
def test_it_holds_the_new_content_and_nothing_is_left_beside_it(tmp_path: Path, sync: bool, private: bool) -> None:
    path = tmp_path / "file"
    for content in (b"old", CONTENT):
        replace_file(path, content, sync=sync, private=private)
    assert path.read_bytes() == CONTENT
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_a_private_file_was_never_readable_by_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    write_all = durable.write_all

    def looking(fd: int, data: bytes) -> None:
        seen.append(stat.S_IMODE(os.fstat(fd).st_mode))
        write_all(fd, data)

    monkeypatch.setattr(durable, "write_all", looking)
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o644)
    replace_file(path, CONTENT, private=True)
    assert seen == [0o600]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_name_as_long_as_it_may_be(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    replace_file(path, CONTENT)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_comes_between_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def refuse(fd: int, data: bytes) -> None:
        raise error

    monkeypatch.setattr(durable, "write_all", refuse)
    with pytest.raises(type(error)):
        replace_file(path, CONTENT)
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"old", ["file"])
