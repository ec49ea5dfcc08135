"""All rows of a suite, by their ids."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from .harness import Row


def table(package: str, *groups: Iterable[Row]) -> dict[str, Row]:
    """The rows of these groups in the order of their ids; the command of `package` runs them."""
    rows = (replace(row, package=package) for group in groups for row in group)
    return {row.id: row for row in sorted(rows, key=lambda row: (row.id[0], int(row.id[1:])))}
