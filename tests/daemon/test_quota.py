"""Uploading to a namespace that is full: what does not fit is kept here with the reason, and arrives once it fits."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ml_dash import Experiment
from ml_dash.core import events as ev
from ml_dash.core.protocol import NO_EVENT, QUOTA
from ml_dash.errors import ServerRefused
from ml_dash.sync.login import development_token
from ml_dash_syncd import blobs
from ml_dash_syncd.ship import Remaining
from tests.journals import JournalFixture
from tests.running import Server, once, uploader
from tests.server.conftest import Web

from .conftest import Home
from .test_programs import until
from .test_ship import RecordedLink, ShipmentFixture

LIMIT = 300_000


class FullServer:
    """A server with a quota, which may be raised by starting it anew."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._running = Server(data, {"QUOTA_BYTES": str(LIMIT), "QUOTAS": "bob=0"}).start()
        self.url = self._running.url

    def raise_quota(self) -> None:
        self._running.end()
        self._running = Server(self._data, {"QUOTA_BYTES": "1GB"})
        self._running.url = self.url
        self._running.start()

    def end(self) -> None:
        self._running.end()


@pytest.fixture
def full_server(tmp_path: Path) -> Iterator[FullServer]:
    made = FullServer(tmp_path / "data")
    yield made
    made.end()


@pytest.fixture
def way(desk: JournalFixture, full_server: FullServer, tmp_path: Path) -> Iterator[ShipmentFixture]:
    road = RecordedLink(full_server.url, "alice")
    yield ShipmentFixture(desk, road, tmp_path / "cursors")
    road.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From when it is called, what was refused is tried again at the next step."""

    def pass_time() -> None:
        monkeypatch.setattr(blobs, "QUOTA_S", 0.0)

    return pass_time


def noise(size: int) -> str:
    """Text of so many characters that no compression makes shorter than half."""
    return os.urandom(size // 2).hex()


def test_a_segment_that_does_not_fit_is_parked_and_the_server_not_asked_again(
    way: ShipmentFixture, full_server: FullServer
) -> None:
    pen = way.desk.pen()
    pen.log("first")
    way.drain()
    for _ in range(4):
        pen.log(noise(100_000))
    result = way.drain()
    assert result.full
    assert result.remaining is Remaining.LATER
    assert result.again_s is not None
    assert blobs.QUOTA_S <= result.again_s <= 1.2 * blobs.QUOTA_S
    assert list(way.parked()) == [pen.segment.name]
    assert f"refused (507 {QUOTA}): alice keeps" in way.parked()[pen.segment.name]
    assert way.messages() == ["first"]
    # More is recorded, and does not make it ask.
    asked = len(way.road.seen)
    pen.log("last")
    assert way.drain().full
    assert len(way.road.seen) == asked
    full_server.raise_quota()
    # Another uploader, as `ml-dash push` starts one.
    way.again()
    way.drain()
    assert not way.parked()
    assert len(way.messages()) == 6
    way.has_all()


def test_it_is_tried_again_and_later_segments_and_the_death_of_the_writer_keep_their_order(
    way: ShipmentFixture, full_server: FullServer, impatient: Callable[[], None]
) -> None:
    impatient()
    pen = way.desk.pen()
    for _ in range(4):
        pen.log(noise(100_000))
    first = pen.segment.name
    pen.roll()
    pen.log("small")
    second = pen.segment.name
    pen.die()
    way.desk.catch_up()
    for _ in range(3):
        assert way.drain().full
        assert list(way.parked()) == [first]
    assert way.road.count("POST", second) == way.road.count("POST", "/deaths") == 0
    assert way.road.count("POST", first) >= 3
    full_server.raise_quota()
    assert way.drain().remaining is Remaining.NOTHING
    assert not way.parked()
    assert way.messages()[-1] == "small"
    assert way.status() == "interrupted"
    way.has_all()


def test_a_file_that_does_not_fit_waits_alone(
    way: ShipmentFixture, full_server: FullServer, impatient: Callable[[], None]
) -> None:
    pen = way.desk.pen()
    large = [pen.file(os.urandom(size), f"{size}") for size in (400_000, 500_000)]
    small = pen.file(os.urandom(200_000), "small")
    names = {way.desk.journal / "blobs" / name for name in os.listdir(way.desk.journal / "blobs")}
    sizes = {path.name: path.stat().st_size for path in names}
    assert len({*large, small}) == 3
    result = way.drain()
    assert (result.remaining, result.full) == (Remaining.LATER, True)
    assert {sizes[name] for name in way.parked()} == {400_000, 500_000}
    assert {sizes[name] for name in way.there()["blobs"]} == {200_000}
    # What is recorded goes on, and no file is sent in vain.
    puts = way.road.count("PUT", "/blobs/")
    pen.log("on")
    assert way.drain().full
    assert way.messages() == ["on"]
    assert way.road.count("PUT", "/blobs/") == puts
    full_server.raise_quota()
    impatient()
    way.shipment._blobs._full = dict.fromkeys(way.shipment._blobs._full, 0.0)
    pen.close()
    assert way.drain().remaining is Remaining.NOTHING
    assert not way.parked()
    assert not way.there()["missing"]
    way.has_all()


def test_a_long_body_that_does_not_fit_is_not_given_up(
    way: ShipmentFixture, full_server: FullServer, impatient: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient()
    # What is lost would be given up at the second look.
    monkeypatch.setattr("ml_dash_syncd.batches.DAMAGE_S", 0.0)
    pen = way.desk.pen()
    pen.log("before")
    text = noise(2 << 20)
    pen.large(ev.LOG, ["info", text, None])
    pen.log("after")
    for _ in range(4):
        assert way.drain().full
    assert list(way.parked()) == [pen.segment.name]
    full_server.raise_quota()
    way.drain()
    assert [hashlib.sha256(one.encode()).hexdigest() for one in way.messages()] == [
        hashlib.sha256(one.encode()).hexdigest() for one in ("before", text, "after")
    ]
    way.has_all()


def test_a_segment_that_was_paused_before_keeps_later_ones_waiting(
    way: ShipmentFixture, full_server: FullServer, impatient: Callable[[], None]
) -> None:
    impatient()
    pen = way.desk.pen()
    pen.large(ev.LOG, ["info", noise(2 << 20), None])
    first = pen.segment.name
    pen.roll()
    pen.log("small")
    second = pen.segment.name

    def meet(method: str, path: str, answer: Callable[[], dict[str, Any]], how: dict[str, Any]) -> dict[str, Any]:
        if method == "PUT":
            raise ServerRefused("not now", status=409, code=NO_EVENT)
        return answer()

    way.road.meet = meet
    assert not way.drain().full
    assert way.shipment._paused == {first, second}
    way.road.meet = None
    for _ in range(4):
        pen.log("more")
        assert way.drain().full
        assert list(way.parked()) == [first]
    assert way.road.count("POST", second) == 0
    full_server.raise_quota()
    assert way.drain().remaining is not Remaining.MORE
    assert [len(one) for one in way.messages()] == [2 << 20, 5, 4, 4, 4, 4]
    way.has_all()


def test_a_client_gets_the_refusal_of_a_full_namespace(full_server: FullServer) -> None:
    link = RecordedLink(full_server.url, "alice")
    body = {"name": "x", "description": noise(400_000)}
    with pytest.raises(ServerRefused, match="alice keeps 0 bytes here, of 300,000 it may") as caught:
        link.ask("POST", "/projects/p/experiments", (), json=body)
    link.close()
    assert (caught.value.status, caught.value.code) == (507, QUOTA)
    assert caught.value.extra == {"used": 0, "limit": LIMIT}


def test_a_file_that_cannot_fit_is_refused_before_its_bytes_are_taken(full_server: FullServer) -> None:
    web = Web(full_server.url, development_token("alice"))
    with web.session:
        path = f"/experiments/{web.experiment('one')}/files"
        web.refused("POST", path, 507, QUOTA, files={"file": ("model.pt", os.urandom(299_900))})
        # Only the head of the request, which says how much would come.
        headers = {"Content-Length": str(2 << 20), "Content-Type": "multipart/form-data; boundary=b"}
        host, _, port = full_server.url.rpartition("//")[2].partition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=30)
        connection.putrequest("POST", path)
        for name, value in {**headers, "Authorization": web.session.headers["Authorization"]}.items():
            connection.putheader(name, value)
        connection.endheaders()
        assert connection.getresponse().status == 507
        connection.close()
        web.ask("POST", path, files={"file": ("model.pt", os.urandom(200_000))})


def test_a_full_namespace_keeps_its_data_here_others_go_on_and_all_arrives_once_it_may(
    full_server: FullServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("STATE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    monkeypatch.setenv("ML_DASH_AUTOSYNC", "0")
    home = Home(tmp_path, full_server.url)

    def record(user: str) -> None:
        home.user = user
        with Experiment("one", "p", local_path=tmp_path / user, remote=home.url, user_name=user).open() as experiment:
            for _ in range(8):
                experiment.log(noise(100_000))

    def status() -> dict[str, Any]:
        return {
            Path(one["journal"]).parents[2].name: one
            for one in json.loads(home.syncd("status", "--json").stdout)["experiments"]
        }

    def logs(user: str) -> int:
        home.user = user
        return home.logs()

    record("alice")
    record("bob")
    with uploader():
        until(lambda: logs("bob") == 8 and status()["alice"]["parked"])
        assert logs("alice") == 0
        ((name, why),) = status()["alice"]["parked"].items()
        assert name.endswith(".seg")
        assert "alice keeps" in why
        assert f"of {LIMIT:,} it may" in why
        assert f"set aside: {name}: {why}" in home.syncd("status").stdout
        # A second uploader tries once, says so, and ends.
        assert once() == 3
        shown = _ml_dash("sync", "status")
        assert f"parked: {name}" in shown.stdout + shown.stderr
        assert "alice keeps" in shown.stdout + shown.stderr
        full_server.raise_quota()
        pushed = _ml_dash("push", "p/one", "--path", str(tmp_path / "alice"), "--user", "alice", "--remote", home.url)
        assert pushed.returncode == 0, pushed.stdout + pushed.stderr
        assert logs("alice") == logs("bob") == 8
        assert not status()["alice"]["parked"]


def _ml_dash(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ml_dash", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
