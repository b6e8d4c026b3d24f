"""The study's ablations are the oscillation with one piece taken away, drawn from the same numbers."""

import torch

from model_bio import OscillatingNeuron
from wiggle import custom_neuron


def ablation(name):
    torch.manual_seed(0)
    return custom_neuron.load_neuron(f"studies/ablations.py:{name}")(6)


def test_ablations_take_one_piece_away(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    x, full = 2 * torch.randn(40, 6, generator=torch.Generator().manual_seed(1)), ablation("Full")
    own = OscillatingNeuron(6)
    with torch.no_grad():
        full.baseline.copy_(torch.linspace(-1, 1, 6))
    own.load_state_dict(full.state_dict())
    torch.testing.assert_close(full(x), own(x), atol=1e-5, rtol=1e-5)
    w, p, s = full.omega, full.phi, torch.sin
    expected = {
        "OmegaOne": s(x + p) * x.tanh(),
        "PhiZero": s(w * x) * x.tanh(),
        "Frozen": s(w * x + p) * x.tanh(),
        "NoBaseline": s(w * x + p) * x.tanh(),
        "NoTanh": s(w * x + p),
        "NoSine": (w * x + p) * x.tanh(),
    }
    learned = {"OmegaOne": "phi baseline", "PhiZero": "omega baseline", "Frozen": "baseline", "NoBaseline": "omega phi"}
    for name, y in expected.items():
        neuron = ablation(name)
        torch.testing.assert_close(neuron(x), y, atol=1e-6, rtol=1e-5)  # the same draws of ω and φ
        names = {n for n, _ in neuron.named_parameters()}
        assert names == set(learned.get(name, "omega phi baseline").split()), name
        assert not neuron.baseline.any()


def test_the_same_arm_again_differs_in_its_draw_alone(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    torch.manual_seed(0)
    again = custom_neuron.load_neuron("studies/another_draw.py:FullAgain")(600)
    torch.manual_seed(0)
    full = custom_neuron.load_neuron("studies/ablations.py:Full")(600)
    for name, mean in (("omega", 1.0), ("phi", 0.0)):
        ours, theirs = getattr(again, name), getattr(full, name)
        assert not torch.equal(ours, theirs) and torch.corrcoef(torch.stack([ours, theirs]))[0, 1].abs() < 0.15
        assert abs(ours.mean() - mean) < 0.02 and abs(ours.std() - 0.1) < 0.02
    again.load_state_dict(full.state_dict())
    x = torch.randn(5, 600, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again(x), full(x))
