"""The oracle's own tests: a judge that cannot find anyone guilty proves nothing."""

from __future__ import annotations

import hashlib
import random
import struct
from pathlib import Path

import msgpack
import pytest

from tests.faults.shim import CREATE, MKDIR, RENAME, SYNC, SYNC_FAILED, WRITE, Operation

from . import oracle_reader as disk
from .compare import check_folder
from .edits import edit_at_random, whole_frames
from .oracle import RECORD, Ledger, check_blobs, digest, gaps, judge
from .powercut import Disk

WRITER = b"W" * 16
BODIES: list[list[object]] = [["info", f"entry {n}", None] for n in range(5)]


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """A journal of an opening event and five log entries."""
    write(tmp_path / ".journal", list(enumerate(BODIES, 1)))
    return tmp_path / ".journal"


def write(path: Path, entries: list[tuple[int, list[object]]], *, n: int = 0) -> Path:
    """One segment with these (number, body) log entries, after an opening event."""
    (path / "segments").mkdir(parents=True, exist_ok=True)
    (path / "blobs").mkdir(exist_ok=True)
    header = disk.make_header(WRITER, n=n, segment=bytes([n]) * 16)
    content = header + disk.make_frame(header, 0, disk.OPEN, 1, {"project": "p"}) * (n == 0)
    for seq, body in entries:
        content += disk.make_frame(header, seq, disk.LOG, 10 + seq, body)
    segment = path / "segments" / disk.segment_name(WRITER, n=n)
    segment.write_bytes(content)
    return segment


def ledger(*, issued: int = 5, acked: int = 5) -> Ledger:
    """What a victim would have told of these entries."""
    made = Ledger()
    for number in range(issued):
        sha = digest(disk.LOG, BODIES[number])
        made.feed(RECORD.pack(b"B", 0, number + 1, sha))
        if number < acked:
            made.feed(RECORD.pack(b"A", 0, number + 1, b""))
    return made


def test_what_is_right_is_found_right(journal: Path) -> None:
    assert judge(journal, ledger()) == []
    assert judge(journal, ledger(acked=3)) == []


def test_a_lost_event_is_found(journal: Path) -> None:
    write(journal, list(enumerate(BODIES, 1))[:4])
    assert any("1 acknowledged events are lost" in problem for problem in judge(journal, ledger()))
    assert judge(journal, ledger(acked=4)) == []


def test_an_invented_event_is_found(journal: Path) -> None:
    assert any("never issued" in problem for problem in judge(journal, ledger(issued=4, acked=4)))


def test_a_doubled_event_is_found(journal: Path) -> None:
    write(journal, [(6, BODIES[0])], n=1)
    assert any("stands under 2 numbers" in problem for problem in judge(journal, ledger()))


def test_the_same_event_in_two_segments_is_one_event(journal: Path) -> None:
    write(journal, [(5, BODIES[4])], n=1)
    assert judge(journal, ledger()) == []
    assert disk.read_journal(journal).rewritten == 1


def test_a_number_used_twice_is_found(journal: Path) -> None:
    write(journal, [(5, ["info", "other", None])], n=1)
    assert any("two different events 5" in problem for problem in judge(journal, ledger()))


def test_a_wrong_order_is_found(journal: Path) -> None:
    write(journal, list(enumerate([BODIES[1], BODIES[0], *BODIES[2:]], 1)))
    assert any("out of order" in problem for problem in judge(journal, ledger()))


def test_a_changed_payload_is_no_frame_and_a_gap(journal: Path) -> None:
    (segment,) = (journal / "segments").iterdir()
    data = bytearray(segment.read_bytes())
    data[data.index(b"entry 2")] ^= 1
    segment.write_bytes(data)
    found = disk.read_journal(journal)
    assert found.damaged_bytes > 0
    assert gaps(found) == {WRITER.hex(): [3]}
    assert any("lost" in problem for problem in judge(found, ledger()))


def test_a_frame_of_another_segment_does_not_hold() -> None:
    one, other = disk.make_header(WRITER, segment=b"1" * 16), disk.make_header(WRITER, segment=b"2" * 16)
    frame = disk.make_frame(one, 0, disk.LOG, 1, BODIES[0])
    assert [f.seq for f in disk.read_bytes(one + frame).frames] == [0]
    assert disk.read_bytes(other + frame).frames == []


def test_a_damaged_header_costs_no_frame(journal: Path) -> None:
    (segment,) = (journal / "segments").iterdir()
    data = segment.read_bytes()
    for place in range(disk.read_header(data).size):
        segment.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        assert len(disk.read_journal(journal).events) == 6, f"byte {place}"


def test_a_file_event_without_its_content_is_found(tmp_path: Path) -> None:
    path, header = tmp_path / ".journal", disk.make_header(WRITER)
    checksum = hashlib.sha256(b"content").hexdigest()
    body = {"prefix": "", "filename": "f", "sizeBytes": 7, "checksum": checksum}
    (path / "segments").mkdir(parents=True)
    (path / "blobs").mkdir()
    (path / "segments" / disk.segment_name(WRITER)).write_bytes(header + disk.make_frame(header, 0, disk.FILE, 1, body))
    blob = path / "blobs" / f"{checksum}-{WRITER.hex()}-0"
    assert any("has no blob" in problem for problem in check_blobs(path))
    blob.write_bytes(b"conten!")
    assert any("the event says" in problem for problem in check_blobs(path))
    blob.write_bytes(b"content")
    assert check_blobs(path) == []


def test_a_missing_a_doubled_and_a_moved_line_are_found(journal: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for name in ("logs", "metrics", "files"):
        (folder / name).mkdir(parents=True)
    (folder / "parameters.json").write_text("{}")
    (folder / "files" / ".files_metadata.json").write_text('{"files": []}')
    lines = [
        f'{{"level": "info", "message": "entry {n}", "metadata": null, "sequenceNumber": {number}}}\n'
        for number, n in enumerate((0, 1, 2, 3, 4))
    ]
    found = disk.read_journal(journal)
    logs = folder / "logs" / "logs.jsonl"

    def problems(*chosen: int) -> str:
        logs.write_text("".join(lines[n] for n in chosen))
        return "; ".join(check_folder(folder, found))

    assert problems(0, 1, 2, 3, 4) == ""
    assert "1 missing" in problems(0, 1, 2, 3)
    assert "1 too many" in problems(0, 1, 2, 3, 4, 4)
    assert "order" in problems(1, 0, 2, 3, 4)
    logs.write_text("".join(lines)[:-1])
    with pytest.raises(ValueError, match="middle of a line"):
        check_folder(folder, found)


def test_edits_know_what_they_touched() -> None:
    header = disk.make_header(WRITER)
    data = header + b"".join(disk.make_frame(header, n, disk.LOG, n, ["info", "x" * 50, None]) for n in range(40))
    frames = disk.read_bytes(data).frames
    different = 0
    for seed in range(300):
        edited = edit_at_random(data, random.Random(seed), len(header))
        whole = whole_frames(edited, frames)
        there = {frame.seq for frame in frames if data[frame.start : frame.end] in edited.data}
        assert whole <= there, f"seed {seed}"
        different += whole != there
    # Now and then a byte is overwritten with itself.
    assert different < 10


# -- the model of a disk ---------------------------------------------------------------------------------------------


def cut(tmp_path: Path, *operations: Operation, damage: int = 0) -> dict[str, bytes]:
    """What is left of these operations below /r after a power cut."""
    model = Disk(Path("/r"))
    for operation in operations:
        model.feed(operation)
    left = tmp_path / "left"
    model.cut(left, damage, random.Random(1))
    return {str(path.relative_to(left)): path.read_bytes() for path in left.rglob("*") if path.is_file()}


def op(kind: int, path: str = "", data: bytes = b"", *, inode: int = 1, offset: int = 0, path2: str = "") -> Operation:
    """One operation."""
    return Operation(kind, inode, offset, f"/r{path}", f"/r{path2}", data)


MADE = (op(CREATE, "/f"), op(WRITE, "/f", b"abc"))


def test_nothing_is_safe_without_a_sync_of_the_file_and_its_folder(tmp_path: Path) -> None:
    assert cut(tmp_path / "1", *MADE) == {}
    assert cut(tmp_path / "2", *MADE, op(SYNC, "/f")) == {}
    assert cut(tmp_path / "3", *MADE, op(SYNC, inode=99)) == {"f": b""}
    assert cut(tmp_path / "4", *MADE, op(SYNC, "/f"), op(SYNC, inode=99)) == {"f": b"abc"}
    assert cut(tmp_path / "5", *MADE, damage=1) == {"f": b"abc"}


def test_a_sync_that_failed_is_not_made_good_by_the_next(tmp_path: Path) -> None:
    operations = (*MADE, op(SYNC_FAILED, "/f"), op(SYNC, "/f"), op(SYNC, inode=99))
    assert cut(tmp_path, *operations) == {"f": b""}


def test_a_rename_is_safe_with_its_folder(tmp_path: Path) -> None:
    operations = (op(MKDIR, "/d"), op(SYNC, inode=99), op(CREATE, "/d/f"), op(WRITE, "/d/f", b"abc"), op(SYNC, "/d/f"))
    renamed = (*operations, op(RENAME, "/d/f", path2="/d/g"))
    assert cut(tmp_path / "1", *renamed) == {}
    assert cut(tmp_path / "2", *renamed, op(SYNC, "/d", inode=98)) == {"d/g": b"abc"}


def test_a_ledger_that_is_out_of_step_is_noticed() -> None:
    made = Ledger()
    made.feed(RECORD.pack(b"B", 0, 1, digest(disk.LOG, BODIES[0])))
    with pytest.raises(AssertionError):
        made.feed(RECORD.pack(b"A", 0, 2, b""))


def test_headers_are_read_by_the_letter() -> None:
    data = disk.make_header(WRITER, project="vision", name="resnet")
    magic, version, length = struct.unpack_from("<8sHH", data)
    assert (magic, version) == (b"\x89MLDASH\n", 1)
    assert msgpack.unpackb(data[12 : 12 + length])[6:] == ["vision", "resnet"]
    for end in range(len(data)):
        with pytest.raises(IndexError):
            disk.read_header(data[:end])
