"""What wiggle/analysis_activation.py reads off any MLP."""

import numpy as np
import pytest
import torch

from tests.conftest import untrained
from wiggle.analysis_activation import learned_parameters, measure_activation


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def mlp_of(neuron=None, **changes):
    return untrained(1, neuron, **changes).transformer.h[0].mlp


INPUTS = torch.randn(500, 16, generator=torch.Generator().manual_seed(0))


def test_samples_are_pre_activations_with_what_their_unit_gave():
    _, gelu = measure_activation(mlp_of(mlp="gelu"), INPUTS)
    assert gelu.seen.shape == (len(gelu.given), 1)
    assert np.allclose(torch.nn.functional.gelu(torch.from_numpy(gelu.seen[:, 0])), gelu.given, atol=1e-6)
    _, swiglu = measure_activation(mlp_of(mlp="swiglu"), INPUTS)
    x, z = torch.from_numpy(swiglu.seen).unbind(1)
    assert np.allclose(torch.nn.functional.silu(x) * z, swiglu.given, atol=1e-6)


def test_zeros_are_the_share_of_outputs_that_are_exactly_zero():
    mlp = mlp_of(mlp="relu")
    silent = (mlp.c_fc(INPUTS) <= 0).float().mean().item()
    assert measure_activation(mlp, INPUTS)[0]["zeros"] == pytest.approx(silent, abs=1e-6)
    assert measure_activation(mlp_of(mlp="silu"), INPUTS)[0]["zeros"] == 0


class Curved(torch.nn.Module):
    """A user's: coefficients of a square for each unit, and a count of its calls that no distribution is of."""

    def __init__(self, features):
        super().__init__()
        self.a = torch.nn.Parameter(torch.ones(3, features))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("calls", torch.zeros(1, dtype=torch.int64))

    def forward(self, x):
        return self.a[0] + self.a[1] * x + self.a[2] * x * x


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"mlp": "gelu"}, []),
        ({"mlp": "snake"}, ["neuron.a"]),
        ({"mlp": "xielu"}, ["neuron.alpha_p", "neuron.alpha_n"]),
        ({"mlp": "polynorm"}, [*(f"neuron.coefficients_{i}" for i in (1, 2, 3)), "neuron.bias"]),
        ({"mlp": "dendritic"}, ["beta"]),
        ({"mlp": "bio", "bio_gate": "none"}, [f"oscillating.{name}" for name in ("omega", "phi", "baseline")]),
        (
            {"mlp": "bio", "bio_event": "hard"},
            [*(f"oscillating.{name}" for name in ("omega", "phi", "baseline")), "sparse_gate.threshold"],
        ),
        ({"mlp": "file.py:Curved", "neuron": Curved}, [*(f"neuron.a_{i}" for i in (1, 2, 3)), "neuron.mean"]),
    ],
)
def test_everything_but_the_two_matrices_counts_as_learned(changes, names):
    assert list(learned_parameters(mlp_of(**changes))) == names


def test_parameters_are_shown_as_the_numbers_of_their_equation():
    learned = learned_parameters(mlp_of(mlp="xielu"))
    assert learned["neuron.alpha_p"] == pytest.approx(0.8) and learned["neuron.alpha_n"] == pytest.approx(0.8)
    assert learned_parameters(mlp_of(mlp="dendritic", dendritic_beta_init=3.0))["beta"] == pytest.approx(3.0)


def test_the_historic_gates_matrices_are_left_out():
    names = learned_parameters(mlp_of(mlp="bio", bio_gate="dense"))
    assert not any(name.endswith(("weight", "bias")) for name in names) and "sparse_gate.activation.omega" in names
