"""
A corpus of any size -> train.bin, val.bin and meta.json: streamed, in bounded memory, and resumable.

wiggle/bulk_writer.py reads, encodes and appends the documents; wiggle/bulk_journal.py records how far that has come.
Resuming cuts the parts back to the lengths in the journal and reads on from the place in its last line, so the files
come out the same however often the preparation is killed.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from wiggle.bulk_journal import DOWNLOADS, SPLITS, Journal, Limits
from wiggle.bulk_writer import TOKENIZERS, BulkSource, Preparation
from wiggle.corpora import JOURNAL, dataset_folder, fingerprint, refuse_to_replace, remove_half_written
from wiggle.encoders import make_encoder
from wiggle.errors import UserError
from wiggle.files import atomic_write, sync_folder
from wiggle.lock import folder_lock


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
