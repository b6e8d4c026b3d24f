"""Thresholds of hard events in training: what moves them, and what must not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model_bio import GPT, GPTConfig
from tests.test_train import ROOT, flags
from train import train
from wiggle import checkpoint

HARD = {"mlp": "bio", "bio_event": "hard", "bio_target_rate": 0.3, "max_blowup": None}
STILL = {"learning_rate": 1e-30}  # weights that stay where they are, so that the same features fire whatever is tested


def thresholds(out_dir):
    """All thresholds of a run's last checkpoint, (features,)."""
    weights = checkpoint.read(Path(out_dir) / "ckpt.pt")["model"]
    return torch.cat([tensor for name, tensor in weights.items() if name.endswith("sparse_gate.threshold")])


@pytest.fixture
def hard(tiny, tmp_path):
    """hard(name, key=value, ...) -> the thresholds that a run with hard events in a folder of that name ends with."""

    def end_with(name, **changes):
        return thresholds(train(tiny(**HARD | {"out_dir": str(tmp_path / name)} | changes)).out_dir)

    return end_with


def test_thresholds_move_from_where_they_start(hard, tiny):
    config = tiny(**HARD)
    start = GPT(config.gpt_config(10), seed=config.seed).transformer.h[0].mlp.sparse_gate.threshold
    end = hard("run")
    assert torch.equal(start, start[:1].expand_as(start)) and (end / start[0]).log().abs().max() > 0.01


def test_recomputed_blocks_move_thresholds_alike(hard):
    assert torch.equal(hard("kept"), hard("recomputed", gradient_checkpointing=True))


def test_how_a_step_is_cut_into_micro_batches_moves_thresholds_alike(hard):
    whole = hard("whole", batch_size=8, gradient_accumulation_steps=1, **STILL)
    assert torch.equal(whole, hard("parts", batch_size=2, gradient_accumulation_steps=4, **STILL))


def test_evaluation_moves_no_threshold(hard):
    assert torch.equal(hard("often", eval_interval=1), hard("never", eval_interval=100))


def test_a_skipped_step_moves_no_threshold(hard, monkeypatch):
    norms, told, regulate = iter([torch.inf, 1.0, torch.inf, 1.0, 1.0, 1.0]), [], GPT.regulate_events
    monkeypatch.setattr("wiggle.guarded_step.norms_of", lambda grads: torch.full((len(grads),), next(norms)))
    monkeypatch.setattr(
        GPT, "regulate_events", lambda m, skip, mean: (told.append(skip.item()), regulate(m, skip, mean))
    )
    hard("run")
    assert told == [True, False, True, False, False, False]


@pytest.mark.parametrize("recompute", [False, True])
def test_a_compiled_model_counts_the_same_events(recompute):
    shape = {"block_size": 16, "vocab_size": 31, "n_layer": 1, "n_head": 2, "n_embd": 16}
    config = GPTConfig(**shape, mlp="bio", bio_event="hard", gradient_checkpointing=recompute)
    idx, moved = torch.randint(31, (3, 16), generator=torch.Generator().manual_seed(0)), []
    for compiled in (False, True):
        torch._dynamo.reset()
        model = GPT(config, seed=0).train()
        called = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
        called(idx, idx)[1].backward()
        model.regulate_events()
        moved.append(torch.cat([block.mlp.sparse_gate.threshold for block in model.transformer.h]))
    assert torch.equal(*moved) and len(moved[0].unique()) > 1


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_move_thresholds_as_one_does(hard, tiny, tmp_path, parallel):
    one = hard("one", **STILL)
    two = tiny(**HARD | STILL, out_dir=str(tmp_path / "two"), parallel=parallel)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(ROOT / "train.py"), *flags(two)], check=True, timeout=120, env=environment)
    assert torch.equal(thresholds(two.out_dir), one)
