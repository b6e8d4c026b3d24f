"""What is read off a model's MLPs: how non-linear they are."""

import math

import pytest
import torch
from torch import nn

from model_bio import GPT, GPTConfig
from wiggle.telemetry import event_rates, nonlinearities, unexplained_share


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


def test_a_rectifiers_feature_fires_where_its_input_is_positive(idx):
    model, positive = GPT(small(mlp="relu2"), seed=1).eval(), []
    for block in model.transformer.h:
        block.mlp.c_fc.register_forward_hook(lambda module, args, h: positive.append((h > 0).float().mean()))
    rates = event_rates(model, idx)
    assert torch.equal(rates, torch.stack(positive)) and 0.3 < rates.min() < rates.max() < 0.7


def test_an_affine_map_leaves_nothing_unexplained_and_noise_all():
    draw = torch.Generator().manual_seed(0)
    h, noise = torch.randn(2000, 6, generator=draw), torch.randn(2000, 6, generator=draw)
    assert unexplained_share(h, 3 * h + 1) < 1e-9
    assert unexplained_share(h, noise) == pytest.approx(1.0, abs=0.01)
    assert unexplained_share(h, torch.ones(2000, 6)) == 0.0
    assert unexplained_share(0 * h, noise) == pytest.approx(1.0)  # pre-activations that never move explain nothing


def test_a_unit_is_explained_by_its_own_preactivations_alone():
    h = torch.randn(5000, 6, generator=torch.Generator().manual_seed(0))  # two rows for each of three units
    assert unexplained_share(h, h[:, :3] - 2 * h[:, 3:]) < 1e-9
    assert unexplained_share(h, h[:, [1, 2, 0]]) > 0.99  # another unit's


def test_known_activations_of_normal_input_are_as_their_series_say():
    h = torch.randn(20000, 4, generator=torch.Generator().manual_seed(0))
    assert unexplained_share(h, h.square()) == pytest.approx(1.0, abs=0.01)  # an even function
    # relu is h/2 + |h|/2: variances 1/4 and (1 - 2/pi)/4, uncorrelated
    expected = (1 - 2 / math.pi) / (2 - 2 / math.pi)
    assert unexplained_share(h, h.relu()) == pytest.approx(expected, abs=0.01)
    assert unexplained_share(0.23 * h, nn.functional.gelu(0.23 * h)) == pytest.approx(0.06, abs=0.01)


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
