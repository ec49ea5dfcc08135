"""All rows of the fault matrix that this package covers."""

from __future__ import annotations

from typing import Final

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
    rows_whole,
)
from .harness import Row

_MODULES: Final = (
    rows_daemon, rows_network, rows_hosts, rows_identity, rows_reading, rows_rewind, rows_host, rows_server, rows_gate,
    rows_power, rows_whole,
)  # fmt: skip
ROWS: Final[dict[str, Row]] = {
    row.id: row
    for row in sorted((row for module in _MODULES for row in module.ROWS), key=lambda row: (row.id[0], int(row.id[1:])))
}
