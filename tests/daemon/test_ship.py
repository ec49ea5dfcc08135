"""One journal on its way to a real server: what arrives, in which order, and what is left when something is wrong."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import msgpack
import pytest

from ml_dash.core import events as ev
from ml_dash.core.frames import LengthCrcs, encode_frame
from ml_dash.core.names import experiment_id
from ml_dash.core.protocol import CONFLICT, DIGEST, GAP, MALFORMED, TOO_LARGE, JournalState
from ml_dash.errors import ServerRefused, Unreachable
from ml_dash.journal.order import Death
from ml_dash.journal.reader import open_segment
from ml_dash.journal.segment import BLOBS, SEGMENTS, read_identity
from ml_dash.sync import remote
from ml_dash.sync.login import development_token
from ml_dash.sync.registrations import Registration
from ml_dash_syncd import account, batches, blobs, ship
from ml_dash_syncd.ship import Remaining, Shipment, StepResult
from tests.journals import SECOND, JournalFixture, WriterFixture, flip, recorded
from tests.running import Server

Answer = Callable[[], dict[str, Any]]


class RecordedLink(remote.Link):
    """A link on which a test may meet each request: `meet(method, path, answer, how)` answers in the server's place."""

    def __init__(self, url: str, user: str) -> None:
        super().__init__(url, development_token(user))
        self.seen: list[tuple[str, str]] = []
        self.meet: Callable[[str, str, Answer, dict[str, Any]], dict[str, Any]] | None = None

    def ask(self, method: str, path: str, needed: Any, **how: Any) -> dict[str, Any]:
        self.seen.append((method, path))

        def answer() -> dict[str, Any]:
            return super(RecordedLink, self).ask(method, path, needed, **how)

        return answer() if self.meet is None else self.meet(method, path, answer, how)

    def count(self, method: str, part: str) -> int:
        return sum(how == method and part in path for how, path in self.seen)


class ShipmentFixture:
    """A desk, the road to the server, and the shipment in between."""

    def __init__(self, desk: JournalFixture, road: RecordedLink, cursors: Path) -> None:
        self.desk, self.road, self.cursors = desk, road, cursors
        self.registration = Registration(str(desk.journal), road.url, "alice")
        self.shipment = Shipment(self.registration, cursors)

    @property
    def id(self) -> str:
        return read_identity(self.desk.journal).journal.hex()

    def again(self) -> None:
        """Another uploader takes over, as after a kill."""
        self.shipment = Shipment(self.registration, self.cursors)

    def drain(self) -> StepResult:
        """Send all that can be sent now."""
        for _ in range(1000):
            result = self.shipment.step(self.road, monotonic() + 30)
            if result.remaining is not Remaining.MORE:
                return result
        raise AssertionError("it does not come to an end")

    def there(self) -> JournalState:
        return remote.journal(self.road, self.id)

    def parked(self) -> dict[str, str]:
        assert self.shipment.cursor is not None
        return self.shipment.cursor.parked

    def lengths(self) -> dict[str, int]:
        """By file name, what the server has."""
        return {state["file"]: state["length"] for state in self.there()["segments"].values()}

    def has_all(self) -> None:
        """Every byte of every segment is there, the same."""
        sizes, digests = {}, {}
        for path in (self.desk.journal / SEGMENTS).glob("*.seg"):
            segment = open_segment(path)
            assert segment is not None
            sizes[segment.id] = path.stat().st_size
            digests[segment.id] = hashlib.sha256(path.read_bytes()).hexdigest()
        found = remote.digests(self.road, self.id, sizes)
        assert {name: one["sha256"] for name, one in found.items()} == digests

    def has_own(self, pen: WriterFixture) -> None:
        """The same for what one pen has written last."""
        assert self.lengths()[pen.segment.name] == pen.segment.stat().st_size

    def messages(self) -> list[str]:
        """The log on the server, in its order."""
        identity = experiment_id(self.desk.identity.project, self.desk.identity.name)
        page = self.road.ask("GET", f"/experiments/{identity}/logs", ("logs",), params={"limit": 1000})
        return [one["message"] for one in page["logs"]]

    def status(self) -> str:
        identity = experiment_id(self.desk.identity.project, self.desk.identity.name)
        found = self.road.ask("GET", f"/experiments/{identity}", ())
        return str(found.get("experiment", found)["status"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("ship") / "data").start()
    yield running
    running.end()


@pytest.fixture
def way(desk: JournalFixture, server: Server, tmp_path: Path) -> Iterator[ShipmentFixture]:
    """Each test as a user of its own: a namespace that is empty."""
    road = RecordedLink(server.url, hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12])
    yield ShipmentFixture(desk, road, tmp_path / "cursors")
    road.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage is believed at the second look."""
    monkeypatch.setattr(batches, "DAMAGE_S", 0.0)


# -- what arrives -----------------------------------------------------------------------------------------------------


def test_a_closed_journal_is_all_there(way: ShipmentFixture) -> None:
    pen = way.desk.pen()
    for number in range(50):
        pen.log(f"line {number}")
        pen.point(step=number, loss=1 / (number + 1))
    pen.close()
    assert way.drain() == StepResult(Remaining.NOTHING)
    way.has_all()
    assert way.messages() == [f"line {number}" for number in range(50)]
    assert way.status() == "completed"
    assert way.lengths() == {pen.segment.name: pen.segment.stat().st_size}


def test_only_what_is_new_is_sent(way: ShipmentFixture) -> None:
    pen = way.desk.pen()
    way.drain()
    asked, posted = way.road.count("GET", "/journals/"), way.road.count("POST", "/segments/")
    way.drain()
    assert way.road.count("POST", "/segments/") == posted
    pen.log("more")
    way.drain()
    assert way.road.count("POST", "/segments/") == posted + 1
    assert way.road.count("GET", "/journals/") == asked
    way.has_all()


def test_writers_that_took_turns_arrive_in_their_order(way: ShipmentFixture) -> None:
    one, two = way.desk.pen(), way.desk.pen()
    for number in range(6):
        (one, two)[number % 2].log(f"{number}")
        way.desk.catch_up()  # records the order
    way.drain()
    assert way.messages() == ["0", "1", "2", "3", "4", "5"] == [json.loads(line)["message"] for line in
                                                              way.desk.lines("logs/logs.jsonl")]  # fmt: skip


def test_half_a_frame_waits_for_its_other_half(way: ShipmentFixture) -> None:
    pen = way.desk.pen()
    pen.log("whole")
    whole = pen.segment.stat().st_size
    frame = _frame(pen, "late")
    pen.raw(frame[:-3])
    way.drain()
    assert way.lengths() == {pen.segment.name: whole}
    assert not way.parked()
    pen.raw(frame[-3:])
    way.drain()
    assert way.messages() == ["whole", "late"]
    way.has_all()


def test_a_backlog_goes_in_bounded_requests(way: ShipmentFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(way.shipment.account, "batch_bytes", 4096)
    monkeypatch.setattr(account, "BATCH_BYTES", 4096)
    sizes: list[int] = []

    def meet(method: str, path: str, answer: Answer, how: dict[str, Any]) -> dict[str, Any]:
        if "/segments/" in path:
            sizes.append(len(_body(how)))
        return answer()

    way.road.meet = meet
    pen = way.desk.pen()
    for number in range(500):
        pen.log(f"line {number}")
    pen.log("x" * 20_000)
    pen.close()
    assert way.drain().remaining is Remaining.NOTHING
    assert len(sizes) >= 5
    assert sorted(sizes)[-2] <= 4096
    assert max(sizes) < 21_000  # one frame is not cut
    way.has_all()


def test_a_step_ends_at_its_deadline_and_goes_on(way: ShipmentFixture) -> None:
    pen = way.desk.pen()
    pen.log("late")
    assert way.shipment.step(way.road, monotonic()).remaining is Remaining.MORE
    with pytest.raises(ServerRefused, match="unknown"):
        way.there()
    assert way.drain().remaining is Remaining.NOTHING
    way.has_all()


def test_a_writer_that_died_is_told(way: ShipmentFixture) -> None:
    pen = way.desk.pen()
    pen.log("last words")
    way.drain()
    assert way.status() == "running"
    pen.die()
    way.drain()
    assert way.status() == "interrupted"
    assert way.there()["deaths"] == [pen.id]
    told = way.road.count("POST", "/deaths")
    way.again()
    way.drain()
    assert way.road.count("POST", "/deaths") == told


# -- lost answers, lost cursors, other uploaders ----------------------------------------------------------------------


def test_a_lost_answer_costs_sending_again_and_doubles_nothing(way: ShipmentFixture) -> None:
    _written(way, 5)
    lost = []

    def meet(method: str, path: str, answer: Answer, how: dict[str, Any]) -> dict[str, Any]:
        found = answer()
        if "/segments/" in path and not lost:
            lost.append(path)
            raise Unreachable("the answer was lost")
        return found

    way.road.meet = meet
    with pytest.raises(Unreachable):
        way.drain()
    way.drain()
    assert len(lost) == 1
    assert way.messages() == ["0", "1", "2", "3", "4"]
    way.has_all()


@pytest.mark.parametrize("what", ["gone", "empty", "noise", "ahead"])
def test_a_bad_cursor_skips_nothing(way: ShipmentFixture, what: str) -> None:
    pen = way.desk.pen()
    pen.log("first")
    way.drain()
    path = way.shipment.account.path
    document = json.loads(path.read_bytes())
    if what == "gone":
        path.unlink()
    elif what == "empty":
        path.write_bytes(b"")
    elif what == "noise":
        path.write_bytes(b"\xff\x00{")
    else:
        document["segments"] = dict.fromkeys(document["segments"], 1 << 40)
        path.write_text(json.dumps(document))
    pen.log("second")
    pen.close()
    way.again()
    assert way.drain().remaining is Remaining.NOTHING
    assert way.messages() == ["first", "second"]
    way.has_all()


def test_two_uploaders_of_one_journal(way: ShipmentFixture, server: Server, tmp_path: Path) -> None:
    other = Shipment(way.registration, tmp_path / "others")
    pen = way.desk.pen()
    for number in range(10):
        pen.log(f"{number}")
        (way.shipment if number % 2 else other).step(way.road, monotonic() + 30)
    pen.close()
    other.step(way.road, monotonic() + 30)
    way.drain()
    assert way.messages() == [f"{number}" for number in range(10)]
    way.has_all()


def test_a_server_that_was_set_back_gets_what_it_lacks(way: ShipmentFixture, tmp_path: Path, server: Server) -> None:
    """Its backup knows the first writer alone: the 409 tells, and all is asked for anew; deaths too."""
    own = Server(tmp_path / "old" / "data")
    own.data.parent.mkdir()
    own.start()
    backup = tmp_path / "backup"
    try:
        way.road.close()
        road = RecordedLink(own.url, "alice")
        there = ShipmentFixture(way.desk, road, tmp_path / "c")
        pen = way.desk.pen()
        pen.log("one")
        there.drain()
        own.end()
        subprocess.run(["cp", "-a", str(own.data), str(backup)], check=True)
        own.start()
        pen.log("two")
        pen.die()
        there.drain()
        assert there.status() == "interrupted"
        own.end()
        subprocess.run(["rm", "-r", str(own.data)], check=True)
        subprocess.run(["cp", "-a", str(backup), str(own.data)], check=True)
        own.start()
        road.close()
        later = way.desk.pen()
        later.log("three")
        later.close()
        there.shipment.forget()  # what the daemon does now and then
        there.drain()
        there.has_all()
        assert there.messages() == ["one", "two", "three"]
        assert there.there()["deaths"] == [pen.id]
        road.close()
    finally:
        own.end()


def test_a_gap_sends_everything_anew(way: ShipmentFixture) -> None:
    pen = way.desk.pen()
    pen.log("one")
    way.drain()
    told: list[int] = []

    def meet(method: str, path: str, answer: Answer, how: dict[str, Any]) -> dict[str, Any]:
        if "/segments/" in path and not told:
            told.append(int(how["params"]["offset"]))
            raise ServerRefused("less is here", status=409, code=GAP, extra={"length": 0})
        return answer()

    way.road.meet = meet
    pen.log("two")
    way.drain()
    assert told
    assert way.messages() == ["one", "two"]
    way.has_all()


def test_whoever_takes_over_elsewhere_ends_the_run_before(way: ShipmentFixture, tmp_path: Path) -> None:
    """The machine of the first writer is lost; its segment was brought here, where another writer goes on."""
    first = way.desk.pen()
    first.log("on the machine that is lost")
    way.drain()
    assert way.status() == "running"
    here = JournalFixture(tmp_path / "here")
    foreign = here.journal / SEGMENTS / first.segment.name
    foreign.write_bytes(first.segment.read_bytes())
    pens = ShipmentFixture(here, way.road, tmp_path / "c")
    assert pens.drain() == StepResult(Remaining.NOTHING)
    assert way.status() == "running"
    here.now_ns = way.desk.now_ns + SECOND
    second = WriterFixture(here, 2)
    here.pens.append(second)
    second.open()
    second.log("here")
    pens.drain()
    assert way.messages() == ["on the machine that is lost", "here"]
    assert way.status() == "running"
    second.close()
    assert pens.drain().remaining is Remaining.NOTHING
    assert way.status() == "completed" == here.record()["status"]
    assert first.id in {record.writer for record in recorded(here.journal) if isinstance(record, Death)}
    pens.has_own(second)


# -- refused ----------------------------------------------------------------------------------------------------------


def test_too_large_is_sent_in_pieces(way: ShipmentFixture) -> None:
    pen = way.desk.pen()
    for number in range(200):
        pen.log(f"line {number}")
    refused = []

    def meet(method: str, path: str, answer: Answer, how: dict[str, Any]) -> dict[str, Any]:
        if "/segments/" in path and len(_body(how)) > 3000:
            refused.append(len(_body(how)))
            raise ServerRefused("too large", status=413, code=TOO_LARGE, extra={"limit": 3000})
        return answer()

    way.road.meet = meet
    way.drain()
    assert refused
    way.has_all()


def test_a_segment_that_is_refused_does_not_hold_up_the_others(way: ShipmentFixture) -> None:
    bad, good = way.desk.pen(), way.desk.pen()
    bad.log("bad")
    good.log("good")

    def meet(method: str, path: str, answer: Answer, how: dict[str, Any]) -> dict[str, Any]:
        if path.endswith(bad.segment.name):
            raise ServerRefused("not this one", status=422, code=MALFORMED)
        return answer()

    way.road.meet = meet
    assert way.drain() == StepResult(Remaining.LATER)
    assert way.parked() == {bad.segment.name: "not this one"}
    assert way.messages() == ["good"]
    bad.log("more of it")
    good.log("better")
    way.drain()
    assert way.messages() == ["good", "better"]
    # Asked anew (a restart, or SIGHUP), it is tried once more.
    way.road.meet = None
    way.shipment.forget()
    assert way.drain().remaining is Remaining.NOTHING
    assert not way.parked()
    way.has_all()


def test_a_conflict_is_parked_and_nothing_is_overwritten(way: ShipmentFixture) -> None:
    pen = way.desk.pen()
    pen.log("as it was")
    way.drain()
    kept = pen.segment.read_bytes()
    segment = open_segment(pen.segment)
    assert segment is not None
    pen.segment.write_bytes(kept[: pen.frames[-1][0]])
    pen.log("as it was made up")
    pen.log("and more")
    way.again()
    cursor_before = way.lengths()
    # The server holds more of the old bytes than are the same: going on behind them would be a frame in the middle.
    way.shipment.step(way.road, monotonic() + 30)
    assert way.lengths() == cursor_before
    assert way.messages() == ["as it was"]


def test_a_refused_conflict_keeps_the_first(way: ShipmentFixture) -> None:
    pen = way.desk.pen()
    pen.log("one")

    def meet(method: str, path: str, answer: Answer, how: dict[str, Any]) -> dict[str, Any]:
        if "/segments/" in path:
            raise ServerRefused("other bytes are stored there", status=409, code=CONFLICT, extra={"offset": 0})
        return answer()

    way.road.meet = meet
    assert way.drain().remaining is Remaining.LATER
    assert "other bytes" in way.parked()[pen.segment.name]


def test_a_death_that_is_refused_does_not_hold_up_the_rest(way: ShipmentFixture) -> None:
    pen = way.desk.pen()
    pen.log("one")
    pen.die()
    other = way.desk.pen()

    def meet(method: str, path: str, answer: Answer, how: dict[str, Any]) -> dict[str, Any]:
        if path.endswith("/deaths"):
            raise ServerRefused("no such note", status=422, code=MALFORMED)
        return answer()

    way.road.meet = meet
    other.log("two")
    assert way.drain().remaining is Remaining.LATER
    assert way.messages() == ["one", "two"]
    assert any(pen.id in name for name in way.parked())


# -- damage -----------------------------------------------------------------------------------------------------------


def _written(way: ShipmentFixture, count: int) -> WriterFixture:
    """A pen that has written log entries, each with its number as the message."""
    pen = way.desk.pen()
    for number in range(count):
        pen.log(f"{number}")
    return pen


def _damage(pen: WriterFixture, frame: int, byte: int = 10) -> None:
    start, _ = pen.frames[frame]
    flip(pen.segment, start + byte)


def _damaged(way: ShipmentFixture, count: int = 4) -> WriterFixture:
    """Entries of one writer, all in the order; the third frame is damaged since."""
    pen = _written(way, count)
    way.desk.catch_up()
    _damage(pen, 2)
    return pen


def test_damage_is_believed_only_at_the_second_look(way: ShipmentFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    pen = _damaged(way)
    result = way.drain()
    assert result.remaining is Remaining.LATER
    assert result.again_s is not None
    assert 50 < result.again_s <= batches.DAMAGE_S
    assert way.messages() == ["0"]
    _damage(pen, 2)  # the same bit again: it was the disk's answer that was wrong
    assert way.drain().remaining is Remaining.NOTHING
    assert way.messages() == ["0", "1", "2", "3"]
    way.has_all()


def test_damage_that_stays_costs_only_the_frames_it_touches(way: ShipmentFixture, impatient: None) -> None:
    pen = _written(way, 4)
    _damage(pen, 2)
    pen.close()
    way.drain()
    assert way.drain().remaining is Remaining.NOTHING
    assert way.messages() == ["0", "2", "3"]
    way.has_all()


def test_what_waits_for_a_second_look_outlives_trouble_with_the_network(way: ShipmentFixture, impatient: None) -> None:
    _damaged(way)
    way.drain()
    other = way.desk.pen()
    other.log("of another writer")

    def meet(method: str, path: str, answer: Answer, how: dict[str, Any]) -> dict[str, Any]:
        raise Unreachable("no network")

    way.road.meet = meet
    with pytest.raises(Unreachable):
        way.drain()
    way.road.meet = None
    way.drain()
    way.drain()
    assert sorted(way.messages()) == ["0", "2", "3", "of another writer"]
    way.has_all()


def test_what_waits_for_a_second_look_outlives_a_deadline(way: ShipmentFixture, impatient: None) -> None:
    _damaged(way)
    way.drain()
    way.desk.pen().log("of another writer")
    assert way.shipment.step(way.road, monotonic()).remaining is Remaining.MORE
    way.drain()
    way.drain()
    assert sorted(way.messages()) == ["0", "2", "3", "of another writer"]


def test_a_death_is_told_after_what_waits_for_a_second_look(way: ShipmentFixture, impatient: None) -> None:
    pen = _damaged(way)
    pen.die()
    way.drain()
    way.drain()
    assert way.messages() == ["0", "2", "3"]
    assert way.status() == "interrupted"


def test_later_segments_of_a_writer_wait_for_its_earlier_ones(
    way: ShipmentFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pen = _damaged(way, 3)
    first = pen.segment
    way.drain()
    pen.roll()
    pen.log("in the second")
    way.drain()
    assert pen.segment.name not in way.lengths()
    monkeypatch.setattr(batches, "DAMAGE_S", 0.0)
    way.drain()
    assert set(way.lengths()) == {first.name, pen.segment.name}
    assert way.messages() == ["0", "2", "in the second"]


def test_damage_to_a_length_does_not_hide_what_follows(way: ShipmentFixture, impatient: None) -> None:
    """The frame seems to go on behind the end of the file."""
    pen = _written(way, 4)
    start, _ = pen.frames[2]
    flip(pen.segment, start + 1, 7)
    pen.close()
    way.drain()
    assert way.drain().remaining is Remaining.NOTHING
    assert way.messages() == ["0", "2", "3"]
    way.has_all()


def test_damage_to_the_header_and_the_first_frame(way: ShipmentFixture, impatient: None) -> None:
    pen = way.desk.pen()
    pen.log("one")
    flip(pen.segment, 40)
    _damage(pen, 0)
    pen.close()
    way.drain()
    assert way.drain().remaining is Remaining.NOTHING
    assert way.messages() == ["one"]
    way.has_all()


def test_damage_larger_than_a_request(way: ShipmentFixture, impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros, as a power cut leaves them."""
    monkeypatch.setattr(account, "BATCH_BYTES", 4096)
    monkeypatch.setattr(way.shipment.account, "batch_bytes", 4096)
    pen = way.desk.pen()
    pen.log("before")
    pen.raw(bytes(10_000))
    pen.log("behind")
    pen.close()
    for _ in range(4):
        result = way.drain()
    assert result.remaining is Remaining.NOTHING
    assert way.messages() == ["before", "behind"]
    way.has_all()


def test_a_frame_that_is_no_event_costs_only_itself(way: ShipmentFixture, impatient: None) -> None:
    """Its checksum holds, and its payload is none that anybody can read."""
    pen = way.desk.pen()
    pen.log("before")
    pen.payload(b"\xc1 no msgpack")
    pen.log("behind")
    pen.payload(msgpack.packb({"no": "event"}))
    pen.log("last")
    pen.close()
    for _ in range(3):
        result = way.drain()
    assert result.remaining is Remaining.NOTHING
    assert way.messages() == ["before", "behind", "last"]
    way.has_all()


def test_a_damaged_header_is_sent_as_that(way: ShipmentFixture, impatient: None) -> None:
    pen = way.desk.pen()
    pen.log("one")
    flip(pen.segment, 40)
    pen.close()
    way.drain()
    way.drain()
    assert way.messages() == ["one"]
    way.has_all()


def test_bytes_that_order_names_and_that_are_gone_are_told(way: ShipmentFixture, impatient: None) -> None:
    pen = way.desk.pen()
    pen.log("kept")
    pen.log("lost")
    way.desk.catch_up()
    pen.chop(5)
    pen.die()
    way.drain()
    result = way.drain()
    assert result.remaining is Remaining.LATER
    assert result.again_s is None or result.again_s >= 10
    assert pen.segment.name in way.parked()
    assert way.messages() == ["kept"]
    assert way.status() == "interrupted"


def test_the_last_frame_damaged_after_it_was_named_is_told(way: ShipmentFixture, impatient: None) -> None:
    pen = way.desk.pen()
    pen.log("kept")
    pen.log("lost")
    way.desk.catch_up()
    _damage(pen, -1)
    pen.die()
    way.drain()
    result = way.drain()
    assert result.remaining is Remaining.LATER
    assert result.again_s is None or result.again_s >= 10
    assert pen.segment.name in way.parked()
    assert way.messages() == ["kept"]


# -- contents ---------------------------------------------------------------------------------------------------------


def test_a_file_arrives_after_its_event(way: ShipmentFixture) -> None:
    pen = way.desk.pen()
    pen.file(b"weights" * 1000)
    pen.close()
    assert way.drain().remaining is Remaining.NOTHING
    there = way.there()
    assert not there["missing"]
    assert len(there["blobs"]) == 1
    assert way.shipment.cursor is not None
    assert way.shipment.cursor.blobs == set(there["blobs"])


def test_an_upload_goes_on_where_it_was_cut(way: ShipmentFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "BLOB_BYTES", 1000)
    pen = way.desk.pen()
    pen.file(os.urandom(5500))
    pen.close()
    offsets: list[int] = []

    def meet(method: str, path: str, answer: Answer, how: dict[str, Any]) -> dict[str, Any]:
        found = answer()
        if method == "PUT":
            offsets.append(int(how["params"]["offset"]))
            if len(offsets) == 3:
                raise Unreachable("cut")
        return found

    way.road.meet = meet
    with pytest.raises(Unreachable):
        way.drain()
    way.again()
    assert way.drain().remaining is Remaining.NOTHING
    assert offsets == [0, 1000, 2000, 3000, 4000, 5000]
    assert not way.there()["missing"]


def test_a_server_that_died_before_it_looked_at_all_bytes(desk: JournalFixture, tmp_path: Path) -> None:
    dying = Server(tmp_path / "data", {"ML_DASH_FAIL": "blob-staged:1:kill"}).start()
    pen = desk.pen()
    pen.file(os.urandom(3000))
    pen.close()
    road = RecordedLink(dying.url, "alice")
    try:
        with pytest.raises(Unreachable):
            ShipmentFixture(desk, road, tmp_path / "cursors").drain()
    finally:
        road.close()
        dying.end()
    server = Server(tmp_path / "data").start()
    road = RecordedLink(server.url, "alice")
    try:
        way = ShipmentFixture(desk, road, tmp_path / "cursors")
        assert way.drain().remaining is Remaining.NOTHING
        assert not way.there()["missing"]
    finally:
        road.close()
        server.end()


@pytest.mark.parametrize("kind", ["file", "body"])
def test_a_server_that_never_has_more_is_left_alone(way: ShipmentFixture, kind: str) -> None:
    pen = way.desk.pen()
    if kind == "file":
        pen.file(b"weights")
    else:
        pen.large(ev.LOG, ["info", "a long one", None])

    def meet(method: str, path: str, answer: Answer, how: dict[str, Any]) -> dict[str, Any]:
        return {"length": 0, "size": 7, "complete": False} if method == "PUT" else answer()

    way.road.meet = meet
    with pytest.raises(Unreachable, match="no more than before"):
        way.drain()


def test_frames_that_are_taken_and_not_there_are_no_acknowledgement(way: ShipmentFixture) -> None:
    pen = way.desk.pen()
    pen.log("one")

    def meet(method: str, path: str, answer: Answer, how: dict[str, Any]) -> dict[str, Any]:
        return {"length": 0, "events": 0} if "/segments/" in path else answer()

    way.road.meet = meet
    with pytest.raises(Unreachable, match="no more than before"):
        way.drain()
    way.road.meet = None
    way.drain()
    assert way.messages() == ["one"]


def test_a_server_that_contradicts_itself_is_left_alone(way: ShipmentFixture) -> None:
    pen = way.desk.pen()
    way.drain()
    pen.log("one")

    def meet(method: str, path: str, answer: Answer, how: dict[str, Any]) -> dict[str, Any]:
        if "/segments/" in path:
            raise ServerRefused("nothing is here", status=409, code=GAP, extra={"length": 0})
        return answer()

    way.road.meet = meet
    with pytest.raises(Unreachable, match="contradicts itself"):
        way.drain()
    way.road.meet = None
    way.drain()
    assert way.messages() == ["one"]


def test_an_empty_file(way: ShipmentFixture) -> None:
    pen = way.desk.pen()
    pen.file(b"")
    pen.close()
    assert way.drain().remaining is Remaining.NOTHING
    assert not way.there()["missing"]


def test_the_same_content_is_sent_once(way: ShipmentFixture) -> None:
    pen = way.desk.pen()
    content = os.urandom(3000)
    pen.file(content, "a.bin")
    pen.file(content, "b.bin")
    pen.close()
    assert way.drain().remaining is Remaining.NOTHING
    assert way.road.count("PUT", "/blobs/") == 1
    assert not way.there()["missing"]


def test_a_version_that_was_replaced_is_not_sent(way: ShipmentFixture) -> None:
    pen = way.desk.pen()
    pen.file(b"old" * 1000)
    pen.file(b"new" * 1000)
    pen.close()
    assert way.drain().remaining is Remaining.NOTHING
    assert way.road.count("PUT", "/blobs/") == 1
    assert not way.there()["missing"]


def test_a_content_that_is_gone_is_told(way: ShipmentFixture) -> None:
    pen = way.desk.pen()
    pen.file(b"here today")
    [blob] = (way.desk.journal / BLOBS).iterdir()
    blob.unlink()
    pen.log("goes on")
    pen.close()
    assert way.drain().remaining is Remaining.LATER
    assert "gone from this machine" in way.parked()[blob.name]
    assert way.messages() == ["goes on"]


def test_a_content_that_is_gone_and_deleted_is_no_trouble_any_more(way: ShipmentFixture) -> None:
    pen = way.desk.pen()
    identity = pen.file(b"here today")
    [blob] = (way.desk.journal / BLOBS).iterdir()
    blob.unlink()
    assert way.drain().remaining is Remaining.LATER
    pen.delete_file(identity)
    pen.close()
    assert way.drain().remaining is Remaining.NOTHING
    assert not way.parked()


def test_a_content_that_was_changed_is_not_sent_as_good(way: ShipmentFixture) -> None:
    pen = way.desk.pen()
    pen.file(b"as it was")
    [blob] = (way.desk.journal / BLOBS).iterdir()
    blob.chmod(0o644)
    blob.write_bytes(b"as it is ")
    pen.close()
    assert way.drain().remaining is Remaining.LATER
    assert "changed on this machine" in way.parked()[blob.name]
    assert way.there()["missing"] == [blob.name]


def test_a_long_body_goes_before_its_event(way: ShipmentFixture) -> None:
    pen = way.desk.pen()
    pen.large(ev.LOG, ["info", "a long one", {"text": "x" * 5000}])
    pen.log("a short one")
    pen.close()
    assert way.drain().remaining is Remaining.NOTHING
    assert way.messages() == ["a long one", "a short one"]
    way.has_all()


def test_a_long_body_that_is_lost_costs_only_its_event(way: ShipmentFixture, impatient: None) -> None:
    pen = way.desk.pen()
    pen.large(ev.LOG, ["info", "a long one", {"text": "x" * 5000}], keeps_blob=False)
    pen.log("a short one")
    pen.close()
    way.drain()
    assert way.drain().remaining is Remaining.LATER
    assert way.messages() == ["a short one"]
    [why] = way.parked().values()
    assert "gone from this machine" in why


def test_a_long_body_that_arrived_changed_is_sent_again(way: ShipmentFixture) -> None:
    pen = way.desk.pen()
    pen.large(ev.LOG, ["info", "a long one", {"text": "x" * 5000}])
    pen.close()
    refused: list[str] = []

    def meet(method: str, path: str, answer: Answer, how: dict[str, Any]) -> dict[str, Any]:
        if method == "PUT" and not refused:
            refused.append(path)
            raise ServerRefused("it was dropped", status=422, code=DIGEST)
        return answer()

    way.road.meet = meet
    way.drain()
    assert way.drain().remaining is Remaining.NOTHING
    assert refused
    assert way.messages() == ["a long one"]


def test_a_long_body_that_comes_late_is_waited_for(way: ShipmentFixture) -> None:
    pen = way.desk.pen()
    body = ["info", "a long one", {"text": "x" * 5000}]
    seq = pen.large(ev.LOG, body, keeps_blob=False)
    pen.close()
    result = way.drain()
    assert result.remaining is Remaining.LATER
    assert result.again_s == ship.BODY_RETRY_S
    pen.blob(msgpack.packb(body), seq)
    assert way.drain().remaining is Remaining.NOTHING
    assert not way.parked()
    assert way.messages() == ["a long one"]


# -- killed at each step ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["sync-read", "sync-send", "sync-acked", "cursor-before", "cursor-renamed"])
@pytest.mark.parametrize("nth", [1, 2])
def test_killed_at_a_step(way: ShipmentFixture, tmp_path: Path, point: str, nth: int) -> None:
    one, two = way.desk.pen(), way.desk.pen()
    one.log("0")
    two.log("1")
    one.close()
    two.close()
    store = str(way.desk.store)
    command = [sys.executable, "-m", "ml_dash_syncd", "once", "--store", store, "--remote", way.road.url]
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}
    command += ["--user", hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]]
    failing = {**environment, "ML_DASH_FAIL": f"{point}:{nth}:kill"}
    killed = subprocess.run(command, env=failing, timeout=60, check=False)
    assert killed.returncode == -9
    done = subprocess.run(command, env=environment, timeout=60, check=False)
    assert done.returncode == 0
    assert way.messages() == ["0", "1"]
    way.has_all()


# -- helpers ----------------------------------------------------------------------------------------------------------


def _frame(pen: WriterFixture, message: str) -> bytes:
    segment = open_segment(pen.segment)
    assert segment is not None
    payload = msgpack.packb([pen.seq, ev.LOG, pen.desk.tick(), ["info", message, None]])
    pen.seq += 1
    return encode_frame(payload, LengthCrcs(segment.crcs.header_crc))


def _body(how: dict[str, Any]) -> bytes:
    data = bytes(how["data"])
    return gzip.decompress(data) if how["headers"].get("Content-Encoding") == "gzip" else data
