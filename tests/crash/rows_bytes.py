"""Rows W5 to W9: every cut, every fill, every flipped bit, random edits, absurd lengths; what is whole must be read."""

from __future__ import annotations

import contextlib
import itertools
import os
import struct
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.faults.harness import Row, Trial

from . import oracle_reader as disk
from .edits import Edited, edit_at_random, whole_frames
from .specimen import Specimen, expect, read_copy, same_bodies, specimen_of

SIZE: Final = 65_536
# The specimen is at least that long, and at most so much longer: a full run takes every byte of it.
WHOLE: Final = SIZE + 8_192
_FILLS: Final = ("zeros", "ones", "random", "another segment")
_NEVER_WHOLE: Final = ("not yet", "Damaged", "NewerFormat")


@contextlib.contextmanager
def large_specimen(workdir: Path) -> Iterator[Specimen]:
    """A setup: at least 64 KiB."""
    with specimen_of(workdir, SIZE) as made:
        assert SIZE <= len(made.data) <= WHOLE
        yield made


@contextlib.contextmanager
def small_specimen(workdir: Path) -> Iterator[Specimen]:
    """A setup: about 12 KiB."""
    with specimen_of(workdir, 12_000) as made:
        yield made


def cut_anywhere(trial: Trial) -> None:
    """W5. A segment cut at any byte yields the frames before the cut, and never an error."""
    specimen: Specimen = trial.shared
    cut = trial.index % len(specimen.data)
    specimen.copy.write_bytes(specimen.data[:cut])
    reading = read_copy(specimen.copy)
    if cut < specimen.header.size:
        trial.check(reading.refused == "not yet", f"a header cut at {cut} is {reading.refused or 'accepted'}")
        return
    want = [frame for frame in specimen.frames if frame.end <= cut]
    end = want[-1].end if want else specimen.header.size
    trial.fail(*expect(reading, want, damaged=cut != end))
    trial.check(not reading.gaps, "a cut tail is told as damage in the middle")
    trial.check(not reading.refused, f"refused: {reading.refused}")
    if trial.index % 64 == 0:
        trial.fail(*same_bodies(reading, want))


def fill_from(trial: Trial) -> None:
    """W6. A tail overwritten from any byte on: the frames before it, and nothing made of the fill."""
    specimen: Specimen = trial.shared
    kind, start = trial.index % 4, trial.index // 4 % len(specimen.data)
    length = len(specimen.data) - start
    fill = (
        bytes(length)
        if kind == 0
        else b"\xff" * length
        if kind == 1
        else trial.rng.randbytes(length)
        if kind == 2
        else (specimen.other * 2)[trial.rng.randrange(4096) :][:length]
    )
    trial.counts[_FILLS[kind]] += 1
    damaged = specimen.data[:start] + fill
    specimen.copy.write_bytes(damaged)
    reading = read_copy(specimen.copy)
    if damaged[: specimen.header.size] != specimen.data[: specimen.header.size]:
        trial.check(not reading.found, "frames were found behind a header that was overwritten")
        trial.check(
            reading.refused in _NEVER_WHOLE, f"a segment with a wrong header is {reading.refused or 'accepted'}"
        )
        return
    want = [f for f in specimen.frames if damaged[f.start : f.end] == specimen.data[f.start : f.end]]
    trial.fail(*expect(reading, want, damaged=damaged != specimen.data))


def flip_one_bit(trial: Trial) -> None:
    """W7. One flipped bit costs the frame it is in, and is told at the right place."""
    specimen: Specimen = trial.shared
    place, bit = divmod(trial.index % (8 * len(specimen.data)), 8)
    value = bytes([specimen.data[place] ^ 1 << bit])
    with specimen.copy.open("r+b") as file:
        os.pwrite(file.fileno(), value, place)
        reading = read_copy(specimen.copy)
        os.pwrite(file.fileno(), specimen.data[place : place + 1], place)
    if place < specimen.header.size:
        # No frame is touched: none may be lost, but the damage must be told.
        trial.counts["in the header"] += 1
        trial.check(reading.header_damaged, f"a damaged header is not told: {reading.refused}")
        trial.fail(*expect(reading, list(specimen.frames), damaged=False))
        return
    hit = next(frame for frame in specimen.frames if frame.start <= place < frame.end)
    trial.fail(*expect(reading, [frame for frame in specimen.frames if frame is not hit], damaged=True))
    if hit is specimen.frames[-1]:
        trial.check(reading.tail == (hit.start, hit.end), f"the tail is told as {reading.tail}")
    else:
        trial.check(reading.gaps == [(hit.start, hit.end)], f"the gap is told as {reading.gaps}")


def edit_anyhow(trial: Trial) -> None:
    """W8. Random edits: every frame that no edit touched is read, nothing else, in time that grows with the size."""
    specimen: Specimen = trial.shared
    if trial.index % 100 == 0:
        _frames_larger_than_a_buffer(trial, specimen)
        return
    edited: Edited = edit_at_random(specimen.data, trial.rng, specimen.header.size)
    specimen.copy.write_bytes(edited.data)
    begun = time.perf_counter()
    reading = read_copy(specimen.copy)
    spent = time.perf_counter() - begun
    trial.check(spent < 0.5 + len(edited.data) * 2e-6, f"{len(edited.data)} bytes took {spent:.2f} s")
    want = whole_frames(edited, specimen.frames)
    got = {event[0] for event in reading.found}
    known = {frame.seq: frame for frame in specimen.frames}
    trial.check(not reading.refused, f"refused: {reading.refused}")
    if missing := sorted(want - got):
        trial.fail(f"untouched frames were not read: {missing[:5]}")
    if invented := [event for event in reading.found if event[0] not in known or event[1] != known[event[0]].kind]:
        trial.fail(f"events that nobody wrote: {invented[:3]}")
    trial.counts["frames read"] += len(got)
    trial.fail(*same_bodies(reading, [known[event[0]] for event in reading.found if event[0] in known]))


def _frames_larger_than_a_buffer(trial: Trial, specimen: Specimen) -> None:
    """Frames of every size up to the largest, so that some lie across every buffer of the reader; some are damaged."""
    header = specimen.data[: specimen.header.size]
    data, spans = bytearray(header), []
    for seq in range(trial.rng.randrange(4, 14)):
        size = trial.rng.choice((10, 5_000, 40_000, 300_000, trial.rng.randrange(1 << 19), disk.LARGEST - 60))
        frame = disk.make_frame(header, seq, disk.LOG, specimen.header.created_ns + seq, ["info", "x" * size, None])
        spans.append((len(data), len(data) + len(frame)))
        data += frame
    hit = set()
    for _ in range(trial.rng.randrange(3)):
        seq = trial.rng.randrange(len(spans))
        hit.add(seq)
        data[trial.rng.randrange(*spans[seq])] ^= 1 << trial.rng.randrange(8)
    specimen.copy.write_bytes(data)
    reading = read_copy(specimen.copy)
    got, want = [event[0] for event in reading.found], [seq for seq in range(len(spans)) if seq not in hit]
    # Two flips in one place take each other back.
    trial.check(got == want or (len(hit) == 1 and got == list(range(len(spans)))), f"read {got}, whole are {want}")
    trial.counts["segments of large frames"] += 1


LENGTHS: Final = (0, 1, 2, 7, 1 << 20, (1 << 20) + 1, 1 << 24, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFF8)


def absurd_length(trial: Trial) -> None:
    """W9. Any length, with a right and a wrong checksum, anywhere: bounded memory, only that frame is lost."""
    specimen: Specimen = trial.shared
    places = ("first", "middle", "last", "behind the end")
    crcs = ("right", "wrong", "kept")
    place, length, crc = list(itertools.product(places, LENGTHS, crcs))[trial.index % (4 * len(LENGTHS) * 3)]
    data = bytearray(specimen.data)
    middle = trial.rng.randrange(1, len(specimen.frames) - 1)
    hit = {"first": specimen.frames[0], "middle": specimen.frames[middle], "last": specimen.frames[-1]}.get(place)
    start = hit.start if hit is not None else len(data)
    if hit is None:
        data += bytes(8) + trial.rng.randbytes(trial.rng.randrange(64))
    struct.pack_into("<I", data, start, length)
    if crc != "kept":
        right = _checksum(specimen, bytes(data), start, length)
        struct.pack_into("<I", data, start + 4, right if crc == "right" else right ^ 0x5A5A5A5A)
    specimen.copy.write_bytes(data)
    tracemalloc.start()
    reading = read_copy(specimen.copy)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    trial.check(peak < 16 << 20, f"{peak:,} bytes of memory for a segment of {len(data):,}")
    changed = bytes(data[: len(specimen.data)]) != specimen.data or hit is None
    want = [f for f in specimen.frames if bytes(data[f.start : f.end]) == specimen.data[f.start : f.end]]
    trial.fail(*expect(reading, want, damaged=changed))


def _checksum(specimen: Specimen, data: bytes, start: int, length: int) -> int:
    import zlib

    payload = data[start + 8 : start + 8 + min(length, len(data))]
    return zlib.crc32(payload, zlib.crc32(data[start : start + 4], specimen.header.crc))


ROWS = (
    Row("W5", "a segment cut at every byte", WHOLE, 1_300, cut_anywhere, large_specimen),
    Row("W6", "a tail overwritten from every byte", 4 * WHOLE, 2_600, fill_from, large_specimen),
    Row("W7", "every bit of a segment flipped", 8 * WHOLE, 5_000, flip_one_bit, large_specimen),
    Row("W8", "1 to 16 random edits", 100_000, 1_000, edit_anyhow, small_specimen),
    Row("W9", "absurd lengths", 4 * len(LENGTHS) * 3, 4 * len(LENGTHS) * 3, absurd_length, small_specimen),
)
