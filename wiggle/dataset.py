"""
Tokens on disk -> batches without hidden state.

data/NAME/train.bin and val.bin are flat files of uint16 token ids (uint32 past a vocabulary of 65,536), as in nanoGPT.
Which window a sequence reads is a function of (seed, its number) alone, so that ranks, micro-batches and resumed runs
all see the same data: a run that is cut anywhere goes on exactly where it was.
"""

import hashlib
import io
import json
import mmap
import os
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from model_bio import stable_seed
from wiggle.corpora import JOURNAL, fingerprint
from wiggle.errors import UserError
from wiggle.files import read_bytes
from wiggle.sources import how_to_make
from wiggle.tokenizer import CharTokenizer, GPT2Tokenizer, from_identity

DTYPES = {"uint16": np.uint16, "uint32": np.uint32}
STARTS_A_BLOCK = 4096  # sequence numbers whose windows are looked up at once; one at a time takes longer than reading
WINDOWS_A_MAPPING = 32  # each makes 2 MB of the file resident where the page cache holds it in large folios
LARGE = 100_000_000  # tokens; reading all of a larger file would delay each start by a second or more


class Dataset:
    """
    A folder with train.bin and val.bin, cut into windows of block_size + 1 tokens.

    meta.json (ours) or meta.pkl (nanoGPT's) in it says what the ids mean; with neither, they are GPT-2's.
    tokenizer: its identity (see tokenizer.py). identity: SHA-256 of each file by its split, by which a resumed run and
    a study know their data; of large files without a recorded one, the fingerprint. Raises UserError for files that are
    missing, unreadable, other than meta.json says, or too short for one window.
    """

    def __init__(self, folder: str | Path, block_size: int, seed: int):
        self.folder, self.block_size, self.seed = Path(folder), block_size, seed
        meta = read_meta(self.folder)
        if not meta and (self.folder / JOURNAL).exists():
            advice = how_to_make(self.folder.name, self.folder.parent)
            raise UserError(f"{self.folder} is an unfinished corpus: run the command that began it again ({advice})")
        self.tokenizer = from_identity(meta["tokenizer"]).identity() if meta else GPT2Tokenizer().identity()
        self.splits, self.identity = {}, {}
        self._files = {}  # open ones: what was opened stays whole where another text takes its name
        self._unmapped = {"train": 0, "val": 0}  # windows that were read since the file was last mapped
        self._kept_block = None, None
        self.text_bytes = {split: meta.get(f"{split}_bytes") for split in self._unmapped}  # UTF-8 behind it, if known
        for split in ("train", "val"):
            self.splits[split] = self._open(split, DTYPES[meta.get("dtype", "uint16")])
            self._check_whole(split, meta)
            self.identity[split] = meta.get(f"{split}_sha256") or fingerprint(self._path(split))
        self.id_limit = self.model_vocab  # ids from here on are refused; check_ids sets it to a model's vocabulary

    @property
    def model_vocab(self) -> int:
        """The vocabulary that a model of this data gets: the tokenizer's own, GPT-2's rounded up to 64 x 786."""
        return 50304 if self.tokenizer["kind"] == "gpt2" else self.tokenizer["vocab_size"]

    @property
    def shortest(self) -> int:
        """The fewest tokens that a split may have."""
        return self.block_size + 1

    def describe(self) -> str:
        """What the dataset holds, in a line."""
        unit = {"char": "characters", "byte": "bytes", "gpt2": "tokens"}[self.tokenizer["kind"]]
        train, val = (f"{len(self.splits[split]) / 1e6:.2f}M" for split in ("train", "val"))
        return f"{train} {unit} to train on, {val} to validate, vocabulary {self.tokenizer['vocab_size']:,}"

    def _path(self, split: str) -> Path:
        return self.folder / f"{split}.bin"

    def _open(self, split: str, dtype: type) -> np.ndarray:
        """Map a split's file into memory -> its token ids (N,)."""
        path = self._path(split)
        try:
            size = path.stat().st_size
            tokens, rest = divmod(size, np.dtype(dtype).itemsize)
            if rest:
                raise UserError(f"{path} is damaged: its {size:,} bytes are no whole number of {dtype.__name__} ids")
            if tokens < self.shortest:
                window = f"too few for one window of block_size={self.block_size} + 1"
                raise UserError(f"{path} holds {tokens} tokens, {window}: prepare a longer text, or use shorter blocks")
            self._files[split] = open(path, "rb")  # noqa: SIM115 - closed with the dataset
            weakref.finalize(self, self._files[split].close)
            return map_tokens(self._files[split], dtype)
        except FileNotFoundError:
            advice = how_to_make(self.folder.name, self.folder.parent)
            raise UserError(f"{path} is missing: {advice}") from None
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from None

    def _check_whole(self, split: str, meta: dict) -> None:
        """Raise UserError where a file is not the one that meta.json describes, as after a copy that was cut."""
        path, tokens = self._path(split), self.splits[split]
        advice = f"prepare the data anew, or move {self.folder / 'meta.json'} away if another program wrote {path.name}"
        count = meta.get(f"{split}_tokens", len(tokens))
        if count != len(tokens):
            raise UserError(f"{path} holds {len(tokens):,} tokens, but its meta.json says {count:,}: {advice}")
        large = len(tokens) > LARGE
        recorded = meta.get(f"{split}_fingerprint" if large else f"{split}_sha256")
        if recorded and recorded != (fingerprint(path) if large else hashlib.sha256(tokens).hexdigest()):
            raise UserError(f"{path} is not the file that its meta.json describes: {advice}")

    def check_ids(self, vocab_size: int) -> None:
        """Raise UserError if a token id is past a model's vocabulary. Large files are checked as they are read."""
        self.id_limit = vocab_size
        for split, tokens in self.splits.items():
            if len(tokens) <= LARGE:
                self._check_ids(split, tokens)

    def _check_ids(self, split: str, ids: np.ndarray) -> None:
        largest, own = int(ids.max()), self.model_vocab
        if largest >= self.id_limit:
            needed = f"it needs a model whose vocabulary is {own}" if largest < own else "prepare the data anew"
            raise UserError(
                f"{self._path(split)} holds token id {largest}, past the vocabulary of {self.id_limit}: {needed}"
            )

    def windows(self, split: str, starts: np.ndarray) -> torch.Tensor:
        """Cut the windows of a split that begin at `starts` (B,) -> (B, T + 1) int64, for `send_windows`."""
        tokens, length = self._tokens(split, len(starts)), self.block_size + 1
        ids = np.empty((len(starts), length), tokens.dtype)
        for row, start in zip(ids, starts.tolist(), strict=True):
            row[:] = tokens[start : start + length]
        self._check_ids(split, ids)
        return torch.from_numpy(ids.astype(np.int64))

    def _tokens(self, split: str, windows: int) -> np.ndarray:
        """
        A split's token ids (N,), of which so many windows are about to be read.

        The pages of a mapped file that were read count as this process's memory until they are unmapped, so the file
        is mapped anew from time to time.
        """
        self._unmapped[split] += windows
        if self._unmapped[split] > WINDOWS_A_MAPPING:
            self._unmapped[split] = 0
            self.splits[split] = map_tokens(self._files[split], self.splits[split].dtype)
        return self.splits[split]

    def batch(self, first: int, count: int) -> torch.Tensor:
        """Training sequences number first .. first + count - 1 -> what `windows` gives."""
        blocks = range(first // STARTS_A_BLOCK, (first + count - 1) // STARTS_A_BLOCK + 1)
        starts = np.concatenate([self._block_of_starts(block) for block in blocks])
        skipped = first - blocks[0] * STARTS_A_BLOCK
        return self.windows("train", starts[skipped : skipped + count])

    def targets(self, split: str, starts: np.ndarray) -> np.ndarray:
        """How many tokens of the windows that begin at `starts` (B,) the loss is of (B,): the same in each window."""
        return np.full(len(starts), self.block_size)

    def loss_divisor(self, first: int, count: int, per_step: int) -> float:
        """
        What a micro-batch's loss, a mean over its own targets, is divided by, so that the micro-batches of a step add
        up to the mean over all of the step's targets.

        The micro-batch has the sequences first .. first + count - 1, and a step per_step of them, over all processes.
        """
        return per_step / count

    def _block_of_starts(self, block: int) -> np.ndarray:
        """What train_starts gives for a block of sequence numbers, kept until another block is asked for."""
        kept, starts = self._kept_block
        if kept != block:
            starts = self.train_starts(np.arange(block * STARTS_A_BLOCK, (block + 1) * STARTS_A_BLOCK))
            self._kept_block = block, starts
        return starts

    def train_starts(self, numbers: np.ndarray) -> np.ndarray:
        """
        Sequence numbers (B,) -> the places in train.bin where their windows begin (B,).

        An epoch visits each of its windows once, in an order given by a keyed permutation; where the windows are cut
        shifts from epoch to epoch, so that each token is seen at many places of a window.
        """
        tokens, T = len(self.splits["train"]), self.block_size
        count = max(1, (tokens - T) // T)  # windows an epoch
        epochs, places = np.divmod(numbers, count)
        starts = np.empty_like(numbers)
        for epoch in np.unique(epochs):
            key = stable_seed(self.seed, "epoch", epoch)
            offset = key % min(T, tokens - count * T)
            now = epochs == epoch
            starts[now] = offset + T * permute(places[now], count, key)
        return starts

    def fixed_windows(self, split: str, count: int) -> np.ndarray:
        """Where `count` non-overlapping windows begin that are spread evenly over a split (B,); 0 means all of them."""
        total = (len(self.splits[split]) - 1) // self.block_size
        count = min(count, total) or total
        return np.arange(count) * total // count * self.block_size


def map_tokens(file: BinaryIO, dtype: type) -> np.ndarray:
    """Map an open file into memory -> its token ids (N,), read-only. It is unmapped when the array is gone."""
    return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype)


class BatchesAhead:
    """
    The training batches of a Dataset, the next one prepared by another thread while the model trains on this one.

    A batch is what Dataset.batch gives, whatever is asked for: this only guesses which one comes next. A with block
    ends the thread.
    """

    def __init__(self, data: Dataset, sequences_per_step: int, batch_size: int, rank: int = 0, world: int = 1):
        self.data, self.step_size, self.batch_size = data, sequences_per_step, batch_size
        self.share = sequences_per_step // world  # sequences of a step that this process reads
        self.start = rank * self.share
        self.pool, self.prepared = ThreadPoolExecutor(1), {}

    def __enter__(self) -> "BatchesAhead":
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def loss_divisor(self, first: int, count: int, per_step: int) -> float:
        """Dataset.loss_divisor."""
        return self.data.loss_divisor(first, count, per_step)

    def batch(self, first: int, count: int) -> torch.Tensor:
        """Training sequences number first .. first + count - 1 -> what `windows` gives."""
        ready = self.prepared.pop((first, count), None)
        batch = ready.result() if ready else self.data.batch(first, count)
        following = self._following(first)
        self.prepared = {(following, count): self.pool.submit(self.data.batch, following, count)}
        return batch

    def _following(self, first: int) -> int:
        """The number of the sequence that this process's next micro-batch begins with."""
        step, within = divmod(first, self.step_size)
        if within + self.batch_size < self.start + self.share:
            return first + self.batch_size
        return (step + 1) * self.step_size + self.start


def permute(index: np.ndarray, n: int, key: int) -> np.ndarray:
    """
    Where a keyed permutation of 0..n-1 sends the numbers `index` (B,) int64 -> (B,) int64. Takes no memory, whatever n.

    A Feistel network on the next even number of bits; a number that lands past n is sent through again until it does
    not (Black and Rogaway, 2002, "cycle walking").
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    keys = [np.uint64(stable_seed(key, "round", r)) for r in range(4)]
    out = feistel(index.astype(np.uint64), half, keys)
    while (past := out >= n).any():
        out[past] = feistel(out[past], half, keys)
    return out.astype(np.int64)


def feistel(x: np.ndarray, half: int, keys: list[np.uint64]) -> np.ndarray:
    """A Feistel network, a round for each key: permutes the numbers of 2 * half bits, uint64."""
    width, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = x >> width, x & mask
    for key in keys:
        mixed = (right ^ key) * np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing; wraps around
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
    return (left << width) | right


def read_meta(folder: Path) -> dict:
    """A dataset's meta.json; or what nanoGPT's meta.pkl says, under the same keys; or {}."""
    path = folder / "meta.json"
    if (data := read_if_there(path)) is not None:
        try:
            meta = json.loads(data)
            if {"tokenizer", "dtype"} - set(meta) or meta["dtype"] not in DTYPES:
                raise ValueError("it lacks the tokenizer or the dtype")
            counts = [meta.get(f"{split}_{of}", 0) for split in ("train", "val") for of in ("tokens", "bytes")]
            if not all(type(count) is int for count in counts):
                raise ValueError("its counts of tokens and bytes are no whole numbers")
            return meta
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{path} is damaged ({error}): prepare the data anew with --force") from None
    path = folder / "meta.pkl"
    if (data := read_if_there(path)) is not None:
        try:
            old = PlainUnpickler(io.BytesIO(data)).load()
            characters = [old["itos"][i] for i in range(old["vocab_size"])]
            if not all(type(character) is str and len(character) == 1 for character in characters):
                raise ValueError("its tokens are not single characters")
            return {"tokenizer": CharTokenizer("".join(characters)).identity()}
        except Exception as error:  # a damaged pickle raises almost anything
            reason = error if isinstance(error, (ValueError, UserError, pickle.UnpicklingError)) else repr(error)
            raise UserError(f"{path} is not nanoGPT's meta.pkl of characters: {reason}") from None
    return {}


def read_if_there(path: Path) -> bytes | None:
    """A file's content, or None where there is no such entry. Raises UserError where it is there but cannot be read."""
    try:
        os.lstat(path)  # a link to nothing is an entry
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    return read_bytes(path)


class PlainUnpickler(pickle.Unpickler):
    """Builds dicts, lists, strings and numbers. A pickle that asks for any class or function is refused."""

    def find_class(self, module: str, name: str) -> None:
        raise pickle.UnpicklingError(f"it would call {module}.{name}")
