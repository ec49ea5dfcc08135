"""Contents of files on their way in: gone on with at any byte, verified, never listed before, never kept for nobody."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ml_dash.core.protocol import Refused
from ml_dash.server.engine.services import Server
from ml_dash.server.settings import ServerSettings
from tests.server.sending import EXPERIMENT, NS, SegmentBytes, assert_refolds, everything, identity_of, send, send_blob

CONTENT = bytes(range(256)) * 11


@pytest.fixture
def core(pair: ServerSettings) -> Iterator[Server]:
    server = Server(pair.data, pair)
    yield server
    server.close()


@pytest.fixture
def sheet() -> SegmentBytes:
    return SegmentBytes().opens()


def put(
    core: Server, sheet: SegmentBytes, name: str, offset: int, data: bytes, size: int = len(CONTENT)
) -> dict[str, object]:
    return {**core.append_blob(NS, sheet.journal, name, offset, size, data, body=False)}


def code(call: object) -> str:
    with pytest.raises(Refused) as told:
        call()  # type: ignore[operator]
    return told.value.code


def content(core: Server, name: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join(core.open_file(NS, EXPERIMENT, identity_of(name), start, end)[1])


@pytest.mark.every_pair
def test_a_content_is_pending_until_it_is_whole(core: Server, sheet: SegmentBytes) -> None:
    name = sheet.adds_file(CONTENT)
    send(core, sheet)
    assert core.journal(NS, sheet.journal)["missing"] == [name]
    assert json.loads(core.list_files(NS, EXPERIMENT))["files"][0]["pending"] is True
    assert code(lambda: content(core, name)) == "pending"
    assert put(core, sheet, name, 0, CONTENT[:100]) == {"length": 100, "size": len(CONTENT), "complete": False}
    assert code(lambda: content(core, name)) == "pending"
    assert put(core, sheet, name, 100, CONTENT[100:])["complete"] is True
    assert content(core, name) == CONTENT
    assert content(core, name, 5, 9) == CONTENT[5:9]
    assert "pending" not in json.loads(core.list_files(NS, EXPERIMENT))["files"][0]
    state = core.journal(NS, sheet.journal)
    assert (state["missing"], list(state["blobs"])) == ([], [name])
    assert list(core.staging.iterdir()) == []
    # And again: it is there.
    assert put(core, sheet, name, 0, CONTENT)["complete"] is True


@pytest.mark.every_pair
@pytest.mark.parametrize("cut", [1, 7, 256, len(CONTENT) - 1])
def test_it_goes_on_at_any_byte_also_after_a_start(pair: ServerSettings, sheet: SegmentBytes, cut: int) -> None:
    name = sheet.adds_file(CONTENT)
    core = Server(pair.data, pair)
    send(core, sheet)
    put(core, sheet, name, 0, CONTENT[:cut])
    core.close()
    core = Server(pair.data, pair)
    assert core.blob_state(NS, sheet.journal, name) == {"length": cut, "size": len(CONTENT), "complete": False}
    # What overlaps is passed over.
    put(core, sheet, name, cut // 2, CONTENT[cut // 2 : cut])
    assert put(core, sheet, name, cut // 2, CONTENT[cut // 2 :])["complete"] is True
    assert content(core, name) == CONTENT
    core.close()


def test_all_bytes_without_the_verdict_are_verified_by_a_piece_of_nothing(core: Server, sheet: SegmentBytes) -> None:
    """The server was killed between the last byte and the verdict."""
    name = sheet.adds_file(CONTENT)
    send(core, sheet)
    put(core, sheet, name, 0, CONTENT[:-1])
    (part,) = (core.staging.parent / "staging").glob("*.part")
    part.write_bytes(CONTENT)
    assert core.blob_state(NS, sheet.journal, name) == {
        "length": len(CONTENT), "size": len(CONTENT), "complete": False,
    }  # fmt: skip
    assert put(core, sheet, name, len(CONTENT), b"")["complete"] is True
    assert content(core, name) == CONTENT


def test_a_gap_is_refused_with_the_length(core: Server, sheet: SegmentBytes) -> None:
    name = sheet.adds_file(CONTENT)
    send(core, sheet)
    put(core, sheet, name, 0, CONTENT[:10])
    with pytest.raises(Refused) as told:
        put(core, sheet, name, 11, CONTENT[11:])
    assert (told.value.code, told.value.extra) == ("gap", {"length": 10})


@pytest.mark.every_pair
def test_a_wrong_content_is_dropped_and_begins_anew(core: Server, sheet: SegmentBytes) -> None:
    name = sheet.adds_file(CONTENT)
    send(core, sheet)
    put(core, sheet, name, 0, b"x" * 100)
    assert code(lambda: put(core, sheet, name, 100, CONTENT[100:])) == "digest"
    assert core.blob_state(NS, sheet.journal, name)["length"] == 0
    assert code(lambda: content(core, name)) == "pending"
    assert put(core, sheet, name, 0, CONTENT)["complete"] is True


@pytest.mark.every_pair
def test_an_empty_file_is_a_file(core: Server, sheet: SegmentBytes) -> None:
    name = sheet.adds_file(b"")
    send(core, sheet)
    assert put(core, sheet, name, 0, b"", 0)["complete"] is True
    assert content(core, name) == b""


@pytest.mark.every_pair
def test_what_no_event_names_is_not_taken(core: Server, sheet: SegmentBytes) -> None:
    name = sheet.adds_file(CONTENT)
    assert code(lambda: put(core, sheet, name, 0, CONTENT)) == "no_event"
    send(core, sheet)
    assert code(lambda: put(core, sheet, name, 0, CONTENT[:5], 5)) == "malformed"
    assert code(lambda: put(core, sheet, name, 0, CONTENT + b"x")) == "malformed"
    for bad in ("", "x", "../" + name, name + "/..", name.upper(), name + "\n"):
        assert code(lambda bad=bad: put(core, sheet, bad, 0, CONTENT)) == "malformed"
    assert list(core.staging.iterdir()) == []
    assert list(core.objects.list("")) == []


@pytest.mark.every_pair
def test_the_same_content_is_linked_and_not_asked_for(core: Server, sheet: SegmentBytes) -> None:
    first, second = sheet.adds_file(CONTENT, "a.pt"), sheet.adds_file(CONTENT, "b.pt")
    other = SegmentBytes(2, journal=2, name="other").opens()
    third = other.adds_file(CONTENT)
    send(core, sheet)
    send(core, other)
    send_blob(core, sheet, first, CONTENT)
    assert core.blob_state(NS, sheet.journal, second)["complete"] is True
    assert core.blob_state(NS, other.journal, third)["complete"] is True
    assert content(core, second) == CONTENT
    # Each lives on without the others.
    send(core, sheet.deletes_file(first), sheet.ends[-2])
    assert content(core, second) == CONTENT
    assert core.blob_state("bob", sheet.journal, second)["complete"] is False


@pytest.mark.every_pair
def test_a_lost_object_is_asked_for_again_and_never_linked(core: Server, sheet: SegmentBytes) -> None:
    first = sheet.adds_file(CONTENT, "a.pt")
    send(core, sheet)
    send_blob(core, sheet, first, CONTENT)
    (key,) = core.objects.list("")
    core.objects.delete(key)
    assert core.journal(NS, sheet.journal)["missing"] == [first]
    assert core.blob_state(NS, sheet.journal, first)["complete"] is False
    end = len(sheet.data)
    second = sheet.adds_file(CONTENT, "b.pt")
    send(core, sheet, end)
    assert core.blob_state(NS, sheet.journal, second)["complete"] is False
    assert code(lambda: content(core, first)) == "unknown"
    send_blob(core, sheet, first, CONTENT)
    assert content(core, first) == CONTENT
    assert core.blob_state(NS, sheet.journal, second)["complete"] is True


def test_a_cut_object_counts_as_lost(core: Server, sheet: SegmentBytes, pair: ServerSettings) -> None:
    name = sheet.adds_file(CONTENT)
    send(core, sheet)
    send_blob(core, sheet, name, CONTENT)
    (path,) = (path for path in (pair.data / "objects").rglob("*") if path.is_file())
    os.truncate(path, 100)
    assert core.journal(NS, sheet.journal)["missing"] == [name]
    send_blob(core, sheet, name, CONTENT)
    assert content(core, name) == CONTENT


@pytest.mark.every_pair
@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_what_is_released_goes(core: Server, sheet: SegmentBytes, how: str) -> None:
    name = sheet.adds_file(CONTENT)
    send(core, sheet)
    send_blob(core, sheet, name, CONTENT)
    end = len(sheet.data)
    later = None if how == "deleted" else sheet.adds_file(b"new")
    if later is None:
        sheet.deletes_file(name)
    send(core, sheet, end)
    assert list(core.objects.list("")) == []
    assert core.journal(NS, sheet.journal)["missing"] == ([] if later is None else [later])
    assert core.blob_state(NS, sheet.journal, name)["complete"] is True
    assert put(core, sheet, name, 0, CONTENT)["complete"] is True
    assert list(core.objects.list("")) == []
    assert_refolds(core)


@pytest.mark.every_pair
def test_what_is_released_during_its_upload_is_not_kept(core: Server, sheet: SegmentBytes) -> None:
    name = sheet.adds_file(CONTENT)
    send(core, sheet)
    put(core, sheet, name, 0, CONTENT[:100])
    send(core, sheet.deletes_file(name), sheet.ends[-2])
    assert put(core, sheet, name, 100, CONTENT[100:])["complete"] is True
    assert list(core.objects.list("")) == []
    assert list(core.staging.iterdir()) == []


@pytest.mark.every_pair
def test_contents_of_removed_writers_are_not_wanted(core: Server, sheet: SegmentBytes) -> None:
    name = sheet.adds_file(CONTENT)
    send(core, sheet)
    send_blob(core, sheet, name, CONTENT)
    core.remove_experiment(NS, EXPERIMENT)
    assert list(core.objects.list("")) == []
    assert core.blob_state(NS, sheet.journal, name)["complete"] is True
    assert put(core, sheet, name, 0, CONTENT)["complete"] is True
    assert list(core.objects.list("")) == []
    assert code(lambda: core.open_blob(NS, EXPERIMENT, name, 0, None)) == "unknown"


@pytest.mark.every_pair
def test_another_namespace_sees_no_content(core: Server, sheet: SegmentBytes) -> None:
    name = sheet.adds_file(CONTENT)
    send(core, sheet)
    send_blob(core, sheet, name, CONTENT)
    assert code(lambda: core.open_blob("bob", EXPERIMENT, name, 0, None)) == "unknown"
    assert b"".join(core.open_blob(NS, EXPERIMENT, name, 0, None)[0]) == CONTENT


@pytest.mark.every_pair
@pytest.mark.parametrize("ns", ["a/b", "..", "a%2Fb", ".", "ü/../x", ""])
def test_any_namespace_is_one_part_of_a_key(core: Server, tmp_path: Path, sheet: SegmentBytes, ns: str) -> None:
    name = sheet.adds_file(CONTENT)
    core.append_segment(ns, sheet.journal, sheet.file, 0, sheet.data)
    core.append_blob(ns, sheet.journal, name, 0, len(CONTENT), CONTENT, body=False)
    (key,) = core.objects.list("")
    assert len(key.split("/")) == 6
    assert hashlib.sha256(b"".join(core.open_blob(ns, EXPERIMENT, name, 0, None)[0])).hexdigest() == name[:64]
    assert {path.split("/")[0] for path in everything(tmp_path)} <= {"data"}


def test_what_was_left_half_done_is_removed_at_the_start(pair: ServerSettings, sheet: SegmentBytes) -> None:
    name = sheet.adds_file(CONTENT)
    core = Server(pair.data, pair)
    send(core, sheet)
    put(core, sheet, name, 0, CONTENT[:100])
    days_ago = (time.time() - 40 * 86_400,) * 2
    for left in (core.staging / "upload-1", pair.data / "staging" / "00.part"):
        left.write_bytes(b"x")
        os.utime(left, days_ago)
    core.close()
    core = Server(pair.data, pair)
    assert list(core.staging.iterdir()) == []
    assert len(list((pair.data / "staging").glob("*.part"))) == 1
    assert core.blob_state(NS, sheet.journal, name)["length"] == 100
    core.close()
