"""What wiggle/analysis.py measures of two networks, against numbers found another way."""

import math

import numpy as np
import pytest
import torch

from kernels.activations import ACTIVATIONS
from tests.conftest import branch_usage, random_text, untrained
from wiggle.analysis import measure_networks
from wiggle.errors import UserError
from wiggle.figures import summarise
from wiggle.telemetry import event_rates, nonlinearities


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


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


@pytest.mark.parametrize("gate", ["feature", "dense"])
def test_parameters_and_phases_are_those_of_the_networks(gate):
    text = random_text()
    networks = {state: untrained(seed, mlp="bio", bio_gate=gate) for state, seed in (("before", 1), ("now", 2))}
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
    before, now = (untrained(seed, mlp="bio", bio_gate="none") for seed in (1, 2))
    layer = measure_networks(before, now, random_text())[1]
    old, new = (model.transformer.h[1].mlp.oscillating.omega for model in (before, now))
    moved = layer["now"].figures["neurons"]["oscillating"]["omega_moved"]
    assert moved["mean_abs"] == pytest.approx((new - old).abs().mean().item(), rel=1e-4) and moved["mean_abs"] > 0
    assert moved["correlation"] == pytest.approx(np.corrcoef(old, new)[0, 1], rel=1e-4)
    assert "omega_moved" not in layer["before"].figures["neurons"]["oscillating"]


def test_dendritic_networks_are_measured_on_their_own_inputs_and_the_earlier_one_on_those_of_the_other_too():
    text = random_text()
    before, now = (untrained(seed, mlp="dendritic", dendritic_beta="channel") for seed in (1, 2))
    inputs = {"before": mlp_inputs(before, text.idx), "now": mlp_inputs(now, text.idx)}
    for i, layer in enumerate(measure_networks(before, now, text)):
        assert list(layer) == ["before", "mixed", "now"]
        for state, model, source in (("before", before, "before"), ("mixed", before, "now"), ("now", now, "now")):
            mlp, found = model.transformer.h[i].mlp, summarise(layer[state].figures)
            usage, effective = branch_usage(mlp, inputs[source][i])
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
    model = untrained(1, mlp="bio")
    model.transformer.h[0].mlp.c_proj.weight.mul_(1e38)
    with pytest.raises(UserError, match="activations are not finite on this text"):
        measure_networks(model, model, random_text())


@pytest.mark.parametrize("mlp", [*ACTIVATIONS, "bio", "dendritic"])
def test_every_kind_of_mlp_is_measured_as_a_comparison_reports_it(mlp):
    before, now = untrained(1, mlp=mlp, c_fc_std=0.02), untrained(2, mlp=mlp)
    text = random_text()
    layers = measure_networks(before, now, text)
    for state, model in (("before", before), ("now", now)):
        for layer, reported in zip(layers, nonlinearities(model, text.idx), strict=True):
            found = layer[state].figures
            assert found["preactivation_std"] == pytest.approx(reported.preactivation_std, rel=1e-4)
            assert found["nonlinear_share"] == pytest.approx(reported.share, abs=1e-4)


def test_silence_is_shown_where_there_is_some_and_only_there():
    for changes, silence in (
        ({"mlp": "gelu"}, None),
        ({"mlp": "relu2"}, "zeros"),
        ({"mlp": "bio", "bio_gate": "none"}, None),
        ({"mlp": "bio"}, "gate"),
        ({"mlp": "bio", "bio_event": "hard"}, "gate"),
    ):
        model = untrained(1, **changes)
        for layer in measure_networks(model, model, random_text()):
            assert layer["now"].figures.get("silence") == silence
            assert (layer["now"].events is None) == (silence is None)


class Shifted(torch.nn.Module):
    """A whole MLP with one parameter."""

    stands_for = "mlp"

    def __init__(self, features):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros(features))

    def forward(self, x):
        return x + self.shift


class Bare(torch.nn.Identity):
    stands_for = "mlp"


def test_of_a_whole_mlp_what_it_learned_is_shown_and_without_any_it_is_one_sentence():
    model = untrained(1, Shifted, mlp="file.py:Shifted")
    layer = measure_networks(model, model, random_text())[0]["now"]
    assert list(layer.figures["learned"]) == ["neuron.shift"] and layer.use is None
    bare = untrained(1, Bare, mlp="file.py:Bare")
    with pytest.raises(UserError, match="has nothing to analyse"):
        measure_networks(bare, bare, random_text())
