"""What analyze_bio.py measures, against numbers found another way; and what it refuses, and leaves alone."""

import hashlib
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import analyze_bio
from model_bio import GPT, BioMLP, DendriticMLP, GPTConfig, model_args
from tests.conftest import TINY
from train import TrainConfig, train
from wiggle import checkpoint, custom_neuron
from wiggle.dataset import Dataset
from wiggle.telemetry import event_rates

KINDS = {
    "feature": {"mlp": "bio"},
    "dense": {"mlp": "bio", "bio_gate": "dense"},
    "none": {"mlp": "bio", "bio_gate": "none"},
    "dendritic": {"mlp": "dendritic", "dendritic_beta": "channel"},
    "gelu": {"mlp": "gelu"},
}
WAVE = """
import torch
from torch import nn
from model_bio import OscillatingNeuron

class Enveloped(OscillatingNeuron):
    def forward(self, x):
        return torch.sin(self.omega * x + self.phi) * torch.sigmoid(x)

class Plain(nn.Module):
    def __init__(self, features):
        super().__init__()

    def forward(self, x):
        return x.relu()
"""


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory):
    """runs[kind]: the folder of a run of a few steps."""
    folder = tmp_path_factory.mktemp("runs")
    same = TINY | {"data_dir": str(corpus), "max_blowup": None, "log_interval": 1}
    return {
        kind: train(TrainConfig(**same | {"out_dir": str(folder / kind)} | changes)).out_dir
        for kind, changes in KINDS.items()
    }


@pytest.fixture
def analyse(corpus, tmp_path, monkeypatch):
    """analyse(path, key=value, ...) -> analysis.json; without the picture, unless draw=True."""

    def run(path, draw=False, **flags):
        with monkeypatch.context() as patched:
            if not draw:
                patched.setattr(analyze_bio, "page", lambda file, *rest: file.write(b"no picture"))
            flags = {"out_dir": path, "to": tmp_path / "to", "data_dir": corpus, "device": "cpu"} | flags
            analyze_bio.main([f"--{key}={value}" for key, value in flags.items()])
        return json.loads(Path(flags["to"], "analysis.json").read_text())

    return run


def text(corpus, model, tokens):
    """The windows that are analysed."""
    data = Dataset(corpus / "tiny", model.config.block_size, seed=0)
    data.check_ids(model.config.vocab_size)
    return data.windows("val", data.fixed_windows("val", tokens // data.block_size))[0]


def mlp_inputs(model, idx):
    """What each MLP is given, (N, C), found from what its norm gives."""
    given = []
    for block in model.transformer.h:
        block.ln_2.register_forward_hook(lambda module, args, out: given.append(out.flatten(0, 1)))
    with torch.no_grad():
        model.hidden(idx)
    return given


def rewritten(run, path, change=lambda state: None, **entries):
    """A copy of a run's checkpoint whose weights went through `change`, with other entries."""
    content = checkpoint.read(Path(run, "best.pt"))
    change(content["model"])
    checkpoint.save(path, content | entries)
    return path


def mutual_information(winners, labels):
    """I(winner; label) in bits, from the definition."""
    n, both = len(winners), Counter(zip(winners, labels, strict=True))
    one, other = Counter(winners), Counter(labels)
    return sum(c / n * math.log2(c * n / (one[w] * other[label])) for (w, label), c in both.items())


@pytest.mark.parametrize("kind", ["feature", "none", "dendritic"])
def test_a_run_gives_a_page_and_figures_and_stays_as_it_is(runs, analyse, capsys, kind):
    before = {path: hashlib.sha256(path.read_bytes()).digest() for path in Path(runs[kind]).iterdir()}
    figures = analyse(runs[kind], draw=True, to=runs[kind])
    page = Path(runs[kind], "analysis.png")
    assert page.read_bytes().startswith(b"\x89PNG\r\n\x1a\n") and page.stat().st_size > 30_000
    now = {path: hashlib.sha256(path.read_bytes()).digest() for path in Path(runs[kind]).iterdir()}
    assert before.items() <= now.items() and len(now) == len(before) + 2
    assert (figures["step"], figures["before"], len(figures["layers"])) == (6, "untrained, seed 1337", 2)
    printed = capsys.readouterr().out
    assert all(line in printed for line in figures["findings"]) and "note" not in printed
    for path in (page, page.with_suffix(".json")):
        path.unlink()


@pytest.mark.parametrize("kind", ["feature", "dense"])
def test_parameters_and_phases_are_those_of_the_networks(runs, analyse, corpus, kind):
    figures = analyse(runs[kind], tokens=320)
    trained, _ = checkpoint.load_model(runs[kind])
    untrained = GPT(trained.config, seed=1337).eval()
    idx = text(corpus, trained, 320)
    assert figures["tokens"] == idx.numel() == 320
    for name, model in (("before", untrained), ("now", trained)):
        rates = event_rates(model, idx)
        for layer, (mlp, x) in enumerate(
            zip([b.mlp for b in model.transformer.h], mlp_inputs(model, idx), strict=True)
        ):
            state, gate = figures["layers"][layer][name], mlp.sparse_gate
            h = mlp.c_fc(x).detach()
            u = torch.sin(mlp.oscillating.omega * h + mlp.oscillating.phi) * torch.tanh(h) + mlp.oscillating.baseline
            voltage = torch.sigmoid(gate.gain * u + gate.offset if kind == "feature" else gate.gate(u))
            z = u * torch.sigmoid(5 * (voltage - gate.threshold))
            z = gate.transform(z) if kind == "dense" else z
            both = {"oscillating": (mlp.oscillating, h), "sparse_gate.activation": (gate.activation, z.detach())}
            for bank, (neuron, inputs) in both.items():
                found, phase = state["neurons"][bank], (neuron.omega * inputs + neuron.phi).detach().abs()
                assert found["omega"]["mean"] == pytest.approx(neuron.omega.mean().item(), rel=1e-4)
                assert found["phi"]["sd"] == pytest.approx(neuron.phi.std(correction=0).item(), rel=1e-4)
                assert found["abs_x"]["q50"] == pytest.approx(np.median(inputs.abs()), rel=1e-3)
                assert found["abs_phase"]["q95"] == pytest.approx(np.quantile(phase, 0.95), rel=1e-3)
                share = (phase > math.pi / 2).float().mean().item()
                assert found["beyond_maximum"]["mean"] == pytest.approx(share, abs=1e-6)
            assert state["event_rate"]["mean"] == pytest.approx(rates[layer].item(), abs=1e-4)
    old, new = (model.transformer.h[1].mlp.oscillating.omega.detach() for model in (untrained, trained))
    moved = figures["layers"][1]["now"]["neurons"]["oscillating"]["omega_moved"]
    assert moved["mean_abs"] == pytest.approx((new - old).abs().mean().item(), rel=1e-4) and moved["mean_abs"] > 0
    assert moved["correlation"] == pytest.approx(np.corrcoef(old, new)[0, 1], rel=1e-4)


def test_linearised_neurons_and_waves_are_counted(runs, analyse, tmp_path):
    def change(state):
        for layer in range(2):
            mlp = f"transformer.h.{layer}.mlp."
            state[mlp + "c_fc.weight"].zero_()  # so that x = 0, and the phase is phi alone
            state[mlp + "oscillating.omega"].copy_(torch.tensor([0.05, -0.05, 1.0, 3.0]).repeat(16))
            state[mlp + "oscillating.phi"].copy_(torch.tensor([-2.0, 1.5, 0.0, 0.0]).repeat(16))

    figures = analyse(rewritten(runs["none"], tmp_path / "set.pt", change))
    for layer in figures["layers"]:
        bank = layer["now"]["neurons"]["oscillating"]
        assert bank["linearised"] == 0.5 and layer["before"]["neurons"]["oscillating"]["linearised"] == 0
        assert bank["beyond_maximum"]["mean"] == 0.25 and bank["beyond_maximum"]["q95"] == 1
        assert "event_rate" not in layer["now"]
    assert "oscillating: 25.0 % of phases past pi/2 (before 0.0)" in figures["findings"][0]


def test_events_are_told_by_token():
    mlp = BioMLP(GPTConfig(n_layer=1, n_head=1, n_embd=4, mlp="bio", bias=False))
    weight = mlp.c_fc.weight.data.zero_()  # (16, 4): x = 0 does not fire, x = 1.5 does
    for token, firing in enumerate((4, 12, 8, 16)):
        weight[:firing, token] = 1.5
    token = torch.tensor([0] * 30 + [1] * 25 + [2] * 20 + [3] * 19)  # the last one is too rare to be named
    with torch.no_grad():
        state = analyze_bio.waves(mlp, torch.eye(4)[token], list("abcd"), {"token": token})
    assert state["events"] == [
        {"token": "b", "count": 25, "rate": 0.75},
        {"token": "c", "count": 20, "rate": 0.5},
        {"token": "a", "count": 30, "rate": 0.25},
    ]
    assert state["event_rate"].tolist() == [0.25] * 30 + [0.75] * 25 + [0.5] * 20 + [1.0] * 19


def test_a_winner_that_the_token_decides_tells_its_whole_entropy():
    mlp = DendriticMLP(GPTConfig(n_layer=1, n_head=1, n_embd=4, mlp="dendritic", bias=False))
    weight = mlp.c_fc.weight.data.zero_().view(2, mlp.hidden, 4)  # (K, F, C); a tie goes to the first branch
    weight[0, 0, :1] = weight[1, 0, 1:] = 1  # unit 0: token a pulls one branch, b, c and d the other
    draw = torch.Generator().manual_seed(0)
    token = torch.randint(4, (4000,), generator=draw)
    labels = {"token": token, "class": token // 2, "position": torch.randint(8, (4000,), generator=draw)}
    with torch.no_grad():
        state = analyze_bio.branches(mlp, torch.eye(4)[token], list("abcd"), labels)
        usage, effective = mlp.branch_usage(torch.eye(4)[token])
    p = (token == 0).float().mean().item()
    whole = -p * math.log2(p) - (1 - p) * math.log2(1 - p)
    bits = {what: known["bits"] for what, known in state["information"].items()}
    chance = (
        mlp.hidden * state["information"]["token"]["shuffled"].mean()
    )  # of unit 0: the others' winner never changes
    assert bits["token"][0] == pytest.approx(whole - chance, abs=1e-5) and 0 < chance < 2e-3
    assert state["winner_entropy"][0] == pytest.approx(whole, abs=1e-5)
    assert 0.2 < bits["class"][0] < whole - 0.2 and abs(bits["position"][0]) < 2e-3
    assert np.allclose(bits["token"][1:], 0) and np.allclose(state["winner_entropy"][1:], 0, atol=1e-6)
    assert state["dead"] == pytest.approx((mlp.hidden - 1) / (2 * mlp.hidden))
    assert np.allclose(state["usage"], usage.flatten()) and np.allclose(state["effective_branches"], effective)
    assert state["units"][0]["unit"] == 0
    assert [dict(branch) for branch in state["units"][0]["tokens"]] == [{"a": 1.0}, {"b": 1.0, "c": 1.0, "d": 1.0}]


def test_information_is_that_of_its_definition_and_chance_is_taken_off():
    draw = torch.Generator().manual_seed(1)
    winners, labels = torch.randint(3, (600, 2), generator=draw), torch.randint(5, (600,), generator=draw)
    winners[:, 1] = torch.where(torch.rand(600, generator=draw) < 0.5, labels % 3, winners[:, 1])
    wins = torch.stack([(winners == k).float() for k in range(3)])
    bits, counts = analyze_bio.information(wins, labels)
    for unit in range(2):
        expected = mutual_information(winners[:, unit].tolist(), labels.tolist())
        assert bits[unit].item() == pytest.approx(expected, abs=1e-5)
    assert torch.equal(counts.sum((0, 1)), torch.full((2,), 600.0))
    orders = [labels[torch.randperm(600, generator=draw)] for _ in range(10)]
    chance = torch.stack([analyze_bio.information(wins, order)[0] for order in orders]).mean(0)
    expected = (3 - 1) * (5 - 1) / (2 * 600 * math.log(2))  # the bias of so small a sample (Miller, 1955)
    assert torch.allclose(chance, torch.tensor(expected), rtol=0.3)
    assert abs(bits[0] - chance[0]) < 0.01 and bits[1] - chance[1] > 0.2


def test_a_dendritic_run_is_compared_with_its_start_and_with_the_same_inputs(runs, analyse, corpus):
    figures = analyse(runs["dendritic"], tokens=320)
    trained, _ = checkpoint.load_model(runs["dendritic"])
    untrained, idx = GPT(trained.config, seed=1337).eval(), text(corpus, trained, 320)
    inputs = {"before": mlp_inputs(untrained, idx), "now": mlp_inputs(trained, idx)}
    for layer, found in enumerate(figures["layers"]):
        old, new = (model.transformer.h[layer].mlp for model in (untrained, trained))
        for state, mlp, x in (
            ("before", old, inputs["before"][layer]),
            ("mixed", old, inputs["now"][layer]),
            ("now", new, inputs["now"][layer]),
        ):
            usage, effective = mlp.branch_usage(x)
            assert found[state]["effective_branches"]["mean"] == pytest.approx(effective.mean().item(), rel=1e-4)
            assert found[state]["usage_by_branch"] == pytest.approx(usage.mean(1).tolist(), abs=1e-4)
            assert found[state]["beta"]["mean"] == pytest.approx(mlp.log_beta.exp().mean().item(), rel=1e-4)
            first, second = mlp.c_fc.weight.detach().chunk(2)
            cosine = torch.cosine_similarity(first, second, dim=-1)
            assert found[state]["cosine"]["q50"] == pytest.approx(np.median(cosine), abs=1e-4)
        known = found["now"]["information"]["token"]
        share = known["bits"]["mean"] / found["now"]["winner_entropy"]["mean"]
        assert known["share_of_entropy"] == pytest.approx(share, rel=1e-3)
        assert 0 < known["shuffled"]["mean"] < 0.1 and known["shuffled"]["sd"] < 0.01


def test_before_may_be_a_checkpoint(runs, analyse):
    figures = analyse(runs["none"], before=runs["none"])
    assert figures["before"].endswith("best.pt, step 6")
    for layer in figures["layers"]:
        assert layer["before"]["neurons"]["oscillating"]["omega"] == layer["now"]["neurons"]["oscillating"]["omega"]
        moved = layer["now"]["neurons"]["oscillating"]["omega_moved"]
        assert moved["mean_abs"] == 0 and moved["correlation"] == pytest.approx(1)


def test_beta_is_drawn_from_whatever_part_of_the_metrics_is_whole(runs, analyse, tmp_path):
    drawn = {}

    class Axes:
        def plot(self, steps, betas, label):
            drawn[len(drawn)] = list(steps), np.array(betas).shape

        def __getattr__(self, name):
            return lambda *args, **options: None

    states = {name: [{"beta": np.full(3, beta)}] * 2 for name, beta in (("before", 1.0), ("now", 1.1))}
    for metrics in (Path(runs["dendritic"], "metrics.jsonl").read_text(), '{"step": 1, "be', None):
        if metrics:
            (tmp_path / "metrics.jsonl").write_text(metrics)
        else:
            (tmp_path / "metrics.jsonl").unlink()
        analyze_bio.sharpness(Axes(), states, {"path": tmp_path / "best.pt", "began": 0, "iter_num": 6})
    assert drawn == {0: ([0, 1, 2, 3, 4, 5, 6], (7, 2)), 1: ([0, 6], (2, 2)), 2: ([0, 6], (2, 2))}


def test_a_start_that_cannot_be_drawn_again_is_told(runs, analyse, tmp_path, capsys):
    path = rewritten(runs["none"], tmp_path / "seedless.pt", config={"dataset": "tiny"})
    assert analyse(path)["before"] == "untrained, seed 0"
    assert "note      seed 0 draws an untrained network, but not the one" in capsys.readouterr().out
    assert analyse(runs["none"], seed=7)["before"] == "untrained, seed 7"
    assert "note      seed 7 draws" in capsys.readouterr().out


def test_a_neuron_of_ones_own_is_shown_where_it_oscillates(analyse, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(WAVE)
    path = tmp_path / "mine.pt"
    for name in ("Enveloped", "Plain"):
        mlp = f"{tmp_path / 'mine.py'}:{name}"
        neuron = custom_neuron.load_neuron(mlp)
        model = GPT(GPTConfig(block_size=16, vocab_size=10, n_layer=2, n_head=2, n_embd=16, mlp=mlp), neuron, seed=3)
        content = {"model": model.state_dict(), "model_args": model_args(model.config), "config": {"dataset": "tiny"}}
        checkpoint.save(path, content | {"neuron_sha256": neuron.sha256})
        if name == "Enveloped":
            figures = analyse(path, neuron=mlp, seed=3)
            assert set(figures["layers"][0]["now"]["neurons"]) == {"neuron"} and figures["val_loss"] is None
    with pytest.raises(SystemExit):
        analyse(path, neuron=mlp)
    assert ":Plain has nothing to analyse" in capsys.readouterr().err


def test_what_cannot_be_analysed_is_one_sentence(runs, analyse, corpus, tmp_path, capsys):
    other = rewritten(runs["none"], tmp_path / "other.pt", tokenizer={"kind": "byte", "vocab_size": 256})
    diverged = rewritten(runs["none"], tmp_path / "inf.pt", lambda state: state["lm_head.weight"].div_(0))
    homeless = rewritten(runs["none"], tmp_path / "homeless.pt", config={})
    for path, flags, message in (
        (runs["gelu"], {}, "mlp=gelu has nothing to analyse, but bio and dendritic have"),
        (runs["none"], {"before": runs["feature"]}, "has other shapes (bio, oscillation + feature gate"),
        (runs["none"], {"before": runs["gelu"]}, "mlp=gelu has nothing to analyse"),
        (runs["none"], {"dataset": "nowhere"}, "nowhere/train.bin is missing: python prepare_data.py TEXT --name=nowhere"),
        (other, {}, "tiny has another vocabulary than"),
        (diverged, {}, "holds weights that are not finite: its run diverged"),
        (homeless, {}, "does not say what it was trained on: name it with --dataset"),
        (tmp_path, {}, "holds no checkpoint"),
        (runs["none"], {"tokns": 3}, "unknown key 'tokns'; did you mean 'tokens'?"),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            analyse(path, **flags)
        error = capsys.readouterr().err
        assert stop.value.code == 1 and message in error and error.count("\n") == 1
    assert not (tmp_path / "to").exists()


def test_nothing_is_half_written(runs, analyse, corpus, tmp_path, monkeypatch):
    figures = analyse(runs["none"])

    def fails(file, *rest):
        file.write(b"half")
        raise RuntimeError("no picture")

    with monkeypatch.context() as patched, pytest.raises(RuntimeError):
        patched.setattr(analyze_bio, "page", fails)
        analyze_bio.main([f"--out_dir={runs['none']}", f"--to={tmp_path / 'to'}", f"--data_dir={corpus}"])
    assert json.loads((tmp_path / "to" / "analysis.json").read_text()) == figures
    assert (tmp_path / "to" / "analysis.png").read_bytes() == b"no picture"
    assert len(list((tmp_path / "to").iterdir())) == 2
