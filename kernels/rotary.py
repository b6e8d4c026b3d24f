"""
Queries and keys made ready for attention: normalised (QK norm), then rotated by their positions (RoPE).

Autograd would keep several float32 copies of them; these operations keep one tensor, or none.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F


def rope_tables(block_size: int, head_width: int) -> tuple[Tensor, Tensor]:
    """cos and sin, each (block_size, head_width/2), of rotary positions (Su et al., 2021, base 10,000)."""
    frequency = 10_000.0 ** (-torch.arange(0, head_width, 2) / head_width)
    angle = torch.outer(torch.arange(block_size), frequency)
    return angle.cos(), angle.sin()


def normalise(x: Tensor, eps: float = 1e-6) -> Tensor:
    """y = x / sqrt(mean(x²) + eps) over the last dimension, computed in float32. x: (..., D) -> same. No weights."""
    if torch.compiler.is_compiling():  # Inductor fuses the plain operations
        return F.rms_norm(x.float(), x.shape[-1:], eps=eps).to(x.dtype)
    return _Normalise.apply(x, eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """
    Rotate each pair (x_i, x_{i + D/2}) by the angle of its position, in float32 (RoPE; Su et al., 2021).

    x: (..., T, D), cos and sin of the angles: (T, D/2), or (B, 1, T, D/2) by sequence -> like x.
    """
    if torch.compiler.is_compiling():  # Inductor fuses the plain operations
        a, b = x.float().chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1).to(x.dtype)
    return _Rotate.apply(x, cos, sin)


class _Normalise(torch.autograd.Function):
    """With r = 1 / sqrt(mean(x²) + eps): dx = r·(dy - y·mean(dy·y)), from y and r alone."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, eps: float) -> Tensor:
        wide = x.float()
        r = (torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square() / x.size(-1) + eps).rsqrt()
        y = (wide * r).to(x.dtype)
        ctx.save_for_backward(y, r)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor, None]:
        y, r = ctx.saved_tensors
        along = (dy * y).mean(-1, keepdim=True, dtype=torch.float32)  # the part of dy along y, which r removes
        return torch.addcmul(dy.float(), y.float(), along, value=-1).mul_(r).to(y.dtype), None


class _Rotate(torch.autograd.Function):
    """The gradient of a rotation is rotated back by the same angle."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate_pairs(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate_pairs(dy, cos, -sin), None, None


def _rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotate` written into one new tensor, without torch.cat's copies."""
    y = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    (a, b), (c, d) = x.float().chunk(2, dim=-1), y.chunk(2, dim=-1)
    torch.mul(a, cos, out=c).addcmul_(b, sin, value=-1)
    torch.mul(a, sin, out=d).addcmul_(b, cos)
    return y.to(x.dtype)
