"""
A Linear whose products on the CPU, in float32, are made by what makes them soonest.

torch sends them to MKL, which is Intel's: on an AMD processor it leaves AVX-512 unused. oneDNN, which comes with torch
too, takes half the time there, and a tenth less where AVX-512 is switched off. Other processors keep torch's way.
"""

import functools
import math
import platform
from pathlib import Path

import torch
import torch.nn as nn

from .oscillation import PLAIN

SMALL = 2**22  # multiplications of a product below which oneDNN's overhead is more than it gains
CACHED = 2**18  # numbers in a matrix below which it waits in a core's cache and need not be read from memory


class Linear(nn.Linear):
    """nn.Linear, with the same result but for the rounding. Its first call with a new shape takes 1 ms more."""

    def forward(self, x):
        N, K = self.weight.shape
        fits = x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32
        if not fits or x.shape[-1:] != (K,) or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        if x.numel() == K and N * K >= CACHED and not torch.is_grad_enabled():
            return vector_product(x, self.weight, self.bias)
        if torch.compiler.is_compiling() or x.numel() * N < SMALL or _one_dnn() is None:
            return super().forward(x)
        return _Product.apply(x.reshape(-1, K), self.weight, self.bias).view(*x.shape[:-1], N)


def vector_product(x, weight, bias=None):
    """x: (..., K), one vector, weight: (N, K) -> (..., N). Cut into a batch, the product takes all threads."""
    N, K = weight.shape
    parts = math.gcd(N, 16)
    # the vector as a column whose stride is K: with a stride of 1 it is far slower
    y = torch.bmm(weight.view(parts, -1, K), x.view(1, 1, K).mT.expand(parts, K, 1)).view(*x.shape[:-1], N)
    return y if bias is None else y + bias


def backend(device):
    """What makes the large products of a device: 'oneDNN' or torch's own choice."""
    return "oneDNN" if torch.device(device).type == "cpu" and _one_dnn() is not None else "torch's own choice"


class _Product(torch.autograd.Function):
    """a: (M, K), b: (N, K), bias: (N,) or None -> a bᵀ + bias (M, N)."""

    @staticmethod
    def forward(ctx, a, b, bias):
        ctx.save_for_backward(a, b)
        return _one_dnn()(a, b, bias)

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved_tensors
        need_a, need_b, need_bias = ctx.needs_input_grad
        da = _Product.apply(grad, b.t(), None) if need_a else None
        db = None
        if need_b and grad.size(1) <= a.size(1):  # oneDNN copies its first matrix where that is transposed: the smaller
            db = _Product.apply(grad.t(), a.t(), None)
        elif need_b:
            db = _Product.apply(a.t(), grad.t(), None).t()
        return da, db, grad.sum(0) if need_bias else None


@functools.cache
def _one_dnn():
    """The function (a, b, bias) -> a bᵀ + bias of oneDNN, or None where it was not found to be faster than torch's."""
    if PLAIN or not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available() and _is_amd()):
        return None
    try:
        _call(torch.ones(1, 1), torch.ones(1, 1), None)
    except (AttributeError, RuntimeError):  # a version of torch that calls it otherwise
        return None
    return _call


def _call(a, b, bias):
    return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")  # Inductor's


def _is_amd():
    try:
        maker = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        maker = platform.processor()  # Windows ends it in the maker's name
    return "AuthenticAMD" in maker
