"""Experiments to look at, recorded as users do: trained, killed, rewound, and such with hostile names."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ml_dash import Experiment

HOSTILE_NAME: Final = "<img src=x onerror=alert(1)>"
HOSTILE_TEXTS: Final = (
    HOSTILE_NAME, '"><script>alert(1)</script>', "javascript:alert(1)", "\x1b[31mred\x1b[0m \x1b]0;title\x07",
    "${alert(1)} {{alert(1)}}", "\u202egnp.exe", "a\u0000b".replace("\u0000", "\\0"), "&lt;b&gt; &amp;",
)  # fmt: skip
"""Markup, scripts, terminal escapes, templates, a text that runs backwards."""
SVG: Final = b'<svg xmlns="http://www.w3.org/2000/svg"><script>parent.stolen=1</script><g/></svg>'
HTML: Final = b"<!doctype html><script>parent.stolen = 1; fetch('/me')</script><h1>page</h1>"


def train(
    store: Path,
    name: str,
    project: str = "vision",
    *,
    steps: int = 50,
    metrics: Sequence[str] = ("loss", "accuracy"),
    seed: int = 0,
    parameters: Mapping[str, Any] | None = None,
    logs: int = 3,
    fails: str | None = None,
    **about: Any,
) -> str:
    """Records a run to its end, or to an error of that text; its id. Curves depend on the seed, and on nothing else."""
    experiment = Experiment(name=name, project=project, local_path=str(store), **about)
    try:
        with experiment:
            experiment.parameters().set(parameters or {"lr": 10 ** -(1 + seed % 4), "seed": seed, "model": "small"})
            for number in range(logs):
                experiment.log(f"epoch {number} done", level=("info", "warn", "error")[number % 3], epoch=number)
            for metric in metrics:
                experiment.metric(metric).append_batch(
                    [{"value": value_at(metric, step, seed), "step": step} for step in range(steps)]
                )
            if fails is not None:
                raise RuntimeError(fails)
    except RuntimeError as error:
        if fails is None or str(error) != fails:
            raise
    return str(experiment.id)


def value_at(metric: str, step: int, seed: int) -> float:
    """A curve: falling for a loss, else rising, with a ripple that differs by the seed."""
    ripple = 0.02 * math.sin(step / 3 + seed)
    falling = math.exp(-step / (20 + seed % 7)) + ripple
    return falling if "loss" in metric else 1 - falling


def many(store: Path, count: int, project: str = "sweep", steps: int = 20) -> list[str]:
    """Records that many short runs; their ids."""
    return [
        train(store, f"run-{number:04}", project, steps=steps, seed=number, logs=1, tags=[] if number % 2 else ["even"])
        for number in range(count)
    ]


def killed(store: Path, name: str = "killed", project: str = "vision", steps: int = 30) -> None:
    """Records a run in a process that is killed with SIGKILL in the middle."""
    program = f"""
import os, signal
from ml_dash import Experiment
experiment = Experiment(name={name!r}, project={project!r}, local_path={str(store)!r}).open()
for step in range({steps}):
    experiment.metric("loss").append(value=1 / (step + 1), step=step)
experiment.log("about to be killed")
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], env=os.environ.copy(), timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL


def rewound(store: Path, name: str = "rewound", project: str = "vision", steps: int = 40, back_to: int = 20) -> str:
    """Records a run that goes back to a step once, and on from there with other values; its id."""
    with Experiment(name=name, project=project, local_path=str(store)) as experiment:
        loss = experiment.metric("loss")
        loss.append_batch([{"value": 1.0 + step / 100, "step": step} for step in range(steps)])
        experiment.rewind(back_to)
        loss.append_batch([{"value": 0.5 - step / 1000, "step": step} for step in range(back_to, steps)])
        return str(experiment.id)


def hostile(store: Path, folder: Path) -> str:
    """Records a run whose every text and file wants to be more than text; its id."""
    with Experiment(
        name=HOSTILE_NAME, project="<b>hostile", local_path=str(store), description=HOSTILE_TEXTS[1],
        tags=list(HOSTILE_TEXTS[:3]),
    ) as experiment:  # fmt: skip
        experiment.parameters().set({"<i>key": HOSTILE_NAME, "link": HOSTILE_TEXTS[2], "proto": {"__proto__": 1}})
        for text in HOSTILE_TEXTS:
            experiment.log(text, level="warn", where=text)
        experiment.metric("<s>loss").append_batch([{"value": math.sin(step), "step": step} for step in range(20)])
        for name, content in (("page.html", HTML), ("picture.svg", SVG), ("<u>.txt", b"\x1b[31mred <b>text</b>\n")):
            path = folder / name
            path.write_bytes(content)
            experiment.file(str(path))
        return str(experiment.id)
