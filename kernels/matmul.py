"""
A Linear whose products, on the CPU in float32, use the faster of MKL and oneDNN.

torch takes MKL for them, Intel's library, which leaves AVX-512 unused on AMD processors. There oneDNN, which comes with
torch too, needs half the time, and a tenth less where AVX-512 is switched off. Other processors keep torch's choice.
"""

import functools
import math
import platform
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn as nn
from torch import Tensor
from torch.autograd.function import FunctionCtx

from kernels import PLAIN

SMALL_PRODUCT = 2**22  # multiplications; below, calling oneDNN costs more than it gains
CACHED_MATRIX = 2**18  # numbers; a smaller matrix stays in a core's cache, and memory bandwidth does not matter


class Linear(nn.Linear):
    """nn.Linear with the same result, up to rounding. The first call with a new shape takes 1 ms more under oneDNN."""

    def forward(self, x: Tensor) -> Tensor:
        N, K = self.weight.shape
        fits = x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32
        if not fits or x.shape[-1:] != (K,) or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        if x.numel() == K and N * K >= CACHED_MATRIX and not torch.is_grad_enabled():
            return vector_product(x, self.weight, self.bias)
        if torch.compiler.is_compiling() or x.numel() * N < SMALL_PRODUCT or _one_dnn() is None:
            return super().forward(x)
        return _OneDNNProduct.apply(x.reshape(-1, K), self.weight, self.bias).view(*x.shape[:-1], N)


def vector_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """
    The product of a matrix and one vector by all threads, each with a part of the rows; torch would use one thread.

    x: (..., K) with K numbers in all, weight: (N, K), bias: (N,) or None -> (..., N).
    """
    N, K = weight.shape
    parts = math.gcd(N, 16)
    # The vector is a column with a stride of K: torch.bmm is far slower on a column with a stride of 1.
    y = torch.bmm(weight.view(parts, -1, K), x.view(1, 1, K).mT.expand(parts, K, 1)).view(*x.shape[:-1], N)
    return y if bias is None else y + bias


def backend(device: torch.device | str) -> str:
    """What computes large float32 products on a device: 'oneDNN', or "torch's own choice"."""
    return "oneDNN" if torch.device(device).type == "cpu" and _one_dnn() is not None else "torch's own choice"


class _OneDNNProduct(torch.autograd.Function):
    """a: (M, K), b: (N, K), bias: (N,) or None -> a bᵀ + bias (M, N)."""

    @staticmethod
    def forward(ctx: FunctionCtx, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(a, b)
        return _one_dnn()(a, b, bias)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        need_a, need_b, need_bias = ctx.needs_input_grad
        da = _OneDNNProduct.apply(grad, b.t(), None) if need_a else None
        db = None
        # db = gradᵀ a. oneDNN copies its first argument where that is transposed, so the smaller one goes first.
        if need_b and grad.size(1) <= a.size(1):
            db = _OneDNNProduct.apply(grad.t(), a.t(), None)
        elif need_b:
            db = _OneDNNProduct.apply(a.t(), grad.t(), None).t()
        return da, db, grad.sum(0) if need_bias else None


@functools.cache
def _one_dnn() -> Callable[[Tensor, Tensor, Tensor | None], Tensor] | None:
    """oneDNN's (a, b, bias) -> a bᵀ + bias, or None where it is missing or not known to be the faster."""
    if PLAIN or not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available() and _is_amd()):
        return None
    try:
        _one_dnn_linear(torch.ones(1, 1), torch.ones(1, 1), None)
    except (AttributeError, RuntimeError):  # the operation is no public one: another version of torch may change it
        return None
    return _one_dnn_linear


def _one_dnn_linear(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")  # the operation that Inductor calls


def _is_amd() -> bool:
    """Whether the processor is made by AMD."""
    try:
        maker = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        maker = platform.processor()  # on Windows its text ends with the maker's name
    return "AuthenticAMD" in maker
