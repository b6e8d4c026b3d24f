"""Errors that a user can mend, as one sentence each, and how a script ends: with them, and where its output breaks."""

import contextlib
import errno
import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO


class UserError(Exception):
    """A mistake that the user can mend. Its text is one sentence: what is wrong, and what to do."""


class OutputBroken(OSError):
    """Standard output takes no more: its reader is gone, as behind `| head`, or the disk that it goes to is full."""


class StandardOutput:
    """sys.stdout with its OSErrors as OutputBroken, which tells them from those of other files."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with self._broken():
            return self.stream.write(text)

    def flush(self) -> None:
        with self._broken():
            self.stream.flush()

    @contextlib.contextmanager
    def _broken(self):
        try:
            yield
        except OSError as error:
            raise OutputBroken(error.errno, error.strerror) from None


def script(main: Callable) -> Callable:
    """
    Decorate a script's main(): a UserError ends it with one line on stderr and exit code 1, Ctrl-C with exit code 130.

    Where nobody reads standard output any more the script stops without a word, with the shell's exit code for that,
    141. Characters that the console's encoding lacks are printed as escapes. Other exceptions are bugs, and keep their
    traceback.
    """

    @functools.wraps(main)
    def wrapped(*args):
        stdout = forgiving_output()
        sys.stdout = StandardOutput(stdout)
        try:
            result = main(*args)
            sys.stdout.flush()
            return result
        except UserError as error:
            end_with(1, f"error: {error}")
        except KeyboardInterrupt:
            end_with(130, "interrupted")
        except OutputBroken as error:
            if error.errno == errno.EPIPE:
                end_with(141)
            end_with(1, f"error: cannot write to standard output: {error.strerror}")
        finally:
            try:
                sys.stdout.flush()
            except OutputBroken:  # the interpreter's own last flush would fail as well
                discard_output()
            sys.stdout = stdout

    return wrapped


def end_with(code: int, line: str = "") -> None:
    """Print a line on stderr, if there is one and it can be printed, and exit."""
    if line:
        with contextlib.suppress(OSError):
            print(line, file=sys.stderr, flush=True)
    sys.exit(code)


def forgiving_output() -> TextIO:
    """
    Let print() work on any console -> sys.stdout.

    A stream that was closed before the start (`>&-`), which is None in Python, goes to nowhere, and in child processes,
    too: else the next file that is opened would take its place. A character that the console's encoding lacks is
    printed as an escape: an é in ASCII as \\xe9.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115 - open as long as the process
            os.set_inheritable(nowhere.fileno(), True)
            setattr(sys, name, nowhere)
    if getattr(sys.stdout, "errors", None) == "strict" and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    return sys.stdout


def discard_output() -> None:
    """Send standard output, with what its buffer still holds, to nowhere, so that nothing more fails on it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # a stream that has no file descriptor
        descriptor = sys.stdout.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


@contextlib.contextmanager
def plausible(path: str | Path) -> Iterator[None]:
    """Turn whatever a whole file with wrong content raises while it is read into a UserError that names the file."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {error.filename or path}: {error.strerror or error}") from None
    except Exception as error:  # wrong values raise almost anything
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path} does not fit a model here: {reason or type(error).__name__}") from None
