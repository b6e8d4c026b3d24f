"""
How far the preparation of a large corpus has come: its limits, its state, and the journal that keeps both.

Each line of the journal is written after train.bin.part and val.bin.part are flushed to disk up to the lengths that it
names, so that a preparation which was killed at any moment goes on from the last whole line.
"""

import contextlib
import dataclasses
import json
import os
import shutil
from pathlib import Path

from wiggle.errors import UserError
from wiggle.files import sync_folder, to_json

DOWNLOADS = "downloads.tmp"  # a folder that only an unfinished corpus has
SPLITS = ("train", "val")


@dataclasses.dataclass
class Limits:
    """What the user asked of a corpus besides the source."""

    tokenizer: str = "gpt2"
    val_fraction: float = 0.01
    max_tokens: int | None = None  # the preparation ends with the document that reaches it
    max_docs: int | None = None


@dataclasses.dataclass
class State:
    """How far a preparation has come: a line of the journal."""

    place: list[int] = dataclasses.field(default_factory=lambda: [0, 0, 0])  # in the source, of the next document
    crc: int = 0  # see readers.Chunk
    tokens: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    text_bytes: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    documents: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)
    finished: bool = False  # all documents are in the parts, which await their final names

    @property
    def total_documents(self) -> int:
        return sum(self.documents.values())

    @property
    def total_tokens(self) -> int:
        return sum(self.tokens.values())


class Journal:
    """
    The journal of an unfinished corpus: a line that says what is prepared, then one for each State that is on disk.

    header: the first line; None where no preparation has begun. state: the last whole line.
    """

    def __init__(self, path: Path):
        self.path, self.header, self.state = path, None, State()
        self.length = 0  # bytes of whole lines
        with contextlib.suppress(FileNotFoundError):
            for number, line in enumerate(path.read_bytes().splitlines(keepends=True)):
                try:
                    content = json.loads(line)
                    if not line.endswith(b"\n"):
                        break
                    if number:
                        self.state = State(**content)
                    else:
                        self.header = {key: content[key] for key in ("source", "limits", "place")}
                except (ValueError, KeyError, TypeError):  # a line that was cut by a crash
                    break
                self.length += len(line)

    def begin(self, header: dict, folder: Path) -> None:
        """Start the journal, or raise UserError where it is one of another preparation."""
        if self.header is None:
            self.remove()
            self.header, self.state = json.loads(json.dumps(header)), State()
            self.append(self.header)
            sync_folder(folder)
            return
        for key, value in json.loads(json.dumps(header)).items():
            if value != self.header[key]:
                raise UserError(
                    f"{folder} holds an unfinished corpus with another {key} ({changes(self.header[key], value)}): go "
                    "on with the same, make another one by --name=NAME, or begin anew with --force"
                )
        print(f"resume   {folder}: {self.state.total_documents:,} documents are done")

    def append(self, content: dict) -> None:
        """Add a line and flush it to disk."""
        with open(self.path, "r+b" if self.path.exists() else "wb") as file:
            file.truncate(self.length)
            file.seek(self.length)
            line = to_json(content)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
            self.length += len(line)

    def remove(self) -> None:
        """Forget the preparation, and remove what it wrote."""
        self.header, self.state, self.length = None, State(), 0
        for path in (*(self.path.with_name(f"{split}.bin.part") for split in SPLITS), self.path):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.path.with_name(DOWNLOADS), ignore_errors=True)


def changes(old: object, new: object) -> str:
    """Where two values differ, in a few words."""
    if isinstance(old, dict) and isinstance(new, dict):
        return ", ".join(f"{key} was {old.get(key)!r:.80}" for key in old if old.get(key) != new.get(key)) or "more"
    return f"{old!r:.80}"
