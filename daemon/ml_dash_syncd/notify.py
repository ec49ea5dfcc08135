"""Messages to a service manager, by systemd's sd_notify protocol: datagrams to a socket."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import Final

_USUAL_S: Final = 10.0
"""Time between two pings where the manager asks for none."""


class Notifier:
    """Sends READY, STATUS, WATCHDOG and STOPPING to the socket that NOTIFY_SOCKET names; without one, does nothing."""

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        period = os.environ.get("WATCHDOG_USEC", "")
        mine = os.environ.get("WATCHDOG_PID") in (None, "", str(os.getpid()))
        # A third of the watchdog's period: two pings may get lost.
        self.interval_s = int(period) / 1e6 / 3 if period.isdecimal() and mine else _USUAL_S
        self._status = ""
        self._pinged = 0.0

    @property
    def has_manager(self) -> bool:
        """True if a service manager started this process and listens."""
        return bool(self._address)

    def send(self, *lines: str, wait_s: float = 0.0) -> bool:
        """Send lines in one datagram; True if they were taken. Waits at most `wait_s` seconds, and raises nothing."""
        if not self._address:
            return False
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(wait_s)
            sender.sendto("\n".join(lines).encode(), address)
            return True
        return False

    def ready(self) -> None:
        """Report that the daemon is set up."""
        # The manager waits for this message, so it is worth a second if its queue is full.
        self.send("READY=1", wait_s=1.0)

    def stopping(self) -> None:
        """Report that the daemon is ending."""
        self.send("STOPPING=1")

    def status(self, text: str) -> None:
        """Send one line for people, if it has changed: what `systemctl status` shows."""
        if text != self._status and self.send(f"STATUS={text}"):
            self._status = text

    def ping_watchdog(self) -> None:
        """Tell the manager's watchdog that the loop turns, a third of its period after the last time at the soonest."""
        now = time.monotonic()
        if now - self._pinged >= self.interval_s and self.send("WATCHDOG=1"):
            self._pinged = now
