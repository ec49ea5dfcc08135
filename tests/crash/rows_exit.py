"""Rows W27, W28, W31: ways for an interpreter to end, memory that runs out, secrets that must not be written."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.faults.harness import ROOT, Row, Trial, Unavailable
from tests.faults.zygote import clean_environment

from . import oracle_reader as disk
from .oracle import Ear, ear, gaps
from .recovery import hear_or_tell, recovered
from .setups import zygote
from .victims import NAME, PROJECT, journal_of

_HEAD: Final = """
import os, random, signal, subprocess, sys
from pathlib import Path
{before}
from tests.crash.oracle import Reporter
from tests.crash.victims import Caller, experiment
folder = Path(sys.argv[2])
report = Reporter(int(sys.argv[1]))
def make():
    target = experiment(folder).open()
    return target, Caller(target, report, random.Random(sys.argv[3]))
"""
_CALLS: Final = "target, caller = make()\nfor _ in range(int(sys.argv[4])): caller.any()\n"


@dataclass(frozen=True)
class Exit:
    """One way to end: what the script does, its exit code, the status that must be recorded."""

    name: str
    script: str
    code: int
    status: str
    before: str = ""
    interrupt: int = 0


EXITS: Final = (
    Exit("end of script", _CALLS, 0, "completed"),
    Exit("sys.exit(0)", _CALLS + "sys.exit(0)", 0, "completed"),
    Exit(
        "sys.exit(3) in with", "target, caller = make()\nwith target:\n    caller.any()\n    sys.exit(3)", 3, "failed"
    ),
    Exit("os._exit", _CALLS + "os._exit(4)", 4, "interrupted"),
    Exit("unhandled exception", _CALLS + "raise ValueError('unhandled')", 1, "failed"),
    Exit(
        "exception in with",
        "target, caller = make()\nwith target:\n    caller.any()\n    raise ValueError('in with')",
        1,
        "failed",
    ),
    Exit(
        "SIGTERM",
        _CALLS + "report.value('ready', 1)\nsignal.pause()",
        -signal.SIGTERM,
        "interrupted",
        interrupt=signal.SIGTERM,
    ),
    Exit(
        "SIGINT twice",
        _CALLS + "report.value('ready', 1)\nsignal.pause()",
        -signal.SIGINT,
        "interrupted",
        interrupt=signal.SIGINT,
    ),
    Exit(
        "atexit before and after",
        "import atexit\natexit.register(lambda: caller.any())\n" + _CALLS + "atexit.register(lambda: caller.any())",
        0,
        "completed",
    ),
    Exit(
        "standard descriptors closed",
        _CALLS + "for fd in (1, 2):\n    try: os.write(fd, b'x' * 5000)\n    except OSError: pass\n"
        "for _ in range(20): caller.any()\ntarget.close()",
        0,
        "completed",
        before="for fd in (0, 1, 2): os.close(fd)",
    ),
    Exit(
        "no descriptors left",
        # A module that is loaded at its first use cannot be loaded then.
        _CALLS
        + "import ml_dash.files, ml_dash.parameters\nkept = []\ntry:\n    while True: kept.append(os.open('/dev/null', os.O_RDONLY))\n"
        "except OSError: pass\nfor _ in range(20): caller.any()\nfor fd in kept: os.close(fd)\ntarget.close()",
        0,
        "completed",
    ),
    Exit(
        "fork and exec",
        _CALLS + "subprocess.run([sys.executable, '-c', 'pass'], check=True)\n"
        "late = subprocess.Popen(['sleep', '2'], close_fds=False)\ncaller.any()\ntarget.close()\n"
        "late.kill()\nlate.wait()",
        0,
        "completed",
    ),
)


def ways_to_end(trial: Trial) -> None:
    """W27. However the interpreter ends: what was called is there, and the status says how it ended."""
    case = EXITS[trial.index % len(EXITS)]
    folder = trial.folder
    home = folder / "home"
    home.mkdir()
    script = folder / "script.py"
    script.write_text(textwrap.dedent(_HEAD.format(before=case.before)) + case.script + "\n")
    with ear() as listener:
        process = _run_script(script, listener, trial, home)
        if case.interrupt:
            hear_or_tell(listener, process, "ready")  # type: ignore[arg-type]
            for _ in range(2 if case.interrupt == signal.SIGINT else 1):
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(case.interrupt)
        try:
            code = process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            trial.fail(f"{case.name}: does not end")
            return
        ledger = listener.finish()
    told = (folder / "stderr").read_text(errors="replace")
    trial.counts[case.name] += 1
    expected = {case.code, 1, 130} if case.interrupt == signal.SIGINT else {case.code}
    trial.check(code in expected, f"{case.name}: exit code {code}, expected {case.code}: {told[-600:]}")
    if case.name == "atexit before and after":
        # What is called after our own closing at exit is refused, and said so.
        trial.check("not open" in told or len(ledger.acked) >= 2, f"{case.name}: {told[-300:]}")
    journal = recovered(trial, ledger, reads=trial.index % 4 == 0)
    trial.check(not journal.damaged_bytes, f"{case.name}: somebody else's bytes are in a segment")
    trial.check(not gaps(journal), f"{case.name}: numbers are missing")
    status = json.loads((folder / "store" / PROJECT / NAME / "experiment.json").read_bytes())["status"]
    trial.check(status == case.status, f"{case.name}: the status is {status}, expected {case.status}")


class _Process(subprocess.Popen[bytes]):
    """A process whose words can be quoted."""

    errors: Path

    def told(self) -> str:
        """What it wrote to stderr."""
        return self.errors.read_text(errors="replace")[-2000:]


def _run_script(script: Path, listener: Ear, trial: Trial, home: Path) -> _Process:
    command = [sys.executable, str(script), str(listener.write), str(trial.folder), f"{trial.rng.random()}"]
    command.append(str(trial.rng.randrange(1, 40)))
    with (trial.folder / "stderr").open("wb") as errors:
        process = _Process(
            command,
            cwd=ROOT,
            env=clean_environment(home),
            pass_fds=[listener.write],
            stdout=errors,
            stderr=errors,
            stdin=subprocess.DEVNULL,
        )
    process.errors = trial.folder / "stderr"
    listener.started()
    return process


def memory_runs_out(trial: Trial) -> None:
    """W28. Memory is limited: a call may raise MemoryError like any other code, what was acknowledged stays.

    msgspec 0.22 ends the process by SIGSEGV when a buffer cannot grow; that is counted, and only the journal is judged.
    """
    if not Path("/proc/self/statm").exists():
        raise Unavailable("memory can be limited (RLIMIT_AS) on Linux only")
    with ear() as listener:
        victim = trial.shared.start(
            "victims_special:starved",
            trial.folder,
            pipe=listener.write,
            seed=f"{trial.rng.random()}",
            megabytes=trial.rng.randrange(4, 64),
        )
        listener.started()
        listener.listen(60.0)
        status = victim.wait()
        ledger = listener.finish()
        trial.counts["calls out of memory"] += len(ledger.raised)
        trial.counts["msgspec ended by SIGSEGV"] += status == -signal.SIGSEGV
        if status != -signal.SIGSEGV:
            trial.check(status == 0 and "closed" in ledger.values, f"the victim ended with {status}: {victim.told()}")
        journal = recovered(trial, ledger, rebuild=trial.index % 4 == 0)
        trial.check(not journal.damaged_bytes, f"{journal.damaged_bytes} bytes in the middle hold no frame")


_SECRET_SCRIPT: Final = """
import logging, os, sys
logging.basicConfig(level=logging.DEBUG)
from ml_dash import Experiment
folder, canary, sink = sys.argv[1], os.environ.pop("CANARY"), sys.argv[2]
key = canary
settings = dict(local_path=folder + "/store", remote="http://localhost:3000", user_name="alice")
if sink == "argument": settings["api_key"] = key
if sink == "environment": os.environ["ML_DASH_API_KEY"] = key
if sink == "login": settings["remote"] = "https://dash.example.org"
if sink == "url":
    settings["remote"] = f"http://alice:{key}@localhost:3000"
try:
    experiment = Experiment(name="victim", project="crash", **settings)
except ValueError as error:
    print("refused:", error, file=sys.stderr)
    sys.exit(0)
print(repr(experiment), str(experiment), experiment, vars(experiment) if sink == "never" else "", file=sys.stderr)
import pickle, copy
with open(folder + "/pickle", "wb") as file: file.write(pickle.dumps(experiment))
experiment.open()
experiment.parameters().set(lr=0.1)
experiment.metric("loss").append(value=1.0)
experiment.log("hello")
experiment.wait_synced(timeout=0.01)
if sink in ("argument", "environment", "login"):
    raise RuntimeError(f"server said 401 for token {key} of alice")
experiment.close()
"""
_SINKS: Final = ("argument", "environment", "login", "url", "argv", "other environment")


def secrets_stay_out(trial: Trial) -> None:
    """W31. Our own credentials are in no file that we write, and in no line that we print."""
    sink = _SINKS[trial.index % len(_SINKS)]
    canary = f"canary-{trial.rng.getrandbits(96):024x}"
    folder = trial.folder
    home = folder.parent / f"home-{trial.index}"
    (home / "ml-dash").mkdir(parents=True)
    script = folder / "script.py"
    script.write_text(_SECRET_SCRIPT)
    environment = clean_environment(home) | {"CANARY": canary, "ML_DASH_AUTOSYNC": "0"}
    environment.pop("ML_DASH_QUIET")
    if sink == "login":
        credentials = {"remotes": {"https://dash.example.org": {"token": canary}}}
        (home / "ml-dash" / "credentials.json").write_text(json.dumps(credentials))
    if sink == "other environment":
        environment["AWS_SECRET_ACCESS_KEY"] = canary
    command = [sys.executable, str(script), str(folder), sink, *([canary] if sink == "argv" else [])]
    made = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=60, check=False)
    trial.counts[sink] += 1
    forms = {
        canary.encode(),
        base64.b64encode(canary.encode())[:-4],
        canary.encode().hex().encode(),
        canary[::-1].encode(),
    }
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            trial.check(
                not any(form in content for form in forms), f"{sink}: the secret is in {path.relative_to(folder)}"
            )
    printed = made.stdout + made.stderr
    own = b"\n".join(
        line for line in printed.splitlines() if b"server said 401" not in line and b"raise RuntimeError" not in line
    )
    trial.check(canary.encode() not in own, f"{sink}: the secret was printed: {own[-400:]!r}")
    if sink == "url":
        trial.check(b"refused:" in printed, f"a URL with a password was accepted: {printed[-300:]!r}")
    elif sink in ("argument", "environment", "login"):
        journal = disk.read_journal(journal_of(folder))
        errors = [str(body.get("error")) for _, _, kind, _, body in journal.in_order() if kind == disk.CLOSE]
        trial.check(any("***" in error for error in errors), f"{sink}: the recorded error does not mask: {errors}")
    _remove(home)


def _remove(folder: Path) -> None:
    from tests.faults.harness import remove_tree

    remove_tree(folder)


ROWS = (
    Row("W27", "ways to end", 12 * 100, 12, ways_to_end),
    Row("W28", "memory runs out", 100, 6, memory_runs_out, zygote),
    Row("W31", "secrets stay out", 6 * 20, 6, secrets_stay_out),
)
assert len(EXITS) == 12
__all__ = ["EXITS", "ROWS", "os"]
