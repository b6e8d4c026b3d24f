"""What concerns all kernels: the switch that they obey, and how they compile for cards."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels import cross_entropy, oscillation
from model_bio import GPT, GPTConfig
from wiggle.compiler import LARGEST_GAP, largest_gradient_gap
from wiggle.device import Machine

CODE = """
from kernels import attention, event_mlp, matmul, oscillation
for module in (oscillation, attention, matmul, event_mlp):
    print(module.backend("cpu"))
"""


def test_wiggle_kernel_plain_makes_plain_torch_compute_everything():
    result = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "WIGGLE_KERNEL": "plain"},
        capture_output=True,
        text=True,
    )
    by_plain_torch = "plain torch: WIGGLE_KERNEL=plain"
    expected = [by_plain_torch, by_plain_torch, "torch's own choice", by_plain_torch]
    assert result.stdout.splitlines() == expected, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [75, 86, 90])
def test_the_triton_kernels_compile_for_cards_that_are_not_here_and_spill_nothing(architecture):
    pytest.importorskip("triton", minversion="3.3")
    from tests.compile_kernels import NAMES, usage_of

    for name in NAMES:
        usage = usage_of(name, "bf16", architecture)
        assert usage.spilled == 0 and usage.registers <= 128, name
        if "," in name:  # the oscillation's: 16 bits take the fast units, an instruction for a sine, a cosine or a tanh
            assert usage.instructions < 0.4 * usage_of(name, "fp32", architecture).instructions, name


needs_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")


@needs_card
def test_on_cuda_triton_serves_the_oscillation_and_the_loss():
    assert oscillation.backend("cuda") == "Triton"
    assert cross_entropy._load_kernel() is not None


@needs_card
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_cuda_compiled_gradients_are_those_of_eager_mode(dtype):
    config = GPTConfig(block_size=64, vocab_size=64, n_layer=1, n_head=4, n_embd=256, mlp="bio")
    machine = Machine(torch.device("cuda"), dtype, True, "compiled")
    name, gap = largest_gradient_gap(GPT(config, seed=1).to("cuda"), machine)
    assert gap < LARGEST_GAP, name
