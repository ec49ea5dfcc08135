"""`python -m tests.crash`: rows of the fault matrix without a server."""

import sys

from tests.faults.command import main

from .table import ROWS

if __name__ == "__main__":
    sys.exit(main("tests.crash", ROWS))
