"""The public handle to one experiment: open it, record into it, read it, close it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, overload

from .core import events
from .core.names import check_metric_name, check_name, clash_key
from .core.values import checked_step
from .disk.places import disabled, remote_url
from .disk.settings import OperationMode, Settings, resolve
from .errors import ForeignFolder, InvalidName, InvalidValue, UnsupportedType
from .log import LogBuilder, LogLevel, append_log
from .metric import MetricBuilder, MetricsBuilder
from .recording.ending import check_status, passing
from .recording.lifecycle import Arguments, Handle, Warnings, checked_given, checked_labels, checked_mapping
from .recording.process import loading
from .recording.session import Reading

if TYPE_CHECKING:
    from datetime import datetime
    from types import TracebackType

    from typing_extensions import Self

    from .core.as_of import AsOf
    from .core.records import DurableState, ExperimentRecord
    from .files import FileBuilder, FileEntry
    from .parameters import ParametersBuilder

log = logging.getLogger("ml_dash")

PathText = str | os.PathLike[str]
Metadata = Mapping[str, Any]

_RESUME = ("allow", "must", "never", "new")


class Experiment:
    """A handle to one experiment, known by its project and its name.

    With `with`, or with `open()` and `close()`. Opening an experiment that exists continues it. Data is in
    `local_path` (default `.ml-dash`); with `remote=` it is kept there too, and uploaded by `ml-dash-syncd`.

    `resume`: "allow", "must" (NotFound if new), "never" (AlreadyExists), or "new": the next free of `name`, `name-2`,
    `name-3`, ..., which `experiment.name` then is. The variable `ML_DASH_RESUME` replaces "allow" by another of these.
    `resume_step`: `open()` goes back to this step, as `rewind` does.
    `durability`: "interval" syncs to disk within a second, "always" before each call returns, "os" leaves it to the
    operating system. `strict=True` raises StorageError at the call when the disk refuses, instead of keeping events in
    memory until it takes them again.
    `read_only=True` writes nothing, NotFound if absent; with `as_of` it is read as it was at an event, at a time, or so
    long ago ("-2h"). `write_protected=True` makes parameters and files final.
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
        resume_step: float | None = None,
        read_only: bool = False,
        as_of: int | str | datetime | None = None,
        durability: str | None = None,
        strict: bool = False,
    ) -> None:
        name = check_name("name", name)
        project = check_name("project", project)
        if resume == "allow":
            resume, label = os.environ.get("ML_DASH_RESUME") or resume, "ML_DASH_RESUME"
        else:
            label = "resume"
        if resume not in _RESUME:
            raise InvalidValue(f"{label} is {resume!r:.80}", hint=f"use one of {', '.join(_RESUME)}")
        switched_off = disabled()
        if switched_off:
            remote = remote_url(remote) if remote is not None else None
            wanted = resolve(local_path, local_prefix, None, user_name, api_key, durability, env={})
            from .recording.disabled import settings_of_nothing

            settings = settings_of_nothing(wanted)
        else:
            settings = resolve(local_path, local_prefix, remote, user_name, api_key, durability)
            if settings.remote is not None:
                from .sync.launch import autosync, exit_wait_s

                _ = autosync(), exit_wait_s()  # a bad value raises here, not when something is recorded
            if resume_from_remote and settings.remote is None:
                raise InvalidValue("resume_from_remote=True needs a remote", hint="give remote= too")
        _check_store_is_apart(settings, project, name)
        if as_of is not None and not read_only:
            raise InvalidValue("as_of looks at the past, which cannot be changed", hint="give read_only=True too")
        warn = Warnings(silent=switched_off)
        arguments = Arguments(
            name=name,
            project=project,
            settings=settings,
            given=checked_given(description, tags, folder, metadata, warn),
            write_protected=bool(write_protected),
            resume=resume,
            resume_from_remote=bool(resume_from_remote) and not switched_off,
            resume_step=None if resume_step is None else checked_step("resume_step", resume_step),
            read_only=bool(read_only),
            as_of=_moment(as_of),
            strict=bool(strict),
        )
        self._handle = Handle(arguments, warn, disabled=switched_off)

    # -- opening and closing -----------------------------------------------------------------------------------------

    def open(self) -> Self:
        """Create or continue the experiment, and return self. A second call does nothing.

        Raises NotFound or AlreadyExists as `resume` and `read_only` demand, ForeignFolder if the folder belongs to
        something else, and StorageError if the disk refuses and `strict` is set.
        """
        self._handle.open()
        return self

    @property
    def is_open(self) -> bool:
        """True while this handle can record or read: from `open()` to `close()`."""
        return self._handle.session.is_open

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._handle.close(error, None)

    def close(self, status: Literal["completed", "failed", "interrupted"] | None = None) -> None:
        """Close this handle; the last one writes the closing event, syncs, and brings the folder up to date.

        `status` says how the run ended; without it, an exception that is being handled makes it `failed`. A second call
        does nothing. Raises StorageError, with their number, if events were lost because the disk refused them.
        """
        check_status(status)
        self._handle.close(passing(self._handle.before), status)

    # -- recording ---------------------------------------------------------------------------------------------------

    @overload
    def log(
        self, message: object, level: str | LogLevel = "info", metadata: Metadata | None = None, **extra: Any
    ) -> None: ...

    @overload
    def log(self, message: None = None, *, metadata: Metadata | None = None, **extra: Any) -> LogBuilder: ...

    def log(
        self,
        message: object = None,
        level: str | LogLevel = "info",
        metadata: Metadata | None = None,
        **extra: Any,
    ) -> LogBuilder | None:
        """Record one log entry; without a message, return a builder.

        The builder has `.debug() .info() .warn() .error() .fatal() .read()`.

        A message that is not text is recorded as its `str()`; an exception, with its type and traceback in the
        metadata. `level`: debug, info, warn, error or fatal, in upper or lower case. `extra` is added to `metadata`
        and replaces equal keys. Raises InvalidValue or UnsupportedType; nothing is recorded then.
        """
        if message is None:
            return self._log_builder(level, metadata, extra)
        append_log(self._handle, message, level, metadata, extra)
        return None

    def _log_builder(self, level: str | LogLevel, metadata: Metadata | None, extra: dict[str, Any]) -> LogBuilder:
        session = self._handle.session
        if not session.is_open:
            session.refuse()
        if level != "info":
            raise UnsupportedType(f"log() was given level={level!r:.80} and no message", hint="use log(message, level)")
        if metadata is None and not extra:
            return LogBuilder(self._handle, None)
        return LogBuilder(self._handle, {**checked_mapping("metadata", {} if metadata is None else metadata), **extra})

    def parameters(self) -> ParametersBuilder:
        """Return a builder of the experiment's parameters: `.set(...)` and `.get()`."""
        with loading():
            from .parameters import ParametersBuilder

        self._handle.session.here()
        return ParametersBuilder(self._handle)

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
        **fields: Any,
    ) -> MetricBuilder | MetricsBuilder:
        """Return a builder of one metric: `.append(value=...) .append_batch([...]) .read() .last() .stats()`.

        Without a name, the builder has `.list_all()`. `description`, `tags` and `metadata` are recorded with the next
        append, where given. Raises InvalidName or UnsupportedType; NotOpen.
        """
        if description is None and tags is None and metadata is None and not fields:
            try:
                known: MetricBuilder = self._handle.session.metrics[name]  # type: ignore[index]  # None is no key
                return known
            except (KeyError, TypeError):
                pass
        if isinstance(description, (int, float)):
            # A likely first try: metric("loss", 0.5), metric("loss", 0.5, step=3).
            fields = {"value": description, **fields}
        if fields:
            shown = ", ".join(f"{field}={value!r:.40}" for field, value in fields.items())
            raise UnsupportedType(
                f"metric() was given {shown:.200}, which is a point's",
                hint=f"use experiment.metric({name!r:.80}).append({shown:.200})",
            )
        session = self._handle.session.here()
        if name is None:
            return MetricsBuilder(self._handle)
        if isinstance(description, Mapping):
            raise UnsupportedType(
                "the second argument of metric() is a description, not a point",
                hint=f"use experiment.metric({name!r}).append(...)",
            )
        given = checked_given(description, tags, None, metadata, self._handle.warn)
        builder = MetricBuilder(self._handle, name, given)
        if not given:
            session.metrics[name] = builder
        return builder

    @overload
    def file(
        self,
        source: PathText,
        prefix: PathText = "/",
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
        prefix: PathText | None = None,
        file_prefix: PathText | None = None,
        file_id: str | None = None,
        dest_path: PathText | None = None,
        description: str | None = None,
        tags: list[str] | None = None,
        metadata: Metadata | None = None,
    ) -> FileBuilder: ...

    def file(
        self,
        source: PathText | None = None,
        prefix: PathText | None = None,
        *,
        file_path: PathText | None = None,
        file_prefix: PathText | None = None,
        file_id: str | None = None,
        dest_path: PathText | None = None,
        description: str | None = None,
        tags: list[str] | None = None,
        metadata: Metadata | None = None,
    ) -> FileEntry | FileBuilder:
        """Add a file and return its record, if a path comes first; else return a builder for everything else.

        The builder has `.save()` (with `file_path=`, or `file_prefix=`, its older spelling), `.list()`, and, with
        `file_id=`, `.download() .delete() .update()`. Raises InvalidValue for more than one source.
        """
        with loading():
            from .files import FileBuilder, one_source

        self._handle.session.here()
        what = one_source(source, file_path, file_prefix, file_id)
        builder = FileBuilder(self._handle, what, prefix, file_id, dest_path, description, tags, metadata)
        return builder.save() if source is not None else builder

    def update(
        self,
        *,
        description: str | None = None,
        tags: list[str] | None = None,
        folder: str | None = None,
        metadata: Metadata | None = None,
        title: str | None = None,
        notes: str | None = None,
        archived: bool | None = None,
    ) -> None:
        """Replace the description, tags, folder, metadata, title, notes (Markdown) or archived: those that are given.

        A `title` is another name: it is shown from now on, and the experiment is found by either. Its id and its folder
        stay. Raises InvalidName for a title that could not be a name, UnsupportedType; nothing is recorded then.
        """
        given = checked_given(description, tags, folder, metadata, self._handle.warn)
        given |= checked_labels(title, notes, archived)
        self._handle.session.recording()
        if given:
            self._handle.record(events.UPDATE, given)

    def rewind(self, step: float, metrics: Iterable[str] | None = None) -> None:
        """Go back to a step: points recorded before now with a `step` (else `epoch`) >= `step` are superseded.

        They stay on disk, with their index, but are left out of statistics, plots, final values and exports unless
        asked for. `metrics` limits this to metrics of these names. Points without step and epoch stay current, and so
        do logs. Each of several processes that go on together may call it with the same step, before it records: points
        that others have recorded since their own call stay current. Raises InvalidValue for a step that is negative or
        not finite, InvalidName for the name of a metric; nothing is recorded then.
        """
        body: dict[str, Any] = {"step": checked_step("step", step)}
        if metrics is not None:
            names = [metrics] if isinstance(metrics, str) else metrics
            if not isinstance(names, Iterable):
                given = type(names).__name__
                raise UnsupportedType(f"metrics is {given}, expected names of metrics", hint='like ["loss"]')
            names = list(names)
            if not names:
                raise InvalidValue("metrics is empty", hint="name at least one, or leave it out to rewind all")
            body["metrics"] = sorted(set(map(check_metric_name, names)))
        self._handle.rewind(body)

    # -- safety ------------------------------------------------------------------------------------------------------

    def wait_synced(self, timeout: float | None = None) -> bool:
        """Wait until the server has acknowledged all that this process wrote; False after `timeout` seconds.

        Without `timeout`, the wait has no limit. True at once without `remote=`. False at once, with the reason logged,
        if it cannot happen.
        """
        remote, mine = self._handle.arguments.settings.remote, self._handle.sent
        if remote is None or mine is None:
            return True
        from .sync import progress

        if mine:
            done, reason = progress.wait(progress.of_journal(mine[0].located.journal, remote), timeout)
        else:
            done, reason = False, "the upload could not be asked for; run: ml-dash push"
        if not done:
            log.warning("ml-dash: not all of %s/%s is on %s: %s", self.project, self.name, remote, reason)
        return done

    def durable_state(self) -> DurableState:
        """Return the counts of this process's events, by how safe they are.

        `accepted`: recorded by a call. `written`: survive the end of this process. `synced`: survive a power cut.
        `remote`: acknowledged by the server. `lost`: refused by the disk. After `close()`, those of the run that ended.
        """
        handle = self._handle
        if handle.counts is not None and not handle.session.is_open:
            remote = min((upload.acknowledged() for upload in handle.sent or ()), default=0)
            return {**handle.counts, "remote": max(remote, handle.counts["remote"])}
        return handle.session.recording().durable_state()

    # -- attributes --------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self._handle.name

    @property
    def project(self) -> str:
        """The project's name."""
        return self._handle.project

    @property
    def id(self) -> str:
        """The experiment's id: decimal text that depends on project and name alone."""
        return self._handle.id

    @property
    def mode(self) -> OperationMode:
        """LOCAL, REMOTE (only a remote was given) or HYBRID (a remote and a path)."""
        return self._handle.arguments.settings.mode

    @property
    def path(self) -> Path:
        """The documented folder."""
        return self._handle.arguments.settings.root / self._handle.project / self._handle.name

    @property
    def resumed(self) -> bool:
        """True if `open()` continued an experiment that existed."""
        return self._handle.resumed

    @property
    def last_step(self) -> int | float | None:
        """The greatest step (else epoch) of current points; None if no point has one."""
        with self._handle.session.looking() as view:
            return view.last_step()

    @property
    def description(self) -> str | None:
        """The newest description; None if there is none."""
        return cast("str | None", self._newest("description"))

    @property
    def tags(self) -> list[str] | None:
        """The newest tags; None if there are none."""
        return cast("list[str] | None", self._newest("tags"))

    @property
    def folder(self) -> str | None:
        """The label for grouping; it never changes the path on disk."""
        return cast("str | None", self._newest("folder"))

    @property
    def metadata(self) -> dict[str, Any] | None:
        """The newest metadata; None if there is none."""
        return cast("dict[str, Any] | None", self._newest("metadata"))

    def _newest(self, key: str) -> Any:
        """Return the value recorded last; before the first `open()`, the one that it is going to record."""
        if not self._handle.recorded and key in self._handle.arguments.given:
            return self._handle.arguments.given[key]
        return self.data.get(key)

    @property
    def title(self) -> str | None:
        """What it is called since it was renamed; None if it was not. Set it with `update(title=...)`."""
        return cast("str | None", self._newest("title"))

    @property
    def notes(self) -> str | None:
        """Remarks about it, in Markdown; None if there are none. Setting them records them at once."""
        return cast("str | None", self._newest("notes"))

    @notes.setter
    def notes(self, text: str) -> None:
        self.update(notes=text)

    @property
    def archived(self) -> bool:
        """True if it was put away: lists leave it out. Set it with `update(archived=...)`."""
        return bool(self._newest("archived"))

    @property
    def write_protected(self) -> bool:
        """True if parameters and files are final."""
        run = self._handle.session.run
        if self._handle.arguments.write_protected or (run is not None and run.protected):
            return True
        return bool(self.data.get("writeProtected", False))

    @property
    def status(self) -> str:
        """`running`, `completed`, `failed` or `interrupted`; `not open` if nothing is recorded yet."""
        return cast("str", self.data.get("status", "not open"))

    @property
    def data(self) -> ExperimentRecord | dict[str, Any]:
        """The mapping that `experiment.json` holds; empty if there is nothing on disk."""
        if self.is_open:
            with self._handle.session.looking() as view:
                return view.record()
        from .reading import read
        from .recording import opening

        try:
            located = opening.find(self._handle.open_request())
        except ForeignFolder:
            return {}
        return read.record(located) if located is not None else {}

    def __repr__(self) -> str:
        session = self._handle.session
        state = "read-only" if isinstance(session, Reading) else "open" if session.is_open else "closed"
        return f"<Experiment {self.project}/{self.name} ({state}) at {self.path}>"

    # -- copies and other processes ----------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        # Attributes of derived classes, or set by the user.
        own = {name: value for name, value in vars(self).items() if name != "_handle"}
        return {"own": own, "handle": self._handle.state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state["own"])
        self._handle = Handle.of_state(state["handle"])

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copy = object.__new__(type(self))
        copy.__setstate__(self.__getstate__())
        return copy

    def __copy__(self) -> Self:
        return self.__deepcopy__({})


def _moment(as_of: int | str | datetime | None) -> AsOf | None:
    """Return the moment of `as_of`; `-2h` is two hours before now, also when it is looked at later."""
    if as_of is None:
        return None
    from time import time_ns

    from .core.as_of import as_of_of

    return as_of_of(as_of, time_ns())


def _check_store_is_apart(settings: Settings, project: str, name: str) -> None:
    """Raise InvalidName if the store is inside the root, where the documented folder would be."""
    try:
        inner = settings.store.relative_to(settings.root).parts
    except ValueError:
        return
    wanted = (project,) if len(inner) == 1 else (project, name)
    if inner and [clash_key(part) for part in wanted] == [clash_key(part) for part in inner[: len(wanted)]]:
        argument, value = ("project", project) if len(inner) == 1 else ("name", name)
        raise InvalidName(
            f"{argument} {value!r} stands for the folder {Path(settings.root, *wanted)}, which holds the journals "
            f"(local_path is {settings.local_path!r})",
            hint=f"use another {argument}, or a local_path that begins with a dot, like .ml-dash",
        )
