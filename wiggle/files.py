"""Files that are found whole, whenever the machine stops: written beside their place, flushed to disk and renamed."""

import contextlib
import json
import os
from pathlib import Path

from wiggle.errors import UserError


@contextlib.contextmanager
def writing(path):
    """Make one sentence of what the system says where it cannot write, as on a full disk."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write {path}: {reason}; what stood there before is whole") from None


@contextlib.contextmanager
def atomic_write(path, previous=None, verify=lambda path: True):
    """
    Open a temporary file beside `path` for binary writing; on success flush it to disk and rename it over `path`.

    Whoever opens `path`, at whatever moment the machine stops, finds the old content or the new, never a part.
    previous: where the old content goes. verify: is given the temporary file, and says whether it may take the place.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if not verify(temporary):
                raise OSError("the disk gives back other bytes than were written")
            if previous and path.exists():
                os.replace(path, previous)
            os.replace(temporary, path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def sync_folder(folder):
    """Flush a folder's entries, so that a rename survives a power cut. Windows cannot, and does not need to."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path, content):
    with atomic_write(path) as file:
        file.write(json.dumps(content, indent=2).encode() + b"\n")


def read_bytes(path: str | Path) -> bytes:
    """A file's content. Raises UserError where the system cannot read it."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
