"""The life of a handle: opening, sharing a run, closing, fork and pickle."""

from __future__ import annotations

import logging
import os
import sys
import threading
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..core import events
from ..core.names import check_name, experiment_id, shown
from ..core.values import lenient_values
from ..disk.places import disabled, quiet
from ..disk.settings import Settings
from ..errors import NotFound, StorageError, UnsupportedType, WriterGone
from . import disabled as discard
from . import process
from .ending import Before, Cause, before, cause, ending, unhandled
from .messages import print_line
from .session import Closed, Elsewhere, Reading, Recording, Session

if TYPE_CHECKING:
    from ..core.as_of import AsOf
    from ..core.records import DurableState
    from ..sync.progress import Sent
    from .opening import OpenRequest
    from .run import Run

log = logging.getLogger("ml_dash")

# Differs between processes with the same pid; a forked child shares it, and differs by its pid.
_PROCESS: Final = os.urandom(8).hex()

# Open or not: a forked child gives each handle a new lock, since another thread may have held the old one.
_handles: weakref.WeakSet[Handle] = weakref.WeakSet()


class Warnings:
    """Logs warnings about one experiment, each text once; none where recording is switched off."""

    def __init__(self, *, silent: bool) -> None:
        self._silent = silent
        self._warned: set[str] = set()

    def __call__(self, text: str) -> None:
        if text not in self._warned and not self._silent:
            self._warned.add(text)
            log.warning("ml-dash: %s", text)


class Arguments(NamedTuple):
    """The checked arguments of an experiment; `given` has those of description, tags, folder, metadata that it got."""

    name: str
    project: str
    settings: Settings
    given: dict[str, Any]
    write_protected: bool
    resume: str
    resume_from_remote: bool
    resume_step: int | float | None
    read_only: bool
    as_of: AsOf | None
    strict: bool


class Handle:
    """The engine behind one `Experiment` and its builders, from the first opening to the last closing.

    `session` is what may be done with it now; opening and closing replace it, under `_guard`. Other threads read it
    without a lock, once per call. Builders keep the handle, and so work again when it is reopened. `registry.lock` is
    taken within `_guard`, never the other way round.
    """

    def __init__(self, arguments: Arguments, warn: Warnings, *, disabled: bool) -> None:
        self.arguments = arguments
        self.warn = warn
        self.disabled = disabled
        self.session: Session = Closed(f"{arguments.project}/{arguments.name}")
        self.recorded = False
        self.resumed = False
        self.before: Before = (None, None)
        # Uploads and final counts of the last run: `durable_state` and `wait_synced` answer after it has ended, too.
        self.sent: list[Sent] | None = None
        self.counts: DurableState | None = None
        self._guard = threading.RLock()
        _handles.add(self)

    @property
    def name(self) -> str:
        """The experiment's name; with resume="new", `open()` may have chosen `name-2`, `name-3`, ..."""
        return self.arguments.name

    @property
    def project(self) -> str:
        """The project's name."""
        return self.arguments.project

    @property
    def id(self) -> str:
        """The experiment's id."""
        return experiment_id(self.project, self.name)

    # -- opening -----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Create or continue the experiment; do nothing if it is open. See `Experiment.open`."""
        with self._guard:
            if not self.session.is_open:
                if self.arguments.read_only:
                    self._open_for_reading()
                else:
                    self._open_for_writing(child=False, parent=None)

    def _open_for_reading(self) -> None:
        with process.loading():
            from . import opening

        located = opening.find(self.open_request())
        if located is None:
            path = self.arguments.settings.root / self.project / self.name
            raise NotFound(f"there is no experiment {self.project}/{self.name} in {path}")
        self.resumed = True
        self.arguments = self.arguments._replace(name=located.name)
        self.session = Reading(self.session.experiment, located, self.arguments.as_of)

    def _open_for_writing(self, *, child: bool, parent: str | None) -> None:
        with process.loading():
            from . import opening
            from .run import registry

        arguments, settings = self.arguments, self.arguments.settings
        self.before = before()
        if arguments.resume_from_remote and not child and not self.recorded and arguments.resume != "new":
            from ..sync.fetch import fetch

            fetch(opening.where(self.open_request()), settings)
        first = not child and not self.recorded
        with registry.lock:
            run, resumed = opening.open_run(self.open_request(child=child, parent=parent))
            run.handles += 1
            run.secrets.update(settings.secrets)
            registry.handles.add(self)
        if not child:
            self.resumed = resumed
            self.arguments = arguments._replace(name=run.located.name)
        self.recorded = True
        self.session = Recording(f"{self.project}/{self.name}", run)
        if first and arguments.resume_step is not None:
            # Also without points here: a server may have some, or another rank has begun the experiment a moment ago.
            self.rewind({"step": arguments.resume_step})
        if settings.remote is not None:
            self._ask_for_upload(run)

    def _ask_for_upload(self, run: Run) -> None:
        """Register the journal for `ml-dash-syncd` and start that; this process itself talks to no server."""
        from ..sync import progress

        self.sent = run.sent
        settings = self.arguments.settings
        forked = os.getpid() != process.FIRST
        begun = progress.begin(
            run.located, run.writer, settings, run.sent, forked=forked, local=run.local,
            new=not self.resumed and not run.child,
        )  # fmt: skip
        if begun is not None and not run.child and not forked and not quiet() and progress.needs_login(begun):
            remote = settings.remote
            print_line(f"ml-dash: no login for {remote} yet: data is kept here; run ml-dash login {remote}")

    def open_request(self, *, child: bool = False, parent: str | None = None) -> OpenRequest:
        """Return the request with which this handle opens its run."""
        from .opening import OpenRequest

        arguments = self.arguments
        first = not child and not self.recorded
        insisting = first and not (self.disabled and arguments.resume == "must")
        return OpenRequest(
            project=arguments.project,
            name=arguments.name,
            settings=arguments.settings,
            given=arguments.given,
            given_anew=first,
            write_protected=arguments.write_protected,
            resume=arguments.resume if insisting else "allow",
            strict=arguments.strict,
            child=child,
            parent=parent,
            silent=os.getpid() != process.FIRST,
        )

    # -- recording ---------------------------------------------------------------------------------------------------

    def record(self, kind: int, body: Any) -> int | None:
        """Append one event; `append` and `log` use the session directly, which is faster."""
        try:
            return self.session.append(kind, body)
        except WriterGone:
            self.session.refuse()

    def rewind(self, body: dict[str, Any]) -> None:
        """Record that points before now, from a step on, are superseded."""
        try:
            self.session.recording().writer.append_apart(events.REWIND, body)
        except WriterGone:
            self.session.refuse()

    # -- closing -----------------------------------------------------------------------------------------------------

    def __del__(self) -> None:
        if self.session.run is not None and not sys.is_finalizing():
            from .background import background_projector

            background_projector.collect(self)

    def close(self, error: BaseException | None, status: str | None, *, at_exit: bool = False) -> None:
        """Close with the exception that is being handled, if any; a StorageError is then only logged."""
        with self._guard:
            session = self.session
            if not session.is_open:
                return
            self.session = Closed(session.experiment, at_exit=at_exit)
            self.before = (None, None)
        run = session.run
        if run is None:
            return
        if run.pid != os.getpid():  # forked without os.fork, so no hook ran
            run.abandon()
            return
        how, described = ending(error, run.secrets)
        try:
            caused = cause(error) if status in (None, how) else {}
            _leave(self, run, status or how, described if status in (None, "failed") else None, caused)
        except StorageError as lost:
            if error is None:
                raise
            log.error("ml-dash: %s", lost)
        finally:
            self.counts = run.durable_state()

    def close_at_exit(self) -> None:
        """Close at the end of the process, with the exception that ended it, if any."""
        self.close(unhandled(self.before), None, at_exit=True)

    # -- other processes ---------------------------------------------------------------------------------------------

    def after_fork(self) -> None:
        """Reset this handle in a forked child: its first call opens it there, with a writer of its own."""
        run = self.session.run
        self._guard = threading.RLock()
        self.sent = None
        if run is not None:
            self._await_first_call(run.writer.id)

    def _await_first_call(self, parent: str | None) -> None:
        # Before that call there is nothing to close at exit, and no run.
        self.session = Elsewhere(f"{self.project}/{self.name}", parent, self._open_here)

    def _open_here(self) -> Session:
        with self._guard:
            session = self.session
            if isinstance(session, Elsewhere):
                self._open_for_writing(child=True, parent=session.writer_id)
            return self.session

    def state(self) -> dict[str, Any]:
        """Return what goes to another process, or into a copy: all but the API key."""
        settings = self.arguments.settings._replace(api_key=None)
        return {
            "arguments": self.arguments._replace(settings=settings),
            "was_open": self.session.is_open,
            "recorded": self.recorded,
            "resumed": self.resumed,
            "parent": self.session.writer_id,
            "waiting": isinstance(self.session, Elsewhere),
            "process": (_PROCESS, os.getpid()),
        }

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Handle:
        """Make a handle from `state()`: open at once in the same process, at its first call in another one."""
        switched_off = disabled()
        handle = cls(state["arguments"], Warnings(silent=switched_off), disabled=switched_off)
        handle.recorded, handle.resumed = state["recorded"], state["resumed"]
        if state["was_open"]:
            here = state["process"] == (_PROCESS, os.getpid()) and not state["waiting"]
            if here or handle.arguments.read_only:
                handle.open()
            else:
                handle._await_first_call(state["parent"])
        return handle


def checked_given(description: Any, tags: Any, folder: Any, metadata: Any, warn: Warnings) -> dict[str, Any]:
    """Return those of the four that were given, as plain values. Raises UnsupportedType."""
    for argument, value in (("description", description), ("folder", folder)):
        if value is not None and not isinstance(value, str):
            raise UnsupportedType(f"{argument} is {type(value).__name__}, expected text")
    texts = events.given(description=description, tags=checked_tags(tags), folder=folder)
    checked = lenient_values(texts, warn)
    if metadata is not None:
        checked["metadata"] = lenient_values(checked_mapping("metadata", metadata), warn)
    return checked


def checked_labels(title: Any, notes: Any, archived: Any) -> dict[str, Any]:
    """Return those of the three that were given, as plain values. Raises InvalidName or UnsupportedType."""
    if notes is not None and not isinstance(notes, str):
        raise UnsupportedType(f"notes is {type(notes).__name__}, expected text")
    if archived is not None and not isinstance(archived, bool):
        raise UnsupportedType(f"archived is {type(archived).__name__}, expected True or False")
    checked = lenient_values(events.given(notes=notes), lambda _: None)
    return {**checked, **events.given(title=None if title is None else check_name("title", title), archived=archived)}


def checked_tags(tags: Any) -> list[str] | None:
    """Return tags as a list of text; one text is taken as a list of one. Raises UnsupportedType."""
    if tags is None:
        return None
    if isinstance(tags, str):
        return [tags]
    try:
        listed = None if isinstance(tags, (bytes, Mapping)) else list(tags)
    except TypeError:
        listed = None
    if listed is None or not all(isinstance(tag, str) for tag in listed):
        raise UnsupportedType(f"tags are {shown(repr(tags))}, expected a list of text", hint='like tags=["baseline"]')
    return listed


def checked_mapping(argument: str, value: Any) -> Mapping[str, Any]:
    """Return `value`, which must be a mapping. Raises UnsupportedType, naming the argument."""
    if not isinstance(value, Mapping):
        raise UnsupportedType(f"{argument} is {type(value).__name__}, expected a mapping", hint="like {'key': 'value'}")
    return value


def _leave(handle: Handle, run: Run, status: str, error: dict[str, Any] | None, caused: Cause) -> None:
    """Detach a handle from its run; the last one closes the run, as `failed` if any handle was."""
    from .run import registry

    with registry.lock:
        registry.handles.discard(handle)
        run.handles -= 1
        run.cause = run.cause or caused
        if status == "failed":
            run.failed = run.failed or error or {}
        run.interrupted = run.interrupted or status == "interrupted"
        if run.handles:
            return
        registry.leave(run)
    if run.failed is not None:
        status, error = "failed", run.failed or None
    elif run.interrupted:
        status = "interrupted"
    run.close(status, error)


def _at_exit() -> None:
    """Close what is open."""
    run = sys.modules.get("ml_dash.recording.run")
    if run is not None:
        run.registry.close_all()
    if (progress := sys.modules.get("ml_dash.sync.progress")) is not None and run is not None:
        line = progress.report_at_exit(quiet=quiet() or os.getpid() != process.FIRST)
        if line is not None:
            print_line(line)
    discard.remove()


def _after_fork() -> None:
    """Reset all handles in a forked child."""
    for handle in list(_handles):
        handle.after_fork()


# Before the runs are abandoned: each handle reads the writer id of its run.
process.in_child.insert(0, _after_fork)
process.at_exit.append(_at_exit)
