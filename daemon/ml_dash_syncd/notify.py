"""Messages to a service manager, by systemd's sd_notify protocol: datagrams to a socket."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import Final

_USUAL_S: Final = 10.0


class Notifier:
    """Says READY, STATUS, WATCHDOG and STOPPING; does nothing where nobody has_manager."""

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        period = os.environ.get("WATCHDOG_USEC", "")
        mine = os.environ.get("WATCHDOG_PID") in (None, "", str(os.getpid()))
        self.interval_s = int(period) / 1e6 / 3 if period.isdecimal() and mine else _USUAL_S
        self._status = ""
        self._pinged = 0.0

    @property
    def has_manager(self) -> bool:
        """Is there a manager?"""
        return bool(self._address)

    def send(self, *lines: str, wait_s: float = 0.0) -> bool:
        """Send some lines; were they taken? A manager that does not take them changes nothing for the work."""
        if not self._address:
            return False
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(wait_s)
            sender.sendto("\n".join(lines).encode(), address)
            return True
        return False

    def ready(self) -> None:
        """Everything is set up."""
        # It waits for this one: worth a moment, should it have much to read.
        self.send("READY=1", wait_s=1.0)

    def stopping(self) -> None:
        """The end has begun."""
        self.send("STOPPING=1")

    def status(self, text: str) -> None:
        """One line for people."""
        if text != self._status and self.send(f"STATUS={text}"):
            self._status = text

    def ping_watchdog(self) -> None:
        """The loop turns."""
        now = time.monotonic()
        if now - self._pinged >= self.interval_s and self.send("WATCHDOG=1"):
            self._pinged = now
