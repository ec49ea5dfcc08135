"""All rows of the fault matrix that this package covers."""

from __future__ import annotations

from typing import Final

from . import rows_away, rows_bytes, rows_disk, rows_kill, rows_power, rows_processes
from .harness import Row

ROWS: Final[dict[str, Row]] = {row.id: row for module in (rows_kill, rows_power, rows_bytes, rows_disk, rows_away, rows_processes) for row in module.ROWS}
