"""Removing an experiment: journal and folder together, never while a writer lives."""

from __future__ import annotations

from pathlib import Path

import pytest

from ml_dash.errors import StillOpen
from ml_dash.reading.read import find, locate
from ml_dash.sync.remove import remove
from tests.journals import JournalFixture


def written(desk: JournalFixture) -> JournalFixture:
    pen = desk.pen()
    pen.log("x")
    pen.file(b"content")
    pen.close()
    desk.catch_up()
    return desk


def test_journal_and_folder_go_and_the_project_with_its_last_experiment(desk: JournalFixture) -> None:
    written(desk)
    other = written(JournalFixture(desk.store, "cv", "other"))
    report = remove(desk.located)
    assert (report.folder, report.journal, report.files > 5, report.bytes > 500) == (
        desk.folder,
        desk.journal,
        True,
        True,
    )
    assert not desk.folder.exists()
    assert [located.name for located in find(desk.store)] == ["other"]
    remove(other.located)
    assert not (desk.store / "cv").exists()
    assert desk.store.exists()


def test_a_dry_run_says_the_same_and_removes_nothing(desk: JournalFixture) -> None:
    written(desk)
    before = desk.tree()
    report = remove(desk.located, dry_run=True)
    assert desk.tree() == before
    assert remove(desk.located) == report


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_living_writer_keeps_its_experiment(desk: JournalFixture, dry_run: bool) -> None:
    pen = desk.pen()
    desk.catch_up()
    before = desk.tree()
    with pytest.raises(StillOpen, match=r"being written by writer .*end that run first"):
        remove(desk.located, dry_run=dry_run)
    assert desk.tree() == before
    pen.die()
    remove(desk.located)
    assert not desk.folder.exists()


def test_a_folder_apart_from_its_store_goes_too(desk: JournalFixture) -> None:
    root = desk.store.parent
    pen = desk.pen(opens=False)
    pen.open(folderPath="../cv/run", journalPath="../../store/cv/run/.journal")
    pen.close()
    located = locate("cv/run", desk.store)
    assert located.folder == root / "cv/run"
    from ml_dash.projection.projector import catch_up

    catch_up(located)
    remove(locate(str(root / "cv/run")))
    assert not (root / "cv").exists()
    assert not (desk.store / "cv").exists()


def test_what_is_cut_short_can_be_removed_again(desk: JournalFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    written(desk)
    real = Path.rename

    def fails(path: Path, target: Path) -> Path:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="Input"):
        remove(desk.located)
    monkeypatch.setattr(Path, "rename", real)
    assert desk.record()["counts"]["logs"] == 1
    remove(locate("cv/run", desk.store))
    assert not desk.folder.exists()


def test_links_are_removed_and_not_followed(desk: JournalFixture, tmp_path: Path) -> None:
    written(desk)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "data").write_text("kept")
    (desk.folder / "link").symlink_to(precious)
    Path(desk.folder / "files" / "link").symlink_to(precious)
    remove(desk.located)
    assert (precious / "data").read_text() == "kept"
