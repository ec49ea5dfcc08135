"""`python -m tests.e2e`: rows of the fault matrix with a server."""

import logging
import sys

from tests.crash.command import main

from .harness import start_apart
from .table import ROWS

if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    sys.exit(main("tests.e2e", ROWS, start_apart))
