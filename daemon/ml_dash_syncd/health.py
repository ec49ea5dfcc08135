"""`/-/healthy`, `/-/ready` and `/metrics` on loopback, for probes and Prometheus."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from .schedule import Schedule

HEALTHY_S: Final = 60.0
"""A daemon whose loop has not turned for this long is not healthy."""


class Health:
    """A small HTTP server on loopback that reports on the loop.

    The loop sets `last_turn` (time.monotonic) and `ready`; threads of the server read them.
    """

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self.last_turn = time.monotonic()
        self.ready = False
        self._server: ThreadingHTTPServer | None = None

    def listen(self, port: int) -> str:
        """Listen on a port of 127.0.0.1 (0: a free one); return the URL. Raises OSError."""
        health = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 5

            def do_GET(self) -> None:
                status, text = health.answer(self.path)
                data = text.encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.send_header("Content-Length", str(len(data)))
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                """Log nothing: probes come every few seconds."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, name="ml-dash-health", daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def answer(self, path: str) -> tuple[int, str]:
        """Return (HTTP status, text) for a path."""
        answers: dict[str, Callable[[], tuple[int, str]]] = {
            "/-/healthy": self._healthy,
            "/-/ready": lambda: (200, "ready\n") if self.ready else (503, "not ready\n"),
            "/metrics": lambda: (200, self._metrics()),
        }
        found = answers.get(path.partition("?")[0])
        return found() if found is not None else (404, "there is /-/healthy, /-/ready and /metrics\n")

    def _healthy(self) -> tuple[int, str]:
        silent = time.monotonic() - self.last_turn
        return (200, "healthy\n") if silent < HEALTHY_S else (503, f"the loop has not turned for {silent:.0f} s\n")

    def _metrics(self) -> str:
        tasks = list(self._schedule.tasks.values())
        figures: list[tuple[str, str, str, float]] = [
            ("experiments", "gauge", "Experiments that are sent from here.", len(tasks)),
            ("unsettled", "gauge", "Experiments of which something is not sent yet.",
             sum(not task.settled for task in tasks)),
            ("parked", "gauge", "Segments and files that a server refused for good.",
             sum(len(task.shipment.cursor.parked) for task in tasks if task.shipment.cursor is not None)),
            ("sent_bytes_total", "counter", "Bytes acknowledged by servers.", self._schedule.sent_bytes),
            ("errors_total", "counter", "Attempts that failed.", self._schedule.errors),
            ("last_sent_seconds", "gauge", "When something was last acknowledged, since the epoch.",
             self._schedule.last_sent),
            ("logins_refused", "gauge", "Logins that a server did not accept.", len(self._schedule.logins.refused)),
        ]  # fmt: skip
        lines = [
            f"# HELP ml_dash_syncd_{name} {text}\n# TYPE ml_dash_syncd_{name} {kind}\nml_dash_syncd_{name} {value}\n"
            for name, kind, text, value in figures
        ]
        return "".join(lines)
