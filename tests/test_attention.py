"""The fused causal attention against its equation, in float64."""

import ctypes
import math

import pytest
import torch

from kernels import attention, c_library
from kernels.attention import attend, attend_step, serves_step
from model_bio import GPT, GPTConfig

pytestmark = pytest.mark.skipif(c_library.find_compiler() is None, reason="no C compiler")
SIZES = ((3, 64, 4, 32), (2, 1, 2, 8), (2, 37, 3, 10), (1, 300, 1, 128), (2, 17, 1, 48), (1, 9, 2, 2))  # B, T, H, D


def by_its_equation(qkv, heads, norm, rope):
    B, T, width = qkv.shape
    q, k, v = qkv.view(B, T, 3, heads, -1).permute(2, 0, 3, 1, 4)  # (B, H, T, D) each
    if norm:
        q, k = (x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() for x in (q, k))
    if rope:
        pairs = [x.chunk(2, dim=-1) for x in (q, k)]
        cos, sin = rope
        q, k = (torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1) for a, b in pairs)
    later = torch.ones(T, T, dtype=torch.bool).triu(1)
    p = torch.softmax((q @ k.mT / math.sqrt(q.size(-1))).masked_fill(later, -math.inf), dim=-1)
    return (p @ v).transpose(1, 2).reshape(B, T, width // 3)


def make(B, T, H, D, scale=2.0):
    """-> qkv (B, T, 3·C), the gradient of the output (B, T, C), and rope."""
    generator = torch.Generator().manual_seed(T)
    qkv, grad = (torch.randn(B, T, n * H * D, generator=generator) for n in (3, 1))
    angle = torch.outer(torch.arange(T), 10_000.0 ** (-torch.arange(0, D, 2) / D))
    return scale * qkv, grad, (angle.cos(), angle.sin())


def assert_is_the_equation(size, norm, rotated):
    qkv, grad, rope = make(*size)
    rope = rope if rotated else None
    x, z = qkv.requires_grad_(), qkv.detach().double().requires_grad_()
    y, expected = attend(x, size[2], norm, rope), by_its_equation(z, size[2], norm, rope)
    y.backward(grad)
    expected.backward(grad.double())
    torch.testing.assert_close(y.double(), expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(x.grad.double(), z.grad, atol=5e-5, rtol=0)


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_output_and_gradient_are_those_of_the_equation(size, norm, rotated):
    assert_is_the_equation(size, norm, rotated)


def test_the_build_without_native_instructions_is_the_equation_too(tmp_path, monkeypatch):
    library = c_library.build_library("attention.c", c_library.find_compiler(), c_library.FLAGS, tmp_path)
    attention.declare(plain := ctypes.CDLL(str(library)))
    monkeypatch.setattr(attention, "_load_library", lambda: (plain, "C"))
    assert_is_the_equation((2, 37, 3, 10), True, True)


def steps_of(qkv, heads, norm, rope, room=5):
    """The outputs of all tokens, read one by one into buffers that are larger than the text."""
    B, T, width = qkv.shape
    keys, values = torch.full((2, B, heads, T + room, width // (3 * heads)), math.nan)
    tables = [None if rope is None else (rope[0][t : t + 1], rope[1][t : t + 1]) for t in range(T)]
    one = [attend_step(qkv[:, [t]], heads, norm, tables[t], keys, values, t) for t in range(T)]
    return torch.cat(one, dim=1)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_tokens_read_one_by_one_are_the_equation_too(size, norm):
    qkv, _, rope = make(*size)
    rope = rope if norm else None
    expected = by_its_equation(qkv.double(), size[2], norm, rope)
    torch.testing.assert_close(steps_of(qkv, size[2], norm, rope).double(), expected, atol=2e-5, rtol=0)


def test_a_step_takes_numbers_that_do_not_lie_in_a_row():
    qkv, _, _ = make(2, 5, 3, 8)
    expected = steps_of(qkv, 3, False, None)
    wide = qkv.repeat_interleave(2, dim=-1)
    assert torch.equal(steps_of(wide[..., ::2], 3, False, None), expected)


@pytest.mark.parametrize(("batch", "place"), [(2, 16), (3, 0)])
def test_a_step_past_the_cache_is_refused(batch, place):
    keys, values = torch.zeros(2, 2, 3, 16, 8)
    with pytest.raises(ValueError, match=rf"holds 2 sequences of 16 tokens, received {batch} at place {place}"):
        attend_step(torch.zeros(batch, 1, 72), 3, False, None, keys, values, place)


def test_threads_change_no_bit_of_a_step(monkeypatch):
    qkv, _, rope = make(3, 64, 4, 128)
    expected = steps_of(qkv, 4, True, rope)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    assert torch.equal(steps_of(qkv, 4, True, rope), expected)


def test_a_step_is_one_token_without_gradients_and_keys_in_float32():
    qkv, keys = torch.zeros(2, 1, 24), torch.zeros(2, 2, 8, 4)
    assert not serves_step(qkv, keys)
    with torch.no_grad():
        assert serves_step(qkv, keys)
        assert not serves_step(qkv.expand(2, 3, 24), keys) and not serves_step(qkv, keys.bfloat16())


def test_large_scores_choose_one_token():
    """Scores up to some 10,000, where a softmax becomes a choice."""
    qkv, _, _ = make(2, 37, 3, 10, scale=80.0)
    expected = by_its_equation(qkv.double(), 3, False, None)
    assert (attend(qkv, 3) - expected).abs().max() < 1.0
    assert ((attend(qkv, 3) - expected).abs() < 1e-3).float().mean() > 0.99


def test_a_token_sees_none_after_it():
    """Later tokens change no bit of it, and a NaN reaches every token that sees it."""
    qkv, grad, rope = make(2, 37, 3, 10)
    x, z = qkv.clone().requires_grad_(), qkv.clone()
    z[:, 20:] = 1e15 * torch.randn(2, 17, 90)
    grad[:, 20:] = 0
    y = attend(x, 3, True, rope)
    assert torch.equal(y[:, :20], attend(z, 3, True, rope)[:, :20])
    y.backward(grad)
    assert not x.grad[:, 20:].any() and x.grad[:, 1:20].all()
    for bad in (math.nan, math.inf):
        z[:, 20] = bad
        assert not attend(z, 3, True, rope)[:, 20:].isfinite().any()


def test_threads_change_no_bit():
    qkv, grad, rope = make(3, 64, 4, 32)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            x = qkv.clone().requires_grad_()
            y = attend(x, 4, True, rope)
            y.backward(grad)
            results.append((y, x.grad))
    finally:
        torch.set_num_threads(threads)
    for y, dx in results[1:]:
        assert torch.equal(y, results[0][0]) and torch.equal(dx, results[0][1])


def test_autograd_keeps_the_input_alone():
    qkv, _, _ = make(3, 64, 4, 32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        attend(qkv.requires_grad_(), 4)
    assert [t.shape for t in kept] == [qkv.shape]


def test_it_serves_float32_on_the_cpu_alone_and_says_so():
    x = torch.zeros(1, 4, 24)
    assert attention.serves(x) and attention.backend("cpu").startswith("C (")
    assert not any(map(attention.serves, (x.double(), x.bfloat16(), x.to("meta"))))
    assert attention.backend("meta") == "plain torch"


def test_shapes_that_do_not_fit_are_refused():
    qkv, _, (cos, sin) = make(2, 5, 3, 8)
    with pytest.raises(ValueError, match=r"qkv: expected \(B, T, 3·5·D\) for 5 heads, received \(2, 5, 72\)"):
        attend(qkv, 5)
    with pytest.raises(ValueError, match=r"sin: expected \(5, 4\) for qkv \(2, 5, 72\), received \(4, 4\)"):
        attend(qkv, 3, rope=(cos, sin[:4]))


def test_tensors_without_numbers_do_not_reach_c():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        model = GPT(GPTConfig(block_size=8, vocab_size=10, n_layer=1, n_head=2, n_embd=8, mlp="bio"))
        logits, loss = model(*torch.zeros(2, 2, 8, dtype=torch.long))
        loss.backward()
    assert logits.shape == (2, 8, 10)
