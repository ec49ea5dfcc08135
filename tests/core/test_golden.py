"""What an earlier release wrote is read to the same bytes, for ever."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import msgpack
import pytest

from ml_dash import Experiment
from ml_dash.journal.reader import Frame, scan
from ml_dash.projection import checkpoint
from ml_dash.projection.projector import catch_up, rebuild
from ml_dash.reading.located import Located
from ml_dash.reading.read import locate, view
from ml_dash.reading.verify import verify

GOLDEN = Path(__file__).parents[1] / "golden"
COUNTS = {"events": 14, "logs": 1, "points": 1301, "metrics": 1, "parameters": 1, "files": 2, "lost": 3}
VERSIONS = sorted(path.name for path in GOLDEN.iterdir() if (path / "journal").is_dir())


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> Path:
    return GOLDEN / str(request.param)


@pytest.fixture
def located(version: Path, tmp_path: Path) -> Located:
    """The golden journal where a user would have it, without its folder."""
    home = tmp_path / "store" / "golden" / "every kind"
    shutil.copytree(version / "journal", home / ".journal", copy_function=shutil.copyfile)
    return locate("golden/every kind", tmp_path / "store")


def test_there_is_a_journal_of_every_format_version() -> None:
    from ml_dash.core.frames import VERSION

    assert [f"v{number}" for number in range(1, VERSION + 1)] == VERSIONS


def test_its_folder_is_the_same_byte_for_byte(version: Path, located: Located) -> None:
    rebuild(located, None)
    digests = {
        path.relative_to(located.folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in located.folder.rglob("*")
        if path.is_file() and ".journal" not in path.parts
    }
    for path in (version / "folder").rglob("*"):
        if path.is_file():  # shows the difference, where a digest would only tell that there is one
            assert (located.folder / path.relative_to(version / "folder")).read_bytes() == path.read_bytes()
    assert digests == json.loads((version / "folder.json").read_text(encoding="utf-8"))


def test_it_verifies_and_its_torn_end_is_only_torn(located: Located) -> None:
    rebuild(located, None)
    report = verify(located)
    assert report.ok
    assert {finding.kind for finding in report.findings} == {"torn", "released"}


def test_every_kind_of_event_is_in_it(located: Located) -> None:
    kinds = {
        item.kind
        for path in (located.journal / "segments").glob("*.seg")
        for item in scan(path)
        if isinstance(item, Frame)
    }
    assert kinds >= set(range(1, 13))  # all but `lost`, which takes a failing disk


def test_it_says_how_it_ended(located: Located) -> None:
    record = view(located).record()
    assert record["status"] == "interrupted"
    assert [writer["ended"] for writer in record["writers"]] == ["failed", "died"]


def test_it_can_be_continued(located: Located) -> None:
    with Experiment(name="every kind", project="golden", local_path=located.folder.parent.parent) as experiment:
        assert experiment.resumed
        assert experiment.metric("train/loss").append(value=0.0, step=1600)["index"] == 1600
        assert experiment.parameters().get()["lr"] == 0.001
        assert experiment.log().read(start_index=-1)["logs"][0]["message"] == "the last words"
        assert [file["filename"] for file in experiment.file().list()] == ["model.bin"]
    assert experiment.status == "completed"


def test_a_base_of_the_second_fold_gets_the_counts_that_it_lacks(tmp_path: Path) -> None:
    journal = tmp_path / "store" / "golden" / "run" / ".journal"
    for name in ("segments", "blobs"):
        (journal / name).mkdir(parents=True)
    for name in ("base", "order"):
        shutil.copyfile(GOLDEN / "base2" / name, journal / name)
    record = view(locate("golden/run", tmp_path / "store")).record()
    assert record["counts"] == COUNTS
    assert (record["status"], record["error"]) == ("failed", {"type": "E", "message": "m", "traceback": "t"})
    with Experiment("run", "golden", local_path=tmp_path / "store", resume_step=1100) as experiment:
        experiment.metric("loss").append(value=1, step=1100)
        stats = experiment.metric("loss").stats()
        # It knows steps: the points behind its last span are not here, and those before it stay certain.
        assert (stats["superseded"], stats["supersededElsewhere"]) == ([], True)
        experiment.file(file_id=experiment.file().list()[0]["id"]).delete()
    record = view(locate("golden/run", tmp_path / "store")).record()
    assert (record["counts"]["files"], record["counts"]["lost"], record["status"]) == (1, 3, "completed")


def test_a_checkpoint_of_the_second_fold_is_made_again_from_the_journal(tmp_path: Path) -> None:
    journal = tmp_path / "store" / "golden" / "run" / ".journal"
    shutil.copytree(GOLDEN / "checkpoint2", journal, copy_function=shutil.copyfile)
    # It is sound: only its version speaks against it.
    stored = msgpack.unpackb((journal / "checkpoint").read_bytes()[12:], strict_map_key=False)
    assert (stored["fold_version"], stored["state"]["points"], "live_files" in stored["state"]) == (2, 1301, False)
    assert checkpoint.load(journal) is None
    located = locate("golden/run", tmp_path / "store")
    catch_up(located)
    made = checkpoint.load(journal)
    assert made is not None
    assert (made.fold_version, made.state.version, made.state.live_files, made.state.lost) == (4, 4, 2, 3)
    assert json.loads((located.folder / "experiment.json").read_text(encoding="utf-8"))["counts"] == COUNTS
    assert {finding.kind for finding in verify(located).findings} == {"lost", "released"}


def test_a_base_of_the_first_fold_is_read_and_gone_back_behind(tmp_path: Path) -> None:
    """It knows nothing of steps: what a rewind would hit before it, is said to be unsure."""
    journal = tmp_path / "store" / "golden" / "run" / ".journal"
    for name in ("segments", "blobs"):
        (journal / name).mkdir(parents=True)
    for name in ("base", "order"):
        shutil.copyfile(GOLDEN / "base1" / name, journal / name)
    with Experiment("run", "golden", local_path=tmp_path / "store", read_only=True) as experiment:
        stats = experiment.metric("loss").stats()
        assert (stats["totalDataPoints"], stats["superseded"]) == (2500, [])
        assert stats["series"]["loss"]["min"] == 1 / 2500
        assert experiment.parameters().get() == {"lr": 0.1}
    with Experiment("run", "golden", local_path=tmp_path / "store", resume_step=2000) as experiment:
        experiment.metric("loss").append(value=1, step=2000)
        stats = experiment.metric("loss").stats()
        assert stats["supersededElsewhere"]
        assert stats["series"]["loss"]["count"] == 2501
        experiment.rewind(2000)
        assert experiment.metric("loss").last() is not None
