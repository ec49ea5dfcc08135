"""Points by column: what comes back is what went in, bit for bit, and the same as from the lines they replace."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_dash.core import sampling
from ml_dash.core.sampling import PART, Extremes
from ml_dash.core.state import Block
from ml_dash.core.statistics import columns_of
from ml_dash.errors import Damaged, MLDashError, NewerFormat
from ml_dash.projection.lines import point_lines
from ml_dash.server.engine import packing
from ml_dash.server.engine.columns import Table, decode, decode_chunk, encode, encode_chunk
from ml_dash.server.engine.packing import pack, unpack
from ml_dash.server.engine.summaries import decode_summaries, encode_summaries

BEGIN = 1_760_000_000_000_000_000
NAN_WITH_PAYLOAD = struct.unpack("<d", bytes.fromhex("efbeadde0000f87f"))[0]

doubles = st.one_of(
    st.floats(width=64),
    st.integers(0, 2**64 - 1).map(lambda bits: struct.unpack("<d", struct.pack("<Q", bits))[0]),
    st.sampled_from([0.0, -0.0, 1.0, NAN_WITH_PAYLOAD]),
)
small_ints = st.integers(-130, 130)
ints = st.one_of(small_ints, st.integers(-(2**63), 2**64 - 1), st.sampled_from([-(2**63), 2**63 - 1, 2**63, 2**31]))
texts = st.one_of(st.text(max_size=5), st.sampled_from(["NaN", "Infinity", "-Infinity", "null", 'say "NaN"', "ä\n,"]))
leaves = st.one_of(st.none(), st.booleans(), ints, doubles, texts, st.binary(max_size=4))
plain = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
names = st.one_of(
    st.sampled_from(["value", "step", "epoch", "timestamp", "a", 'ä"\\\n', "NaN", ""]), st.text(max_size=4)
)
times_ns = st.integers(0, 1 << 62)


@st.composite
def tables(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows that nearly have a shape, as a program's have; some without, and some columns of one type."""
    shapes = draw(st.lists(st.lists(names, unique=True, max_size=4), min_size=1, max_size=3))
    kinds: dict[str, st.SearchStrategy[Any]] = {}
    for name in sorted(set().union(*shapes)):
        kinds[name] = draw(st.sampled_from([doubles, small_ints, ints, plain, st.integers(2**40, 2**40 + 300)]))
    chosen = draw(st.lists(st.sampled_from(shapes), max_size=25))
    return [{name: draw(kinds[name]) for name in shape} for shape in chosen]


rows_and_times = tables().flatmap(
    lambda rows: st.tuples(
        st.just(rows), times_ns | st.lists(times_ns, min_size=len(rows), max_size=len(rows)).map(sorted)
    )
)


def exact(value: Any) -> Any:
    """A form in which values are equal only if their types, their bits and the order of their keys are."""
    kind = type(value)
    if kind is float:
        return "float", struct.pack("<d", value)
    if kind is list:
        return "list", [exact(item) for item in value]
    if kind is dict:
        return "dict", [(name, exact(item)) for name, item in value.items()]
    return kind.__name__, value


def training(count: int, first: int = 0) -> tuple[list[dict[str, Any]], list[int]]:
    """Points of a run: a loss each step, a validation now and then; times 10 ms apart, with noise."""
    rng = random.Random(first)
    rows: list[dict[str, Any]] = []
    for step in range(first, first + count):
        rows.append({"value": rng.random(), "step": step} | ({"val": rng.random()} if step % 10 == 0 else {}))
    return rows, [BEGIN + place * 10_000_000 + rng.randrange(1_000_000) for place in range(count)]


@given(rows_and_times, st.booleans())
def test_points_come_back_bit_for_bit(points: tuple[list[dict[str, Any]], Any], deflate: bool) -> None:
    rows, times = points
    decoded = decode(encode(rows, times, deflate=deflate))
    assert decoded.count == len(rows)
    assert exact(decoded.rows()) == exact(rows)
    assert decoded.times == (times if rows else [])
    assert exact(decoded.columns()) == exact(sorted_as(decoded.columns(), columns_of(rows)))


@given(st.lists(rows_and_times, min_size=1, max_size=4), st.booleans(), st.booleans())
def test_points_added_in_pieces_are_those_of_one_piece(pieces: list[Any], deflate: bool, stored: bool) -> None:
    table, rows, times = Table(), [], []
    for more, at in pieces:
        table.add(more, at)
        rows += more
        times += [at] * len(more) if isinstance(at, int) else at
        if stored:
            table = Table.of(decode(table.encode(deflate=deflate)))
    decoded = decode(table.encode(deflate=deflate))
    assert decoded.count == table.count == len(rows)
    assert exact(decoded.rows()) == exact(rows)
    found = decoded.times
    assert ([found] * len(rows) if isinstance(found, int) else found) == times


def sorted_as(like: dict[str, Any], columns: dict[str, Any] | None) -> dict[str, Any]:
    """The columns in the order of others, since that of `columns_of` is that of a set."""
    assert columns is not None
    assert set(columns) == set(like)
    return {name: columns[name] for name in like}


@given(rows_and_times, st.booleans(), st.data())
def test_a_slice_has_the_rows_lines_and_extremes_of_its_rows(
    points: tuple[list[dict[str, Any]], Any], deflate: bool, data: st.DataObject
) -> None:
    rows, times = points
    start = data.draw(st.integers(0, len(rows)))
    stop = data.draw(st.none() | st.integers(start, len(rows) + 2))
    first = data.draw(st.sampled_from([0, 7, 10**9]))
    decoded = decode(encode(rows, times, deflate=deflate))
    part, part_times = rows[start:stop], times if isinstance(times, int) else times[start:stop]
    assert exact(decoded.rows(start, stop)) == exact(part)
    assert decoded.lines(first, start, stop) == point_lines(Block(first + start, part, part_times))
    found, expected = decoded.extremes(first, start, stop), sampling.extremes(part, first + start)
    assert same(found, expected)
    # Of one field of no points there is no summary.
    for field in {*decoded.fields, "absent"} if part else ():
        found, expected = decoded.extremes(first, start, stop, field), sampling.extremes(part, first + start, field)
        assert same(found, expected)


def same(a: Extremes, b: Extremes) -> bool:
    """True if two summaries are equal, types and bits included."""
    return {name: as_lists(found) for name, found in a.items()} == {name: as_lists(found) for name, found in b.items()}


def as_lists(found: Any) -> Any:
    return exact([list(part) if isinstance(part, tuple) else part for part in found])


@given(st.lists(ints, max_size=30) | st.lists(doubles, max_size=30) | st.lists(plain, max_size=8), st.booleans())
def test_lists_of_values_come_back_bit_for_bit(values: list[Any], deflate: bool) -> None:
    code, data = pack(values, deflate=deflate)
    assert exact(unpack(code, data, len(values))) == exact(values)


@pytest.mark.parametrize(
    ("values", "size"),
    [
        ([1, -128, 127], 3),
        ([1, 128], 4),
        (list(range(1000)), 8 + 999),
        ([-(2**31), 2**31 - 1, 0], 12),
        ([2**63 - 1, -(2**63)], 16),
        ([BEGIN, BEGIN + 10_000_000], 8 + 4),
        ([0.5, -0.0], 16),
    ],
)
def test_numbers_take_the_smallest_width_in_which_they_fit(values: list[Any], size: int) -> None:
    assert len(pack(values)[1]) == size


def test_bytes_are_those_of_a_little_endian_machine_on_a_big_endian_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Swapped where they need not be, they are those of the other kind of machine, and come back."""
    numbers, doubles_ = [1, 300, -70_000], [0.5, NAN_WITH_PAYLOAD]
    here = [pack(numbers), pack(doubles_)]
    monkeypatch.setattr(packing, "_BIG_ENDIAN", True)
    there = [pack(numbers), pack(doubles_)]
    assert there[0][1] == b"".join(struct.pack(">i", number) for number in numbers)
    assert there[1][1] == b"".join(struct.pack(">d", number) for number in doubles_)
    assert here != there
    assert unpack(*there[0], 3) == numbers


@pytest.mark.parametrize("deflate", [False, True])
def test_a_field_is_read_without_unpacking_the_others(deflate: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, times = training(100)
    decoded = decode(encode(rows, times, deflate=deflate))
    unpacked = []
    monkeypatch.setattr(
        "ml_dash.server.engine.columns.unpack",
        lambda code, data, count: unpacked.append(count) or unpack(code, data, count),
    )
    values, places = decoded.column("val")
    assert values == [row["val"] for row in rows if "val" in row]
    assert places == list(range(0, 100, 10))
    # The shapes of all rows, and the ten values.
    assert unpacked == [100, 10]


@pytest.mark.parametrize(
    "rows",
    [
        [{f"f{place}-{name}": place for name in range(3)} for place in range(300)],
        [{f"f{bit}": place for bit in range(9) if place >> bit & 1} for place in range(400)],
        [{f"f{number}": number for number in range(5000)}],
        [{f"f{number}": number for number in range(200)}, {}],
    ],
    ids=["nothing in common", "400 shapes", "5,000 names in one row", "200 names in two rows"],
)
@pytest.mark.parametrize("deflate", [False, True])
def test_rows_that_make_no_table_come_back_as_well(rows: list[dict[str, Any]], deflate: bool) -> None:
    decoded = decode(encode(rows, BEGIN, deflate=deflate))
    # In one part: as columns they would come back too, at a cost that grows with their number.
    assert len(decoded._head.codes) == 1
    assert exact(decoded.rows()) == exact(rows)
    assert decoded.lines(3) == point_lines(Block(3, rows, BEGIN))
    assert decoded.extremes(3) == sampling.extremes(rows, 3)
    field = next(iter(rows[0]), "f0")
    assert decoded.column(field) == (
        [r[field] for r in rows if field in r],
        [i for i, r in enumerate(rows) if field in r],
    )


def test_a_thousand_points_of_noise_come_back_bit_for_bit_and_by_slices() -> None:
    """As many as a full block holds: short lists have no place of noise that stays as it is."""
    rows, times = training(1000)
    rng = random.Random(5)
    for row in rows:
        row |= {"narrow": struct.unpack("<f", struct.pack("<f", rng.random()))[0], "id": rng.randrange(-(2**63), 2**63)}
    decoded = decode(encode(rows, times, deflate=True))
    assert exact(decoded.rows()) == exact(rows)
    assert decoded.times == times
    assert decoded.lines(5000, 400, 600) == point_lines(Block(5400, rows[400:600], times[400:600]))
    for start in range(0, 1000, PART):
        assert decoded.extremes(7000, start, start + PART) == sampling.extremes(
            rows[start : start + PART], 7000 + start
        )


def test_two_thousand_random_points_and_their_summaries_take_at_most_16_bytes_each() -> None:
    blocks, size = [], 0
    for first in (0, 1000):
        rows, times = training(1000, first)
        rows = [{"value": row["value"], "step": row["step"]} for row in rows]
        blocks.append(encode(rows, times, deflate=True))
        parts = [sampling.extremes(rows[at : at + PART], first + at) for at in range(0, 1000, PART)]
        size += len(encode_summaries(parts, deflate=True))
    assert len(encode_chunk(blocks)[0]) + size <= 16 * 2000


GOLDEN_ROWS = [
    {"value": 0.5, "step": 300},
    {"value": -0.0, "step": 301},
    {"value": 1.5, "step": 302, "note": "NaN"},
    {"value": 2.5, "step": 304},
]
GOLDEN_TIMES = [BEGIN, BEGIN + 10, BEGIN + 20, BEGIN + 31]
GOLDEN_OPEN = (
    "01e77899c9280000009604c093a576616c7565a473746570a46e6f74659292000193000102951a02191a0095200420200500"
    "00b0d4acc66c180a00b0d4acc66c181400b0d4acc66c181f00b0d4acc66c1800000100000000000000e03f00000000000000"
    "80000000000000f83f00000000000004402c010000000000002d010000000000002e01000000000000300100000000000091"
    "a34e614e"
)
GOLDEN_DEFLATED = (
    "01415879e9280000009620c093a576616c7565a473746570a46e6f74659292000193000102952b2239232095140b25130900"
    "00b0d4acc66c18007af1022f0088193f000c00006260606460c083010300006260c00f002204002204002204002204002204"
    "007ac0f083051f06c8bec1de011f060c002c0100000000000000626464fac3881b0306009bb1d82fd10f1f0600"
)
GOLDEN_DEFLATED_SUMMARIES = (
    "01143521521900000093029195a576616c756502c0950202020339950202060f28c3020200020100000101012c0100000000"
    "000002ff01fe04fd0300626080008060002018000806008201806000a0073f187e3c60616001c8debec1dedea1c1013000"
)
GOLDEN_SUMMARIES = (
    "0177355e33040000009302c0c29281a576616c756595029300cd012ccb3fe00000000000009301cd012dcb80000000000000"
    "009300cd012ccb3fe00000000000009301cd012dcb800000000000000081a576616c756595029302cd012ecb3ff800000000"
    "00009302cd012ecb3ff80000000000009303cd0130cb40040000000000009303cd0130cb4004000000000000"
)


def test_stored_bytes_of_format_1_are_read_for_ever() -> None:
    """Bytes that were stored once; the deflated ones depend on the library that made them, and are only read."""
    assert encode(GOLDEN_ROWS, GOLDEN_TIMES).hex() == GOLDEN_OPEN
    for stored, rows, times in (
        (GOLDEN_OPEN, GOLDEN_ROWS, GOLDEN_TIMES),
        (GOLDEN_DEFLATED, 8 * GOLDEN_ROWS, [BEGIN + 1000 * place for place in range(32)]),
    ):
        decoded = decode(bytes.fromhex(stored))
        assert exact(decoded.rows()) == exact(rows)
        assert decoded.times == times
    summaries = [sampling.extremes(GOLDEN_ROWS[:2], 0), sampling.extremes(GOLDEN_ROWS[2:], 2)]
    assert encode_summaries(summaries).hex() == GOLDEN_SUMMARIES
    for stored in (GOLDEN_SUMMARIES, GOLDEN_DEFLATED_SUMMARIES):
        assert decode_summaries(bytes.fromhex(stored)) == summaries


stretches = st.lists(tables(), max_size=6)


@given(stretches, st.booleans(), st.sampled_from([0, 10**12]))
def test_summaries_come_back_as_they_were(stretches: list[Any], deflate: bool, first: int) -> None:
    summaries, position = [], first
    for rows in stretches:
        summaries.append(sampling.extremes(rows, position))
        position += len(rows)
    encoded = encode_summaries(summaries, deflate=deflate)
    decoded = decode_summaries(encoded)
    assert len(decoded) == len(summaries)
    assert all(map(same, decoded, summaries))
    for field in {*set().union(*summaries), "absent"}:
        only = [{field: summary[field]} if field in summary else {} for summary in summaries]
        assert all(map(same, decode_summaries(encoded, field), only))


@pytest.mark.parametrize("step", [lambda i: i, lambda i: 10 * i + 3, lambda i: -i, lambda i: 5, lambda i: 0])
def test_regular_steps_cost_nothing_in_summaries(step: Any) -> None:
    def of(rows: list[dict[str, Any]]) -> bytes:
        parts = [sampling.extremes(rows[at : at + PART], at) for at in range(0, 1000, PART)]
        return encode_summaries(parts, deflate=True)

    regular = [{"value": (i * 37 % 101) / 7, "step": step(i)} for i in range(1000)]
    irregular = [row | {"step": row["step"] + place % 3} for place, row in enumerate(regular)]
    assert len(of(regular)) + 20 <= len(of(irregular))
    assert len(of(regular)) <= len(of([{"value": row["value"]} for row in regular])) + 10


def test_a_chunk_gives_its_blocks_whole_and_by_ranges_of_bytes() -> None:
    blocks = [encode(*training(50, 50 * number), deflate=True) for number in range(10)]
    chunk, ranges = encode_chunk(blocks)
    assert decode_chunk(chunk) == blocks
    assert [chunk[offset : offset + length] for offset, length in ranges] == blocks
    assert decode_chunk(encode_chunk([])[0]) == []


@pytest.mark.parametrize("deflate", [False, True])
def test_every_cut_and_every_flipped_bit_of_a_block_is_found(deflate: bool) -> None:
    data = encode(*training(30), deflate=deflate)
    for end in range(len(data)):
        with pytest.raises(Damaged):
            decode(data[:end])
    for place in range(1, len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        with pytest.raises(Damaged):
            decode(bytes(flipped))


def all_decoded(chunk: bytes) -> list[int]:
    """The number of points in each block of a chunk."""
    return [decode(block).count for block in decode_chunk(chunk)]


def test_every_cut_and_flipped_bit_of_a_chunk_is_found() -> None:
    chunk, _ = encode_chunk([encode(*training(5)), encode(*training(7))])
    for end in range(len(chunk)):
        with pytest.raises(Damaged):
            decode_chunk(chunk[:end])
    for place in range(len(chunk)):
        flipped = bytearray(chunk)
        flipped[place] ^= 1 << place % 8
        with pytest.raises(MLDashError):
            all_decoded(bytes(flipped))


def test_summaries_of_more_fields_than_stretches_come_back_as_well() -> None:
    rows = [{f"f{number}": number / 7 for number in range(300)}]
    summaries = [sampling.extremes(rows, 0), {}]
    assert decode_summaries(encode_summaries(summaries, deflate=True)) == summaries
    assert decode_summaries(encode_summaries(summaries, deflate=True), "f7") == [{"f7": summaries[0]["f7"]}, {}]


@pytest.mark.parametrize("deflate", [False, True])
def test_summaries_that_are_damaged_are_refused(deflate: bool) -> None:
    data = encode_summaries([sampling.extremes(training(50)[0], 0)], deflate=deflate)
    for place in range(1, len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        with pytest.raises(Damaged):
            decode_summaries(bytes(flipped))
    with pytest.raises(Damaged):
        decode_summaries(b"")


@pytest.mark.parametrize("read", [decode, decode_summaries])
def test_a_newer_format_is_named_and_not_called_damage(read: Any) -> None:
    with pytest.raises(NewerFormat, match=r"has format 2, this ml-dash reads 1; upgrade ml-dash"):
        read(b"\x02" + bytes(20))


@pytest.mark.parametrize("count", [0, 2, 4])
@pytest.mark.parametrize("values", [[1, 2, 3], [300, 301, 302], [0.5, 1.5, 2.5], ["a", "b", "c"], [7, 7, 7]])
@pytest.mark.parametrize("deflate", [False, True])
def test_another_count_than_was_packed_is_damage(values: list[Any], count: int, deflate: bool) -> None:
    code, data = pack(values, deflate=deflate)
    with pytest.raises(Damaged):
        unpack(code, data, count)
