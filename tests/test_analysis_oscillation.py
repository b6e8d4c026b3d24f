"""What wiggle/analysis_oscillation.py measures of oscillating neurons."""

import torch

from model_bio import OscillatingNeuron
from tests.conftest import random_text, untrained
from wiggle.analysis import measure_networks


@torch.no_grad()
def test_linearised_neurons_and_waves_are_counted():
    before, now = (untrained(1, mlp="bio", bio_gate="none", c_fc_std=0.02) for _ in range(2))
    for block in now.transformer.h:
        block.mlp.c_fc.weight.zero_()  # so that x = 0, and the phase is phi alone
        block.mlp.oscillating.omega.copy_(torch.tensor([0.05, -0.05, 1.0, 3.0]).repeat(16))
        block.mlp.oscillating.phi.copy_(torch.tensor([-2.0, 1.5, 0.0, 0.0]).repeat(16))
    for layer in measure_networks(before, now, random_text()):
        bank = layer["now"].figures["neurons"]["oscillating"]
        assert bank["linearised"] == 0.5 and layer["before"].figures["neurons"]["oscillating"]["linearised"] == 0
        assert bank["beyond_maximum"].tolist() == [1, 0, 0, 0] * 16


@torch.no_grad()
def test_an_oscillating_neuron_that_is_never_called_is_not_shown():
    class Unused(torch.nn.Module):
        def __init__(self, features):
            super().__init__()
            self.inner = OscillatingNeuron(features)

        def forward(self, x):
            return x.relu()

    model = untrained(1, Unused, mlp="file.py:Unused")
    for layer in measure_networks(model, model, random_text()):
        assert layer["now"].neurons == {} and "neurons" not in layer["now"].figures
        assert "inner.omega" in " ".join(layer["now"].figures["learned"])


@torch.no_grad()
def test_the_inputs_of_a_neuron_with_hard_events_are_those_of_its_block():
    model = untrained(1, mlp="bio", bio_event="hard")
    layer = measure_networks(model, model, random_text())[0]["now"]
    assert list(layer.neurons) == ["oscillating"]
    assert layer.figures["neurons"]["oscillating"]["abs_x"].mean() > 1
