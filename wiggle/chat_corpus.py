"""
Files of conversations -> a dataset that wiggle/chat_dataset.py opens: tokens, and beside them a mask.

A preparation is one pass in bounded memory, and begins anew after a stop: encoding conversations takes minutes where a
corpus of web pages takes hours. Which split a conversation falls into is a hash of its messages, so that one that
occurs twice is never both learned from and held out.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from wiggle import checkpoint
from wiggle.bulk import BulkCorpus, sha256_of, source_sha256
from wiggle.bulk_journal import DOWNLOADS, SPLITS
from wiggle.bulk_writer import BulkSource, split_hash
from wiggle.conversations import LEARNED, Message, NoConversation, encode_conversation, read_messages
from wiggle.corpora import dataset_folder, fingerprint, refuse_to_replace, remove_half_written
from wiggle.errors import UserError
from wiggle.files import atomic_write
from wiggle.lock import folder_lock
from wiggle.readers import DAMAGED, WrongFile, kind_of, opened, read_json, read_parquet
from wiggle.tokenizer import MARKS, ByteTokenizer, CharTokenizer, GPT2Tokenizer, Tokenizer

BROKEN = object()  # what read_items gives for a line that is no JSON
REASONS = 10  # reasons for leaving out lines that are told, the most frequent ones


def prepare_chat(
    corpus: BulkCorpus,
    data_dir: str | Path = "data",
    name: str | None = None,
    tokenizer: str | None = None,
    init_from: str | None = None,
    val_fraction: float | None = None,
    max_docs: int | None = None,
    force: bool = False,
) -> Path:
    """
    Make a dataset of conversations -> its folder. The keys are those of prepare_data.py's PrepareConfig.

    Raises UserError for whatever is wrong; a dataset that had the same name then stays as it was.
    """
    fraction = corpus.val_fraction if val_fraction is None else val_fraction
    if not 0 < fraction < 1:
        raise UserError(f"val_fraction = {fraction}: expected a share between 0 and 1")
    if init_from is not None and tokenizer is not None:
        raise UserError("--init_from names the tokenizer already, that of its checkpoint: leave --tokenizer out")
    folder = dataset_folder(data_dir, corpus.name if name is None else name)
    with folder_lock(folder, "a preparation"):
        remove_half_written(folder)
        source = corpus.open(None, folder / DOWNLOADS)
        if len(source.files.names) == 1:
            source = source._replace(description=Path(source.files.names[0]).name)
        if not force:
            refuse_to_replace(folder, corpus.place, source_sha256(source))
        left_out = Counter()
        conversations = read_conversations(source, max_docs, left_out)
        if tokenizer == "char":  # the characters have to be known before the first conversation is encoded
            conversations = list(conversations)
            texts = [message.content for messages in conversations for message in messages]
            built = CharTokenizer.from_text("\n", *texts)
        elif init_from is not None:
            built = tokenizer_of(init_from, data_dir)
        else:
            built = ByteTokenizer() if tokenizer == "byte" else GPT2Tokenizer()
        built = built.with_marks()
        built.encode("")  # fetches GPT-2's tables where they are missing: if that fails, nothing has been written
        origin = {"source": source.description, "source_sha256": source_sha256(source), "place": corpus.place}
        meta = write_conversations(folder, conversations, built, fraction, origin, left_out)
    report(folder, meta)
    return folder


def tokenizer_of(path: str, data_dir: str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint, of its folder, or of GPT-2, by its name or path."""
    model, meta = checkpoint.load_model(path)
    return checkpoint.find_tokenizer(model, meta, data_dir)


# --- read ---


def read_conversations(source: BulkSource, most: int | None, left_out: Counter) -> Iterator[list[Message]]:
    """The conversations of a source, `most` at most. left_out counts the lines that are none, by the reason."""
    count = 0
    for number, name in enumerate(source.files.names):
        try:
            with source.files.fetch(number) as path:
                for item in read_items(path, name):
                    if count == most:
                        return
                    try:
                        if item is BROKEN:
                            raise NoConversation("of broken JSON")
                        yield read_messages(item)
                        count += 1
                    except NoConversation as error:
                        left_out[str(error)] += 1
        except DAMAGED as error:
            raise UserError(f"cannot read the conversations in {name}: {error}") from None


def read_items(path: str | Path, name: str) -> Iterator[object]:
    """What the rows of a parquet file, the lines of JSON Lines or the items of a JSON list hold, or BROKEN."""
    if kind_of(name) is read_parquet:
        yield from read_rows(path)
        return
    if kind_of(name) is read_json:  # one list, or lines after all
        with opened(path) as (_, stream):
            whole = parse_json(stream.read())
        if isinstance(whole, list):
            yield from whole
            return
    with opened(path) as (_, stream):
        for line in stream:
            if not line.isspace():
                yield parse_json(line)


def parse_json(text: bytes) -> object:
    """What JSON says, or BROKEN."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # ValueError: no JSON, or not UTF-8
        return BROKEN


def read_rows(path: str | Path) -> Iterator[dict]:
    """The rows of a parquet file."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError("parquet files need the package pyarrow: pip install pyarrow") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(1000):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise WrongFile(f"damaged parquet ({str(error).splitlines()[0]:.80})") from None


# --- write ---


class Written:
    """A split while it is written: its two files, and what went into them."""

    def __init__(self, tokens: BinaryIO, mask: BinaryIO):
        self.tokens, self.mask, self.counts = tokens, mask, Counter()

    def append(self, ids: np.ndarray, flags: np.ndarray) -> None:
        """Append a conversation's ids and flags."""
        self.tokens.write(ids.data)
        self.mask.write(flags.data)
        learned = int(np.count_nonzero(flags & LEARNED))
        self.counts.update(conversations=1, tokens=len(ids), learned=learned)

    def describe(self) -> dict:
        """What meta.json says of the split: counts, and hashes of its files."""
        self.tokens.flush()
        self.mask.flush()
        path = Path(self.tokens.name)
        hashes = {"sha256": sha256_of(path), "fingerprint": fingerprint(path)}
        return dict(self.counts) | hashes | {"mask_sha256": sha256_of(Path(self.mask.name))}


def write_conversations(
    folder: Path,
    conversations: Iterable[list[Message]],
    tokenizer: Tokenizer,
    val_fraction: float,
    origin: dict,
    left_out: Counter,
) -> dict:
    """
    Encode conversations and write the two splits, their masks and meta.json -> the content of meta.json.

    The files are renamed into place together at the end, meta.json last. origin: meta.json's keys on the source.
    left_out: reasons for leaving out a line -> how many, as far as they were read.
    """
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
    border = int(val_fraction * 2**64)  # hashes below it are of validation
    with contextlib.ExitStack() as stack:
        meta_file = stack.enter_context(atomic_write(folder / "meta.json"))
        splits = {}
        for split in SPLITS:
            paths = folder / f"{split}.bin", folder / f"{split}_mask.bin"
            splits[split] = Written(*(stack.enter_context(atomic_write(path)) for path in paths))
        for messages in conversations:
            try:
                ids, flags = encode_conversation(tokenizer, messages)
            except UserError:
                left_out["whose text the tokenizer has no ids for"] += 1
                continue
            in_val = split_hash(json.dumps(messages).encode()) < border
            splits["val" if in_val else "train"].append(np.array(ids, dtype), np.array(flags, np.uint8))
        refuse_empty(splits, left_out)
        meta = {"tokenizer": tokenizer.identity(), "vocab_size": tokenizer.vocab_size, "dtype": dtype.name} | origin
        for split, written in splits.items():
            meta |= {f"{split}_{key}": value for key, value in written.describe().items()}
        meta["left_out"] = dict(left_out.most_common(REASONS))
        meta_file.write((json.dumps(meta, indent=1) + "\n").encode("ascii"))
    return meta


def refuse_empty(splits: dict[str, Written], left_out: Counter) -> None:
    """Raise UserError where a split got no conversation."""
    for split, written in splits.items():
        if not written.counts["conversations"]:
            total = sum(other.counts["conversations"] for other in splits.values())
            wrong = "".join(f", {count:,} lines {reason}" for reason, count in left_out.most_common(3))
            raise UserError(
                f"no conversation is left for {split}.bin ({total:,} in all{wrong}): give more of them, or another "
                "--val_fraction"
            )


def report(folder: Path, meta: dict) -> None:
    """Print what was made, and what was left out."""
    print(f"data     {folder}: {meta['source']}")
    for split, purpose in (("train", "to train on"), ("val", "to validate")):
        count, tokens, learned = (meta[f"{split}_{key}"] for key in ("conversations", "tokens", "learned"))
        print(f"chat     {count:,} conversations {purpose}: {tokens:,} tokens, {learned:,} of them learned")
    for reason, count in meta["left_out"].items():
        print(f"left out {count:,} {'line' if count == 1 else 'lines'} {reason}")
    print(f"vocab    {meta['vocab_size']:,} ({meta['tokenizer']['kind']}, {len(MARKS)} marks)")
