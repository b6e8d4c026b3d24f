"""One run at a time in a folder, by a lock of the operating system, which ends with its process however that dies."""

import contextlib
import errno
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

from wiggle.errors import UserError
from wiggle.files import writing

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

_held: set[int] = set()  # file descriptors of the locks that this process holds


@contextlib.contextmanager
def folder_lock(folder: str | Path, what: str) -> Iterator[None]:
    """
    Hold `folder` for this run alone. Raises UserError where another run holds it, and says which and since when.

    what: names this run in another's error, as in "a training run". The lock lies on the file .lock, which is removed
    at the end; one that a killed process left is taken over. Forked children do not hold it. A missing folder is made,
    and removed again if nothing came into it.
    """
    folder = Path(folder)
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    handle = _acquire(folder)
    _held.add(handle)
    try:
        holder = f"{what}, process {os.getpid()} on {platform.node()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}"
        with contextlib.suppress(OSError):  # a full disk: the lock holds without its holder's name
            os.ftruncate(handle, 0)
            os.write(handle, holder.encode("utf-8", "replace"))
        yield
    finally:
        if handle in _held:  # not in a forked child
            _release(folder / ".lock", handle)
            for place in made:
                with contextlib.suppress(OSError):  # not empty
                    place.rmdir()


def _acquire(folder: Path) -> int:
    """Lock folder/.lock -> its file descriptor."""
    path = folder / ".lock"
    for _ in range(1000):
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:  # the last holder has just removed its empty folder
                continue
        if not _lock(handle):
            os.close(handle)
            with contextlib.suppress(FileNotFoundError):  # its holder has just ended
                holder = path.read_text(encoding="utf-8", errors="replace") or "another run"
                raise UserError(f"{folder} is in use by {holder}: wait until it ends, or choose another folder")
            continue
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        os.close(handle)  # the last holder removed this file after it was opened here: lock its successor
    raise UserError(f"cannot lock {folder}: {path} comes and goes")


def _lock(handle: int) -> bool:
    """Try to lock an open file; False where another process holds it. A file system without locks counts as free."""
    try:
        if fcntl:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            os.lseek(handle, 2**20, os.SEEK_SET)  # past the text: what Windows locks cannot be read
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            os.lseek(handle, 0, os.SEEK_SET)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)
    return True


def _release(path: Path, handle: int) -> None:
    """Remove the lock file and unlock. POSIX removes first, so that nobody locks a file that is about to go."""
    _held.discard(handle)
    if os.name == "posix":
        path.unlink(missing_ok=True)
    os.close(handle)
    if os.name != "posix":
        with contextlib.suppress(OSError):  # Windows keeps a file that another process has opened meanwhile
            path.unlink()


def _forget_in_child() -> None:
    """Close a forked child's copies of the locks: the parent's lock must not outlive the parent in a child."""
    for handle in _held:
        os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
