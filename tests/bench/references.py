"""What the measurements are held against: the same content, written by a bare loop."""

from __future__ import annotations

import hashlib
import os
import struct
import threading
from pathlib import Path
from time import perf_counter, perf_counter_ns, time_ns
from typing import Any
from zlib import crc32

import msgpack

HEAD = struct.Struct("<II")


def bare_points(folder: Path, count: int) -> list[int]:
    """L for points: msgpack, CRC and one `os.write` per event; the nanoseconds of each."""
    fd = os.open(folder / "reference.bin", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    pack = msgpack.Packer(autoreset=True).pack
    write, clock = os.write, perf_counter_ns
    times = []
    for number in range(count):
        value = number * 0.5
        begun = clock()
        payload = pack((number, 5, time_ns(), ("loss", {"value": value, "step": number})))
        write(fd, HEAD.pack(len(payload), crc32(payload)) + payload)
        times.append(clock() - begun)
    os.close(fd)
    return times


def bare_entries(folder: Path, count: int) -> list[int]:
    """L for log entries."""
    fd = os.open(folder / "reference.bin", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    pack = msgpack.Packer(autoreset=True).pack
    write, clock = os.write, perf_counter_ns
    times = []
    for number in range(count):
        metadata = {"epoch": number, "phase": "train", "seconds": 0.5}
        begun = clock()
        payload = pack((number, 3, time_ns(), ("info", "epoch finished", metadata)))
        write(fd, HEAD.pack(len(payload), crc32(payload)) + payload)
        times.append(clock() - begun)
    os.close(fd)
    return times


def pack_batches(batches: list[list[dict[str, Any]]]) -> float:
    """Seconds to msgpack-pack batches of points."""
    pack = msgpack.Packer(autoreset=True).pack
    begun = perf_counter()
    for batch in batches:
        pack(batch)
    return perf_counter() - begun


def copy_and_hash(source: Path, target: Path) -> float:
    """Seconds to copy a file in one thread, hash it in another, and fsync the copy."""
    begun = perf_counter()
    hasher = threading.Thread(target=lambda: _hash(source))
    hasher.start()
    with source.open("rb") as reading, target.open("wb") as writing:
        while os.copy_file_range(reading.fileno(), writing.fileno(), 4 << 20):
            pass
        os.fsync(writing.fileno())
    hasher.join()
    return perf_counter() - begun


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(4 << 20):
            digest.update(block)
    return digest.hexdigest()
