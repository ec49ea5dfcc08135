"""How long to leave a server, a login or a journal alone: growing pauses with full jitter, ended by what may help."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final

from ml_dash.disk.config import config_folder
from ml_dash.sync.login import CREDENTIALS

FIRST_S: Final = 1.0
LONGEST_S: Final = 60.0
LONGEST_ASKED_S: Final = 3600.0
LOGIN_S: Final = 300.0


@dataclass
class Pause:
    """Failures in a row, and when to try again (time.monotonic)."""

    failures: int = 0
    until: float = 0.0
    why: str = ""
    failed: float = float("-inf")
    """When it last failed."""
    probe: Any = None
    """Who tries whether it works again."""

    def fail(self, why: str, retry_after_s: float | None = None) -> float:
        """One more failure; the seconds to wait. What the server asks for is waited for, and a little more."""
        self.failures += 1
        self.why = why
        # Up to, not exactly: many that failed together must not come back together.
        wait = random.uniform(0, min(LONGEST_S, FIRST_S * 2 ** min(self.failures - 1, 10)))
        if retry_after_s is not None:
            # A mistake in a header must not stop the upload for good.
            retry_after_s = min(max(0.0, retry_after_s), LONGEST_ASKED_S)
            wait = retry_after_s + random.uniform(0, min(1.0, retry_after_s / 10 + 0.1))
        self.failed = monotonic()
        self.until = self.failed + wait
        return wait

    def succeed(self) -> None:
        """End the pause after a success."""
        self.failures, self.until, self.why = 0, 0.0, ""

    @property
    def over(self) -> bool:
        """May it be tried?"""
        return monotonic() >= self.until


Login = tuple[str, str | None, str | None]
"""(server, user, fingerprint)"""


@dataclass
class Logins:
    """Logins that a server did not accept: nothing is sent with them until the stored ones change.

    Now and then one is tried all the same: a clock may have been wrong, or the server's owner may have mended it.
    """

    refused: dict[Login, Pause] = field(default_factory=dict)
    changed: float = 0.0
    _seen: tuple[int, int] = field(default_factory=lambda: _stamp())

    def refuse(self, login: Login, why: str, asked: float) -> bool:
        """Wait for a login, unless one was stored since the server was asked; True if it was thought good until now."""
        if asked < self.changed:
            return False
        first = login not in self.refused
        self.refused.setdefault(login, Pause()).fail(why, LOGIN_S)
        return first

    def waits(self, login: Login) -> float:
        """For how many seconds that login is not to be tried."""
        pause = self.refused.get(login)
        return 0.0 if pause is None else max(0.0, pause.until - monotonic())

    def accept(self, login: Login) -> None:
        """End the pause of a login that the server has accepted."""
        self.refused.pop(login, None)

    def look(self) -> bool:
        """Has the file of logins changed? Then all are tried again."""
        stamp = _stamp()
        if stamp == self._seen:
            return False
        self._seen = stamp
        self.changed = monotonic()
        had = bool(self.refused)
        self.refused.clear()
        return had


def _stamp() -> tuple[int, int]:
    """Tells one state of the file of logins from another."""
    try:
        found = (config_folder() / CREDENTIALS).stat()
    except OSError:
        return (0, 0)
    return found.st_mtime_ns, found.st_ino
