"""The starting point of a fold: nothing, or the base in place of missing segments.

Where `gc` removed segments, or `pull` did not bring them, nobody here can fold their events. The base has the state
after them. So a fold begins with a copy of that state, with all bytes of those segments marked as covered, and with
line files whose first line is not number 0 but the number of the first point or entry after the base:

    lines 0..n-1   only counted in the state; in the folder only if `gc` kept them there
    lines n..      made from the segments that are here

A base cannot be made again, so one that is damaged is an error, and never passed over.
"""

from __future__ import annotations

import logging
from pathlib import Path

from ..disk.durable import crc_of
from ..errors import Damaged
from ..journal import base as bases
from ..journal.base import Base, KeptLines
from ..journal.order import Order
from ..journal.segment import BASE
from . import trust
from .checkpoint import Checkpoint, Layout, LineFile
from .folder import LOGS, Folder

log = logging.getLogger("ml_dash")


def begin(journal: Path, folder: Path | None = None) -> Checkpoint:
    """Return the position from which a journal is folded anew: nothing, or its base.

    With `folder`, lines before the base that `gc` left in it count as present if they are unchanged. Raises
    JournalError if there is a base that cannot be used.
    """
    stored = bases.read(journal)
    if stored is None:
        return Checkpoint()
    base, identity = stored
    at = Checkpoint(
        base=identity,
        stood={segment: freed.length for segment, freed in base.segments.items()},
        covered={segment: [(0, freed.length)] for segment, freed in base.segments.items()},
        state=base.state,
        layout=_layout(base),
    )
    if _follows(base, journal):
        at.order_identity, at.order_position = base.order_identity, base.order_position
    if folder is not None and base.kept:
        _count_kept(base, Folder(folder, journal, at.layout))
    if not trust.is_consistent(at):
        raise Damaged(f"{journal / BASE}: its parts do not agree", hint=bases.ADVICE)
    return at


def _layout(base: Base) -> Layout:
    """Return the layout of a folder that holds no line from before the base."""
    counts = {name: metric.count for name, metric in base.state.metrics.items() if metric.count}
    metrics = {name: LineFile(lines=count, first=count) for name, count in counts.items()}
    return Layout(logs=LineFile(lines=base.state.logs, first=base.state.logs), metrics=metrics)


def _follows(base: Base, journal: Path) -> bool:
    """True if `order` is the file that the base followed, and not shorter. Else it is read from its start."""
    order = Order(journal)
    try:
        order.open(write=False)
        same = bool(order.first) and order.identity == base.order_identity
        return same and order.path.stat().st_size >= base.order_position
    finally:
        order.close()


def _count_kept(base: Base, folder: Folder) -> None:
    """Let the layout begin before the base with the lines that `gc` left in the folder, where those are unchanged.

    They are checked by their CRC. Lines that somebody has changed are not used: what follows must be written at the
    right offset.
    """
    for name, kept in base.kept.items():
        path = folder.points_file(name) if name else folder.path / LOGS
        lines = LineFile(kept.size, kept.lines, list(kept.marks), crc=kept.crc, first=kept.first)
        if not is_there(path, kept):
            log.warning(
                "ml-dash: %s no longer begins with the lines that gc kept, and they cannot be made again from what is "
                "here: it begins with number %d now; ml-dash pull brings the rest from the server", path, kept.lines,
            )  # fmt: skip
        elif name:
            folder.layout.metrics[name] = lines
        else:
            folder.layout.logs = lines


def is_there(path: Path, kept: KeptLines) -> bool:
    """True if a file still begins with the lines that were kept in it."""
    try:
        if path.is_symlink() or not path.is_file():
            # No bytes were kept, so a file that is missing has all of them.
            return not kept.size
        return crc_of(path, 0, kept.size) == kept.crc
    except OSError:
        return False
