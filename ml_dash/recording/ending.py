"""The end of a run, as a status: taken from the exception in flight, if any, with credentials removed from its text."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any, Final

from ..core.events import ENDINGS
from ..errors import InvalidValue

_TRACEBACK_CHARACTERS: Final = 20_000
_EX_TEMPFAIL: Final = 75  # sysexits.h
_LARGEST_SIGNAL: Final = 64
_SIGINT: Final = 2
_SECRET_VARIABLES: Final = ("ML_DASH_API_KEY", "ML_DASH_JWT_SECRET")

Ending = tuple[str, dict[str, Any] | None]
"""(status, description of the exception if the status is `failed`)."""

Cause = dict[str, int]
"""`signal` or `exitCode`, as in the closing event; empty where the process was not ended by one."""

Before = tuple[BaseException | None, BaseException | None]
"""Exceptions at `open()`: (the one being handled, the last one that nobody handled)."""


def check_status(status: str | None) -> str | None:
    """Return `status`, which must be one of the three ways to end, or None. Raises InvalidValue."""
    if status is not None and status not in ENDINGS:
        raise InvalidValue(f"status {status!r} is not a way to end", hint=f"use one of {', '.join(ENDINGS)}")
    return status


def ending(error: BaseException | None, secrets: Iterable[str]) -> Ending:
    """Return the ending of a run that an exception leaves, or None for an ordinary end."""
    if error is None or isinstance(error, GeneratorExit):
        return "completed", None
    if isinstance(error, SystemExit) and error.code in (0, None):
        return "completed", None
    if isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and _asks_to_come_back(error.code)):
        return "interrupted", None
    return "failed", described(error, secrets)


def cause(error: BaseException | None) -> Cause:
    """Return the signal or the exit code with which an exception ends the process."""
    if isinstance(error, KeyboardInterrupt):
        return {"signal": _SIGINT}
    if not isinstance(error, SystemExit) or not isinstance(error.code, int):
        # A text as exit code is printed, and then the code is 1: it is described as the exception that it is.
        return {}
    if 128 < error.code <= 128 + _LARGEST_SIGNAL:
        return {"signal": error.code - 128}
    return {"exitCode": error.code} if error.code > 0 else {}


def _asks_to_come_back(code: object) -> bool:
    """True for an exit code of a program ended by a signal (128 + its number), or that asks to be run again."""
    return isinstance(code, int) and (code == _EX_TEMPFAIL or 128 < code <= 128 + _LARGEST_SIGNAL)


def before() -> Before:
    """Return the exceptions that exist before `open()`: they do not make the run fail."""
    return sys.exc_info()[1], _last_unhandled()


def passing(seen: Before) -> BaseException | None:
    """Return the exception being handled now, unless it was handled already at `open()`."""
    error = sys.exc_info()[1]
    return None if error is seen[0] else error


def unhandled(seen: Before) -> BaseException | None:
    """Return, at interpreter exit, the exception that ended the program, unless it existed at `open()`."""
    error = _last_unhandled()
    return None if error is seen[1] else error


def _last_unhandled() -> BaseException | None:
    error = getattr(sys, "last_value", None)
    return error if isinstance(error, BaseException) else None


def described(error: BaseException, secrets: Iterable[str]) -> dict[str, Any]:
    """Return type, message and traceback of an exception as texts, with our own credentials replaced by `***`."""
    kind = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    try:
        import traceback

        from ..sync.login import stored_tokens
    except OSError as failure:
        # No file can be opened, so nobody knows which tokens must not be shown.
        return {"type": kind, "message": f"left out: {failure.strerror or failure}", "traceback": ""}
    hidden = {*secrets, *stored_tokens(), *(os.environ.get(variable, "") for variable in _SECRET_VARIABLES)} - {""}

    def clean(text: str) -> str:
        # The longest first: one secret may be a part of another.
        for secret in sorted(hidden, key=len, reverse=True):
            text = text.replace(secret, "***")
        return text.encode("utf-8", "replace").decode()

    try:
        message = str(error)
    except Exception as failure:  # noqa: BLE001 - a user's broken __str__ must not hide how the run ended
        message = f"<{type(failure).__name__} in __str__>"
    lines = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return {
        "type": kind,
        "message": clean(message)[:_TRACEBACK_CHARACTERS],
        "traceback": clean(lines)[-_TRACEBACK_CHARACTERS:],
    }
