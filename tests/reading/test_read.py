"""Finding experiments, and looking at them without writing."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from ml_dash.errors import InvalidValue, NotFound
from ml_dash.projection.projector import catch_up
from ml_dash.reading.located import Located, at
from ml_dash.reading.read import find, locate, record, view
from tests.journals import JournalFixture


def written(store: Path, project: str = "cv", name: str = "run") -> JournalFixture:
    desk = JournalFixture(store, project, name)
    pen = desk.pen()
    pen.point(value=1)
    pen.close()
    desk.catch_up()
    return desk


def apart(root: Path, store: Path, *, projected: bool = True) -> Located:
    """An experiment whose documented folder is in `root`, and whose journal is in a store of its own."""
    desk = JournalFixture(store)
    folder = root / "cv/run"
    pen = desk.pen(opens=False)
    pen.open(folderPath=os.path.relpath(folder, store), journalPath=os.path.relpath(desk.journal, folder))
    pen.point(value=1)
    pen.close()
    located = Located("cv", "run", folder, desk.journal)
    if projected:
        catch_up(located)
    return located


def names(found: list[Located]) -> list[str]:
    return [f"{located.project}/{located.name}" for located in found]


# -- where experiments are found --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [".", ".ml-dash", ".ml-dash/cv", ".ml-dash/cv/run", ".ml-dash/cv/run/.journal"])
def test_root_store_project_and_experiment_lead_to_it(tmp_path: Path, path: str) -> None:
    written(tmp_path / ".ml-dash")
    (located,) = find(tmp_path / path)
    assert located == Located("cv", "run", tmp_path / ".ml-dash/cv/run", tmp_path / ".ml-dash/cv/run/.journal")


@pytest.mark.parametrize("path", [".", "cv", "cv/run", ".ml-dash", ".ml-dash/cv", ".ml-dash/cv/run"])
def test_a_folder_apart_from_its_store_is_found_from_both(tmp_path: Path, path: str) -> None:
    expected = apart(tmp_path, tmp_path / ".ml-dash")
    assert find(tmp_path / path) == [expected]


@pytest.mark.parametrize("path", [".", ".ml-dash", ".ml-dash/cv", ".ml-dash/cv/run"])
def test_a_folder_that_was_never_projected_is_found_from_the_store(tmp_path: Path, path: str) -> None:
    expected = apart(tmp_path, tmp_path / ".ml-dash", projected=False)
    assert find(tmp_path / path) == [expected]


def test_folder_and_journal_moved_together_are_found(tmp_path: Path) -> None:
    apart(tmp_path / "before", tmp_path / "before/.ml-dash")
    (tmp_path / "before").rename(tmp_path / "after")
    expected = Located("cv", "run", tmp_path / "after/cv/run", tmp_path / "after/.ml-dash/cv/run/.journal")
    assert find(tmp_path / "after/cv") == find(tmp_path / "after/.ml-dash") == [expected]
    assert view(expected).metric_page("loss")["total"] == 1


def test_without_a_path_the_environment_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    assert find() == []
    monkeypatch.setenv("ML_DASH_LOCAL_PATH", str(tmp_path / "elsewhere"))
    assert names(find()) == ["cv/run"]


def test_without_an_environment_the_store_here_and_then_those_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "one/.ml-dash", name="one")
    written(tmp_path / "two/.ml-dash", name="two")
    monkeypatch.chdir(tmp_path)
    assert names(find()) == ["cv/one", "cv/two"]
    written(tmp_path / ".ml-dash", name="here")
    assert names(find()) == ["cv/here"]


def test_experiments_come_by_project_and_name_and_once(tmp_path: Path) -> None:
    for project, name in (("nlp", "b"), ("cv", "z"), ("cv", "a")):
        written(tmp_path / ".ml-dash", project, name)
    (tmp_path / ".ml-dash/stray").mkdir()
    (tmp_path / ".ml-dash/note.txt").write_text("x")
    assert names(find(tmp_path)) == ["cv/a", "cv/z", "nlp/b"]
    assert names(find(tmp_path, "cv")) == ["cv/a", "cv/z"]


def test_a_journal_that_does_not_say_whose_it_is_goes_by_its_folders(tmp_path: Path) -> None:
    desk = written(tmp_path)
    desk.pens[0].segment.unlink()
    (desk.journal / "order").write_text("rubbish")
    (desk.folder / "experiment.json").unlink()
    assert names(find(tmp_path)) == ["cv/run"]


@pytest.mark.parametrize(
    "pointer", ['{"journal": 5}', "[]", "{", '{"journal": "../../../etc"}', '{"journal": "a\\u0000b"}', ""]
)
def test_a_folder_that_points_nowhere_is_no_experiment(tmp_path: Path, pointer: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/experiment.json").write_text(pointer)
    assert at(tmp_path / "folder") is None


# -- one of them ------------------------------------------------------------------------------------------------------


def test_an_experiment_is_named_by_path_by_project_and_name_or_by_name(tmp_path: Path) -> None:
    store = tmp_path / "store"
    desk, _ = written(store, "cv", "a"), written(store, "nlp", "b")
    assert {locate(text, store).name for text in ("a", "cv/a", str(desk.folder), str(desk.journal))} == {"a"}


def test_an_ambiguous_name_is_refused_with_what_it_may_be(tmp_path: Path) -> None:
    written(tmp_path, "cv", "a")
    written(tmp_path, "nlp", "a")
    with pytest.raises(InvalidValue, match=r"'a' may be any of cv/a, nlp/a.*project/name"):
        locate("a", tmp_path)


@pytest.mark.parametrize("text", ["x", "cv/x", "x" * 5000, "a\0b", "~nobody-of-that-name/x", ""])
def test_an_unknown_one_is_not_found_and_the_error_says_where(tmp_path: Path, text: str) -> None:
    written(tmp_path)
    with pytest.raises(NotFound, match="no experiment"):
        locate(text, tmp_path)


def test_nothing_at_all_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no experiments in"):
        locate(None, tmp_path)


def test_without_a_name_it_is_the_latest_written(tmp_path: Path) -> None:
    desks = [written(tmp_path, name=name) for name in "abc"]
    os.utime(desks[1].pens[0].segment, ns=(2**62, 2**62))
    assert locate(None, tmp_path).name == "b"


# -- records ----------------------------------------------------------------------------------------------------------


def folds(monkeypatch: pytest.MonkeyPatch, desk: JournalFixture) -> bool:
    """Does `record` look into the journal?"""
    looks: list[Located] = []
    monkeypatch.setattr("ml_dash.reading.read.view", lambda located: looks.append(located) or view(located))
    told = record(desk.located)
    assert told == view(desk.located).record()
    return bool(looks)


def test_the_record_of_an_ended_experiment_is_read_from_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not folds(monkeypatch, written(tmp_path))


def test_so_is_that_of_one_that_was_killed_and_projected_since(
    desk: JournalFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pen = desk.pen()
    os.utime(pen.segment, ns=(1, 1))
    pen.die()
    desk.catch_up()
    assert not folds(monkeypatch, desk)
    pen.log("it lived")
    assert folds(monkeypatch, desk)


@pytest.mark.parametrize(
    "what", ["running", "child", "new writer", "unprojected", "gone", "edited", "another's", "not JSON"]
)
def test_a_record_that_may_be_old_is_read_from_the_journal(
    desk: JournalFixture, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    pen = desk.pen()
    if what == "child":
        desk.pen(child=True)
    if what != "running":
        pen.close()
    desk.catch_up()
    path = desk.folder / "experiment.json"
    if what == "new writer":
        desk.pen()
    elif what == "unprojected":
        shutil.rmtree(desk.folder / "logs")
        path.unlink()
    elif what == "gone":
        path.unlink()
    elif what == "edited":
        path.write_text("{}")
    elif what == "another's":
        path.write_text(path.read_text().replace('"run"', '"other"'))
    elif what == "not JSON":
        path.write_text("{")
    assert folds(monkeypatch, desk)


def test_looking_writes_nothing(desk: JournalFixture) -> None:
    desk.pen().log("x")
    before = {path: path.stat().st_mtime_ns for path in desk.store.rglob("*")}
    look = view(desk.located)
    assert look.logs()["logs"][0]["message"] == "x"
    assert look.record()["status"] == "running"
    record(desk.located)
    find(desk.store)
    assert {path: path.stat().st_mtime_ns for path in desk.store.rglob("*")} == before


# -- views ------------------------------------------------------------------------------------------------------------


def test_a_view_reads_the_folder_and_what_is_not_in_it_yet(desk: JournalFixture) -> None:
    pen = desk.pen()
    pen.points(value=list(range(1500)))
    pen.log("projected", level="warn")
    desk.catch_up()
    pen.points(value=list(range(1500, 2000)))
    pen.log("not yet")
    look = desk.view()
    page = look.metric_page("loss", 1495, 10)
    assert [row["data"]["value"] for row in page["data"]] == list(range(1495, 1505))
    assert (page["startIndex"], page["endIndex"], page["total"], page["hasMore"]) == (1495, 1504, 10, True)
    assert [entry["message"] for entry in look.logs()["logs"]] == ["projected", "not yet"]
    assert [entry["message"] for entry in look.logs(level="warn")["logs"]] == ["projected"]
    assert len(list(look.each_point("loss"))) == 2000


def test_pages_may_begin_anywhere(desk: JournalFixture) -> None:
    desk.pen().points(value=list(range(10)))
    look = desk.view()
    assert [row["index"] for row in look.metric_page("loss", -3, 2)["data"]] == [7, 8]
    assert look.metric_page("loss", -30, 2)["startIndex"] == 0
    assert look.metric_page("loss", 10)["data"] == []
    unknown = look.metric_page("unknown", 4)
    assert (unknown["data"], unknown["startIndex"], unknown["endIndex"], unknown["hasMore"]) == ([], 4, 3, False)
    with pytest.raises(NotFound):
        look.metric_stats("unknown")


@pytest.mark.parametrize("limit", [0, -1, 10_001, True, 1.5])
def test_pages_have_1_to_10000_entries(desk: JournalFixture, limit: int) -> None:
    desk.pen()
    with pytest.raises(InvalidValue, match="limit"):
        desk.view().metric_page("loss", 0, limit)


def test_thinning_a_series_keeps_its_extremes(desk: JournalFixture) -> None:
    pen = desk.pen()
    pen.points(value=[0.0] * 500 + [9.0] + [0.0] * 499 + [-9.0, float("nan")], step=[2 * n for n in range(1002)])
    look = desk.view()
    thin = look.series("loss", max_points=20)
    assert len(thin) <= 40
    assert {(1000.0, 9.0), (2000.0, -9.0)} <= set(thin)
    assert look.series("loss", max_points=10_000)[:2] == [(0.0, 0.0), (2.0, 0.0)]
    with pytest.raises(NotFound, match="no series"):
        look.series("loss", "acc")


def test_values_come_back_as_they_were(desk: JournalFixture) -> None:
    values = {
        "nan": float("nan"),
        "inf": float("-inf"),
        "text": "NaN",
        "list": ["Infinity", float("inf")],
        "tiny": 5e-324,
        "big": 2**64 - 1,
    }
    pen = desk.pen()
    pen.point(**values)
    pen.log("x", metadata=values)
    pen.parameters(**values)
    for look in (desk.view(), (desk.catch_up(), desk.view())[1]):
        found = look.metric_page("loss")["data"][0]["data"]
        assert repr(found) == repr(look.logs()["logs"][0]["metadata"]) == repr(look.parameters()) == repr(values)
    json.loads((desk.folder / "parameters.json").read_text(), parse_constant=pytest.fail)
