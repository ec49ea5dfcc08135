"""The documented folder and the library's own reads, compared with what the independent reader found."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import msgpack

from . import oracle_reader as disk

Tree = dict[str, str]


def tree(folder: Path) -> Tree:
    """Relative path → what is there, for the documented folder; the journal and mere folders are left out."""
    found: Tree = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if relative.parts[0] == ".journal":
            continue
        if path.is_symlink():
            found[str(relative)] = f"-> {path.readlink()}"
        elif not path.is_dir():
            found[str(relative)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def tree_difference(one: Tree, other: Tree, *, limit: int = 5) -> list[str]:
    """What differs between two trees, in words."""
    changed = sorted(path for path in one.keys() | other.keys() if one.get(path) != other.get(path))
    return [f"{path}: {one.get(path, 'absent')[:12]} / {other.get(path, 'absent')[:12]}" for path in changed[:limit]]


def segment_hashes(journal: Path) -> dict[str, tuple[int, str]]:
    """Segment → size and SHA-256: what must never change but by growing (I9)."""
    return {
        path.name: (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted((journal / "segments").glob("*.seg"))
    }


def changed_segments(journal: Path, before: dict[str, tuple[int, str]]) -> list[str]:
    """Segments of which not even the beginning is what it was."""
    problems = []
    for name, (size, digest) in before.items():
        path = journal / "segments" / name
        if not path.exists():
            problems.append(f"segment {name} was removed")
        elif hashlib.sha256(path.read_bytes()[:size]).hexdigest() != digest:
            problems.append(f"segment {name} was changed")
    return problems


class Expected:
    """What the folder must hold, from the events alone: about as simple as it can be said."""

    def __init__(self, journal: disk.Journal) -> None:
        self.logs: dict[str, list[bytes]] = {}
        self.points: dict[str, dict[str, list[bytes]]] = {}
        self.parameters: dict[str, Any] = {}
        self.files: dict[tuple[str, str], tuple[Any, str]] = {}
        stamps: dict[str, tuple[int, str, int]] = {}
        deleted: set[str] = set()
        for writer, seq, kind, time_ns, body in journal.in_order():
            stamp = (time_ns, writer, seq)
            if kind == disk.LOG:
                self.logs.setdefault(writer, []).append(_key([body[0], body[1], body[2]]))
            elif kind in (disk.POINT, disk.POINTS, disk.ROWS):
                keys = [_key(point) for point in points_of(kind, body)]
                self.points.setdefault(body[0], {}).setdefault(writer, []).extend(keys)
            elif kind == disk.PARAMS:
                for key, value in body.items():
                    if stamp > stamps.get(key, (-1, "", -1)):
                        stamps[key], self.parameters[key] = stamp, value
            elif kind == disk.FILE:
                place = (body["prefix"], body["filename"])
                known = self.files.get(place)
                if known is None or known[0] < stamp:
                    self.files[place] = (stamp, body["checksum"])
            elif kind == disk.FILE_DELETE:
                deleted.add(body["id"])
        self.deleted = deleted
        self.blobs = list(disk.blobs(journal.path).values())

    @property
    def total_logs(self) -> int:
        """How many log entries."""
        return sum(map(len, self.logs.values()))


def points_of(kind: int, body: Any) -> list[dict[str, Any]]:
    """The points of one event."""
    if kind == disk.POINT:
        return [body[1]]
    if kind == disk.ROWS:
        return list(body[1])
    names, columns = body[1], body[2]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _key(value: Any) -> bytes:
    key: bytes = msgpack.packb(value)
    return key


def _check_merge(what: str, found: list[bytes], parts: dict[str, list[bytes]]) -> list[str]:
    """`found` must be the parts of all writers, each in its own order, nothing more and nothing twice."""
    expected = Counter(key for part in parts.values() for key in part)
    actual = Counter(found)
    problems = []
    if missing := expected - actual:
        problems.append(f"{what}: {missing.total()} missing, such as {next(iter(missing))[:120]!r}")
    if extra := actual - expected:
        problems.append(f"{what}: {extra.total()} too many, such as {next(iter(extra))[:120]!r}")
    if not problems:
        places: dict[bytes, list[int]] = {}
        for place, key in enumerate(found):
            places.setdefault(key, []).append(place)
        for writer, part in parts.items():
            if any(len(places[key]) > 1 for key in part):
                continue
            order = [places[key][0] for key in part]
            if order != sorted(order):
                problems.append(f"{what}: the order of writer {writer} is not kept")
    return problems


def read_lines(path: Path) -> list[Any]:
    """The objects of a JSONL file; every line must be whole."""
    if not path.exists():
        return []
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        raise ValueError(f"{path} ends in the middle of a line")
    return [json.loads(line) for line in data.splitlines()]


def check_folder(folder: Path, journal: disk.Journal) -> list[str]:
    """Does the documented folder, brought up to date, hold exactly what the journal says?

    For journals whose metric names are plain and whose values JSON can hold as they are.
    """
    want = Expected(journal)
    problems = []
    if not journal.events and not (folder / "experiment.json").exists():
        # Killed between the header and the first event: nothing was recorded, so nothing may be shown.
        shown = [path for path in folder.rglob("*") if ".journal" not in path.parts and path.is_file()]
        return [f"shown without an event: {path}" for path in shown if path.stat().st_size]
    logs = read_lines(folder / "logs" / "logs.jsonl")
    if [entry["sequenceNumber"] for entry in logs] != list(range(len(logs))):
        problems.append("log numbers are not 0, 1, 2, ...")
    found = [_key([entry["level"], entry["message"], entry["metadata"]]) for entry in logs]
    problems += _check_merge("logs", found, want.logs)
    for name, parts in want.points.items():
        points = read_lines(folder / "metrics" / name / "data.jsonl")
        if [point["index"] for point in points] != list(range(len(points))):
            problems.append(f"indices of {name} are not 0, 1, 2, ...")
        problems += _check_merge(f"metric {name}", [_key(point["data"]) for point in points], parts)
        totals = json.loads((folder / "metrics" / name / "metadata.json").read_bytes())
        if totals["totalDataPoints"] != len(points):
            problems.append(f"metadata of {name} counts {totals['totalDataPoints']} points, the file has {len(points)}")
    surplus = {str(path.parent.relative_to(folder / "metrics")) for path in (folder / "metrics").rglob("data.jsonl")}
    if unknown := surplus - set(want.points):
        problems.append(f"metrics that nobody appended to: {sorted(unknown)[:3]}")
    parameters = json.loads((folder / "parameters.json").read_bytes())
    if parameters != want.parameters:
        wrong = [
            key for key in parameters.keys() | want.parameters.keys() if parameters.get(key) != want.parameters.get(key)
        ]
        problems.append(f"parameters differ: {sorted(wrong)[:5]}")
    return problems + check_files(folder, want)


def check_files(folder: Path, want: Expected) -> list[str]:
    """Are the files those that were added last?"""
    problems = []
    present = {blob.name[:64] for blob in want.blobs}
    records = json.loads((folder / "files" / ".files_metadata.json").read_bytes())["files"]
    live = {(record["prefix"].strip("/"), record["filename"]): record for record in records if not record["deletedAt"]}
    for place, (_, checksum) in want.files.items():
        record = live.get(place)
        if record is None:
            if not want.deleted:
                problems.append(f"file {place} is not listed")
            continue
        if record["checksum"] != checksum:
            problems.append(f"file {place} is recorded with another content")
        path = folder / "files" / place[0] / place[1]
        if checksum not in present and not path.exists():
            # Damage has cost the event that replaced it; its own content was released before.
            continue
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != checksum:
            problems.append(f"file {place} is missing or holds something else")
    return problems


def check_reads(target: Any, journal: disk.Journal) -> list[str]:
    """Do the calls of an open (read-only) experiment give what the journal says?"""
    want = Expected(journal)
    logs: list[Any] = []
    while True:
        page = target.log().read(start_index=len(logs), limit=10_000)
        logs += page["logs"]
        if not page["hasMore"]:
            break
    found = [_key([entry["level"], entry["message"], entry["metadata"]]) for entry in logs]
    problems = _check_merge("log().read()", found, want.logs)
    summaries = {summary["name"]: summary["totalDataPoints"] for summary in target.metric().list_all()}
    if summaries != {name: sum(map(len, parts.values())) for name, parts in want.points.items()}:
        problems.append(f"list_all() says {summaries}")
    for name, parts in want.points.items():
        points: list[Any] = []
        while True:
            page = target.metric(name).read(start_index=len(points), limit=10_000)
            points += page["data"]
            if not page["hasMore"]:
                break
        problems += _check_merge(f"metric({name!r}).read()", [_key(point["data"]) for point in points], parts)
    if target.parameters().get() != want.parameters:
        problems.append("parameters().get() differs")
    return problems
