"""Real services for tests: FerretDB, which speaks MongoDB's protocol, and versitygw, which speaks that of S3.

Both are single programs without set-up, built once by `python -m tests.services build` (a test that needs one builds it
as well). Each runs on a free port of the loopback address, with its data in a folder of its own.
"""

from .build import Unavailable
from .running import Service, mongo, s3

__all__ = ["Service", "Unavailable", "mongo", "s3"]
