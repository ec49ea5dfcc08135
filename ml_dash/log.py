"""Log entries: one call, one event."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from .core.events import LOG
from .core.names import LEVELS, level_of, shown
from .core.values import PLAIN, lenient_values, page_arguments
from .errors import Damaged, InvalidValue, NotOpen, UnsupportedType, WriterGone
from .recording.ending import described
from .recording.lifecycle import checked_mapping

if TYPE_CHECKING:
    from typing import Protocol

    from .core.records import LogPage
    from .reading.view import View
    from .recording.lifecycle import Handle

    class _Experiment(Protocol):
        """An `Experiment`, of which only the handle is used."""

        _handle: Handle


# Records of these loggers are not recorded: recording one may be what caused them.
_OURS: Final = ("ml_dash", "filelock")


class LogLevel(Enum):
    """The five levels of log entries."""

    DEBUG = "debug"
    INFO = "info"
    WARN = "warn"
    ERROR = "error"
    FATAL = "fatal"

    @staticmethod
    def validate(text: str | LogLevel) -> str:
        """Return the level in lower case; `warning` and `critical` mean `warn` and `fatal`. Raises InvalidValue."""
        level = text.value if isinstance(text, LogLevel) else None
        if isinstance(text, str):
            level = level_of(text)
        if level is None:
            raise InvalidValue(f"log level {text!r:.80} is unknown", hint="use debug, info, warn, error or fatal")
        return level


_LEVELS: Final[dict[object, str]] = {
    **{text: level for text, level in LEVELS.items()},  # noqa: C416 - its keys become objects
    **{level: level.value for level in LogLevel},
}


def append_log(
    handle: Handle, message: object, level: str | LogLevel, metadata: Mapping[str, Any] | None, extra: dict[str, Any]
) -> None:
    """Record one log entry. Raises InvalidValue, UnsupportedType or NotOpen; nothing is recorded then."""
    if type(message) is not str:
        message, extra = _as_message(message, extra, handle)
    try:
        known = _LEVELS[level]
    except (KeyError, TypeError):
        known = LogLevel.validate(level)
    if metadata is None:
        joined = extra or None
    else:
        joined = {**(metadata if type(metadata) is dict else checked_mapping("metadata", metadata)), **extra}
    if joined:
        for key, value in joined.items():
            if type(value) not in PLAIN or type(key) is not str:
                joined = lenient_values(joined, handle.warn)
                break
    try:
        handle.session.append(LOG, (known, message, joined))
    except InvalidValue:
        # The fast path does not see long integers and lone surrogates: these checks name the argument.
        _checked_message(message)
        lenient_values(joined or {}, handle.warn)
        raise
    except WriterGone:
        handle.session.refuse()


def _as_message(message: object, extra: dict[str, Any], handle: Handle) -> tuple[str, dict[str, Any]]:
    """Return (text, metadata) for a message of any type; for an exception, the metadata get its type and traceback."""
    if isinstance(message, str):
        return _checked_message(message), extra
    if isinstance(message, BaseException):
        described_error = described(message, handle.arguments.settings.secrets)
        return described_error["message"] or described_error["type"], {
            "exceptionType": described_error["type"], "exception": described_error["traceback"], **extra
        }  # fmt: skip
    if isinstance(message, Mapping):
        handle.warn("log() was given a mapping, and recorded it as text; numbers go by metric(name).append(value=...)")
    try:
        return str(message).encode("utf-8", "replace").decode(), extra
    except Exception as error:
        raise UnsupportedType(
            f"message is {type(message).__name__}, and str() of it raises {type(error).__name__}: {error}",
            hint="log a text",
        ) from error


def _checked_message(message: str) -> str:
    try:
        message.encode()
    except UnicodeEncodeError:
        raise InvalidValue(
            f"message {shown(message)} holds a lone surrogate, which is not valid Unicode",
            hint="encode it with errors='replace'",
        ) from None
    return str(message)


class LogBuilder:
    """Records log entries that share metadata, and reads entries."""

    def __init__(self, handle: Handle, metadata: dict[str, Any] | None) -> None:
        self._handle = handle
        self._metadata = metadata
        self._used = False

    def __del__(self) -> None:
        # log(loss=0.5) makes a builder and drops it: nothing is recorded, which is easy to miss.
        if self._metadata and not self._used and not sys.is_finalizing():
            given = ", ".join(self._metadata)[:80]
            self._handle.warn(
                f"log({given}) without a message recorded nothing; numbers go by metric(name).append(value=...), "
                'and entries by log("message", key=value)'
            )

    def _log(self, level: str, message: str, extra: dict[str, Any]) -> None:
        self._used = True
        append_log(self._handle, message, level, self._metadata, extra)

    def debug(self, message: str, /, **extra: Any) -> None:
        """Record an entry of level debug."""
        self._log("debug", message, extra)

    def info(self, message: str, /, **extra: Any) -> None:
        """Record an entry of level info."""
        self._log("info", message, extra)

    def warn(self, message: str, /, **extra: Any) -> None:
        """Record an entry of level warn."""
        self._log("warn", message, extra)

    def error(self, message: str, /, **extra: Any) -> None:
        """Record an entry of level error."""
        self._log("error", message, extra)

    def fatal(self, message: str, /, **extra: Any) -> None:
        """Record an entry of level fatal."""
        self._log("fatal", message, extra)

    def read(self, start_index: int = 0, limit: int = 1000, level: str | LogLevel | None = None) -> LogPage:
        """Return a page of entries: `{logs, startIndex, endIndex, total, hasMore}`.

        A negative start counts from the end. With `level`, only entries of that level are counted and returned. If `gc`
        has freed entries, a page begins with the first one on this machine. Raises InvalidValue for a `limit` over
        10,000, ReleasedData if the whole page is not on this machine.
        """
        self._used = True
        wanted = LogLevel.validate(level) if level is not None else None
        start, count = page_arguments(start_index, limit)

        def page(view: View) -> LogPage:
            entries = view.logs(start, count, wanted)
            if not entries["logs"]:
                view.refuse_released(start=start)
            return entries

        with self._handle.session.looking() as view:
            try:
                return page(view)
            except Damaged:
                # The folder was edited: read from the journal alone.
                from .reading.read import fresh_view

                return page(fresh_view(self._handle.session.located()))


class LogHandler(logging.Handler):
    """A handler of the standard library's `logging` that records into an experiment.

    `logging.getLogger().addHandler(LogHandler(experiment))`. Extra fields of a record become metadata. Records are
    ignored while the experiment is not open.
    """

    _PLAIN_RECORD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

    def __init__(self, experiment: _Experiment, level: int | str = logging.NOTSET) -> None:
        super().__init__(level)
        self._handle = experiment._handle

    def emit(self, record: logging.LogRecord) -> None:
        """Record one entry. Messages of this library are left out: a failing disk would otherwise log itself."""
        if record.name.partition(".")[0] in _OURS or not self._handle.session.is_open:
            return
        try:
            metadata = {key: value for key, value in vars(record).items() if key not in self._PLAIN_RECORD}
            metadata["logger"] = _clean(record.name)
            if record.exc_info and record.exc_info[0] is not None:
                metadata["exception"] = _clean(logging.Formatter().formatException(record.exc_info))
            if record.stack_info:
                metadata["stack"] = _clean(record.stack_info)
            text = _clean(self.format(record) if self.formatter is not None else record.getMessage())
            with contextlib.suppress(NotOpen):  # closed by another thread meanwhile
                append_log(self._handle, text, _level_of(record.levelno), metadata, {})
        except Exception:  # noqa: BLE001 - what logging.Handler asks of emit: errors go to handleError
            self.handleError(record)


def _clean(text: str) -> str:
    """Return a text without lone surrogates, which other libraries may log."""
    return text.encode("utf-8", "replace").decode()


def _level_of(number: int) -> str:
    for limit, level in ((logging.CRITICAL, "fatal"), (logging.ERROR, "error"), (logging.WARNING, "warn")):
        if number >= limit:
            return level
    return "info" if number >= logging.INFO else "debug"
