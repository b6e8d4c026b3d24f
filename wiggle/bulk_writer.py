"""
The stages in which a large corpus is prepared: documents are read in order (wiggle/readers.py), encoded in batches
(wiggle/encoders.py) and appended, each closed by an end-of-text token, to train.bin.part or val.bin.part, by a hash of
the document's text.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from wiggle.bulk_journal import SPLITS, Journal, Limits, State
from wiggle.bulk_progress import Progress
from wiggle.encoders import ByteEncoder, GigatokenEncoder, TiktokenWorkers
from wiggle.errors import UserError
from wiggle.read_ahead import ReadAhead
from wiggle.readers import Chunk, FileSequence
from wiggle.tokenizer import ByteTokenizer, GPT2Tokenizer

COMMIT_SECONDS = 2.0  # between two lines of the journal, so that flushing to disk takes a small share of the time
TOKENIZERS = {"gpt2": GPT2Tokenizer, "byte": ByteTokenizer}


class BulkSource(NamedTuple):
    """A corpus as it is read."""

    description: str  # for people
    identity: dict  # what tells this source from an altered one: files, sizes, revision
    files: FileSequence
    notes: dict = {}  # further keys of meta.json  # noqa: RUF012


class Batch(NamedTuple):
    """An encoded Chunk."""

    chunk: Chunk
    ids: np.ndarray  # (total,), of all documents one after another
    counts: np.ndarray  # (N,), the tokens of each document
    in_val: list[bool]  # (N,), whether a document belongs to the validation split


class Preparation:
    """The stages of a preparation: a thread reads, others encode and hash, and the calling thread writes in order."""

    def __init__(
        self,
        folder: Path,
        journal: Journal,
        source: BulkSource,
        limits: Limits,
        encoder: ByteEncoder | GigatokenEncoder | TiktokenWorkers,
        expected: int | None,
    ):
        self.folder, self.journal, self.source, self.limits, self.encoder = folder, journal, source, limits, encoder
        self.expected, self.state = expected, journal.state
        self.lost: UserError | None = None  # why the source could be read no further
        self.dtype = np.dtype("<u2" if TOKENIZERS[limits.tokenizer].vocab_size <= 2**16 else "<u4")
        self.border = int(limits.val_fraction * 2**64)  # hashes below it are of validation documents

    def run(self) -> None:
        """Read, encode and write all documents that are left. What was written stays good however this ends."""
        try:
            with self._open_parts(), Progress(self.source.files, self.limits, self.state, self.expected) as progress:
                self.committed = time.monotonic()
                try:
                    for batch in self._batches():
                        self._write(batch)
                        progress.show(self.state, batch.chunk.done)
                        if self._is_full():
                            break
                        if time.monotonic() > self.committed + COMMIT_SECONDS:
                            self._commit()
                    self.state = dataclasses.replace(self.state, finished=True)
                finally:
                    self._commit()
        except KeyboardInterrupt:
            print(f"stopped  after {self.state.total_documents:,} documents: the same command goes on from here")
            raise
        except OSError as error:
            if error.errno is None:
                raise
            reason = error.strerror or error
            advice = "mend that and run the same command again, which goes on where this stopped"
            raise UserError(f"cannot write {self.folder}: {reason}; {advice}") from None

    @contextlib.contextmanager
    def _open_parts(self) -> Iterator[None]:
        """Open train.bin.part and val.bin.part, cut to the lengths that the journal knows to be on disk."""
        with contextlib.ExitStack() as stack:
            self.parts = {}
            for split in SPLITS:
                path = self.folder / f"{split}.bin.part"
                file = stack.enter_context(open(path, "r+b" if path.exists() else "w+b"))
                length = self.state.tokens[split] * self.dtype.itemsize
                if file.seek(0, os.SEEK_END) < length:
                    raise UserError(f"{path} is shorter than its journal says: begin anew with --force")
                file.truncate(length)
                file.seek(length)
                self.parts[split] = file
            yield

    def _batches(self) -> Iterator[Batch]:
        """The encoded chunks, in order. No more than a few are in memory at any time."""
        count = self.state.total_documents
        pending, most = deque(), 2 * self.encoder.threads
        chunks = self.source.files.chunks(tuple(self.state.place), self.state.crc)
        with ThreadPoolExecutor(self.encoder.threads) as pool, ReadAhead(chunks, 2) as ahead:
            try:
                while (chunk := self._next_chunk(ahead)) is not None:
                    pending.append(pool.submit(self._encode, chunk, count))
                    count += len(chunk.documents)
                    if len(pending) > most:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
                if self.lost is not None:
                    raise self.lost
            finally:
                for future in pending:
                    future.cancel()

    def _next_chunk(self, ahead: Iterator[Chunk]) -> Chunk | None:
        """The next chunk. None at the end and where the source is lost: what was read before is still to be written."""
        try:
            return next(ahead, None)
        except UserError as error:
            self.lost = error
            return None

    def _encode(self, chunk: Chunk, first: int) -> Batch:
        """Encode a chunk, whose first document has the number `first`, and tell its documents' splits."""
        in_val = [split_hash(document) < self.border for document in chunk.documents]
        ids, counts = self.encoder.encode(chunk.documents, first)
        return Batch(chunk, ids.astype(self.dtype, copy=False), counts, in_val)

    def _write(self, batch: Batch) -> None:
        """Append a batch to the parts, as far as the limits allow. The state changes when all is written, or not."""
        take = self._documents_to_take(batch.counts)
        new = State(**json.loads(json.dumps(dataclasses.asdict(self.state))))
        pieces, close = {split: [] for split in SPLITS}, np.array([self.encoder.end_of_text], self.dtype)
        ends = np.cumsum(batch.counts).tolist()
        start = 0
        for document, end, in_val in zip(batch.chunk.documents[:take], ends, batch.in_val, strict=False):
            split = "val" if in_val else "train"
            pieces[split] += (batch.ids[start:end], close)
            new.text_bytes[split] += len(document)
            new.documents[split] += 1
            start = end
        for split, parts in pieces.items():
            if parts:
                ids = np.concatenate(parts)
                new.tokens[split] += len(ids)
                self.parts[split].write(ids.data)
        new.place, new.crc = list(batch.chunk.place), batch.chunk.crc
        new.left_out = dict(Counter(new.left_out) + batch.chunk.left_out)
        self.state = new

    def _documents_to_take(self, counts: np.ndarray) -> int:
        """How many documents of a batch with these token counts the limits leave."""
        take = len(counts)
        if self.limits.max_docs is not None:
            take = min(take, self.limits.max_docs - self.state.total_documents)
        if self.limits.max_tokens is not None:
            totals = self.state.total_tokens + np.cumsum(counts + 1)
            take = min(take, int(np.searchsorted(totals, self.limits.max_tokens)) + 1)
        return take

    def _is_full(self) -> bool:
        most_documents, most_tokens = self.limits.max_docs, self.limits.max_tokens
        return (most_documents is not None and self.state.total_documents >= most_documents) or (
            most_tokens is not None and self.state.total_tokens >= most_tokens
        )

    def _commit(self) -> None:
        """Flush the parts to disk, then record their lengths."""
        for file in self.parts.values():
            file.flush()
            os.fsync(file.fileno())
        self.journal.append(dataclasses.asdict(self.state))
        self.journal.state = self.state
        self.committed = time.monotonic()


def split_hash(document: bytes) -> int:
    """A number below 2^64 by which a document falls into a split: equal texts fall into the same one."""
    return int.from_bytes(hashlib.sha256(document).digest()[:8], "big")
