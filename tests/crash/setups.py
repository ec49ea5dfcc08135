"""The setups of rows: a process that victims are forked from, without the shim or with it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from tests.faults import shim
from tests.faults.zygote import Zygote, warmed


def zygote(workdir: Path) -> AbstractContextManager[Zygote]:
    """Victims without the shim."""
    return warmed("tests.crash", workdir)


def shimmed(workdir: Path) -> AbstractContextManager[Zygote]:
    """Victims with the shim."""
    return warmed("tests.crash", workdir, preload=[shim.build()])
