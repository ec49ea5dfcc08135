"""The build step: `python -m tests.services build` makes the programs of all services and prints where they are."""

from __future__ import annotations

import sys

from .build import NAMES, Unavailable, program


def main(arguments: list[str]) -> int:
    if arguments != ["build"]:
        print("usage: python -m tests.services build", file=sys.stderr)
        return 2
    failed = False
    for name in NAMES:
        try:
            print(program(name))
        except Unavailable as missing:
            print(missing, file=sys.stderr)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
