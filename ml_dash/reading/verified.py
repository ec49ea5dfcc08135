"""When experiments were last verified on this host, and what came out: a small file in the user's state folder.

It decides nothing. A file that is damaged or missing means that nothing is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from ..disk.durable import replace_file
from ..disk.places import Environment, state_folder

_FILE: Final = "verified.json"
_MOST: Final = 20_000
"""Experiments that are remembered: those verified last."""


class Verified(NamedTuple):
    """One verification: when it ended, in ns since the epoch, and whether everything was there."""

    at_ns: int
    ok: bool


_read: Final = msgspec.json.Decoder(dict[str, Verified])


def verified(env: Environment | None = None) -> dict[str, Verified]:
    """Return the last verification of each experiment, by the path of its journal."""
    try:
        return _read.decode((state_folder(env) / _FILE).read_bytes())
    except (OSError, msgspec.MsgspecError):
        return {}


def note(found: Mapping[Path, bool], at_ns: int, env: Environment | None = None) -> None:
    """Remember what a verification of some journals has found, as far as the disk allows. Raises OSError."""
    known = verified(env) | {str(journal): Verified(at_ns, ok) for journal, ok in found.items()}
    newest = dict(sorted(known.items(), key=lambda item: item[1].at_ns)[-_MOST:])
    folder = state_folder(env)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    replace_file(folder / _FILE, msgspec.json.encode(newest))


def summary(journals: Iterable[str], env: Environment | None = None) -> tuple[int, str] | None:
    """Return (when, result) of the last verification of these journals as a text; None if there was none."""
    known, wanted = verified(env), list(journals)
    found = [known[journal] for journal in wanted if journal in known]
    if not found:
        return None
    damaged = sum(not one.ok for one in found)
    checked = f"{len(found):,} of {len(wanted):,} {'experiment' if len(wanted) == 1 else 'experiments'} checked"
    return max(one.at_ns for one in found), f"{checked}, {f'{damaged:,} damaged' if damaged else 'all intact'}"
