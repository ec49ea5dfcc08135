"""Logs and metrics for the server's operators: JSON lines on stderr, figures for Prometheus."""

from __future__ import annotations

import json
import logging
import sys
import time
from datetime import datetime, timezone
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

log: Final = logging.getLogger("ml_dash.server")

METRICS_TYPE: Final = CONTENT_TYPE_LATEST

_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_LONGEST_PATH: Final = 500  # characters
_STANDARD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "color_message", "taskName"}


class Observer:
    """Metrics of one server, in a registry of its own: several servers in one process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.began = time.monotonic()
        self.requests = Counter(
            "ml_dash_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "ml_dash_request_seconds", "Time until the whole answer was sent.", ["method", "route"],
            buckets=_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self.active = Gauge("ml_dash_active_requests", "Requests under way.", registry=self.registry)
        self.body_bytes = Counter("ml_dash_body_bytes", "Bytes of bodies, decompressed.", registry=self.registry)
        self.refused = Counter(
            "ml_dash_refused", "Requests refused, by code; `conflict` is an alarm.", ["code"], registry=self.registry
        )
        self.limited = Counter(
            "ml_dash_limited", "Requests refused because a user or a token takes too much, by limit.", ["limit"],
            registry=self.registry,
        )  # fmt: skip
        self.body_memory = Gauge("ml_dash_body_memory_bytes", "Bodies in memory.", registry=self.registry)
        self.listeners = Gauge("ml_dash_listeners", "Live readers connected.", registry=self.registry)
        self.failures = Counter("ml_dash_failures", "Requests that ended in 500 or 503.", registry=self.registry)
        uptime = Gauge("ml_dash_uptime_seconds", "Time since the server started.", registry=self.registry)
        uptime.set_function(lambda: time.monotonic() - self.began)
        ProcessCollector(registry=self.registry)

    def received(self, size: int) -> None:
        """Count the bytes of a body, decompressed."""
        self.body_bytes.inc(size)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answer, and the time until it was sent."""
        self.requests.labels(method, route, str(status)).inc()
        self.seconds.labels(method, route).observe(seconds)

    def exposition(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self.registry)


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
