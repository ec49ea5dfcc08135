"""Moments in the past: what names one."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from ml_dash.core.as_of import AsOf, as_of_of
from ml_dash.errors import InvalidValue

NOW_NS = 1_761_733_800_000_000_000  # 2025-10-29T10:30:00Z
HOUR_NS = 3_600_000_000_000


@pytest.mark.parametrize(
    ("moment", "meant"),
    [
        (None, None),
        (0, AsOf(events=0)),
        (17, AsOf(events=17)),
        ("17", AsOf(events=17)),
        ("-2h", AsOf(time_ns=NOW_NS - 2 * HOUR_NS + 999)),
        ("-90min", AsOf(time_ns=NOW_NS - 3 * HOUR_NS // 2 + 999)),
        ("-1 d", AsOf(time_ns=NOW_NS - 24 * HOUR_NS + 999)),
        ("2025-10-29T10:30:00", AsOf(time_ns=NOW_NS + 999)),
        ("2025-10-29T10:30:00.000001Z", AsOf(time_ns=NOW_NS + 1999)),
        (datetime(2025, 10, 29, 10, 30), AsOf(time_ns=NOW_NS + 999)),  # noqa: DTZ001 - without a zone it is UTC
        (datetime(2025, 10, 29, 12, 30, tzinfo=timezone(timedelta(hours=2))), AsOf(time_ns=NOW_NS + 999)),
        (AsOf(events=3), AsOf(events=3)),
    ],
)
def test_a_moment_is_a_number_of_events_a_time_or_how_long_ago(moment: Any, meant: AsOf | None) -> None:
    assert as_of_of(moment, NOW_NS) == meant


@pytest.mark.parametrize("moment", [-1, "-1", "soon", "", "-2x", "1e3", True, 1.5, [1], "2025-13-01", "-h", "9" * 30])
def test_anything_else_is_refused_and_told_what_is_one(moment: Any) -> None:
    with pytest.raises(InvalidValue, match="give a number of events"):
        as_of_of(moment, NOW_NS)
