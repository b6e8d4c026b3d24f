"""
A matrix's rows screened through an 8-bit copy: an interval for each row's product with a vector, which no rounding
escapes, at a quarter of the float32 rows' bytes.

A row is w = s q + e with 8-bit integers q, the vector x = d X + r with 16-bit integers X. By Cauchy and Schwarz

    |w·x - s d (q·X)| <= |e| |x| + s |q| |r| <= |e| (|x| + |r|) + |w| |r|,       since s |q| <= |w| + |e|,

and q·X is exact, in integers. A float32 product of n numbers is off by at most n u / (1 - n u) |w| |x| with u = 2^-24,
in whatever order it is summed up (Higham, 2002, section 3.1), which widens the interval once more. So the interval
holds the product that any float32 implementation computes. At width 768 its half width is about a fifth of the
product's standard deviation over rows.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK, ROWS = 64, 4  # of screen.h
WIDEST = 66_000  # numbers in a row, up to which sums of products of 8-bit numbers fit 32 bits
UP = 1 + 1e-6  # rounds a norm upwards, from float64 to float32


class Screen(NamedTuple):
    """What screen.h reads of a matrix (N, K), at 1 byte a number."""

    coarse: Tensor  # q, int8 (N / ROWS, K / CHUNK, ROWS, CHUNK), both rounded up and padded with zeros
    scale: Tensor  # s, float32 (N,), as the others
    error: Tensor  # at least |e|
    norm: Tensor  # at least |w|
    sum: Tensor  # 128 times the sum of q

    @property
    def stride(self) -> int:
        """Bytes of a row of the copy."""
        return self.coarse.size(1) * CHUNK


@torch.no_grad()
def screen_rows(weight: Tensor) -> Screen:
    """weight: (N, K) in float32 -> its Screen. A row that is not finite gets an interval that is not, either."""
    parts = [_screen_part(part) for part in weight.split(4096)]  # float64 of a part alone
    return Screen(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _screen_part(weight: Tensor) -> Screen:
    N, K = weight.shape
    scale = (weight.abs().amax(dim=1) / 127).clamp(min=1e-30)  # of a row of zeros, any
    q = (weight / scale[:, None]).round().nan_to_num(0).clamp(-127, 127)
    error = (weight.double() - scale.double()[:, None] * q.double()).norm(dim=1) * UP
    norm = weight.double().norm(dim=1) * UP
    coarse = F.pad(q.to(torch.int8), (0, -K % CHUNK, 0, -N % ROWS)).view(-1, ROWS, (K + CHUNK - 1) // CHUNK, CHUNK)
    return Screen(coarse.transpose(1, 2).contiguous(), scale, error.float(), norm.float(), 128 * q.sum(1))
