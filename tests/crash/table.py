"""All rows of the fault matrix that this package covers."""

from __future__ import annotations

from typing import Final

from tests.faults.harness import Row
from tests.faults.table import table

from . import (
    rows_away,
    rows_bytes,
    rows_disk,
    rows_exit,
    rows_files,
    rows_hostile,
    rows_huge,
    rows_kill,
    rows_model,
    rows_open,
    rows_past,
    rows_power,
    rows_processes,
    rows_project,
    rows_queries,
    rows_scale,
    rows_values,
    rows_views,
)

ROWS: Final[dict[str, Row]] = table(
    "tests.crash",
    rows_away.ROWS,
    rows_bytes.ROWS,
    rows_disk.ROWS,
    rows_exit.ROWS,
    rows_files.ROWS,
    rows_hostile.ROWS,
    rows_huge.ROWS,
    rows_kill.ROWS,
    rows_model.ROWS,
    rows_open.ROWS,
    rows_past.ROWS,
    rows_power.ROWS,
    rows_processes.ROWS,
    rows_project.ROWS,
    rows_queries.ROWS,
    rows_scale.ROWS,
    rows_values.ROWS,
    rows_views.ROWS,
)
