"""An experiment as a whole: opening, continuing, reading, changing, protecting; what is refused, and how."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import ml_dash
from ml_dash import Experiment, InvalidName, InvalidValue, OperationMode, UnsupportedType

if TYPE_CHECKING:
    from tests.api.conftest import Make, Python


# -- three styles -----------------------------------------------------------------------------------------------------


def test_a_with_block_records_and_closes(make: Make) -> None:
    with make() as experiment:
        assert experiment.is_open
        assert experiment.status == "running"
        experiment.log("inside")
    assert not experiment.is_open
    assert experiment.status == "completed"


def test_open_returns_the_experiment_and_a_second_call_does_nothing(make: Make) -> None:
    experiment = make()
    assert experiment.open() is experiment
    assert experiment.open() is experiment
    experiment.log("once")
    experiment.close()
    experiment.close()
    assert len(experiment.data["writers"]) == 1
    assert experiment.data["counts"]["logs"] == 1


def test_making_one_touches_no_file(tmp_path: Path) -> None:
    experiment = Experiment("first", "cv", local_path=tmp_path / "deep" / "runs", metadata={"a": 1})
    assert (experiment.is_open, experiment.status, experiment.data) == (False, "not open", {})
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_new_experiment_holds_what_is_documented(make: Make, read_json: Any) -> None:
    with make(description="d", tags=["a", "b"], folder="sweeps/lr", metadata={"k": 1}) as experiment:
        pass
    assert sorted(entry.name for entry in experiment.path.iterdir()) == [
        ".journal", "experiment.json", "files", "logs", "metrics", "parameters.json",
    ]  # fmt: skip
    record = read_json(experiment.path / "experiment.json")
    assert record == experiment.data
    assert (record["name"], record["project"], record["status"]) == ("first", "cv", "completed")
    assert (record["description"], record["tags"], record["folder"]) == ("d", ["a", "b"], "sweeps/lr")
    assert (record["metadata"], record["id"], record["journal"]) == ({"k": 1}, experiment.id, ".journal")
    assert list((experiment.path / "metrics").iterdir()) == []
    assert read_json(experiment.path / "parameters.json") == {}
    assert read_json(experiment.path / "files" / ".files_metadata.json") == {"files": []}
    assert (experiment.path / "logs" / "logs.jsonl").read_bytes() == b""


# -- continuing -------------------------------------------------------------------------------------------------------


def test_the_same_project_and_name_is_the_same_experiment(make: Make) -> None:
    with make() as first:
        first.log("one")
        first.metric("loss").append(value=1.0)
        first.parameters().set(lr=0.1, seed=1)
    with make() as second:
        assert (first.resumed, second.resumed, second.id) == (False, True, first.id)
        second.log("two")
        second.parameters().set(lr=0.2)
        assert second.metric("loss").append(value=0.5)["index"] == 1
        assert [entry["sequenceNumber"] for entry in second.log().read()["logs"]] == [0, 1]
        assert second.parameters().get() == {"lr": 0.2, "seed": 1}


def test_registers_are_replaced_only_where_given_anew(make: Make) -> None:
    with make(description="old", tags=["a"], folder="f", metadata={"a": 1, "b": 2}):
        pass
    with make(tags=["b"], metadata={"c": 3}) as experiment:
        assert (experiment.description, experiment.tags, experiment.folder) == ("old", ["b"], "f")
        assert experiment.metadata == {"c": 3}


def test_updated_at_is_set_by_each_opening_and_created_at_stays(make: Make) -> None:
    with make() as first:
        created, updated = first.data["createdAt"], first.data["updatedAt"]
    with make() as second:
        assert second.data["createdAt"] == created
        assert second.data["updatedAt"] > updated


def test_a_handle_that_opens_again_does_not_undo_what_was_changed_since(make: Make) -> None:
    experiment = make(description="mine", tags=["a"]).open()
    experiment.update(description="changed")
    experiment.close()
    assert experiment.description == "changed"
    with make(tags=["theirs"]):
        pass
    with experiment:
        assert (experiment.description, experiment.tags) == ("changed", ["theirs"])


def test_update_changes_what_is_given_and_keeps_the_rest(make: Make) -> None:
    with make(description="d", tags=["a"], metadata={"k": 1}) as experiment:
        experiment.update(folder="f", tags=[])
        assert (experiment.description, experiment.tags, experiment.folder) == ("d", [], "f")
        experiment.update(metadata={"n": None}, description="")
        assert (experiment.metadata, experiment.description) == ({"n": None}, "")
        events = experiment.data["counts"]["events"]
        experiment.update()
        assert experiment.data["counts"]["events"] == events
    with make(read_only=True) as seen:
        assert (seen.description, seen.tags, seen.folder, seen.metadata) == ("", [], "f", {"n": None})


def test_resume_must_needs_an_experiment_that_exists(make: Make, runs: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r'resume="must".*cv/first.*resume="allow"') as caught:
        make(resume="must").open()
    assert isinstance(caught.value, ml_dash.NotFound)
    assert not runs.exists()
    with make():
        pass
    with make(resume="must") as experiment:
        assert experiment.resumed


def test_resume_never_refuses_an_experiment_that_exists(make: Make) -> None:
    with make(resume="never") as experiment:
        assert not experiment.resumed
    with pytest.raises(FileExistsError, match=r'resume="never".*cv/first exists.*another name') as caught:
        make(resume="never").open()
    assert isinstance(caught.value, ml_dash.AlreadyExists)
    # What the handle itself began, it continues.
    with experiment:
        assert experiment.resumed


def test_resume_takes_three_words(make: Make) -> None:
    with pytest.raises(InvalidValue, match=r"resume is 'maybe'.*allow, must, never"):
        make(resume="maybe")


# -- reading ----------------------------------------------------------------------------------------------------------


def _snapshot(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Every file and folder: its inode, size and time of change."""
    return {
        str(path): (path.stat().st_ino, path.stat().st_size, path.stat().st_mtime_ns)
        for path in [folder, *sorted(folder.rglob("*"))]
    }


def _read_everything(experiment: Experiment) -> None:
    assert experiment.log().read()["total"] == 1
    assert experiment.metric("loss").read()["total"] == 2
    assert experiment.metric("loss").stats()["totalDataPoints"] == 2
    assert experiment.metric().list_all()[0]["name"] == "loss"
    assert experiment.parameters().get() == {"lr": 0.1}
    assert experiment.file().list()[0]["filename"] == "model.bin"
    assert experiment.data["project"] == "cv"


@pytest.mark.parametrize("folder", ["whole", "without derived files"])
def test_read_only_writes_nothing_at_all(make: Make, runs: Path, tmp_path: Path, folder: str) -> None:
    (tmp_path / "model.bin").write_bytes(b"weights")
    with make() as experiment:
        experiment.log("one")
        experiment.metric("loss").append_batch([{"value": 1.0}, {"value": 2.0}])
        experiment.parameters().set(lr=0.1)
        experiment.file("model.bin")
    if folder != "whole":
        (experiment.path / "experiment.json").unlink()
        (experiment.path / "metrics" / "loss" / "data.jsonl").unlink()
        (experiment.path / ".journal" / "checkpoint").unlink()
    before = _snapshot(runs)
    with make(read_only=True) as reader:
        assert (reader.resumed, reader.status, reader.is_open) == (True, "completed", True)
        _read_everything(reader)
    assert _snapshot(runs) == before


def test_read_only_refuses_every_change_and_says_why(make: Make, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"weights")
    with make() as writer:
        identity = writer.file("model.bin")["id"]
    changes = [
        lambda e: e.log("no"),
        lambda e: e.log().info("no"),
        lambda e: e.metric("loss").append(value=1.0),
        lambda e: e.metric("loss").append_batch([{"value": 1.0}]),
        lambda e: e.metric("loss", description="d").append(value=1.0),
        lambda e: e.parameters().set(lr=1),
        lambda e: e.parameters().set(),
        lambda e: e.file("model.bin"),
        lambda e: e.file(file_id=identity).delete(),
        lambda e: e.file(file_id=identity, tags=["t"]).update(),
        lambda e: e.update(description="no"),
        lambda e: e.update(),
        lambda e: e.durable_state(),
    ]
    with make(read_only=True) as reader:
        for change in changes:
            with pytest.raises(RuntimeError, match="cv/first was opened with read_only=True") as caught:
                change(reader)
            assert isinstance(caught.value, ml_dash.ReadOnly)


def test_read_only_of_what_is_not_there_says_where_it_looked(make: Make, runs: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"no experiment cv/first in {runs}/cv/first"):
        make(read_only=True).open()
    assert not runs.exists()


def test_a_reader_follows_a_run_that_goes_on(make: Make, opened: Experiment) -> None:
    with make(read_only=True) as reader:
        for number in range(3):
            opened.metric("loss").append(value=number)
            assert reader.metric("loss").read()["total"] == number + 1
        assert reader.status == "running"
        opened.close()
        assert reader.status == "completed"


def test_experiments_lists_what_exists_by_project_and_name(make: Make, runs: Path) -> None:
    for project, name in (("nlp", "b"), ("cv", "z"), ("cv", "a")):
        with make(name, project, tags=[name]):
            pass
    found = ml_dash.experiments(runs)
    assert [(one["project"], one["name"], one["tags"]) for one in found] == [
        ("cv", "a", ["a"]), ("cv", "z", ["z"]), ("nlp", "b", ["b"]),
    ]  # fmt: skip
    assert [one["name"] for one in ml_dash.experiments(runs, project="cv")] == ["a", "z"]
    assert [one["name"] for one in ml_dash.experiments(str(runs / "nlp"))] == ["b"]
    assert ml_dash.experiments(runs / "none") == []


# -- attributes -------------------------------------------------------------------------------------------------------


def test_attributes_tell_and_cannot_be_set(make: Make, runs: Path) -> None:
    experiment = make(description="d", tags=["a"], folder="f", metadata={"k": 1})
    assert (experiment.name, experiment.project) == ("first", "cv")
    assert (experiment.description, experiment.tags, experiment.folder) == ("d", ["a"], "f")
    assert (experiment.metadata, experiment.write_protected) == ({"k": 1}, False)
    assert (experiment.mode, experiment.path) == (OperationMode.LOCAL, runs / "cv" / "first")
    for name in (
        "name", "project", "description", "tags", "folder", "metadata", "write_protected", "id", "mode", "data", "path",
        "status", "resumed", "is_open",
    ):  # fmt: skip
        with pytest.raises(AttributeError):
            setattr(experiment, name, "other")


def test_the_id_is_decimal_text_from_project_and_name(make: Make) -> None:
    expected = str(int.from_bytes(hashlib.sha256(b"cv\0first").digest()[:8], "big"))
    assert make().id == expected
    assert make(local_path="elsewhere").id == expected
    assert make("second").id != expected


def test_repr_shows_what_and_how_and_where(make: Make, runs: Path) -> None:
    experiment = make()
    assert repr(experiment) == f"<Experiment cv/first (closed) at {runs}/cv/first>"
    with experiment:
        assert "(open)" in repr(experiment)
    with make(read_only=True) as reader:
        assert "(read-only)" in repr(reader)


def test_what_was_recorded_can_be_asked_for_before_opening_and_after_closing(make: Make) -> None:
    with make(description="d", write_protected=True) as experiment:
        assert experiment.write_protected
    for handle in (experiment, make()):
        assert (handle.description, handle.status, handle.write_protected) == ("d", "completed", True)
        assert handle.data["name"] == "first"


# -- not open ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["never opened", "closed"])
def test_calls_of_an_experiment_that_is_not_open_say_how_to_open_it(make: Make, state: str) -> None:
    experiment = make()
    if state == "closed":
        experiment.open().close()
    calls = [
        lambda: experiment.log("no"),
        lambda: experiment.log(),
        lambda: experiment.parameters(),
        lambda: experiment.metric("loss"),
        lambda: experiment.metric(),
        lambda: experiment.file("no.bin"),
        lambda: experiment.file(),
        lambda: experiment.update(description="no"),
        lambda: experiment.update(),
    ]
    for call in calls:
        with pytest.raises(
            RuntimeError, match=r"cv/first is not open; use it in a with block, or .*open\(\)"
        ) as caught:
            call()
        assert isinstance(caught.value, ml_dash.NotOpen)


def test_builders_follow_their_handle(make: Make) -> None:
    experiment = make().open()
    log, parameters = experiment.log(), experiment.parameters()
    metric, files = experiment.metric("m"), experiment.file()
    experiment.close()
    for call in (lambda: log.info("x"), lambda: log.read(), lambda: parameters.set(a=1), lambda: parameters.get(),
                 lambda: metric.append(value=1), lambda: metric.append_batch([{"value": 1}]), lambda: metric.read(),
                 lambda: metric.stats(), lambda: files.list()):  # fmt: skip
        with pytest.raises(ml_dash.NotOpen):
            call()
    experiment.open()
    log.info("again")
    parameters.set(a=1)
    metric.append(value=1)
    assert (log.read()["total"], parameters.get(), metric.read()["total"], files.list()) == (1, {"a": 1}, 1, [])


# -- protection -------------------------------------------------------------------------------------------------------


def test_protection_makes_parameters_and_files_final_and_nothing_else(make: Make, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"weights")
    with make() as experiment:
        experiment.parameters().set(lr=0.1)
        identity = experiment.file("model.bin")["id"]
    for protect in (True, False):  # this opening, and every later one
        with make(write_protected=protect) as experiment:
            assert experiment.write_protected
            for change in (
                lambda e: e.parameters().set(lr=0.2),
                lambda e: e.file("model.bin", prefix="/other"),
                lambda e: e.file(file_path="model.bin").save(),
                lambda e: e.file(file_id=identity).delete(),
                lambda e: e.file(file_id=identity, description="d").update(),
            ):
                with pytest.raises(RuntimeError, match=r"cv/first is write-protected.*parameters and files are final"):
                    change(experiment)
            experiment.log("goes on")
            experiment.metric("loss").append(value=1.0)
            experiment.update(description="goes on too")
            assert experiment.parameters().get() == {"lr": 0.1}
            assert experiment.file(file_id=identity, dest_path="copy.bin").download() == "copy.bin"
    assert experiment.data["writeProtected"] is True
    assert experiment.data["counts"]["logs"] == 2


def test_another_handle_of_the_same_process_protects_for_all(make: Make, opened: Experiment) -> None:
    opened.parameters().set(lr=0.1)
    with make(write_protected=True), pytest.raises(ml_dash.WriteProtected):
        opened.parameters().set(lr=0.2)
    assert opened.write_protected


def test_a_change_made_before_learning_of_the_protection_is_kept_and_marked(
    make: Make, opened: Experiment, python: Python
) -> None:
    from ml_dash.recording.background import background_projector

    opened.parameters().set(before=1)
    # The projecting thread would tell it, if a tick of it came in between.
    background_projector.remove(opened._handle.session.recording())
    python("""
        from ml_dash import Experiment
        with Experiment("first", "cv", write_protected=True):
            pass
    """)
    opened.parameters().set(after=2)
    assert opened.parameters().get() == {"before": 1, "after": 2}
    assert opened.data["afterProtection"] == {"parameters": ["after"]}
    # That reading has told it.
    with pytest.raises(ml_dash.WriteProtected):
        opened.parameters().set(later=3)


# -- safety, servers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["always", "interval", "os"])
def test_levels_of_safety_are_counted(make: Make, durability: str, until: Any) -> None:
    with make(durability=durability) as experiment:
        experiment.log("one")
        state = experiment.durable_state()
        assert sorted(state) == ["accepted", "lost", "remote", "synced", "written"]
        assert (state["accepted"], state["written"], state["remote"], state["lost"]) == (2, 2, 0, 0)
        if durability == "always":
            assert state["synced"] == 2
        if durability == "interval":
            until(lambda: experiment.durable_state()["synced"] == 2)
    closed = experiment.durable_state()
    assert (closed["written"], closed["synced"]) == (3, 0 if durability == "os" else 3)


def test_wait_synced_without_a_server_is_true_at_once(make: Make) -> None:
    experiment = make()
    assert experiment.wait_synced() is True
    with experiment:
        experiment.log("one")
        assert experiment.wait_synced(timeout=0) is True


def test_wait_synced_that_cannot_happen_is_false_at_once_and_logs_why(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    with make(remote="http://localhost:1", user_name="alice") as experiment:
        assert experiment.wait_synced(timeout=1000) is False
    assert "no ml-dash-syncd runs, and ML_DASH_AUTOSYNC is off" in caplog.text


def test_a_server_that_is_not_there_changes_nothing(make: Make) -> None:
    with make(remote="http://localhost:1/", user_name="alice") as experiment:
        experiment.log("one")
        assert experiment.mode is OperationMode.HYBRID
    writer = experiment.data["writers"][0]
    assert (writer["remote"], writer["userName"]) == ("http://localhost:1", "alice")


def test_resume_from_remote_needs_a_remote_and_never_waits(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InvalidValue, match="resume_from_remote=True needs a remote; give remote="):
        make(resume_from_remote=True)
    with make(resume_from_remote=True, remote="http://localhost:1", user_name="alice") as experiment:
        experiment.log("one")
    assert "nothing was fetched from http://localhost:1" in caplog.text


# -- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("", "is empty"), (".hidden", 'starts with "."'), ("a/b", 'contains "/"'), ("a\\b", 'contains "\\\\"'),
        ("a\nb", r"control character U\+000A"), ("a\x00", r"control character U\+0000"),
        ("\x9f", r"control character U\+009F"), ("\udc80", r"lone surrogate U\+DC80"),
        ("é" * 101, "longer than 200 bytes"),
    ],
)  # fmt: skip
def test_bad_names_are_refused_with_the_reason(make: Make, name: str, found: str) -> None:
    for arguments, argument in (((name, "cv"), "name"), (("first", name), "project")):
        with pytest.raises(ValueError, match=rf"(?s)^{argument} .*{found}.*; use one folder name") as caught:
            make(*arguments)
        assert isinstance(caught.value, InvalidName)


@pytest.mark.parametrize("name", ["a", "a b.c", "Größe", "日本語", "🚀", "x" * 200, "a%20b", "CON", "trailing. "])
def test_any_other_text_is_a_name(make: Make, runs: Path, name: str) -> None:
    with make(name, name) as experiment:
        experiment.log("one")
    assert experiment.path == runs / name / name
    assert [(one["project"], one["name"]) for one in ml_dash.experiments(runs)] == [(name, name)]


@pytest.mark.parametrize(
    ("keywords", "error", "text"),
    [
        ({"name": 5}, UnsupportedType, "name is int, expected str"),
        ({"project": None}, UnsupportedType, "project is NoneType, expected str"),
        ({"description": 5}, UnsupportedType, "description is int, expected text"),
        ({"folder": b"x"}, UnsupportedType, "folder is bytes, expected text"),
        ({"tags": 5}, UnsupportedType, 'tags are "5", expected a list of text'),
        ({"tags": ["a", 1]}, UnsupportedType, "expected a list of text"),
        ({"tags": {"a": 1}}, UnsupportedType, "expected a list of text"),
        ({"metadata": [1]}, UnsupportedType, "metadata is list, expected a mapping"),
        ({"metadata": {1: 2}}, UnsupportedType, "the key 1 is int, expected str"),
        ({"metadata": {"big": 2**64}}, InvalidValue, r'"big" is 18446744073709551616, outside -2\*\*63 to 2\*\*64-1'),
        ({"description": "\ud800"}, InvalidValue, '"description" holds a lone surrogate'),
        ({"tags": ["\ud800"]}, InvalidValue, '"tags" holds a lone surrogate'),
        ({"durability": "often"}, InvalidValue, 'durability is \'often\'; use "always", "interval" or "os"'),
        ({"remote": "ftp://x"}, InvalidValue, "does not begin with http:// or https://"),
        ({"remote": "http://u:secret@x"}, InvalidValue, r"remote 'http://\*\*\*@x' contains user info; .* api_key="),
    ],
)
def test_bad_arguments_are_refused_with_argument_value_and_what_is_accepted(
    make: Make, runs: Path, keywords: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        make(**{"name": "first", "project": "cv", **keywords})
    assert not runs.exists()


def test_close_takes_three_statuses(make: Make) -> None:
    with make() as experiment:
        with pytest.raises(InvalidValue, match="'done' is not a way to end; use one of completed, failed"):
            experiment.close(status="done")
        assert experiment.is_open


def test_one_tag_may_be_a_text(make: Make) -> None:
    with make(tags="baseline") as experiment:
        assert experiment.tags == ["baseline"]
