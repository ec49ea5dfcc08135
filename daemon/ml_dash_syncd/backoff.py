"""Pauses after failures, for a server, a login or a journal: growing, with full jitter, cut short by a change.

The pause after n failures is uniform in [0, min(60 s, 2^(n-1) s)]: "full jitter" in M. Brooker, Exponential Backoff And
Jitter (AWS Architecture Blog, 2015). What failed together does not come back together.

A server, a login and a task each have their own, so that what fails holds up nothing else. Nothing here is stored: a
new daemon tries everything once.

`Backoff` has no lock. `schedule` calls `fail` of a server and `refuse` under its guard; the rest are single
assignments.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final

from ml_dash.disk.places import config_folder
from ml_dash.sync.login import CREDENTIALS

FIRST_S: Final = 1.0
"""Upper bound of the pause after the first failure."""

LONGEST_S: Final = 60.0
"""Upper bound of every pause that no server asked for."""

LONGEST_ASKED_S: Final = 3600.0
"""Upper bound of a pause that a server asks for."""

LOGIN_S: Final = 300.0
"""A refused login is tried again after this long."""


@dataclass
class Backoff:
    """Failures in a row, and when to try again."""

    failures: int = 0
    """How many, since it last worked."""
    until: float = 0.0
    """End of the pause (time.monotonic)."""
    why: str = ""
    """Message of the last failure."""
    failed: float = float("-inf")
    """When it last failed (time.monotonic)."""
    probe: Any = None
    """The task that is trying whether the server works again, while the others wait."""

    def fail(self, why: str, retry_after_s: float | None = None) -> float:
        """Count a failure; return the seconds to wait, which are a little more than `retry_after_s` where given."""
        self.failures += 1
        self.why = why
        # The exponent is bounded so that thousands of failures do not make a huge number first.
        wait = random.uniform(0, min(LONGEST_S, FIRST_S * 2 ** min(self.failures - 1, 10)))
        if retry_after_s is not None:
            # Bounded: a wrong header must not stop the upload for good.
            retry_after_s = min(max(0.0, retry_after_s), LONGEST_ASKED_S)
            wait = retry_after_s + random.uniform(0, min(1.0, retry_after_s / 10 + 0.1))
        self.failed = monotonic()
        self.until = self.failed + wait
        return wait

    def succeed(self) -> None:
        """Forget the failures, and end the pause."""
        self.failures, self.until, self.why = 0, 0.0, ""

    @property
    def over(self) -> bool:
        """True if the pause has ended."""
        return monotonic() >= self.until


Login = tuple[str, str | None, str | None]
"""(URL of the server, user, fingerprint of the token), as the registration names them."""


@dataclass
class Logins:
    """Logins that a server refused: nothing is sent with them until the file of stored logins changes.

    After LOGIN_S one is tried all the same: a clock may have been wrong, or the server's owner may have mended it.
    """

    refused: dict[Login, Backoff] = field(default_factory=dict)
    changed: float = 0.0
    """When the file was last found changed (time.monotonic)."""
    _seen: tuple[int, int] = field(default_factory=lambda: _stamp())

    def refuse(self, login: Login, why: str, asked: float) -> bool:
        """Note that a server refused a login in an attempt that began at `asked` (time.monotonic); True if that is new.

        Does nothing if the file has changed since `asked`: the refused token may have been replaced.
        """
        if asked < self.changed:
            return False
        first = login not in self.refused
        self.refused.setdefault(login, Backoff()).fail(why, LOGIN_S)
        return first

    def waits(self, login: Login) -> float:
        """Seconds until a login may be tried; 0.0 if it may be now."""
        backoff = self.refused.get(login)
        return 0.0 if backoff is None else max(0.0, backoff.until - monotonic())

    def accept(self, login: Login) -> None:
        """Note that a server accepted a login."""
        self.refused.pop(login, None)

    def poll(self) -> bool:
        """Forget all refusals if the file of stored logins has changed; True if there were any."""
        stamp = _stamp()
        if stamp == self._seen:
            return False
        self._seen = stamp
        self.changed = monotonic()
        had = bool(self.refused)
        self.refused.clear()
        return had


def _stamp() -> tuple[int, int]:
    """Modification time (ns) and inode of the file of stored logins; zeros without one."""
    try:
        found = (config_folder() / CREDENTIALS).stat()
    except OSError:
        return (0, 0)
    return found.st_mtime_ns, found.st_ino
