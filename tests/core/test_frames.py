"""Bytes and frames: what goes in comes out, and what is damaged costs only itself."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_dash.core import frames
from ml_dash.core.frames import (
    HEAD,
    MAX_PAYLOAD,
    Header,
    LengthCrcs,
    OrderHeader,
    decode_header,
    decode_order_header,
    encode_frame,
    encode_header,
    find_frame,
    header_size,
    might_grow,
    walk,
)
from ml_dash.errors import Damaged, NewerFormat

ID = st.binary(min_size=16, max_size=16)
NUMBER = st.integers(0, 2**64 - 1)
HEADERS = st.builds(
    Header,
    journal=ID,
    segment=ID,
    writer=ID,
    n=NUMBER,
    first_seq=NUMBER,
    created_ns=NUMBER,
    project=st.text(max_size=60),
    name=st.text(max_size=60),
)
EVENTS = st.lists(
    st.tuples(NUMBER, st.integers(0, 20), NUMBER, st.none() | st.text(max_size=30) | st.lists(st.integers(0, 9)))
)
HEADER = Header(b"J" * 16, b"S" * 16, b"W" * 16, 0, 0, 1_761_733_800_000_000_000, "vision", "resnet")

decode: Callable[[bytes], Any] = msgspec.msgpack.Decoder(tuple[int, int, int, Any]).decode


@dataclass
class Segment:
    """A segment in memory, with the verbs to damage it."""

    header: Header = HEADER
    data: bytearray = field(init=False)
    starts: list[int] = field(default_factory=list)
    events: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.data = bytearray(encode_header(self.header))
        self.first = len(self.data)
        self.crcs = LengthCrcs(int.from_bytes(self.data[-4:], "little"))

    def write(self, *events: Any) -> Segment:
        for event in events:
            self.starts.append(len(self.data))
            self.data += encode_frame(msgpack.packb(list(event)), self.crcs)
            self.events.append(tuple(event))
        return self

    def numbered(self, count: int, body: Any = "x" * 10) -> Segment:
        return self.write(*((number, 5, 1000 + number, body) for number in range(count)))

    def end_of(self, number: int) -> int:
        return [*self.starts, len(self.data)][number + 1]

    def read(self) -> list[Any]:
        """All whole frames, in order, as a reader meets them."""
        return read(bytes(self.data), self.first, self.crcs)


def read(data: bytes, position: int, crcs: LengthCrcs) -> list[Any]:
    found: list[Any] = []
    while 0 <= position < len(data):
        end = walk(data, position, crcs, decode, found)
        position = find_frame(data, end + 1, crcs, decode)
    return found


# -- headers ----------------------------------------------------------------------------------------------------------


@given(HEADERS)
def test_a_header_comes_back_as_it_was(header: Header) -> None:
    data = encode_header(header)
    decoded, size, crc = decode_header(data + b"frames")
    assert (decoded, size) == (header, len(data))
    assert crc == int.from_bytes(data[-4:], "little") == crc32(data[:-4])
    assert header_size(data) == size


@given(ID, st.text(max_size=60), st.text(max_size=60), st.binary(max_size=8))
def test_the_header_of_an_order_comes_back_as_it_was(journal: bytes, project: str, name: str, nonce: bytes) -> None:
    data = encode_header(OrderHeader(journal, project, name, nonce))
    assert decode_order_header(data)[0] == OrderHeader(journal, project, name, nonce)


def test_a_header_cut_anywhere_is_damaged() -> None:
    data = encode_header(HEADER)
    for size in range(len(data)):
        with pytest.raises(Damaged):
            decode_header(data[:size])


def test_a_header_with_any_bit_flipped_is_damaged() -> None:
    data = encode_header(HEADER)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Damaged):
            decode_header(bytes(flipped))


def test_the_header_of_an_order_is_not_that_of_a_segment() -> None:
    with pytest.raises(Damaged, match="starts with"):
        decode_header(encode_header(OrderHeader(b"J" * 16, "p", "n")))
    with pytest.raises(Damaged, match="starts with"):
        decode_order_header(encode_header(HEADER))


def with_version(data: bytes, version: int) -> bytes:
    head = data[:8] + version.to_bytes(2, "little") + data[10:-4]
    return head + crc32(head).to_bytes(4, "little")


def test_a_newer_format_is_refused_and_is_no_damage() -> None:
    with pytest.raises(NewerFormat, match=r"format 2, this ml-dash reads up to 1.*upgrade"):
        decode_header(with_version(encode_header(HEADER), 2))


def with_body(body: bytes) -> bytes:
    head = frames.PREFIX.pack(frames.MAGIC, 1, len(body)) + body
    return head + crc32(head).to_bytes(4, "little")


GOOD = [b"J" * 16, b"S" * 16, b"W" * 16, 0, 0, 1, "p", "n"]


def test_a_header_may_have_fields_of_a_later_version() -> None:
    assert decode_header(with_body(msgpack.packb([*GOOD, "more", 5])))[0].name == "n"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        msgpack.packb({}),
        msgpack.packb(GOOD[:-1]),
        msgpack.packb([*GOOD[:1], "S" * 16, *GOOD[2:]]),
        msgpack.packb([b"J" * 15, *GOOD[1:]]),
        msgpack.packb([*GOOD[:3], -1, *GOOD[4:]]),
        msgpack.packb([*GOOD[:3], True, *GOOD[4:]]),
        msgpack.packb([*GOOD[:3], 1.0, *GOOD[4:]]),
        msgpack.packb([*GOOD[:7], None]),
        b"\x91" * 3000,
    ],
)
def test_a_header_whose_checksum_holds_but_whose_fields_do_not_is_damaged(body: bytes) -> None:
    with pytest.raises(Damaged):
        decode_header(with_body(body))


# -- frames -----------------------------------------------------------------------------------------------------------


@given(HEADERS, EVENTS)
def test_decoding_gives_back_what_was_encoded(header: Header, events: list[Any]) -> None:
    segment = Segment(header).write(*events)
    found: list[Any] = []
    assert walk(bytes(segment.data), segment.first, segment.crcs, decode, found) == len(segment.data)
    assert found == events


@given(EVENTS, st.data())
def test_any_truncation_yields_a_prefix(events: list[Any], data: st.DataObject) -> None:
    segment = Segment().write(*events)
    cut = data.draw(st.integers(segment.first, len(segment.data)))
    whole = sum(end <= cut for end in [*segment.starts[1:], len(segment.data)]) if events else 0
    del segment.data[cut:]
    assert segment.read() == events[:whole]


def test_every_single_bit_flip_costs_only_the_frame_it_touches() -> None:
    segment = Segment().numbered(4)
    intact = bytes(segment.data)
    for bit in range(8 * segment.first, 8 * len(intact)):
        segment.data[:] = intact
        segment.data[bit // 8] ^= 1 << bit % 8
        hit = max(number for number, start in enumerate(segment.starts) if start <= bit // 8)
        assert segment.read() == [event for number, event in enumerate(segment.events) if number != hit]


@settings(max_examples=50)
@given(st.lists(st.binary(max_size=300), min_size=1, max_size=8))
def test_frames_are_found_behind_any_rubbish(rubbish: list[bytes]) -> None:
    segment = Segment()
    for number, data in enumerate(rubbish):
        segment.data += data
        segment.write((number, 5, 1, "abc"))
    assert segment.read() == segment.events


def test_a_frame_of_another_segment_is_not_taken_for_one_of_this() -> None:
    other = Segment(Header(b"J" * 16, b"T" * 16, b"W" * 16, 0, 0, 1, "vision", "resnet")).numbered(3)
    segment = Segment().numbered(2)
    segment.data += other.data[other.first :]
    segment.write((2, 5, 1, None))
    assert segment.read() == segment.events


def test_a_length_is_covered_by_the_checksum() -> None:
    """A frame with another length whose payload checksum alone would hold."""
    segment = Segment()
    payload = msgpack.packb([0, 5, 1, b"abc"])
    frame = bytearray(HEAD.pack(len(payload), crc32(payload, segment.crcs.header_crc)) + payload)
    segment.data += frame
    assert segment.read() == []


def test_the_largest_payload_is_taken_and_read() -> None:
    overhead = len(msgpack.packb([0, 3, 1, b"x" * (MAX_PAYLOAD - 100)])) - (MAX_PAYLOAD - 100)
    segment = Segment().write((0, 3, 1, b"x" * (MAX_PAYLOAD - overhead)), (1, 3, 1, None))
    assert segment.end_of(0) - segment.starts[0] == HEAD.size + MAX_PAYLOAD
    assert [event[0] for event in segment.read()] == [0, 1]


def test_a_payload_that_is_no_event_ends_the_run_and_is_passed_over() -> None:
    segment = Segment().numbered(1)
    for payload in (
        b"",
        b"\xc0",
        b"\x91" * 5000 + b"\x00",
        b"\x94\x00\x05\x01" + b"\x91" * 5000 + b"\x00",
        b"\x93\x00\x05\x01",
    ):
        segment.data += encode_frame(payload, segment.crcs)
    segment.write((1, 5, 1, "after"))
    assert segment.read() == segment.events


@dataclass(frozen=True)
class Damage:
    """One way to break a segment of six frames, and the numbers that survive."""

    name: str
    do: Callable[[Segment], None]
    left: list[int]


def _cut(segment: Segment, size: int) -> None:
    del segment.data[len(segment.data) - size :]


def _overwrite(segment: Segment, number: int, offset: int, data: bytes) -> None:
    start = segment.starts[number] + offset
    segment.data[start : start + len(data)] = data


def _replace(segment: Segment, first: int, last: int, data: bytes) -> None:
    segment.data[segment.starts[first] : segment.end_of(last)] = data


def _duplicate(segment: Segment, number: int) -> None:
    start, end = segment.starts[number], segment.end_of(number)
    segment.data[end:end] = segment.data[start:end]


RANDOM = random.Random(5)
DAMAGES = [
    Damage("nothing", lambda s: None, [0, 1, 2, 3, 4, 5]),
    Damage("the last byte is cut off", lambda s: _cut(s, 1), [0, 1, 2, 3, 4]),
    Damage(
        "all but one byte of the last frame is cut off",
        lambda s: _cut(s, s.end_of(5) - s.starts[5] - 1),
        [0, 1, 2, 3, 4],
    ),
    Damage("the tail is zeros", lambda s: s.data.extend(bytes(4096)), [0, 1, 2, 3, 4, 5]),
    Damage("the tail is 0xff", lambda s: s.data.extend(b"\xff" * 4096), [0, 1, 2, 3, 4, 5]),
    Damage("the tail is noise", lambda s: s.data.extend(RANDOM.randbytes(4096)), [0, 1, 2, 3, 4, 5]),
    Damage("the last frame became zeros", lambda s: _replace(s, 5, 5, bytes(40)), [0, 1, 2, 3, 4]),
    Damage("a length of 0", lambda s: _overwrite(s, 2, 0, bytes(4)), [0, 1, 3, 4, 5]),
    Damage("a length of 2**32 - 1", lambda s: _overwrite(s, 2, 0, b"\xff" * 4), [0, 1, 3, 4, 5]),
    Damage(
        "a negative length", lambda s: _overwrite(s, 2, 0, (-8).to_bytes(4, "little", signed=True)), [0, 1, 3, 4, 5]
    ),
    Damage(
        "a length just over the limit",
        lambda s: _overwrite(s, 2, 0, (MAX_PAYLOAD + 1).to_bytes(4, "little")),
        [0, 1, 3, 4, 5],
    ),
    Damage(
        "a length behind the end of the file",
        lambda s: _overwrite(s, 2, 0, (5000).to_bytes(4, "little")),
        [0, 1, 3, 4, 5],
    ),
    Damage("a length that ends in the next frame", lambda s: _overwrite(s, 2, 0, b"\x20"), [0, 1, 3, 4, 5]),
    Damage("a checksum of 0", lambda s: _overwrite(s, 0, 4, bytes(4)), [1, 2, 3, 4, 5]),
    Damage("the first byte of the payload", lambda s: _overwrite(s, 3, 8, b"\x00"), [0, 1, 2, 4, 5]),
    Damage("two frames became noise", lambda s: _replace(s, 1, 2, RANDOM.randbytes(77)), [0, 3, 4, 5]),
    Damage("a frame is missing", lambda s: _replace(s, 1, 1, b""), [0, 2, 3, 4, 5]),
    Damage("a frame is there twice", lambda s: _duplicate(s, 1), [0, 1, 1, 2, 3, 4, 5]),
    Damage("a byte was inserted", lambda s: s.data.insert(s.starts[4] + 3, 7), [0, 1, 2, 3, 5]),
    Damage("a byte was removed", lambda s: s.data.pop(s.starts[4] + 3), [0, 1, 2, 3, 5]),
    Damage("all frames became zeros", lambda s: _replace(s, 0, 5, bytes(300)), []),
    Damage("all frames were cut off", lambda s: _replace(s, 0, 5, b""), []),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_what_survives_a_damage(damage: Damage) -> None:
    segment = Segment().numbered(6)
    damage.do(segment)
    assert [event[0] for event in segment.read()] == damage.left


# -- ends -------------------------------------------------------------------------------------------------------------


def test_the_beginning_of_a_frame_might_grow() -> None:
    segment = Segment().numbered(1)
    frame = bytes(segment.data[segment.first :])
    assert all(might_grow(frame[:size], 0) for size in range(len(frame)))
    assert not might_grow(frame, 0)


def test_what_is_too_long_or_already_whole_does_not_grow() -> None:
    assert not might_grow(b"\xff" * 100, 0)
    assert not might_grow(bytes(100), 0)


def test_searching_long_damage_takes_time_in_proportion_to_it() -> None:
    """Bytes that look like the start of a frame everywhere: each is judged by its length before anything is read."""
    segment = Segment().numbered(1)
    segment.data += (b"\x01\x00\x10\x00" + b"\x94" * 5) * 50_000
    segment.write((1, 5, 1, "behind"))
    assert segment.read() == segment.events


def test_a_length_is_hashed_once_for_each_length() -> None:
    crcs = LengthCrcs(7)
    assert crcs[5] == crc32(b"\x05\0\0\0", 7)
    assert dict(crcs) == {5: crcs[5]}
