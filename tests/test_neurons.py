"""The oscillating neuron's hard events, and the homeostasis that holds their rate."""

import torch

from kernels.neurons import HardEventGate, OscillatingNeuron


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
    assert torch.equal(gate.fires(h), fires)


def test_homeostasis_holds_the_target_while_the_inputs_grow():
    gate, neuron = made(64, target_rate=0.2, input_std=0.3)
    rates = []
    for step in range(200):
        h = torch.randn(256, 64) * (0.3 + 0.01 * step)
        gate(h, neuron)
        rates.append(gate.fires(h).float().mean(0))
        gate.regulate(gate.events, skipped=False)
    assert (torch.stack(rates[100:]).mean(0) - 0.2).abs().max() < 0.02


def test_thresholds_start_where_the_target_share_of_normal_inputs_fires():
    gate, _ = made(1000, target_rate=0.08, input_std=0.7)
    assert abs(gate.fires(0.7 * torch.randn(1000, 1000)).float().mean() - 0.08) < 0.002


def test_evaluation_and_a_skipped_step_move_no_threshold():
    gate, neuron = made()
    before = gate.threshold.clone()
    gate(torch.randn(20, 6), neuron)
    gate.regulate(gate.events, skipped=torch.tensor(True))
    gate.eval()(torch.randn(20, 6), neuron)
    gate.regulate(gate.events, skipped=False)
    assert torch.equal(gate.threshold, before)
