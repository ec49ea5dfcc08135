"""Clients that load a server directly and remember every promise: each 200 is something that must be there for ever."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from .asking import Address, Answer, Asked, Client
from .pens import WriterFixture

UNAVAILABLE: Final = "unavailable"
FINISH_S: Final = 20.0
NO_ANSWER: Final = (OSError, http.client.HTTPException)


@dataclass
class Promises:
    """What a server has answered 200 to."""

    # (journal, segment) → length; (journal, blob) that is whole
    segments: dict[tuple[str, str], int] = field(default_factory=dict)
    blobs: set[tuple[str, str]] = field(default_factory=set)
    # experiment → messages that were answered, and that were sent
    logs: dict[str, list[str]] = field(default_factory=dict)
    sent_logs: dict[str, list[str]] = field(default_factory=dict)
    points: dict[str, list[int]] = field(default_factory=dict)
    sent_points: dict[str, list[int]] = field(default_factory=dict)
    parameters: dict[str, dict[str, Any]] = field(default_factory=dict)
    experiments: set[str] = field(default_factory=set)
    count: int = 0
    unexpected: list[str] = field(default_factory=list)

    def check(self, address: Address) -> list[str]:
        """What is not there although it was promised, or is there twice."""
        problems: list[str] = []
        with Client(address) as client:
            states: dict[str, Any] = {}
            for journal in {journal for journal, _ in (*self.segments, *self.blobs)}:
                states[journal] = client.journal(journal) or {"segments": {}, "blobs": {}, "missing": ["all"]}
            for (journal, segment), length in self.segments.items():
                there = states[journal]["segments"].get(segment, {"length": 0})["length"]
                if there < length:
                    problems.append(f"segment {segment}: {length} bytes were acknowledged, {there} are there")
            for journal, blob in self.blobs:
                # One whose file was replaced since is neither there nor missed.
                if blob in states[journal]["missing"] or "all" in states[journal]["missing"]:
                    problems.append(f"blob {blob} was acknowledged and is not whole")
            for experiment in self.experiments:
                problems += self._check_rest(client, experiment)
        return problems

    def _check_rest(self, client: Client, experiment: str) -> list[str]:
        entries = client.logs(experiment)
        problems = _once("logs", [e["message"] for e in entries], self.logs, self.sent_logs, experiment)
        if experiment in self.points:
            found = [point["data"]["step"] for point in client.points(experiment, "rest")]
            problems += _once("points", found, self.points, self.sent_points, experiment)
        parameters = client.parameters(experiment)
        for key, value in self.parameters.get(experiment, {}).items():
            if parameters.get(key) != value:
                problems.append(f"parameter {key} was acknowledged as {value}, it is {parameters.get(key)}")
        return problems


def _once(what: str, found: list[Any], acked: dict[str, Any], sent: dict[str, Any], experiment: str) -> list[str]:
    promised, tried = acked.get(experiment, []), set(sent.get(experiment, []))
    problems = []
    if lost := set(promised) - set(found):
        problems.append(f"{len(lost)} of {len(promised)} {what} that were answered are gone, such as {min(lost)!r}")
    if len(found) != len(set(found)):
        problems.append(f"{what}: {len(found) - len(set(found))} are there twice")
    if invented := set(found) - tried:
        problems.append(f"{what}: {len(invented)} were never sent")
    order = [item for item in found if item in set(promised)]
    if not lost and order != promised:
        problems.append(f"{what} are not in the order in which they were answered")
    return problems


class Shipper:
    """Sends a pen's segments and blobs over the protocol, a few frames at a time."""

    def __init__(self, pen: WriterFixture, promises: Promises, rng: random.Random, *, alone: bool = True) -> None:
        """Not `alone`: others send the same."""
        self.pen = pen
        self._alone = alone
        self.promises = promises
        self.rng = rng
        self.offsets: dict[Path, int] = {}

    @property
    def journal(self) -> str:
        """The journal's id."""
        return self.pen.place.identity.hex()

    def step(self, client: Client) -> None:
        """One more request. OSError or HTTPException if there is no answer."""
        for _ in range(self.rng.randrange(1, 6)):
            self.pen.any(self.rng)
        if self.rng.random() < 0.25 and self._send_a_blob(client):
            return
        self.send_frames(client)

    def send_frames(self, client: Client) -> bool:
        """What is new, in order of the segments. True if the server is to be asked again later."""
        for path in sorted(self.pen.place.segments.glob("*.seg")):
            data = path.read_bytes()
            offset = self.offsets.get(path, 0)
            if offset >= len(data):
                continue
            answer = client.post_segment(self.journal, path.name, offset, data[offset:])
            if answer.status == 200:
                length = answer.json()["length"]
                if not offset < length <= len(data):
                    self.promises.unexpected.append(f"bytes [{offset}, {len(data)}) were answered with length {length}")
                self.offsets[path] = length
                self.promises.count += 1
                self.promises.segments[self.journal, _segment_id(data)] = length
            elif answer.code == "gap":
                self.offsets[path] = answer.json()["length"]
            else:
                self._unexpected(answer, "frames")
            return answer.code == UNAVAILABLE
        return False

    def _send_a_blob(self, client: Client) -> bool:
        done = {name for journal, name in self.promises.blobs if journal == self.journal}
        left = [path for path in sorted(self.pen.place.blobs.iterdir()) if path.name not in done]
        if not left:
            return False
        path = self.rng.choice(left)
        state = client.ask("GET", f"/sync/v1/journals/{self.journal}/blobs/{path.name}/state")
        if state.status != 200:
            self._unexpected(state, "the state of a blob")
            return True
        have = state.json()["length"]
        data = path.read_bytes()
        end = len(data) if self.rng.random() < 0.5 else self.rng.randrange(have, len(data) + 1)
        answer = client.put_blob(self.journal, path.name, have, len(data), data[have:end])
        if answer.status == 200:
            self.promises.count += 1
            if answer.json()["complete"]:
                self.promises.blobs.add((self.journal, path.name))
        else:
            self._unexpected(answer, "a blob")
        return True

    def _unexpected(self, answer: Answer, what: str) -> None:
        expected = ("no_event", "busy", "unavailable") if self._alone else ("no_event", "busy", "unavailable", "gap")
        if answer.code not in expected:
            self.promises.unexpected.append(f"{what}: {answer.status} {answer.body[:200]!r}")

    def finish(self, client: Client) -> None:
        """All that is left, frames and then blobs."""
        deadline = time.monotonic() + FINISH_S
        for _ in range(1000):
            before = dict(self.offsets)
            again = self.send_frames(client)
            if again and time.monotonic() < deadline:
                # A killed server has left a lease, which runs out.
                threading.Event().wait(0.05)
            elif self.offsets == before:
                break
        for path in sorted(self.pen.place.blobs.iterdir()):
            data = path.read_bytes()
            state = client.ask("GET", f"/sync/v1/journals/{self.journal}/blobs/{path.name}/state").json()
            if not state["complete"]:
                answer = client.put_blob(self.journal, path.name, state["length"], len(data), data[state["length"] :])
                if answer.status != 200:
                    self._unexpected(answer, "the rest of a blob")


def _segment_id(data: bytes) -> str:
    from tests.crash.oracle_reader import read_header

    return read_header(data).segment.hex()


class Poster:
    """Writes by REST, and never repeats a request."""

    def __init__(self, project: str, name: str, promises: Promises, rng: random.Random) -> None:
        self.project, self.name = project, name
        self.promises = promises
        self.rng = rng
        self.experiment = ""
        self.number = 0

    def step(self, client: Client) -> None:
        """One more request."""
        if not self.experiment:
            made = client.json("POST", f"/projects/{self.project}/experiments", {"name": self.name})
            self.experiment = str(made["experiment"]["id"])
            self.promises.experiments.add(self.experiment)
            return
        self.number += 1
        self.rng.choice((self._log, self._point, self._parameter))(client)

    def _log(self, client: Client) -> None:
        texts = [f"{self.name} {self.number}.{part} " + "z" * self.rng.randrange(80) for part in range(3)]
        self.promises.sent_logs.setdefault(self.experiment, []).extend(texts)
        if self._post(client, "logs", {"logs": [{"level": "info", "message": text} for text in texts]}):
            self.promises.logs.setdefault(self.experiment, []).extend(texts)

    def _point(self, client: Client) -> None:
        steps = [self.number * 10 + part for part in range(self.rng.randrange(1, 4))]
        self.promises.sent_points.setdefault(self.experiment, []).extend(steps)
        points = [{"value": step / 2, "step": step} for step in steps]
        if self._post(client, "metrics/rest/append-batch", {"dataPoints": points}):
            self.promises.points.setdefault(self.experiment, []).extend(steps)

    def _parameter(self, client: Client) -> None:
        key = f"k{self.number}"
        if self._post(client, "parameters", {"data": {key: self.number}}):
            self.promises.parameters.setdefault(self.experiment, {})[key] = self.number

    def _post(self, client: Client, path: str, value: Any) -> bool:
        body = json.dumps(value).encode()
        headers = {"Content-Type": "application/json"}
        answer = client.ask("POST", f"/experiments/{self.experiment}/{path}", body, headers=headers)
        if answer.status in (200, 201):
            self.promises.count += 1
            return True
        if answer.status not in (429, 503):
            self.promises.unexpected.append(f"POST {path}: {answer.status} {answer.body[:200]!r}")
        return False


Loader = Shipper | Poster


@contextmanager
def enduring(address: Address, loaders: Sequence[Loader]) -> Iterator[None]:
    """Each loader in a thread to the end of the block, whether it is answered or not."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def work(loader: Loader) -> None:
        try:
            while not stop.is_set():
                # `Asked`: an experiment could not be made for now.
                with suppress(*NO_ANSWER, Asked), Client(address, timeout_s=8) as client:
                    while not stop.is_set():
                        loader.step(client)
                stop.wait(0.01)
        except BaseException as error:  # noqa: BLE001 - raised in the trial
            failures.append(error)

    threads = [threading.Thread(target=work, args=(loader,), name="loader") for loader in loaders]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


@contextmanager
def loading(address: Address, loaders: list[Loader]) -> Iterator[threading.Event]:
    """Each loader in a thread, until the server no longer answers or the event is set."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def work(loader: Loader) -> None:
        try:
            with Client(address) as client:
                while not stop.is_set():
                    loader.step(client)
        except NO_ANSWER:
            return
        except BaseException as error:  # noqa: BLE001 - raised in the trial
            failures.append(error)

    threads = [threading.Thread(target=work, args=(loader,), name="loader") for loader in loaders]
    for thread in threads:
        thread.start()
    try:
        yield stop
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
