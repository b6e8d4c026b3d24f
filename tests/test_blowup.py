"""The blow-up alarm: what it counts and measures, when it stops a run, and what it says."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from model_bio import GPTConfig
from train import train
from wiggle import blowup, custom_neuron
from wiggle.errors import UserError

SHAPE = GPTConfig(block_size=16, vocab_size=31, n_layer=3, n_head=2, n_embd=32, bias=False)
DENSE = replace(SHAPE, mlp="bio", bio_gate="dense")


def test_the_dense_gate_at_gpt2s_shape_is_stopped(tiny):
    config = tiny(mlp="bio", bio_gate="dense", n_layer=4, n_head=6, n_embd=384, vocab_size=50304)
    with pytest.raises(UserError) as error:
        train(config)
    assert all(part in str(error.value) for part in ("1.72x", "mlp.sparse_gate", "--max_blowup=1.8"))
    assert not Path(config.out_dir).exists()
    shape = {"n_layer": 12, "n_head": 12, "n_embd": 768, "vocab_size": 50304}
    with pytest.raises(UserError, match=r"blow-up: 2.8\dx the GELU control's parameters"):
        blowup.alarm(replace(config, **shape).gpt_config(50304), 1.5)


def test_the_alarm_lets_pass_what_it_is_told_to_and_only_warns_at_resume(tiny, capsys):
    small = {"mlp": "bio", "bio_gate": "dense", "n_embd": 32}
    with pytest.raises(UserError, match="blow-up"):
        train(tiny(**small))
    assert train(tiny(max_blowup=9.0, **small)).steps == 6
    capsys.readouterr()
    assert train(tiny(init_from="resume", max_iters=7, **small)).steps == 7
    assert "warning   blow-up" in capsys.readouterr().out


def test_the_part_that_adds_most_is_named_with_its_parameters_in_all_layers():
    hidden = 4 * 32
    gate = 2 * hidden**2 + 3 * hidden  # two matrices and the second oscillation's vectors
    assert blowup.largest_addition(DENSE) == ("mlp.sparse_gate", 3 * gate)
    own, control = blowup.parameters_and_flops(DENSE)["parameters"]
    assert own - control == 3 * (gate + 3 * hidden)  # and the first oscillation's


def test_a_block_that_keeps_more_for_backward_is_measured_to(monkeypatch):
    monkeypatch.setattr("kernels.attention.serves", lambda qkv: False)  # saves less than plain torch, for both alike
    measured = blowup.time_and_saved_bytes(DENSE, repeats=1)
    assert all(milliseconds > 0 for milliseconds in measured["block, ms"])
    own, control = measured["block, saved MiB"]
    assert own > 1.3 * control


def test_saved_bytes_are_each_storage_once_and_no_parameters():
    block, x = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Tanh()), torch.randn(4, 8)
    assert blowup.saved_bytes(block, x, torch.float32) == 3 * x.nbytes  # Linear's input and the outputs of both Tanh


def test_a_neuron_whose_constructor_reads_numbers_is_counted_and_measured(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch import nn\n\nclass Scaled(nn.Module):\n    def __init__(self, features):\n"
        "        super().__init__()\n        self.scale = torch.linspace(1, 2, features).mean().item()\n"
        "        self.a = nn.Parameter(torch.ones(features))\n\n"
        "    def forward(self, x):\n        return self.scale * self.a * x\n"
    )
    neuron = custom_neuron.load_neuron(f"{tmp_path / 'mine.py'}:Scaled")
    config = replace(SHAPE, mlp=neuron.mlp)
    own, control = blowup.parameters_and_flops(config, neuron)["parameters"]
    assert own - control == 3 * 4 * 32
    blowup.alarm(config, 9.0, neuron=neuron)
    assert "Scaled        gelu" in capsys.readouterr().out
