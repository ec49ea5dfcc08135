"""Files: added, listed, fetched, replaced, changed, deleted; what is refused; and on disk."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ml_dash import ChecksumMismatch, Experiment, InvalidValue, NotFound, StorageError, UnsupportedType
from ml_dash.files import compute_sha256, get_mime_type, verify_checksum
from ml_dash.journal import blobs as blobs_module

if TYPE_CHECKING:
    from tests.api.conftest import Make

KEYS = [
    "id", "experimentId", "path", "prefix", "filename", "description", "tags", "contentType", "sizeBytes", "checksum",
    "metadata", "uploadedAt", "updatedAt", "deletedAt",
]  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.pth"
    path.write_bytes(b"weights")
    return path


def _shown(experiment: Experiment) -> dict[str, bytes]:
    """What the folder shows: path below files/ → content."""
    folder = experiment.path / "files"
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".files_metadata.json"
    }


# -- adding -----------------------------------------------------------------------------------------------------------


def test_a_file_is_added_at_once_and_its_record_says_all(opened: Experiment, model: Path) -> None:
    record = opened.file("model.pth", prefix="/models", description="best", tags=["best"], metadata={"epoch": 3})
    assert list(record)[:14] == KEYS
    assert record["id"].isdecimal()
    assert {key: record[key] for key in KEYS if key not in ("id", "uploadedAt", "updatedAt")} == {
        "experimentId": opened.id, "path": "/models", "prefix": "/models/", "filename": "model.pth",
        "description": "best", "tags": ["best"], "contentType": get_mime_type("model.pth"), "sizeBytes": 7,
        "checksum": hashlib.sha256(b"weights").hexdigest(), "metadata": {"epoch": 3}, "deletedAt": None,
    }  # fmt: skip
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", record["uploadedAt"])
    assert record["updatedAt"] == record["uploadedAt"]
    assert record.save() is record
    assert opened.file().list() == [record]


def test_the_builder_form_adds_when_saved(opened: Experiment, model: Path) -> None:
    builder = opened.file(file_path=str(model), prefix="a/b/", tags="one")
    assert opened.file().list() == []
    record = builder.save()
    assert (record["path"], record["prefix"], record["tags"]) == ("a/b/", "a/b/", ["one"])
    assert opened.file(file_prefix=model, prefix="/c").save()["prefix"] == "/c/"
    assert opened.file(model, prefix=Path("/d"))["prefix"] == "/d/"
    assert opened.file(model)["prefix"] == "/"
    assert len(opened.file().list()) == 4


def test_the_folder_shows_files_under_their_prefix_and_all_records(make: Make, model: Path, read_json: Any) -> None:
    with make() as experiment:
        experiment.file(model)
        kept = experiment.file(model, prefix="models/best")
        gone = experiment.file(model, prefix="/models/old")
        experiment.file(file_id=gone["id"]).delete()
    assert _shown(experiment) == {"model.pth": b"weights", "models/best/model.pth": b"weights"}
    records = read_json(experiment.path / "files" / ".files_metadata.json")["files"]
    assert [record["prefix"] for record in records] == ["/", "models/best/", "/models/old/"]
    assert records[1] == kept
    assert records[2]["deletedAt"] is not None


def test_the_content_is_a_copy_of_the_moment(opened: Experiment, model: Path) -> None:
    record = opened.file(model)
    with model.open("r+b") as file:
        file.write(b"CHANGED")
    copy = opened.file(file_id=record["id"], dest_path="copy").download()
    assert Path(copy).read_bytes() == b"weights"
    blob = next((opened.path / ".journal" / "blobs").iterdir())
    assert blob.stat().st_ino != model.stat().st_ino


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, (8 << 20) + 1])
def test_files_of_any_size_are_kept(opened: Experiment, tmp_path: Path, size: int) -> None:
    (tmp_path / "data.bin").write_bytes(os.urandom(size))
    record = opened.file("data.bin")
    assert (record["sizeBytes"], record["checksum"]) == (size, compute_sha256("data.bin"))
    assert verify_checksum(opened.file(file_id=record["id"], dest_path="copy").download(), record["checksum"])


@pytest.mark.parametrize(
    "name", ["a b.txt", "Größe.txt", "🚀", ".hidden", ".files_metadata.json", "x" * 250, "%41", "CON", "a."]
)
def test_any_file_name_is_kept_and_comes_back_exactly(make: Make, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"content")
    with make() as experiment:
        record = experiment.file(tmp_path / name, prefix="/p/.hidden/")
        assert (record["filename"], record["path"]) == (name, "/p/.hidden/")
        (tmp_path / "to").mkdir()
        copy = experiment.file(file_id=record["id"], dest_path=tmp_path / "to").download()
        assert (Path(copy).name, Path(copy).read_bytes()) == (name, b"content")
    assert list(_shown(experiment).values()) == [b"content"]


def test_home_is_understood_in_paths(opened: Experiment, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(model.parent))
    record = opened.file("~/model.pth")
    assert opened.file(file_id=record["id"], dest_path="~/copy").download() == str(model.parent / "copy")


# -- replacing, clashing ----------------------------------------------------------------------------------------------


def test_the_same_prefix_and_name_replaces(make: Make, model: Path, read_json: Any) -> None:
    with make() as experiment:
        old = experiment.file(model, prefix="/models", tags=["old"])
        model.write_bytes(b"better")
        new = experiment.file(model, prefix="models/")
        assert old["id"] != new["id"]
        assert [(one["id"], one["tags"]) for one in experiment.file().list()] == [(new["id"], None)]
        with pytest.raises(NotFound, match=f"file {old['id']} was deleted or replaced in cv/first"):
            experiment.file(file_id=old["id"]).download()
    assert _shown(experiment) == {"models/model.pth": b"better"}
    records = {one["id"]: one for one in read_json(experiment.path / "files" / ".files_metadata.json")["files"]}
    assert records[old["id"]]["deletedAt"] == records[new["id"]]["uploadedAt"]


@pytest.mark.parametrize("first", ["file", "folder"])
def test_a_file_whose_path_is_the_folder_of_another_is_refused(opened: Experiment, tmp_path: Path, first: str) -> None:
    (tmp_path / "a").write_bytes(b"file")
    (tmp_path / "b").write_bytes(b"below")
    adds = [lambda: opened.file("a", prefix="/p"), lambda: opened.file("b", prefix="/p/a")]
    if first == "folder":
        adds.reverse()
    adds[0]()
    with pytest.raises(InvalidValue, match=r'file "p/a(/b)?" clashes with "p/a(/b)?".*; use another prefix'):
        adds[1]()
    [record] = opened.file().list()
    opened.file(file_id=record["id"]).delete()
    adds[1]()


def test_a_clash_met_only_at_a_merge_shows_the_later_under_another_name(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As two processes may do that cannot see each other: neither call was refused."""
    (tmp_path / "a").write_bytes(b"file")
    (tmp_path / "b").write_bytes(b"below")
    monkeypatch.setattr("ml_dash.files._refuse_clash", lambda *_: None)
    with make() as experiment:
        experiment.file("a", prefix="/p")
        later = experiment.file("b", prefix="/p/a")
        assert len(experiment.file().list()) == 2
    assert _shown(experiment) == {"p/a": b"file", f"b%{later['id']}": b"below"}


def test_names_that_only_begin_alike_do_not_clash(opened: Experiment, model: Path, tmp_path: Path) -> None:
    (tmp_path / "models").write_bytes(b"a file")
    opened.file(model, prefix="/models-old")
    opened.file("models")
    assert len(opened.file().list()) == 2


# -- listing ----------------------------------------------------------------------------------------------------------


def test_a_list_is_of_a_prefix_by_whole_parts_and_of_any_of_the_tags(opened: Experiment, model: Path) -> None:
    for prefix, tags in (("/models", ["a"]), ("/models/best", ["a", "b"]), ("/models-old", ["c"]), ("/", None)):
        opened.file(model, prefix=prefix, tags=tags)

    def listed(**wanted: Any) -> list[str]:
        return [record["prefix"] for record in opened.file(**wanted).list()]

    everything = ["/models/", "/models/best/", "/models-old/", "/"]
    assert listed() == listed(prefix="/") == listed(prefix="") == everything
    for prefix in ("/models", "models", "/models/", "//models//"):
        assert listed(prefix=prefix) == ["/models/", "/models/best/"]
    assert listed(prefix="models/best") == ["/models/best/"]
    assert listed(prefix="/mod") == listed(prefix="/other") == []
    assert listed(tags=["a"]) == ["/models/", "/models/best/"]
    assert listed(tags=["b", "c"]) == ["/models/best/", "/models-old/"]
    assert listed(tags="c") == ["/models-old/"]
    assert listed(prefix="models", tags=["b", "c"]) == ["/models/best/"]
    assert listed(tags=[]) == everything


# -- downloading ------------------------------------------------------------------------------------------------------


def test_a_download_goes_to_its_name_in_the_working_directory_or_where_it_is_sent(
    opened: Experiment, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = opened.file(model, prefix="/models")["id"]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert opened.file(file_id=identity).download() == "model.pth"
    assert (tmp_path / "elsewhere" / "model.pth").read_bytes() == b"weights"
    target = tmp_path / "new" / "deep" / "best.pth"
    assert opened.file(file_id=identity, dest_path=target).download() == str(target)
    into = opened.file(file_id=identity, dest_path=str(tmp_path / "new")).download()
    assert into == str(tmp_path / "new" / "model.pth")
    assert opened.file(file_id=identity, dest_path="made/").download() == "made/model.pth"
    assert all(path.read_bytes() == b"weights" for path in tmp_path.rglob("*.pth"))


def test_a_copy_may_be_written_over_by_its_owner(opened: Experiment, model: Path) -> None:
    copy = Path(opened.file(file_id=opened.file(model)["id"], dest_path="copy").download())
    assert copy.stat().st_mode & stat.S_IWUSR
    copy.write_bytes(b"mine")
    assert opened.file(file_id=opened.file().list()[0]["id"], dest_path="copy").download() == "copy"
    assert copy.read_bytes() == b"weights"


@pytest.mark.parametrize("damage", [b"WEIGHTS", b"", b"weights and more"])
def test_a_bad_copy_is_removed_and_told(opened: Experiment, model: Path, tmp_path: Path, damage: bytes) -> None:
    identity = opened.file(model)["id"]
    (blob,) = (opened.path / ".journal" / "blobs").iterdir()
    blob.chmod(0o644)
    blob.write_bytes(damage)
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "old").write_bytes(b"old")
    for name in ("new", "old"):
        with pytest.raises(ValueError, match=r'content of ".*" has SHA-256 .*, recorded was .*removed') as caught:
            opened.file(file_id=identity, dest_path=tmp_path / "to" / name).download()
        assert isinstance(caught.value, ChecksumMismatch)
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "to").iterdir()] == [("old", b"old")]


def test_a_content_that_is_gone_is_not_found(opened: Experiment, model: Path) -> None:
    identity = opened.file(model)["id"]
    (blob,) = (opened.path / ".journal" / "blobs").iterdir()
    blob.unlink()
    with pytest.raises(FileNotFoundError, match='content of "copy" is not in the journal; run: ml-dash verify'):
        opened.file(file_id=identity, dest_path="copy").download()


# -- changing, deleting -----------------------------------------------------------------------------------------------


def test_an_update_changes_what_is_given_and_nothing_else(make: Make, model: Path) -> None:
    with make() as experiment:
        record = experiment.file(model, description="d", tags=["a"], metadata={"k": 1})
        changed = experiment.file(file_id=record["id"], tags=["b"], metadata={}).update()
        expected = {**record, "tags": ["b"], "metadata": {}, "updatedAt": changed["updatedAt"]}
        assert changed == expected
        assert changed["updatedAt"] > record["updatedAt"]
        assert experiment.file(file_id=record["id"]).update() == expected
    with make(read_only=True) as reader:
        assert reader.file().list() == [expected]


def test_a_deleted_file_is_neither_listed_nor_shown(make: Make, model: Path) -> None:
    with make() as experiment:
        record = experiment.file(model, prefix="/models")
        answer = experiment.file(file_id=record["id"]).delete()
        assert list(answer) == ["id", "deletedAt"]
        assert (answer["id"], answer["deletedAt"] > record["uploadedAt"]) == (record["id"], True)
        assert experiment.file().list() == []
    assert _shown(experiment) == {}
    assert list((experiment.path / ".journal" / "blobs").iterdir()) == []


@pytest.mark.parametrize("act", ["download", "delete", "update"])
@pytest.mark.parametrize("identity", ["unknown", "deleted"])
def test_what_is_unknown_or_deleted_is_not_found(opened: Experiment, model: Path, act: str, identity: str) -> None:
    wanted = "12345"
    if identity == "deleted":
        wanted = opened.file(model)["id"]
        opened.file(file_id=wanted).delete()
    text = rf"file {wanted} (is unknown|was deleted).*; see file\(\)\.list\(\)"
    with pytest.raises(FileNotFoundError, match=text) as caught:
        getattr(opened.file(file_id=wanted, description="d"), act)()
    assert isinstance(caught.value, NotFound)


# -- what is refused --------------------------------------------------------------------------------------------------


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(5 * 1024**3 + 1)


@pytest.mark.parametrize(
    ("prepare", "text"),
    [
        (None, "file '.*odd' does not exist"),
        (Path.mkdir, "is not a regular file"),
        (_fifo, "is not a regular file"),
        (_loop, "cannot be read: Too many levels of symbolic links"),
        (_sparse, "has 5,368,709,121 bytes; at most 5 GB"),
        (lambda path: path.symlink_to("/dev/zero"), "is not a regular file"),
        (lambda path: path.symlink_to("nowhere"), "does not exist"),
    ],
    ids=["nothing", "folder", "fifo", "loop", "too large", "device", "dangling"],
)
def test_what_is_no_file_is_refused_and_leaves_nothing(
    opened: Experiment, tmp_path: Path, prepare: Any, text: str
) -> None:
    if prepare is not None:
        prepare(tmp_path / "odd")
    with pytest.raises(ValueError, match=text):
        opened.file(tmp_path / "odd")
    assert opened.file().list() == []
    assert list((opened.path / ".journal" / "blobs").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "text"),
    [
        ((), {}, InvalidValue, 'no file was named; use experiment.file("model.pth", prefix="/models")'),
        (("model.pth",), {"file_path": "other"}, InvalidValue, r"a path \('model.pth'\) and file_path \('other'\)"),
        (("model.pth",), {"file_id": "1"}, InvalidValue, r"more than one source was given: .* file_id \('1'\)"),
        (
            (),
            {"file_path": "a.pth", "prefix": "/a", "file_prefix": "b.pth"},
            InvalidValue,
            r"file_path \('a.pth'\) and file_prefix \('b.pth'\)",
        ),
        (("model.pth",), {"prefix": "/a/../b"}, ValueError, r'prefix "/a/../b" contains "\.\."'),
        (("model.pth",), {"prefix": "/a\nb"}, ValueError, r"contains the control character U\+000A"),
        ((b"bytes",), {}, UnsupportedType, r"the file is bytes, expected a path; write it to a file first"),
        (("model.pth",), {"prefix": 5}, UnsupportedType, "prefix is int, expected str"),
        (("model.pth",), {"tags": 5}, UnsupportedType, "expected a list of text"),
        (("model.pth",), {"metadata": 5}, UnsupportedType, "metadata is int, expected a mapping"),
        (("model.pth",), {"description": 5}, UnsupportedType, "description is int, expected text"),
        ((5,), {}, UnsupportedType, "the file is int, expected a path"),
        (("",), {}, InvalidValue, "the file is '', which is no path"),
        (("a\0b",), {}, InvalidValue, "which is no path"),
        ((b"model.pth",), {}, UnsupportedType, "the file is bytes, expected a path"),
    ],
)
def test_bad_arguments_are_refused_with_argument_value_and_what_is_accepted(
    opened: Experiment, model: Path, arguments: Any, keywords: dict[str, Any], error: Any, text: str
) -> None:
    pattern = text if "\\" in text else re.escape(text)
    with pytest.raises(error, match=pattern):
        opened.file(*arguments, **keywords).save()
    assert opened.file().list() == []


@pytest.mark.parametrize("identity", [None, "", 5])
@pytest.mark.parametrize("act", ["download", "delete", "update"])
def test_acts_on_one_file_need_its_id(opened: Experiment, identity: Any, act: str) -> None:
    with pytest.raises(InvalidValue, match=rf"file_id is {identity!r}; use the id of a record"):
        getattr(opened.file(file_id=identity), act)()


def test_an_unknown_argument_is_a_type_error(opened: Experiment, model: Path) -> None:
    with pytest.raises(TypeError, match="prefx"):
        opened.file("model.pth", prefx="/models")  # type: ignore[call-overload]


def test_a_file_that_changes_while_it_is_added_is_kept_as_it_was_stored(opened: Experiment, model: Path) -> None:
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            model.write_bytes(os.urandom(1 << 16) * 40)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(5):
            record = opened.file(model)
            copy = Path(opened.file(file_id=record["id"], dest_path="copy").download())
            assert (copy.stat().st_size, compute_sha256(copy)) == (record["sizeBytes"], record["checksum"])
    finally:
        stop.set()
        thread.join()


# -- a disk that refuses ----------------------------------------------------------------------------------------------


def _full(*_: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("step", ["store", "publish"])
def test_a_full_disk_does_not_stop_training_and_is_told(
    make: Make, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, step: str
) -> None:
    experiment = make().open()
    with monkeypatch.context() as patch:
        patch.setattr(blobs_module, step, _full)
        record = experiment.file(model, prefix="/models", tags=["a"])
    assert list(record) != []
    assert set(KEYS) <= set(record)
    assert (record["id"], record["checksum"], record["tags"], record["prefix"]) == ("", "", ["a"], "/models/")
    assert 'file "model.pth" was NOT recorded: No space left on device' in caplog.text
    assert experiment.file().list() == []
    experiment.log("training goes on")
    assert experiment.file(model, prefix="/models")["id"] != ""
    with pytest.raises(StorageError, match="1 event of cv/first was lost"):
        experiment.close()
    assert experiment.data["counts"]["files"] == 1


@pytest.mark.parametrize("step", ["store", "publish"])
def test_a_full_disk_raises_at_the_call_if_strict(
    make: Make, model: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    with make(strict=True) as experiment:
        with monkeypatch.context() as patch:
            patch.setattr(blobs_module, step, _full)
            with pytest.raises(OSError, match=r'not store file "model.pth" .* No space left.*; free space') as caught:
                experiment.file(model)
        assert isinstance(caught.value, StorageError)
        assert caught.value.errno == errno.ENOSPC
        assert experiment.file().list() == []
        experiment.file(model)


# -- helpers ----------------------------------------------------------------------------------------------------------


def test_helpers_for_content(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"{}")
    digest = hashlib.sha256(b"{}").hexdigest()
    assert compute_sha256("a.json") == compute_sha256(tmp_path / "a.json") == digest
    assert verify_checksum("a.json", digest)
    assert verify_checksum("a.json", digest.upper())
    assert not verify_checksum("a.json", "0" * 64)
    assert get_mime_type("a.json") == "application/json"
    assert get_mime_type(Path("/x/picture.PNG")) == "image/png"
    assert get_mime_type("weights.unknown") == get_mime_type("README") == "application/octet-stream"
