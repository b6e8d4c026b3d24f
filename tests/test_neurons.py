"""The oscillating neuron and its gates against their equations, and the homeostasis that holds hard events' rate."""

import math

import pytest
import torch

from kernels.neurons import HardEventGate, OscillatingNeuron, SparseEventGate


def test_oscillating_neuron_is_its_equation():
    neuron = OscillatingNeuron(5)
    x = 3 * torch.randn(7, 5)
    with torch.no_grad():
        neuron.baseline.normal_()
    expected = [
        [
            math.sin(w * v + p) * math.tanh(v) + b
            for v, w, p, b in zip(
                row, *map(torch.Tensor.tolist, (neuron.omega, neuron.phi, neuron.baseline)), strict=True
            )
        ]
        for row in x.tolist()
    ]
    torch.testing.assert_close(neuron(x), torch.tensor(expected), atol=1e-6, rtol=0)


def test_oscillating_neuron_forms_its_phase_in_float32():
    neuron = OscillatingNeuron(64)
    x = (20 * torch.randn(50, 64)).bfloat16()
    error = (neuron(x).float() - neuron(x.float())).abs().max()
    assert neuron(x).dtype == torch.bfloat16
    assert error < 0.005  # the output's own rounding; a phase in bfloat16 is off by ten times that


@pytest.mark.parametrize("dense", [False, True])
def test_gate_is_its_equation(dense):
    gate = SparseEventGate(6, threshold=0.3, dense=dense)
    x = torch.randn(9, 6)
    drive = gate.gate.weight @ x.T + gate.gate.bias[:, None] if dense else (gate.gain * x + gate.offset).T
    voltage = 1 / (1 + torch.exp(-drive.T))
    passed = x / (1 + torch.exp(-5 * (voltage - 0.3)))
    passed = passed @ gate.transform.weight.T + gate.transform.bias if dense else passed
    a = gate.activation
    expected = torch.sin(a.omega * passed + a.phi) * torch.tanh(passed) + a.baseline
    torch.testing.assert_close(gate.pass_on(x), expected, atol=1e-6, rtol=1e-5)


# --- hard events ---


def made(features=6, **options):
    """A gate, and a neuron whose every parameter matters."""
    torch.manual_seed(0)
    neuron = OscillatingNeuron(features)
    neuron.baseline.data.normal_()
    return HardEventGate(features, **options), neuron


def test_a_silent_feature_gives_exactly_its_baseline_and_a_firing_one_the_oscillation():
    gate, neuron = made()
    gate.threshold.copy_(torch.linspace(0.1, 1.0, 6))
    h = torch.randn(50, 6)
    y, fires = gate(h, neuron), h.abs() > gate.threshold
    assert torch.equal(y[~fires], neuron.baseline.expand(50, 6)[~fires])
    torch.testing.assert_close(y[fires], neuron(h)[fires])
    assert torch.equal(gate.fires(h, neuron), fires)


def test_homeostasis_holds_the_target_while_the_inputs_grow():
    gate, neuron = made(64, target_rate=0.2, input_std=0.3)
    rates = []
    for step in range(200):
        h = torch.randn(256, 64) * (0.3 + 0.01 * step)
        gate(h, neuron)
        rates.append(gate.fires(h, neuron).float().mean(0))
        gate.regulate(gate.events, skipped=False)
    assert (torch.stack(rates[100:]).mean(0) - 0.2).abs().max() < 0.02


def test_thresholds_start_where_the_target_share_of_normal_inputs_fires():
    gate, neuron = made(1000, target_rate=0.08, input_std=0.7)
    assert abs(gate.fires(0.7 * torch.randn(1000, 1000), neuron).float().mean() - 0.08) < 0.002


def test_evaluation_and_a_skipped_step_move_no_threshold():
    gate, neuron = made()
    before = gate.threshold.clone()
    gate(torch.randn(20, 6), neuron)
    gate.regulate(gate.events, skipped=torch.tensor(True))
    gate.eval()(torch.randn(20, 6), neuron)
    gate.regulate(gate.events, skipped=False)
    assert torch.equal(gate.threshold, before)


def test_a_target_of_nearly_1_lets_all_but_the_smallest_inputs_through_and_stays_finite():
    gate, neuron = made(target_rate=0.999999)
    for _ in range(100):
        y = gate(h := torch.randn(64, 6, requires_grad=True), neuron)
        (dh,) = torch.autograd.grad(y.sum(), h)
        gate.regulate(gate.events, skipped=False)
    torch.testing.assert_close(y, neuron(h), atol=1e-4, rtol=0)
    assert dh.isfinite().all() and (gate.threshold > 0).all()
