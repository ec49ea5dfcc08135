"""Names of segments and blobs, and how a journal comes to be."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_dash.errors import ForeignFolder, JournalError
from ml_dash.journal.segment import (
    JOURNAL,
    SEGMENTS,
    SegmentFolder,
    SegmentName,
    create_journal,
    list_segments,
    make_store,
    parse_blob,
    parse_name,
    read_identity,
    refuse_foreign,
)

NAMES = st.builds(
    SegmentName,
    created_ns=st.integers(0, 10**20 - 1),
    writer=st.binary(min_size=16, max_size=16).map(bytes.hex),
    n=st.integers(0, 999_999),
)


@given(NAMES)
def test_a_name_is_read_as_it_was_written(name: SegmentName) -> None:
    assert parse_name(str(name)) == name


@given(st.lists(NAMES))
def test_names_sort_as_their_texts_do(names: list[SegmentName]) -> None:
    assert [str(name) for name in sorted(names)] == sorted(map(str, names))


@pytest.mark.parametrize(
    "text", ["", "x.seg", "1-2-3.seg", f"{1:020d}-{'A' * 32}-000000.seg", f"{1:020d}-{'a' * 32}-000000.lock"]
)
def test_other_files_are_no_segments(text: str) -> None:
    assert parse_name(text) is None


@pytest.mark.parametrize(
    "text", ["", "../x", "a" * 64, f"{'a' * 64}-{'b' * 32}", f"{'a' * 64}-{'b' * 32}-x", f"{'A' * 64}-{'b' * 32}-1"]
)
def test_other_files_are_no_blobs(text: str) -> None:
    assert parse_blob(text) is None


def test_segments_are_listed_oldest_first_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / SEGMENTS
    folder.mkdir()
    names = [SegmentName(5, "aa" * 16, 1), SegmentName(5, "aa" * 16, 0), SegmentName(4, "bb" * 16, 0)]
    for name in names:
        (folder / str(name)).touch()
    (folder / names[0].lock).touch()
    (folder / str(SegmentName(1, "cc" * 16, 0))).mkdir()
    (folder / str(SegmentName(2, "cc" * 16, 0))).symlink_to(folder / str(names[0]))
    assert [name for name, _ in list_segments(tmp_path)] == [names[2], names[1], names[0]]
    assert list_segments(tmp_path / "nowhere") == []


def test_of_many_that_make_a_journal_at_once_one_does(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: create_journal(tmp_path / "cv/run", "cv", "run", sync=True), range(16)))
    assert len({header.journal for header in made}) == 1
    assert read_identity(tmp_path / "cv/run" / JOURNAL) == made[0]
    assert os.listdir(tmp_path / "cv/run") == [JOURNAL]


def test_whose_a_journal_is_a_segment_tells_where_order_is_lost(tmp_path: Path) -> None:
    from tests.journals import JournalFixture

    desk = JournalFixture(tmp_path)
    desk.pen().die()
    (desk.journal / "order").unlink()
    found = read_identity(desk.journal)
    assert (found.journal, found.project, found.name) == (desk.identity.journal, "cv", "run")
    shutil.rmtree(desk.journal / SEGMENTS)
    with pytest.raises(JournalError, match="does not say which experiment"):
        read_identity(desk.journal)


def test_a_segment_is_never_made_over_another(tmp_path: Path) -> None:
    identity = create_journal(tmp_path, "cv", "run", sync=False)
    folder = SegmentFolder(tmp_path / JOURNAL, identity)
    folder.open()
    os.close(folder.create(SegmentName(1, "aa" * 16, 0)))
    with pytest.raises(FileExistsError):
        folder.create(SegmentName(1, "aa" * 16, 0))
    folder.close()


def test_a_folder_that_was_removed_is_made_again_under_its_identity(tmp_path: Path) -> None:
    identity = create_journal(tmp_path / "run", "cv", "run", sync=False)
    folder = SegmentFolder(tmp_path / "run" / JOURNAL, identity)
    folder.open()
    shutil.rmtree(tmp_path / "run")
    assert folder.ensure()
    assert read_identity(tmp_path / "run" / JOURNAL) == identity
    assert not folder.ensure()
    folder.close()


def test_a_store_that_is_new_is_not_for_version_control_and_one_that_is_there_stays(tmp_path: Path) -> None:
    make_store(tmp_path / "a" / "new")
    assert (tmp_path / "a" / "new" / ".gitignore").read_text() == "*\n"
    make_store(tmp_path / "a")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["new"]


def test_only_a_folder_that_holds_nothing_else_takes_a_journal(tmp_path: Path) -> None:
    refuse_foreign(tmp_path / "missing", "hint")
    (tmp_path / f"{JOURNAL}.ab.tmp").mkdir()
    refuse_foreign(tmp_path, "hint")
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ForeignFolder, match=r"holds no journal of ml-dash \(it holds 'thesis.tex'\).*; look elsewhere"):
        refuse_foreign(tmp_path, "look elsewhere")
    with pytest.raises(ForeignFolder, match="is not a folder; look elsewhere"):
        refuse_foreign(tmp_path / "thesis.tex", "look elsewhere")
