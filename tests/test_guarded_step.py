"""Steps whose loss or gradient is not finite are skipped, and a run that cannot go on says so and keeps what it had."""

import inspect
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from model_bio import GPT, GPTConfig
from tests.test_train import flags, losses
from train import train
from wiggle import checkpoint, device
from wiggle.errors import UserError
from wiggle.guarded_step import GuardedOptimizer
from wiggle.optimizers import configure_optimizer

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]


def poison(monkeypatch, micro_batches, factor=math.nan):
    """Spoil the loss of these micro-batches of training, the first being 0."""
    forward, calls = GPT.forward, []

    def spoiled(self, idx, targets=None):
        logits, loss = forward(self, idx, targets)
        if self.training:
            loss = loss * factor if len(calls) in micro_batches else loss
            calls.append(1)
        return logits, loss

    monkeypatch.setattr(GPT, "forward", spoiled)
    return calls


def guarded(kind="adamw", **options):
    model = GPT(GPTConfig(block_size=8, vocab_size=11, n_layer=2, n_head=2, n_embd=8, mlp="bio"), seed=1)
    optimizer = configure_optimizer(model, 0.1, 0.01, (0.9, 0.95), "cpu", kind.removesuffix(" on a card"))
    if kind == "muon on a card":
        optimizer._step_supports_amp_scaling = True
    return model, GuardedOptimizer(model, optimizer, CPU, torch.float32, **options)


def take_step(model, guard, number, factor=1.0):
    x = torch.randint(11, (4, 8), generator=torch.Generator().manual_seed(number))
    loss = model(x, x)[1] * factor
    loss.backward()
    return guard.step(loss.detach(), 1.0)


@pytest.mark.parametrize("kind", ["adamw", "adafactor", "muon", "muon on a card"])
@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_step_that_is_not_finite_leaves_no_trace(kind, factor):
    runs = guarded(kind), guarded(kind)
    for model, guard in runs:
        take_step(model, guard, 0)
    take_step(*runs[0], 1, factor)
    (a, guard), (b, twin) = runs
    for number in (2, 3):
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
        states = guard.optimizer.state_dict()["state"], twin.optimizer.state_dict()["state"]
        assert all(torch.equal(states[0][i][key], value) for i in states[1] for key, value in states[1][i].items())
        take_step(a, guard, number)
        take_step(b, twin, number)
    assert guard.skipped.tolist() == [1, 0] and twin.skipped.tolist() == [0, 0]


def test_a_finite_loss_with_an_overflowing_gradient_is_skipped_too():
    model, guard = guarded()
    before = [p.clone() for p in model.parameters()]
    assert math.isinf(take_step(model, guard, 0, 1e25))  # each gradient is finite, the sum of their squares is not
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_a_run_goes_on_behind_a_step_that_is_not_finite(tiny, monkeypatch, capsys):
    poison(monkeypatch, {5})  # of step 3: two micro-batches a step
    result = train(tiny())
    assert [math.isfinite(loss) for loss in losses(result)] == [True, True, False, True, True, True]
    assert [line["skipped"] for line in result.history if "loss" in line] == [0, 0, 1, 1, 1, 1]
    assert result.steps == 6 and math.isfinite(result.val_loss) and "1 skipped" in capsys.readouterr().out


@pytest.mark.parametrize("log_interval", [1, 4])
def test_a_run_that_stays_not_finite_stops_and_keeps_what_it_had(tiny, monkeypatch, log_interval):
    calls = poison(monkeypatch, range(10, 1000))  # from step 6 on
    config = tiny(max_iters=50, eval_interval=5, max_skipped=3, log_interval=log_interval)
    with pytest.raises(UserError) as error:
        train(config)
    assert len(calls) == 2 * 8
    sentence = str(error.value)
    for part in ("stopped after step 8: since step 6", "loss nan", "largest gradient in transformer.", "ckpt.pt holds"):
        assert part in sentence
    assert "\n" not in sentence
    assert checkpoint.read(Path(config.out_dir) / "ckpt.pt")["iter_num"] == 5
    monkeypatch.undo()
    assert train(tiny(max_iters=9, init_from="resume")).steps == 9


def test_once_the_limit_is_reached_no_step_is_taken_until_somebody_asks():
    model, guard = guarded(limit=2)
    for number in range(2):
        take_step(model, guard, number, math.nan)
    before = [p.clone() for p in model.parameters()]
    take_step(model, guard, 3)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    with pytest.raises(UserError, match="stopped after step 3: since step 1 "):
        guard.raise_if_stuck(3, 1.0, 1.0)


@pytest.mark.parametrize("group", ["transformer.h.0.attn", "transformer.h.1.mlp", "transformer.wte"])
def test_it_names_the_layer_group_with_the_largest_gradient(group):
    model, guard = guarded(limit=1)
    for value in (math.inf, 1e12):
        x = torch.zeros(1, 8, dtype=torch.long)
        model(x, x)[1].backward()
        model.get_submodule(group).get_parameter("weight" if "wte" in group else "c_proj.weight").grad[0, 0] = value
        guard.skipped.zero_()
        guard.step(torch.tensor(math.nan), 1.0)
        with pytest.raises(UserError, match=rf"the largest gradient in {group}: {value:.4g}".replace("+", r"\+")):
            guard.raise_if_stuck(1, math.nan, 1.0)


def test_of_several_that_are_not_finite_it_names_the_one_that_backward_met_first():
    model, guard = guarded(limit=1)
    x = torch.zeros(1, 8, dtype=torch.long)
    model(x, x)[1].backward()
    for layer in model.transformer.h:
        layer.mlp.c_proj.weight.grad[0, 0] = math.nan
    guard.step(torch.tensor(1.0), 1.0)
    with pytest.raises(UserError, match=r"the largest gradient in transformer\.h\.1\.mlp: nan"):
        guard.raise_if_stuck(1, 1.0, math.nan)


class DroppedLayer(nn.Module):
    """Leaves its weights out of the loss now and then, as LayerDrop does (Fan et al., 2020)."""

    def __init__(self, features):
        super().__init__()
        self.mix = nn.Linear(features, features)
        self.never = nn.Parameter(torch.ones(features, features))

    def forward(self, x):
        return torch.relu(x if self.training and torch.rand(()) < 0.5 else self.mix(x))


@pytest.mark.parametrize("optimizer_type", ["adamw", "adafactor", "muon"])
def test_a_parameter_that_gets_no_gradient_in_some_steps_counts_as_zero(tiny, monkeypatch, optimizer_type):
    settings = {"mlp": "own.py:DroppedLayer", "max_blowup": None, "optimizer_type": optimizer_type, "max_iters": 12}
    result = train(tiny(gradient_accumulation_steps=1, **settings), DroppedLayer)
    assert result.steps == 12 and all(math.isfinite(loss) for loss in losses(result))
    assert train(
        tiny(gradient_accumulation_steps=1, **settings | {"max_iters": 15, "init_from": "resume"}), DroppedLayer
    )
    poison(monkeypatch, range(3, 1000))
    with pytest.raises(UserError, match="since step 4 loss or gradient norm was not finite"):
        train(tiny(gradient_accumulation_steps=1, max_skipped=2, **settings), DroppedLayer)


@pytest.mark.slow
def test_processes_wait_for_no_gradient_that_is_missing(tiny, tmp_path):
    source = inspect.getsource(DroppedLayer)
    (tmp_path / "own.py").write_text(f"import torch\nfrom torch import nn\n\n\n{source}")
    config = tiny(mlp=f"{tmp_path / 'own.py'}:DroppedLayer", max_blowup=9.0, max_iters=12)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29514"]
    command += [str(ROOT / "train.py"), *flags(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in Path(config.out_dir, "metrics.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in lines if "loss" in line] == [0] * 12


def test_a_step_is_the_same_whether_a_gradient_is_missing_or_zero():
    (a, guard), (b, twin) = guarded(), guarded()
    for model, step in ((a, guard), (b, twin)):
        take_step(model, step, 0)
        x = torch.zeros(1, 8, dtype=torch.long)
        loss = model(x, x)[1]
        loss.backward()
        missing = model.transformer.h[0].mlp.c_fc.weight
        missing.grad = None if model is a else torch.zeros_like(missing)
        step.step(loss.detach(), 1.0)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_counts_and_moments_survive_a_resume(tiny, monkeypatch):
    poison(monkeypatch, {2})
    train(tiny())
    monkeypatch.undo()
    result = train(tiny(init_from="resume", max_iters=7))
    assert result.history[0]["skipped"] == 1


def test_float16_scales_down_without_stopping_and_resumes_exactly(tiny, monkeypatch):
    monkeypatch.setattr(device, "pick_dtype", lambda name, device: torch.float16)  # refused on the CPU: it is slow
    poison(monkeypatch, range(1000), factor=64.0)  # a loss whose scaled gradients overflow at first
    whole = train(tiny(max_iters=20, max_skipped=2))
    skipped = [line["skipped"] for line in whole.history if "loss" in line]
    assert 2 <= skipped[-1] < 10 and losses(whole)[-1] < losses(whole)[0]
    expected = losses(whole)
    train(tiny(max_iters=20, max_skipped=2, eval_interval=4))
    (Path(whole.out_dir) / "ckpt.pt").unlink()  # goes on from step 16
    again = train(tiny(max_iters=20, max_skipped=2, init_from="resume"))
    assert losses(again) == expected[16:]
    assert checkpoint.read(Path(whole.out_dir) / "ckpt.pt")["scaler"]["scale"] < 2**16
    monkeypatch.undo()
    assert train(tiny(max_iters=21, init_from="resume")).steps == 21  # on a device without float16
    monkeypatch.setattr(device, "pick_dtype", lambda name, device: torch.float16)
    assert train(tiny(max_iters=22, init_from="resume")).steps == 22  # and back
