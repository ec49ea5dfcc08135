"""Write the golden journal of a new format version: `python -m tests.golden.make v1`, once, before its release.

What is there is never made anew: that later versions still read it is what it is for. Two writers, every kind of event,
a body that became a blob, values that JSON cannot hold, a file that was replaced and one that was deleted, and a second
writer that was killed in the middle of a frame.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from ml_dash.journal.reader import Frame, scan

HERE = Path(__file__).parent
LARGE_BYTES = 100_000

FIRST = """
import math
from pathlib import Path
from ml_dash import Experiment

experiment = Experiment(
    name="every kind", project="golden", description="written once", tags=["a", "b"], folder="kept",
    metadata={"n": 1, "nested": {"list": [1, None, True]}}, local_path="store",
).open()
for level in ("debug", "info", "warn", "error", "fatal"):
    experiment.log(f"at {level}", level=level, metadata={"level": level}, extra=1)
experiment.log("no metadata: äöü € 🎈")
experiment.log("empty metadata", metadata={})
experiment.log("large", metadata={"text": "x" * 1_100_000})
experiment.parameters().set(lr=0.1, model={"layers": [64, 64], "name": "mlp"}, flag=True, nothing=None)
experiment.parameters().set({"lr": 0.01, "model": {"name": "cnn"}, "raw": b"bytes"})
for step in range(1500):
    experiment.metric("train/loss").append(value=1 / (step + 1), step=step)
experiment.metric("odd", description="values", tags=["v"], metadata={"unit": None}).append(
    nan=math.nan, up=math.inf, down=-math.inf, minus_zero=-0.0, tiny=5e-324, big=2**64 - 1, low=-(2**63)
)
experiment.metric("odd").append(value="NaN", text="Infinity", raw=b"\\x00\\xff", step=1)
experiment.metric("fast").append_batch([{"value": i / 7, "step": i} for i in range(2500)])
experiment.metric("varied").append_batch([{"a": 1}, {"b": 2.5, "step": 3}, {"a": 2, "b": None}])
experiment.metric("..").append(value=1)
experiment.metric("a//b").append(value=1, epoch=1)
experiment.metric("data.jsonl/Über").append(value=1)
Path("model.bin").write_bytes(b"first")
experiment.file("model.bin", prefix="/models", tags=["old"], metadata={"epoch": 1})
Path("model.bin").write_bytes(b"second, longer")
kept = experiment.file("model.bin", prefix="/models", description="current")
Path("note.txt").write_text("to be deleted")
deleted = experiment.file("note.txt")
experiment.file(file_id=kept["id"], tags=["new"]).update()
experiment.file(file_id=deleted["id"]).delete()
experiment.update(description="changed", tags=["c"])
try:
    raise ValueError("on purpose")
except ValueError:
    experiment.close()
"""

SECOND = """
from ml_dash import Experiment

experiment = Experiment(name="every kind", project="golden", local_path="store").open()
experiment.parameters().set(lr=0.001)
for step in range(1500, 1600):
    experiment.metric("train/loss").append(value=1 / (step + 1), step=step)
experiment.log("the last words")
print("ready", flush=True)
input()
"""


def make(version: str) -> None:
    target = HERE / version
    if target.exists():
        sys.exit(f"{target} is there already; golden journals are never made anew")
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch) / "train"
        home.mkdir()
        _run(FIRST, home)
        _run_and_kill(SECOND, home)
        store = home / "store"
        journal = store / "golden" / "every kind" / ".journal"
        last = max((journal / "segments").glob("*.seg"), key=lambda path: path.name)
        frame = [item for item in scan(last) if isinstance(item, Frame)][-1]
        torn = last.read_bytes()[frame.offset :][:25]
        with last.open("ab") as file:
            file.write(torn)  # the last thing it wrote did not come to its end
        command = [sys.executable, "-m", "ml_dash", "rebuild", "--path", str(store)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        folder = journal.parent
        for name in ("checkpoint", "turn.lock"):
            (journal / name).unlink()
        shutil.copytree(journal, target / "journal")
        _keep_folder(folder, target)
    print(f"{target}: {sum(p.stat().st_size for p in target.rglob('*') if p.is_file()):,} bytes")


def _keep_folder(folder: Path, target: Path) -> None:
    """The small files as they are, of all of them the SHA-256."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if not path.is_file() or inside.parts[0] == ".journal":
            continue
        content = path.read_bytes()
        digests[inside.as_posix()] = hashlib.sha256(content).hexdigest()
        if len(content) <= LARGE_BYTES:
            (target / "folder" / inside).parent.mkdir(parents=True, exist_ok=True)
            (target / "folder" / inside).write_bytes(content)
    (target / "folder.json").write_text(json.dumps(digests, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _run(program: str, home: Path) -> None:
    subprocess.run([sys.executable, "-c", program], cwd=home, env=_environment(home), check=True)


def _run_and_kill(program: str, home: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=home, env=_environment(home), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGKILL)
    child.communicate()


def _environment(home: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": str(home), "ML_DASH_QUIET": "1"}


if __name__ == "__main__":
    make(sys.argv[1])
