"""What the server's operators see: a log of JSON lines on stderr, and what is counted about requests."""

from __future__ import annotations

import json
import logging
import sys
import time
from datetime import datetime, timezone
from typing import Any, Final

log: Final = logging.getLogger("ml_dash.server")

_LONGEST_PATH: Final = 500  # characters
_STANDARD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "color_message", "taskName"}


class Observer:
    """What an application notes about its requests. This one counts nothing: for who asks nobody how it goes."""

    def __init__(self) -> None:
        self.began = time.monotonic()

    def entered(self) -> None:
        """Note that a request has begun."""

    def left(self, body_memory: int, listeners: int) -> None:
        """Note that a request has ended; and the bytes of bodies in memory, and the live readers, at this moment."""

    def received(self, size: int) -> None:
        """Count the bytes of a body, decompressed."""

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answer, and the time until it was sent."""

    def refused(self, code: str) -> None:
        """Count a refusal, by its code."""

    def limited(self, limit: str) -> None:
        """Count a refusal because a user or a token takes too much, by the limit."""

    def failed(self) -> None:
        """Count a request that ended in 500 or 503."""


class JSONLines(logging.Formatter):
    """One JSON object per line: time, level, logger, message, the fields of `extra`, and the traceback of an error."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": moment.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in record.__dict__.items() if name not in _STANDARD}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def write_logs(level: str) -> None:
    """Send the logs of the server and its libraries to stderr.

    For a process that only serves: replaces all handlers.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("ml_dash").setLevel(level.upper())
    # At info it repeats at each start what we log ourselves.
    logging.getLogger("uvicorn").setLevel(logging.DEBUG if level == "debug" else logging.WARNING)


def shown_path(path: str) -> str:
    """Return a path for the log: without its query, which may hold a secret, and cut to a bounded length."""
    return path.partition("?")[0][:_LONGEST_PATH]
