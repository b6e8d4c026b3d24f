"""
A corpus of any size -> train.bin, val.bin and meta.json: streamed, in bounded memory, and resumable.

Documents are read in order (wiggle/readers.py), encoded in batches (wiggle/encoders.py) and appended, each closed by an
end-of-text token, to train.bin.part or val.bin.part, by a hash of its text. A journal says how far the files reach:
each of its lines is written after the parts are flushed to disk up to the lengths that it names. Resuming cuts the
parts back to those lengths and reads on from the place in the last line, so the files come out the same however often
the preparation is killed.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import queue
import shutil
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from wiggle.corpora import JOURNAL, dataset_folder, fingerprint, refuse_to_replace, remove_half_written
from wiggle.encoders import ByteEncoder, GigatokenEncoder, TiktokenWorkers, make_encoder
from wiggle.errors import UserError
from wiggle.files import atomic_write, sync_folder, to_json
from wiggle.lock import folder_lock
from wiggle.readers import Chunk, FileSequence
from wiggle.tokenizer import ByteTokenizer, GPT2Tokenizer

Item = TypeVar("Item")
DOWNLOADS = "downloads.tmp"  # a folder that only an unfinished corpus has
SPLITS = ("train", "val")
COMMIT_SECONDS = 2.0  # between two lines of the journal, so that flushing to disk takes a small share of the time
TOKENIZERS = {"gpt2": GPT2Tokenizer, "byte": ByteTokenizer}


@dataclasses.dataclass
class BulkCorpus:
    """
    A corpus that the user named, before it is opened.

    open: takes what the journal of an unfinished preparation says of the source, or None, and a folder for files that
    are downloaded -> the source as it will be read.
    """

    name: str  # of the dataset's folder, unless the user gives another one
    place: str | None  # a named corpus, the id of a dataset or an absolute path; None for standard input
    open: Callable[[dict | None, Path], "BulkSource"]
    val_fraction: float = 0.01  # unless the user gives another one
    expected: int | None = None  # documents, those that are left out included


class BulkSource(NamedTuple):
    """A corpus as it is read."""

    description: str  # for people
    identity: dict  # what tells this source from an altered one: files, sizes, revision
    files: FileSequence
    notes: dict = {}  # further keys of meta.json  # noqa: RUF012


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


def prepare_bulk(
    corpus: BulkCorpus,
    data_dir: str | Path = "data",
    name: str | None = None,
    tokenizer: str | None = None,
    val_fraction: float | None = None,
    max_tokens: int | None = None,
    max_docs: int | None = None,
    encoder: str | None = None,
    workers: int | None = None,
    force: bool = False,
) -> Path:
    """
    Make the dataset of a large corpus, or go on where an earlier call was stopped -> its folder.

    encoder, workers: see make_encoder; they change nothing in the files. Raises UserError for whatever is wrong.
    """
    fraction = corpus.val_fraction if val_fraction is None else val_fraction
    limits = Limits(tokenizer or "gpt2", fraction, max_tokens, max_docs)
    refuse_wrong_limits(limits, workers)
    folder = dataset_folder(data_dir, corpus.name if name is None else name)
    with folder_lock(folder, "a preparation"):
        remove_half_written(folder)
        journal = Journal(folder / JOURNAL)
        if force:
            journal.remove()
        elif journal.header is None and (folder / "meta.json").exists() and is_finished(folder, corpus, limits):
            print(f"data     {folder} is finished already; --force makes it anew")
            return folder
        source = corpus.open(journal.header and journal.header["source"], folder / DOWNLOADS)
        if not force and journal.header is None:
            refuse_to_replace(folder, corpus.place, source_sha256(source))
        journal.begin({"source": source.identity, "limits": dataclasses.asdict(limits), "place": corpus.place}, folder)
        if not journal.state.finished:
            with contextlib.closing(make_encoder(limits.tokenizer, encoder, workers or os.cpu_count() or 1)) as made:
                Preparation(folder, journal, source, limits, made, corpus.expected).run()
        meta = finish(folder, journal, source, limits, corpus)
    report(folder, source, meta, corpus, limits)
    return folder


def refuse_wrong_limits(limits: Limits, workers: int | None) -> None:
    """Raise UserError for settings that no corpus can have."""
    if limits.tokenizer not in TOKENIZERS:
        raise UserError(f"a large corpus is encoded by gpt2 or byte: {limits.tokenizer} needs the whole text in memory")
    if not 0 < limits.val_fraction < 1:
        raise UserError(f"val_fraction = {limits.val_fraction}: expected a share between 0 and 1")
    for key, value in (("max_tokens", limits.max_tokens), ("max_docs", limits.max_docs), ("workers", workers)):
        if value is not None and value < 1:
            raise UserError(f"{key} = {value}: expected a number above 0")


def is_finished(folder: Path, corpus: BulkCorpus, limits: Limits) -> bool:
    """Whether a folder holds this corpus whole, made with these limits."""
    try:
        meta = json.loads((folder / "meta.json").read_bytes())
        width = np.dtype(meta["dtype"]).itemsize
        whole = all((folder / f"{split}.bin").stat().st_size == meta[f"{split}_tokens"] * width for split in SPLITS)
        wanted = dataclasses.asdict(limits)
        return whole and corpus.place is not None and (meta["place"], meta["limits"]) == (corpus.place, wanted)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def source_sha256(source: BulkSource) -> str:
    """SHA-256 of what a source says of itself, times of files left out."""
    identity = {key: value for key, value in source.identity.items() if key != "modified"}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


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


class ReadAhead:
    """Iterates over `items` in a thread of its own, at most `count` ahead. An error comes after the items before it."""

    def __init__(self, items: Iterable[Item], count: int):
        self.items, self.ready, self.stop = items, queue.Queue(count), threading.Event()
        self.thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Iterator[Item]:
        self.thread.start()
        return iter(self._next, None)

    def __exit__(self, *error: object) -> None:
        self.stop.set()
        self.thread.join(5)  # one that waits for the network is left behind

    def _read(self) -> None:
        try:
            for item in self.items:
                self._offer(item)
                if self.stop.is_set():
                    return
            self._offer(None)
        except BaseException as error:
            self._offer(error)

    def _offer(self, item: object) -> None:
        while not self.stop.is_set():
            with contextlib.suppress(queue.Full):
                self.ready.put(item, timeout=0.1)
                return

    def _next(self) -> Item | None:
        item = self.ready.get()
        if isinstance(item, BaseException):
            raise item
        return item


class Progress:
    """Documents, tokens, MB of text a second and, where the end is known, the time left, on one line."""

    def __init__(self, files: FileSequence, limits: Limits, state: State, expected: int | None):
        self.size, self.limits, self.expected = sum(files.sizes), limits, expected
        self.start, self.told = time.monotonic(), time.monotonic()
        self.start_bytes, self.start_share = sum(state.text_bytes.values()), None
        self.bar = tqdm(bar_format="{desc}", disable=None, leave=False)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def show(self, state: State, done: float) -> None:
        """Show a state. done: the bytes of the source's files that were read so far."""
        now = time.monotonic()
        if self.start_share is None:
            self.start_share = self._share(state, done)
        if now < self.told + (10 if self.bar.disable else 0.2):
            return
        self.told = now
        line = self.line(state, self._share(state, done), now - self.start)
        if self.bar.disable:  # no terminal
            print(f"encoded  {line}", flush=True)
        else:
            self.bar.set_description_str(line)

    def _share(self, state: State, done: float) -> float:
        """The share of the whole work that is done; 0 where that is unknown."""
        shares = [done / self.size if self.size else 0]
        if self.limits.max_tokens:
            shares.append(state.total_tokens / self.limits.max_tokens)
        if self.limits.max_docs:
            shares.append(state.total_documents / self.limits.max_docs)
        return min(1.0, max(shares))

    def line(self, state: State, share: float, seconds: float) -> str:
        """What is shown of a state after so many seconds."""
        speed = (sum(state.text_bytes.values()) - self.start_bytes) / 1e6 / max(seconds, 1e-9)
        of = f" of {self.expected:,}" if self.expected else ""
        line = f"{state.total_documents:,}{of} documents, {state.total_tokens:,} tokens, {speed:.1f} MB/s"
        gained = share - (self.start_share or 0)
        if share and gained > 0:
            left = seconds * (1 - share) / gained
            line += f", {share:.0%}, {left // 3600:.0f}:{left // 60 % 60:02.0f}:{left % 60:02.0f} left"
        return line


def finish(folder: Path, journal: Journal, source: BulkSource, limits: Limits, corpus: BulkCorpus) -> dict:
    """
    Give the finished parts their names and write meta.json -> its content.

    A crash at any moment leaves the journal, whose last line says that only this is left to do. An old meta.json is
    removed first, so that nothing takes the new files for those that it describes.
    """
    state, tokenizer = journal.state, TOKENIZERS[limits.tokenizer]()
    for split in SPLITS:
        if state.tokens[split] < 2:
            documents = f"{state.total_documents:,} documents, {sum(state.left_out.values()):,} left out"
            wrong = "; ".join(f"{count:,} {reason}" for reason, count in state.left_out.items())
            journal.remove()
            raise UserError(
                f"the corpus is too short to fill {split}.bin ({documents}{': ' if wrong else ''}{wrong}); "
                "give more text or another --val_fraction"
            )
    dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
    meta = {"tokenizer": tokenizer.identity(), "vocab_size": tokenizer.vocab_size, "dtype": dtype}
    meta |= {"source": source.description, "source_sha256": source_sha256(source), "place": corpus.place}
    meta |= {"limits": dataclasses.asdict(limits)}
    for split in SPLITS:
        part, path = folder / f"{split}.bin.part", folder / f"{split}.bin"
        path = part if part.exists() else path
        meta |= {f"{split}_tokens": state.tokens[split], f"{split}_sha256": sha256_of(path)}
        meta |= {f"{split}_fingerprint": fingerprint(path), f"{split}_bytes": state.text_bytes[split]}
        meta[f"{split}_documents"] = state.documents[split]
    meta |= {"left_out": state.left_out, **source.notes}
    (folder / "meta.json").unlink(missing_ok=True)
    for split in SPLITS:
        with contextlib.suppress(FileNotFoundError):
            os.replace(folder / f"{split}.bin.part", folder / f"{split}.bin")
    sync_folder(folder)
    with atomic_write(folder / "meta.json") as file:
        file.write((json.dumps(meta, indent=1) + "\n").encode("ascii"))
    journal.remove()
    return meta


def sha256_of(path: Path) -> str:
    """SHA-256 of a file of any size."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(2**20):
            digest.update(data)
    return digest.hexdigest()


def report(folder: Path, source: BulkSource, meta: dict, corpus: BulkCorpus, limits: Limits) -> None:
    """Print what was made, and what was left out."""
    print(f"data     {folder}: {source.description}")
    for split, purpose in (("train", "to train on"), ("val", "to validate")):
        counts = (meta[f"{split}_{key}"] for key in ("tokens", "documents", "bytes"))
        print("tokens   {:,} {purpose}: {:,} documents, {:,} bytes".format(*counts, purpose=purpose))
    for reason, names in source.files.wrong_files.items():
        print(f"skipped  {len(names):,} files, {reason}: {names[:3]}")
    for reason, count in meta["left_out"].items():
        print(f"left out {count:,} {reason}")
    read = meta["train_documents"] + meta["val_documents"] + sum(meta["left_out"].values())
    limited = limits.max_docs is not None or limits.max_tokens is not None
    if corpus.expected is not None and read != corpus.expected and not limited:
        print(f"warning  {read:,} documents were read where {corpus.expected:,} were expected: the corpus has changed")
