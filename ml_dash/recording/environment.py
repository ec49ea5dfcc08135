"""The environment of a writer: host, process, versions, script, git, scheduler."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any, Final

_SCHEDULER: Final = {
    "RANK": "rank",
    "LOCAL_RANK": "localRank",
    "WORLD_SIZE": "worldSize",
    "SLURM_JOB_ID": "slurmJobId",
    "SLURM_ARRAY_TASK_ID": "slurmArrayTaskId",
    "SLURM_RESTART_COUNT": "slurmRestartCount",
}


def describe(version: str) -> dict[str, Any]:
    """Return the description of this process for an opening event. Arguments of the script are never part of it."""
    place: dict[str, Any] = {
        "host": _host(),
        "pid": os.getpid(),
        "python": ".".join(map(str, sys.version_info[:3])),
        "platform": sys.platform,
        "mlDash": version,
    }
    # The working directory may have been removed, a repository may be broken: the run starts all the same.
    with contextlib.suppress(OSError, ValueError):
        script = _script()
        if script:
            place["script"] = script
        place.update(_git(Path.cwd() if not script else Path(script).parent))
    for variable, key in _SCHEDULER.items():
        value = os.environ.get(variable)
        if value:
            place[key] = _clean(value)
    return place


def _host() -> str:
    return os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "unknown")


def _script() -> str | None:
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    return _clean(str(Path(main).absolute()), 1000) if isinstance(main, str) else None


def _clean(text: str, limit: int = 200) -> str:
    """Return a text that can be encoded, cut off: environment and paths may hold bytes that are not UTF-8."""
    return text.encode("utf-8", "replace").decode()[:limit]


def _git(start: Path) -> dict[str, Any]:
    """Return commit and branch, read from `.git` without running git; empty where there is no repository."""
    for folder in (start, *start.parents):
        entry = folder / ".git"
        try:
            if entry.is_dir():
                return _head(entry)
            if entry.is_file():
                # A worktree or a submodule: the file names the real folder.
                target = entry.read_text(encoding="utf-8", errors="replace").removeprefix("gitdir:").strip()
                return _head((folder / target).absolute())
        except OSError:
            return {}
    return {}


def _head(git: Path) -> dict[str, Any]:
    head = (git / "HEAD").read_text(encoding="utf-8", errors="replace").strip()
    if not head.startswith("ref: "):
        return {"gitCommit": head[:64]}
    reference = head.removeprefix("ref: ")
    head_of_branch = {"gitBranch": _clean(reference.removeprefix("refs/heads/"))}
    common = git / "commondir"
    shared = (git / common.read_text(encoding="utf-8", errors="replace").strip()) if common.exists() else git
    for base in (git, shared):
        loose = base / reference
        if loose.is_file():
            return {**head_of_branch, "gitCommit": loose.read_text(encoding="utf-8", errors="replace").strip()[:64]}
    packed = shared / "packed-refs"
    if packed.is_file():
        for line in packed.read_text(encoding="utf-8", errors="replace").splitlines():
            commit, _, name = line.partition(" ")
            if name == reference:
                return {**head_of_branch, "gitCommit": commit[:64]}
    return head_of_branch
