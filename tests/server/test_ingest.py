"""Bytes of segments on their way in: each counts once, in the order of arrival, and all of it or nothing is there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml_dash.core import events as ev
from ml_dash.core.frames import encode_frame
from ml_dash.core.protocol import Refused
from ml_dash.server.engine.services import Server
from ml_dash.server.settings import ServerSettings
from ml_dash.server.stores import StoreTrouble
from tests.core.test_fold import histories
from tests.server.sending import (
    EXPERIMENT,
    NS,
    SegmentBytes,
    assert_refolds,
    folded,
    forget,
    held,
    identity_of,
    send,
    send_blob,
)


@pytest.fixture
def core(pair: ServerSettings) -> Iterator[Server]:
    server = Server(pair.data, pair)
    yield server
    server.close()


def refused(code: str, act: Callable[[], Any]) -> Refused:
    """What the client is told."""
    with pytest.raises(Refused) as told:
        act()
    assert told.value.code == code
    return told.value


def order(core: Server, experiment: str = EXPERIMENT) -> list[list[Any]]:
    records: list[list[Any]] = core.order(NS, experiment, 0, 10_000)["records"]
    return records


# -- what is accepted -------------------------------------------------------------------------------------------------


@pytest.mark.both_ends
def test_a_whole_segment_is_kept_and_folded(core: Server) -> None:
    sheet = SegmentBytes().opens().log("one").point(value=1.5).closes()
    assert send(core, sheet) == {"length": len(sheet.data), "events": 4, "files": False}
    assert held(core) == folded((sheet, sheet.events))
    state = core.journal(NS, sheet.journal)
    assert state["segments"] == {sheet.id: {"file": sheet.file, "length": len(sheet.data), "ended": True}}
    assert core.segment_bytes(NS, sheet.id, 0, 1 << 30)[0] == sheet.data
    assert core.digests(NS, sheet.journal, {sheet.id: 10_000})["segments"][sheet.id]["of"] == len(sheet.data)
    assert_refolds(core)


def test_a_header_alone_is_kept_and_shows_no_experiment(core: Server) -> None:
    sheet = SegmentBytes()
    assert send(core, sheet) == {"length": len(sheet.data), "events": 0, "files": False}
    refused("unknown", lambda: core.experiment(NS, EXPERIMENT))
    assert core.experiments(NS)["total"] == 0
    send(core, sheet.opens(), sheet.ends[0])
    assert core.experiment(NS, EXPERIMENT)["counts"]["events"] == 1


@pytest.mark.both_ends
def test_it_goes_on_where_it_is(core: Server) -> None:
    sheet = SegmentBytes().opens().logs(20)
    for start, end in zip([0, *sheet.ends], sheet.ends, strict=False):
        assert send(core, sheet, start, end)["length"] == end
    assert held(core) == folded((sheet, sheet.events))
    assert order(core) == [[1, sheet.id, a, b] for a, b in zip(sheet.ends, sheet.ends[1:], strict=False)]
    assert_refolds(core)


@pytest.mark.both_ends
def test_what_is_here_is_passed_over(core: Server) -> None:
    sheet = SegmentBytes().opens().logs(20)
    send(core, sheet, 0, sheet.ends[10])
    before = held(core)
    for start in (0, *sheet.ends[:11]):
        assert send(core, sheet, start, sheet.ends[10])["length"] == sheet.ends[10]
    # Not even whole frames are asked for there: these bytes are known.
    send(core, sheet, 3, sheet.ends[4] + 1)
    assert held(core) == before
    assert send(core, sheet, 0, sheet.ends[15])["length"] == sheet.ends[15]
    assert send(core, sheet, sheet.ends[3])["length"] == len(sheet.data)
    assert held(core) == folded((sheet, sheet.events))
    assert_refolds(core)


def test_unknown_kinds_are_kept_and_passed_on(core: Server) -> None:
    sheet = SegmentBytes().opens().add(250, {"of": "a later version"}).log("after")
    send(core, sheet)
    assert held(core) == folded((sheet, sheet.events))
    assert core.segment_bytes(NS, sheet.id, 0, 1 << 30)[0] == sheet.data
    assert core.logs(NS, EXPERIMENT, 0, 10)["logs"][0]["message"] == "after"


@pytest.mark.both_ends
def test_a_gap_in_numbers_is_shown_and_filled_later(core: Server) -> None:
    """After a failed sync a writer writes events again to a new segment; the old one may come whole in the end."""
    first = SegmentBytes(n=0).opens().log("0").log("1").log("2").log("3")
    second = SegmentBytes(n=1, seq=5).log("4")
    send(core, first, 0, first.ends[2])
    send(core, second)
    assert core.experiment(NS, EXPERIMENT)["writers"][0]["missing"] == [[2, 4]]
    send(core, first, first.ends[2])
    assert "missing" not in core.experiment(NS, EXPERIMENT)["writers"][0]
    messages = [entry["message"] for entry in core.logs(NS, EXPERIMENT, 0, 10)["logs"]]
    assert messages == ["0", "4", "1", "2", "3"]
    assert_refolds(core)


@pytest.mark.both_ends
def test_an_event_in_two_segments_counts_once(core: Server) -> None:
    first = SegmentBytes(n=0).opens().logs(5)
    again = SegmentBytes(n=1, seq=3).put(first.events[3:]).log("new")
    send(core, first)
    send(core, again)
    assert core.experiment(NS, EXPERIMENT)["counts"]["events"] == 7
    assert held(core) == folded((first, first.events), (again, again.events))


@pytest.mark.both_ends
@pytest.mark.parametrize("time_ns", [0, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -1, -(1 << 63)])
def test_no_clock_is_a_reason_to_refuse(core: Server, time_ns: int) -> None:
    sheet = SegmentBytes().opens().add(ev.LOG, ["info", "when?", None], at=time_ns)
    send(core, sheet)
    assert core.experiment(NS, EXPERIMENT)["counts"]["logs"] == 1
    assert core.experiments(NS)["total"] == 1
    assert core.logs(NS, EXPERIMENT, 0, 9)["logs"][0]["message"] == "when?"
    send(core, sheet.log("and on"), sheet.ends[2])
    assert_refolds(core)


@pytest.mark.both_ends
def test_two_experiments_and_two_namespaces_stay_apart(core: Server) -> None:
    one = SegmentBytes(1, journal=1).opens().log("one")
    two = SegmentBytes(2, journal=2, name="other").opens().log("two")
    send(core, one)
    send(core, two)
    core.append_segment("bob", one.journal, one.file, 0, one.data[: one.ends[1]])
    assert [row["name"] for row in core.experiments(NS, sort="name")["experiments"]] == ["other", "run"]
    assert core.experiment("bob", EXPERIMENT)["counts"]["events"] == 1
    assert core.experiment(NS, EXPERIMENT)["counts"]["events"] == 2


# -- what is refused --------------------------------------------------------------------------------------------------


def test_a_gap_in_bytes_is_refused_with_the_length(core: Server) -> None:
    sheet = SegmentBytes().opens().logs(5)
    assert refused("gap", lambda: send(core, sheet, sheet.ends[1])).extra == {"length": 0}
    refused("unknown", lambda: core.journal(NS, sheet.journal))
    send(core, sheet, 0, sheet.ends[2])
    answer = refused("gap", lambda: send(core, sheet, sheet.ends[3]))
    assert (answer.status, answer.extra) == (409, {"length": sheet.ends[2]})
    assert refused("gap", lambda: send(core, sheet, sheet.ends[2] + 1, data=sheet.data)).extra["length"]
    send(core, sheet, sheet.ends[2])
    assert held(core) == folded((sheet, sheet.events))


@pytest.mark.parametrize("cut", [1, 5, 8, 20])
def test_a_torn_frame_is_refused_and_nothing_of_the_request_is_kept(core: Server, cut: int) -> None:
    sheet = SegmentBytes().opens().logs(3)
    end = sheet.ends[-2] + cut
    assert refused("torn", lambda: send(core, sheet, 0, end)).extra == {"offset": sheet.ends[-2]}
    refused("unknown", lambda: core.journal(NS, sheet.journal))
    send(core, sheet, 0, sheet.ends[2])
    assert refused("torn", lambda: send(core, sheet, sheet.ends[2], end)).extra == {"offset": sheet.ends[-2]}
    assert core.journal(NS, sheet.journal)["segments"][sheet.id]["length"] == sheet.ends[2]


@pytest.mark.parametrize("size", [0, 1, 8, 11, 12, 40])
def test_a_torn_header_is_refused(core: Server, size: int) -> None:
    sheet = SegmentBytes()
    assert refused("torn", lambda: send(core, sheet, 0, size)).extra == {"offset": 0}


def test_a_flipped_bit_is_refused_where_its_frame_begins(core: Server) -> None:
    sheet = SegmentBytes().opens().logs(5)
    for position in range(len(sheet.header), len(sheet.data), 7):
        data = bytearray(sheet.data)
        data[position] ^= 4
        begin = max(end for end in sheet.ends if end <= position)
        assert refused("torn", lambda data=data: send(core, sheet, data=bytes(data))).extra == {"offset": begin}


@pytest.mark.both_ends
def test_another_frame_is_a_conflict_and_the_first_is_kept(core: Server) -> None:
    sheet, other = SegmentBytes().opens().log("mine").log("same"), SegmentBytes().opens().log("fake").log("same")
    send(core, sheet)
    before = held(core)
    answer = refused("conflict", lambda: send(core, other))
    assert (answer.status, answer.extra) == (409, {"offset": sheet.ends[1]})
    assert core.conflicts == 1
    refused("conflict", lambda: send(core, other, sheet.ends[1]))
    # A longer one that agrees only at first brings nothing behind that either.
    longer = SegmentBytes().opens().log("fake").log("same").log("more")
    refused("conflict", lambda: send(core, longer))
    assert held(core) == before
    assert core.segment_bytes(NS, sheet.id, 0, 1 << 20)[0] == sheet.data


def test_rubbish_over_what_is_here_is_torn_and_not_a_conflict(core: Server) -> None:
    sheet = SegmentBytes().opens().logs(3)
    send(core, sheet)
    data = sheet.damaged(sheet.ends[1] + 3, sheet.ends[1] + 9)
    assert refused("torn", lambda: send(core, sheet, data=data)).extra == {"offset": sheet.ends[1]}
    assert core.conflicts == 0


def test_what_a_client_calls_damaged_says_nothing_against_what_verified(core: Server) -> None:
    """One of two copies of a journal has rotted: its uploader goes on behind the hole."""
    sheet = SegmentBytes().opens().logs(5)
    send(core, sheet, 0, sheet.ends[4])
    gap = (sheet.ends[1], sheet.ends[2])
    answer = send(core, sheet, data=sheet.damaged(*gap), damaged=[gap])
    assert answer["length"] == len(sheet.data)
    assert core.segment_bytes(NS, sheet.id, 0, 1 << 20)[0] == sheet.data
    assert held(core) == folded((sheet, sheet.events))


@pytest.mark.parametrize("which", ["journal", "writer", "n"])
def test_a_header_that_names_another_is_refused(core: Server, which: str) -> None:
    sheet = SegmentBytes(1, 0, journal=1).opens()
    other = {"journal": SegmentBytes(1, 0, journal=2), "writer": SegmentBytes(2, 0), "n": SegmentBytes(1, 1)}[which]
    refused("malformed", lambda: core.append_segment(NS, sheet.journal, sheet.file, 0, other.data))
    refused("unknown", lambda: core.journal(NS, sheet.journal))


@pytest.mark.both_ends
def test_a_journal_belongs_to_one_experiment(core: Server) -> None:
    send(core, SegmentBytes(1).opens())
    refused("malformed", lambda: send(core, SegmentBytes(2, name="other").opens()))
    assert core.experiments(NS)["total"] == 1


@pytest.mark.parametrize("name", ["../x", "", "a/b", ".hidden", "a\\b", "x" * 300, "nul\x00l"])
def test_an_illegal_name_in_a_header_is_refused(core: Server, name: str) -> None:
    refused("malformed", lambda: send(core, SegmentBytes(name=name).opens()))
    refused("malformed", lambda: send(core, SegmentBytes(project=name).opens()))


@pytest.mark.parametrize(
    "file", ["", "x.seg", "../" + SegmentBytes().file, SegmentBytes().file + "\n", SegmentBytes().file.upper()]
)
def test_what_is_no_segment_is_refused(core: Server, file: str) -> None:
    refused("malformed", lambda: core.append_segment(NS, "1" * 32, file, 0, SegmentBytes().data))


def test_a_newer_format_is_refused_in_its_own_words(core: Server) -> None:
    from zlib import crc32

    sheet = SegmentBytes()
    data = bytearray(sheet.header[:-4])
    data[8] = 9
    newer = bytes(data) + crc32(bytes(data)).to_bytes(4, "little")
    assert "format 9" in refused("newer_format", lambda: send(core, sheet, data=newer)).message


def test_a_frame_of_another_segment_is_none(core: Server) -> None:
    sheet, other = SegmentBytes(n=0).opens().log("mine"), SegmentBytes(n=1, seq=2).log("theirs")
    data = sheet.data + other.data[other.ends[0] :]
    assert refused("torn", lambda: send(core, sheet, data=data)).extra == {"offset": len(sheet.data)}


def test_a_payload_that_is_no_event_is_none(core: Server) -> None:
    sheet = SegmentBytes().opens()
    for payload in (b"", b"\xc1", b"\x93\x01\x02\x03", b"\x94\x01\x02\xa1\xff\xc0", b"\x94\x01\x02\x03\xa2\xff\xff"):
        data = sheet.data + encode_frame(payload, sheet.crcs)
        assert refused("torn", lambda data=data: send(core, sheet, data=data)).extra == {"offset": len(sheet.data)}


# -- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.both_ends
def test_damage_costs_its_frames_until_bytes_come_that_hold(core: Server) -> None:
    sheet = SegmentBytes().opens().logs(6)
    gap = (sheet.ends[2], sheet.ends[4])
    answer = send(core, sheet, data=sheet.damaged(*gap), damaged=[gap])
    assert answer == {"length": len(sheet.data), "events": 5, "files": False}
    assert core.experiment(NS, EXPERIMENT)["writers"][0]["missing"] == [[2, 3]]
    assert core.segment_bytes(NS, sheet.id, 0, 1 << 20)[0] == sheet.damaged(*gap)
    rest = [*sheet.events[:2], *sheet.events[4:]]
    assert held(core) == folded((sheet, rest))
    assert_refolds(core)

    send(core, sheet)
    assert core.segment_bytes(NS, sheet.id, 0, 1 << 20)[0] == sheet.data
    assert held(core) == folded((sheet, rest), (sheet, sheet.events[2:4]))
    # In the order in which they were folded, so that a pull numbers them alike.
    assert order(core) == [
        [1, sheet.id, sheet.ends[0], gap[0]], [1, sheet.id, gap[1], len(sheet.data)], [1, sheet.id, *gap]
    ]  # fmt: skip
    assert_refolds(core)
    # What verified once is never replaced.
    refused("torn", lambda: send(core, sheet, data=sheet.damaged(*gap)))


def test_a_hole_is_mended_in_parts(core: Server) -> None:
    sheet = SegmentBytes().opens().logs(6)
    low, middle, high = sheet.ends[2], sheet.ends[3], sheet.ends[5]
    send(core, sheet, data=sheet.damaged(low, high), damaged=[(low, high)])
    send(core, sheet, data=sheet.damaged(middle, high), damaged=[(middle, high)])
    assert core.experiment(NS, EXPERIMENT)["counts"]["events"] == 5
    send(core, sheet, middle, sheet.ends[4])
    assert core.experiment(NS, EXPERIMENT)["counts"]["events"] == 6
    send(core, sheet, sheet.ends[1], high)
    assert core.experiment(NS, EXPERIMENT)["counts"]["events"] == 7
    assert core.segment_bytes(NS, sheet.id, 0, 1 << 20)[0] == sheet.data
    assert_refolds(core)


def test_two_holes_of_which_one_is_mended(core: Server) -> None:
    sheet = SegmentBytes().opens().logs(8)
    one, two = (sheet.ends[1], sheet.ends[2]), (sheet.ends[4], sheet.ends[6])
    both = bytearray(sheet.damaged(*one))
    both[two[0] : two[1]] = bytes(two[1] - two[0])
    send(core, sheet, data=bytes(both), damaged=[one, two])
    # The client does not say again that the other is damaged: the same bytes are known to be.
    send(core, sheet, data=sheet.damaged(*two))
    assert core.experiment(NS, EXPERIMENT)["counts"]["events"] == 7
    send(core, sheet, data=sheet.damaged(*two), damaged=[two])
    send(core, sheet)
    assert core.experiment(NS, EXPERIMENT)["counts"]["events"] == 9
    assert_refolds(core)


def test_a_hole_whose_other_bytes_hold_no_frame_either(core: Server) -> None:
    sheet = SegmentBytes().opens().logs(4)
    gap = (sheet.ends[1], sheet.ends[2])
    send(core, sheet, data=sheet.damaged(*gap), damaged=[gap])
    other = sheet.data[: gap[0]] + b"\xff" * (gap[1] - gap[0]) + sheet.data[gap[1] :]
    assert refused("torn", lambda: send(core, sheet, data=other)).extra == {"offset": gap[0]}
    # Called damaged, they are taken: both sides have the same bytes then, and can say so by their digest.
    send(core, sheet, data=other, damaged=[gap])
    assert core.segment_bytes(NS, sheet.id, 0, 1 << 20)[0] == other
    assert core.experiment(NS, EXPERIMENT)["counts"]["events"] == 4
    send(core, sheet)
    assert core.experiment(NS, EXPERIMENT)["counts"]["events"] == 5
    assert_refolds(core)


@pytest.mark.both_ends
def test_damage_and_new_bytes_in_one_request(core: Server) -> None:
    sheet = SegmentBytes().opens().logs(8)
    gap, later = (sheet.ends[1], sheet.ends[2]), (sheet.ends[6], sheet.ends[7])
    send(core, sheet, 0, sheet.ends[4], data=sheet.damaged(*gap), damaged=[gap])
    send(core, sheet, data=sheet.damaged(*later), damaged=[later])
    assert core.experiment(NS, EXPERIMENT)["counts"]["events"] == 8
    assert [record[2:] for record in order(core)] == [
        [sheet.ends[0], gap[0]], [gap[1], sheet.ends[4]], [*gap], [sheet.ends[4], later[0]],
        [later[1], len(sheet.data)],
    ]  # fmt: skip
    assert_refolds(core)
    send(core, sheet)
    assert held(core)["state"] != []
    assert core.experiment(NS, EXPERIMENT)["counts"]["events"] == 9
    assert_refolds(core)


@pytest.mark.parametrize("marked", ["exactly", "less", "more", "all of it"])
def test_a_damaged_header_is_mended_and_replaced(core: Server, marked: str) -> None:
    sheet = SegmentBytes().opens().logs(3)
    first, end = sheet.ends[0], sheet.ends[1]
    gap = {"exactly": (0, first), "less": (0, 30), "more": (0, end), "all of it": (0, len(sheet.data))}[marked]
    data = bytearray(sheet.data)
    data[40] ^= 0x10
    assert refused("torn", lambda: send(core, sheet, data=bytes(data))).extra == {"offset": 0}
    send(core, sheet, data=bytes(data), damaged=[gap])
    events = {"exactly": 4, "less": 4, "more": 3, "all of it": 0}[marked]
    with core.documents.view() as view:
        row = view.experiment(NS, EXPERIMENT)
    assert row is not None
    assert row.summary["counts"]["events"] == events
    assert core.segment_bytes(NS, sheet.id, 0, 1 << 20)[0] == data
    send(core, sheet)
    assert core.segment_bytes(NS, sheet.id, 0, 1 << 20)[0] == sheet.data
    assert core.experiment(NS, EXPERIMENT)["counts"]["events"] == 4
    assert_refolds(core)
    before = held(core)
    send(core, sheet)
    assert held(core) == before


@pytest.mark.both_ends
def test_damage_is_known_after_a_start(pair: ServerSettings) -> None:
    sheet = SegmentBytes().opens().logs(6)
    gap = (sheet.ends[2], sheet.ends[4])
    core = Server(pair.data, pair)
    send(core, sheet, data=sheet.damaged(*gap), damaged=[gap])
    core.close()
    core = Server(pair.data, pair)
    send(core, sheet)
    assert core.experiment(NS, EXPERIMENT)["counts"]["events"] == 7
    assert_refolds(core)
    core.close()


# -- bodies that are blobs --------------------------------------------------------------------------------------------


@pytest.mark.every_pair
def test_long_bodies_are_asked_for_first(core: Server) -> None:
    sheet = SegmentBytes().opens().log("before")
    name, content = sheet.spills(ev.LOG, ["info", "x" * 5000, None])
    sheet.log("after")
    assert refused("needs_blobs", lambda: send(core, sheet)).extra == {"blobs": [name]}
    refused("unknown", lambda: core.journal(NS, sheet.journal))
    assert send_blob(core, sheet, name, content, body=True, piece=700)["complete"]
    send(core, sheet)
    assert held(core) == folded((sheet, sheet.events))
    assert_refolds(core)


@pytest.mark.both_ends
def test_a_body_that_is_gone_costs_its_event(core: Server) -> None:
    sheet = SegmentBytes().opens()
    name, _ = sheet.spills(ev.LOG, ["info", "x" * 5000, None])
    sheet.log("after")
    send(core, sheet, without=[name])
    assert core.experiment(NS, EXPERIMENT)["counts"]["events"] == 2
    assert core.experiment(NS, EXPERIMENT)["writers"][0]["missing"] == [[1, 1]]
    # It was not folded, so the order does not name it, also when the body comes after all.
    assert [record[2:] for record in order(core)] == [sheet.ends[:2], sheet.ends[2:]]
    send_blob(core, sheet, name, _, body=True)
    assert_refolds(core)


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\x92\x01", b"\xa2\xff\xff", b"\xdd\xff\xff\xff\xff"])
def test_a_body_that_is_none_costs_its_event(core: Server, content: bytes) -> None:
    sheet = SegmentBytes().opens()
    name, _ = sheet.spills(ev.LOG, None, content)
    sheet.log("after")
    send_blob(core, sheet, name, content, body=True)
    send(core, sheet)
    assert (
        core.experiment(NS, EXPERIMENT)["counts"] | {"events": 2, "logs": 1}
        == core.experiment(NS, EXPERIMENT)["counts"]
    )
    assert_refolds(core)


@pytest.mark.every_pair
def test_a_body_whose_object_was_lost_is_asked_for_again(core: Server) -> None:
    sheet = SegmentBytes().opens()
    name, content = sheet.spills(ev.LOG, ["info", "x" * 5000, None])
    send_blob(core, sheet, name, content, body=True)
    for key in list(core.objects.list("")):
        core.objects.delete(key)
    assert refused("needs_blobs", lambda: send(core, sheet)).extra == {"blobs": [name]}
    assert core.blob_state(NS, sheet.journal, name) == {"length": 0, "size": None, "complete": False}
    send_blob(core, sheet, name, content, body=True)
    send(core, sheet)
    assert_refolds(core)


@pytest.mark.both_ends
def test_many_long_bodies_are_folded_a_few_at_a_time(core: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ml_dash.server.engine.ingest._BODY_BYTES_AT_ONCE", 9_000)
    sheet = SegmentBytes().opens()
    for number in range(12):
        name, content = sheet.spills(ev.LOG, ["info", f"{number}" * 4000, None])
        send_blob(core, sheet, name, content, body=True)
    send(core, sheet)
    assert held(core) == folded((sheet, sheet.events))
    assert order(core) == [[1, sheet.id, sheet.ends[0], len(sheet.data)]]
    assert_refolds(core)


# -- deaths -----------------------------------------------------------------------------------------------------------


def note(sheet: SegmentBytes, end: int | None = None) -> dict[str, Any]:
    return {"writer": sheet.writer, "segment": sheet.id, "end": len(sheet.data) if end is None else end}


def status(core: Server) -> str:
    return str(core.experiment(NS, EXPERIMENT)["status"])


@pytest.mark.both_ends
def test_a_death_counts_once_and_is_void_after_a_later_event(core: Server) -> None:
    sheet = SegmentBytes().opens().log("one")
    send(core, sheet)
    assert status(core) == "running"
    death = note(sheet)
    for _ in range(3):
        assert core.deaths(NS, sheet.journal, [death]) == {"deaths": 1}
        assert status(core) == "interrupted"
    assert order(core)[-1] == [2, sheet.writer, sheet.id, death["end"]]
    assert len(order(core)) == 2
    send(core, sheet.log("I live"), death["end"])
    assert status(core) == "running"
    assert core.deaths(NS, sheet.journal, [death]) == {"deaths": 0}
    assert status(core) == "running"
    assert_refolds(core)
    assert core.deaths(NS, sheet.journal, [note(sheet)]) == {"deaths": 1}
    assert status(core) == "interrupted"
    assert_refolds(core)


def test_a_death_is_news(core: Server) -> None:
    """It changes the status without an event; who follows the experiment must look again, also after a fold anew."""
    told: list[int | None] = []
    core.on_change(lambda ns, experiment, number: told.append(number))
    sheet = SegmentBytes().opens().log("one")
    send(core, sheet)
    core.deaths(NS, sheet.journal, [note(sheet)])
    assert told == [2, 3]
    core.deaths(NS, sheet.journal, [note(sheet)])
    assert told == [2, 3]
    assert core.events([(NS, EXPERIMENT)]) == {(NS, EXPERIMENT): 3}
    assert core.experiment(NS, EXPERIMENT)["counts"]["events"] == 2
    send(core, sheet.log("I live"), sheet.ends[1])
    assert told == [2, 3, 4]
    assert_refolds(core)
    assert core.events([(NS, EXPERIMENT)]) == {(NS, EXPERIMENT): 4}


def test_a_death_that_comes_late_is_void(core: Server) -> None:
    """It was noted of what had been read by then; it arrives behind what the writer wrote since."""
    sheet = SegmentBytes().opens().log("one").log("two")
    send(core, sheet)
    assert core.deaths(NS, sheet.journal, [note(sheet, sheet.ends[2])]) == {"deaths": 0}
    nothing_read = {"writer": sheet.writer, "segment": "0" * 32, "end": 0}
    assert core.deaths(NS, sheet.journal, [nothing_read]) == {"deaths": 0}
    following = SegmentBytes(n=1, seq=3)
    send(core, following)
    assert core.deaths(NS, sheet.journal, [note(sheet)]) == {"deaths": 1}
    send(core, following.log("three"), following.ends[0])
    assert core.deaths(NS, sheet.journal, [note(sheet, sheet.ends[3] + 1)]) == {"deaths": 0}
    assert status(core) == "running"
    assert_refolds(core)


def test_a_death_of_who_is_not_known_here_changes_nothing(core: Server) -> None:
    sheet, other = SegmentBytes(1).opens(), SegmentBytes(2)
    refused("unknown", lambda: core.deaths(NS, sheet.journal, [note(sheet)]))
    send(core, sheet)
    before = held(core), order(core)
    assert core.deaths(NS, sheet.journal, [note(other)]) == {"deaths": 0}
    # One of another journal of the same experiment, which a pull has brought to that machine.
    there = SegmentBytes(3, journal=2).opens()
    send(core, there)
    core.deaths(NS, sheet.journal, [note(there)])
    assert core.experiment(NS, EXPERIMENT)["writers"][1]["ended"] == "died"
    assert before[0]["state"] != held(core)["state"]
    assert_refolds(core)


@pytest.mark.parametrize(
    "field", [{"writer": "x"}, {"segment": ""}, {"end": -1}, {"end": 1 << 64}, {"writer": "A" * 32}]
)
def test_what_is_no_note_is_refused(core: Server, field: dict[str, Any]) -> None:
    sheet = SegmentBytes().opens()
    send(core, sheet)
    refused("malformed", lambda: core.deaths(NS, sheet.journal, [note(sheet), {**note(sheet), **field}]))
    assert status(core) == "running"


# -- once, whatever happens at the same time --------------------------------------------------------------------------


@pytest.mark.both_ends
@pytest.mark.parametrize("count", [2, 8, 64])
def test_the_same_stretch_from_many_at_once_has_one_effect(core: Server, count: int) -> None:
    sheet = SegmentBytes().opens().logs(30).point(value=1.0)
    answers: list[Any] = []
    start = threading.Barrier(count)

    def post() -> None:
        start.wait()
        try:
            answers.append(send(core, sheet))
        except Exception as error:  # noqa: BLE001  # told by the main thread
            answers.append(error)

    threads = [threading.Thread(target=post) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [{"length": len(sheet.data), "events": 32, "files": False}] * count
    assert held(core) == folded((sheet, sheet.events))
    assert len(order(core)) == 1


@pytest.mark.both_ends
def test_writers_at_once_are_all_there_in_the_order_of_arrival(core: Server) -> None:
    sheets = [SegmentBytes(number).opens().logs(12).point(value=float(number)) for number in range(1, 7)]

    def post(sheet: SegmentBytes) -> None:
        for begin, end in zip([0, *sheet.ends], sheet.ends, strict=False):
            send(core, sheet, begin, end)
            send(core, sheet, 0, end)

    threads = [threading.Thread(target=post, args=(sheet,)) for sheet in sheets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    by_id = {sheet.id: sheet for sheet in sheets}
    stretches = [
        (by_id[segment], [by_id[segment].events[by_id[segment].ends.index(begin)]])
        for _, segment, begin, _ in order(core)
    ]
    assert held(core) == folded(*stretches)
    assert sum(len(sheet.events) for sheet in sheets) == core.experiment(NS, EXPERIMENT)["counts"]["events"]
    assert_refolds(core)


# -- any cutting, any interleaving ------------------------------------------------------------------------------------


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_any_cutting_folds_like_the_journals_in_that_order(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    history = data.draw(histories(3))
    sheets = {}
    for number, (writer, events) in enumerate(history.items()):
        half = data.draw(st.integers(0, len(events)))
        # Two segments each; the second repeats some, as after a failed sync. The third writer is on another machine.
        journal = 2 if number == 2 else 1
        first = SegmentBytes(writer, 0, journal=journal).put(events[:half])
        again = data.draw(st.integers(0, half))
        second = SegmentBytes(writer, 1, journal=journal, seq=again).put(events[again:])
        sheets[first.file], sheets[second.file] = first, second
    core = Server(tmp_path_factory.mktemp("core"))
    at = dict.fromkeys(sheets, 0)
    expected = []
    for _ in range(data.draw(st.integers(1, 14))):
        sheet = sheets[data.draw(st.sampled_from(sorted(sheets)))]
        begin = data.draw(st.sampled_from([0, *(end for end in sheet.ends if end <= at[sheet.file])]))
        end = data.draw(st.sampled_from([end for end in sheet.ends if end >= begin]))
        if begin == end:
            continue
        begin = begin if at[sheet.file] else 0
        if data.draw(st.integers(0, 3)) == 0:
            forget(core)
        send(core, sheet, begin, end)
        known = sheet.ends.index(at[sheet.file]) if at[sheet.file] else 0
        if end > at[sheet.file]:
            expected.append((sheet, sheet.events[known : sheet.ends.index(end)]))
        at[sheet.file] = max(at[sheet.file], end)
    if any(at.values()):
        assert held(core) == folded(*expected)
        assert_refolds(core)
        assert_pages_are_the_lines(core)
    core.close()


def assert_pages_are_the_lines(core: Server) -> None:
    with core.documents.view() as view:
        row = view.experiment(NS, EXPERIMENT)
    if row is None or not row.created_ns:
        return
    logs = core.logs(NS, EXPERIMENT, 0, 10_000)["logs"]
    assert [entry["sequenceNumber"] for entry in logs] == list(range(len(logs)))


# -- a transaction that fails -----------------------------------------------------------------------------------------


class Failing:
    """Documents that refuse the n-th call of a kind."""

    def __init__(self, core: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        self.core = core
        self.patch = monkeypatch

    def at(self, name: str, nth: int = 1) -> None:
        real, left = getattr(self.core.documents, name), [nth]

        def call(*args: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise StoreTrouble("the disk is full")
            return real(*args, **named)

        self.patch.setattr(self.core.documents, name, call)

    def mend(self) -> None:
        self.patch.undo()


@pytest.mark.every_pair
@pytest.mark.parametrize("call", ["lease", "commit", "view"])
def test_after_a_failure_everything_is_as_it_was(core: Server, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    sheet = SegmentBytes().opens().logs(5).point(value=1.0)
    blob = sheet.adds_file(b"weights")
    send(core, sheet)
    send_blob(core, sheet, blob, b"weights")
    before, journal = held(core), core.journal(NS, sheet.journal)
    end = len(sheet.data)
    sheet.log("more").parameters(lr=0.1).point(value=2.0).deletes_file(blob)
    failing = Failing(core, monkeypatch)
    for _ in range(2):
        failing.at(call)
        with pytest.raises(StoreTrouble):
            send(core, sheet, end)
        failing.mend()
        assert held(core) == before
        assert core.journal(NS, sheet.journal) == journal
        assert core.open_file(NS, EXPERIMENT, identity_of(blob), 0, None)[2] == 7
    send(core, sheet, end)
    assert held(core) == folded((sheet, sheet.events))
    assert_refolds(core)


def test_a_listener_that_fails_does_not_undo_what_is_committed(core: Server) -> None:
    sheet = SegmentBytes().opens()
    heard: list[int | None] = []

    def fails(*_: Any) -> None:
        raise RuntimeError("the loop is closed")

    core.on_change(fails)
    core.on_change(lambda _ns, _experiment, events: heard.append(events))
    assert send(core, sheet)["events"] == 1
    assert heard == [1]


@pytest.mark.both_ends
def test_memory_stays_flat_over_many_experiments(core: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ml_dash.server.engine.changes._EXPERIMENTS_CACHED", 5)
    monkeypatch.setattr("ml_dash.server.engine.changes._OPEN_BLOCKS_CACHED", 3)
    for number in range(12):
        sheet = SegmentBytes(number, journal=number, name=f"run-{number}").opens()
        for metric in range(6):
            sheet.point(f"m{metric}", value=1.0)
        send(core, sheet, 0, sheet.ends[3])
        send(core, sheet, sheet.ends[3])
    cache = core._changes._cache
    assert len(cache) == 5
    assert all(len(cached.open_blocks) <= 3 for cached in cache.values())
    # Those that were forgotten go on all the same.
    sheet = SegmentBytes(0, journal=0, name="run-0").opens()
    for metric in range(6):
        sheet.point(f"m{metric}", value=1.0)
    send(core, sheet.point("m0", value=2.0), sheet.ends[-2])
    identity = str(core.experiments(NS, q="run-0")["experiments"][0]["id"])
    assert core.metric_stats(NS, identity, "m0")["totalDataPoints"] == 2
    assert len(core.metric_page(NS, identity, "m0", 0, 9).split(b"createdAt")) == 3


def test_a_request_that_takes_long_is_answered_with_what_is_taken(
    core: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ml_dash.server.engine.ingest._PARTS_AT_ONCE", 20)
    monkeypatch.setattr("ml_dash.server.engine.ingest._TAKES_S", 0.0)
    monkeypatch.setattr("ml_dash.server.engine.compare.PIECE_BYTES", 4_000)
    sheet = SegmentBytes().opens()
    for number in range(400):
        sheet.point(f"m{number}", value=float(number))
    lengths = [0]
    while lengths[-1] < len(sheet.data):
        lengths.append(send(core, sheet, lengths[-1])["length"])
        assert lengths[-1] in sheet.ends
    assert len(lengths) > 4
    assert held(core) == folded((sheet, sheet.events))
    assert_refolds(core)
