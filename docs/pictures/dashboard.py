"""Pictures of the dashboard for README and these pages: real runs, recorded now, shown by `ml-dash ui` in Chromium.

python docs/pictures/dashboard.py        writes *.png beside itself; needs chromium, and the packages of [dev]
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from playwright.sync_api import sync_playwright

from ml_dash import Experiment

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HERE = Path(__file__).parent
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
WIDE, NARROW = {"width": 1400, "height": 860}, {"width": 400, "height": 860}
STEPS = 3000
FILES = {
    "report.md": b"# Where it stands\n\nThe learning rate was lowered after the node was taken away.\n\n"
    b"| run | accuracy |\n|---|---|\n| before | 0.912 |\n| after | 0.929 |\n",
    "classes.json": b'{"airplane": 0, "automobile": 1, "bird": 2, "cat": 3, "deer": 4, "dog": 5}',
    "confusion.csv": b"class,right,wrong\ncat,812,188\ndog,871,129\nbird,903,97\n",
    "checkpoint.bin": bytes(range(256)) * 4096,
}
"""What the long run keeps beside its numbers."""


def record(store: Path) -> list[str]:
    """Record a sweep, a run that was killed and went on from its checkpoint, and one that failed; return some ids."""
    ids = []
    for number in range(24):
        draw = random.Random(number)
        lr, depth, seed = 10 ** draw.uniform(-4, -1), (18, 34, 50)[number % 3], number // 3
        with Experiment(
            name=f"resnet{depth}-{number:02}", project="cifar10", local_path=str(store), folder="sweep-1",
            tags=["baseline"] if seed % 2 else ["augmented"], description="ResNet on CIFAR-10",
        ) as experiment:  # fmt: skip
            experiment.parameters().set(
                lr=float(f"{lr:.2g}"), seed=seed, optimizer=draw.choice(["adam", "sgd"]), model={"depth": depth}
            )
            _curves(experiment, draw, lr, depth, 0, STEPS)
        ids.append(str(experiment.id))
    _killed(store)
    with Experiment(name="resnet50-long", project="cifar10", local_path=str(store)) as experiment:
        experiment.rewind(1500)
        experiment.parameters().set(lr=0.003)
        draw = random.Random(5)
        _curves(experiment, draw, 0.003, 50, 1500, STEPS)
        for name, content in FILES.items():
            (store.parent / name).write_bytes(content)
            experiment.file(str(store.parent / name), prefix="/" + name.partition(".")[0])
        experiment.notes = "Resumed from the checkpoint of **step 1,500** after the node was taken away.\n"
    with (
        contextlib.suppress(MemoryError),
        Experiment(name="resnet152", project="cifar10", local_path=str(store), tags=["large"]) as experiment,
    ):
        experiment.parameters().set(lr=0.01, seed=0, optimizer="sgd", model={"depth": 152})
        _curves(experiment, random.Random(9), 0.01, 152, 0, 400)
        raise MemoryError("out of memory at batch 412: tried to allocate 2.0 GiB")
    return ids


def _curves(experiment: Experiment, draw: random.Random, lr: float, depth: int, first: int, end: int) -> None:
    away = abs(math.log10(lr) + 2.5)
    speed, floor = 1 / (200 + 270 * away**2), 0.25 + 0.08 * away - depth / 1000
    loss = [floor + 2.1 * math.exp(-step * speed) + draw.gauss(0, 0.04) for step in range(end)]
    curves = {
        "train/loss": (1, lambda step: loss[step]),
        "train/accuracy": (1, lambda step: 1 - loss[step] / 2.7 + draw.gauss(0, 0.01)),
        "train/grad_norm": (1, lambda step: 0.8 + 6 * math.exp(-step * speed) * draw.lognormvariate(0, 0.3)),
        "val/loss": (50, lambda step: 1.08 * loss[step] + draw.gauss(0, 0.02)),
        "val/accuracy": (50, lambda step: 1 - loss[step] / 2.6 + draw.gauss(0, 0.006)),
        "val/top5": (50, lambda step: 1 - loss[step] / 9 + draw.gauss(0, 0.003)),
    }
    for name, (every, value) in curves.items():
        rows = [{"value": value(step), "step": step} for step in range(first, end, every)]
        experiment.metric(name).append_batch(rows)
    for step in range(first, end, 100):
        if draw.random() < 0.08:
            experiment.log("gradient norm above 10, clipped", level="warn", step=step)
        else:
            experiment.log(f"step {step:,}: loss {loss[step]:.4f}", step=step)


def _killed(store: Path) -> None:
    """Record the first part of a run in a process that is killed."""
    pid = os.fork()
    if not pid:
        experiment = Experiment(
            name="resnet50-long",
            project="cifar10",
            local_path=str(store),
            tags=["baseline"],
            description="The long one",
        ).open()
        experiment.parameters().set(lr=0.01, seed=0, optimizer="adam", model={"depth": 50})
        _curves(experiment, random.Random(4), 0.01, 50, 0, 1800)
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL


def shoot(browser: Browser, link: str, chosen: list[str], long: str) -> None:
    """Take the pictures, light and dark, wide and narrow."""
    base = link.partition("/login")[0]
    screens = {
        "runs": "/runs?sort=metrics.val/accuracy.max%3Adesc&columns=status,params.lr,params.model.depth,"
        "params.optimizer,metrics.val/accuracy.max,metrics.train/loss,duration,tags",
        "compare": f"/compare?runs={','.join(chosen)}&smooth=0.6",
        "run": f"/runs/{long}?tab=charts",
        "logs": f"/runs/{long}?tab=logs",
        "files": f"/runs/{long}?tab=files",
        "parameters": f"/runs/{long}?tab=parameters",
        "timeline": f"/runs/{long}?tab=timeline",
        "storage": "/storage",
    }
    context = browser.new_context(viewport=WIDE)  # type: ignore[arg-type]  # a mapping of these keys
    page = context.new_page()
    page.goto(link)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]  # one of these
        for size in (WIDE, NARROW):
            page.set_viewport_size(size)  # type: ignore[arg-type]
            for name, path in screens.items():
                page.goto(base + path)
                page.wait_for_selector("main h1, main [role=grid]")
                page.wait_for_selector("main [aria-busy=true]", state="detached")
                if name == "files":
                    page.get_by_text("report.md").first.click()
                # Curves come in two steps; what is drawn is compared until it stays.
                _until_still(page)
                suffix = ("" if size is WIDE else "-narrow") + ("" if scheme == "light" else "-dark")
                page.screenshot(path=HERE / f"{name}{suffix}.png")


def _until_still(page: Page) -> None:
    before = None
    while (now := page.screenshot()) != before:
        before = now
        page.wait_for_timeout(700)


def main() -> None:
    """Record, show, and take the pictures."""
    with tempfile.TemporaryDirectory() as scratch:
        store = Path(scratch) / ".ml-dash"
        # What is shown of the program that recorded is that of a user: a script in a folder of its own.
        script = Path(scratch) / "train.py"
        script.write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
        environment = {**os.environ, "ML_DASH_QUIET": "1"}
        told = subprocess.run(
            [sys.executable, str(script), str(store)], env=environment, stdout=subprocess.PIPE, check=True
        )
        ids = told.stdout.decode().split()
        process = subprocess.Popen(
            [sys.executable, "-m", "ml_dash", "ui", str(store), "--no-open", "--port", "0"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        link = next(line.split()[-1] for line in process.stdout if "http://" in line)
        long = str(Experiment(name="resnet50-long", project="cifar10", local_path=str(store)).id)
        try:
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
                shoot(browser, link, ids[3:9], long)
                browser.close()
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    if sys.argv[1:]:
        print(*record(Path(sys.argv[1])))
    else:
        main()
