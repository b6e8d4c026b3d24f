"""
The oscillation's kernel for CUDA: forward and backward pass in one launch each.

Equations: oscillation.py. x, G and Y are (rows, f) arrays, W the stacked vectors (3, 4 or 8, f), S the sums of each
block of rows (blocks, number_of_sums, f). All pointers, numbers and blocks of numbers are `tl.tensor` to Triton.
"""

import os
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import oscillation_plain
from kernels.oscillation_plain import number_of_sums

EVENTS = tl.constexpr(oscillation_plain.EVENTS)
SURROGATE_WIDTH = tl.constexpr(oscillation_plain.SURROGATE_WIDTH)
LEAST_WIDTH = tl.constexpr(oscillation_plain.LEAST_WIDTH)
COLUMNS = tl.constexpr(128)  # features of one program
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")  # which knows no instructions of a card


@triton.jit
def _fast_sin_cos(phase: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """
    Sine and cosine by a card's fast units, after one reduction of the phase to -π..π, right to 1e-6 up to 1e5.

    A whole number of turns is taken off in three parts, of which the first two have so few bits that their products are
    exact (Cody and Waite, 1980).
    """
    turns = tl.floor(phase * 0.15915494309189535 + 0.5)
    r = ((phase - turns * 6.28125) - turns * 1.93500518798828125e-3) - turns * 3.019915981956753e-7
    if INTERPRETED:
        return tl.sin(r), tl.cos(r)
    s = tl.inline_asm_elementwise("sin.approx.f32 $0, $1;", "=f,f", [r], tl.float32, True, 1)
    c = tl.inline_asm_elementwise("cos.approx.f32 $0, $1;", "=f,f", [r], tl.float32, True, 1)
    return s, c


@triton.jit
def _fast_tanh(x: tl.tensor) -> tl.tensor:
    """tanh by one instruction, right to 11 bits."""
    if INTERPRETED:
        return (1 - 2 / (tl.exp(2 * x) + 1)).to(tl.float16).to(tl.float32)  # which rounds to 11 bits, too
    return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)


@triton.jit
def _sin_cos_tanh(
    x: tl.tensor, w: tl.tensor, p: tl.tensor, FAST: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """sin(w x + p), cos(w x + p) and tanh(x); near 0 the exact tanh is its series: the closed form cancels there."""
    phase = w * x + p
    if FAST:
        s, c = _fast_sin_cos(phase)
        return s, c, _fast_tanh(x)
    q = x * x
    series = x * (1 - q * (1 / 3 - q * (2 / 15 - q * (17 / 315))))
    return tl.sin(phase), tl.cos(phase), tl.where(tl.abs(x) < 0.2, series, 1 - 2 / (tl.exp(2 * x) + 1))


@triton.jit
def _sigmoid(x: tl.tensor, FAST: tl.constexpr) -> tl.tensor:
    """1 / (1 + exp(-x))."""
    if FAST:
        return 0.5 + 0.5 * _fast_tanh(0.5 * x)
    return tl.sigmoid(x)


@triton.jit
def _oscillate_backward(
    g: tl.tensor, w: tl.tensor, s: tl.tensor, c: tl.tensor, t: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """From the gradient g of s t + b, where s, c, t are x's sine, cosine and tanh: the gradients of x and the phase."""
    d = g * c * t
    return w * d + g * s * (1 - t * t), d


@triton.jit
def _events_backward(
    g: tl.tensor, x: tl.tensor, edge: tl.tensor, f: tl.tensor, FAST: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """From the gradient g of f = s t where |x| > edge: what of it goes through f, and the surrogate's part of dx."""
    narrow = 1 / tl.maximum(edge * SURROGATE_WIDTH, LEAST_WIDTH)
    e = _sigmoid((tl.abs(x) - edge) * narrow, FAST)
    jump = g * f * e * (1 - e) * narrow
    return tl.where(tl.abs(x) <= edge, 0.0, g), tl.where(x < 0, -jump, jump)


@triton.jit
def _gate_backward(
    g: tl.tensor,
    u: tl.tensor,
    v: tl.tensor,
    e: tl.tensor,
    gain: tl.tensor,
    omega2: tl.tensor,
    s2: tl.tensor,
    c2: tl.tensor,
    t2: tl.tensor,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """
    From the gradient g of the second oscillation of u e: the gradients of u, of its phase, and of gain u + offset.

    v: the voltage; e: the spike strength; s2, c2, t2: sine, cosine and tanh of the second oscillation.
    """
    dz, phase = _oscillate_backward(g, omega2, s2, c2, t2)
    d = 5 * dz * u * e * (1 - e) * v * (1 - v)
    return dz * e + d * gain, phase, d


@triton.jit
def _store_sums(S: tl.tensor, f: tl.tensor, inside: tl.tensor, a: tl.tensor, b: tl.tensor, c: tl.tensor) -> None:
    """Store three running sums (R, COLUMNS), each added up over R, in three rows of f numbers from S on."""
    tl.store(S, tl.sum(a, 0), inside)
    tl.store(S + f, tl.sum(b, 0), inside)
    tl.store(S + 2 * f, tl.sum(c, 0), inside)


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
    FAST: tl.constexpr,
    R: tl.constexpr,
) -> None:
    """
    One program takes `block` rows of COLUMNS features, R rows at a time. NV: the number of vectors, 3, 4 or 8.

    Without BACK it writes Y from X; with BACK it writes dX to Y, from X and the gradient G, and its own sums to S.
    FAST: for a 16-bit X, whose rounding hides that of a card's fast units.
    """
    j = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    w, inside = W + j, j < f
    omega, phi, baseline = tl.load(w, inside), tl.load(w + f, inside), tl.load(w + 2 * f, inside)
    if NV == EVENTS:
        edge = tl.load(w + 3 * f, inside)  # the features' thresholds
    if NV == 8:
        gain, offset, omega2 = tl.load(w + 3 * f, inside), tl.load(w + 4 * f, inside), tl.load(w + 5 * f, inside)
        phi2, baseline2 = tl.load(w + 6 * f, inside), tl.load(w + 7 * f, inside)
    o = tl.zeros((R, COLUMNS), tl.float32)
    a0, a1, a2, a3, a4, a5, a6, a7 = o, o, o, o, o, o, o, o  # running sums of the vectors' gradients, in their order
    for start in range(0, block, R):
        i = tl.program_id(0) * block + start + tl.arange(0, R)[:, None]
        at, here = i.to(tl.int64) * f + j, (i < rows) & inside
        x = tl.load(X + at, here, 0.0).to(tl.float32)
        s, c, t = _sin_cos_tanh(x, omega, phi, FAST)
        y = s * t + baseline
        if NV == EVENTS:
            y = tl.where(tl.abs(x) <= edge, baseline, y)
        if NV == 8:
            u, v = y, _sigmoid(gain * y + offset, FAST)
            e = _sigmoid(5 * (v - threshold), FAST)  # the spike strength, s in oscillation.py
            s2, c2, t2 = _sin_cos_tanh(u * e, omega2, phi2, FAST)
            y = s2 * t2 + baseline2
        if BACK:
            g = tl.load(G + at, here, 0.0).to(tl.float32)
            passed, jump = g, o
            if NV == EVENTS:
                passed, jump = _events_backward(g, x, edge, s * t, FAST)
            if NV == 8:
                a7 += g
                g, d2, d = _gate_backward(g, u, v, e, gain, omega2, s2, c2, t2)
                a3, a4, a5, a6, passed = a3 + d * u, a4 + d, a5 + d2 * u * e, a6 + d2, g
            y, d = _oscillate_backward(passed, omega, s, c, t)
            y += jump
            a0, a1, a2 = a0 + d * x, a1 + d, a2 + g
        elif NV == EVENTS:
            a0 += tl.where(here & (tl.abs(x) > edge), 1.0, 0.0)
        tl.store(Y + at, y, here)
    if not BACK and NV == EVENTS:
        tl.store(S + tl.program_id(0) * f + j, tl.sum(a0, 0), inside)
    if BACK:
        sums = S + tl.program_id(0) * (8 if NV == 8 else 3) * f + j
        _store_sums(sums, f, inside, a0, a1, a2)
        if NV == 8:
            _store_sums(sums + 3 * f, f, inside, a3, a4, a5)
            tl.store(sums + 6 * f, tl.sum(a6, 0), inside)
            tl.store(sums + 7 * f, tl.sum(a7, 0), inside)


def run_triton(
    x: Tensor, vectors: Sequence[Tensor], threshold: float, grad: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """As oscillation_plain.run_plain. The sums of the blocks are added in a fixed order, without atomic operations."""
    f, w = x.shape[-1], torch.stack([v.float() for v in vectors])
    rows = x.numel() // max(f, 1)
    block = max(32, -(-rows // 128))
    grid = -(-rows // block), -(-f // COLUMNS.value)
    x, y = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    g = x if grad is None else grad.contiguous()
    sums = w.new_empty(grid[0], number_of_sums(vectors, grad), f)
    fast = x.dtype.itemsize < 4
    if x.numel():
        with torch.cuda.device_of(x):  # Triton launches on the current device, not on that of its arguments
            _oscillation_kernel[grid](x, w, g, y, sums, rows, f, block, threshold, len(w), grad is not None, fast, 4)
    return y, sums.sum(0) if sums.size(1) else None
