"""Makes the transcript of docs/remote.md: a server is killed for a minute while two processes record.

`python docs/pictures/outage.py` runs for two minutes and writes what happened between the markers of that page;
`--seconds N` for a shorter outage and `--print` to leave the page alone.

The trainers report every call when it has returned, with the time it took, to this process, which is not killed:
what must be on the server at the end is known from outside.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from ml_dash import Experiment
from ml_dash.demo.services import Services, sync_status
from ml_dash.reading import read

PAGE = Path(__file__).parent.parent / "remote.md"
PROJECT, NAME = "outage", "run"
RATE = 1000
FILE_EVERY = 5 * RATE
FILE_BYTES = 4 << 20
DRAIN_S = 60.0


def train(number: str) -> None:
    """Records RATE points a second until SIGTERM; says on stdout how many microseconds each call took."""
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    with Experiment(NAME, PROJECT) as experiment, tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder, f"checkpoint-{number}.bin")
        begun, step = time.perf_counter(), 0
        while not ending.is_set():
            if step % FILE_EVERY == FILE_EVERY - 1:
                checkpoint.write_bytes(os.urandom(FILE_BYTES))
                experiment.file(str(checkpoint), prefix=f"/checkpoints/{step}")
            before = time.perf_counter()
            experiment.metric(f"loss/{number}").append(value=1 / (step + 1), step=step)
            os.write(1, struct.pack("<f", 1e6 * (time.perf_counter() - before)))
            step += 1
            ahead = begun + step / RATE - time.perf_counter()
            if ahead > 0:
                time.sleep(ahead)


class Trainer:
    """A training process, and what it has reported: (when, microseconds of that call)."""

    def __init__(self, number: str, folder: Path, env: dict[str, str]) -> None:
        self.calls: list[tuple[float, float]] = []
        command = [sys.executable, __file__, "--train", number]
        self.process = subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE)
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        rest = b""
        while data := os.read(self.process.stdout.fileno(), 1 << 16):
            rest += data
            whole = len(rest) // 4 * 4
            now = time.monotonic()
            self.calls += [(now, microseconds) for (microseconds,) in struct.iter_unpack("<f", rest[:whole])]
            rest = rest[whole:]

    def end(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
        self.process.wait()
        self._listener.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Story:
    """Lines with the seconds since the beginning."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.add(f"{time.monotonic() - self.begun:6.1f} s  {text}")

    def add(self, text: str = "") -> None:
        self.lines.append(text)
        print(text, flush=True)

    def wait_until(self, second: float) -> None:
        time.sleep(max(0.0, self.begun + second - time.monotonic()))


def outage(folder: Path, away_s: float) -> tuple[list[str], bool]:
    """(the lines of the transcript, whether all that was acknowledged is on the server)"""
    before_s = 10.0
    with Services(folder / "services") as services:
        env = {**services.environment(), "ML_DASH_LOCAL_PATH": str(folder / "experiments")}
        story = Story()
        story.say("a server and the daemon run")
        trainers = [Trainer("a", folder, env), Trainer("b", folder, env)]
        story.say(f"two processes record {RATE:,} points a second each, and a file of {FILE_BYTES >> 20} MiB every 5 s")
        story.wait_until(before_s)
        services.kill_server()
        down = time.monotonic()
        story.say("the server is killed: SIGKILL")
        story.wait_until(before_s + away_s / 3)
        trainers[0].end(signal.SIGKILL)
        story.say("one of the two is killed: SIGKILL")
        story.wait_until(before_s + away_s / 2)
        trainers.append(Trainer("a", folder, env))
        story.say("and started again")
        story.wait_until(before_s + away_s)
        services.start_server()
        services.wait_for_server()
        up = time.monotonic()
        story.say(f"the server is started again, after {up - down:.0f} s, with the data that it had")
        story.wait_until(before_s + away_s + 20)
        for trainer in trainers[1:]:
            trainer.end(signal.SIGTERM)
        last = time.monotonic()
        story.say("training ends")
        complete, shown = sync_status(f"{PROJECT}/{NAME}", folder / "experiments", env)
        while not complete and time.monotonic() < last + DRAIN_S:
            time.sleep(0.1)
            complete, shown = sync_status(f"{PROJECT}/{NAME}", folder / "experiments", env)
        later = f"{time.monotonic() - last:.1f} s later"
        story.say(f"everything is on the server, {later}" if complete else f"not everything is there, {later}")

        calls = [call for trainer in trainers for call in trainer.calls]
        story.add()
        story.add("calls of append      number    median   99 % below   slowest")
        phases = {
            "before": [us for when, us in calls if when < down],
            "server away": [us for when, us in calls if down <= when < up],
            "server back": [us for when, us in calls if when >= up],
        }
        for title, times in phases.items():
            times.sort()
            row = f"{times[len(times) // 2]:6.1f} µs {times[len(times) * 99 // 100]:9.1f} µs {times[-1] / 1000:6.1f} ms"
            story.add(f"{title:<18} {len(times):>8,} {row}")
        view = read.view(read.locate(f"{PROJECT}/{NAME}", folder / "experiments"))
        found = sum(int(metric["totalDataPoints"]) for metric in view.metrics())
        story.add()
        story.add(f"acknowledged to the trainers {len(calls):,} points, recorded {found:,} (a kill may come after")
        story.add("the write and before its call returns)")
        story.add()
        story.add(f"$ ml-dash sync status {PROJECT}/{NAME}")
        story.add(shown.rstrip())
        return story.lines, complete and len(calls) <= found <= len(calls) + 1


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--train")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--print", action="store_true")
    arguments = parser.parse_args()
    if arguments.train:
        train(arguments.train)
        return
    with tempfile.TemporaryDirectory() as folder:
        lines, good = outage(Path(folder), arguments.seconds)
    if not good:
        raise SystemExit("not everything arrived")
    if not arguments.print:
        text = PAGE.read_text(encoding="utf-8")
        shown = "\n".join(["<!-- outage -->", "```text", *lines, "```", "<!-- /outage -->"])
        text, count = re.subn(r"(?s)<!-- outage -->.*?<!-- /outage -->", lambda _: shown, text)
        assert count == 1, f"{PAGE} has no markers"
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
