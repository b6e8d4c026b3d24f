"""
Tokens on disk -> batches without hidden state.

data/NAME/train.bin and val.bin are flat files of uint16 token ids (uint32 past a vocabulary of 65,536), as in nanoGPT.
Which window a sequence reads is a function of (seed, its number) alone, so that ranks, micro-batches and resumed runs
all see the same data: a run that is cut anywhere goes on exactly where it was.
"""

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import torch

from model_bio import stable_seed
from wiggle.errors import UserError
from wiggle.tokenizer import CharTokenizer, GPT2Tokenizer, from_identity


class Dataset:
    """
    folder: holds train.bin and val.bin, and meta.json (ours) or meta.pkl (nanoGPT's); with neither, GPT-2's ids.

    tokenizer: its identity, see tokenizer.py. identity: what a resumed run compares. Raises UserError for what is
    missing, damaged or too short for one window.
    """

    def __init__(self, folder, block_size, seed):
        self.folder, self.block_size, self.seed = Path(folder), block_size, seed
        meta = read_meta(self.folder)
        self.tokenizer = from_identity(meta["tokenizer"]).identity() if meta else GPT2Tokenizer().identity()
        dtype = {"uint16": np.uint16, "uint32": np.uint32}[meta.get("dtype", "uint16")]
        self.splits = {split: self._open(split, dtype) for split in ("train", "val")}
        self.identity = {
            split: meta.get(f"{split}_sha256") or fingerprint(self.folder / f"{split}.bin") for split in self.splits
        }

        self.limit = self.model_vocab

    @property
    def model_vocab(self):
        """The vocabulary that a model of this data gets: the tokenizer's own, GPT-2's rounded up to 64 x 786."""
        return 50304 if self.tokenizer["kind"] == "gpt2" else self.tokenizer["vocab_size"]

    def _open(self, split, dtype):
        path = self.folder / f"{split}.bin"
        if not path.is_file():
            raise UserError(
                f"{path} is missing: python prepare_data.py {self.folder.name} makes it, if it knows that name"
            )
        tokens = path.stat().st_size // np.dtype(dtype).itemsize
        if tokens <= self.block_size:
            raise UserError(f"{path} holds {tokens} tokens, too few for one window of block_size={self.block_size} + 1")
        return np.memmap(path, dtype=dtype, mode="r", shape=(tokens,))

    def check_ids(self, vocab_size):
        """Raise UserError if a token id is past the vocabulary. Files over 100M tokens are checked batch by batch."""
        self.limit = vocab_size
        for split, tokens in self.splits.items():
            if len(tokens) <= 100_000_000:
                self._check(split, tokens)

    def _check(self, split, ids):
        if (largest := int(ids.max())) >= self.limit:
            raise UserError(
                f"{self.folder / split}.bin holds token id {largest}, past the vocabulary of {self.limit}: "
                "prepare the data anew, or set vocab_size"
            )

    def windows(self, split, starts):
        """Cut windows at `starts` (B,) -> x, y (B, T) int64, y being x one token on."""
        tokens = self.splits[split]
        ids = tokens[starts[:, None] + np.arange(self.block_size + 1)]  # (B, T + 1), one gather
        self._check(split, ids)
        ids = torch.from_numpy(ids.astype(np.int64))
        return ids[:, :-1], ids[:, 1:]

    def batch(self, first, count):
        """Training sequences number first .. first + count - 1 -> x, y (count, T) int64."""
        return self.windows("train", self.train_starts(np.arange(first, first + count)))

    def train_starts(self, numbers):
        """
        Sequence numbers (B,) -> where their windows start.

        An epoch visits each of its windows once, in an order given by a keyed permutation; where the windows are cut
        shifts from epoch to epoch, so that each token is seen in many places of a window.
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

    def fixed_windows(self, split, count):
        """Starts of `count` non-overlapping windows spread evenly over a split; 0 means all of them."""
        total = (len(self.splits[split]) - 1) // self.block_size
        count = min(count, total) or total
        return np.arange(count) * total // count * self.block_size


def permute(index, n, key):
    """
    A permutation of 0..n-1, computed a place at a time: no memory, whatever n.

    A four-round Feistel network on the next even number of bits; a place that lands past n is sent through again
    until it does not (Black and Rogaway, 2002, "cycle walking"). index: (B,) int64, key: int -> (B,) int64.
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    keys = [np.uint64(stable_seed(key, "round", r)) for r in range(4)]

    def once(x):
        left, right = x >> np.uint64(half), x & mask
        for k in keys:
            mixed = (right ^ k) * np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing; wraps around
            mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
        return (left << np.uint64(half)) | right

    out = once(index.astype(np.uint64))
    while (past := out >= n).any():
        out[past] = once(out[past])
    return out.astype(np.int64)


def read_meta(folder):
    """meta.json of a dataset; or what nanoGPT's meta.pkl says, in the same words; or {}."""
    if (path := folder / "meta.json").is_file():
        try:
            meta = json.loads(path.read_text(encoding="utf-8"))
            if {"tokenizer", "dtype"} - set(meta) or meta["dtype"] not in ("uint16", "uint32"):
                raise ValueError("it lacks the tokenizer or the dtype")
            return meta
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{path} is damaged ({error}): prepare the data anew") from None
    if (path := folder / "meta.pkl").is_file():
        try:
            with open(path, "rb") as file:
                old = PlainUnpickler(file).load()
            characters = [old["itos"][i] for i in range(old["vocab_size"])]
            return {"tokenizer": CharTokenizer("".join(characters)).identity()}
        except Exception as error:  # a damaged pickle raises almost anything
            raise UserError(f"{path} is not nanoGPT's meta.pkl of characters: {error}") from None
    return {}


class PlainUnpickler(pickle.Unpickler):
    """Builds dicts, lists, strings and numbers. A pickle that asks for any class or function is refused."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"it would call {module}.{name}")


def fingerprint(path):
    """SHA-256 of a file's size and its first and last MiB: a cheap identity for large files that bring none."""
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        digest = hashlib.sha256(str(size).encode())
        for start in (0, max(0, size - 2**20)):
            file.seek(start)
            digest.update(file.read(2**20))
    return digest.hexdigest()
