"""The scrub finds every changed byte of raw data, blocks and contents, and what it repairs is right again."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ml_dash.core import events as ev
from ml_dash.server.engine.archive import archive
from ml_dash.server.engine.services import Server
from ml_dash.server.operate.scrub import Fault, Scrub
from tests.server.sending import EXPERIMENT, NS, SegmentBytes, forget, held, send, send_blob


def faults(core: Server, **how: Any) -> list[Fault]:
    return list(Scrub(core.stores, **how).faults())


def spoil_page(core: Server, page: str, change: Any) -> None:
    """Change the content of a page in the database, as a disk may."""
    with core.documents._writing() as tx:  # type: ignore[attr-defined]
        content = tx.pages(NS, EXPERIMENT, [page])[page]
        new = change(content)
        assert new != content
        tx._all("UPDATE pages SET content=? WHERE ns=? AND experiment=? AND id=?", (new, NS, EXPERIMENT, page))


def flip(content: bytes, at: int, bit: int = 0) -> bytes:
    return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]


def entries(core: Server) -> tuple[list[Any], list[Any]]:
    """Entries of raw bytes, and of blocks by series."""
    with core.documents.view() as view:
        row = view.experiment(NS, EXPERIMENT)
        assert row is not None
        contents = core._changes.reader.contents(view, NS, row)
        raw = [
            entry
            for journal in contents.journals()
            for segment in contents.segments(journal.id)
            for entry in contents.raw(segment.id, 0, segment.length)
        ]
        blocks = [(name, entry) for name in contents.all_series() for entry in contents.blocks(name, 0, 1 << 60)]
    return raw, blocks


@pytest.fixture
def core(tmp_path: Path) -> Any:
    made = Server(tmp_path / "data")
    yield made
    made.close()


@pytest.fixture
def sheet(core: Server) -> SegmentBytes:
    """A run with something of everything."""
    made = SegmentBytes().opens().logs(1500).parameters(lr=0.1)
    for number in range(2300):
        made.point("loss", value=number / 7, step=number)
    body, content = made.spills(ev.LOG, ["info", "x" * 3000, None])
    send_blob(core, made, body, content, body=True)
    blob = made.adds_file(b"weights" * 100)
    send(core, made)
    send_blob(core, made, blob, b"weights" * 100)
    return made


def test_what_is_whole_has_no_faults(core: Server, sheet: SegmentBytes) -> None:
    work = Scrub(core.stores)
    assert list(work.faults()) == []
    assert (work.experiments, work.segments, work.blobs, work.left) == (1, 1, 2, 0)
    assert work.read > len(sheet.data)


def test_damage_that_is_marked_is_none(core: Server) -> None:
    sheet = SegmentBytes().opens().logs(20)
    low, high = sheet.ends[5], sheet.ends[7]
    core.append_segment(NS, sheet.journal, sheet.file, 0, sheet.damaged(low, high), [(low, high)])
    assert faults(core) == []


@pytest.mark.parametrize("archived", [False, True])
def test_each_changed_bit_of_a_raw_byte_is_found_and_not_repaired(
    core: Server, sheet: SegmentBytes, archived: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if archived:
        monkeypatch.setattr("ml_dash.server.engine.archive._RAW_LEAST", 1)
        monkeypatch.setattr("ml_dash.server.engine.archive._REST_BYTES", 1)
        archive(core._changes, NS, EXPERIMENT)
    (entry,) = entries(core)[0]
    chance = random.Random(1)
    for _ in range(25):
        at, bit = chance.randrange(len(sheet.data)), chance.randrange(8)
        change = lambda content, at=at, bit=bit: flip(content, at, bit)  # noqa: E731
        if archived:
            key = f"contents/{NS}/{EXPERIMENT}/{entry.object}"
            core.objects.put_contents([(key, change(sheet.data))])
        else:
            spoil_page(core, entry.page, change)
        (fault,) = faults(core, repair=True)
        assert (fault.kind, fault.repaired) == ("segment", False)
        frame = max([end for end in [0, *sheet.ends] if end <= at])
        assert fault.where == f"{sheet.file} byte {frame}"
        if archived:
            core.objects.put_contents([(key, sheet.data)])
        else:
            spoil_page(core, entry.page, change)
    assert faults(core) == []


def test_a_window_ends_within_a_frame(core: Server, sheet: SegmentBytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ml_dash.server.operate.scrub._WINDOW_BYTES", 5_000)
    assert faults(core) == []
    (entry,) = entries(core)[0]
    at = len(sheet.data) * 2 // 3
    spoil_page(core, entry.page, lambda content: flip(content, at))
    (fault,) = faults(core)
    assert fault.where == f"{sheet.file} byte {max(end for end in sheet.ends if end <= at)}"


def test_raw_bytes_that_are_gone_are_found(core: Server, monkeypatch: pytest.MonkeyPatch, sheet: SegmentBytes) -> None:
    monkeypatch.setattr("ml_dash.server.engine.archive._RAW_LEAST", 1)
    monkeypatch.setattr("ml_dash.server.engine.archive._REST_BYTES", 1)
    archive(core._changes, NS, EXPERIMENT)
    (entry,) = entries(core)[0]
    core.objects.delete(f"contents/{NS}/{EXPERIMENT}/{entry.object}")
    (fault,) = faults(core)
    assert (fault.kind, fault.where) == ("segment", f"{sheet.file} byte 0")


def test_each_changed_bit_of_a_block_is_found_and_folded_anew(core: Server, sheet: SegmentBytes) -> None:
    before = held(core)
    chance = random.Random(2)
    for _ in range(20):
        series, entry = chance.choice(entries(core)[1])

        def change(content: bytes) -> bytes:
            # Behind the first bytes, which say how long the parts of the page are.
            return flip(content, chance.randrange(8, len(content) - 2), chance.randrange(8))

        spoil_page(core, entry.page, change)
        (fault,) = faults(core)
        assert (fault.kind, fault.repaired) == ("blocks", False)
        assert fault.where.startswith(f"{series} line {entry.first}")
        (fault,) = faults(core, repair=True)
        assert fault.repaired
        assert faults(core) == []
        forget(core)
        assert held(core) == before


def test_a_page_that_is_gone_is_found_and_made_again(core: Server, sheet: SegmentBytes) -> None:
    before = held(core)
    core.documents.drop_pages(NS, EXPERIMENT, [entries(core)[1][0][1].page])
    (fault,) = faults(core)
    assert (fault.kind, fault.what) == ("index", "pages of the newest version are not here")
    (fault,) = faults(core, repair=True)
    assert fault.repaired
    forget(core)
    assert held(core) == before


@pytest.mark.parametrize("content", [None, b"weights" * 99, b"Weights" + b"weights" * 99])
def test_a_wrong_content_is_dropped_and_comes_again(core: Server, sheet: SegmentBytes, content: bytes | None) -> None:
    (key,) = core.objects.list("files/")
    core.objects.delete(key)
    if content is not None:
        core.objects.put_contents([(key, content)])
    (fault,) = faults(core)
    assert (fault.kind, fault.repaired, key in fault.what) == ("file", False, True)
    assert core.journal(NS, sheet.journal)["missing"] == ([] if content and len(content) == 700 else [fault.where])
    (fault,) = faults(core, repair=True)
    assert fault.repaired
    assert core.journal(NS, sheet.journal)["missing"] == [fault.where]
    assert list(core.objects.list("files/")) == []
    send_blob(core, sheet, fault.where, b"weights" * 100)
    assert faults(core) == []


def test_a_wrong_body_is_reported(core: Server, sheet: SegmentBytes) -> None:
    (key,) = core.objects.list("bodies/")
    core.objects.put_contents([(key, b"?" * 3000)])
    (fault,) = faults(core, repair=True)
    assert (fault.kind, fault.repaired) == ("body", False)


def test_a_rate_is_kept(core: Server, sheet: SegmentBytes) -> None:
    now = [100.0]

    def wait(seconds: float) -> None:
        assert seconds > 0
        now[0] += seconds

    work = Scrub(core.stores, rate_bytes=1000, wait=wait, clock=lambda: now[0])
    assert list(work.faults()) == []
    assert now[0] - 100 == pytest.approx(work.read / 1000)


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    core = Server(tmp_path / "data")
    sheet = SegmentBytes().opens()
    blob = sheet.adds_file(b"weights")
    send(core, sheet)
    send_blob(core, sheet, blob, b"weights")
    (key,) = core.objects.list("files/")
    core.objects.put_contents([(key, b"Weights")])

    def ran(*arguments: str) -> tuple[int, Any]:
        command = [sys.executable, "-m", "ml_dash", "server", "scrub", "--data", str(tmp_path / "data"), "--json"]
        ended = subprocess.run(
            [*command, *arguments], env=dict(os.environ), stdout=subprocess.PIPE, text=True, timeout=60, check=False
        )
        return ended.returncode, json.loads(ended.stdout)

    code, found = ran("--rate", "50MB")
    assert (code, found["ok"], found["faults"][0]["where"]) == (4, False, blob)
    code, found = ran("--repair")
    assert (code, found["ok"], found["faults"][0]["repaired"]) == (0, True, True)
    assert core.journal(NS, sheet.journal)["missing"] == [blob]
    core.close()
