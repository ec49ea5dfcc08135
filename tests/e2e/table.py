"""All rows of the fault matrix that this package covers."""

from __future__ import annotations

from typing import Final

from tests.faults.harness import Row
from tests.faults.table import table

from . import (
    rows_daemon,
    rows_gate,
    rows_host,
    rows_hosts,
    rows_identity,
    rows_network,
    rows_power,
    rows_reading,
    rows_rewind,
    rows_server,
    rows_side_by_side,
    rows_whole,
)

ROWS: Final[dict[str, Row]] = table(
    "tests.e2e",
    rows_daemon.ROWS,
    rows_gate.ROWS,
    rows_host.ROWS,
    rows_hosts.ROWS,
    rows_identity.ROWS,
    rows_network.ROWS,
    rows_power.ROWS,
    rows_reading.ROWS,
    rows_rewind.ROWS,
    rows_server.ROWS,
    rows_side_by_side.ROWS,
    rows_whole.ROWS,
)
