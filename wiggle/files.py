"""Files that are found whole, whenever the machine stops: written beside their place, flushed to disk and renamed."""

import codecs
import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from wiggle.errors import UserError

# What other files begin with that are taken for weights, and what to say of them.
KNOWN_BEGINNINGS = {
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19": "is in the format of torch before 1.6, which has no checksums: "
    "in Python, torch.load it with weights_only=True, and torch.save it again",
    b"version https://git-lfs": "is a pointer of Git LFS in place of the file: fetch the file by git lfs pull",
    b"<": "is a web page in place of the file: download the file itself",
    b"GGUF": "is in llama.cpp's format GGUF, which is not read here",
}


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn an OSError while `path` is written, as on a full disk, into a UserError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write {path}: {reason}; what stood there before is whole") from None


@contextlib.contextmanager
def atomic_write(
    path: str | Path, previous: str | Path | None = None, verify: Callable[[Path], bool] = lambda path: True
) -> Iterator[BinaryIO]:
    """
    Open a temporary file beside `path` for binary writing; on success flush it to disk and rename it over `path`.

    Whoever opens `path`, at whatever moment the machine stops, finds the old content or the new, never a part.
    previous: a path that the old content is renamed to. verify: says of the temporary file whether it may take the
    place. Raises UserError where it may not, or where the system cannot write.
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


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename survives a power cut. Windows cannot, and need not."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def to_json(content: object, indent: int | None = None) -> bytes:
    """Plain values -> JSON and a line break. Numbers that are not finite become null: JSON has no word for them."""
    return json.dumps(without_nan(content), indent=indent, allow_nan=False).encode() + b"\n"


def without_nan(value: object) -> object:
    """The same dicts, lists and values, with None for each float that is not finite."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: str | Path, content: object) -> None:
    """Write plain values to a JSON file, whole or not at all."""
    with atomic_write(path) as file:
        file.write(to_json(content, indent=2))


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn what the system raises while `path` is read into a UserError; a ValueError is of a path that holds NUL."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


def read_bytes(path: str | Path) -> bytes:
    """A file's content. Raises UserError where the system cannot read it."""
    with reading(path):
        return Path(path).read_bytes()


def read_text(path: str | Path) -> str:
    """A UTF-8 file's text, without a byte-order mark, each line break as \\n. Raises UserError for other files."""
    content = read_bytes(os.path.expanduser(path))
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        what = "is UTF-16" if utf_16 else f"is not UTF-8 (byte {error.start})"
        raise UserError(f"{path} {what}: save it as UTF-8") from None


def known_beginning(path: Path) -> str | None:
    """What to say of a file that is no weights file, but begins as one of KNOWN_BEGINNINGS does."""
    with open(path, "rb") as file:
        beginning = file.read(64)
    return next((what for prefix, what in KNOWN_BEGINNINGS.items() if beginning.startswith(prefix)), None)
