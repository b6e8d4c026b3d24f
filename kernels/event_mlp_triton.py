"""
event_mlp.py's computation on CUDA, in the dtype of the weights: two launches a token, and no wait of the host.

A program screens R rows of c_fc.weight through an 8-bit copy, reads the rows of those that may fire, and the columns of
c_proj of those that do: loads with a mask, which read nothing where it is false. What the programs give is added up by
a second kernel, in a fixed order. The bound is screen.py's with x as it is, so |h_f - s q·x| <= |e| |x|, and rounding.

Bytes a feature: C for the copy, then C weights for a candidate and C more where it fires; the dense way reads 2 C
weights. So the copy alone is a quarter of the dense bytes in bfloat16, and an eighth in float32.
"""

import torch
import torch.nn as nn
import triton
import triton.language as tl
from torch import Tensor

from kernels.event_mlp_base import EventMLP
from kernels.oscillation_triton import _sin_cos_tanh

ROWS = 8  # features of a program: GPT-2's 3,072 make 384 programs, of which an H100 holds 396 at once
WIDEST = 1024  # numbers of a row that a program reads at once
ADDED = 64  # sums of programs, and numbers of the output, that a program of the second kernel takes at once
ROUNDING_OF_OUTPUTS = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}  # of |h|, with room to spare


@triton.jit
def _events_kernel(
    X: tl.tensor,
    Q: tl.tensor,
    W: tl.tensor,
    COLUMNS: tl.tensor,
    V: tl.tensor,
    P: tl.tensor,
    FOUND: tl.tensor,
    F: tl.tensor,
    C: tl.tensor,
    slack: tl.tensor,
    FAST: tl.constexpr,
    R: tl.constexpr,
    K: tl.constexpr,
) -> None:
    """
    What R features of one token x (C,) add to c_proj's output, to P (programs, C).

    Q, W, COLUMNS: c_fc.weight in 8 bits and as it is, and c_proj.weight transposed, (F, C) each. V: (6, F), the vectors
    scale, reach (the bound for |x| = 1), bias, threshold, omega and phi. slack: 1 + the relative rounding of h. FOUND:
    (programs, 3), to which a program adds the numbers of its candidates and of its firing features, and 1.
    """
    f = tl.program_id(0) * R + tl.arange(0, R)
    inside, rows, v = f < F, f.to(tl.int64)[:, None] * C, V + f
    middle, squares = tl.zeros((R,), tl.float32), tl.zeros((K,), tl.float32)
    for start in range(0, C, K):
        c = start + tl.arange(0, K)
        x = tl.load(X + c, c < C, 0.0).to(W.dtype.element_ty).to(tl.float32)
        q = tl.load(Q + rows + c[None, :], inside[:, None] & (c < C)[None, :], 0).to(tl.float32)
        middle += tl.sum(q * x[None, :], 1)
        squares += x * x
    scale, reach, bias = tl.load(v, inside, 0.0), tl.load(v + F, inside, 0.0), tl.load(v + 2 * F, inside, 0.0)
    edge = tl.load(v + 3 * F, inside, 0.0)
    most = (tl.abs(scale * middle + bias) + reach * tl.sqrt(tl.sum(squares, 0)) + 1e-35) * slack
    candidate = inside & ((most < edge) == 0)  # a NaN is one
    h = tl.zeros((R,), tl.float32)
    for start in range(0, C, K):
        c = start + tl.arange(0, K)
        x = tl.load(X + c, c < C, 0.0).to(W.dtype.element_ty).to(tl.float32)
        w = tl.load(W + rows + c[None, :], candidate[:, None] & (c < C)[None, :], 0.0).to(tl.float32)
        h += tl.sum(w * x[None, :], 1)
    h = (h + bias).to(W.dtype.element_ty).to(tl.float32)
    fires = candidate & ((tl.abs(h) <= edge) == 0)
    omega, phi = tl.load(v + 4 * F, fires, 0.0), tl.load(v + 5 * F, fires, 0.0)
    s, _, t = _sin_cos_tanh(h, omega, phi, FAST)
    y = tl.where(fires, s * t, 0.0)
    for start in range(0, C, K):
        c = start + tl.arange(0, K)
        column = tl.load(COLUMNS + rows + c[None, :], fires[:, None] & (c < C)[None, :], 0.0).to(tl.float32)
        tl.store(P + tl.program_id(0) * C + c, tl.sum(column * y[:, None], 0), c < C)
    found = FOUND + 3 * tl.program_id(0)
    tl.store(found, tl.load(found) + tl.sum(candidate.to(tl.int64), 0))
    tl.store(found + 1, tl.load(found + 1) + tl.sum(fires.to(tl.int64), 0))
    tl.store(found + 2, tl.load(found + 2) + 1)


@triton.jit
def _add_up_kernel(
    P: tl.tensor, CONSTANT: tl.tensor, Y: tl.tensor, programs: tl.tensor, C: tl.tensor, N: tl.constexpr
) -> None:
    """Y (C,) = CONSTANT (C,) + the sum of P (programs, C), by N numbers of Y a program."""
    c = tl.program_id(0) * N + tl.arange(0, N)
    total = tl.load(CONSTANT + c, c < C, 0.0)
    for start in range(0, programs, N):
        i = start + tl.arange(0, N)
        total += tl.sum(tl.load(P + i[:, None] * C + c[None, :], (i < programs)[:, None] & (c < C)[None, :], 0.0), 0)
    tl.store(Y + c, total, c < C)


class EventMLPOnCard(EventMLP):
    """Beside the model's own weights it keeps, for each number of c_fc.weight, a byte and one more weight."""

    def lay_out(self) -> None:
        weight, bias, projected, _, threshold, omega, phi, _ = self.kept
        exact = weight.double()
        scale = (exact.abs().amax(1) / 127).clamp(min=1e-30).float()
        whole = (exact / scale[:, None]).round().nan_to_num().clamp(-127, 127)
        self.coarse = whole.to(torch.int8)
        error = (exact - scale[:, None] * whole).norm(dim=1)
        rounding = 4 * (weight.size(1) + 8) * 2**-24  # of the float32 sums: the copy's, |x|'s, and the dense product's
        reach = (error + rounding * (exact.norm(dim=1) + error)) * (1 + rounding)
        bias = torch.zeros_like(omega) if bias is None else bias
        self.vectors = torch.stack([v.float() for v in (scale, reach, bias, threshold, omega, phi)])
        self.rows, self.columns = weight.contiguous(), projected.t().contiguous()
        self.silent = self.constant()
        self.counts = torch.zeros(-(-self.features // ROWS), 3, dtype=torch.int64, device=weight.device)

    @property
    def tokens(self) -> int:  # counted on the card, where a CUDA graph that is replayed counts, too
        return int(self.counts[0, 2])

    @property
    def found(self) -> Tensor:
        return self.counts[:, :2]

    def serves(self, x: Tensor, *modules: nn.Module) -> bool:
        weight, kind = self.kept[0], x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        fits = x.numel() == self.c_fc.in_features and x.device == weight.device and dtype == weight.dtype
        return fits and self.takes(modules)

    def __call__(self, x: Tensor) -> Tensor:
        (F, C), dtype, programs, x = self.rows.shape, self.rows.dtype, len(self.counts), x.contiguous()
        y, sums = x.new_empty(x.shape, dtype=dtype), self.silent.new_empty(programs, C)
        memory = x, self.coarse, self.rows, self.columns, self.vectors, sums, self.counts
        slack, fast = 1 + ROUNDING_OF_OUTPUTS[dtype], dtype.itemsize < 4
        wide = min(WIDEST, triton.next_power_of_2(C))
        with torch.cuda.device_of(x):  # Triton launches on the current device, not on that of its arguments
            _events_kernel[programs,](*memory, F, C, slack, fast, ROWS, wide, num_warps=8)
            _add_up_kernel[-(-C // ADDED),](sums, self.silent, y, programs, C, ADDED)
        return y

    def bytes_read(self) -> float:
        (F, C), size, (candidates, firing) = self.rows.shape, self.rows.itemsize, self.shares()
        return F * (C + 4 * len(self.vectors) + size * C * (candidates + firing))
