"""Times: nanoseconds since the epoch to ISO 8601 text in UTC, and back."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from ml_dash.errors import InvalidValue

if TYPE_CHECKING:
    from datetime import datetime

_DAY_S: Final = 86_400


_second: tuple[int, str] = (0, "1970-01-01T00:00:00.")


def utc_text(time_ns: int) -> str:
    """Return nanoseconds since 1970 as UTC text, cut to microseconds: `2025-10-29T10:30:00.000000Z`."""
    global _second  # the last second asked for: most calls are for the same one
    second, rest = divmod(time_ns, 1_000_000_000)
    cached, text = _second  # one tuple, so that threads never see half of it
    if second != cached:
        now = time.gmtime(second)
        text = f"{now[0]:04d}-{now[1]:02d}-{now[2]:02d}T{now[3]:02d}:{now[4]:02d}:{now[5]:02d}."
        _second = (second, text)
    return text + str(rest // 1000).zfill(6) + "Z"


def parse_time(text: str) -> int:
    """Return the nanoseconds since 1970 of an ISO 8601 text; without a zone it is UTC, without a time midnight.

    Raises `InvalidValue` for any other text.
    """
    from datetime import datetime, timezone

    try:
        moment, nanoseconds = _parsed(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=timezone.utc)
        since = moment - datetime(1970, 1, 1, tzinfo=timezone.utc)
    except (ValueError, OverflowError):
        hint = "write it like 2025-10-29T10:30:00.000000Z"
        raise InvalidValue(f"{text[:80]!a} is not a time", hint=hint) from None
    return (since.days * _DAY_S + since.seconds) * 1_000_000_000 + nanoseconds


def _parsed(text: str) -> tuple[datetime, int]:
    """Return the time to the second, and the rest in nanoseconds, because `datetime` has only microseconds."""
    import re
    from datetime import datetime

    form = r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d)(:\d\d)?(?:[.,](\d{1,9}))?(Z|[+-]\d\d:?\d\d)?)?"
    match = re.fullmatch(form, text.strip(), re.IGNORECASE | re.ASCII)
    if match is None:
        raise ValueError(text)
    day, minute, second, fraction, zone = match.groups()
    if fraction and not second:
        raise ValueError(text)
    zone = "+00:00" if not zone or zone in "Zz" else f"{zone[:3]}:{zone[-2:]}"
    moment = datetime.fromisoformat(f"{day}T{minute or '00:00'}{second or ':00'}{zone}")
    return moment, int((fraction or "").ljust(9, "0"))
