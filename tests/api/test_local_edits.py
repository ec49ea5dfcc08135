"""What a page may change of local experiments, and what it is told of their storage."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from ml_dash import Experiment
from ml_dash.disk.settings import resolve
from ml_dash.errors import InvalidInput, NotFound, ReadOnly, StillOpen, UnsupportedType
from ml_dash.reading.local import LocalSource
from ml_dash.reading.source import decoded
from ml_dash.reading.verified import note
from ml_dash.reading.verify import verify
from ml_dash.recording.local_edits import LocalEdits
from ml_dash.sync import registrations


@contextmanager
def source(tmp_path: Path) -> Iterator[LocalSource]:
    with closing(LocalSource([tmp_path / "store"], cache=tmp_path / "cache", edits=LocalEdits())) as made:
        yield made


def recorded(tmp_path: Path, name: str = "one") -> Experiment:
    experiment = Experiment(name, "cv", local_path=str(tmp_path / "store"), description="first", tags=["a"])
    experiment.open()
    experiment.metric("loss").append(value=1.0, step=0)
    return experiment


def test_labels_are_changed_taken_away_and_shown_at_once_and_the_status_stays(tmp_path):
    experiment = recorded(tmp_path)
    with source(tmp_path) as of:
        (one,) = (each["id"] for each in decoded(of.experiments())["experiments"])
        changed = decoded(of.update(one, {"title": "better name", "notes": "# why", "tags": ["b"], "archived": True}))
        assert (changed["title"], changed["notes"], changed["tags"], changed["status"]) == (
            "better name", "# why", ["b"], "running"
        )  # fmt: skip
        assert decoded(of.experiments())["total"] == 0
        assert decoded(of.experiments(where='archived = true and "better"'))["total"] == 1
        experiment.close()
        changed = decoded(of.update(one, {"description": None, "notes": None, "title": None, "archived": None}))
        found = [changed[key] for key in ("description", "notes", "title", "tags", "status", "archived")]
        assert found == [None, None, None, ["b"], "completed", False]
        for wrong in ({"status": "failed"}, {"title": "a/b"}):
            with pytest.raises(InvalidInput):
                of.update(one, wrong)
        for wrong in ({"tags": 5}, {"archived": "yes"}):
            with pytest.raises(UnsupportedType):
                of.update(one, wrong)


def test_an_experiment_is_removed_but_not_while_a_writer_lives(tmp_path):
    experiment = recorded(tmp_path)
    with source(tmp_path) as of:
        (one,) = (each["id"] for each in decoded(of.experiments())["experiments"])
        with pytest.raises(StillOpen):
            of.remove(one)
        experiment.close()
        assert of.remove(one) == {"id": one, "removed": True}
        assert decoded(of.experiments())["total"] == 0
        with pytest.raises(NotFound):
            of.experiment(one)
        assert not (tmp_path / "store" / "cv" / "one").exists()


def test_without_edits_nothing_can_be_changed(tmp_path):
    recorded(tmp_path).close()
    with closing(LocalSource([tmp_path / "store"], cache=tmp_path / "cache")) as of:
        (one,) = (each["id"] for each in decoded(of.experiments())["experiments"])
        for ask in (lambda: of.update(one, {"title": "x"}), lambda: of.remove(one), of.storage):
            with pytest.raises(ReadOnly):
                ask()


def test_storage_counts_bytes_by_project_and_says_what_is_parked_and_what_is_sent(tmp_path):
    experiment = recorded(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"x" * 100_000)
    experiment.file(str(tmp_path / "model.bin"), prefix="/models").save()
    experiment.close()
    with source(tmp_path) as of:
        stored = decoded(of.storage())
        (project,) = stored["projects"]
        assert (project["name"], project["experiments"], project["freeableBytes"]) == ("cv", 1, 0)
        # The file is a hard link to the journal's blob where the disk allows that.
        assert 100_000 < project["bytes"] == stored["totalBytes"] < 320_000
        assert (stored["uploader"], stored["parked"], stored["lastVerify"]) == (None, [], None)
        located = of.located(decoded(of.experiments())["experiments"][0]["id"])
        note({located.journal: verify(located).ok}, 1_790_000_000_000_000_000)
        assert decoded(of.storage())["lastVerify"] == {
            "at": "2026-09-21T14:13:20.000000Z", "result": "1 of 1 experiment checked, all intact"
        }  # fmt: skip
        journal = tmp_path / "store" / "cv" / "one" / ".journal"
        one = registrations.register(journal, resolve(remote="http://localhost:1", user_name="alice"))
        cursor = registrations.cursor_of(one) or registrations.cursors.Cursor(one.id or "")
        for path in (journal / "segments").glob("*.seg"):
            cursor.segments[path.name] = path.stat().st_size
        cursor.parked["some.seg"] = "the server says no"
        registrations.cursors.save(registrations.cursors_folder() / f"{one.key}.json", cursor)
        stored = decoded(of.storage())
        assert 0 < stored["projects"][0]["freeableBytes"] < 100_000
        assert stored["uploader"]["state"] == "not running"
        assert [entry["reason"] for entry in stored["parked"]] == ["some.seg: the server says no"]


def test_a_record_says_what_each_server_has_acknowledged_of_it(tmp_path):
    experiment = recorded(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"x" * 100_000)
    experiment.file(str(tmp_path / "model.bin"), prefix="/models").save()
    journal = tmp_path / "store" / "cv" / "one" / ".journal"
    with source(tmp_path) as of:
        (one,) = (each["id"] for each in decoded(of.experiments())["experiments"])

        def uploads() -> list[dict[str, object]]:
            found: list[dict[str, object]] = decoded(of.experiment(one))["uploads"]
            return found

        assert uploads() == []
        unclaimed = registrations.register(journal, resolve(remote="http://localhost:1"))
        (upload,) = uploads()
        assert (upload["acknowledged"], upload["waitingFiles"], upload["complete"]) == (0, 1, False)
        assert "nobody has claimed it for http://localhost:1; run: ml-dash login" in str(upload["reason"])
        registrations.unregister(unclaimed)

        registered = registrations.register(journal, resolve(remote="http://localhost:1", user_name="alice"))
        cursor = registrations.cursors.Cursor(registered.id or "")
        (segment,) = (journal / "segments").glob("*.seg")
        early, events = segment.stat().st_size, decoded(of.experiment(one))["counts"]["events"]
        cursor.segments[segment.name] = early

        def acknowledge() -> None:
            registrations.cursors.save(registrations.cursors_folder() / f"{registered.key}.json", cursor)

        acknowledge()
        experiment.metric("loss").append(value=0.5, step=1)
        experiment.metric("loss").append(value=0.4, step=2)
        (upload,) = uploads()
        assert decoded(of.experiment(one))["counts"]["events"] == events + 2
        assert (upload["acknowledged"], upload["waitingFiles"], upload["user"]) == (events, 1, "alice")
        assert upload["reason"] == "no ml-dash-syncd runs; start it with: ml-dash-syncd run"
        cursor.parked["some.seg"] = "the server says no"
        acknowledge()
        assert uploads()[0]["reason"] == "some.seg is not taken: the server says no"
        cursor.set_trouble("unreachable", "http://localhost:1 does not answer")
        acknowledge()
        assert uploads()[0]["reason"] == "http://localhost:1 does not answer"
        cursor.segments[segment.name] = segment.stat().st_size
        acknowledge()
        (upload,) = uploads()
        assert (upload["acknowledged"], upload["waitingFiles"], upload["complete"]) == (events + 2, 1, False)
        cursor.blobs = {path.name for path in (journal / "blobs").iterdir()}
        acknowledge()
        (upload,) = uploads()
        assert (upload["waitingFiles"], upload["complete"], upload["reason"]) == (0, True, None)
        assert "uploads" not in decoded(of.experiment(one, 1))
        # What is acknowledged of another journal at this place does not count.
        cursor.journal = "0" * 32
        acknowledge()
        assert uploads()[0]["acknowledged"] == 0
    experiment.close()


def test_a_registration_is_seen_at_once_where_there_are_many(tmp_path):
    recorded(tmp_path).close()
    journal = tmp_path / "store" / "cv" / "one" / ".journal"
    with source(tmp_path) as of:
        (one,) = (each["id"] for each in decoded(of.experiments())["experiments"])
        for number in range(3):
            made = registrations.register(journal, resolve(remote=f"http://localhost:{number + 1}", user_name="alice"))
            assert len(decoded(of.experiment(one))["uploads"]) == number + 1
        # As if it had long been so: then what was read is kept.
        folder = registrations.registered_folder()
        os.utime(folder, ns=(1, 1))
        assert len(decoded(of.experiment(one))["uploads"]) == 3
        registrations.unregister(made)
        assert len(decoded(of.experiment(one))["uploads"]) == 2
