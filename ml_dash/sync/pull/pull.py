"""Bring an experiment from a server to this machine: all of it, or only its state.

What is brought lies in a journal of this machine's own: segments keep the journal id that their headers name, so that
the uploader knows them for what the server has already, and `order` says how the server merged them. So log entries and
points have here the numbers that they have there. A new journal appears whole, by one rename.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from ...core.frames import OrderHeader
from ...core.state import State
from ...disk.durable import fail_point, sync_folder
from ...errors import ForeignFolder, NotFound
from ...journal import base as bases
from ...journal.segment import (
    BLOBS,
    JOURNAL,
    SEGMENTS,
    make_store,
    place_journal,
    read_identity,
    refuse_foreign,
)
from ...projection.projector import TURN_WAIT_S, Projector
from ...reading.located import Located
from ...reading.view import look_anew
from .download import Download, PullReport
from .existing import Join
from .order import joined, lengths, payload, write_order
from .scratch import locked_while_used, scratch_in, sweep
from .source import Deadline, Progress, Source


def pull(
    source: Source,
    located: Located,
    *,
    state_only: bool = False,
    files: bool | None = None,
    fill: bool = True,
    deadline: Deadline | None = None,
    progress: Progress | None = None,
) -> PullReport:
    """Download the experiment `located.project`/`located.name` to where `located` says, or the missing part of it.

    With `state_only` a base stands for all segments, and contents of files come only with `files=True`. Without `fill`,
    segments that a base stands for here stay on the server. Durable on return.

    Raises NotFound if the server does not have the experiment, InvalidValue if the state alone is asked for of one
    whose journal is here, RemoteError if the server does not answer or answers something else; nothing changed then.
    """
    experiment = source.find(located.project, located.name)
    if experiment is None:
        raise NotFound(
            f"{source.name} has no experiment {located.project}/{located.name}",
            hint="it may not be sent yet, or belong to another user; see: ml-dash whoami",
        )
    download = Download(source, located, experiment["experiment"], deadline or Deadline(), progress)
    with_files = not state_only if files is None else files
    if not (located.journal / SEGMENTS).is_dir():
        with contextlib.suppress(FileExistsError):
            return _into_nothing(download, state_only, with_files)
    identity = read_identity(located.journal)
    if (identity.project, identity.name) != (located.project, located.name):
        raise ForeignFolder(
            f"{located.journal} holds experiment {identity.project}/{identity.name}, not "
            f"{located.project}/{located.name}",
            hint="name another place with --path",
        )
    return Join(download).bring(state_only, with_files, fill)


def _into_nothing(download: Download, state_only: bool, files: bool) -> PullReport:
    """Pull into a new journal. Raises FileExistsError if another process has created it meanwhile."""
    journal, folder = download.located.journal, download.located.folder
    home = journal.parent
    try:
        for place in {home, folder}:
            refuse_foreign(place, hint="name another place with --path")
    except ForeignFolder:
        if (journal / SEGMENTS).is_dir():
            raise FileExistsError(journal) from None
        raise
    make_store(home.parents[1])
    home.mkdir(parents=True, exist_ok=True)
    sweep(home)
    temporary = scratch_in(home, JOURNAL)
    (temporary / SEGMENTS).mkdir(parents=True)
    (temporary / BLOBS).mkdir()
    try:
        with locked_while_used(temporary):
            state = _bring_new(download, temporary, state_only, files)
            download.deadline.begin_placing()
            fail_point("pull-brought")
            place_journal(temporary, journal)
            fail_point("pull-placed")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for changed in (home, home.parent, home.parent.parent):
        sync_folder(changed)
    download.deadline.mark_placed()
    if not state_only:
        Projector(journal, folder).advance(wait_s=TURN_WAIT_S)
    return download.report(state, state_only=state_only, new=True)


def _bring_new(download: Download, into: Path, state_only: bool, files: bool) -> State:
    """Create a journal in `into`, complete and synced, and return its state."""
    identity = OrderHeader(os.urandom(16), download.located.project, download.located.name)
    records: list[bytes] = []
    if state_only:
        bases.save(into, identity, download.remote_base())
    else:
        records = _bring_all(download, into)
    write_order(into, identity, records)
    state = look_anew(into, download.located.folder).state
    if files:
        download.bring_files(state, into)
    for folder in (into / SEGMENTS, into / BLOBS, into):
        sync_folder(folder)
    return state


def _bring_all(download: Download, into: Path) -> list[bytes]:
    """Download all segments and the bodies of their events; return the records of the server's order, encoded."""
    records = list(joined(download.records()))
    download.bring_segments(lengths(records), into)
    download.bring_bodies(into)
    return list(map(payload, records))
