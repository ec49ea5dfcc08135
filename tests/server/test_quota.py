"""A namespace that may keep so many bytes: what is refused beyond them, what stays possible, and what counts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ml_dash.core import events as ev
from ml_dash.core.protocol import QUOTA, Refused
from ml_dash.errors import InvalidValue
from ml_dash.server.engine import quota
from ml_dash.server.engine.services import Server
from ml_dash.server.settings import ServerSettings, server_settings

from .sending import EXPERIMENT, NS, SegmentBytes, assert_refolds, forget, identity_of, random_bytes, send, send_blob

Opening = Callable[..., Server]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opening]:
    """A server on one data folder, with a quota; the one before is closed."""
    servers: list[Server] = []

    def start(limit: int = 0, **single: int) -> Server:
        if servers:
            servers.pop().close()
        servers.append(Server(tmp_path / "data", ServerSettings(tmp_path / "data", quota_bytes=limit, quotas=single)))
        return servers[0]

    yield start
    servers.pop().close()


@pytest.fixture
def recounting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each refusal it is counted anew."""
    monkeypatch.setattr(quota, "RECOUNT_S", 0.0)


def used(core: Server, ns: str = NS) -> int:
    with core.documents.view() as view:
        return view.usage(ns)


def kept(core: Server) -> int | None:
    """What the summary of the experiment says."""
    with core.documents.view() as view:
        row = view.experiment(NS, EXPERIMENT)
    assert row is not None
    found: int | None = row.summary.get("bytes")
    return found


def add_file(core: Server, content: bytes, filename: str = "model.pt") -> dict[str, Any]:
    staged = core.staging / "upload"
    staged.write_bytes(content)
    fields = {
        "filename": filename, "prefix": "/models", "description": None, "tags": None, "metadata": None,
        "contentType": "application/octet-stream", "sizeBytes": len(content),
        "checksum": hashlib.sha256(content).hexdigest(),
    }  # fmt: skip
    return core.add_file(NS, EXPERIMENT, staged, fields)


def refused(act: Callable[[], object]) -> Refused:
    with pytest.raises(Refused) as caught:
        act()
    assert (caught.value.status, caught.value.code) == (507, QUOTA)
    return caught.value


def sheet_of(logs: int, writer: int = 1) -> SegmentBytes:
    return SegmentBytes(writer).opens().logs(logs)


# -- what counts -----------------------------------------------------------------------------------------------------


def test_the_bytes_of_all_segments_stand_in_the_summary_whatever_way_they_came(opened: Opening) -> None:
    core = opened()
    one, two = sheet_of(50), sheet_of(20, writer=2)
    send(core, one, 0, one.ends[10])
    assert kept(core) == one.ends[10]
    send(core, one, one.ends[4], one.ends[30])
    send(core, two)
    assert kept(core) == one.ends[30] + len(two.data) == used(core)
    # Once more: nothing is new.
    send(core, two)
    forget(core)
    send(core, one, one.ends[30])
    assert kept(core) == len(one.data) + len(two.data)
    assert_refolds(core)
    assert kept(core) == len(one.data) + len(two.data)


def test_an_experiment_of_an_earlier_version_counts_from_its_next_commit_on(
    opened: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ml_dash.server.engine.changes import Change

    core = opened()
    sheet = sheet_of(50)
    with monkeypatch.context() as earlier:
        earlier.setattr(Change, "_kept_bytes", lambda self: None)
        send(core, sheet, 0, sheet.ends[20])
    forget(core)
    assert kept(core) is None
    assert used(core) == 0
    send(core, sheet, sheet.ends[20])
    assert used(core) == kept(core) == len(sheet.data)


def test_raw_bytes_of_a_removed_experiment_count_and_its_files_do_not(opened: Opening) -> None:
    core = opened()
    sheet = sheet_of(10)
    content = random_bytes(5000)
    blob = sheet.adds_file(content)
    send(core, sheet)
    send_blob(core, sheet, blob, content)
    assert used(core) == len(sheet.data) + 5000
    core.remove_experiment(NS, EXPERIMENT)
    assert used(core) == len(sheet.data)
    assert used(core, "bob") == 0


# -- what is refused -------------------------------------------------------------------------------------------------


def test_segments_fill_a_quota_to_the_byte_and_no_further(opened: Opening) -> None:
    sheet = sheet_of(50)
    core = opened(sheet.ends[20])
    send(core, sheet, 0, sheet.ends[20])
    error = refused(lambda: send(core, sheet, sheet.ends[20], sheet.ends[21]))
    assert f"{NS} keeps {sheet.ends[20]:,} bytes here, of {sheet.ends[20]:,} it may" in error.message
    assert "remove files" in error.message
    assert error.extra == {"used": sheet.ends[20], "limit": sheet.ends[20]}
    # What is here is acknowledged again, and nothing has changed.
    assert send(core, sheet, 0, sheet.ends[20])["length"] == sheet.ends[20] == used(core)
    assert len(core.logs(NS, EXPERIMENT, 0, 99)["logs"]) == 19
    assert_refolds(core)
    core = opened(sheet.ends[20], alice=len(sheet.data))
    assert send(core, sheet, sheet.ends[20])["length"] == len(sheet.data)
    assert opened(1, alice=0).append_segment(NS, *_more())["events"] > 0


def _more() -> tuple[str, str, int, bytes]:
    sheet = sheet_of(3, writer=7)
    return sheet.journal, sheet.file, 0, sheet.data


def test_one_namespace_does_not_fill_that_of_another(opened: Opening) -> None:
    sheet = sheet_of(50)
    core = opened(len(sheet.data))
    send(core, sheet)
    refused(lambda: core.append_segment(NS, *_more()))
    core.append_segment("bob", sheet.journal, sheet.file, 0, sheet.data)
    assert used(core, "bob") == len(sheet.data)


def test_a_file_that_does_not_fit_is_refused_at_its_first_piece(opened: Opening) -> None:
    core = opened(20_000)
    sheet = sheet_of(1)
    small, large = random_bytes(9_000), random_bytes(19_900)
    names = sheet.adds_file(small, "small"), sheet.adds_file(large, "large")
    send(core, sheet)
    refused(lambda: send_blob(core, sheet, names[1], large, piece=1000))
    assert core.blob_state(NS, sheet.journal, names[1])["length"] == 0
    assert send_blob(core, sheet, names[0], small, piece=1000)["complete"]
    # Sent again it is here.
    assert send_blob(core, sheet, names[0], small)["complete"]
    assert used(core) == len(sheet.data) + 9_000


def test_small_files_and_equal_ones_are_refused_as_well(opened: Opening) -> None:
    core = opened(20_000)
    sheet = sheet_of(1)
    content, other = random_bytes(8_000), random_bytes(7_000)
    first, other_name, same = sheet.adds_file(content, "a"), sheet.adds_file(other, "b"), sheet.adds_file(content, "c")
    send(core, sheet)
    assert core.append_blobs(NS, sheet.journal, [(first, content)]) == {"complete": [first]}
    assert core.append_blobs(NS, sheet.journal, [(other_name, other)]) == {"complete": [other_name]}
    assert not core.blob_state(NS, sheet.journal, same)["complete"]
    refused(lambda: core.append_blobs(NS, sheet.journal, [(same, content)]))
    refused(lambda: send_blob(core, sheet, same, content))
    assert used(core) == len(sheet.data) + 15_000


def test_a_long_body_is_refused_and_so_is_its_event(opened: Opening) -> None:
    core = opened(2 << 20)
    sheet = sheet_of(1)
    name, content = sheet.spills(ev.LOG, ["info", "x" * (3 << 20), None])
    refused(lambda: send_blob(core, sheet, name, content, body=True))
    with pytest.raises(Refused, match="bodies"):
        send(core, sheet)
    assert used(core) == 0
    core = opened(8 << 20)
    send_blob(core, sheet, name, content, body=True)
    send(core, sheet)
    assert used(core) == len(content) + len(sheet.data)


def test_by_rest_writing_is_refused_and_reading_and_removing_are_not(opened: Opening, recounting: None) -> None:
    core = opened()
    core.upsert_experiment(NS, "cv", {"name": "run"})
    file = add_file(core, random_bytes(10_000))
    full = used(core)
    core = opened(full)
    refused(lambda: core.add_logs(NS, EXPERIMENT, [{"message": "more"}]))
    refused(lambda: core.set_parameters(NS, EXPERIMENT, {"lr": 0.1}))
    refused(lambda: core.upsert_experiment(NS, "cv", {"name": "another"}))
    refused(lambda: add_file(core, random_bytes(9_000), "other"))
    assert len(list(core.objects.list(""))) == 1
    assert used(core) == full
    assert [one["id"] for one in json.loads(core.list_files(NS, EXPERIMENT))["files"]] == [file["id"]]
    assert len(b"".join(core.open_file(NS, EXPERIMENT, file["id"], 0, None)[1])) == 10_000
    core.delete_file(NS, EXPERIMENT, file["id"])
    # There is room again.
    core.add_logs(NS, EXPERIMENT, [{"message": "more"}])
    assert len(core.logs(NS, EXPERIMENT, 0, 9)["logs"]) == 1
    add_file(core, random_bytes(8_000), "other")
    refused(lambda: add_file(core, random_bytes(8_001), "third"))
    core.remove_experiment(NS, EXPERIMENT)
    core.upsert_experiment(NS, "cv", {"name": "run"})


def test_a_file_deleted_by_an_uploader_makes_room(opened: Opening, recounting: None) -> None:
    core = opened(20_000)
    sheet = sheet_of(1)
    content = random_bytes(15_000)
    blob = sheet.adds_file(content)
    send(core, sheet)
    send_blob(core, sheet, blob, content)
    end = len(sheet.data)
    sheet.deletes_file(blob)
    assert identity_of(blob)
    send(core, sheet, end)
    other = sheet.adds_file(content[::-1], "other")
    send(core, sheet, end)
    assert send_blob(core, sheet, other, content[::-1])["complete"]


def test_what_is_kept_is_counted_now_and_then_and_added_to_between(
    opened: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    sheet = sheet_of(300)
    core = opened(len(sheet.data) - 1)
    counts: list[str] = []
    with core.documents.view() as looked:
        view = type(looked)
    usage = view.usage

    def counting(self: Any, ns: str) -> int:
        counts.append(ns)
        return int(usage(self, ns))

    monkeypatch.setattr(view, "usage", counting)
    for start, end in zip(sheet.ends, sheet.ends[1:-1], strict=False):
        send(core, sheet, start if start != sheet.ends[0] else 0, end)
    assert counts == [NS]
    monkeypatch.setattr(quota, "RECOUNT_S", 0.0)
    refused(lambda: send(core, sheet, sheet.ends[-2]))
    assert counts == [NS, NS]


# -- settings --------------------------------------------------------------------------------------------------------


def test_quotas_are_set_by_variables(tmp_path: Path) -> None:
    given = server_settings(data=tmp_path, env={})
    assert (given.quota_bytes, given.quotas) == (0, {})
    given = server_settings(data=tmp_path, env={"QUOTA_BYTES": "500GB", "QUOTAS": " alice=1TB, bob = 200 GB,carol=0,"})
    assert given.quota_bytes == 500 << 30
    assert given.quotas == {"alice": 1 << 40, "bob": 200 << 30, "carol": 0}
    assert server_settings(data=tmp_path, env={"QUOTA_BYTES": "0"}).quota_bytes == 0


@pytest.mark.parametrize("text", ["alice", "=5GB", "alice=", "alice=much", "alice=-1", "alice=1GB,alice=2GB"])
def test_a_quota_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidValue, match="QUOTAS"):
        server_settings(data=tmp_path, env={"QUOTAS": text})
    with pytest.raises(InvalidValue, match="QUOTA_BYTES"):
        server_settings(data=tmp_path, env={"QUOTA_BYTES": text})
