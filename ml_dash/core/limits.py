"""Bounds that a recorder, its readers and a server must agree on."""

from __future__ import annotations

from typing import Final

CHUNK_SIZE: Final = 10_000
"""Points in a chunk of a metric, as its metadata counts them (`bufferedDataPoints`)."""

MAX_FILE_BYTES: Final = 5_000_000_000
"""The largest content that can be added to an experiment, in bytes."""

MAX_LIMIT: Final = 10_000
"""The most entries of a page, and the most points of a plot."""

INT64_MAX: Final = (1 << 63) - 1
"""The largest integer of events, states and tables."""

LATEST_NS: Final = 1 << 62
"""A time beyond it was made up, and would leave no room for later ones."""
