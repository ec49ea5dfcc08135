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
_SECRET_VARIABLES: Final = ("ML_DASH_API_KEY", "ML_DASH_JWT_SECRET")

Ending = tuple[str, dict[str, Any] | None]
"""Status, and what went wrong where it is `failed`."""

Before = tuple[BaseException | None, BaseException | None]
"""What was there at `open()`: the exception being handled, and the last one that nobody handled."""


def check_status(status: str | None) -> str | None:
    """One of the three ways to end, or None."""
    if status is not None and status not in ENDINGS:
        raise InvalidValue(f"status {status!r} is not a way to end", hint=f"use one of {', '.join(ENDINGS)}")
    return status


def ending(error: BaseException | None, secrets: Iterable[str]) -> Ending:
    """What an exception makes of a run."""
    if error is None or isinstance(error, GeneratorExit):
        return "completed", None
    if isinstance(error, SystemExit) and error.code in (0, None):
        return "completed", None
    if isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and _asks_to_come_back(error.code)):
        return "interrupted", None
    return "failed", described(error, secrets)


def _asks_to_come_back(code: object) -> bool:
    """Does an exit code say that a signal ended the program (128 + its number), or that it is to be tried again?"""
    return isinstance(code, int) and (code == _EX_TEMPFAIL or 128 < code <= 128 + _LARGEST_SIGNAL)


def before() -> Before:
    """What went wrong before `open()`: none of this run's business."""
    return sys.exc_info()[1], _last_unhandled()


def passing(seen: Before) -> BaseException | None:
    """The exception being handled now, unless it was being handled when the experiment was opened."""
    error = sys.exc_info()[1]
    return None if error is seen[0] else error


def unhandled(seen: Before) -> BaseException | None:
    """At interpreter exit: the exception that ended the program, unless it was there at `open()`."""
    error = _last_unhandled()
    return None if error is seen[1] else error


def _last_unhandled() -> BaseException | None:
    error = getattr(sys, "last_value", None)
    return error if isinstance(error, BaseException) else None


def described(error: BaseException, secrets: Iterable[str]) -> dict[str, Any]:
    """Type, message and traceback of an exception, each as text, our own credentials replaced by `***`."""
    import traceback

    from ..sync.login import stored_tokens

    hidden = {*secrets, *stored_tokens(), *(os.environ.get(variable, "") for variable in _SECRET_VARIABLES)} - {""}

    def clean(text: str) -> str:
        # The longest first: one may be a part of another.
        for secret in sorted(hidden, key=len, reverse=True):
            text = text.replace(secret, "***")
        return text.encode("utf-8", "replace").decode()

    try:
        message = str(error)
    except Exception as failure:  # noqa: BLE001 - a broken __str__ of the user's must not hide how the run ended
        message = f"<{type(failure).__name__} in __str__>"
    lines = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return {
        "type": f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins."),
        "message": clean(message)[:_TRACEBACK_CHARACTERS],
        "traceback": clean(lines)[-_TRACEBACK_CHARACTERS:],
    }
