"""A neuron of the user's own: what is accepted, what a checkpoint knows of it, and that no checkpoint runs code."""

import hashlib

import pytest
import torch

import sample_bio
from model_bio import GPT, GPTConfig, OscillatingNeuron
from train import train
from wiggle import checkpoint, custom_neuron
from wiggle.errors import UserError

WAVE = """
from pathlib import Path
import torch
from torch import nn

(Path(__file__).parent / "ran").touch()

class Wave(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(features))

    def forward(self, x):
        return x + self.scale * torch.sin(x) ** 2

class Other(Wave):
    pass

class Shrinks(Wave):
    def forward(self, x):
        return x[..., :7]

class Mixes(Wave):
    def forward(self, x):
        return x.cumsum(-2)

class LooksAhead(Wave):
    def forward(self, x):
        return x + x.flip(-2)

class Draws(Wave):
    def forward(self, x):
        return x + torch.rand_like(x)

class Fails(Wave):
    def forward(self, x):
        raise RuntimeError("of itself")

function = torch.sin
"""


@pytest.fixture
def wave(tmp_path):
    """The path of a file of neurons, in a folder whose name holds a colon."""
    path = tmp_path / "my: neurons" / "mine.py"
    path.parent.mkdir()
    path.write_text(WAVE)
    return path


def test_a_neuron_is_loaded_with_its_hash(wave):
    before = torch.get_rng_state()
    neuron = custom_neuron.load_neuron(f"{wave}:Wave")
    assert torch.equal(before, torch.get_rng_state())
    assert (neuron.name, neuron.sha256) == ("Wave", hashlib.sha256(wave.read_bytes()).hexdigest())
    assert neuron(12)(torch.ones(3, 12)).shape == (3, 12)
    assert custom_neuron.load_neuron("gelu") is None and custom_neuron.load_neuron("dendritic") is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Shrinks", r"must map \(2, 3, 64\) to the same shape, \(..., features\), but gives \(2, 3, 7\)"),
        ("Mixes", "mixes tokens"),
        ("LooksAhead", "mixes tokens"),
        ("Draws", "draws at random"),
        ("Fails", "fails on a tensor of shape .*RuntimeError: of itself"),
        ("Missing", "has no class Missing that is an nn.Module"),
        ("function", "has no class function that is an nn.Module"),
    ],
)
def test_what_is_no_neuron_is_refused_in_a_sentence(wave, name, message):
    with pytest.raises(UserError, match=message):
        custom_neuron.load_neuron(f"{wave}:{name}")


def test_files_that_cannot_be_run_are_refused_in_a_sentence(tmp_path):
    (tmp_path / "bad.py").write_text("class Wave(:\n")
    with pytest.raises(UserError, match=r"bad\.py does not run: SyntaxError"):
        custom_neuron.load_neuron(f"{tmp_path / 'bad.py'}:Wave")
    with pytest.raises(UserError, match=r"cannot read .*none\.py: No such file"):
        custom_neuron.load_neuron(f"{tmp_path / 'none.py'}:Wave")
    with pytest.raises(UserError, match=r"'mine\.txt:Wave' names no neuron: write file\.py:ClassName"):
        custom_neuron.load_neuron("mine.txt:Wave")


def test_own_neurons_start_by_seed_and_name_and_share_the_rest(wave):
    spec = f"{wave}:Wave"
    shape = {"block_size": 8, "vocab_size": 20, "n_layer": 2, "n_head": 1, "n_embd": 8}
    neuron, gelu = custom_neuron.load_neuron(spec), dict(GPT(GPTConfig(**shape), seed=3).named_parameters())
    torch.manual_seed(11)
    own = dict(GPT(GPTConfig(**shape, mlp=spec), neuron, seed=3).named_parameters())
    again = dict(GPT(GPTConfig(**shape, mlp=spec), neuron, seed=3).named_parameters())
    other = dict(GPT(GPTConfig(**shape, mlp=spec), neuron, seed=4).named_parameters())
    assert all(torch.equal(gelu[name], own[name]) for name in gelu)
    assert all(torch.equal(again[name], own[name]) for name in own)
    first, second = (f"transformer.h.{i}.mlp.neuron.scale" for i in (0, 1))
    assert not torch.equal(own[first], own[second]) and not torch.equal(own[first], other[first])


def test_a_checkpoint_names_its_neuron_and_never_runs_it(wave, tiny, capsys):
    spec = f"{wave}:Wave"
    result = train(tiny(mlp=spec, max_blowup=None), custom_neuron.load_neuron(spec))
    content = checkpoint.read(checkpoint.find(result.out_dir))
    assert content["model_args"]["mlp"] == spec
    assert content["neuron_sha256"] == hashlib.sha256(wave.read_bytes()).hexdigest()

    (wave.parent / "ran").unlink()
    with pytest.raises(
        UserError, match="has a neuron of your own, which no checkpoint holds: name it, as in --neuron="
    ):
        checkpoint.load_model(result.out_dir)
    with pytest.raises(SystemExit):
        sample_bio.main([f"--out_dir={result.out_dir}"])
    assert not (wave.parent / "ran").exists()

    moved = wave.rename(wave.with_name("moved.py"))
    model, _ = checkpoint.load_model(result.out_dir, neuron=custom_neuron.load_neuron(f"{moved}:Wave"))
    assert model.config.mlp == spec
    sample_bio.main([f"--out_dir={result.out_dir}", f"--neuron={moved}:Wave", "--num_samples=1", "--max_new_tokens=4"])
    with pytest.raises(UserError, match=r"was trained with .*:Wave, not with Other"):
        checkpoint.load_model(result.out_dir, neuron=custom_neuron.load_neuron(f"{moved}:Other"))
    moved.write_text(WAVE + "# edited\n")
    with pytest.raises(UserError, match=r"was trained with .* of SHA-256 \w{12}\.\.\., but the file given has"):
        checkpoint.load_model(result.out_dir, neuron=custom_neuron.load_neuron(f"{moved}:Wave"))


def test_a_resumed_run_needs_the_same_text(wave, tiny):
    spec = f"{wave}:Wave"
    whole = train(tiny(mlp=spec, max_blowup=None, out_dir=str(wave.parent / "whole")), custom_neuron.load_neuron(spec))
    train(tiny(mlp=spec, max_blowup=None, max_iters=3, lr_decay_iters=6), custom_neuron.load_neuron(spec))
    resumed = train(tiny(mlp=spec, max_blowup=None, init_from="resume"), custom_neuron.load_neuron(spec))
    assert resumed.val_loss == whole.val_loss
    wave.write_text(WAVE + "# edited\n")
    with pytest.raises(UserError, match="restore the file as it was"):
        train(tiny(mlp=spec, max_blowup=None, init_from="resume", max_iters=9), custom_neuron.load_neuron(spec))


# --- the study's ablations are such files ---


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
