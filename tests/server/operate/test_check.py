"""`ml-dash server check` says what is wrong with the surroundings of a server, and what to do about it."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ml_dash.server.engine.services import Server
from ml_dash.server.operate.check import Item, check
from ml_dash.server.settings import ServerSettings
from ml_dash.server.stores.wiring import DATABASE
from tests.contracts.places import s3_place
from tests.server.sending import SegmentBytes, send
from tests.server.test_refold import spoil
from tests.services.running import Service


def found(data: Path, **how: Any) -> dict[str, Item]:
    """The items, by name."""
    return {item.name: item for item in check(ServerSettings(data, **how))}


def ran(data: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and stdout of the command."""
    command = [sys.executable, "-m", "ml_dash", "server", "--data", str(data), "check", *arguments]
    environment = {key: value for key, value in os.environ.items() if key != "JWT_SECRET"}
    ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=60, check=False)
    return ended.returncode, ended.stdout


def test_a_server_beside_it_is_well_and_nothing_is_left(tmp_path: Path) -> None:
    core = Server(tmp_path / "data")
    send(core, SegmentBytes().opens())
    code, text = ran(tmp_path / "data", "--json")
    facts = json.loads(text)
    assert (code, facts["ok"]) == (0, True)
    states = {item["name"]: item["state"] for item in facts["items"]}
    assert states.pop("who may log in") == "warning"
    assert {states.pop("database clock"), states.pop("bucket clock")} == {"skipped"}
    assert set(states.values()) == {"ok"}
    assert list(core.objects.list("")) == []
    with core.documents.view() as view:
        assert view.blobs("-check", "-check") == []
        assert len(view.all_experiments(None, 9)) == 1
    core.close()


def test_who_may_log_in_is_counted(tmp_path: Path) -> None:
    core = Server(tmp_path)
    core.create_token("alice")
    core.create_token("alice", expires_ns=1)
    identity, _ = core.create_token("bob")
    core.revoke_token(identity)
    core.close()
    assert "1 token;" in found(tmp_path)["who may log in"].text
    assert "JWT_SECRET" in found(tmp_path, jwt_secret="x" * 40)["who may log in"].text


def test_before_the_first_start_nothing_is_made(tmp_path: Path) -> None:
    code, text = ran(tmp_path / "new")
    assert code == 0
    assert "the server makes it when it first starts" in text
    assert not (tmp_path / "new").exists()


def test_a_dropped_index_is_named(tmp_path: Path) -> None:
    Server(tmp_path).close()
    connection = sqlite3.connect(tmp_path / DATABASE)
    connection.execute("DROP INDEX pages_id")
    connection.close()
    item = found(tmp_path)["database"]
    assert item.state == "wrong"
    assert "pages_id" in item.text
    code, text = ran(tmp_path)
    assert code == 1
    assert "to do: restore it from a backup" in text


def test_a_damaged_database_is_wrong(tmp_path: Path) -> None:
    Server(tmp_path).close()
    (tmp_path / DATABASE).write_bytes(b"not a database, however long" * 1000)
    assert found(tmp_path)["database"].state == "wrong"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_wrong(tmp_path: Path) -> None:
    Server(tmp_path).close()
    (tmp_path / "objects").chmod(0o500)
    assert found(tmp_path)["objects"].state == "wrong"


def test_objects_that_cannot_be_stored_are_wrong(tmp_path: Path) -> None:
    Server(tmp_path).close()
    # A file where the check's objects would be.
    (tmp_path / "objects" / "-check").write_bytes(b"")
    item = found(tmp_path)["objects"]
    assert (item.state, "cannot write an object" in item.text) == ("wrong", True)


def test_experiments_of_another_version_are_a_warning(tmp_path: Path) -> None:
    core = Server(tmp_path / "data")
    send(core, SegmentBytes().opens())
    core.close()
    spoil(ServerSettings(tmp_path / "data"))
    assert found(tmp_path / "data")["experiments"].state == "warning"


def test_a_little_room_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ml_dash.server.operate.check._LITTLE_BYTES", 1 << 62)
    assert found(tmp_path)["data folder"].state == "warning"
    monkeypatch.setattr("ml_dash.server.operate.check._TOO_LITTLE_BYTES", 1 << 62)
    assert found(tmp_path)["data folder"].state == "wrong"


def test_mongodb_and_s3_are_used_as_a_server_uses_them(
    tmp_path: Path, mongo_database: tuple[str, str], s3_service: Service, s3_bucket: str
) -> None:
    s3 = s3_place(s3_service, s3_bucket)
    uri = "{}/{}".format(*mongo_database)
    items = found(tmp_path, mongodb_uri=uri, s3=s3.settings)
    assert {item.name: item.state for item in items.values() if item.state != "ok"} == {"who may log in": "warning"}
    assert s3.left() == []
    assert list(s3.objects().list("")) == []
    s3.close()
    wrong = found(tmp_path, mongodb_uri=uri, s3=replace(s3.settings, secret_key="another", bucket=s3_bucket))
    assert wrong["objects" if "objects" in wrong else "database"].state == "wrong"
