"""Sizes that a recorder, its readers and a server must agree on."""

from __future__ import annotations

from typing import Final

CHUNK_SIZE: Final = 10_000
"""Points in a chunk of a metric, as its metadata counts them (`bufferedDataPoints`)."""

MAX_FILE_BYTES: Final = 5_000_000_000
"""The largest content that can be added to an experiment, in bytes."""
