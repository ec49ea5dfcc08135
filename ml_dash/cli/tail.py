"""`ml-dash tail`: log entries, points and status of experiments as they come, from here or from a server.

Each experiment is a `_Target`: it knows which entries and points were printed, and looks again when there is news. That
is told by the file system here, and by a stream of the server there. What cuts a connection or restarts a server only
delays: the next look goes on behind the last entry that was printed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import click

from ml_dash.cli import console, options
from ml_dash.cli.logs import line_of
from ml_dash.cli.summary import status_cell
from ml_dash.cli.views import ExperimentView
from ml_dash.errors import NotFound, Unreachable
from ml_dash.reading import read

if TYPE_CHECKING:
    from ml_dash.cli.server_view import ServerView
    from ml_dash.reading.live import LiveViews
    from ml_dash.reading.located import Located

LAST: Final = 10
_POLL_S: Final = 0.5
# A line of each metric at most once in so long, and so many lines at once.
_POINTS_EVERY_S: Final = 1.0
_MOST_LINES: Final = 20
_FIRST_RETRY_S: Final = 0.5
_LONGEST_RETRY_S: Final = 8.0

Look = Callable[[], AbstractContextManager[ExperimentView]]
Printed = Callable[[str, str, Any], None]
"""printed(experiment, line, object): print a line, or the object as JSON."""


@click.command(cls=options.RemoteCommand)
@options.experiments_argument
@click.option("-f", "--follow", is_flag=True, help="Go on after a run has ended: another may resume it.")
@click.option(
    "--last", type=click.IntRange(min=0), metavar="N", default=LAST, show_default=True, help="Begin with the last N."
)
@click.option("--no-points", is_flag=True, help="Only log entries and status.")
@options.remote_option
@options.path_option
@options.json_option
def command(
    experiments: tuple[str, ...],
    follow: bool,
    last: int,
    no_points: bool,
    remote: str | None,
    path: Path | None,
    as_json: bool,
) -> None:
    """Follow log entries, points and status of one or many, until they have ended.

    A cut connection or a restarted server only delays it. Of each metric the newest point is shown, once a second.
    """
    wake = threading.Event()
    targets = list(_targets(experiments or (None,), path, remote, wake))
    several = len(targets) > 1

    def printed(name: str, line: str, value: Any) -> None:
        if as_json:
            console.print_text(console.json_text({"experiment": name, **value}))
        else:
            console.print_text(f"{console.styled(console.safe(name), 'cyan')}  {line}" if several else line)

    for target in targets:
        target.begin(last)
    while targets:
        for target in targets:
            target.step(printed, points=not no_points)
        targets = [target for target in targets if follow or not target.ended]
        targets = [target for target in targets if not target.gone]
        console.flush()
        if targets:
            if console.reader_is_gone():
                raise BrokenPipeError
            wake.wait(_POLL_S)
            wake.clear()


def _targets(
    experiments: tuple[str | None, ...], path: Path | None, remote: str | None, wake: threading.Event
) -> Iterator[_Target]:
    if remote is None:
        from ml_dash.reading.live import LiveViews

        views = LiveViews()
        for located in dict.fromkeys(read.locate(one, path) for one in experiments):
            yield _Target(f"{located.project}/{located.name}", _Here(located, views))
        return
    from ml_dash.cli.server_view import server_view

    for one in experiments:
        view = server_view(one, path, remote)
        record = view.record()
        yield _Target(f"{record['project']}/{record['name']}", _There(view, wake))


# -- where news come from ---------------------------------------------------------------------------------------------


class _Here:
    """An experiment of this machine: there is news when its files have grown, or its process has died."""

    def __init__(self, located: Located, views: LiveViews) -> None:
        self._located = located
        self._views = views
        self._mark: Any = None
        self._alive: tuple[str, ...] = ()
        self.gone = False

    def news(self) -> bool:
        """True if something may have come since the last look."""
        from ml_dash.reading.live import mark_of

        try:
            mark = mark_of(self._located.journal, self._alive)
        except FileNotFoundError:
            self.gone = True
            return False
        changed: bool = mark != self._mark
        self._mark = mark
        return changed

    @contextmanager
    def look(self) -> Iterator[ExperimentView]:
        """Give a view of all that is there now."""
        with self._views.looking(self._located) as view:
            self._alive = tuple(view.state.alive)
            yield view


class _There:
    """An experiment of a server: a thread waits for its stream of changes, and connects again whenever that breaks."""

    def __init__(self, view: ServerView, wake: threading.Event) -> None:
        self._client, self._id = view.client, view.id
        self._wake = wake
        self._changed = threading.Event()
        self._changed.set()
        self._failed: Exception | None = None
        self.gone = False
        threading.Thread(target=self._watch, name="ml-dash-tail", daemon=True).start()

    def _watch(self) -> None:
        """Set `_changed` for each change. Ends when the experiment is removed, or the server refuses for good."""
        pause, waiting = _FIRST_RETRY_S, threading.Event()
        while True:
            try:
                for _ in self._client.watch(self._id):
                    pause = _FIRST_RETRY_S
                    self._tell()
                self.gone = True
            except Unreachable:
                waiting.wait(pause)
                pause = min(2 * pause, _LONGEST_RETRY_S)
                continue
            except NotFound:
                self.gone = True
            except Exception as error:  # noqa: BLE001 - raised again by the thread that prints
                self._failed = error
            self._tell()
            return

    def _tell(self) -> None:
        self._changed.set()
        self._wake.set()

    def news(self) -> bool:
        """True if something has come since the last look. Raises what the server refused with."""
        if self._failed is not None:
            raise self._failed
        if not self._changed.is_set():
            return False
        # Before the look, so that a change during it is seen by the next one.
        self._changed.clear()
        return True

    @contextmanager
    def look(self) -> Iterator[ExperimentView]:
        """Give a view of all that is there now. Raises Unreachable; it is looked again then."""
        from ml_dash.cli.server_view import ServerView

        try:
            yield ServerView(self._client, self._id)
        except Unreachable:
            self._changed.set()
            raise


# -- one experiment ---------------------------------------------------------------------------------------------------


class _Target:
    """One experiment that is followed: what was printed of it."""

    def __init__(self, name: str, source: _Here | _There) -> None:
        self._name = name
        self._source = source
        self._next_log = 0
        self._totals: dict[str, int] | None = None
        self._status: str | None = None
        # Points that have come since the last ones were printed.
        self._owes_points = False
        self._points_due = 0.0
        self._away = False
        self.ended = False

    @property
    def gone(self) -> bool:
        """True if the experiment was removed."""
        return self._source.gone

    def begin(self, last: int) -> None:
        """Begin with the last so many log entries, and with no points. Raises Unreachable."""
        with self._source.look() as view:
            self._next_log = max(0, view.record()["counts"]["logs"] - last)

    def step(self, printed: Printed, *, points: bool) -> None:
        """Print what has come since the last step, if anything has."""
        try:
            due = self._owes_points and monotonic() >= self._points_due
            if not self._source.news() and not due:
                if self._source.gone:
                    printed(self._name, console.styled("removed", "yellow"), {"kind": "status", "status": "removed"})
                return
            with self._source.look() as view:
                self._print(view, printed, points=points)
            if self._away:
                console.print_note(f"{self._name}: the server answers again")
            self._away = False
        except Unreachable as error:
            if not self._away:
                console.print_note(f"{self._name}: {error.message}; it goes on when the server answers")
            self._away = True

    def _print(self, view: ExperimentView, printed: Printed, *, points: bool) -> None:
        # Before the entries: what comes meanwhile is printed by the next step.
        record = view.record()
        for entry in view.each_log(self._next_log):
            printed(self._name, line_of(entry), {"kind": "log", **entry})
            self._next_log = entry["sequenceNumber"] + 1
        ended = record["status"] != "running"
        if points:
            self._print_points(view, printed, at_once=ended)
        if record["status"] != self._status:
            self._status = record["status"]
            reason = record.get("reason")
            text = status_cell(self._status)
            line = text if isinstance(text, str) else console.styled(text.text, text.style)
            line += console.safe(f": {reason['text']}" if reason else "")
            printed(self._name, line, {"kind": "status", "status": self._status, "reason": reason})
        self.ended = ended

    def _print_points(self, view: ExperimentView, printed: Printed, *, at_once: bool) -> None:
        totals = {metric["name"]: metric["totalDataPoints"] for metric in view.metrics()}
        if self._totals is None:
            self._totals = totals
            return
        grown = [name for name, total in totals.items() if total > self._totals.get(name, 0)]
        self._owes_points = bool(grown)
        if not grown or (monotonic() < self._points_due and not at_once):
            return
        for name in grown[:_MOST_LINES]:
            page = view.metric_page(name, -1, 1)["data"]
            if page:
                printed(self._name, _point_line(name, page[0]), {"kind": "point", "metric": name, **page[0]})
        if len(grown) > _MOST_LINES:
            console.print_note(f"{self._name}: points of {len(grown) - _MOST_LINES:,} more metrics")
        self._totals, self._owes_points = totals, False
        self._points_due = monotonic() + _POINTS_EVERY_S


def _point_line(name: str, point: Any) -> str:
    fields = "  ".join(f"{console.safe(key)}={console.value_text(value)}" for key, value in point["data"].items())
    kind = console.styled("point", "cyan")
    return f"{console.time_text(point['createdAt'])} {kind} {console.safe(name)}  {fields}"
