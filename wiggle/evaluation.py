"""The loss on fixed windows of a split, with its standard error. Training is never touched."""

import math

import numpy as np
import torch
from torch.nn import functional as F

from model_bio import GPT
from wiggle.dataset import Dataset
from wiggle.device import autocast, send_windows
from wiggle.distributed import rank_and_world, sum_over_processes


def evaluate(
    model: GPT, data: Dataset, split: str, count: int, device: torch.device, dtype: torch.dtype
) -> tuple[float, float]:
    """
    The mean loss over `count` fixed, non-overlapping windows of a split (0: all of them) -> (mean, standard error).

    Both are in nats a token; one window alone has no standard error: NaN. The same weights give the same number,
    whatever the batch size of training. Under torchrun the processes share the windows. Where windows have different
    numbers of targets, as rows of conversations do, the mean is that over all targets, and its error that of as many
    windows as Kish (1965) counts for unequal weights.
    """
    rank, world = rank_and_world()
    every = data.fixed_windows(split, count)
    windows = every[rank::world]
    fill = every[: -(-len(every) // world) - len(windows)]  # a sharded model must be called as often in each process
    losses = window_losses(model, data, split, np.concatenate([windows, fill]), device, dtype)[: len(windows)]
    weights = torch.from_numpy(data.targets(split, windows) / data.block_size)  # 1 where all tokens are targets
    sums = torch.stack([(weights * losses).sum(), (weights * losses**2).sum(), weights.sum(), (weights**2).sum()])
    total, squares, weight, weight_squares = sum_over_processes(sums).tolist()
    mean, n = total / weight, weight**2 / weight_squares
    if n < 2:
        return mean, math.nan
    variance = squares / weight - mean**2
    return mean, math.sqrt((0.0 if variance < 0 else variance) / (n - 1))  # rounding may make it negative; NaN stays


def bits_per_byte(loss: float, tokens: int, text_bytes: int) -> float:
    """
    A loss in nats a token -> bits a byte of UTF-8, which models with other tokenizers can be compared by.

    tokens, text_bytes: of the whole split, whose ratio stands for that of the windows that were evaluated.
    """
    return loss * tokens / text_bytes / math.log(2)


def size_of_validation(data: Dataset) -> tuple[int, int] | None:
    """
    Tokens and UTF-8 bytes of the validation split; None where nobody counted its bytes, and of conversations.

    Data of characters or bytes that was prepared before the bytes were counted is counted here.
    """
    ids, known = data.splits["val"], data.text_bytes["val"]
    if "marks" in data.tokenizer:  # of conversations, whose loss is of some of the tokens
        return None
    if not known and data.tokenizer["kind"] == "byte":
        known = len(ids)
    elif not known and data.tokenizer["kind"] == "char":
        sizes = np.array([len(character.encode()) for character in data.tokenizer["characters"]])
        known = int((np.bincount(ids, minlength=len(sizes)) * sizes).sum())
    return (len(ids), known) if known else None


@torch.no_grad()
def window_losses(
    model: GPT, data: Dataset, split: str, starts: np.ndarray, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """The mean loss of the targets of each window that begins at one of `starts` (N,) -> (N,) float64, on the CPU."""
    config, losses = model.config, []
    # about 8,192 tokens at once, fewer where their logits would pass 256 MB in float32
    batch = max(1, min(8192 // config.block_size, 2**26 // (config.block_size * config.vocab_size)))
    training = model.training
    model.eval()
    for i in range(0, len(starts), batch):
        x, y, *begins = send_windows(data.windows(split, starts[i : i + batch]), device)  # (B, T) each
        with autocast(device, dtype):
            logits = model(x, y, *begins)[0]  # (B, T, V)
        flat = logits.float().flatten(0, 1), y.flatten()  # over (B, V, T) torch adds up V numbers less exactly
        token_losses = F.cross_entropy(*flat, reduction="none", ignore_index=-1).view_as(y)  # (B, T)
        share = torch.from_numpy(data.targets(split, starts[i : i + batch]) / config.block_size)  # of a window's tokens
        losses.append(token_losses.mean(1).double().cpu() / share)
    model.train(training)
    return torch.cat([torch.zeros(0, dtype=torch.float64), *losses])
