"""Journals that were made to do harm: whatever they hold, nothing crashes and nothing leaves the folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml_dash.core import events as ev
from ml_dash.reading.read import find, locate
from ml_dash.sync.remove import remove
from tests.journals import JournalFixture

TRICKS = [
    "..",
    "../..",
    "/etc",
    "a/../../b",
    "~",
    ".",
    "C:\\x",
    "a\0b",
    "x" * 300,
    "\u202e",
    "data.jsonl",
    ".journal",
    "",
    "a//b",
    "\n",
]
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.sampled_from(TRICKS)
    | st.binary(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(TRICKS) | st.integers(0, 3), inner, max_size=4)
    ),
    max_leaves=12,
)
SHAPED = st.one_of(
    st.tuples(
        st.just(ev.POINT), st.tuples(st.sampled_from(TRICKS), st.dictionaries(st.sampled_from(TRICKS), ANYTHING))
    ),
    st.tuples(
        st.just(ev.FILE),
        st.fixed_dictionaries(
            {
                "path": st.sampled_from(TRICKS),
                "prefix": st.sampled_from(TRICKS),
                "filename": st.sampled_from(TRICKS),
                "sizeBytes": st.integers(0, 9),
                "checksum": st.sampled_from(["0" * 64, "../" * 20 + "etc", "x"]),
                "contentType": st.just("x"),
            }
        ),
    ),
    st.tuples(
        st.just(ev.METRIC),
        st.tuples(st.sampled_from(TRICKS), st.dictionaries(st.sampled_from(["tags", "metadata"]), ANYTHING)),
    ),
    st.tuples(
        st.just(ev.OPEN),
        st.dictionaries(st.sampled_from(["project", "name", "journalPath", "folderPath", "id"]), ANYTHING),
    ),
    st.tuples(st.integers(0, 15), ANYTHING),
)


def outside(desk: JournalFixture) -> set[str]:
    return {
        str(path.relative_to(desk.store.parent))
        for path in desk.store.parent.rglob("*")
        if desk.folder not in (path, *path.parents) and not desk.folder.is_relative_to(path)
    }


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(SHAPED, min_size=1, max_size=12))
def test_whatever_a_body_holds_the_folder_is_projected_and_nothing_leaves_it(
    tmp_path_factory: pytest.TempPathFactory, events: list[Any]
) -> None:
    desk = JournalFixture(tmp_path_factory.mktemp("hostile") / "store")
    pen = desk.pen()
    for kind, body in events:
        pen.frame(kind, body)
    pen.log("the end")
    pen.close()
    desk.catch_up()
    desk.verify()
    assert outside(desk) == set()
    assert not any(path.is_symlink() for path in desk.folder.rglob("*"))
    assert json.loads(desk.lines("logs/logs.jsonl")[-1])["message"] == "the end"
    before = desk.tree()
    desk.rebuild()
    assert desk.tree() == before


@pytest.mark.parametrize("depth", [150, 900, 5000])
def test_what_is_nested_too_deep_costs_only_its_own_event(desk: JournalFixture, depth: int) -> None:
    pen = desk.pen()
    pen.payload(b"\x94\x01\x04" + msgpack.packb(desk.tick()) + b"\x81\xa1a" + b"\x91" * depth + b"\x00")
    pen.seq = 2
    pen.log("behind")
    pen.close()
    desk.catch_up()
    assert desk.record()["counts"]["logs"] == 1


@pytest.mark.parametrize(
    "path", ["../../victim", "..", ".", "/tmp", "../cv/run/../../victim", "cv/other", "\0", "../victim/run"]
)
def test_a_journal_does_not_choose_where_its_folder_is(desk: JournalFixture, path: str) -> None:
    victim = desk.store.parent / "victim"
    (victim / "logs").mkdir(parents=True)
    (victim / "logs" / "precious").write_text("precious")
    pen = desk.pen(opens=False)
    pen.open(folderPath=path)
    pen.close()
    located = locate("cv/run", desk.store)
    assert located.folder == desk.folder
    desk.catch_up()
    remove(located)
    assert (victim / "logs" / "precious").read_text() == "precious"


def test_a_folder_that_points_to_another_journal_does_not_take_it_along(desk: JournalFixture) -> None:
    """`rm` of a folder that somebody prepared removes no journal that does not know that folder."""
    desk.pen().close()
    desk.catch_up()
    trap = desk.store.parent / "trap"
    trap.mkdir()
    (trap / "experiment.json").write_text(json.dumps({"journal": os.path.relpath(desk.journal, trap)}))
    with pytest.raises(ValueError, match="another folder"):
        remove(locate(str(trap)))
    assert desk.journal.is_dir()


def test_a_link_in_place_of_a_blob_is_not_followed(desk: JournalFixture, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"abc")
    pen = desk.pen()
    pen.file(b"abc")
    pen.close()
    (blob,) = (desk.journal / "blobs").iterdir()
    blob.unlink()
    blob.symlink_to(secret)
    desk.catch_up()
    assert not (desk.folder / "files/models/model.bin").exists()
    assert "changed-blob" in desk.kinds() or "missing-blob" in desk.kinds()


@pytest.mark.parametrize("part", ["logs", "metrics", "files", "metrics/loss"])
def test_a_link_in_place_of_a_folder_of_ours_is_not_followed(desk: JournalFixture, tmp_path: Path, part: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (desk.folder / part).parent.mkdir(exist_ok=True)
    (desk.folder / part).symlink_to(elsewhere)
    pen = desk.pen()
    pen.point(value=1)
    pen.log("x")
    pen.file(b"abc")
    pen.close()
    desk.catch_up()
    assert list(elsewhere.iterdir()) == []
    assert desk.kinds() == set()


@pytest.mark.parametrize("name", ["order", "checkpoint", "segment", "experiment.json"])
def test_a_pipe_where_a_file_is_expected_hangs_nobody(desk: JournalFixture, name: str) -> None:
    pen = desk.pen()
    pen.log("x")
    pen.close()
    desk.catch_up()
    if name == "segment":
        path = pen.segment.with_name(pen.segment.name.replace(pen.id, "ee" * 16))
    else:
        path = (desk.folder if name == "experiment.json" else desk.journal) / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    assert len(find(desk.store)) == 1
    desk.verify()
    desk.catch_up()
    assert desk.record()["counts"]["logs"] == 1
