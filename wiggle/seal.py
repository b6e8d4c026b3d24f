"""
The seal at the end of our checkpoints: a SHA-256 over all their bytes.

The checksums of a ZIP archive, which torch's files are, leave out headers and padding, half of a tiny file.
"""

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

# The archive's comment, behind its length: these words, and the SHA-256 in hexadecimal.
SEAL = b"wigglegpt: the SHA-256 without this comment is "
SEAL = (len(SEAL) + 64).to_bytes(2, "little") + SEAL


class Hashing:
    """A file that is written to, and the SHA-256 of what was written."""

    def __init__(self, file: BinaryIO):
        self.file, self.flush, self.digest = file, file.flush, hashlib.sha256()

    def write(self, data) -> int:
        self.digest.update(data)
        return self.file.write(data)


def append_seal(file: BinaryIO, sha256: str) -> None:
    """Make the seal the comment of a ZIP archive that has none. file: the archive, open for writing."""
    file.seek(-2, os.SEEK_END)  # the comment's length, zero so far
    file.write(SEAL + sha256.encode())


def seal_holds(path: Path) -> bool | None:
    """Whether a file has, to the byte, the content that was sealed; None where it has no seal, as foreign ones."""
    with open(path, "rb") as file:
        if hasattr(os, "posix_fadvise"):  # drop the file from memory: a fresh one is to be read back from the disk
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        archive = file.seek(0, os.SEEK_END) - len(SEAL) - 64  # bytes of the archive before its comment's length
        file.seek(max(archive, 0))
        if file.read(len(SEAL)) != SEAL:
            return None
        expected = file.read()
        file.seek(0)
        digest = hashlib.sha256()
        for start in range(0, archive, 2**22):
            digest.update(file.read(min(2**22, archive - start)))
        digest.update(b"\0\0")  # the comment's length when the SHA-256 was taken
        return digest.hexdigest().encode() == expected
