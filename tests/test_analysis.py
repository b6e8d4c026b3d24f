"""What wiggle/analysis.py measures, against numbers found another way."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from model_bio import GPT, BioMLP, DendriticMLP, GPTConfig, OscillatingNeuron
from wiggle.analysis import Text, information, measure_dendrites, measure_networks, measure_oscillations, summarise
from wiggle.errors import UserError
from wiggle.telemetry import event_rates


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def network(seed, neuron=None, **changes):
    """A tiny GPT, not trained; its larger c_fc lets phases pass π/2."""
    shape = {"block_size": 16, "vocab_size": 10, "n_layer": 2, "n_head": 2, "n_embd": 16, "c_fc_std": 0.5}
    return GPT(GPTConfig(**shape | changes), neuron, seed=seed).eval()


def random_text():
    """20 windows of 16 tokens, each of ten letters among them."""
    idx = torch.randint(10, (20, 16), generator=torch.Generator().manual_seed(0))
    token = idx.flatten()
    labels = {"token": token, "class": token // 5, "position": torch.arange(16).repeat(20) // 2}
    return Text(idx, list("abcdefghij"), labels)


def mlp_inputs(model, idx):
    """What each MLP is given, (N, C), found from what its norm gives."""
    given = []
    hooks = [
        block.ln_2.register_forward_hook(lambda module, args, out: given.append(out.flatten(0, 1)))
        for block in model.transformer.h
    ]
    model.hidden(idx)
    for hook in hooks:
        hook.remove()
    return given


def mutual_information(winners, labels):
    """I(winner; label) in bits, from the definition."""
    n, both = len(winners), Counter(zip(winners, labels, strict=True))
    one, other = Counter(winners), Counter(labels)
    return sum(c / n * math.log2(c * n / (one[w] * other[label])) for (w, label), c in both.items())


@pytest.mark.parametrize("gate", ["feature", "dense"])
def test_parameters_and_phases_are_those_of_the_networks(gate):
    text = random_text()
    networks = {state: network(seed, mlp="bio", bio_gate=gate) for state, seed in (("before", 1), ("now", 2))}
    layers = measure_networks(networks["before"], networks["now"], text)
    for state, model in networks.items():
        rates = event_rates(model, text.idx)
        inputs = mlp_inputs(model, text.idx)
        for i, (layer, x) in enumerate(zip(layers, inputs, strict=True)):
            mlp = model.transformer.h[i].mlp
            gated, found = mlp.sparse_gate, summarise(layer[state].figures)
            h = mlp.c_fc(x)
            u = torch.sin(mlp.oscillating.omega * h + mlp.oscillating.phi) * torch.tanh(h) + mlp.oscillating.baseline
            voltage = torch.sigmoid(gated.gain * u + gated.offset if gate == "feature" else gated.gate(u))
            z = u * torch.sigmoid(5 * (voltage - gated.threshold))
            z = gated.transform(z) if gate == "dense" else z
            both = {"oscillating": (mlp.oscillating, h), "sparse_gate.activation": (gated.activation, z)}
            assert found["neurons"].keys() == both.keys()
            for name, (neuron, given) in both.items():
                bank = found["neurons"][name]
                phase = (neuron.omega * given + neuron.phi).abs()
                assert bank["omega"]["mean"] == pytest.approx(neuron.omega.mean().item(), rel=1e-4)
                assert bank["phi"]["sd"] == pytest.approx(neuron.phi.std(correction=0).item(), rel=1e-4)
                assert bank["abs_x"]["q50"] == pytest.approx(np.median(given.abs()), rel=1e-3)
                assert bank["abs_phase"]["q95"] == pytest.approx(np.quantile(phase, 0.95), rel=1e-3)
                share = (phase > math.pi / 2).float().mean().item()
                assert bank["beyond_maximum"]["mean"] == pytest.approx(share, abs=1e-6)
            assert found["neurons"]["oscillating"]["beyond_maximum"]["mean"] > 0.01
            assert found["event_rate"]["mean"] == pytest.approx(rates[i].item(), abs=1e-4)


def test_movement_is_the_distance_from_the_earlier_parameters_and_their_correlation():
    before, now = (network(seed, mlp="bio", bio_gate="none") for seed in (1, 2))
    layer = measure_networks(before, now, random_text())[1]
    old, new = (model.transformer.h[1].mlp.oscillating.omega for model in (before, now))
    moved = layer["now"].figures["neurons"]["oscillating"]["omega_moved"]
    assert moved["mean_abs"] == pytest.approx((new - old).abs().mean().item(), rel=1e-4) and moved["mean_abs"] > 0
    assert moved["correlation"] == pytest.approx(np.corrcoef(old, new)[0, 1], rel=1e-4)
    assert "omega_moved" not in layer["before"].figures["neurons"]["oscillating"]


def test_linearised_neurons_and_waves_are_counted():
    before, now = (network(1, mlp="bio", bio_gate="none", c_fc_std=0.02) for _ in range(2))
    for block in now.transformer.h:
        block.mlp.c_fc.weight.zero_()  # so that x = 0, and the phase is phi alone
        block.mlp.oscillating.omega.copy_(torch.tensor([0.05, -0.05, 1.0, 3.0]).repeat(16))
        block.mlp.oscillating.phi.copy_(torch.tensor([-2.0, 1.5, 0.0, 0.0]).repeat(16))
    for layer in measure_networks(before, now, random_text()):
        bank = layer["now"].figures["neurons"]["oscillating"]
        assert bank["linearised"] == 0.5 and layer["before"].figures["neurons"]["oscillating"]["linearised"] == 0
        assert bank["beyond_maximum"].tolist() == [1, 0, 0, 0] * 16
        assert "event_rate" not in layer["now"].figures


def test_events_are_told_by_token():
    mlp = BioMLP(GPTConfig(n_layer=1, n_head=1, n_embd=4, mlp="bio", bias=False))
    weight = mlp.c_fc.weight.data.zero_()  # (16, 4): x = 0 does not fire, x = 1.5 does
    for token, firing in enumerate((4, 12, 8, 16)):
        weight[:firing, token] = 1.5
    token = torch.tensor([0] * 30 + [1] * 25 + [2] * 20 + [3] * 19)  # the last one is too rare to be named
    figures = measure_oscillations(mlp, torch.eye(4)[token], Text(token, list("abcd"), {"token": token})).figures
    assert figures["events"] == [
        {"token": "b", "count": 25, "rate": 0.75},
        {"token": "c", "count": 20, "rate": 0.5},
        {"token": "a", "count": 30, "rate": 0.25},
    ]
    assert figures["event_rate"].tolist() == [0.25] * 30 + [0.75] * 25 + [0.5] * 20 + [1.0] * 19


def test_a_winner_that_the_token_decides_tells_its_whole_entropy():
    mlp = DendriticMLP(GPTConfig(n_layer=1, n_head=1, n_embd=4, mlp="dendritic", bias=False))
    weight = mlp.c_fc.weight.data.zero_().view(2, mlp.hidden, 4)  # (K, F, C); a tie goes to the first branch
    weight[0, 0, :1] = weight[1, 0, 1:] = 1  # unit 0: token a pulls one branch, b, c and d the other
    draw = torch.Generator().manual_seed(0)
    token = torch.randint(4, (4000,), generator=draw)
    labels = {"token": token, "class": token // 2, "position": torch.randint(8, (4000,), generator=draw)}
    figures = measure_dendrites(mlp, torch.eye(4)[token], Text(token, list("abcd"), labels)).figures
    usage, effective = mlp.branch_usage(torch.eye(4)[token])
    p = (token == 0).float().mean().item()
    whole = -p * math.log2(p) - (1 - p) * math.log2(1 - p)
    bits = {what: told["bits"] for what, told in figures["information"].items()}
    chance = mlp.hidden * figures["information"]["token"]["shuffled"].mean()  # unit 0's: the others' winners are fixed
    assert bits["token"][0] == pytest.approx(whole - chance, abs=1e-5) and 0 < chance < 2e-3
    assert figures["winner_entropy"][0] == pytest.approx(whole, abs=1e-5)
    assert 0.2 < bits["class"][0] < whole - 0.2 and abs(bits["position"][0]) < 2e-3
    assert np.allclose(bits["token"][1:], 0) and np.allclose(figures["winner_entropy"][1:], 0, atol=1e-6)
    assert figures["dead"] == pytest.approx((mlp.hidden - 1) / (2 * mlp.hidden))
    assert np.allclose(figures["usage"], usage.flatten()) and np.allclose(figures["effective_branches"], effective)
    assert figures["units"][0]["unit"] == 0
    assert [dict(branch) for branch in figures["units"][0]["tokens"]] == [{"a": 1.0}, {"b": 1.0, "c": 1.0, "d": 1.0}]


def test_information_is_that_of_its_definition_and_chance_is_taken_off():
    draw = torch.Generator().manual_seed(1)
    winners, labels = torch.randint(3, (600, 2), generator=draw), torch.randint(5, (600,), generator=draw)
    winners[:, 1] = torch.where(torch.rand(600, generator=draw) < 0.5, labels % 3, winners[:, 1])
    wins = torch.stack([(winners == k).float() for k in range(3)])
    bits, counts = information(wins, labels)
    for unit in range(2):
        expected = mutual_information(winners[:, unit].tolist(), labels.tolist())
        assert bits[unit].item() == pytest.approx(expected, abs=1e-5)
    assert torch.equal(counts.sum((0, 1)), torch.full((2,), 600.0))
    orders = [labels[torch.randperm(600, generator=draw)] for _ in range(10)]
    chance = torch.stack([information(wins, order)[0] for order in orders]).mean(0)
    expected = (3 - 1) * (5 - 1) / (2 * 600 * math.log(2))  # the bias of so small a sample (Miller, 1955)
    assert torch.allclose(chance, torch.tensor(expected), rtol=0.3)
    assert abs(bits[0] - chance[0]) < 0.01 and bits[1] - chance[1] > 0.2


def test_dendritic_networks_are_measured_on_their_own_inputs_and_the_earlier_one_on_those_of_the_other_too():
    text = random_text()
    before, now = (network(seed, mlp="dendritic", dendritic_beta="channel") for seed in (1, 2))
    inputs = {"before": mlp_inputs(before, text.idx), "now": mlp_inputs(now, text.idx)}
    for i, layer in enumerate(measure_networks(before, now, text)):
        assert list(layer) == ["before", "mixed", "now"]
        for state, model, source in (("before", before, "before"), ("mixed", before, "now"), ("now", now, "now")):
            mlp, found = model.transformer.h[i].mlp, summarise(layer[state].figures)
            usage, effective = mlp.branch_usage(inputs[source][i])
            assert found["effective_branches"]["mean"] == pytest.approx(effective.mean().item(), rel=1e-4)
            assert found["usage_by_branch"] == pytest.approx(usage.mean(1).tolist(), abs=1e-4)
            assert found["beta"]["mean"] == pytest.approx(mlp.log_beta.exp().mean().item(), rel=1e-4)
            first, second = mlp.c_fc.weight.chunk(2)
            cosine = torch.cosine_similarity(first, second, dim=-1)
            assert found["cosine"]["q50"] == pytest.approx(np.median(cosine), abs=1e-4)
        told = found["information"]["token"]
        share = told["bits"]["mean"] / found["winner_entropy"]["mean"]
        assert told["share_of_entropy"] == pytest.approx(share, rel=1e-3)
        assert 0 < told["shuffled"]["mean"] < 0.1 and told["shuffled"]["sd"] < 0.01


def test_activations_that_overflow_are_one_sentence():
    model = network(1, mlp="bio")
    model.transformer.h[0].mlp.c_proj.weight.mul_(1e38)
    with pytest.raises(UserError, match="activations are not finite on this text"):
        measure_networks(model, model, random_text())


def test_an_oscillating_neuron_that_is_never_called_is_one_sentence():
    class Unused(torch.nn.Module):
        def __init__(self, features):
            super().__init__()
            self.inner = OscillatingNeuron(features)

        def forward(self, x):
            return x.relu()

    model = network(1, Unused, mlp="file.py:Unused")
    with pytest.raises(UserError, match="OscillatingNeuron in this model is never called"):
        measure_networks(model, model, random_text())
