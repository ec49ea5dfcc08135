"""The public handle to one experiment: open it, record into it, read it, close it."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, cast, overload

from . import events
from .config import OperationMode, Settings, disabled, resolve
from .ending import Ending, check_status, ending, passing, unhandled
from .errors import InvalidValue, NotFound, NotOpen, ReadOnly, UnsupportedType, WriteProtected
from .files import FileBuilder, FileEntry, file_builder
from .log import LogBuilder, append_log
from .metric import MetricBuilder, MetricsBuilder
from .names import check_name, experiment_id
from .parameters import ParametersBuilder
from .values import lenient_values

if TYPE_CHECKING:
    from typing_extensions import Self

    from .read import Located
    from .records import DurableState, ExperimentRecord
    from .run import Run
    from .view import View

PathText = str | os.PathLike[str]
Metadata = Mapping[str, Any]

_RESUME = ("allow", "must", "never")


class Experiment:
    """A handle to one experiment, known by its project and its name.

    With `with`, or with `open()` and `close()`. Opening an experiment that exists continues it. Data is in
    `local_path` (default `.ml-dash`); with `remote=` it is kept there too, and uploaded by `ml-dash-syncd`.

    `resume`: "allow", "must" (NotFound if new) or "never" (AlreadyExists). `durability`: "interval" syncs to disk
    within a second, "always" before each call returns, "os" leaves it to the operating system. `strict=True` raises
    StorageError at the call when the disk refuses, instead of keeping events in memory until it takes them again.
    `read_only=True` writes nothing, NotFound if absent. `write_protected=True` makes parameters and files final.
    Raises InvalidName, InvalidValue or UnsupportedType for a bad argument; nothing is written by the constructor.
    Thread-safe; handles of one process share one writer; forked and unpickled handles get a writer of their own.
    """

    def __init__(
        self,
        name: str,
        project: str,
        *,
        description: str | None = None,
        tags: list[str] | None = None,
        folder: str | None = None,
        metadata: Metadata | None = None,
        write_protected: bool = False,
        local_path: PathText | None = None,
        local_prefix: PathText | None = None,
        remote: str | None = None,
        user_name: str | None = None,
        api_key: str | None = None,
        resume: str = "allow",
        resume_from_remote: bool = False,
        read_only: bool = False,
        durability: str | None = None,
        strict: bool = False,
    ) -> None:
        self._name = check_name("name", name)
        self._project = check_name("project", project)
        if resume not in _RESUME:
            raise InvalidValue(f"resume is {resume!r}", hint=f"use one of {', '.join(_RESUME)}")
        self._disabled = disabled()
        if self._disabled:
            local_path, local_prefix = _disabled_folder(), None
        self._settings: Settings = resolve(local_path, local_prefix, remote, user_name, api_key, durability)
        if resume_from_remote and self._settings.remote is None:
            raise InvalidValue("resume_from_remote=True needs a remote", hint="give remote= too")
        self._warned: set[str] = set()
        self._given = self._checked_given(description, tags, folder, metadata)
        self._write_protected = bool(write_protected)
        self._resume = resume
        self._resume_from_remote = bool(resume_from_remote)
        self._read_only = bool(read_only)
        self._strict = bool(strict)
        self._start_state()

    def _start_state(self) -> None:
        self._guard = threading.RLock()
        self._run: Run | None = None
        self._reading: Located | None = None
        self._resumed = False
        self._at_open: BaseException | None = None
        self._reopen_as_child: tuple[bool, str | None] | None = None
        self._metrics: dict[str, MetricBuilder] = {}
        self._append: Any = self._not_open
        self._tallies: Any = _NO_TALLIES

    # -- opening and closing -----------------------------------------------------------------------------------------

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

        located = opening.find(self._wish(child=False, parent=None))
        if located is None:
            path = self._settings.root / self._project / self._name
            raise NotFound(f"there is no experiment {self._project}/{self._name} in {path}")
        self._reading = located
        self._resumed = True
        self._append = self._read_only_refusal

    def _open_for_writing(self, *, child: bool, parent: str | None) -> None:
        from . import opening
        from .run import registry

        self._at_open = sys.exc_info()[1]
        with registry.lock:
            run, self._resumed = opening.open_run(self._wish(child=child, parent=parent))
            run.handles += 1
            if self._settings.api_key:
                run.secrets.add(self._settings.api_key)
            registry.handles.add(self)
        self._run = run
        self._tallies = run.tallies
        self._append = run.writer.append
        self._reopen_as_child = None
        if self._resume_from_remote:
            opening.log.warning(
                "ml-dash: nothing was fetched from %s: this version does not talk to servers yet; going on with what is "
                "here", self._settings.remote,
            )  # fmt: skip

    def _wish(self, *, child: bool, parent: str | None) -> Any:
        from .opening import Wish

        return Wish(
            project=self._project,
            name=self._name,
            settings=self._settings,
            given=self._given,
            write_protected=self._write_protected,
            resume="allow" if child else self._resume,
            strict=self._strict,
            child=child,
            parent=parent,
        )

    def close(self, status: Literal["completed", "failed", "interrupted"] | None = None) -> None:
        """Close this handle; the last one writes the closing event, syncs and brings the folder up to date.

        `status` overrides how it ended; else an exception that is being handled makes it `failed`. A second call does
        nothing. Raises StorageError if the disk refused events for good; says how many.
        """
        check_status(status)
        self._close(ending(passing(self._at_open), self._secrets()), status)

    def _close(self, how: Ending, status: str | None) -> None:
        with self._guard:
            run, self._run = self._run, None
            self._reading = None
            self._reopen_as_child = None
            self._append = self._not_open
            self._tallies = _NO_TALLIES
            self._metrics = {}
        if run is not None:
            _leave(self, run, status or how[0], how[1] if status in (None, "failed") else None)

    def _close_at_exit(self) -> None:
        error = unhandled()
        self._close(ending(error, self._secrets()), None)

    def _secrets(self) -> set[str]:
        return (set(self._run.secrets) if self._run is not None else set()) | set(self._settings.secrets)

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close(ending(error, self._secrets()), None)

    def __del__(self) -> None:
        if getattr(self, "_run", None) is not None and not sys.is_finalizing():
            from .run import keeper

            keeper.collect(self)

    # -- recording ---------------------------------------------------------------------------------------------------

    @overload
    def log(self, message: str, level: str = "info", metadata: Metadata | None = None, **extra: Any) -> None: ...

    @overload
    def log(self, *, metadata: Metadata | None = None, **extra: Any) -> LogBuilder: ...

    def log(
        self, message: str | None = None, level: str = "info", metadata: Metadata | None = None, **extra: Any
    ) -> LogBuilder | None:
        """Record one log entry; without a message, a builder with `.debug() .info() .warn() .error() .fatal() .read()`.

        `level`: debug, info, warn, error or fatal, in any case. `extra` joins `metadata` and wins.
        """
        if message is None:
            if self._append == self._not_open:
                self._not_open()
            return LogBuilder(self, {**(metadata or {}), **extra})
        append_log(self, message, level, metadata, extra)
        return None

    def parameters(self) -> ParametersBuilder:
        """The experiment's parameters: `.set(...)` and `.get()`."""
        self._check_open()
        return ParametersBuilder(self)

    @overload
    def metric(
        self, name: str, description: str | None = None, tags: list[str] | None = None, metadata: Metadata | None = None
    ) -> MetricBuilder: ...

    @overload
    def metric(self) -> MetricsBuilder: ...

    def metric(
        self,
        name: str | None = None,
        description: str | None = None,
        tags: list[str] | None = None,
        metadata: Metadata | None = None,
    ) -> MetricBuilder | MetricsBuilder:
        """One metric: `.append(value=...)`, `.append_batch([...])`, `.read()`, `.stats()`; without a name `.list_all()`.

        `description`, `tags` and `metadata` are recorded with the next append, where given.
        """
        if description is None and tags is None and metadata is None:
            known = self._metrics.get(name)  # type: ignore[arg-type]  # None is in no dict of names
            if known is not None:
                return known
        self._check_open()
        if name is None:
            return MetricsBuilder(self)
        if isinstance(description, Mapping):
            raise UnsupportedType(
                "the second argument of metric() is a description, not a point",
                hint=f"use experiment.metric({name!r}).append(...)",
            )
        builder = MetricBuilder(self, name, self._checked_given(description, tags, None, metadata))
        if not builder.given:
            self._metrics[name] = builder
        return builder

    @overload
    def file(
        self,
        source: PathText,
        prefix: str = "/",
        *,
        description: str | None = None,
        tags: list[str] | None = None,
        metadata: Metadata | None = None,
    ) -> FileEntry: ...

    @overload
    def file(
        self,
        *,
        file_path: PathText | None = None,
        prefix: str | None = None,
        file_prefix: str | None = None,
        file_id: str | None = None,
        dest_path: PathText | None = None,
        description: str | None = None,
        tags: list[str] | None = None,
        metadata: Metadata | None = None,
    ) -> FileBuilder: ...

    def file(self, source: PathText | None = None, prefix: str | None = None, **arguments: Any) -> FileEntry | FileBuilder:
        """Add a file now (with a positional path; returns its record), or a builder for everything else.

        The builder: `.save()` with `file_path=`, `.list()`, and with `file_id=` `.download() .delete() .update()`.
        """
        self._check_open()
        return file_builder(self, source, prefix, arguments)

    def update(
        self,
        *,
        description: str | None = None,
        tags: list[str] | None = None,
        folder: str | None = None,
        metadata: Metadata | None = None,
    ) -> None:
        """Replace the description, tags, folder or metadata, where given."""
        given = self._checked_given(description, tags, folder, metadata)
        if given:
            self._append(events.UPDATE, given)
        else:
            self._check_open()

    # -- safety ------------------------------------------------------------------------------------------------------

    def wait_synced(self, timeout: float | None = None) -> bool:
        """Has the server acknowledged all that this process wrote? Waits for at most `timeout` seconds.

        True at once without `remote=`. False at once, with the reason logged, when it cannot happen.
        """
        self._check_open()
        if self._settings.remote is None:
            return True
        from .run import log

        log.warning("ml-dash: nothing is uploaded by this version; all data is kept in %s", self.path)
        return False

    def durable_state(self) -> DurableState:
        """Counts of this process's events: accepted, written (survive this process), synced (survive a power cut),
        remote (acknowledged by the server) and lost.
        """
        run = self._open_run()
        return cast("DurableState", {**run.writer.durable_counts(), "remote": 0})

    # -- attributes --------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self._name

    @property
    def project(self) -> str:
        """The project's name."""
        return self._project

    @property
    def id(self) -> str:
        """Decimal text, the same wherever and whenever project and name are."""
        return experiment_id(self._project, self._name)

    @property
    def mode(self) -> OperationMode:
        """LOCAL, REMOTE (remote alone) or HYBRID (remote and a path)."""
        return self._settings.mode

    @property
    def path(self) -> Path:
        """The documented folder."""
        return self._settings.root / self._project / self._name

    @property
    def is_open(self) -> bool:
        """May this handle record or read?"""
        return self._run is not None or self._reading is not None or self._reopen_as_child is not None

    @property
    def resumed(self) -> bool:
        """Did `open()` continue an experiment that existed?"""
        return self._resumed

    @property
    def description(self) -> str | None:
        """The newest description."""
        return cast("str | None", self._register("description"))

    @property
    def tags(self) -> list[str] | None:
        """The newest tags."""
        return cast("list[str] | None", self._register("tags"))

    @property
    def folder(self) -> str | None:
        """The label for grouping; it never changes the path on disk."""
        return cast("str | None", self._register("folder"))

    @property
    def metadata(self) -> dict[str, Any] | None:
        """The newest metadata."""
        return cast("dict[str, Any] | None", self._register("metadata"))

    @property
    def write_protected(self) -> bool:
        """Are parameters and files final?"""
        return self._write_protected or (self._run is not None and self._run.protected) or bool(
            self._reading is not None and self.data["writeProtected"]
        )

    @property
    def status(self) -> str:
        """running, completed, failed or interrupted; `not open` before the first opening."""
        return cast("str", self.data.get("status", "not open"))

    @property
    def data(self) -> ExperimentRecord | dict[str, Any]:
        """The mapping that `experiment.json` holds; empty if there is nothing on disk."""
        if self.is_open:
            with self._looking() as view:
                return view.record()
        from . import opening, read

        located = opening.find(self._wish(child=False, parent=None))
        return read.record(located) if located is not None else {}

    def _register(self, key: str) -> Any:
        if self.is_open:
            return self.data.get(key)
        return self._given.get(key)

    def __repr__(self) -> str:
        state = "read-only" if self._reading is not None else "open" if self.is_open else "closed"
        return f"<Experiment {self._project}/{self._name} ({state}) at {self.path}>"

    # -- for the builders --------------------------------------------------------------------------------------------

    def _checked_given(self, description: Any, tags: Any, folder: Any, metadata: Any) -> dict[str, Any]:
        for argument, value in (("description", description), ("folder", folder)):
            if value is not None and not isinstance(value, str):
                raise UnsupportedType(f"{argument} is {type(value).__name__}, expected text")
        if tags is not None:
            tags = [tags] if isinstance(tags, str) else list(tags)
            if not all(isinstance(tag, str) for tag in tags):
                raise UnsupportedType(f"tags are {tags!r:.80}, expected a list of text")
        if metadata is not None:
            if not isinstance(metadata, Mapping):
                raise UnsupportedType(f"metadata is {type(metadata).__name__}, expected a mapping")
            metadata = lenient_values(metadata, self._warn)
        checked = lenient_values(events.given(description=description, tags=tags, folder=folder), self._warn)
        return {**checked, **events.given(metadata=metadata)}

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            from .log import logger

            logger.warning("ml-dash: %s", text)

    def _check_open(self) -> None:
        if self._reopen_as_child is not None:
            self._reopened()
        if not self.is_open:
            self._not_open()

    def _open_run(self) -> Run:
        self._check_open()
        if self._run is None:
            self._read_only_refusal()
        return self._run

    def _changeable_run(self) -> Run:
        """The run, if parameters and files may still be changed."""
        run = self._open_run()
        if run.protected:
            raise WriteProtected(
                f"experiment {self._project}/{self._name} is write-protected: its parameters and files are final",
                hint="logs and metrics go on; use another experiment for other parameters",
            )
        return run

    @contextlib.contextmanager
    def _looking(self) -> Iterator[View]:
        self._check_open()
        if self._run is not None:
            with self._run.looking() as view:
                yield view
            return
        from .read import view as look

        assert self._reading is not None
        yield look(self._reading)

    def _not_open(self, *_: Any) -> NoReturn:
        raise NotOpen(
            f"experiment {self._project}/{self._name} is not open",
            hint="use it in a with block, or call experiment.open() first",
        )

    def _read_only_refusal(self, *_: Any) -> NoReturn:
        raise ReadOnly(f"experiment {self._project}/{self._name} was opened with read_only=True")

    # -- other processes ---------------------------------------------------------------------------------------------

    def _forked(self) -> None:
        """In a forked child: this handle opens itself, with a writer of its own, at its first call."""
        was_open, parent = self._run is not None, self._run.writer.id if self._run is not None else None
        self._guard = threading.RLock()
        self._run = None
        self._metrics = {}
        if was_open:
            self._await_first_call(parent)

    def _await_first_call(self, parent: str | None) -> None:
        self._reopen_as_child = (True, parent)
        self._append = self._append_reopened
        self._tallies = _TalliesOfTheReopened(self)

    def _reopened(self) -> None:
        with self._guard:
            if self._reopen_as_child is not None:
                parent = self._reopen_as_child[1]
                self._open_for_writing(child=True, parent=parent)

    def _append_reopened(self, *arguments: Any) -> Any:
        self._reopened()
        return self._append(*arguments)

    def __getstate__(self) -> dict[str, Any]:
        parent = self._run.writer.id if self._run is not None else None
        if self._reopen_as_child is not None:
            parent = self._reopen_as_child[1]
        return {
            "name": self._name,
            "project": self._project,
            "given": self._given,
            "write_protected": self._write_protected,
            "local_path": os.fspath(self._settings.store),
            "root": os.fspath(self._settings.root),
            "remote": self._settings.remote,
            "user_name": self._settings.user_name,
            "durability": self._settings.durability,
            "mode": self._settings.mode,
            "read_only": self._read_only,
            "strict": self._strict,
            "was_open": self.is_open,
            "parent": parent,
            "pid": os.getpid(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._name, self._project = state["name"], state["project"]
        self._disabled = disabled()
        self._settings = Settings(
            root=Path(state["root"]), store=Path(state["local_path"]), mode=state["mode"],
            durability=state["durability"], local_path=state["local_path"], remote=state["remote"],
            user_name=state["user_name"],
        )  # fmt: skip
        self._warned = set()
        self._given = state["given"]
        self._write_protected = state["write_protected"]
        self._resume, self._resume_from_remote = "allow", False
        self._read_only, self._strict = state["read_only"], state["strict"]
        self._start_state()
        if not state["was_open"]:
            return
        if self._read_only or state["pid"] == os.getpid():
            self.open()
        else:
            from .run import registry

            registry.told = True
            registry.handles.add(self)
            self._await_first_call(state["parent"])

    def __deepcopy__(self, memo: dict[int, Any]) -> Experiment:
        copy = object.__new__(type(self))
        copy.__setstate__(self.__getstate__())
        return copy

    __copy__: Any = None

    def _copied(self) -> Experiment:
        return self.__deepcopy__({})


Experiment.__copy__ = Experiment._copied


class _NoTallies(dict[str, Any]):
    """Stands where a run's tallies are while a handle has none: `append` refuses by itself."""

    def __missing__(self, name: str) -> None:
        return None


_NO_TALLIES = _NoTallies()


class _TalliesOfTheReopened:
    """Opens the handle in this process, and answers with the tallies of its new run."""

    def __init__(self, handle: Experiment) -> None:
        self._handle = handle

    def __getitem__(self, name: str) -> Any:
        self._handle._reopened()
        return self._handle._tallies[name]


def _leave(handle: Experiment, run: Run, status: str, error: dict[str, Any] | None) -> None:
    """Take a handle from its run; the last one ends it, `failed` if any was."""
    from .config import quiet
    from .run import registry

    with registry.lock:
        registry.handles.discard(handle)
        run.handles -= 1
        if status == "failed":
            run.failed = run.failed or error or {}
        run.interrupted = run.interrupted or status == "interrupted"
        if run.handles:
            return
        registry.runs.pop(run.located.journal, None)
    if run.failed is not None:
        status, error = "failed", run.failed or None
    elif run.interrupted:
        status = "interrupted"
    run.close(status, error, quiet=quiet() or run.child)


def _disabled_folder() -> Path:
    """Where records go that nobody wants: a folder of this process, removed at its exit."""
    global _thrown_away
    if _thrown_away is None:
        import atexit
        import shutil
        import tempfile

        _thrown_away = Path(tempfile.mkdtemp(prefix="ml-dash-disabled-"))
        pid = os.getpid()

        def remove(folder: Path = _thrown_away) -> None:
            if os.getpid() == pid:
                from .run import registry

                registry.close_all()
                shutil.rmtree(folder, ignore_errors=True)

        atexit.register(remove)
    return _thrown_away


_thrown_away: Path | None = None
