"""
Conversations on disk -> rows of them side by side, without hidden state.

Beside train.bin and val.bin lie train_mask.bin and val_mask.bin, a byte of flags a token (wiggle/conversations.py). A
row has block_size inputs, and holds as many whole conversations as fit: each sees itself alone (GPT.forward's begins),
so it has the loss that it has alone, and no room is spent on padding but at the end of a row. One that is too long is
cut at a turn: its rest is a conversation of its own, as in a chat whose oldest turns were dropped.
"""

import bisect
import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from model_bio import stable_seed
from wiggle.conversations import FIRST, LEARNED
from wiggle.dataset import Dataset, map_tokens, permute, read_meta
from wiggle.errors import UserError
from wiggle.tokenizer import from_identity


def open_dataset(folder: str | Path, block_size: int, seed: int) -> Dataset:
    """A dataset's folder -> Dataset, or ChatDataset where it was prepared from conversations."""
    meta = read_meta(Path(folder))
    chat = bool(meta) and from_identity(meta["tokenizer"]).marks
    return (ChatDataset if chat else Dataset)(folder, block_size, seed)


class Rows(NamedTuple):
    """A split's conversations, or parts of long ones, arranged in rows. N pieces lie in R rows."""

    starts: np.ndarray  # (N,), of each piece in the split's tokens, in the order of the rows
    inputs: np.ndarray  # (N,), places of a row that it takes: one less than its tokens, the last of which is a target
    first: np.ndarray  # (R + 1,), row r holds pieces first[r] .. first[r + 1] - 1
    targets: np.ndarray  # (R,), learned tokens of each row
    cut: int  # pieces that are the rest of a conversation
    left_out: int  # exchanges that are longer than a row by themselves

    def __len__(self) -> int:
        return len(self.targets)


class ChatDataset(Dataset):
    """A folder that prepare_data.py --chat made. A window is a row of conversations, and its number says which."""

    def __init__(self, folder: str | Path, block_size: int, seed: int):
        super().__init__(folder, block_size, seed)
        meta = read_meta(self.folder)
        self.flags, self.rows = {}, {}
        for split, tokens in self.splits.items():
            self.flags[split] = flags = self._open_flags(split, len(tokens), meta.get(f"{split}_mask_sha256"))
            self.rows[split] = rows = arrange(flags, block_size)
            if not len(rows):
                raise UserError(
                    f"no exchange in {self._path(split)} fits in block_size={block_size}: give a longer one, or "
                    "prepare shorter conversations"
                )
            self.identity[f"{split}_mask"] = hashlib.sha256(flags).hexdigest()

    @property
    def shortest(self) -> int:
        return 2

    def _open_flags(self, split: str, tokens: int, sha256: str | None) -> np.ndarray:
        """Map a split's mask into memory -> flags (N,) uint8."""
        path = self.folder / f"{split}_mask.bin"
        advice = "prepare the conversations anew"
        try:
            with open(path, "rb") as file:
                flags = map_tokens(file, np.uint8)
        except FileNotFoundError:
            raise UserError(f"{path} is missing, which says what the assistant's words are: {advice}") from None
        except (OSError, ValueError) as error:  # ValueError: it is empty
            raise UserError(f"cannot read {path}: {error}") from None
        if len(flags) != tokens or (sha256 and hashlib.sha256(flags).hexdigest() != sha256):
            raise UserError(f"{path} is not the mask of {self._path(split).name} beside it: {advice}")
        return flags

    def describe(self) -> str:
        """What the dataset holds, in a line."""
        counts = {split: np.count_nonzero(flags & FIRST) for split, flags in self.flags.items()}
        rows = self.rows["train"]
        places = len(rows) * self.block_size
        filled, learned = rows.inputs.sum() / places, rows.targets.sum() / rows.inputs.sum()
        line = f"{counts['train']:,} conversations to train on, {counts['val']:,} to validate, in {len(rows):,} and "
        line += f"{len(self.rows['val']):,} rows of {self.block_size} ({filled:.0%} full, {learned:.0%} of it learned)"
        if cut := sum(rows.cut for rows in self.rows.values()):
            line += f", {cut:,} of them the rest of one cut at a turn"
        if left_out := sum(rows.left_out for rows in self.rows.values()):
            line += f", {left_out:,} exchanges longer than a row left out"
        return f"{line}, vocabulary {self.tokenizer['vocab_size']:,}"

    def windows(self, split: str, starts: np.ndarray) -> torch.Tensor:
        """
        The rows of a split with the numbers `starts` (B,) -> GPT.forward's idx, targets and begins, (B, 3, T) int64.

        Behind the last conversation of a row id 0 fills it, each a conversation of its own without a target.
        """
        shape = len(starts), self.block_size
        x, y = np.zeros(shape, np.int64), np.full(shape, -1)
        begins = np.tile(np.arange(self.block_size), (len(starts), 1))
        tokens, flags, rows = self._tokens(split, len(starts)), self.flags[split], self.rows[split]
        for row, number in enumerate(starts.tolist()):
            place = 0
            for piece in range(rows.first[number], rows.first[number + 1]):
                start, end = rows.starts[piece], rows.starts[piece] + rows.inputs[piece]
                here = slice(place, place + rows.inputs[piece])
                x[row, here] = tokens[start:end]
                learned = (flags[start + 1 : end + 1] & LEARNED).astype(bool)
                y[row, here] = np.where(learned, tokens[start + 1 : end + 1].astype(np.int64), -1)
                begins[row, here] = place
                place = here.stop
        self._check_ids(split, np.maximum(x, y))
        return torch.from_numpy(np.stack([x, y, begins], axis=1))

    def targets(self, split: str, starts: np.ndarray) -> np.ndarray:
        return self.rows[split].targets[starts]

    def loss_divisor(self, first: int, count: int, per_step: int) -> float:
        rows = self.train_starts(np.arange(first // per_step * per_step, (first // per_step + 1) * per_step))
        targets, place = self.targets("train", rows), first % per_step
        return targets.sum() / targets[place : place + count].sum()

    def train_starts(self, numbers: np.ndarray) -> np.ndarray:
        """Sequence numbers (B,) -> rows (B,). An epoch visits each row once, in an order of its own."""
        count = len(self.rows["train"])
        epochs, places = np.divmod(numbers, count)
        rows = np.empty_like(numbers)
        for epoch in np.unique(epochs):
            now = epochs == epoch
            rows[now] = permute(places[now], count, stable_seed(self.seed, "epoch", epoch))
        return rows

    def fixed_windows(self, split: str, count: int) -> np.ndarray:
        """`count` rows that are spread evenly over a split (B,); 0 means all of them."""
        total = len(self.rows[split])
        count = min(count, total) or total
        return np.arange(count) * total // count


# --- conversations -> rows ---


def arrange(flags: np.ndarray, block_size: int) -> Rows:
    """A split's flags (N,) -> its conversations in rows of block_size inputs."""
    pieces, left_out = cut_at_turns(flags, block_size)
    starts, inputs = pieces[:, 0], pieces[:, 1] - pieces[:, 0] - 1
    row_of = pack(inputs, block_size)
    order = np.argsort(row_of, kind="stable")
    starts, inputs = starts[order], inputs[order]
    first = np.searchsorted(row_of[order], np.arange(row_of.max(initial=-1) + 2))
    before = np.concatenate([[0], np.cumsum(flags & LEARNED, dtype=np.int64)])  # learned tokens before each place
    learned = np.concatenate([[0], np.cumsum(before[starts + inputs + 1] - before[starts + 1])])
    cut = len(starts) - np.count_nonzero(flags[starts] & FIRST)
    return Rows(starts, inputs, first, np.diff(learned[first]), cut, left_out)


def cut_at_turns(flags: np.ndarray, block_size: int) -> tuple[np.ndarray, int]:
    """
    Cut each conversation into the fewest pieces of whole exchanges that fit in block_size inputs.

    An exchange is what leads to a message of the assistant's, and that message. flags: (N,) -> (pieces, the first token
    of each and the one behind its last (P, 2), the number of exchanges that fit in no piece).
    """
    learned = (flags & LEARNED).astype(bool)
    begins = (flags & FIRST).astype(bool)
    begins[1:] |= learned[:-1] & ~learned[1:]
    starts = np.flatnonzero(begins)
    ends = np.append(starts[1:], len(flags))
    opens = (flags[starts] & FIRST).astype(bool)
    pieces, left_out = [], 0
    for start, end, opening in zip(starts.tolist(), ends.tolist(), opens.tolist(), strict=True):
        if end - start - 1 > block_size:
            left_out += 1
        elif not opening and pieces and pieces[-1][1] == start and end - pieces[-1][0] - 1 <= block_size:
            pieces[-1][1] = end
        else:
            pieces.append([start, end])
    return np.array(pieces, np.int64).reshape(-1, 2), left_out


def pack(lengths: np.ndarray, size: int) -> np.ndarray:
    """
    Put pieces of `lengths` (N,) into few rows of a size -> the row of each (N,).

    The longest goes first, each into the row that it leaves the least room in (best fit decreasing; Johnson, 1973).
    """
    row_of, rows = np.empty(len(lengths), np.int64), 0
    rooms, rows_with = [], {}  # the different rooms left in rows, ascending; the rows with each
    for piece in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[piece])
        place = bisect.bisect_left(rooms, length)
        if place < len(rooms):
            room = rooms[place]
            row = rows_with[room].pop()
            if not rows_with[room]:
                del rows_with[room], rooms[place]
        else:
            room, row, rows = size, rows, rows + 1
        row_of[piece] = row
        if room - length not in rows_with:
            bisect.insort(rooms, room - length)
        rows_with.setdefault(room - length, []).append(row)
    return row_of
