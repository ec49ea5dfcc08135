"""The judge: what a server shows against what was issued and what is on disk; the folded values are computed here anew.

Nothing that the uploader or the server says of itself is believed: pages are read, bytes compared, files hashed.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

import msgpack

from tests.crash import oracle_reader as disk
from tests.crash.compare import points_of
from tests.crash.oracle import file_id

from .asking import Address, Client
from .pens import Place, WriterFixture

Key = tuple[str, int]


OUT_OF_ORDER: Final = "the order of writer"


@dataclass
class Truth:
    """Everything that one experiment must show: from its events, whichever journals they stand in."""

    # writer → its entries in order; metric → writer → its points in order
    logs: dict[str, list[bytes]] = field(default_factory=dict)
    points: dict[str, dict[str, list[bytes]]] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    # (prefix, filename) → (checksum, file id, released?)
    files: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    events: int = 0


def truth(events: Mapping[Key, tuple[int, int, Any]]) -> Truth:
    """What these events mean: registers by stamp, series in each writer's order."""
    made = Truth(events=len(events))
    stamps: dict[Any, tuple[int, str, int]] = {}
    deleted: set[str] = set()
    # As they lie in the segments: a number that was skipped may be filled later.
    for (writer, seq), (kind, time_ns, body) in events.items():
        stamp = (time_ns, writer, seq)
        if kind == disk.LOG:
            made.logs.setdefault(writer, []).append(_key([utc(time_ns), *body]))
        elif kind in (disk.POINT, disk.POINTS, disk.ROWS):
            points = [_key([utc(time_ns), point]) for point in points_of(kind, body)]
            made.points.setdefault(body[0], {}).setdefault(writer, []).extend(points)
        elif kind == disk.PARAMS:
            for key, value in body.items():
                if stamp > stamps.get(key, (-1, "", -1)):
                    stamps[key], made.parameters[key] = stamp, value
        elif kind == disk.FILE:
            place = (body["prefix"], body["filename"])
            if stamp > stamps.get(place, (-1, "", -1)):
                stamps[place], made.files[place] = stamp, (body["checksum"], file_id(writer, seq))
        elif kind == disk.FILE_DELETE:
            deleted.add(body["id"])
    made.files = {place: (sha, number) for place, (sha, number) in made.files.items() if number not in deleted}
    return made


def utc(time_ns: int) -> str:
    """A time as the API tells it."""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{rest // 1000:06d}Z"


def _key(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


# -- the local side --------------------------------------------------------------------------------------------------


def local_events(*journals: disk.Journal) -> dict[Key, tuple[int, int, Any]]:
    """The events of several journals."""
    events: dict[Key, tuple[int, int, Any]] = {}
    for journal in journals:
        events.update(journal.events)
    return events


def check_pens(journals: Iterable[disk.Journal], pens: Iterable[WriterFixture]) -> list[str]:
    """Does the disk hold what the pens wrote, and nothing else? Guards the trial itself, and I9."""
    events = local_events(*journals)
    issued = {key: event for pen in pens for key, event in pen.issued.items()}
    lost, invented = issued.keys() - events.keys(), events.keys() - issued.keys()
    changed = [key for key in issued.keys() & events.keys() if _key(issued[key]) != _key(events[key])]
    problems = []
    if lost:
        problems.append(f"{len(lost)} events are gone from the local journal, such as {min(lost)}")
    if invented:
        problems.append(f"{len(invented)} events on disk were never issued, such as {min(invented)}")
    if changed:
        problems.append(f"{len(changed)} events on disk are not what was issued, such as {min(changed)}")
    return problems


# -- the server's side -----------------------------------------------------------------------------------------------


def check_bytes(client: Client, journals: Iterable[disk.Journal], *, behind_ok: bool = False) -> list[str]:
    """I6 in bytes: every local frame is on the server, at its offset, and nothing else is.

    With `behind_ok` the server may have less; what it has must be right.
    """
    problems: list[str] = []
    for journal in journals:
        headers = [segment.header for segment in journal.segments if segment.header is not None]
        if not headers:
            continue
        identity = headers[0].journal.hex()
        state = client.journal(identity)
        if state is None:
            if any(segment.frames for segment in journal.segments) and not behind_ok:
                problems.append(f"the server does not know journal {identity}")
            continue
        for segment in journal.segments:
            problems += _check_segment(client, segment, state, behind_ok)
        known = {header.segment.hex() for header in headers}
        if extra := set(state["segments"]) - known:
            problems.append(f"the server has {len(extra)} segments that are not here, such as {min(extra)}")
    return problems


def _check_segment(client: Client, segment: disk.Segment, state: dict[str, Any], behind_ok: bool) -> list[str]:
    if segment.header is None or not segment.frames:
        return []
    identity = segment.header.segment.hex()
    there = state["segments"].get(identity)
    if there is None:
        return [] if behind_ok else [f"segment {segment.path.name} never reached the server"]
    here = segment.path.read_bytes()
    end = segment.frames[-1].end
    problems = []
    if there["length"] < end and not behind_ok:
        problems.append(f"{segment.path.name}: {there['length']} of {end} bytes are on the server")
    remote = client.segment(identity)
    if len(remote) != there["length"]:
        problems.append(f"{segment.path.name}: {len(remote)} bytes can be read, the state says {there['length']}")
    if remote != here[: len(remote)]:
        differing = (n for n, (a, b) in enumerate(zip(remote, here, strict=False)) if a != b)
        at = next(differing, min(len(remote), len(here)))
        problems.append(f"{segment.path.name}: the server's bytes differ from byte {at} on")
    return problems


def check_experiment(
    client: Client, experiment: str, expected: Truth, *, contents: bool = True, exact_events: bool = True
) -> list[str]:
    """Do the pages of the REST API show exactly these events, each once, each writer's in its order?"""
    problems = []
    entries = client.logs(experiment)
    if [entry["sequenceNumber"] for entry in entries] != list(range(len(entries))):
        problems.append("log numbers are not 0, 1, 2, ...")
    found = [_key([entry["timestamp"], entry["level"], entry["message"], entry["metadata"]]) for entry in entries]
    problems += check_merge("logs", found, expected.logs)
    totals = client.metrics(experiment)
    if set(totals) != set(expected.points):
        problems.append(f"metrics are {sorted(totals)[:8]}, expected {sorted(expected.points)[:8]}")
    for metric, parts in expected.points.items():
        if metric not in totals:
            continue
        points = client.points(experiment, metric)
        if [point["index"] for point in points] != list(range(len(points))):
            problems.append(f"indices of {metric} are not 0, 1, 2, ...")
        if totals[metric] != len(points):
            problems.append(f"{metric} is listed with {totals[metric]} points and has {len(points)}")
        keys = [_key([point["createdAt"], point["data"]]) for point in points]
        problems += check_merge(f"metric {metric}", keys, parts)
    parameters = client.parameters(experiment)
    if parameters != expected.parameters:
        keys_ = parameters.keys() | expected.parameters.keys()
        wrong = sorted(key for key in keys_ if parameters.get(key) != expected.parameters.get(key))
        problems.append(f"parameters differ: {wrong[:5]}")
    return problems + check_files(client, experiment, expected, contents=contents)


def check_files(client: Client, experiment: str, expected: Truth, *, contents: bool = True) -> list[str]:
    """Are the files those that were added last, and can their contents be had?"""
    problems = []
    records = {(r["prefix"].strip("/"), r["filename"]): r for r in client.files(experiment)}
    if records.keys() != expected.files.keys():
        problems.append(f"files are {sorted(records)[:5]}, expected {sorted(expected.files)[:5]}")
    for place, (checksum, number) in expected.files.items():
        record = records.get(place)
        if record is None:
            continue
        if (record["checksum"], record["id"]) != (checksum, number):
            problems.append(f"file {place} is recorded as {record['id']}, expected {number}")
        elif contents:
            answer = client.download(experiment, number)
            if answer.status != 200 or hashlib.sha256(answer.body).hexdigest() != checksum:
                problems.append(f"file {place} answers {answer.status} with {len(answer.body)} bytes that are not it")
    return problems


def check_merge(what: str, found: list[bytes], parts: dict[str, list[bytes]]) -> list[str]:
    """`found` must be the parts of all writers, each in its own order, nothing more and nothing twice."""
    expected, actual = Counter(key for part in parts.values() for key in part), Counter(found)
    problems = []
    if missing := expected - actual:
        counts = f"{missing.total()} of {expected.total()} missing"
        problems.append(f"{what}: {counts}, such as {_shown(next(iter(missing)))}")
    if extra := actual - expected:
        problems.append(f"{what}: {extra.total()} too many, such as {_shown(next(iter(extra)))}")
    if not problems:
        places = {key: place for place, key in enumerate(found)}
        for writer, part in parts.items():
            order = [places[key] for key in part if expected[key] == 1]
            if order != sorted(order):
                problems.append(f"{what}: {OUT_OF_ORDER} {writer} is not kept")
    return problems


def _shown(key: bytes) -> str:
    return str(msgpack.unpackb(key, strict_map_key=False))[:160]


def judge(
    port: Address,
    places: Iterable[Place | Path],
    pens: Iterable[WriterFixture] = (),
    *,
    user: str = "alice",
    contents: bool = True,
    exact_events: bool = True,
    in_order: bool = True,
) -> list[str]:
    """All of it, for the journals of one experiment on one server: what contradicts I3, I6 and I9.

    Not `in_order`: something of a writer was damaged, and came after what it wrote later.
    """
    journals = [disk.read_journal(p.journal if isinstance(p, Place) else p) for p in places]
    problems = [problem for journal in journals for problem in journal.problems]
    pens = list(pens)
    if pens:
        problems += check_pens(journals, pens)
    with Client(port, user=user) as client:
        problems += check_bytes(client, journals)
        state = experiment_of(client, journals)
        events = local_events(*journals)
        if state is None:
            if events:
                problems.append("the server does not know the experiment")
            return problems
        if exact_events and state["events"] != len(events):
            problems.append(f"the server counts {state['events']} events, {len(events)} were issued")
        problems += check_experiment(client, state["experiment"], truth(events), contents=contents)
    return [problem for problem in problems if in_order or OUT_OF_ORDER not in problem]


def experiment_of(client: Client, journals: Iterable[disk.Journal]) -> dict[str, Any] | None:
    """The state of the first of these journals that the server knows."""
    for journal in journals:
        for segment in journal.segments:
            if segment.header is not None:
                state = client.journal(segment.header.journal.hex())
                if state is not None:
                    return state
    return None


def check_same_as_folder(client: Client, experiment: str, folder: Path) -> list[str]:
    """With one journal, shipped in its order, the server numbers as the folder does (DESIGN §5)."""
    problems = []
    if (logs := _lines(folder / "logs" / "logs.jsonl")) != client.logs(experiment):
        problems.append(f"the {len(logs)} lines of logs.jsonl are not what the server answers")
    for path in sorted((folder / "metrics").rglob("data.jsonl")):
        name = json.loads((path.parent / "metadata.json").read_bytes())["name"]
        if _lines(path) != client.points(experiment, name):
            problems.append(f"the lines of metric {name} are not what the server answers")
    return problems


def _lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []
