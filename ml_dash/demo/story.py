"""The steps of the demo: train, kill half-way, inspect, resume, and count."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ml_dash.core.limits import MAX_LIMIT
from ml_dash.core.values import flatten
from ml_dash.demo.train import BATCH, EPOCHS, HELD_OUT
from ml_dash.errors import MLDashError, NotFound
from ml_dash.reading import read
from ml_dash.reading.view import View

SILENCE_S = 60.0
PROJECT = "demo"
POINTS = EPOCHS * ((150 - HELD_OUT) // BATCH + 2)
"""How many points a training records that is not interrupted."""

Progress = Callable[[int], None]
"""Called with the number of the epoch that has just ended."""

Cues = Mapping[int, Callable[[], None]]
"""What to do, besides, when a training has reported that many calls. It goes on meanwhile."""


class DemoError(MLDashError):
    """The demo did not go as it should; the text says where."""


@dataclass
class Acknowledged:
    """What one process was told has been recorded."""

    points: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    logs: list[str] = field(default_factory=list)
    files: list[tuple[str, str]] = field(default_factory=list)
    parameters: dict[str, Any] = field(default_factory=dict)
    parameter_calls: int = 0
    killed: bool = False
    ended: bool = False

    def note(self, kind: str, facts: list[Any]) -> None:
        if kind == "point":
            self.points.setdefault(facts[0], []).append(facts[1])
        elif kind == "log":
            self.logs.append(facts[0])
        elif kind == "file":
            self.files.append((facts[0], facts[1]))
        elif kind == "parameters":
            self.parameters.update(flatten(facts[0]))
            self.parameter_calls += 1
        elif kind == "end":
            self.ended = True

    @property
    def count(self) -> int:
        return sum(map(len, self.points.values())) + len(self.logs) + len(self.files) + self.parameter_calls

    @property
    def epochs(self) -> int:
        return len(self.points.get("loss", ()))


@dataclass(frozen=True)
class Count:
    """Acknowledged by calls, found again as it was, and found beyond that.

    Beyond may be one for each kill: what the call had written that was going on. More would be doubled.
    """

    acknowledged: int
    recovered: int
    beyond: int

    @property
    def complete(self) -> bool:
        return self.acknowledged == self.recovered and self.beyond <= 1


def free_name(path: Path | None) -> str:
    """The first of iris-1, iris-2, ... that no experiment in `path` has."""
    try:
        taken = {located.name for located in read.find(path, PROJECT)}
    except NotFound:
        taken = set()
    number = 1
    while f"iris-{number}" in taken:
        number += 1
    return f"iris-{number}"


def run(
    name: str,
    path: Path | None,
    *,
    kill_after: int | None,
    progress: Progress,
    env: Mapping[str, str] | None = None,
    cues: Cues | None = None,
) -> Acknowledged:
    """Trains in a process of its own, and kills it after `kill_after` calls; what it was told until then.

    Without `kill_after` the experiment must exist, and training goes on to its end. `env` is that of the process.
    """
    resume = "must" if kill_after is None else "never"
    command = [sys.executable, str(Path(__file__).with_name("victim.py")), name, str(path or ""), resume]
    told = Acknowledged()
    env = environment({}) if env is None else env
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env, start_new_session=True) as process:
        watchdog = threading.Timer(SILENCE_S, process.kill)
        watchdog.start()
        try:
            _listen(process, told, kill_after, progress, cues or {})
        finally:
            watchdog.cancel()
            process.kill()
    _check(told, process.returncode, kill_after)
    return told


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """For our processes: they find the same modules as we do, installed or not, and no server but the one in `more`.

    Nor a proxy on the way to it.
    """
    kept = {name: value for name, value in os.environ.items() if name not in _NOT_OURS}
    ours = {"ML_DASH_QUIET": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "NO_PROXY": "127.0.0.1"}
    return {**kept, **ours, **more}


_NOT_OURS = frozenset(
    [
        *("ML_DASH_DISABLED", "ML_DASH_REMOTE", "ML_DASH_USER_NAME", "ML_DASH_API_KEY", "ML_DASH_EXIT_WAIT"),
        *("ML_DASH_JWT_SECRET", "JWT_SECRET", "JWT_EXPIRATION", "MONGODB_URI", "S3_BUCKET", "S3_ENDPOINT", "PORT"),
        *("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "CREDENTIALS_DIRECTORY", "no_proxy"),
    ]
)


def _listen(
    process: subprocess.Popen[bytes], told: Acknowledged, kill_after: int | None, progress: Progress, cues: Cues
) -> None:
    """Notes every line up to the end of the pipe: what was said before the kill counts, if read later too."""
    assert process.stdout is not None
    waiting = sorted(cues)
    for line in process.stdout:
        if not line.endswith(b"\n"):
            return
        kind, *facts = json.loads(line)
        told.note(kind, facts)
        while waiting and told.count >= waiting[0]:
            cues[waiting.pop(0)]()
        if kind == "point" and facts[0] == "loss":
            progress(facts[1]["epoch"] + 1)
        if kill_after is not None and told.count >= kill_after and not told.killed:
            process.kill()
            told.killed = True


def _check(told: Acknowledged, code: int, kill_after: int | None) -> None:
    if kill_after is None and (code or not told.ended):
        raise DemoError(f"the resumed training stopped with exit code {code} after {told.epochs} epochs")
    if kill_after is not None and not told.killed:
        raise DemoError(f"training stopped with exit code {code} after {told.epochs} epochs, by itself")
    if kill_after is not None and told.ended:
        raise DemoError("training ended before the kill reached it", hint="this machine is busy; try again")


def count(view: View, told: list[Acknowledged]) -> Count:
    """Compares what is on disk, in order and value by value, with what these processes were told."""
    metrics = {name for part in told for name in part.points}
    pairs: list[tuple[Sequence[object], Sequence[object]]] = [
        (_points(view, name), [point for part in told for point in part.points.get(name, ())]) for name in metrics
    ]
    messages = [entry["message"] for entry in view.logs()["logs"]]
    pairs.append((messages, [message for part in told for message in part.logs]))
    files = [(record["id"], record["checksum"]) for record in view.files(deleted=True)]
    pairs.append((files, [file for part in told for file in part.files]))
    calls = sum(part.parameter_calls for part in told)
    expected = {key: value for part in told for key, value in part.parameters.items()}
    recovered, beyond = (calls if view.parameters() == expected else 0), 0
    for found, wanted in pairs:
        matched = _matched(found, wanted)
        recovered, beyond = recovered + matched, beyond + len(found) - matched
    return Count(acknowledged=sum(part.count for part in told), recovered=recovered, beyond=beyond)


def _matched(found: Sequence[object], wanted: Sequence[object]) -> int:
    """How many of `wanted` are in `found`, in that order and each at a place of its own."""
    position = 0
    for item in found:
        if position < len(wanted) and item == wanted[position]:
            position += 1
    return position


def _points(view: View, name: str) -> list[dict[str, Any]]:
    return [point["data"] for point in view.metric_page(name, 0, MAX_LIMIT)["data"]]
