"""Row S2: the power goes while the server works: whatever it had answered is in every state its disk may be left in."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.crash.powercut import DAMAGES, Disk
from tests.faults import shim
from tests.faults.harness import Row, Trial
from tests.faults.shim import Operation

from .asking import Client
from .judge import judge
from .load import Promises, Shipper
from .servers import serve
from .world import Site, World, site, world

STATES_OF_ONE: Final = 40


@dataclass
class Recording:
    """A server's run under the record: its operations, and what it had answered by when."""

    root: Path
    operations: list[Operation]
    # (bytes of the record at the moment of the answer, what had been promised by then)
    answers: list[tuple[int, Promises]]
    ends: list[int]
    folder: Path

    def promised(self, at: int) -> Promises:
        """What had been answered before operation `at` was over."""
        size = self.ends[at]
        found = Promises()
        for recorded, promises in self.answers:
            if recorded <= size:
                found = promises
        return found


_recordings: dict[tuple[int, int], Recording] = {}


def _record(trial: Trial, group: int) -> Recording:
    known = _recordings.get((group, id(trial.shared)))
    if known is not None and known.folder.exists():
        return known
    _recordings.clear()
    shared: World = trial.shared
    rng = random.Random(f"{trial.rng.random()}")
    root = trial.folder / "root"
    root.mkdir()
    log = trial.folder / "operations"
    promises = Promises()
    answers: list[tuple[int, Promises]] = []
    with site(trial) as here:
        shippers = [Shipper(here.pen(), promises, rng) for _ in range(2)]
        server = serve(shared.shimmed, root, program=shim.program(root, log=log)).wait_ready()
        try:
            with Client(server.port) as client:
                for _ in range(rng.randrange(20, 60)):
                    before = promises.count
                    rng.choice(shippers).step(client)
                    if promises.count > before:
                        kept = Promises(segments=dict(promises.segments), blobs=set(promises.blobs))
                        answers.append((log.stat().st_size, kept))
            if rng.random() < 0.3:
                server.stop()
        finally:
            server.kill()
    operations, ends = [], []
    position = 0
    for operation in shim.read_log(log):
        position += 4 + 1 + 8 + 8 + 12 + len(operation.path.encode()) + len(operation.path2.encode())
        position += len(operation.data)
        # What it notes in its user's home, outside its data, is no promise.
        if not Path(operation.path).is_relative_to(root / "home"):
            operations.append(operation)
            ends.append(position)
    made = Recording(root, operations, answers, ends, trial.folder / "site")
    _recordings[group, id(trial.shared)] = made
    return made


def power_cut(trial: Trial) -> None:
    """S2. One state of the disk after one operation."""
    recording = _record(trial, trial.index // STATES_OF_ONE)
    at = trial.rng.randrange(len(recording.operations))
    damage = trial.index % len(DAMAGES)
    model = Disk(recording.root)
    for operation in recording.operations[: at + 1]:
        model.feed(operation)
    left = trial.folder / "left"
    model.cut(left, damage, trial.rng)
    trial.counts[DAMAGES[damage]] += 1
    where = f"cut after operation {at} of {len(recording.operations)}, {DAMAGES[damage]}"
    promises = recording.promised(at)
    trial.counts["promises"] += len(promises.segments) + len(promises.blobs)
    shared: World = trial.shared
    server = serve(shared.zygote, left).wait_ready()
    try:
        problems = promises.check(server.port)
        trial.fail(*(f"{where}: {problem}" for problem in problems))
        if trial.index % 5 == 0 and not problems:
            _goes_on(trial, server.port, recording, where)
    finally:
        server.kill()


def _goes_on(trial: Trial, port: int, recording: Recording, where: str) -> None:
    """The uploader brings what is missing."""
    places = [path.parent for path in recording.folder.glob("store/*/*/.journal")]
    here = Site(trial, trial.shared, "again")
    (here.folder / "store").symlink_to(recording.folder / "store")
    here.drain(f"http://127.0.0.1:{port}")
    for place in places:
        trial.fail(*(f"{where}: {problem}" for problem in judge(port, [place / ".journal"])))


ROWS = (
    Row("S2", "power cuts while the server works", 5_000, 12, power_cut, world),
)  # fmt: skip
