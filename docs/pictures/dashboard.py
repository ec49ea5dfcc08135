"""Pictures of the dashboard for README and these pages: real runs, recorded now, shown by `ml-dash ui` in Chromium.

    python docs/pictures/dashboard.py        writes *.png beside itself; needs chromium, and the packages of [dev]
"""

from __future__ import annotations

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
    from playwright.sync_api import Browser

HERE = Path(__file__).parent
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
WIDE, NARROW = {"width": 1400, "height": 860}, {"width": 400, "height": 860}
STEPS = 3000


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
        report = HERE.parent / "index.md"
        experiment.file(str(report), prefix="/reports", description="what the model is for")
        experiment.notes = "Resumed from the checkpoint of **step 1,500** after the node was taken away.\n"
    try:
        with Experiment(name="resnet152", project="cifar10", local_path=str(store), tags=["large"]) as experiment:
            experiment.parameters().set(lr=0.01, seed=0, optimizer="sgd", model={"depth": 152})
            _curves(experiment, random.Random(9), 0.01, 152, 0, 400)
            raise MemoryError("out of memory at batch 412: tried to allocate 2.0 GiB")
    except MemoryError:
        pass
    return [str(experiment.id) for experiment in ()] + ids


def _curves(experiment: Experiment, draw: random.Random, lr: float, depth: int, first: int, end: int) -> None:
    speed = 1 / (200 + 90 * abs(math.log10(lr) + 2.5) ** 2 * 3)
    floor = 0.25 + 0.08 * abs(math.log10(lr) + 2.5) - depth / 1000
    loss = [
        {"value": floor + 2.1 * math.exp(-step * speed) + draw.gauss(0, 0.04), "step": step}
        for step in range(first, end)
    ]
    experiment.metric("train/loss").append_batch(loss)
    rows = [
        {"value": 1 - (floor + 2.1 * math.exp(-step * speed)) / 2.6 + draw.gauss(0, 0.006), "step": step}
        for step in range(first, end, 50)
    ]
    experiment.metric("val/accuracy").append_batch(rows)
    experiment.metric("val/loss").append_batch([{**row, "value": 1.1 * (1 - row["value"])} for row in rows])
    experiment.metric("optimizer/lr").append_batch([{"value": lr * 0.999**step, "step": step} for step in range(first, end, 10)])
    for step in range(first, end, 100):
        level = "warn" if draw.random() < 0.08 else "info"
        message = "gradient norm above 10, clipped" if level == "warn" else f"step {step:,}: loss {loss[step - first]['value']:.4f}"
        experiment.log(message, level=level, step=step)


def _killed(store: Path) -> None:
    """Record the first part of a run in a process that is killed."""
    program = (
        "import os, random, signal, sys; sys.path.insert(0, sys.argv[1])\n"
        "from dashboard import _curves; from ml_dash import Experiment\n"
        "experiment = Experiment(name='resnet50-long', project='cifar10', local_path=sys.argv[2], "
        "tags=['baseline'], description='The long one').open()\n"
        "experiment.parameters().set(lr=0.01, seed=0, optimizer='adam', model={'depth': 50})\n"
        "_curves(experiment, random.Random(4), 0.01, 50, 0, 1800)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(HERE), str(store)], check=False)
    assert done.returncode == -signal.SIGKILL


def shoot(browser: Browser, link: str, chosen: list[str], long: str) -> None:
    """Take the pictures, light and dark, wide and narrow."""
    base = link.partition("/login")[0]
    screens = {
        "runs": "/runs?sort=metrics.val/accuracy.max%3Adesc&columns=status,params.lr,params.model.depth,params.optimizer,"
        "metrics.val/accuracy.max,metrics.train/loss,duration,tags",
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
                page.wait_for_load_state("networkidle" if name == "login" else "load")
                page.wait_for_function("document.querySelector('main') && !document.querySelector('.loading')")
                # Curves come in two steps; what is drawn is compared until it stays.
                _until_still(page)
                suffix = ("" if size is WIDE else "-narrow") + ("" if scheme == "light" else "-dark")
                page.screenshot(path=HERE / f"{name}{suffix}.png")


def _until_still(page: object) -> None:
    before = None
    while (now := page.screenshot()) != before:  # type: ignore[attr-defined]
        before = now
        page.wait_for_timeout(700)  # type: ignore[attr-defined]


def main() -> None:
    """Record, show, and take the pictures."""
    with tempfile.TemporaryDirectory() as scratch:
        store = Path(scratch) / ".ml-dash"
        os.environ["ML_DASH_QUIET"] = "1"
        ids = record(store)
        process = subprocess.Popen(
            [sys.executable, "-m", "ml_dash", "ui", str(store), "--no-open", "--port", "0"], stdout=subprocess.PIPE, text=True
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
    main()
