"""`python -m tests.e2e`: rows of the fault matrix with a server."""

import logging
import sys

from tests.faults.command import main

from .table import ROWS

if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    sys.exit(main("tests.e2e", ROWS))
