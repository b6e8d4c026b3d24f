"""A neuron of the user's own: what is accepted, what a checkpoint knows of it, and that no checkpoint runs code."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import sample_bio
from model_bio import GPT, GPTConfig
from train import train
from wiggle import checkpoint, custom_neuron
from wiggle.errors import UserError
from wiggle.neuron_identity import identify

NEURONS = Path(__file__).parent / "neurons"
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
    assert (neuron.name, neuron.file_sha256) == ("Wave", hashlib.sha256(wave.read_bytes()).hexdigest())
    assert neuron.sha256 == identify(str(wave), "Wave")[0]
    assert neuron(12)(torch.ones(3, 12)).shape == (3, 12)
    assert custom_neuron.load_neuron("gelu") is None and custom_neuron.load_neuron("dendritic") is None


@pytest.mark.parametrize("name", ["Missing", "function"])
def test_a_name_that_is_no_class_of_modules_is_refused(wave, name):
    with pytest.raises(UserError, match=f"has no class {name} that is an nn.Module"):
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
    content = checkpoint.read(checkpoint.find_file(result.out_dir))
    assert content["model_args"]["mlp"] == spec
    assert content["neuron_sha256"] == identify(str(wave), "Wave")[0]

    (wave.parent / "ran").unlink()
    with pytest.raises(UserError, match=r"has a neuron of your own, .*:Wave, which no checkpoint holds: name it"):
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
    moved.write_text(WAVE + "# a comment\n")
    checkpoint.load_model(result.out_dir, neuron=custom_neuron.load_neuron(f"{moved}:Wave"))
    moved.write_text(WAVE.replace("** 2", "** 3"))
    with pytest.raises(
        UserError, match=r"was trained with .* of SHA-256 \w{12}\.\.\., .* \(changed since: class Wave\)"
    ):
        checkpoint.load_model(result.out_dir, neuron=custom_neuron.load_neuron(f"{moved}:Wave"))


def test_a_resumed_run_needs_the_same_text(wave, tiny):
    spec = f"{wave}:Wave"
    whole = train(tiny(mlp=spec, max_blowup=None, out_dir=str(wave.parent / "whole")), custom_neuron.load_neuron(spec))
    train(tiny(mlp=spec, max_blowup=None, max_iters=3, lr_decay_iters=6), custom_neuron.load_neuron(spec))
    resumed = train(tiny(mlp=spec, max_blowup=None, init_from="resume"), custom_neuron.load_neuron(spec))
    assert resumed.val_loss == whole.val_loss
    wave.write_text(WAVE.replace("** 2", "** 3"))
    with pytest.raises(UserError, match="restore it as it was"):
        train(tiny(mlp=spec, max_blowup=None, init_from="resume", max_iters=9), custom_neuron.load_neuron(spec))


# --- the trial, where a model is built ---


def test_a_neuron_is_refused_before_anything_is_written(tiny):
    config = tiny(mlp=f"{NEURONS}/unfit.py:LooksAheadInTraining")
    with pytest.raises(UserError, match="mixes tokens"):
        train(config, custom_neuron.load_neuron(config.mlp))
    assert not Path(config.out_dir).exists()


def test_a_class_is_tried_once_at_each_width_and_not_before():
    neuron = custom_neuron.load_neuron(f"{NEURONS}/fit.py:WinnersTakeAll")
    shape = GPTConfig(mlp=neuron.mlp, block_size=8, vocab_size=20, n_layer=2, n_head=1, n_embd=32)
    GPT(shape, neuron)
    GPT(replace(shape, n_embd=64), neuron)
    assert {features for features, *_ in neuron.tried} == {128, 256}
    with pytest.raises(UserError, match=r"with 64 features fails in training mode .* out of range"):
        GPT(replace(shape, n_embd=16), neuron)


def test_a_constructor_may_read_numbers_wherever_models_are_only_counted(tiny):
    config = tiny(mlp=f"{NEURONS}/fit.py:ReadsNumbers")
    neuron = custom_neuron.load_neuron(config.mlp)
    with torch.device("meta"):
        model = GPT(config.gpt_config(20), neuron)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert train(config, neuron).steps == 6
    assert checkpoint.load_model(config.out_dir, neuron=neuron)[0].config.mlp == config.mlp


def test_a_neuron_is_tried_on_the_device_and_in_the_precision_of_the_run(tiny):
    config = tiny(mlp=f"{NEURONS}/fit.py:ByNumpy", n_embd=16)
    neuron = custom_neuron.load_neuron(config.mlp)
    assert train(config, neuron).steps == 6
    with pytest.raises(UserError, match=r"fit\.py:ByNumpy fails on cpu in torch.bfloat16: TypeError: Got unsupported"):
        train(replace(config, dtype="bfloat16"), neuron)


def test_a_neuron_that_changes_its_buffers_is_not_recomputed(tiny):
    config = tiny(mlp=f"{NEURONS}/fit.py:Habituates", max_blowup=None)
    neuron = custom_neuron.load_neuron(config.mlp)
    assert train(config, neuron).steps == 6
    with pytest.raises(UserError, match="changes its buffers in training, which gradient_checkpointing=True would do"):
        train(replace(config, gradient_checkpointing=True), neuron)
