"""All rows of the fault matrix that this package covers."""

from __future__ import annotations

from typing import Final

from . import (
    rows_away,
    rows_bytes,
    rows_disk,
    rows_exit,
    rows_files,
    rows_huge,
    rows_kill,
    rows_model,
    rows_open,
    rows_power,
    rows_processes,
    rows_project,
    rows_scale,
    rows_values,
    rows_views,
)
from .harness import Row

_MODULES: Final = (
    rows_kill,
    rows_model,
    rows_power,
    rows_bytes,
    rows_disk,
    rows_away,
    rows_open,
    rows_processes,
    rows_exit,
    rows_files,
    rows_values,
    rows_huge,
    rows_project,
    rows_views,
    rows_scale,
    rows_model,
)
ROWS: Final[dict[str, Row]] = {
    row.id: row
    for row in sorted((row for module in _MODULES for row in module.ROWS), key=lambda row: (row.id[0], int(row.id[1:])))
}
