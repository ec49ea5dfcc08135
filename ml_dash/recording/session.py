"""The states of a handle: closed, reading, recording, or open in the process that it came from."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import NotOpen, ReadOnly, WriteProtected

if TYPE_CHECKING:
    from ..core.as_of import AsOf
    from ..reading.located import Located
    from ..reading.view import View
    from .run import MetricTally, Run

_NOTHING: dict[str, Any] = {}
_late = itertools.count(1)


class Session:
    """The state of a handle, with the calls that it allows. This base refuses every call.

    A call reads the session from its handle once, and uses that to its end: so it never mixes two states.
    """

    __slots__ = ("experiment",)

    experiment: str
    """`project/name`, for messages."""

    is_open = True

    run: Run | None = None
    """The run that this process records into; None unless recording."""

    writer_id: str | None = None
    """The id of this process's writer: the parent of writers in processes that get the handle from it."""

    metrics: dict[str, Any] = _NOTHING
    """Metric builders that were handed out, by name."""

    def __init__(self, experiment: str) -> None:
        self.experiment = experiment

    def refuse(self) -> NoReturn:
        """Raise the error for a call that this state does not allow, or that came just after the end of the run."""
        raise NotOpen(
            f"experiment {self.experiment} is not open",
            hint="use it in a with block, or call experiment.open() first",
        )

    def here(self) -> Session:
        """Return the open session in this process. Raises NotOpen if there is none."""
        return self

    def append(self, kind: int, body: Any, tally: MetricTally | None = None, count: int = 1) -> int | None:
        """Record one event, as `Writer.append` does. Raises WriterGone if the run has ended meanwhile."""
        self.refuse()

    @property
    def tallies(self) -> Mapping[str, MetricTally]:
        """Counts of appended points by metric."""
        self.refuse()

    def recording(self) -> Run:
        """Return the run that this process records into."""
        self.refuse()

    def changeable(self) -> Run:
        """Return the run that this process records into. Raises WriteProtected if parameters and files are final."""
        self.refuse()

    def looking(self) -> AbstractContextManager[View]:
        """Return a context with a view of all that this process has recorded."""
        self.refuse()

    def located(self) -> Located:
        """Return where the experiment is."""
        self.refuse()


class Closed(Session):
    """Not opened yet, or closed. `at_exit` is True if the end of the process closed it, not its user."""

    __slots__ = ("at_exit",)

    is_open = False

    def __init__(self, experiment: str, *, at_exit: bool = False) -> None:
        super().__init__(experiment)
        self.at_exit = at_exit

    def refuse(self) -> NoReturn:
        if self.at_exit and threading.current_thread() is not threading.main_thread():
            _end_thread(self.experiment)
        super().refuse()

    def here(self) -> Session:
        self.refuse()


class Reading(Session):
    """Opened with `read_only=True`; with `as_of` it is read as it was at that moment."""

    __slots__ = ("_as_of", "_located", "metrics")

    def __init__(self, experiment: str, located: Located, as_of: AsOf | None) -> None:
        super().__init__(experiment)
        self._located = located
        self._as_of = as_of
        self.metrics = {}

    def refuse(self) -> NoReturn:
        raise ReadOnly(
            f"experiment {self.experiment} was opened with read_only=True",
            hint="open it without read_only to record",
        )

    @contextlib.contextmanager
    def looking(self) -> Iterator[View]:
        from ..reading.as_of import view_as_of

        yield view_as_of(self._located, self._as_of)

    def located(self) -> Located:
        return self._located


class Recording(Session):
    """Open in this process, with a run that other handles may share."""

    __slots__ = ("append", "metrics", "run", "tallies", "writer_id")

    run: Run
    append: Callable[..., int | None]
    tallies: Mapping[str, MetricTally]

    def __init__(self, experiment: str, run: Run) -> None:
        super().__init__(experiment)
        self.run = run
        self.writer_id = run.writer.id
        # The writer's own bound method: no call in between.
        self.append = run.writer.append
        self.tallies = run.tallies
        self.metrics = {}

    def recording(self) -> Run:
        return self.run

    def changeable(self) -> Run:
        if self.run.protected:
            raise WriteProtected(
                f"experiment {self.experiment} is write-protected: its parameters and files are final",
                hint="logs and metrics go on; use another experiment for other parameters",
            )
        return self.run

    def looking(self) -> AbstractContextManager[View]:
        return self.run.looking()

    def located(self) -> Located:
        return self.run.located


class Elsewhere(Session):
    """Open in the process from which this handle was forked or pickled. The first call opens it in this process.

    `open_here` returns the session that the handle has here from then on.
    """

    __slots__ = ("_open_here", "writer_id")

    def __init__(self, experiment: str, writer_id: str | None, open_here: Callable[[], Session]) -> None:
        super().__init__(experiment)
        self.writer_id = writer_id
        self._open_here = open_here

    def here(self) -> Session:
        return self._open_here().here()

    def append(self, kind: int, body: Any, tally: MetricTally | None = None, count: int = 1) -> int | None:
        return self.here().append(kind, body, tally, count)

    @property
    def tallies(self) -> Mapping[str, MetricTally]:
        return self.here().tallies

    def recording(self) -> Run:
        return self.here().recording()

    def changeable(self) -> Run:
        return self.here().changeable()

    def looking(self) -> AbstractContextManager[View]:
        return self.here().looking()

    def located(self) -> Located:
        return self.here().located()


def _end_thread(experiment: str) -> NoReturn:
    """End a thread that records while the interpreter ends; without a traceback, for the thread did nothing wrong."""
    if next(_late) == 1:
        text = f"ml-dash: threads still recorded into {experiment} while the process ended: dropped; join them first\n"
        # Not by `sys.stderr`: waiting for its lock while the interpreter ends may abort the process.
        with contextlib.suppress(OSError):
            os.write(2, text.encode(errors="backslashreplace"))
    raise SystemExit
