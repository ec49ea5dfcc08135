"""Exit codes of `ml-dash`."""

from __future__ import annotations

OK = 0
FAILURE = 1
USAGE = 2
UNSENT = 3
DAMAGE = 4
INTERRUPTED = 130
BROKEN_PIPE = 141
