"""The command `ml-dash`: runs a subcommand, and turns its errors into a message and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from ml_dash.cli.codes import BROKEN_PIPE, DAMAGE, FAILURE, INTERRUPTED, UNSENT, USAGE


def main(argv: Sequence[str] | None = None) -> None:
    """Run `ml-dash` with `argv` (default: the program's arguments), and exit with its exit code."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """Run one command and return its exit code. Errors are printed on stderr."""
    try:
        code = _run(argv)
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has ended. Without this, the interpreter's own flush at exit would fail as well.
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - pathlib is slower to import than this
            os.dup2(nowhere.fileno(), 1)
        return BROKEN_PIPE
    return code


def _run(argv: Sequence[str]) -> int:
    import click

    from ml_dash.cli import app, console
    from ml_dash.errors import InvalidQuery, JournalError, MLDashError, NewerFormat, ReleasedData

    console.prepare_streams()
    try:
        return app.invoke(argv)
    except click.Abort:  # Ctrl-C, or the end of input at a question
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except InvalidQuery as error:
        console.print_error_lines(str(error))
        return USAGE
    except MLDashError as error:
        console.print_error(str(error))
        if isinstance(error, ReleasedData):
            return UNSENT
        return DAMAGE if isinstance(error, JournalError) and not isinstance(error, NewerFormat) else FAILURE
    except BrokenPipeError:
        raise
    except OSError as error:
        console.print_error(str(error))
        return FAILURE
