"""The check at a run's start that torch.compile's gradients are those of eager mode. torch.compile itself is played."""

import pytest
import torch
from torch import nn

import train as train_module
from model_bio import GPT
from train import train
from wiggle import compiler, device
from wiggle.compiler import compiled_or_eager, largest_gradient_gap
from wiggle.device import Machine

COMPILED = Machine(torch.device("cpu"), torch.float32, True, "compiled")
SHAPE = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 16, "vocab_size": 31}
ARMS = [{}, {"mlp": "bio"}, {"mlp": "bio", "bio_gate": "none", "position": "rope"}, {"mlp": "dendritic"}]


class Losing(nn.Module):
    """A compiled module whose gradients come out zero before its second norm, as they did under torch 2.11."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x, rope=None):
        return x + self.block.mlp(self.block.ln_2(x).detach())


def raise_error(module):
    raise RuntimeError("cannot be traced\nfor many reasons")


@pytest.fixture
def compiles(monkeypatch):
    """compiles(as_): torch.compile gives as_(module)."""
    monkeypatch.setattr(device, "lacking_to_compile", lambda device: None)
    monkeypatch.setattr(device, "compile_failure", lambda device: None)

    def play(as_):
        monkeypatch.setattr(torch, "compile", as_)

    return play


@pytest.mark.parametrize("changes", ARMS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_that_agree_have_no_gap_and_lost_ones_a_whole_one(tiny, compiles, changes, dtype):
    model = GPT(tiny(**SHAPE | changes, dropout=0.3).gpt_config(31), seed=1)
    compiles(lambda module: module)
    machine = COMPILED._replace(dtype=dtype)
    assert largest_gradient_gap(model, machine)[1] == 0
    compiles(Losing)
    name, gap = largest_gradient_gap(model, machine)
    assert gap == pytest.approx(1, abs=0.01) and name.startswith(("ln_1", "attn"))
    assert all(parameter.grad is None for parameter in model.parameters()), "a copy was differentiated"


def test_rounding_passes_and_nan_does_not(tiny, compiles):
    model = GPT(tiny(**SHAPE).gpt_config(31), seed=1)
    compiles(lambda module: lambda *args: module(*args).bfloat16().float())
    assert 0 <= largest_gradient_gap(model, COMPILED)[1] < compiler.LARGEST_GAP
    compiles(lambda module: lambda *args: module(*args) * float("nan"))
    assert largest_gradient_gap(model, COMPILED)[1] == float("inf")


def test_what_is_found_is_said_in_a_line(tiny, compiles):
    model, said = GPT(tiny(**SHAPE).gpt_config(31), seed=1), []
    compiles(lambda module: module)
    assert compiled_or_eager(model, COMPILED, said.append) == COMPILED
    assert said.pop().startswith("compile   a block's gradients are those of eager mode (0 s)")
    for played, words in (
        (Losing, "gradient of ln_1.weight is off by 100 % of its norm"),
        (raise_error, "cannot be traced)"),
    ):
        compiles(played)
        machine = compiled_or_eager(model, COMPILED, said.append)
        assert not machine.compiled and machine.how.startswith("eager")
        line = said.pop()
        assert line.startswith("warning   torch ") and words in line and line.endswith("in eager mode")


def test_a_run_whose_compiled_gradients_are_lost_trains_eagerly(tiny, compiles, capsys):
    eager = train(tiny(eval_iters=1))
    compiles(Losing)
    found = train(tiny(eval_iters=1, compile=True))
    assert found.first_losses == eager.first_losses and found.val_loss == eager.val_loss
    assert "going on in eager mode" in capsys.readouterr().out


def test_each_run_of_a_process_begins_with_no_compiled_code(tiny, compiles, monkeypatch):
    """Past eight models in one process Dynamo would run the others eagerly, and their times would mean nothing."""
    order = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: order.append("reset"))
    compiles(lambda module: order.append(type(module).__name__) or module)
    for _ in range(2):
        train(tiny(compile=True, max_iters=1, eval_iters=1))
    assert order == ["reset", "Block", "reset", "GPT"] * 2


def test_a_process_goes_without_the_compiler_where_another_one_has_to(tiny, compiles, monkeypatch):
    compiled = []
    compiles(lambda module: compiled.append(type(module).__name__) or module)
    monkeypatch.setattr(train_module, "any_process", lambda flag: True)
    train(tiny(compile=True, max_iters=1, eval_iters=1))
    assert compiled == ["Block"], "for the check alone"


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "dtype"), [(ARMS[1], torch.bfloat16), (ARMS[2], torch.float32)], ids=str)
def test_this_torch_compiles_the_gradients_of_a_block_rightly(tiny, changes, dtype):
    if device.lacking_to_compile(torch.device("cpu")):
        pytest.skip("no C++ compiler")
    model = GPT(tiny(**SHAPE | changes).gpt_config(31), seed=1)
    assert largest_gradient_gap(model, COMPILED._replace(dtype=dtype))[1] < compiler.LARGEST_GAP
