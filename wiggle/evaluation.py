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
    whatever the batch size of training. Under torchrun the processes share the windows.
    """
    rank, world = rank_and_world()
    losses = window_losses(model, data, split, data.fixed_windows(split, count)[rank::world], device, dtype)
    sums = torch.stack([losses.sum(), (losses**2).sum(), torch.tensor(len(losses), dtype=torch.float64)])
    total, squares, n = sum_over_processes(sums).tolist()
    mean = total / n
    if n < 2:
        return mean, math.nan
    variance = squares / n - mean**2
    return mean, math.sqrt((0.0 if variance < 0 else variance) / (n - 1))  # rounding may make it negative; NaN stays


def bits_per_byte(loss: float, tokens: int, text_bytes: int) -> float:
    """
    A loss in nats a token -> bits a byte of UTF-8, which models with other tokenizers can be compared by.

    tokens, text_bytes: of the whole split, whose ratio stands for that of the windows that were evaluated.
    """
    return loss * tokens / text_bytes / math.log(2)


def size_of_validation(data: Dataset) -> tuple[int, int] | None:
    """
    Tokens and UTF-8 bytes of the validation split; None where nobody counted its bytes.

    Data of characters or bytes that was prepared before the bytes were counted is counted here.
    """
    ids, known = data.splits["val"], data.text_bytes["val"]
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
    """The mean loss of each window of a split that begins at one of `starts` (N,) -> (N,) float64, on the CPU."""
    config, losses = model.config, []
    # about 8,192 tokens at once, fewer where their logits would pass 256 MB in float32
    batch = max(1, min(8192 // config.block_size, 2**26 // (config.block_size * config.vocab_size)))
    training = model.training
    model.eval()
    for i in range(0, len(starts), batch):
        x, y = send_windows(data.windows(split, starts[i : i + batch]), device)  # (B, T) each
        with autocast(device, dtype):
            logits = model(x, y)[0]  # (B, T, V)
        token_losses = F.cross_entropy(logits.float().transpose(1, 2), y, reduction="none")  # (B, T)
        losses.append(token_losses.mean(1).double().cpu())
    model.train(training)
    return torch.cat([torch.zeros(0, dtype=torch.float64), *losses])
