"""Queries and keys made ready for attention: normalised, then turned by their positions, with cheap gradients."""

import torch
from torch.nn import functional as F


def normalise(x, eps=1e-6):
    """y = x / sqrt(mean(x²) + eps) over the last dimension, in float32; x: (..., D) -> like x. Without weights."""
    if torch.compiler.is_compiling():  # Inductor fuses the plain operations
        return F.rms_norm(x.float(), x.shape[-1:], eps=eps).to(x.dtype)
    return _Normalise.apply(x, eps)


def rotate(x, cos, sin):
    """Turn each pair (x_i, x_{i + D/2}) by its position's angle, in float32. x: (..., T, D); cos, sin: (T, D/2)."""
    if torch.compiler.is_compiling():
        a, b = x.float().chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1).to(x.dtype)
    return _Rotate.apply(x, cos, sin)


class _Normalise(torch.autograd.Function):
    """With r = 1 / sqrt(mean(x²) + eps): dx = r·(dy - y·mean(dy·y)), from y and r alone."""

    @staticmethod
    def forward(ctx, x, eps):
        wide = x.float()
        r = (torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square() / x.size(-1) + eps).rsqrt()
        y = (wide * r).to(x.dtype)
        ctx.save_for_backward(y, r)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        y, r = ctx.saved_tensors
        along = (dy * y).mean(-1, keepdim=True, dtype=torch.float32)
        return torch.addcmul(dy.float(), y.float(), along, value=-1).mul_(r).to(y.dtype), None


class _Rotate(torch.autograd.Function):
    """The gradient is turned back by the same angle."""

    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        cos, sin = ctx.saved_tensors
        return _turn(dy, cos, -sin), None, None


def _turn(x, cos, sin):
    y = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    (a, b), (c, d) = x.float().chunk(2, dim=-1), y.chunk(2, dim=-1)
    torch.mul(a, cos, out=c).addcmul_(b, sin, value=-1)
    torch.mul(a, sin, out=d).addcmul_(b, cos)
    return y.to(x.dtype)
