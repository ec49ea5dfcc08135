"""What is counted about a server's requests, as metrics for Prometheus."""

from __future__ import annotations

import time
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from .observe import Observer

METRICS_TYPE: Final = CONTENT_TYPE_LATEST

_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Figures(Observer):
    """Metrics of one server, in a registry of its own: several servers in one process do not mix."""

    def __init__(self) -> None:
        super().__init__()
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "ml_dash_requests", "Requests answered.", ["method", "route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "ml_dash_request_seconds", "Time until the whole answer was sent.", ["method", "route"],
            buckets=_BUCKETS, registry=self._registry,
        )  # fmt: skip
        self._active = Gauge("ml_dash_active_requests", "Requests under way.", registry=self._registry)
        self._body_bytes = Counter("ml_dash_body_bytes", "Bytes of bodies, decompressed.", registry=self._registry)
        self._refused = Counter(
            "ml_dash_refused", "Requests refused, by code; `conflict` is an alarm.", ["code"], registry=self._registry
        )
        self._limited = Counter(
            "ml_dash_limited", "Requests refused because a user or a token takes too much, by limit.", ["limit"],
            registry=self._registry,
        )  # fmt: skip
        self._body_memory = Gauge("ml_dash_body_memory_bytes", "Bodies in memory.", registry=self._registry)
        self._listeners = Gauge("ml_dash_listeners", "Live readers connected.", registry=self._registry)
        self._failures = Counter("ml_dash_failures", "Requests that ended in 500 or 503.", registry=self._registry)
        uptime = Gauge("ml_dash_uptime_seconds", "Time since the server started.", registry=self._registry)
        uptime.set_function(lambda: time.monotonic() - self.began)
        ProcessCollector(registry=self._registry)

    def entered(self) -> None:
        self._active.inc()

    def left(self, body_memory: int, listeners: int) -> None:
        self._active.dec()
        self._body_memory.set(body_memory)
        self._listeners.set(listeners)

    def received(self, size: int) -> None:
        self._body_bytes.inc(size)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def refused(self, code: str) -> None:
        self._refused.labels(code).inc()

    def limited(self, limit: str) -> None:
        self._limited.labels(limit).inc()

    def failed(self) -> None:
        self._failures.inc()

    def exposition(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self._registry)
