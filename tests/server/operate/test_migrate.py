"""A migration copies everything, goes on where it was killed, copies nothing twice, and replaces nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ml_dash.core import events as ev
from ml_dash.core.names import experiment_id
from ml_dash.core.protocol import Refused
from ml_dash.server.engine.services import READ_ONLY, Server
from ml_dash.server.operate.migrate import Migration, MigrationRefused, Moved, environment_of
from ml_dash.server.operate.scrub import Scrub
from ml_dash.server.operate.sweep import Sweep
from ml_dash.server.settings import ServerSettings
from ml_dash.server.stores import Stores
from ml_dash.server.stores.mongo import MongoDocuments
from ml_dash.server.stores.s3_uploads import S3Uploads
from ml_dash.server.stores.wiring import open_stores
from tests.contracts.places import s3_place
from tests.server.sending import EXPERIMENT, NS, SegmentBytes, assert_refolds, held, identity_of, send, send_blob
from tests.services.running import Service

OTHER = experiment_id("cv", "other")
STEPS = ("claims", "object", "row", "pages", "before-head", "head")


class Source:
    """A server with something of everything."""

    def __init__(self, folder: Path) -> None:
        self.core = Server(folder)
        self.sheet = SegmentBytes().opens().logs(1500).parameters(lr=0.1)
        for number in range(11_000):
            self.sheet.point("loss", value=number / 7, step=number)
        body, content = self.sheet.spills(ev.LOG, ["info", "x" * 3000, None])
        send_blob(self.core, self.sheet, body, content, body=True)
        self.blob = self.sheet.adds_file(b"weights" * 100)
        send(self.core, self.sheet)
        send_blob(self.core, self.sheet, self.blob, b"weights" * 100)
        self.core.archiver.wait()
        self.core.upsert_experiment(NS, "cv", {"name": "other", "tags": ["a"]})
        self.core.add_logs(NS, OTHER, [{"message": "hello"}])
        gone = SegmentBytes(7, journal=7, name="gone").opens(name="gone").log("removed")
        send(self.core, gone)
        self.core.remove_experiment(NS, experiment_id("cv", "gone"))
        self.token = self.core.create_token("alice")[1]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    """Not changed by those that use it."""
    source = Source(tmp_path_factory.mktemp("source") / "data")
    source.core.archiver.close()
    yield source
    source.core.close()


def migrated(source: Stores, data: Path, **how: Any) -> Moved:
    data.mkdir(exist_ok=True)
    target = open_stores(ServerSettings(data))
    try:
        return Migration(source, target, data / "incoming", **how).run()
    finally:
        target.close()


def assert_same(source: Source, data: Path) -> None:
    """A server on the copy answers as that on the source, and goes on from there."""
    ours, core = source.core, Server(data)
    sheet, blob = source.sheet, source.blob
    try:
        for experiment in (EXPERIMENT, OTHER):
            assert held(core, experiment) == held(ours, experiment)
            assert core.experiment(NS, experiment) == ours.experiment(NS, experiment)
            assert core.order(NS, experiment, 0, 999) == ours.order(NS, experiment, 0, 999)
        assert core.experiments(NS) == ours.experiments(NS)
        assert core.journal(NS, sheet.journal) == ours.journal(NS, sheet.journal)
        wanted = {sheet.id: len(sheet.data)}
        assert core.digests(NS, sheet.journal, wanted) == ours.digests(NS, sheet.journal, wanted)
        assert b"".join(core.open_file(NS, EXPERIMENT, identity_of(blob), 0, None)[1]) == b"weights" * 100
        assert core.find_token(source.token) == ours.find_token(source.token)
        with pytest.raises(Refused):
            core.experiment(NS, experiment_id("cv", "gone"))
        assert list(Scrub(core.stores).faults()) == []
        found = Sweep(core.stores, older_s=0, now_ns=lambda: 1 << 62, dry_run=True).run()
        assert (found.pages, found.objects, found.rows, found.lost) == (0, 0, 0, [])
        assert_refolds(core)
        late = SegmentBytes(7, journal=7, name="gone").opens(name="gone").log("removed").log("late")
        send(core, late)
        with pytest.raises(Refused):
            core.experiment(NS, experiment_id("cv", "gone"))
        more = SegmentBytes(3, journal=3).opens().log("on the new server")
        send(core, more)
        core.add_logs(NS, OTHER, [{"message": "there"}])
        assert core.experiment(NS, OTHER)["counts"]["logs"] == 2
    finally:
        core.close()


def test_a_copy_is_the_same_and_lives_on(prepared: Source, tmp_path: Path) -> None:
    first = migrated(prepared.core.stores, tmp_path / "new")
    assert (first.experiments, first.unchanged, first.left) == (3, 0, 0)
    assert first.objects == len(list(prepared.core.objects.list("")))
    again = migrated(prepared.core.stores, tmp_path / "new")
    assert again == Moved(unchanged=3)
    assert_same(prepared, tmp_path / "new")


def test_pages_go_in_several_versions(prepared: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ml_dash.server.operate.migrate._PAGES_BYTES", 2_000)
    migrated(prepared.core.stores, tmp_path / "new")
    assert_same(prepared, tmp_path / "new")


@pytest.mark.parametrize("step", [f"migrate-{step}:{nth}" for step in STEPS for nth in (1, 2)])
def test_killed_at_any_step_it_goes_on(prepared: Source, tmp_path: Path, step: str) -> None:
    environment = {**os.environ, "ML_DASH_FAIL": f"{step}:kill"}
    places = [str(prepared.core.staging.parent), str(tmp_path / "new")]
    command = [sys.executable, "-m", "tests.server.operate.test_migrate", *places]
    ended = subprocess.run(command, env=environment, timeout=100, check=False)
    assert ended.returncode == -signal.SIGKILL
    # What was copied in part is not seen, and not folded.
    core = Server(tmp_path / "new")
    core.bring_up_to_date()
    for experiment in (EXPERIMENT, OTHER):
        try:
            assert core.experiment(NS, experiment) == prepared.core.experiment(NS, experiment)
        except Refused as error:
            assert error.status in (404, 503)  # noqa: PT017
    core.close()
    migrated(prepared.core.stores, tmp_path / "new")
    assert migrated(prepared.core.stores, tmp_path / "new") == Moved(unchanged=3)
    assert_same(prepared, tmp_path / "new")


def test_to_mongodb_and_s3_and_back(
    prepared: Source, tmp_path: Path, mongo_database: tuple[str, str], s3_service: Service, s3_bucket: str
) -> None:
    objects = s3_place(s3_service, s3_bucket).objects()
    shared = Stores(MongoDocuments(*mongo_database), objects, S3Uploads(objects), True)
    try:
        there = Migration(prepared.core.stores, shared, tmp_path / "incoming")
        assert there.run().experiments == 3
        again = Migration(prepared.core.stores, shared, tmp_path / "incoming")
        assert again.run() == Moved(unchanged=3)
        assert list(Scrub(shared).faults()) == []
        found = Sweep(shared, older_s=0, now_ns=lambda: 1 << 62).run()
        assert (found.objects, found.rows, found.lost_count, found.left) == (0, 0, 0, 0)
        assert migrated(shared, tmp_path / "back").experiments == 3
    finally:
        shared.close()
        objects.close()
    assert_same(prepared, tmp_path / "back")


def test_only_what_has_changed_is_copied(tmp_path: Path) -> None:
    source = Source(tmp_path / "old")
    source.core.archiver.wait()
    migrated(source.core.stores, tmp_path / "new")
    start = len(source.sheet.data)
    new = source.sheet.adds_file(b"more", "more.pt")
    source.sheet.deletes_file(source.blob)
    send(source.core, source.sheet, start)
    moved = migrated(source.core.stores, tmp_path / "new")
    assert (moved.experiments, moved.unchanged, moved.objects) == (1, 2, 0)
    # The content comes without a commit.
    send_blob(source.core, source.sheet, new, b"more")
    moved = migrated(source.core.stores, tmp_path / "new")
    assert (moved.experiments, moved.unchanged, moved.objects) == (0, 3, 1)
    core = Server(tmp_path / "new")
    assert held(core) == held(source.core)
    assert core.journal(NS, source.sheet.journal) == source.core.journal(NS, source.sheet.journal)
    assert set(core.objects.list("")) <= set(source.core.objects.list(""))
    core.close()
    source.core.close()


def test_what_the_target_has_of_its_own_stays(prepared: Source, tmp_path: Path) -> None:
    core = Server(tmp_path / "new")
    send(core, SegmentBytes(5, journal=5).opens().log("its own"))
    before = held(core)
    with pytest.raises(MigrationRefused, match="was not copied there"):
        Migration(prepared.core.stores, core.stores, tmp_path / "incoming").run()
    assert held(core) == before
    core.close()


def test_a_copy_that_was_written_to_stays(tmp_path: Path) -> None:
    source = Source(tmp_path / "old")
    migrated(source.core.stores, tmp_path / "new")
    core = Server(tmp_path / "new")
    core.add_logs(NS, OTHER, [{"message": "on the new server"}])
    core.close()
    source.core.add_logs(NS, OTHER, [{"message": "on the old server"}])
    with pytest.raises(MigrationRefused, match="cv/other"):
        migrated(source.core.stores, tmp_path / "new")
    core = Server(tmp_path / "new")
    assert core.logs(NS, OTHER, 0, 9)["logs"][-1]["message"] == "on the new server"
    core.close()
    source.core.close()


def test_a_content_that_is_lost_there_is_missing_here(tmp_path: Path) -> None:
    source = Source(tmp_path / "old")
    for key in source.core.objects.list("files/"):
        source.core.objects.put_contents([(key, b"Weights" * 100)])
    migrated(source.core.stores, tmp_path / "new")
    core = Server(tmp_path / "new")
    assert core.journal(NS, source.sheet.journal)["missing"] == [source.blob]
    send_blob(core, source.sheet, source.blob, b"weights" * 100)
    assert core.journal(NS, source.sheet.journal)["missing"] == []
    core.close()
    source.core.close()


def test_a_frozen_server_answers_reads_and_no_writes(tmp_path: Path) -> None:
    source = Source(tmp_path / "old")
    core = source.core
    (tmp_path / "old" / READ_ONLY).touch()
    assert core.experiment(NS, OTHER)["counts"]["logs"] == 1
    more = SegmentBytes(9, journal=9).opens()
    for write in (
        lambda: send(core, more),
        lambda: core.add_logs(NS, OTHER, [{"message": "no"}]),
        lambda: send_blob(core, source.sheet, source.blob, b"weights" * 100),
        lambda: core.append_blobs(NS, source.sheet.journal, [(source.blob, b"")]),
        lambda: core.remove_experiment(NS, OTHER),
    ):
        with pytest.raises(Refused, match="read-only") as refused:
            write()
        assert (refused.value.status, refused.value.retry_after_s) == (503, 30)
    migrated(core.stores, tmp_path / "new", frozen=True)
    assert_same(source, tmp_path / "new")
    (tmp_path / "old" / READ_ONLY).unlink()
    send(core, more)
    core.close()


def test_the_command_moves_a_server_that_runs(tmp_path: Path) -> None:
    source = Source(tmp_path / "old")
    environment = tmp_path / "new.env"
    environment.write_text(f"# the new server\nML_DASH_DATA='{tmp_path / 'new'}'\n\nLOG_LEVEL=info\n")

    def ran(*arguments: str) -> tuple[int, Any]:
        command = [sys.executable, "-m", "ml_dash", "server", "migrate", "--data", str(tmp_path / "old"), "--json"]
        ended = subprocess.run(
            [*command, "--to-env", str(environment), *arguments], stdout=subprocess.PIPE, text=True, timeout=100,
            check=False,
        )  # fmt: skip
        return ended.returncode, json.loads(ended.stdout or "null")

    code, found = ran()
    assert (code, found["complete"], found["experiments"]) == (0, True, 3)
    source.core.add_logs(NS, OTHER, [{"message": "meanwhile"}])
    code, found = ran("--freeze")
    assert (code, found["experiments"], found["unchanged"]) == (0, 1, 2)
    with pytest.raises(Refused, match="read-only"):
        source.core.add_logs(NS, OTHER, [{"message": "too late"}])
    environment.write_text(f"ML_DASH_DATA={tmp_path / 'old'}\n")
    assert ran()[0] == 1
    core = Server(tmp_path / "new")
    assert core.experiment(NS, OTHER)["counts"]["logs"] == 2
    environment.write_text(f"ML_DASH_DATA={tmp_path / 'new'}\n")
    assert ran()[0] == 1  # a server runs there
    core.close()
    source.core.close()


def test_an_environment_is_read_as_systemd_reads_it() -> None:
    assert environment_of("A=1\n# B=2\n\n C = 'x y' \nD=\"=\"") == {"A": "1", "C": "x y", "D": "="}
    with pytest.raises(MigrationRefused, match="line 2"):
        environment_of("A=1\nsecret words\n")


def victim(source: Path, target: Path) -> None:
    migrated(open_stores(ServerSettings(source)), target)


if __name__ == "__main__":
    victim(Path(sys.argv[1]), Path(sys.argv[2]))
