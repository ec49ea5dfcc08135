"""A handle's life: how it opens, shares a run with others, ends, and goes to other processes."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import itertools
import logging
import os
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn, cast

from ..core import events
from ..core.names import shown
from ..core.values import lenient_values
from ..disk.config import Settings, disabled, quiet
from ..errors import NotFound, NotOpen, ReadOnly, StorageError, UnsupportedType, WriteProtected
from . import disabled as discard
from .ending import Before, before, ending, unhandled

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..core.records import DurableState
    from ..reading.read import Located
    from ..reading.view import View
    from ..sync.sent import Sent
    from .opening import Wish
    from .session import Run

log = logging.getLogger("ml_dash")

# The process that imported the library; those that it forks tell the user nothing.
_FIRST_PROCESS: Final = os.getpid()
_PROCESS: Final = os.urandom(8).hex()

# Open or not: a forked child gives each of them a new lock, another thread may have held the old one.
_handles: weakref.WeakSet[Handle] = weakref.WeakSet()


class Handle:
    """One handle to an experiment. `Experiment` adds what its user calls."""

    _name: str
    _project: str
    _settings: Settings
    _given: dict[str, Any]
    _write_protected: bool
    _resume: str
    _resume_from_remote: bool
    _resume_step: int | float | None
    _read_only: bool
    _strict: bool
    _disabled: bool

    _gone: ClassVar[tuple[type[Exception], ...]] = ()
    """What a writer raises that was closed while another thread was about to call it; known once one was opened."""

    _ended_at_exit = False
    """Did the end of the process close it?"""

    def _start_state(self) -> None:
        _handles.add(self)
        self._guard = threading.RLock()
        self._warned: set[str] = set()
        self._run: Run | None = None
        self._reading: Located | None = None
        # In another process: the writer of the process that this handle came from, until the first call here.
        self._parent: tuple[str | None] | None = None
        self._recorded = False
        self._resumed = False
        self._before: Before = (None, None)
        self._counts: DurableState | None = None
        # What the last run has to upload: asked for also when that has ended.
        self._sent: list[Sent] | None = None
        self._metrics: dict[str, Any] = {}  # the builders handed out, by name
        self._append: Any = self._not_open
        self._tallies: Any = _NO_TALLIES

    # -- opening -----------------------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """May this handle record or read?"""
        return self._run is not None or self._reading is not None or self._parent is not None

    def open(self) -> Self:
        """Create or continue the experiment; returns self. A second call does nothing.

        Raises NotFound or AlreadyExists as `resume` and `read_only` ask, ForeignFolder if the folder belongs to
        something else; StorageError if the disk refuses and `strict`.
        """
        with self._guard:
            if not self.is_open:
                if self._read_only:
                    self._open_for_reading()
                else:
                    self._open_for_writing(child=False, parent=None)
        return self

    def _open_for_reading(self) -> None:
        from . import opening

        located = opening.find(self._wish())
        if located is None:
            path = self._settings.root / self._project / self._name
            raise NotFound(f"there is no experiment {self._project}/{self._name} in {path}")
        self._reading = located
        self._resumed = True
        self._append = self._read_only_refusal

    def _open_for_writing(self, *, child: bool, parent: str | None) -> None:
        from ..journal.writer import WriterGone
        from . import opening
        from .session import registry

        Handle._gone = (WriterGone,)
        self._before = before()
        if self._resume_from_remote and not child and not self._recorded and self._resume != "new":
            from ..sync.fetch import fetch

            fetch(opening.where(self._wish()), self._settings)
        first = not child and not self._recorded
        with registry.lock:
            run, resumed = opening.open_run(self._wish(child=child, parent=parent))
            run.handles += 1
            run.secrets.update(self._settings.secrets)
            registry.handles.add(self)
        if not child:
            self._resumed = resumed
            # With resume="new" it may be another one than was asked for.
            self._name = run.located.name
        self._recorded = True
        self._run = run
        self._tallies = run.tallies
        self._append = run.writer.append
        self._parent = None
        if first and self._resume_step is not None:
            # Also where there is nothing here: a server may have it, or another rank has begun it a moment ago.
            self._rewind({"step": self._resume_step})
        if self._settings.remote is not None:
            self._ask_for_upload(run)

    def _rewind(self, body: dict[str, Any]) -> None:
        """Record that points before now, from a step on, are superseded."""
        try:
            self._open_run().writer.append_apart(events.REWIND, body)
        except self._gone:
            self._not_open()

    def _ask_for_upload(self, run: Run) -> None:
        """Register the journal for `ml-dash-syncd`, and start that; this process talks to no server."""
        from ..sync import sent
        from .session import say

        self._sent = run.sent
        forked = os.getpid() != _FIRST_PROCESS
        begun = sent.begin(
            run.located, run.writer, self._settings, run.sent, forked=forked, local=run.local,
            new=not self._resumed and not run.child,
        )  # fmt: skip
        if begun is not None and not run.child and not forked and not quiet() and sent.needs_login(begun):
            remote = self._settings.remote
            say(f"ml-dash: no login for {remote} yet: data is kept here; run ml-dash login {remote}")

    def _wish(self, *, child: bool = False, parent: str | None = None) -> Wish:
        from .opening import Wish

        first = not child and not self._recorded
        insisting = first and not (self._disabled and self._resume == "must")
        return Wish(
            project=self._project,
            name=self._name,
            settings=self._settings,
            given=self._given,
            given_anew=first,
            write_protected=self._write_protected,
            resume=self._resume if insisting else "allow",
            strict=self._strict,
            child=child,
            parent=parent,
            silent=os.getpid() != _FIRST_PROCESS,
        )

    # -- closing -----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close(error, None)

    def __del__(self) -> None:
        if getattr(self, "_run", None) is not None and not sys.is_finalizing():
            from .background import keeper

            keeper.collect(self)

    def _close(self, error: BaseException | None, status: str | None) -> None:
        """Close with the exception that is passing, if any; that one goes on, whatever the disk says."""
        with self._guard:
            run, self._run = self._run, None
            self._reading = None
            self._parent = None
            self._before = (None, None)
            self._append = self._not_open
            self._tallies = _NO_TALLIES
            self._metrics = {}
        if run is None:
            return
        if run.pid != os.getpid():  # forked behind the interpreter's back
            run.abandon()
            return
        how, described = ending(error, run.secrets)
        try:
            _leave(self, run, status or how, described if status in (None, "failed") else None)
        except StorageError as lost:
            if error is None:
                raise
            log.error("ml-dash: %s", lost)
        finally:
            self._counts = run.durable_state()

    def _close_at_exit(self) -> None:
        self._ended_at_exit = True
        self._close(unhandled(self._before), None)

    # -- what the builders ask ---------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._parent is not None:
            self._open_here()
        if not self.is_open:
            self._not_open()

    def _open_run(self) -> Run:
        self._check_open()
        run = self._run
        if run is None:
            if self._reading is not None:
                self._read_only_refusal()
            self._not_open()
        return run

    def _changeable_run(self) -> Run:
        """The run, if parameters and files may still be changed."""
        run = self._open_run()
        if run.protected:
            raise WriteProtected(
                f"experiment {self._project}/{self._name} is write-protected: its parameters and files are final",
                hint="logs and metrics go on; use another experiment for other parameters",
            )
        return run

    def _record(self, kind: int, body: Any) -> int | None:
        """Append one event, where a microsecond does not matter."""
        try:
            return cast("int | None", self._append(kind, body))
        except self._gone:
            self._not_open()

    @contextlib.contextmanager
    def _looking(self) -> Iterator[View]:
        """A view of all that this process has recorded."""
        self._check_open()
        run, reading = self._run, self._reading
        if run is not None:
            with run.looking() as view:
                yield view
        elif reading is not None:
            from ..reading.read import view as look

            yield look(reading)
        else:
            self._not_open()

    def _located(self) -> Located:
        """Where the experiment is that this handle has open."""
        run, reading = self._run, self._reading
        located = run.located if run is not None else reading
        if located is None:
            self._not_open()
        return located

    def _not_open(self, *_: Any) -> NoReturn:
        if self._ended_at_exit and threading.current_thread() is not threading.main_thread():
            _end_thread(f"{self._project}/{self._name}")
        raise NotOpen(
            f"experiment {self._project}/{self._name} is not open",
            hint="use it in a with block, or call experiment.open() first",
        )

    def _read_only_refusal(self, *_: Any) -> NoReturn:
        raise ReadOnly(
            f"experiment {self._project}/{self._name} was opened with read_only=True",
            hint="open it without read_only to record",
        )

    def _checked_given(self, description: Any, tags: Any, folder: Any, metadata: Any) -> dict[str, Any]:
        """Those of the four that were given, as plain values."""
        for argument, value in (("description", description), ("folder", folder)):
            if value is not None and not isinstance(value, str):
                raise UnsupportedType(f"{argument} is {type(value).__name__}, expected text")
        texts = events.given(description=description, tags=checked_tags(tags), folder=folder)
        checked = lenient_values(texts, self._warn)
        if metadata is not None:
            checked["metadata"] = lenient_values(checked_mapping("metadata", metadata), self._warn)
        return checked

    def _warn(self, text: str) -> None:
        if text not in self._warned and not self._disabled:
            self._warned.add(text)
            log.warning("ml-dash: %s", text)

    # -- other processes ---------------------------------------------------------------------------------------------

    def _forked(self) -> None:
        """In a forked child: this handle opens itself, with a writer of its own, at its first call."""
        run = self._run
        self._guard = threading.RLock()
        self._run = None
        self._sent = None
        self._metrics = {}
        if run is not None:
            self._await_first_call(run.writer.id)

    def _await_first_call(self, parent: str | None) -> None:
        # There is nothing to close at exit before that call, and no run to be collected with.
        self._parent = (parent,)
        self._append = self._append_here
        self._tallies = _TalliesOfAnotherProcess(self)

    def _open_here(self) -> None:
        with self._guard:
            if self._parent is not None:
                self._open_for_writing(child=True, parent=self._parent[0])

    def _append_here(self, *arguments: Any) -> Any:
        self._check_open()
        return self._append(*arguments)

    def __getstate__(self) -> dict[str, Any]:
        run, parent = self._run, self._parent
        return {
            "own": {name: value for name, value in vars(self).items() if name not in _attributes()},
            "name": self._name,
            "project": self._project,
            "settings": dataclasses.replace(self._settings, api_key=None),
            "given": self._given,
            "write_protected": self._write_protected,
            "resume": self._resume,
            "resume_from_remote": self._resume_from_remote,
            "resume_step": self._resume_step,
            "read_only": self._read_only,
            "strict": self._strict,
            "was_open": self.is_open,
            "recorded": self._recorded,
            "resumed": self._resumed,
            "parent": run.writer.id if run is not None else parent[0] if parent is not None else None,
            "waiting": parent is not None,
            "process": (_PROCESS, os.getpid()),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._start_state()
        vars(self).update(state["own"])
        for argument in (
            "name", "project", "settings", "given", "write_protected", "resume", "resume_from_remote", "resume_step",
            "read_only", "strict", "recorded", "resumed",
        ):  # fmt: skip
            setattr(self, f"_{argument}", state[argument])
        self._disabled = disabled()
        if not state["was_open"]:
            return
        here = state["process"] == (_PROCESS, os.getpid()) and not state["waiting"]
        if here or self._read_only:
            self.open()
        else:
            self._await_first_call(state["parent"])

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copy = object.__new__(type(self))
        copy.__setstate__(self.__getstate__())
        return copy

    def __copy__(self) -> Self:
        return self.__deepcopy__({})


def checked_tags(tags: Any) -> list[str] | None:
    """A list of text; one text counts as a list of one."""
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
    """The mapping that an argument must be."""
    if not isinstance(value, Mapping):
        raise UnsupportedType(f"{argument} is {type(value).__name__}, expected a mapping", hint="like {'key': 'value'}")
    return value


def _attributes() -> set[str]:
    """The attributes of a handle; others are those of its user, or of a class derived from Experiment."""
    blank = object.__new__(Handle)
    blank._start_state()
    return {*vars(blank), *Handle.__annotations__}


class _NoTallies(dict[str, Any]):
    """Stands where a run's tallies are while a handle has none: `append` refuses by itself."""

    def __missing__(self, name: str) -> None:
        return None


_NO_TALLIES = _NoTallies()


class _TalliesOfAnotherProcess:
    """Opens the handle in this process, and answers with the tallies of its new run."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    def __getitem__(self, name: str) -> Any:
        self._handle._check_open()
        return self._handle._tallies[name]


_late = itertools.count(1)


def _end_thread(name: str) -> NoReturn:
    """End a thread that records while the interpreter ends: not with a traceback, for it did nothing wrong."""
    if next(_late) == 1:
        text = f"ml-dash: threads still recorded into {name} while the process ended: dropped; join them first\n"
        # Not by `sys.stderr`: to wait for its lock now could end the process badly.
        with contextlib.suppress(OSError):
            os.write(2, text.encode(errors="backslashreplace"))
    raise SystemExit


def _leave(handle: Handle, run: Run, status: str, error: dict[str, Any] | None) -> None:
    """Take a handle from its run; the last one ends it, `failed` if any was."""
    from .session import registry

    with registry.lock:
        registry.handles.discard(handle)
        run.handles -= 1
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
    """Close what is open. Registered when the library is imported, so that exit functions of its user come before."""
    run = sys.modules.get("ml_dash.recording.session")
    if run is not None:
        run.registry.close_all()
    if (sent := sys.modules.get("ml_dash.sync.sent")) is not None and run is not None:
        line = sent.tell_at_exit(quiet=quiet() or os.getpid() != _FIRST_PROCESS)
        if line is not None:
            run.say(line)
    discard.remove()


atexit.register(_at_exit)


def _after_fork() -> None:
    """In a forked child: no handle has a run here yet."""
    for handle in list(_handles):
        handle._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
