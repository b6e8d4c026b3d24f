"""
The loss of a language model without all of its logits, which are the largest tensor of a training step.

The forward pass computes a chunk's gradients as soon as its logits, as in Hsu et al., 2024 (Liger Kernel), so no logit
is computed twice, and no more than a chunk of them exists. A kernel serves CUDA (cross_entropy_triton.py), plain torch
the rest. torch.compile takes all of it as one opaque operation: Inductor would schedule every chunk's logits first.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from kernels import PLAIN

CHUNK = 1024  # rows of logits that exist at once, where rows_at_once says no other number
CARD_SHARE = 1 / 32  # of a card's memory that the logits of a chunk may take: 250 MB of 8 GB


def chunked_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """
    Mean cross entropy of the logits x @ weight.T; a target of -1 is ignored.

    x: (N, C), weight: (V, C), targets: (N,) int64 -> loss, a scalar in float32. dtype: in which the logits and their
    gradients are computed (None: x's); the gradients of x and weight are summed in float32 and rounded to their types.
    """
    return _ChunkedCrossEntropy.apply(x, weight, targets, dtype or x.dtype)


def rows_at_once(device: torch.device, vocabulary: int, dtype: torch.dtype) -> int:
    """
    The number of rows in a chunk of logits.

    On a card it is what CARD_SHARE of the memory that this process may take holds: not of what is free now, which
    changes from step to step, and with it the order in which the gradients' chunks are added.
    """
    if device.type != "cuda" or _load_kernel() is None:
        return CHUNK
    index = torch.cuda.current_device() if device.index is None else device.index
    total = torch.cuda.get_device_properties(index).total_memory
    share = CARD_SHARE * total * torch.cuda.get_per_process_memory_fraction(index)
    return max(128, int(share / (vocabulary * dtype.itemsize)) // 128 * 128)


def chunk_bytes(device: torch.device, rows: int, vocabulary: int, dtype: torch.dtype) -> int:
    """Bytes that a chunk's logits take at most, and what is made of them, for a batch of so many rows."""
    rows = min(rows, rows_at_once(device, vocabulary, dtype))
    if device.type == "cuda" and _load_kernel() is not None:  # one copy, in place
        return rows * vocabulary * dtype.itemsize
    return rows * vocabulary * (12 + (dtype.itemsize if dtype.itemsize < 4 else 0))


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        loss, grad_x, grad_weight, count = _loss_and_gradients(x, weight, targets, dtype)
        ctx.save_for_backward(grad_x, grad_weight, count)
        ctx.dtype = weight.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_x, grad_weight, count = ctx.saved_tensors
        scale = grad / count
        return grad_x * scale, (grad_weight * scale).to(ctx.dtype), None, None


@torch.library.custom_op(
    "wiggle::chunked_cross_entropy",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor targets, ScalarType dtype) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _loss_and_gradients(
    x: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """
    -> (mean loss, gradient of x (N, C), gradient of weight (V, C) in float32, number of targets that count).

    The gradients are those of the summed loss, and the backward pass divides by the number of targets: small ones would
    underflow in float16.
    """
    weight = weight.to(dtype)
    grad_x = torch.empty_like(x)
    grad_weight = torch.zeros_like(weight, dtype=torch.float32)
    total = torch.zeros((), device=x.device, dtype=torch.float32)
    differentiate = (_load_kernel() if x.device.type == "cuda" else None) or _differentiate_plain
    size = rows_at_once(x.device, weight.shape[0], dtype)
    for rows, ids, grad_rows in zip(*(t.split(size) for t in (x, targets, grad_x)), strict=True):
        rows = rows.to(dtype)
        loss, grad_logits = differentiate(rows @ weight.T, ids)
        total += loss
        if dtype == grad_rows.dtype == torch.float32:
            torch.mm(grad_logits, weight, out=grad_rows)
        else:
            grad_rows.copy_(_product(grad_logits, weight))
        grad_weight += _product(grad_logits.T, rows)
    count = (targets != -1).sum()
    return total / count, grad_x, grad_weight, count


@_loss_and_gradients.register_fake
def _shapes_of_loss_and_gradients(
    x: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What torch.compile may assume of _loss_and_gradients' results."""
    scalar = x.new_empty((), dtype=torch.float32)
    return (
        scalar,
        torch.empty_like(x),
        torch.empty_like(weight, dtype=torch.float32),
        x.new_empty((), dtype=torch.int64),
    )


def _differentiate_plain(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """
    Logits (n, V) and targets (n,) -> (summed loss in float32, its gradient with respect to the logits, in their type).
    """
    wide = logits.float()
    loss = F.cross_entropy(wide, ids, ignore_index=-1, reduction="sum")
    counted = (ids != -1).unsqueeze(1)  # (n, 1)
    # The gradient of the summed loss with respect to the logits is softmax(logits) - onehot(ids).
    grad = wide.softmax(dim=-1).scatter_add_(1, ids.clamp(min=0).unsqueeze(1), -counted.float())
    return loss, (grad * counted).to(logits.dtype)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32, whatever the type of a and b: it is a part of a sum, and rounded after that alone."""
    if a.dtype == torch.float32:
        return a @ b
    if a.device.type == "cuda":
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


@functools.cache
def _load_kernel() -> Callable | None:
    """What does _differentiate_plain's work on CUDA in place, decided at the first use; None where Triton fails."""
    if PLAIN:
        return None
    try:
        from kernels.cross_entropy_triton import differentiate  # imports triton, which is not everywhere

        differentiate(torch.zeros(1, 2, device="cuda"), torch.zeros(1, dtype=torch.int64, device="cuda"))
        return differentiate
    except Exception:  # as in oscillation.py, whose `backend` says why
        return None
