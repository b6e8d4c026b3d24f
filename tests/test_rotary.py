"""Normalised and rotated heads against the plain operations, and what autograd keeps of them."""

import pytest
import torch

from kernels.rotary import normalise, rotate


def tables(T, D):
    """cos and sin (T, D/2) of angles that differ everywhere."""
    angle = torch.outer(torch.arange(T), 0.3 ** torch.arange(D // 2))
    return angle.cos(), angle.sin()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_normalised_and_rotated_heads_are_the_plain_operations(dtype, tolerance):
    cos, sin = tables(5, 8)
    heads = torch.randn(2, 5, 3, 8, dtype=dtype).transpose(1, 2)  # (B, H, T, D), strided as attention's views are
    x, z = (heads.clone().requires_grad_() for _ in range(2))
    a, b = (z.float() / (z.float().square().mean(-1, keepdim=True) + 1e-6).sqrt()).chunk(2, dim=-1)
    plain = torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)
    fast = rotate(normalise(x), cos, sin)
    assert fast.dtype == dtype and fast.shape == x.shape
    weight = torch.randn_like(plain)
    for y in (fast, plain):
        (y.float() * weight).sum().backward()
    torch.testing.assert_close(fast.float(), plain, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(x.grad, z.grad, atol=2 * tolerance, rtol=tolerance)


def test_zeros_stay_zeros():
    assert not normalise(torch.zeros(3, 8)).any()


def test_torch_compile_changes_nothing():
    cos, sin = tables(4, 6)
    x = torch.randn(2, 4, 6)
    compiled = torch.compile(lambda x: rotate(normalise(x), cos, sin), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), rotate(normalise(x), cos, sin))
