"""Errors that a user can mend, as one sentence each, and how a script ends with them."""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path


class UserError(Exception):
    """A mistake that the user can mend. Its text is one sentence: what is wrong, and what to do."""


def script(main: Callable) -> Callable:
    """
    Decorate a script's main(): a UserError ends it with one line on stderr and exit code 1, Ctrl-C with exit code 130.

    Other exceptions are bugs, and keep their traceback.
    """

    @functools.wraps(main)
    def wrapped(*args):
        try:
            return main(*args)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    return wrapped


@contextlib.contextmanager
def plausible(path: str | Path) -> Iterator[None]:
    """Turn whatever a whole file with wrong content raises while it is read into a UserError that names the file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # wrong values raise almost anything
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path} does not fit a model here: {reason or type(error).__name__}") from None
