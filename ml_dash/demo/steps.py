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

from ml_dash.core.json_values import flatten
from ml_dash.core.limits import MAX_LIMIT
from ml_dash.demo.train import BATCH, EPOCHS, HELD_OUT
from ml_dash.errors import MLDashError, NotFound
from ml_dash.reading import read
from ml_dash.reading.view import View

SILENCE_S = 60.0
"""A training that takes longer than this is killed."""

PROJECT = "demo"
POINTS = EPOCHS * ((150 - HELD_OUT) // BATCH + 2)
"""Number of points that an uninterrupted training records."""

Progress = Callable[[int], None]
"""A function that is called with the number of epochs that have ended."""

Actions = Mapping[int, Callable[[], None]]
"""Number of acknowledged calls → what to do at that point, while the training goes on."""


class DemoError(MLDashError):
    """The demo did not go as it should; the message says where."""


@dataclass
class Acknowledged:
    """The calls of one training process that have returned, and what they recorded."""

    points: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    logs: list[str] = field(default_factory=list)
    files: list[tuple[str, str]] = field(default_factory=list)
    parameters: dict[str, Any] = field(default_factory=dict)
    parameter_calls: int = 0
    killed: bool = False
    ended: bool = False

    def note(self, kind: str, facts: list[Any]) -> None:
        """Count a call that the process has reported."""
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
        """Number of calls."""
        return sum(map(len, self.points.values())) + len(self.logs) + len(self.files) + self.parameter_calls

    @property
    def epochs(self) -> int:
        """Number of epochs that have ended."""
        return len(self.points.get("loss", ()))


@dataclass(frozen=True)
class Count:
    """Numbers of calls acknowledged, found again as they were, and found in addition.

    One in addition may be found for each kill: a call that had written, and not yet returned. More would be doubles.
    """

    acknowledged: int
    recovered: int
    beyond: int

    @property
    def complete(self) -> bool:
        """True if nothing is lost and nothing doubled."""
        return self.acknowledged == self.recovered and self.beyond <= 1


def free_name(path: Path | None) -> str:
    """Return the first of iris-1, iris-2, ... that is not the name of an experiment in `path`."""
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
    actions: Actions | None = None,
) -> Acknowledged:
    """Train in a process of its own, and kill it after `kill_after` calls; return the calls that it reported.

    With `kill_after` None, the experiment must exist, and training goes on to its end. `env` is the environment of the
    process (default: `environment({})`). Raises DemoError if the process ends in another way than it should.
    """
    resume = "must" if kill_after is None else "never"
    command = [sys.executable, str(Path(__file__).with_name("training_process.py")), name, str(path or ""), resume]
    acknowledged = Acknowledged()
    env = environment({}) if env is None else env
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env, start_new_session=True) as process:
        watchdog = threading.Timer(SILENCE_S, process.kill)
        watchdog.start()
        try:
            _listen(process, acknowledged, kill_after, progress, actions or {})
        finally:
            watchdog.cancel()
            process.kill()
    _check(acknowledged, process.returncode, kill_after)
    return acknowledged


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """Return an environment for the demo's processes, with the variables `more`.

    They import the modules of this process, installed or not, and know no server but one in `more`, and no proxy.
    """
    kept = {name: value for name, value in os.environ.items() if name not in _NOT_OURS}
    ours = {"ML_DASH_QUIET": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "NO_PROXY": "127.0.0.1"}
    return {**kept, **ours, **more}


_NOT_OURS = frozenset(
    [
        *("ML_DASH_DISABLED", "ML_DASH_REMOTE", "ML_DASH_USER_NAME", "ML_DASH_API_KEY", "ML_DASH_EXIT_WAIT"),
        *("ML_DASH_JWT_SECRET", "JWT_SECRET", "JWT_EXPIRATION", "MONGODB_URI", "PORT"),
        *("S3_BUCKET", "S3_ENDPOINT", "S3_REGION", "S3_FORCE_PATH_STYLE", "S3_ACCESS_KEY", "S3_SECRET_KEY"),
        "S3_PUBLIC_URL",
        *("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "CREDENTIALS_DIRECTORY", "no_proxy"),
    ]
)


def _listen(
    process: subprocess.Popen[bytes],
    acknowledged: Acknowledged,
    kill_after: int | None,
    progress: Progress,
    actions: Actions,
) -> None:
    """Note every reported call up to the end of the pipe, also those that are read only after the kill."""
    assert process.stdout is not None
    waiting = sorted(actions)
    for line in process.stdout:
        if not line.endswith(b"\n"):
            return
        kind, *facts = json.loads(line)
        acknowledged.note(kind, facts)
        while waiting and acknowledged.count >= waiting[0]:
            actions[waiting.pop(0)]()
        if kind == "point" and facts[0] == "loss":
            progress(facts[1]["epoch"] + 1)
        if kill_after is not None and acknowledged.count >= kill_after and not acknowledged.killed:
            process.kill()
            acknowledged.killed = True


def _check(acknowledged: Acknowledged, code: int, kill_after: int | None) -> None:
    """Raise DemoError if the training was not killed, or did not end, as it should."""
    if kill_after is None and (code or not acknowledged.ended):
        raise DemoError(f"the resumed training stopped with exit code {code} after {acknowledged.epochs} epochs")
    if kill_after is not None and not acknowledged.killed:
        raise DemoError(f"training stopped with exit code {code} after {acknowledged.epochs} epochs, by itself")
    if kill_after is not None and acknowledged.ended:
        raise DemoError("training ended before the kill reached it", hint="this machine is busy; try again")


def count(view: View, processes: list[Acknowledged]) -> Count:
    """Compare what is on disk, in order and value by value, with the calls that these processes reported."""
    metrics = {name for process in processes for name in process.points}
    pairs: list[tuple[Sequence[object], Sequence[object]]] = [
        (_points(view, name), [point for process in processes for point in process.points.get(name, ())])
        for name in metrics
    ]
    messages = [entry["message"] for entry in view.logs()["logs"]]
    pairs.append((messages, [message for process in processes for message in process.logs]))
    files = [(record["id"], record["checksum"]) for record in view.files(deleted=True)]
    pairs.append((files, [file for process in processes for file in process.files]))
    calls = sum(process.parameter_calls for process in processes)
    expected = {key: value for process in processes for key, value in process.parameters.items()}
    recovered, beyond = (calls if view.parameters() == expected else 0), 0
    for found, wanted in pairs:
        matched = _matched(found, wanted)
        recovered, beyond = recovered + matched, beyond + len(found) - matched
    return Count(acknowledged=sum(process.count for process in processes), recovered=recovered, beyond=beyond)


def _matched(found: Sequence[object], wanted: Sequence[object]) -> int:
    """Number of items of `wanted` that are in `found`, in that order and each at a position of its own."""
    position = 0
    for item in found:
        if position < len(wanted) and item == wanted[position]:
            position += 1
    return position


def _points(view: View, name: str) -> list[dict[str, Any]]:
    return [point["data"] for point in view.metric_page(name, 0, MAX_LIMIT)["data"]]
