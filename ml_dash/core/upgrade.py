"""The upgrade of a folded state of an older version, where its events are not at hand to be folded again.

A checkpoint or a server's table of an older version is made again from the journal. A base stands for events that are
not on this machine, so its state is brought up to date as far as it says enough:

    version 1    knows no steps: any rewind may hit its points
    version 2    counts neither listed files nor lost events as a whole
    version 3    knows no titles, notes and archiving, nor what ended a process: they stay unknown
"""

from __future__ import annotations

from .fold import last_ended
from .limits import INT64_MAX
from .rewinds import add_spans
from .state import FOLD_VERSION, State


def upgrade(state: State, version: int) -> None:
    """Bring a state that was folded by this version up to FOLD_VERSION, in place."""
    if version < 2:
        add_spans(state)
    if version < 3:
        state.live_files = sum(file.live for file in state.files.values())
        state.lost = min(sum(writer.lost for writer in state.writers.values()), INT64_MAX)
        state.last_ended = last_ended(state)
    state.version = FOLD_VERSION
