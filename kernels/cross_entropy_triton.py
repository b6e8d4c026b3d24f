"""
The kernel of the loss in chunks for CUDA: it reads a row of logits twice and writes their gradients over them.

Arguments and results are those of cross_entropy._differentiate_plain. All pointers, numbers and blocks of numbers are
`tl.tensor` to Triton.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = tl.constexpr(4096)  # logits that a program holds at a time


@triton.jit
def _cross_entropy_kernel(LOGITS: tl.tensor, TARGETS: tl.tensor, LOSSES: tl.tensor, vocabulary: tl.tensor) -> None:
    """
    One program takes a row: its loss, log(sum(exp(logits))) - logits[target], and softmax(logits) - onehot(target).

    The sum of exponentials and the maximum that keeps them finite are found in one pass, in each place of a block for
    itself (Milakov and Gimelshein, 2018). A target of -1 makes the loss and its gradient 0.
    """
    row = tl.program_id(0).to(tl.int64)
    logits = LOGITS + row * vocabulary
    target = tl.load(TARGETS + row)
    counted = target != -1
    own = tl.load(logits + tl.maximum(target, 0)).to(tl.float32)  # before the gradients are written over it
    largest = tl.full((BLOCK,), -1e30, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, vocabulary, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(logits + at, at < vocabulary, -float("inf")).to(tl.float32)
        larger = tl.maximum(largest, x)
        total = total * tl.exp(largest - larger) + tl.exp(x - larger)
        largest = larger
    top = tl.max(largest, 0)
    log_sum = top + tl.log(tl.sum(total * tl.exp(largest - top), 0))
    tl.store(LOSSES + row, tl.where(counted, log_sum - own, 0.0))
    for start in range(0, vocabulary, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(logits + at, at < vocabulary, 0.0).to(tl.float32)
        gradient = tl.exp(x - log_sum) - tl.where(at == target, 1.0, 0.0)
        tl.store(logits + at, tl.where(counted, gradient, 0.0), at < vocabulary)


def differentiate(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (n, V) and targets (n,) -> (summed loss in float32, its gradient, written over the logits)."""
    losses = torch.empty(len(logits), device=logits.device)
    with torch.cuda.device_of(logits):  # Triton launches on the current device, not on that of its arguments
        _cross_entropy_kernel[(len(logits),)](logits, ids.contiguous(), losses, logits.shape[1], num_warps=8)
    return losses.sum(), logits
