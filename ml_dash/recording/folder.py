"""A run's documented folder: brought up to date while the run goes on, and read. Loaded when first needed."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Final

from ..core.rewinds import Elsewhere, Past
from ..core.state import Edits, State, index_of
from ..disk.durable import free_bytes, is_gone
from ..journal.writer import Writer
from ..projection.projector import Projector
from ..projection.replay import Pace, PassStopped, Replay
from ..projection.start import begin
from ..reading.located import Located
from ..reading.read import view
from ..reading.view import View, projected
from .messages import cannot, print_line

log = logging.getLogger("ml_dash")

FOLDER_AT_CLOSE_S: Final = 5.0
_REPORT_AFTER_S: Final = 2.0
# The folder leaves so much of the disk, or a hundredth of a small one, to the journal.
_RESERVE_BYTES: Final = 16 << 20
_SLICE_EVENTS: Final = 256
# A read waits so long for another process that projects: about one pass. After that it reads in memory.
_READ_WAIT_S: Final = 0.25


class RunFolder:
    """The folder of one run of this process, and views of all that it has recorded. Any thread may call.

    The projector's `guard` is held while folder or state are read or written. `_readers_guard` protects `_readers`, and
    is never held while another lock is waited for.
    """

    def __init__(self, located: Located, writer: Writer) -> None:
        self._located = located
        self._writer = writer
        self._projector = Projector(located.journal, located.folder)
        self._projected_seq = -1
        self._trouble: str | None = None
        self._readers = 0
        self._readers_guard = threading.Lock()
        self._short_of_room = self._gave_way = False
        self.protected = False
        """True if the experiment was found to be write-protected; another process may have done that."""

    # -- reading -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def looking(self) -> Iterator[View]:
        """A view that holds everything this process has written, while the block runs."""
        self.want(1)
        try:
            with self._projector.guard:
                yield self._view()
        finally:
            self.want(-1)

    def want(self, more: int) -> None:
        """Add `more` (1 or -1) to the readers: while there are any, a background pass stops at its next slice."""
        with self._readers_guard:
            self._readers += more

    def _view(self) -> View:
        try:
            seq = self._writer.seq
            if self._has_room() and self._projector.advance(wait_s=_READ_WAIT_S, complete=False):
                self._projected_seq = seq
                self._learn(self._projector.state)
                return projected(self._projector)
        except OSError as error:
            log.debug("ml-dash: reading %s in memory: %s", self._located.journal, error)
        try:
            fresh = view(self._located)
        except OSError as error:
            raise cannot("read", self._located.journal, error) from error
        self._learn(fresh.state)
        return fresh

    def _learn(self, state: State) -> None:
        self.protected = self.protected or state.protected is not None

    def index_of(self, metric: str, ordinal: int, *, ended: bool) -> int | None:
        """Return the index of the `ordinal`-th point of a metric by this run's writer; see `Run.index_of`."""
        if ended:
            index = self._index_in(view(self._located).state, metric, ordinal, ended=True)
        else:
            with self.looking() as look:
                index = self._index_in(look.state, metric, ordinal, ended=False)
        if index is not None:
            return index
        return _Seeker(self._located.journal, self._writer.id, metric, ordinal).seek()

    def _index_in(self, state: State, name: str, ordinal: int, *, ended: bool) -> int | None:
        metric, writer = state.metrics.get(name), state.writers.get(self._writer.id)
        if writer is not None and writer.uncounted:
            return None
        count, folded = (metric.count, metric.tallies.get(self._writer.id, 0)) if metric is not None else (0, 0)
        if not ended and ordinal >= folded and (writer is None or writer.alive):
            return count + ordinal - folded
        return index_of(metric, self._writer.id, ordinal) if metric is not None else None

    # -- projecting --------------------------------------------------------------------------------------------------

    @property
    def behind(self) -> bool:
        """True if there is anything to project."""
        return self._writer.seq != self._projected_seq or self._projector.lagging

    def project(self, pause: Callable[[], None]) -> None:
        """Make one pass of the background thread, in small slices with pauses, so that it never holds up training."""
        seq = self._writer.seq
        if not self.behind or not self._has_room():
            return

        def step() -> None:
            if self._readers:
                raise PassStopped
            pause()

        try:
            if self._projector.advance(pace=Pace(_SLICE_EVENTS, step), complete=False):
                self._projected_seq = seq
                with self._projector.guard:
                    self._learn(self._projector.state)
            self._trouble = None
        except PassStopped:
            # A reader waits for the folder: it goes on from here, without pauses.
            return
        except Exception as error:
            if self._trouble is None:
                log.warning(
                    "ml-dash: the folder %s cannot be brought up to date (%s); the journal is not touched by that. "
                    "It is tried again; or run: ml-dash rebuild", self._located.folder, error,
                    exc_info=not isinstance(error, OSError),
                )  # fmt: skip
            self._trouble = str(error)

    def _has_room(self) -> bool:
        """True if the disk has room for the folder too: the journal comes first, from which it can be made again."""
        if self._gave_way:
            # The space that the folder gave up is for the journal.
            return False
        try:
            free, size = free_bytes(self._located.journal)
        except OSError:
            # The journal's own trouble is reported by its writer.
            return True
        reserve = self._writer.waiting_bytes + min(_RESERVE_BYTES, size // 100)
        short, self._short_of_room = self._short_of_room, free < reserve
        if self._short_of_room and not short:
            log.warning(
                "ml-dash: the disk is nearly full (%d MiB left): the folder %s is not brought up to date until there "
                "is room; the journal goes on", free >> 20, self._located.folder,
            )  # fmt: skip
        return not self._short_of_room

    def give_way(self) -> bool:
        """Remove the folder, which can be made again, for events that wait for a full disk; False if it cannot."""
        if not self._projector.give_way():
            return False
        self._gave_way = True
        log.warning(
            "ml-dash: the disk is full: the readable folder %s has given way to what is still to be recorded. Free "
            "space, then run: ml-dash rebuild", self._located.folder,
        )  # fmt: skip
        return True

    # -- the end -----------------------------------------------------------------------------------------------------

    def finish(self, *, silent: bool) -> None:
        """Bring the folder up to date at close, for at most 5 seconds; the next reader does the rest."""
        if is_gone(self._located.journal) or not self._has_room():
            return
        begun = monotonic()
        reported = False

        def step() -> None:
            nonlocal reported
            spent = monotonic() - begun
            if spent > _REPORT_AFTER_S and not reported and not silent:
                reported = True
                print_line("ml-dash: bringing the folder up to date (Ctrl-C skips that; nothing is lost)")
            if spent > FOLDER_AT_CLOSE_S:
                raise PassStopped

        try:
            if not self._projector.advance(wait_s=FOLDER_AT_CLOSE_S, pace=Pace(20_000, step)):
                log.debug("ml-dash: another process is projecting %s", self._located.folder)
        except PassStopped:
            if not silent:
                print_line(f"ml-dash: the folder is not complete yet; ml-dash show {self._located.name} finishes it")
        except Exception as error:
            log.warning(
                "ml-dash: the folder %s is not up to date: %s; run: ml-dash rebuild", self._located.folder, error,
                exc_info=not isinstance(error, OSError),
            )  # fmt: skip

    def abandon(self) -> None:
        """Let go of the turn in a forked child: it is the parent's."""
        self._projector.abandon()


class _Seeker:
    """A search for the index of a point that the folded state does not hold: a fold of the journal up to it."""

    def __init__(self, journal: Path, writer: str, metric: str, ordinal: int) -> None:
        self._replay = Replay(journal, begin(journal))
        self._writer = writer
        self._metric = metric
        self._ordinal = ordinal
        self._found: int | None = None

    def seek(self) -> int | None:
        """Return the index; None if the journal does not have the point."""
        with contextlib.suppress(PassStopped, OSError):
            self._replay.catch_up(self, record=False)
        return self._found

    def history(self, name: str, start: int, end: int) -> Iterator[Past]:
        """Raise Elsewhere: this fold keeps no points, and its statistics are not used."""
        raise Elsewhere

    def apply(self, edits: Edits) -> None:
        """Stop at the stretch in which the writer's count of points passes the ordinal, or the writer ends."""
        edits.clear()
        state = self._replay.state
        metric, writer = state.metrics.get(self._metric), state.writers.get(self._writer)
        if metric is None or writer is None:
            return
        if metric.tallies.get(self._writer, 0) > self._ordinal or not writer.alive:
            self._found = index_of(metric, self._writer, self._ordinal)
            raise PassStopped
