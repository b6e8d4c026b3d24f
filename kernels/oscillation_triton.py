"""
The oscillation's kernel for CUDA in eager mode: forward and backward pass in one launch each.

Equations and arguments: oscillation.py. x, G and Y are (rows, f) arrays, W the stacked vectors (3 or 8, f), S the sums
of each block of rows (blocks, 3 or 8, f). All pointers, numbers and blocks of numbers are `tl.tensor` to Triton.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS = tl.constexpr(128)  # features of one program


@triton.jit
def _sin_and_tanh(x: tl.tensor, w: tl.tensor, p: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """sin(w x + p) and tanh(x); near 0 tanh is its series, because the closed form cancels there."""
    q = x * x
    series = x * (1 - q * (1 / 3 - q * (2 / 15 - q * (17 / 315))))
    return tl.sin(w * x + p), tl.where(tl.abs(x) < 0.2, series, 1 - 2 / (tl.exp(2 * x) + 1))


@triton.jit
def _oscillate_backward(
    x: tl.tensor, g: tl.tensor, w: tl.tensor, p: tl.tensor, s: tl.tensor, t: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """From the gradient g of s t + b, where s and t are the sine and tanh of x: the gradients of x and of the phase."""
    d = g * tl.cos(w * x + p) * t
    return w * d + g * s * (1 - t * t), d


@triton.jit
def _oscillation_kernel(
    X: tl.tensor,
    W: tl.tensor,
    G: tl.tensor,
    Y: tl.tensor,
    S: tl.tensor,
    rows: tl.tensor,
    f: tl.tensor,
    block: tl.tensor,
    threshold: tl.tensor,
    NV: tl.constexpr,
    BACK: tl.constexpr,
    R: tl.constexpr,
) -> None:
    """
    One program takes `block` rows of COLUMNS features, R rows at a time. NV: the number of vectors, 3 or 8.

    Without BACK it writes Y from X; with BACK it writes dX to Y, from X and the gradient G, and its own sums to S.
    """
    j = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    w, inside = W + j, j < f
    omega, phi, baseline = tl.load(w, inside), tl.load(w + f, inside), tl.load(w + 2 * f, inside)
    if NV == 8:
        gain, offset, omega2 = tl.load(w + 3 * f, inside), tl.load(w + 4 * f, inside), tl.load(w + 5 * f, inside)
        phi2, baseline2 = tl.load(w + 6 * f, inside), tl.load(w + 7 * f, inside)
    o = tl.zeros((R, COLUMNS), tl.float32)
    a0, a1, a2, a3, a4, a5, a6, a7 = o, o, o, o, o, o, o, o  # running sums of the vectors' gradients, in their order
    for start in range(0, block, R):
        i = tl.program_id(0) * block + start + tl.arange(0, R)[:, None]
        at, here = i.to(tl.int64) * f + j, (i < rows) & inside
        x = tl.load(X + at, here, 0.0).to(tl.float32)
        s, t = _sin_and_tanh(x, omega, phi)
        y = s * t + baseline
        if NV == 8:
            u, v = y, tl.sigmoid(gain * y + offset)
            e = tl.sigmoid(5 * (v - threshold))  # the spike strength, s in oscillation.py
            s2, t2 = _sin_and_tanh(u * e, omega2, phi2)
            y = s2 * t2 + baseline2
        if BACK:
            g = tl.load(G + at, here, 0.0).to(tl.float32)
            if NV == 8:
                dz, d = _oscillate_backward(u * e, g, omega2, phi2, s2, t2)
                a5, a6, a7 = a5 + d * u * e, a6 + d, a7 + g
                d = 5 * dz * u * e * (1 - e) * v * (1 - v)  # the gradient of gain u + offset
                a3, a4, g = a3 + d * u, a4 + d, dz * e + d * gain
            y, d = _oscillate_backward(x, g, omega, phi, s, t)
            a0, a1, a2 = a0 + d * x, a1 + d, a2 + g
        tl.store(Y + at, y, here)
    if BACK:
        sums = S + tl.program_id(0) * NV * f + j
        tl.store(sums, tl.sum(a0, 0), inside)
        tl.store(sums + f, tl.sum(a1, 0), inside)
        tl.store(sums + 2 * f, tl.sum(a2, 0), inside)
        if NV == 8:
            tl.store(sums + 3 * f, tl.sum(a3, 0), inside)
            tl.store(sums + 4 * f, tl.sum(a4, 0), inside)
            tl.store(sums + 5 * f, tl.sum(a5, 0), inside)
            tl.store(sums + 6 * f, tl.sum(a6, 0), inside)
            tl.store(sums + 7 * f, tl.sum(a7, 0), inside)


def run_triton(
    x: Tensor, vectors: Sequence[Tensor], threshold: float, grad: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """As _run_plain in oscillation.py. The sums of the blocks are added in a fixed order, without atomic operations."""
    f, w = x.shape[-1], torch.stack([v.float() for v in vectors])
    rows = x.numel() // max(f, 1)
    block = max(32, -(-rows // 128))
    grid = -(-rows // block), -(-f // COLUMNS.value)
    x, y = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    g, sums = (x, w) if grad is None else (grad.contiguous(), w.new_empty(grid[0], *w.shape))
    if x.numel():
        with torch.cuda.device_of(x):  # Triton launches on the current device, not on that of its arguments
            _oscillation_kernel[grid](x, w, g, y, sums, rows, f, block, threshold, len(w), grad is not None, 4)
    return y, None if grad is None else sums.sum(0)
