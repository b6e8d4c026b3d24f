"""One private folder for what is compiled or downloaded once and used by every run of this user."""

import os
import stat
import tempfile
from pathlib import Path


def private_folder() -> Path | None:
    """
    A cache folder that this user owns and no other user can write to; None where there is none.

    What lies in it is loaded as code or taken for a tokenizer's tables, so another user must not be able to put it
    there. Windows keeps LOCALAPPDATA private by itself.
    """
    if os.name != "posix":
        base = os.environ.get("LOCALAPPDATA")
        folder = Path(base, "wigglegpt") if base else Path("~", ".cache", "wigglegpt").expanduser()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return None
        return folder
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    candidates = Path(home, "wigglegpt"), Path(tempfile.gettempdir(), f"wigglegpt-{os.getuid()}")
    for folder in filter(Path.is_absolute, candidates):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = os.lstat(folder)
        except OSError:
            continue
        private = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022
        if private and os.access(folder, os.W_OK):
            return folder
    return None
