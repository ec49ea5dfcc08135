"""Tell a service manager how things stand: datagrams to the socket that it names (systemd's sd_notify protocol)."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import Final

_USUAL_S: Final = 10.0


class Notifier:
    """Says READY, STATUS, WATCHDOG and STOPPING; does nothing where nobody listens."""

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        period = os.environ.get("WATCHDOG_USEC", "")
        mine = os.environ.get("WATCHDOG_PID") in (None, "", str(os.getpid()))
        self.interval_s = int(period) / 1e6 / 3 if period.isdecimal() and mine else _USUAL_S
        self._status = ""
        self._fed = 0.0

    @property
    def listens(self) -> bool:
        """Is there a manager?"""
        return bool(self._address)

    def say(self, *lines: str) -> None:
        """Send some lines. A manager that does not take them changes nothing for the work."""
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto("\n".join(lines).encode(), address)

    def ready(self) -> None:
        """Everything is set up."""
        self.say("READY=1")

    def stopping(self) -> None:
        """The end has begun."""
        self.say("STOPPING=1")

    def status(self, text: str) -> None:
        """One line for people."""
        if text != self._status:
            self._status = text
            self.say(f"STATUS={text}")

    def feed(self) -> None:
        """The loop turns."""
        now = time.monotonic()
        if now - self._fed >= self.interval_s:
            self._fed = now
            self.say("WATCHDOG=1")
