"""Other trackers, each in an environment of its own: how one records the same runs, and shows one metric of them all.

Environments and recordings are made once and kept in `~/.cache/ml-dash-tests/peers`. What reports home is switched
off, and what a server asks for elsewhere ends at a port of this machine where nobody listens.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Final
from urllib.error import URLError
from urllib.request import urlopen

CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ml-dash-tests" / "peers"
_INSTALL_S: Final = 900.0
_RECORD_S: Final = 1800.0
_START_S: Final = 180.0
_END_S: Final = 15.0

_VALUES: Final = """
import json, random, sys
folder, runs, points = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
def values(seed):
    draw = random.Random(seed)
    return [draw.random() + 1000 / (step + 1000) for step in range(points)]
"""
_TENSORBOARD: Final = """
from tensorboard.summary import Writer
for number in range(runs):
    writer = Writer(f"{folder}/run-{number}")
    for step, value in enumerate(values(number)):
        writer.add_scalar("loss", value, step)
    writer.close()
print("/#timeseries")
"""
_TRACKIO: Final = """
import trackio
for number in range(runs):
    trackio.init(project="bench", name=f"run-{number}", auto_log_gpu=False)
    for step, value in enumerate(values(number)):
        trackio.log({"loss": value}, step=step)
    trackio.finish()
print("/?project=bench")
"""
_MLFLOW: Final = """
import time
import mlflow
from mlflow.entities import Metric
mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
experiment = mlflow.create_experiment("bench", artifact_location=f"file://{folder}/artifacts")
client = mlflow.MlflowClient()
begun = int(time.time() * 1000)
for number in range(runs):
    run = client.create_run(experiment, run_name=f"run-{number}").info.run_id
    metrics = [Metric("loss", value, begun + step, step) for step, value in enumerate(values(number))]
    for first in range(0, points, 1000):
        client.log_batch(run, metrics=metrics[first:first + 1000])
    client.set_terminated(run)
print(f"/#/experiments/{experiment}/runs?compareRunsMode=CHART")
"""
# Its page of charts shows ten runs unless a person asks for all, which it keeps in the browser; its assistant's panel
# takes a third of the window.
_MLFLOW_SHOWS_ALL: Final = """
(() => {
    const key = Object.keys(localStorage).find((one) => /ExperimentPage.*ReactComponentState/.test(one));
    const state = JSON.parse(localStorage[key] ?? '{}');
    if (!state.compareRunCharts?.length) return false;
    localStorage[key] = JSON.stringify({...state, runsHiddenMode: 'SHOWALL'});
    localStorage['mlflow.assistant.panelOpen_v1'] = 'false';
    return true;
})()"""
_AIM: Final = """
import base64, multiprocessing, urllib.parse
from aim import Run
def record(number):
    run = Run(repo=folder, experiment="bench", system_tracking_interval=None, capture_terminal_logs=False,
              log_system_params=False)
    for step, value in enumerate(values(number)):
        run.track(value, name="loss", step=step)
    run.close()
if __name__ == "__main__":
    record(0)
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        pool.map(record, range(1, runs), chunksize=1)
    asked = {"options": [], "query": "", "advancedMode": True, "advancedQuery": 'metric.name == "loss"'}
    text = urllib.parse.quote(json.dumps(asked, separators=(",", ":")), safe="!#$&'()*+,/:;=?@-._~")
    print("/metrics?select=O-" + base64.urlsafe_b64encode(text.encode()).decode().rstrip("="))
"""


@dataclass(frozen=True)
class Peer:
    """A tracker to compare with.

    `records` is a program of its environment that records runs in a folder and prints the path of the page that shows
    one metric of all; `serves` are the arguments of its Python that show the folder `{data}` at `{port}`; `drawn` is
    an expression of the page: how many runs the chart has; `prepares` is true once the page is told to show all runs
    from the next time on, where it shows a part of them at first.
    """

    name: str
    version: str
    records: str
    serves: tuple[str, ...]
    drawn: str
    prepares: str = "true"

    @property
    def title(self) -> str:
        return f"{self.name} {self.version}"


PEERS: Final = (
    Peer(
        "tensorboard", "2.21.0", _TENSORBOARD,
        ("-m", "tensorboard.main", "--logdir", "{data}", "--host", "127.0.0.1", "--port", "{port}"),
        "document.querySelectorAll('scalar-card-data-table tb-data-table-content-row').length",
    ),
    Peer(
        "trackio", "0.43.0", _TRACKIO,
        ("-c", "import trackio; trackio.show(project='bench', open_browser=False, host='127.0.0.1', share=False, "
               "server_port={port}, mcp_server=False, block_thread=True)"),
        "document.querySelectorAll('.legend-item').length"
        " + (parseInt(document.querySelector('.legend-toggle')?.textContent.replace('+', '')) || 0)",
    ),
    Peer(
        "mlflow", "3.17.2", _MLFLOW,
        ("-m", "mlflow", "server", "--backend-store-uri", "sqlite:///{data}/mlflow.db", "--host", "127.0.0.1",
         "--port", "{port}"),
        "new Set((document.querySelector('.js-plotly-plot')?.data ?? []).map((one) => one.runId ?? one.name)).size",
        _MLFLOW_SHOWS_ALL,
    ),
    Peer(
        "aim", "3.29.1", _AIM,
        ("-c", "from aim.cli.cli import cli_entry_point; cli_entry_point()", "up", "--repo", "{data}", "--host",
         "127.0.0.1", "--port", "{port}", "--yes"),
        "document.querySelectorAll('svg .Lines .Line').length",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Recording:
    """Runs that a peer has recorded: where, the seconds of CPU that took, and the path of the page to open."""

    data: Path
    cpu_seconds: float
    page: str


def installed(peer: Peer) -> str:
    """The Python of the peer's environment, which is made if it is not there.

    Errors: CalledProcessError or TimeoutExpired if it cannot be installed.
    """
    folder = CACHE / f"{peer.name}-{peer.version}"
    python, done = folder / "bin" / "python", folder / "installed"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*command, f"{peer.name}=={peer.version}"], check=True, timeout=_INSTALL_S)
        done.touch()
    return str(python)


def recorded(peer: Peer, runs: int, points: int) -> Recording:
    """So many runs of one metric `loss`, recorded by the peer's own library unless that was done before.

    Errors: those of `installed`, and the same if the program fails or takes more than half an hour.
    """
    python = installed(peer)
    data = CACHE / "data" / f"{peer.name}-{peer.version}-{runs}x{points}"
    about = data.with_suffix(f"{data.suffix}.json")
    if not about.exists():
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir(parents=True)
        program = data.with_suffix(f"{data.suffix}.py")
        program.write_text(_VALUES + peer.records)
        begun = _cpu_of_children()
        done = subprocess.run(
            [python, str(program), str(data), str(runs), str(points)], env=_environment(data), cwd=data, check=True,
            stdout=subprocess.PIPE, text=True, timeout=_RECORD_S,
        )  # fmt: skip
        about.write_text(json.dumps({"cpuSeconds": _cpu_of_children() - begun, "page": done.stdout.split()[-1]}))
    found = json.loads(about.read_text())
    return Recording(data, found["cpuSeconds"], found["page"])


@contextmanager
def served(peer: Peer, recording: Recording) -> Iterator[str]:
    """The address of a server of the peer that shows a recording.

    Errors: AssertionError if it ends, or does not answer within three minutes.
    """
    port = _free_port()
    arguments = [one.format(data=recording.data, port=port) for one in peer.serves]
    log = recording.data.with_suffix(f"{recording.data.suffix}.log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [installed(peer), *arguments], env=_environment(recording.data), cwd=recording.data, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = monotonic() + _START_S
        while not _answers(url):
            assert process.poll() is None, f"its server ended with {process.returncode}: {_end_of(log)}"
            assert monotonic() < deadline, f"its server does not answer: {_end_of(log)}"
            Event().wait(0.2)
        yield url
    finally:
        _end(process)


def why(error: Exception) -> str:
    """One line that says why a peer could not be measured."""
    if isinstance(error, subprocess.CalledProcessError | subprocess.TimeoutExpired):
        late = isinstance(error, subprocess.TimeoutExpired)
        how = "did not end in time" if late else "failed"
        return f"{' '.join(str(one) for one in error.cmd[1:])} {how}"
    return (str(error).splitlines() or [type(error).__name__])[0]


def _environment(data: Path) -> dict[str, str]:
    """Nothing reports home, and nothing is asked for elsewhere; state is kept beside the recording."""
    nobody = "http://127.0.0.1:9"
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
        "HOME": str(data), "TRACKIO_DIR": str(data),
        "DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1",
        "HTTP_PROXY": nobody, "HTTPS_PROXY": nobody, "http_proxy": nobody, "https_proxy": nobody,
        "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost",
    }  # fmt: skip


def _cpu_of_children() -> float:
    """Seconds of CPU of all processes that this one has started and that have ended, and of those that they started."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


def _end_of(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it says nothing"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a server and whatever it has started, all of its session."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)
