"""Rows of this package: those of `tests.crash`, run by this package's command line, in one shared world."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from tests.crash import harness as base
from tests.crash.harness import ROOT, RowReport, Trial, Unavailable, own_mounts

NETWORK: Final = "ML_DASH_TEST_NETWORK"
__all__ = ["ROOT", "Row", "RowReport", "Trial", "Unavailable"]


@dataclass(frozen=True)
class Row(base.Row):
    """One line of the fault matrix; `budget_s` is what its sample may take on two cores."""

    budget_s: float = 6.0
    # What the full count stands for where a trial holds many: "20 kills each".
    unit: str = ""
    # Wants a network of its own, in which it may make and cut links.
    network: bool = False

    @property
    def about(self) -> str:
        """What a list says of it."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def run(
        self, count: int, seed: str, workdir: Path, *, share: tuple[int, int] = (0, 1), only: int | None = None
    ) -> RowReport:
        """Run `count` of the `full` trials, in this process or, with mounts of its own, in another one."""
        if (self.mounts or self.network) and "ML_DASH_TEST_MOUNTS" not in os.environ:
            return base.finish_apart(self, seed, start_apart(self, count, seed, workdir, share=share, only=only))
        report = super().run(count, seed, workdir, share=share, only=only)
        report.failures = [text.replace("tests.crash", "tests.e2e") for text in report.failures]
        return report


def start_apart(
    row: Row, count: int, seed: str, workdir: Path, *, share: tuple[int, int] = (0, 1), only: int | None = None
) -> subprocess.Popen[str]:
    """Start a share of a row's trials."""
    prefix = own_mounts(row.mounts)
    network = own_network() if row.network else ()
    environment = {**os.environ, "ML_DASH_TEST_MOUNTS": str(int(bool(prefix))), NETWORK: str(int(bool(network)))}
    command = [*prefix, *network, sys.executable, "-m", "tests.e2e", "--row", row.id]
    command += ["--count", str(count), "--seed", seed]
    command += ["--workdir", str(workdir), "--share", f"{share[0]}/{share[1]}", "--json"]
    if only is not None:
        command += ["--only", str(only)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


@cache
def own_network() -> tuple[str, ...]:
    """The command that gives a process a network of its own; empty where there is none."""
    unshare, ip = shutil.which("unshare"), shutil.which("ip")
    for options in (["-n"], ["-Urn"]) if unshare and ip else ():
        if options == ["-n"] and os.geteuid() != 0:
            continue
        probe = [str(unshare), *options, str(ip), "link", "add", "probe0", "type", "veth", "peer", "name", "probe1"]
        if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            return str(unshare), *options
    return ()


def has_network() -> bool:
    """Has this process a network of its own?"""
    return os.environ.get(NETWORK) == "1"
