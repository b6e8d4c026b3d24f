"""Event-driven steps of a card, on Triton's interpreter: the dense MLP's output, and no event is missed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from kernels.neurons import HardEventGate, OscillatingNeuron

on_interpreter = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="test_triton_on_its_interpreter runs this one"
)
SIZES = ((16, 64), (36, 70), (65, 7), (1, 1), (1100, 48))  # C, F; the last takes two turns over a row
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 2**-6, torch.float16: 2**-9}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def make(C, F, bias=True, dtype=torch.float32):
    """-> the modules of an MLP with hard events: c_fc, c_proj, neuron, gate; h has a standard deviation of about 1."""
    torch.manual_seed(C)
    c_fc, c_proj, neuron = nn.Linear(C, F, bias), nn.Linear(F, C, bias), OscillatingNeuron(F)
    nn.init.normal_(c_fc.weight, std=C**-0.5)
    nn.init.normal_(neuron.baseline)
    for module in (c_fc, c_proj):
        module.weight.data = module.weight.data.to(dtype)
    return c_fc, c_proj, neuron, HardEventGate(F, 0.15, input_std=1.0)


def laid_out(modules):
    from kernels.event_mlp_triton import EventMLPOnCard  # which needs Triton

    return EventMLPOnCard(*modules)


def dense(modules, x):
    """-> the output in float32, and how many features fire; h is rounded to the weights' dtype, as on a card."""
    c_fc, c_proj, neuron, gate = modules
    dtype = c_fc.weight.dtype
    h = linear(x.to(dtype).float(), c_fc.weight.float(), c_fc.bias).to(dtype).float()
    fired = ~(h.abs() <= gate.threshold)
    return linear(torch.where(fired, neuron(h), neuron.baseline), c_proj.weight.float(), c_proj.bias), int(fired.sum())


@on_interpreter
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_a_step_is_the_dense_mlps(size, bias, dtype):
    modules, x = make(*size, bias, dtype), torch.randn(1, 1, size[0])
    steps, (expected, fired) = laid_out(modules), dense(modules, x)
    y = steps(x)
    assert y.dtype == dtype and y.shape == x.shape
    torch.testing.assert_close(y.float(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    candidates, firing = steps.found.sum(0).tolist()
    assert fired == firing <= candidates <= size[1]
    if size[1] == 64 and dtype == torch.float32:
        assert candidates < 32 and steps.bytes_read() < steps.bytes_dense()


@on_interpreter
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_no_event_is_missed_where_the_bound_is_tight(dtype, sign):
    """Each number of the 8-bit copy is off by half a step along x, so that the bound is an equality."""
    modules, x = make(64, 96, bias=False, dtype=dtype), torch.randn(64).sign()
    q = 2 * torch.randint(-30, 30, (96, 64), generator=torch.Generator().manual_seed(0))  # even: a half rounds to it
    weight = sign * (q + 0.5 * x) / 128
    weight[:, 0] = 127 / 128 * x[0]  # the largest, which sets the scale to 1/128
    modules[0].weight.copy_(weight)
    steps, h = laid_out(modules), linear(x, modules[0].weight.float())
    copy = steps.vectors[0] * (steps.coarse.float() @ x)
    assert ((h - copy).abs() > 0.9 * steps.vectors[1] * x.norm()).all(), "the bound is not tight: nothing is tested"
    hair = TOLERANCE[dtype]  # the interpreter cuts off what does not fit 16 bits, where a card rounds
    for factor, share in ((1 - hair, 1.0), (1 + hair, 0.0)):
        modules[3].threshold.copy_(factor * h.abs())
        steps = laid_out(modules)
        torch.testing.assert_close(steps(x).float(), dense(modules, x)[0], atol=0.05, rtol=TOLERANCE[dtype])
        assert steps.shares()[1] == share


@on_interpreter
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 30.0, 1e-38])
def test_numbers_past_the_ordinary_give_what_they_give_densely(value):
    modules, x = make(32, 96), torch.randn(32)
    x[3] = value
    torch.testing.assert_close(laid_out(modules)(x), dense(modules, x)[0], equal_nan=True, rtol=1e-5, atol=1e-5)
    modules[0].weight[5, 3] = float("nan")
    torch.testing.assert_close(laid_out(modules)(x), dense(modules, x)[0], equal_nan=True, rtol=1e-5, atol=1e-5)


@on_interpreter
def test_a_changed_weight_several_tokens_and_gradients_take_the_dense_way():
    modules, x = make(16, 64), torch.randn(1, 1, 16)
    steps = laid_out(modules)
    assert steps.serves(x, *modules)
    for other in (x.expand(1, 2, 16), x.bfloat16()):
        assert not steps.serves(other, *modules)
    with torch.autocast("cpu", torch.bfloat16):
        assert not steps.serves(x, *modules)
    with torch.enable_grad():
        assert not steps.serves(x, *modules)
    modules[1].weight *= 2
    assert not steps.serves(x, *modules)


@on_interpreter
def test_the_same_token_gives_the_same_bits():
    steps, x = laid_out(make(36, 144)), torch.randn(36)
    assert torch.equal(steps(x), steps(x)) and steps.tokens == 2


@pytest.mark.slow
def test_triton_on_its_interpreter():
    """The tests above, in a process of their own: Triton chooses its interpreter when it is imported."""
    pytest.importorskip("triton", minversion="3.8")  # older interpreters fail with numpy 2.4
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", __file__, "--noconftest", "-m", "not slow"]
    root = Path(__file__).parent.parent
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and " passed" in result.stdout and "skipped" not in result.stdout, result.stdout
