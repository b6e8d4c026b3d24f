"""What ends a run early: numbers that are not finite, signals, a full disk. None of it may lose or spoil anything."""

import errno
import io
import math
import os
import signal
import sys
from pathlib import Path

import pytest
import torch

import train as train_module
from model_bio import GPT, GPTConfig
from tests.test_train import flags, losses
from train import train
from wiggle import checkpoint, device, files, run_log
from wiggle.errors import UserError
from wiggle.guarded_step import GuardedOptimizer
from wiggle.optimizers import configure_optimizer
from wiggle.stop_signal import StopSignal

CPU = torch.device("cpu")


def content_of(out_dir):
    return {path: path.read_bytes() for path in Path(out_dir).iterdir()}


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


# --- numbers that are not finite ---


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
    stopped = {1: 8, 4: 8}[log_interval]
    assert len(calls) == 2 * stopped
    sentence = str(error.value)
    for part in (
        f"stopped after step {stopped}: since step 6",
        "loss nan",
        "largest gradient in transformer.",
        "stands",
    ):
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


# --- signals ---


def test_a_second_signal_leaves_at_once():
    with pytest.raises(KeyboardInterrupt), StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.name == "SIGTERM" and stop.agreed(False)
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as for a script's background job
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.name is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_stop_at_an_evaluation_that_saved_nothing_saves(tiny, monkeypatch):
    agreed = StopSignal.agreed
    seen = []

    def stop_at_6(self, *args):
        seen.append(1)
        self.name = "SIGINT" if len(seen) == 6 else self.name
        return agreed(self, *args)

    monkeypatch.setattr(StopSignal, "agreed", stop_at_6)
    monkeypatch.setattr(train_module, "evaluate", lambda *args: (float(len(seen)), 0.0))  # worse each time
    result = train(tiny(max_iters=9, always_save_checkpoint=False))
    assert result.interrupted == "SIGINT"
    assert checkpoint.read(Path(result.out_dir) / "ckpt.pt")["iter_num"] == 6


@pytest.mark.skipif(os.name == "nt", reason="signals are sent otherwise on Windows")
def test_a_second_ctrl_c_within_a_save_leaves_whole_files(tiny, monkeypatch, capsys):
    config = tiny(max_iters=1000, eval_interval=4)
    write, writes = checkpoint.Hashing.write, []

    def interrupted(self, data):
        writes.append("ckpt" in self.file.name and (Path(config.out_dir) / "ckpt.pt").exists())
        if writes.count(True) == 100:  # in the middle of the second ckpt.pt
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return write(self, data)

    monkeypatch.setattr(checkpoint.Hashing, "write", interrupted)
    with pytest.raises(SystemExit) as stop:
        train_module.main(flags(config))
    assert stop.value.code == 130 and capsys.readouterr().err == "interrupted\n" and writes.count(True) == 100
    monkeypatch.undo()
    names = {path.name for path in Path(config.out_dir).iterdir()}
    assert names == {"ckpt.pt", "best.pt", "metrics.jsonl", "config.json"}
    assert checkpoint.read(Path(config.out_dir) / "ckpt.pt")["iter_num"] == 4
    assert train(tiny(init_from="resume", max_iters=9)).steps == 9


# --- a full disk, and other refusals of the system ---


class FullDisk:
    """Stands in for a file: refuses all writes past a number of bytes, as a full disk does."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)


@pytest.mark.parametrize("name", ["ckpt.pt", "best.pt", "metrics.jsonl"])
@pytest.mark.parametrize("room", [0, 7000])
def test_a_full_disk_stops_the_run_and_spoils_nothing(tiny, monkeypatch, name, room):
    train(tiny())
    before = content_of(tiny().out_dir)
    real = open

    def limited(path, mode):
        return FullDisk(real(path, mode), room if name in str(path) else math.inf)

    for module in (files, run_log):
        monkeypatch.setattr(module, "open", limited, raising=False)
    with pytest.raises(UserError) as error:
        train(tiny(init_from="resume", max_iters=1000))
    assert str(error.value).startswith("cannot write ") and "No space left on device" in str(error.value)
    assert name in str(error.value) and "\n" not in str(error.value)
    monkeypatch.undo()
    after = content_of(tiny().out_dir)
    assert set(after) == set(before)
    assert all(checkpoint.read(path)["iter_num"] >= 6 for path in after if path.name in ("ckpt.pt", "best.pt"))
    assert train(tiny(init_from="resume", max_iters=40)).steps == 40


def test_a_folder_that_cannot_be_made_is_one_sentence(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*: Not a directory"):
        train(tiny(out_dir=str(tmp_path / "file" / "out")))


def test_a_lost_terminal_ends_no_run(tiny, monkeypatch):
    class Lost(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Lost())
    assert train(tiny()).steps == 6


def test_a_bug_while_saving_is_no_full_disk(tmp_path):
    with pytest.raises(Exception, match="pickle"):
        checkpoint.save(tmp_path / "x.pt", {"content": lambda: None})
    assert not list(tmp_path.iterdir())
