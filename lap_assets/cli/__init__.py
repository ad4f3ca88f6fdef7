"""`lap`: a thin command line over the other rooms. Heavy imports stand inside commands, so that help is instant."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def main() -> None:
    """Entry point of `lap`."""
    from lap_assets.cli.app import app

    with end_on_errors("lap"):
        app()


@contextmanager
def end_on_errors(program: str) -> Iterator[None]:
    """Turns errors raised on purpose into one line and an exit status.

    Exit status: 0 done, 1 something failed or is missing, 2 the command or its input cannot be used.
    """
    from lap_assets.errors import BadInput, LapError

    try:
        yield
    except LapError as error:
        print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2 if isinstance(error, BadInput) else 1)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        print(f"{program}: {error.strerror or error}: {error.filename or 'no file named'}", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        if os.environ.get("LAP_TRACEBACK"):
            raise
        first = (str(error).strip() or "no message").splitlines()[0]
        print(f"{program}: {type(error).__name__}: {first}; with LAP_TRACEBACK=1 it says where", file=sys.stderr)
        sys.exit(1)
