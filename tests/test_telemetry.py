"""What is read off a model's MLPs: how non-linear they are."""

import math

import pytest
import torch
from torch import nn

from model_bio import GPT, GPTConfig
from wiggle.telemetry import nonlinearities, unexplained_share


def small(**changes):
    return GPTConfig(**{"block_size": 64, "vocab_size": 31, "n_layer": 2, "n_head": 2, "n_embd": 32} | changes)


@pytest.fixture
def idx():
    return torch.randint(31, (32, 64), generator=torch.Generator().manual_seed(0))


class Affine(nn.Module):
    """No activation at all."""

    def __init__(self, features):
        super().__init__()

    def forward(self, x):
        return 3 * x + 1


def test_an_affine_map_leaves_nothing_unexplained_and_noise_all():
    draw = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2000, 10, generator=draw), torch.randn(2000, 5, generator=draw)
    y = x @ torch.randn(10, 5, generator=draw) + 4
    assert unexplained_share(x, y) < 1e-9
    assert unexplained_share(x, noise) == pytest.approx(1.0, abs=0.02)
    assert unexplained_share(x, torch.ones(2000, 5)) == 0.0


def test_a_known_mixture_is_found():
    h = torch.randn(20000, 1, generator=torch.Generator().manual_seed(0))
    assert unexplained_share(h, h.square()) == pytest.approx(1.0, abs=0.01)  # an even function of a normal input
    # relu is h/2 + |h|/2: variances 1/4 and (1 - 2/pi)/4, uncorrelated
    expected = (1 - 2 / math.pi) / (2 - 2 / math.pi)
    assert unexplained_share(h, h.relu()) == pytest.approx(expected, abs=0.01)


def test_a_model_without_an_activation_is_linear_in_every_layer(idx):
    model = GPT(small(mlp="a.py:Affine"), Affine, seed=0)
    assert all(layer.share < 1e-5 for layer in nonlinearities(model, idx))


def test_gelu_starts_nearly_linear_at_gpt2s_scale_and_less_so_at_unit_variance(idx):
    usual, unit = (nonlinearities(GPT(small(c_fc_std=std), seed=0), idx) for std in (None, "unit"))
    for layer in usual:
        assert layer.preactivation_std == pytest.approx(0.02 * math.sqrt(32), rel=0.1) and layer.share < 0.06
    for layer in unit:
        assert layer.preactivation_std == pytest.approx(1.0, rel=0.1) and layer.share > 0.15


@pytest.mark.parametrize("mlp", ["bio", "dendritic", "swiglu", "relu2"])
def test_every_kind_of_mlp_is_measured_and_left_as_it_was(idx, mlp):
    model = GPT(small(mlp=mlp), seed=0).train()
    found = nonlinearities(model, idx)
    assert len(found) == 2 and all(0 <= layer.share <= 1 and layer.preactivation_std > 0 for layer in found)
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
