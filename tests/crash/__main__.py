"""`python -m tests.crash`: rows of the fault matrix without a server."""

import sys

from .command import main
from .harness import start_apart
from .table import ROWS

if __name__ == "__main__":
    sys.exit(main("tests.crash", ROWS, start_apart))
