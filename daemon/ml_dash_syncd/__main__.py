"""`python -m ml_dash_syncd`, and the script `ml-dash-syncd`."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` names (default: the program's arguments); return its exit code."""
    from .cli import invoke

    return invoke(sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
