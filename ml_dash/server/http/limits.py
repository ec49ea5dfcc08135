"""Limits of one user and of one token: requests and bytes per second, requests and live readers at once.

    identified -> enter -> [received, again and again] -> [stream] -> leave

Rates are token buckets that hold BURST_S seconds. A request costs one; where there is none, it is refused (429), and
costs nothing. Bytes cannot be known before they come. So they are counted as they come, into debt: who is in debt
reads slower (`received` says how long to wait, and TCP makes the client wait), and who is more than DEBT_S in debt
begins no further request.

Counted in the memory of this process. A share that nobody has used for a while is as good as a new one, and is
dropped, so that memory follows the number of those who are active. For one event loop, therefore without locks.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from ...core.protocol import BUSY, Refused
from ..settings import Limits

BURST_S: Final = 10.0
"""So many seconds of a rate may be used at once by who was idle before."""

DEBT_S: Final = 1.0
"""The most seconds of bytes on credit with which another request may begin."""

LONGEST_WAIT_S: Final = 5.0
"""The longest pause between two pieces of a body; less than the time after which a silent body is given up."""

STREAM_RETRY_S: Final = 30
OPEN_RETRY_S: Final = 1
_LONGEST_RETRY_S: Final = 60


class Bucket:
    """A rate per second with a burst; a rate of 0 is no limit. `now` is in seconds and never goes back."""

    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._most = max(rate * BURST_S, 1.0)
        self._level = self._most
        self._at = now

    def lacks_s(self, level: float, now: float) -> float:
        """Return the seconds until the bucket holds `level`; 0.0 if it does, or has no limit."""
        if not self._rate:
            return 0.0
        self._level = min(self._most, self._level + (now - self._at) * self._rate)
        self._at = now
        return max(0.0, (level - self._level) / self._rate)

    def take(self, amount: float) -> None:
        """Take an amount, whether it is there or not."""
        if self._rate:
            self._level -= amount

    def is_full(self, now: float) -> bool:
        """True if it is as a new one."""
        return not self.lacks_s(self._most, now)


class Limited(Refused):
    """429: a user or a token takes too much; `limit` is `requests`, `bytes`, `streams` or `open`."""

    def __init__(self, limit: str, text: str, wait_s: float) -> None:
        # Rounded up: who comes again too early is refused again.
        seconds = min(_LONGEST_RETRY_S, math.ceil(wait_s))
        message = f"{text}: this request was not carried out, send it again in {seconds} s"
        super().__init__(429, BUSY, message, retry_after_s=seconds)
        self.limit = limit


class _Share:
    """What one user, or one token, takes at present."""

    def __init__(self, whose: str, limits: Limits, now: float) -> None:
        self.whose = whose
        self.limits = limits
        self.requests = Bucket(limits.requests_per_s, now)
        self.bytes = Bucket(limits.bytes_per_s, now)
        self.open = 0
        self.streams = 0

    def check(self, now: float) -> None:
        """Raise Limited if another request is too much now."""
        limits, whose = self.limits, self.whose
        if limits.open and self.open >= limits.open:
            raise Limited("open", f"{whose} has {limits.open} requests under way", OPEN_RETRY_S)
        if wait_s := self.requests.lacks_s(1.0, now):
            raise Limited("requests", f"{whose} sends more than {limits.requests_per_s} requests a second", wait_s)
        if wait_s := self.bytes.lacks_s(-DEBT_S * limits.bytes_per_s, now):
            raise Limited("bytes", f"{whose} sends more than {limits.bytes_per_s:,} bytes a second", wait_s)

    def check_streams(self) -> None:
        """Raise Limited if another live reader is too much now."""
        most = self.limits.streams
        if most and self.streams >= most:
            raise Limited("streams", f"{self.whose} has {most} live readers connected", STREAM_RETRY_S)

    def is_idle(self, now: float) -> bool:
        """True if it is as a new one."""
        return not self.open and self.requests.is_full(now) and self.bytes.is_full(now)


class Admission:
    """One admitted request. Call `leave` in the end, once."""

    def __init__(self, shares: list[_Share], clock: Callable[[], float]) -> None:
        self._shares = shares
        self._clock = clock
        self._streams = False
        for share in shares:
            share.open += 1
            share.requests.take(1.0)

    def received(self, size: int) -> float:
        """Count bytes of the body as they came, still compressed; return how many seconds to wait for the next."""
        now = self._clock()
        for share in self._shares:
            share.bytes.take(size)
        return min(LONGEST_WAIT_S, max(share.bytes.lacks_s(0.0, now) for share in self._shares))

    def stream(self) -> None:
        """Count this request as a live reader. Raises Limited if there are too many."""
        for share in self._shares:
            share.check_streams()
        self._streams = True
        for share in self._shares:
            share.streams += 1

    def leave(self) -> None:
        """End the request."""
        for share in self._shares:
            share.open -= 1
            share.streams -= self._streams


class Limiter:
    """The shares of all users and tokens of one process. `clock` returns seconds that never go back."""

    def __init__(self, user: Limits, token: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._user = user
        self._token = token
        self._clock = clock
        # In the order of their last use, the longest ago first.
        self._shares: OrderedDict[tuple[str, str], _Share] = OrderedDict()

    def __len__(self) -> int:
        return len(self._shares)

    def enter(self, user: str, token: str) -> Admission:
        """Admit a request of a user with a token; `token` is anything that tells tokens apart.

        Raises Limited, which says what is too much and when to come again. A refused request counts for nothing.
        """
        now = self._clock()
        keys = ("user", user), ("token", token)
        if any(key not in self._shares for key in keys):
            # Before one of these is made: a new one is idle too, until it is admitted.
            self._drop_idle(now)
        shares = [
            self._share(keys[0], f"user {user}", self._user, now),
            self._share(keys[1], f"one token of user {user}", self._token, now),
        ]
        for share in shares:
            share.check(now)
        return Admission(shares, self._clock)

    def _share(self, key: tuple[str, str], whose: str, limits: Limits, now: float) -> _Share:
        share = self._shares.get(key)
        if share is None:
            share = self._shares[key] = _Share(whose, limits, now)
        self._shares.move_to_end(key)
        return share

    def _drop_idle(self, now: float) -> None:
        """Look at the four shares that were used the longest ago, and drop those that are idle.

        Twice as many as may be made next, so that their number falls again after a rush; those in use go to the end.
        """
        for _ in range(min(4, len(self._shares))):
            key, share = next(iter(self._shares.items()))
            if share.is_idle(now):
                del self._shares[key]
            else:
                self._shares.move_to_end(key)
