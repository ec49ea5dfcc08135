"""All exceptions that ml-dash raises on purpose.

MLDashError
├── InvalidInput            ValueError         an argument's value is not acceptable
│   ├── InvalidName                            a project, experiment, metric or file name
│   ├── InvalidValue                           a number, text or setting out of range
│   │   └── InvalidQuery                       a query, an order or columns that cannot be understood
│   ├── ForeignFolder                          the folder belongs to something else
│   └── ChecksumMismatch                       bytes differ from what was recorded
├── UnsupportedType         TypeError          an argument's type is not acceptable
├── NotOpen                 RuntimeError       the experiment is not open
├── ReadOnly                RuntimeError       the experiment was opened with read_only=True
├── WriteProtected          RuntimeError       the experiment is write-protected
├── StillOpen               RuntimeError       a live writer has the experiment open
├── NotFound                FileNotFoundError  no such experiment, metric or file
├── ReleasedData            FileNotFoundError  it was freed on this machine, and is on a server
├── AlreadyExists           FileExistsError    resume="never" met an existing experiment
├── StorageError            OSError            the disk refused; says what was kept and what was lost
├── RemoteError             ConnectionError    a server did not do what was asked
│   ├── Unreachable                            no connection, no answer in time, or not an ml-dash server
│   ├── ServerRefused                          the server says no, and why
│   └── Unauthorised                           no login, or one that the server does not accept
└── JournalError            Exception          bytes on disk are not what a journal should hold
    ├── NewerFormat                            written by a newer ml-dash
    └── Damaged                                a checksum or a length does not hold
"""

from __future__ import annotations

from typing import Any


class MLDashError(Exception):
    """Base of all errors of ml-dash.

    `hint` is the next step for the person who reads it; it is part of the text.
    """

    def __init__(self, message: str = "", *, hint: str = "") -> None:
        self.message = message
        self.hint = hint
        super().__init__(message)

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class InvalidInput(MLDashError, ValueError):
    """An argument's value is not acceptable; nothing was recorded."""


class InvalidName(InvalidInput):
    """A project, experiment, metric or file name is not acceptable."""


class InvalidValue(InvalidInput):
    """A number, a text or a setting is out of range."""


class InvalidQuery(InvalidValue):
    """A query, an order or a list of columns cannot be understood.

    The text shows it with a mark under the place; `at` is that place, counted from 0, `query` the text that was given.
    """

    def __init__(self, message: str, query: str, at: int, length: int = 1, *, hint: str = "") -> None:
        shown, before = _window(query, at)
        mark = "^" * max(1, _columns(shown[before : before + length]))
        super().__init__(f"{message}\n  {shown}\n  {' ' * _columns(shown[:before])}{mark}", hint=hint)
        self.query = query
        self.at = at

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


def _columns(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(letter) else 2 if east_asian_width(letter) in "WF" else 1 for letter in text)


def _window(query: str, at: int, most: int = 72) -> tuple[str, int]:
    """Return one line with what is around a place, and where the place is in it."""
    line = "".join(letter if letter.isprintable() else " " for letter in query)
    start = max(0, min(at - most // 2, len(line) - most))
    shown = line[start : start + most]
    left, right = "... " if start else "", " ..." if start + most < len(line) else ""
    return f"{left}{shown}{right}", at - start + len(left)


class ForeignFolder(InvalidInput):
    """The folder holds something that is not this experiment; it was left alone."""


class ChecksumMismatch(InvalidInput):
    """Bytes differ from the SHA-256 recorded for them."""


class UnsupportedType(MLDashError, TypeError):
    """An argument's type is not acceptable; nothing was recorded."""


class NotOpen(MLDashError, RuntimeError):
    """The experiment is not open."""


class ReadOnly(MLDashError, RuntimeError):
    """The experiment was opened for reading only."""


class WriteProtected(MLDashError, RuntimeError):
    """The experiment is write-protected: parameters and files are final."""


class StillOpen(MLDashError, RuntimeError):
    """A live writer has the experiment open."""


class NotFound(MLDashError, FileNotFoundError):
    """No such experiment, metric or file."""


class ReleasedData(MLDashError, FileNotFoundError):
    """Data was freed on this machine and is on a server. The text says how to read it."""


class AlreadyExists(MLDashError, FileExistsError):
    """The experiment exists, and was opened with `resume="never"`."""


class StorageError(MLDashError, OSError):
    """The disk refused. The text says what was kept and what was lost."""

    @classmethod
    def of(cls, error: OSError, message: str, *, hint: str) -> StorageError:
        """Make a StorageError with a text for people and the `errno` of an OSError."""
        refused = cls(message, hint=hint)
        refused.errno = error.errno
        return refused


class RemoteError(MLDashError, ConnectionError):
    """A server did not do what was asked. Data on this machine is not affected."""


class Unreachable(RemoteError):
    """No connection, no answer in time, trouble at the server, or an answer unlike that of an ml-dash server.

    Worth trying again. `retry_after_s` is the pause that the server asks for, in seconds; None if it asks for none.
    `answered` is True if the server itself, not a proxy, could not serve this one request.
    """

    retry_after_s: float | None = None
    answered: bool = False


class ServerRefused(RemoteError):
    """The server refused: `status` is the HTTP status, `code` names the reason, `extra` has the other fields."""

    def __init__(
        self, message: str, *, status: int, code: str, extra: dict[str, Any] | None = None, hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.code = code
        self.extra = extra or {}


class Unauthorised(RemoteError):
    """There is no login for this server, or the server does not accept it. Data stays on this machine meanwhile."""


class JournalError(MLDashError):
    """Bytes on disk are not what a journal should hold."""


class NewerFormat(JournalError):
    """The file was written by a newer ml-dash; it was not changed."""


class Damaged(JournalError):
    """A checksum or a length does not hold."""


class WriterGone(Exception):  # from a writer to the builders, which raise NotOpen instead
    """This writer is closed, or belongs to the process that this one was forked from."""
