"""What every implementation of the objects seam must do: whole contents under keys that are never taken for paths."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml_dash.server.stores import Objects, StoreTrouble
from ml_dash.server.stores.disk import DiskObjects
from tests.contracts.places import Place, S3Place

KEY = "files/alice/cv/4711/12/model.pt"


@pytest.fixture
def objects(place: Place) -> Objects:
    return place.objects()


@pytest.fixture
def staged(tmp_path: Path) -> Callable[[bytes], Path]:
    count = iter(range(1 << 30))

    def make(content: bytes) -> Path:
        path = tmp_path / f"staged-{next(count)}"
        path.write_bytes(content)
        return path

    return make


def content(objects: Objects, key: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join(objects.open(key, start, end))


# -- what is put is there ---------------------------------------------------------------------------------------------


def test_what_was_put_comes_back_and_the_file_was_taken(objects: Objects, staged: Any) -> None:
    path = staged(b"weights")
    objects.put(KEY, path)
    assert content(objects, KEY) == b"weights"
    assert objects.size(KEY) == 7
    assert not path.exists()


def test_many_are_put_together(objects: Objects) -> None:
    contents = {f"files/alice/cv/4711/{number % 7}/{number}.bin": b"%d" % number for number in range(50)}
    objects.put_bytes(KEY, b"before")
    objects.put_contents([*contents.items(), (KEY, b"after")])
    assert {key: content(objects, key) for key in contents} == contents
    assert content(objects, KEY) == b"after"
    objects.put_contents([])
    assert objects.sizes([*contents, KEY, "files/none"]) == {key: len(held) for key, held in contents.items()} | {
        KEY: 5
    }
    assert objects.sizes([KEY, "files/none"]) == {KEY: 5}
    assert objects.sizes([]) == {}


def test_of_one_key_put_twice_together_the_last_counts(objects: Objects) -> None:
    objects.put_contents([(KEY, b"%d" % number) for number in range(8)])
    assert content(objects, KEY) == b"7"


@pytest.mark.parametrize("whole", [b"", b"weights", bytes(9 << 20)], ids=len)
def test_what_is_in_memory_is_stored(objects: Objects, whole: bytes) -> None:
    objects.put_bytes(KEY, b"before")
    objects.put_bytes(KEY, whole)
    assert content(objects, KEY) == whole


def test_a_copy_is_an_object_of_its_own(objects: Objects) -> None:
    objects.put_bytes("a", b"weights")
    objects.put_bytes("b/c", b"before")
    objects.copy("a", "b/c")
    objects.copy("a", "a")
    objects.delete("a")
    assert content(objects, "b/c") == b"weights"


def test_two_servers_see_the_same_objects(place: Place) -> None:
    one, other = place.objects(), place.objects()
    one.put_bytes(KEY, b"weights")
    assert content(other, KEY) == b"weights"
    other.put_bytes(KEY, b"new")
    assert content(one, KEY) == b"new"
    one.delete(KEY)
    assert other.size(KEY) is None


def test_an_empty_content_is_a_content(objects: Objects, staged: Any) -> None:
    objects.put(KEY, staged(b""))
    assert content(objects, KEY) == b""
    assert objects.size(KEY) == 0


def test_a_later_put_replaces_the_whole_and_an_open_reader_keeps_the_old(objects: Objects, staged: Any) -> None:
    old = bytes(3 << 20)
    objects.put(KEY, staged(old))
    reading = objects.open(KEY)
    first = next(reading)
    objects.put(KEY, staged(b"new"))
    assert content(objects, KEY) == b"new"
    assert first + b"".join(reading) in (old, first + b"new"[len(first) :])


@pytest.mark.parametrize(
    ("start", "end"), [(0, 0), (0, 1), (1, 4), (0, None), (5, None), (10, None), (10, 12), (11, 20), (3, 3), (0, 99)]
)
def test_a_part_is_that_part(objects: Objects, staged: Any, start: int, end: int | None) -> None:
    objects.put(KEY, staged(b"0123456789"))
    assert content(objects, KEY, start, end) == b"0123456789"[start:end]


def test_large_contents_come_in_pieces_of_bounded_size(objects: Objects, staged: Any) -> None:
    whole = os.urandom(5 << 20)
    objects.put(KEY, staged(whole))
    pieces = list(objects.open(KEY, 17, len(whole) - 3))
    assert b"".join(pieces) == whole[17:-3]
    assert len(pieces) > 1
    assert max(map(len, pieces)) <= 8 << 20


def test_a_reader_that_is_dropped_unread_lets_go_of_the_file(objects: Objects, staged: Any) -> None:
    objects.put(KEY, staged(b"weights"))
    dropped: Any = objects.open(KEY)
    dropped.close()
    assert list(dropped) == []
    del dropped
    objects.open(KEY)  # the check for leaks looks at what is open afterwards


# -- what is not there ------------------------------------------------------------------------------------------------


def test_what_is_missing_is_missing_at_the_call(objects: Objects) -> None:
    assert objects.size(KEY) is None
    with pytest.raises(FileNotFoundError):
        objects.open(KEY)
    with pytest.raises(FileNotFoundError):
        objects.copy(KEY, "files/other")
    objects.delete(KEY)
    assert list(objects.list("")) == []


def test_a_key_below_that_of_an_object_is_missing(objects: Objects, staged: Any) -> None:
    objects.put("a/b", staged(b"1"))
    assert objects.size("a/b/c") is None
    objects.delete("a/b/c")
    with pytest.raises(FileNotFoundError):
        objects.open("a/b/c")
    assert content(objects, "a/b") == b"1"


def test_deleting_takes_only_that_one(objects: Objects, staged: Any) -> None:
    objects.put("a/b/one", staged(b"1"))
    objects.put("a/b/two", staged(b"2"))
    objects.delete("a/b/one")
    assert objects.size("a/b/one") is None
    assert content(objects, "a/b/two") == b"2"
    objects.delete("a/b/two")
    objects.put("a/b/one", staged(b"again"))
    assert content(objects, "a/b/one") == b"again"


# -- copies -----------------------------------------------------------------------------------------------------------


def test_a_copy_is_there_and_outlives_its_source(objects: Objects, staged: Any) -> None:
    objects.put("one", staged(b"weights"))
    objects.copy("one", "deep/below/two")
    objects.delete("one")
    assert content(objects, "deep/below/two") == b"weights"


def test_a_copy_replaces_what_is_there(objects: Objects, staged: Any) -> None:
    objects.put("one", staged(b"whole"))
    objects.put("two", staged(b"cut o"))
    objects.copy("one", "two")
    objects.copy("one", "two")
    assert content(objects, "two") == b"whole"
    objects.put("one", staged(b"other"))
    assert content(objects, "two") == b"whole"
    assert sorted(objects.list("")) == ["one", "two"]


# -- keys -------------------------------------------------------------------------------------------------------------

HOSTILE = [
    "../outside", "..", ".", "files/../../outside", "/etc/passwd", "files//x", "a/", "", "/", "files/./x", "a\\..\\b",
    "nul\x00l", "line\nfeed", "C:\\x", "\\\\host\\share\\x", "%2e%2e/x", "..%2fx", ".tmp-0", "~root", "x" * 255,
    "é" * 255, "a/" + "😀" * 300, "." * 300, "%" * 300, "CON", "end.", "\ud800", "‮txt", "a?b#c", "%+", "%-", "a%+/%-b",
]  # fmt: skip


@pytest.mark.parametrize("key", HOSTILE, ids=ascii)
def test_no_key_leads_out(objects: Objects, staged: Any, tmp_path: Path, key: str) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"theirs")
    path = staged(b"ours")
    before = {found for found in tmp_path.rglob("*") if "objects" not in found.parts}
    try:
        objects.put(key, path)
    except ValueError:
        with pytest.raises(ValueError, match="key"):
            objects.open(key)
    else:
        assert content(objects, key) == b"ours"
        assert list(objects.list("")) == [key]
        objects.delete(key)
        assert list(objects.list("")) == []
    assert outside.read_bytes() == b"theirs"
    after = {found for found in tmp_path.rglob("*") if "objects" not in found.parts}
    assert after <= before


_part = st.text(st.characters(exclude_characters="/"), min_size=1, max_size=90) | st.sampled_from(
    [".", "..", "%2E", "%+", "%-", "a" * 199, "a" * 200, "a" * 201, "%" * 67, "a%", "A", "a", " ", "é", "e\u0301"]
)
_keys = st.lists(st.lists(_part, min_size=1, max_size=3).map("/".join), min_size=1, max_size=6, unique=True)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keys=_keys)
def test_different_keys_are_different_objects(place: Place, tmp_path: Path, keys: list[str]) -> None:
    # One that is a folder of another cannot be both in every technology; names of the server never are.
    keys = [key for key in keys if not any(other.startswith(key + "/") for other in keys)]
    objects = place.elsewhere()
    for number, key in enumerate(keys):
        path = tmp_path / "staged"
        path.write_bytes(str(number).encode())
        objects.put(key, path)
    assert sorted(objects.list("")) == sorted(keys)
    for number, key in enumerate(keys):
        assert content(objects, key) == str(number).encode()


def test_listing_is_by_the_beginning_of_the_key(objects: Objects, staged: Any) -> None:
    for key in ("files/alice/1", "files/alice/2", "files/al", "bodies/alice/1"):
        objects.put(key, staged(b"x"))
    assert sorted(objects.list("files/alice/")) == ["files/alice/1", "files/alice/2"]
    assert sorted(objects.list("files/al")) == ["files/al", "files/alice/1", "files/alice/2"]
    assert list(objects.list("other")) == []


def test_entries_have_size_and_time(objects: Objects, staged: Any) -> None:
    begun_ns = time.time_ns()
    path = staged(b"weights")
    os.utime(path, (1, 1))  # it may have waited for days, but as an object it is new
    objects.put("a/put", path)
    objects.put_contents([("a/many", b"123")])
    objects.put_bytes("a/bytes", b"")
    objects.copy("a/put", "a/copy")
    objects.put_bytes("b", b"x")
    found = {key: (size, changed_ns) for key, size, changed_ns in objects.entries("a/")}
    assert {key: size for key, (size, _) in found.items()} == {"a/put": 7, "a/many": 3, "a/bytes": 0, "a/copy": 7}
    # Times of S3 are in seconds.
    assert all(begun_ns - 1e9 <= changed_ns <= time.time_ns() + 1e9 for _, changed_ns in found.values())


def test_many_are_deleted_together(objects: Objects) -> None:
    keys = [f"files/{number % 5}/{number}" for number in range(30)]
    for key in keys:
        objects.put_bytes(key, b"x")
    objects.delete_many([*keys[3:], *keys[3:], "files/never/there"])
    assert sorted(objects.list("")) == sorted(keys[:3])
    objects.delete_many([])


LONG = "files/" + "/".join(["\u00e9" * 127, "\u4e2d" * 85, "%" * 100, "x" * 255, "\U0001f600" * 30]) + "/"


def test_keys_that_are_too_long_for_a_name_come_back_from_lists(objects: Objects) -> None:
    keys = [f"{LONG}{number}.pt" for number in range(3)] + [LONG + "\ud800" * 99, LONG[:-1] + "y"]
    for key in keys:
        objects.put_bytes(key, key.encode("utf-8", "surrogatepass"))
    for key in keys:
        assert content(objects, key) == key.encode("utf-8", "surrogatepass")
    for prefix in ("", "files/", "files/\u00e9\u00e9", LONG, LONG + "1", LONG[:-1] + "y", LONG + "\ud800"):
        assert sorted(objects.list(prefix)) == sorted(key for key in keys if key.startswith(prefix)), prefix
    objects.copy(keys[0], LONG + "copy")
    assert content(objects, LONG + "copy") == content(objects, keys[0])
    objects.delete_many([*keys, LONG + "copy"])
    assert list(objects.entries("")) == []


# -- trouble ----------------------------------------------------------------------------------------------------------


def test_it_says_that_it_works(objects: Objects) -> None:
    objects.check()


@pytest.fixture
def disk(tmp_path: Path) -> DiskObjects:
    return DiskObjects(tmp_path / "objects")


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, int], None]]:
    def fail(name: str, code: int) -> None:
        def refuse(*_: Any, **__: Any) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, name, refuse)

    yield fail
    monkeypatch.undo()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EMFILE, errno.EDQUOT])
@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_refusing_disk_is_trouble_and_nothing_is_there(
    disk: DiskObjects, staged: Any, broken: Any, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    path = staged(b"weights")
    broken(call, code)
    with pytest.raises(StoreTrouble):
        disk.put(KEY, path)
    monkeypatch.undo()
    assert disk.size(KEY) is None
    disk.put(KEY, path)
    assert content(disk, KEY) == b"weights"


def test_staging_on_another_file_system_is_copied(disk: DiskObjects, staged: Any, monkeypatch: Any) -> None:
    path, replace, refused = staged(b"weights"), os.replace, []

    def across(source: Any, target: Any) -> None:
        if Path(source) == path and not refused:
            refused.append(source)
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        replace(source, target)

    monkeypatch.setattr(os, "replace", across)
    disk.put(KEY, path)
    assert content(disk, KEY) == b"weights"
    assert not path.exists()


@pytest.mark.parametrize("code", [errno.EPERM, errno.EMLINK, errno.ENOTSUP])
def test_where_there_are_no_links_a_copy_is_made(disk: DiskObjects, staged: Any, broken: Any, code: int) -> None:
    disk.put("one", staged(b"weights"))
    broken("link", code)
    disk.copy("one", "two")
    disk.delete("one")
    assert content(disk, "two") == b"weights"
    assert list(disk.list("")) == ["two"]


def test_reading_trouble_is_trouble(disk: DiskObjects, staged: Any, broken: Any) -> None:
    disk.put(KEY, staged(b"weights"))
    reading = disk.open(KEY)
    broken("pread", errno.EIO)
    with pytest.raises(StoreTrouble):
        next(reading)
    broken("open", errno.EMFILE)
    with pytest.raises(StoreTrouble):
        disk.open(KEY)


def test_a_folder_that_cannot_be_written_is_told(disk: DiskObjects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(StoreTrouble):
        disk.check()


def unless_folder_vanished(do: Callable[[], None]) -> None:
    """S3 knows no folders. The service of the tests keeps some, and refuses while another request takes one away."""
    for _ in range(50):
        try:
            return do()
        except StoreTrouble as refused:
            if "ExistingObjectIsDirectory" not in str(refused):
                raise
    return do()


def test_adding_beside_removing_never_fails(place: Place, objects: Objects, tmp_path: Path) -> None:
    """Removing the last object of a folder removes the folder, which another thread is just putting one into."""
    errors: list[BaseException] = []
    again = unless_folder_vanished if isinstance(place, S3Place) else lambda do: do()

    def work(number: int) -> None:
        try:
            for turn in range(15 if isinstance(place, S3Place) else 60):
                path = tmp_path / f"mine-{number}-{turn}"
                path.write_bytes(b"x")
                key = f"files/shared/{number}/x"
                again(partial(objects.put, key, path))
                again(partial(objects.copy, key, f"files/shared/{number}/y/z"))
                objects.delete(key)
                assert content(objects, f"files/shared/{number}/y/z") == b"x"
                objects.delete(f"files/shared/{number}/y/z")
        except BaseException as error:  # noqa: BLE001  # told by the main thread
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
