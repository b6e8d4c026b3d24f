"""Runs whose parameters, gradients and moments are sharded over processes."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import train as train_script
from tests.test_train import ROOT, flags, lines
from train import train
from wiggle import checkpoint
from wiggle.errors import UserError
from wiggle.train_config import TrainConfig

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def under_torchrun(config, processes, *options):
    """Run train.py in so many processes, to its end -> what the first one printed."""
    command = [*TORCHRUN, *(options or ["--standalone"]), f"--nproc_per_node={processes}", str(ROOT / "train.py")]
    done = subprocess.run(
        [*command, *flags(config)], capture_output=True, text=True, timeout=120, env=ENVIRONMENT, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def losses_in(config):
    """The training losses of a run so far, by its metrics.jsonl."""
    return [line["loss"] for line in lines(config.out_dir) if "loss" in line]


@pytest.fixture
def sharded(tiny, tmp_path):
    """sharded(name, key=value, ...) -> a TrainConfig with four micro-batches a step, in a folder of that name."""

    def make(name, **changes):
        common = {"gradient_accumulation_steps": 4, "max_iters": 9, "parallel": "fsdp", "mlp": "bio"}
        return tiny(**common | {"out_dir": str(tmp_path / name)} | changes)

    return make


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True, "mlp": "dendritic", "grad_clip": 0.1}])
def test_shards_give_the_losses_of_one_process(sharded, processes, changes):
    one, many = sharded("one", **changes), sharded("many", **changes)
    train(one)
    under_torchrun(many, processes)
    assert losses_in(many) == pytest.approx(losses_in(one), rel=1e-5)
    whole, gathered = (checkpoint.read(Path(c.out_dir, "ckpt.pt")) for c in (one, many))
    for name, weight in whole["model"].items():
        assert torch.allclose(gathered["model"][name], weight, rtol=1e-3, atol=1e-4), name
    assert gathered["optimizer"]["state"].keys() == whole["optimizer"]["state"].keys()
    assert Path(many.out_dir, "ckpt.pt").stat().st_size < 1.02 * Path(one.out_dir, "ckpt.pt").stat().st_size


@pytest.mark.slow
def test_a_run_of_four_goes_on_with_two_and_then_alone(sharded):
    whole, run = sharded("whole"), sharded("run", max_iters=3, lr_decay_iters=9)
    train(replace(whole, lr_decay_iters=9))
    under_torchrun(run, 4)
    under_torchrun(replace(run, max_iters=6, init_from="resume"), 2)
    train(replace(run, max_iters=9, init_from="resume", parallel="ddp"))
    assert losses_in(run) == pytest.approx(losses_in(whole), rel=1e-5)


@pytest.mark.slow
def test_a_run_of_one_goes_on_in_shards_and_then_by_ddp(sharded):
    whole, run = sharded("whole"), sharded("run", max_iters=3, lr_decay_iters=9)
    train(replace(whole, lr_decay_iters=9))
    train(run)
    under_torchrun(replace(run, max_iters=6, init_from="resume"), 2)
    under_torchrun(replace(run, max_iters=9, init_from="resume", parallel="ddp"), 2)
    assert losses_in(run) == pytest.approx(losses_in(whole), rel=1e-5)


@pytest.mark.slow
def test_two_nodes_on_loopback_give_the_losses_of_one_process(sharded):
    one, many = sharded("one"), sharded("many")
    train(one)
    meeting = ["--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d", "--rdzv_endpoint=127.0.0.1:29517"]
    command = [*TORCHRUN, *meeting, "--rdzv_id=tiny", "--local_addr=127.0.0.1", str(ROOT / "train.py"), *flags(many)]
    nodes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
        for _ in range(2)
    ]
    ends = [node.communicate(timeout=120) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], ends
    assert losses_in(many) == pytest.approx(losses_in(one), rel=1e-5)
    assert sorted("val " in out for out, _ in ends) == [False, True]  # one process prints


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds torchrun's workers through /proc")
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others_with_what_to_resume_from(sharded, victim):
    config = sharded("run", max_iters=1_000_000, eval_interval=5)
    command = [*TORCHRUN, "--standalone", "--nproc_per_node=2", str(ROOT / "train.py"), *flags(config)]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    while not Path(config.out_dir, "ckpt.pt").exists() and run.poll() is None:
        time.sleep(0.1)
    workers = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    start = time.perf_counter()
    os.kill(int(workers[victim]), signal.SIGKILL)
    errors = run.communicate(timeout=60)[1]
    print(f"all ended {time.perf_counter() - start:.1f} s after process {victim} was killed")
    said = [line for line in errors.splitlines() if line.startswith("error: ")]
    print(said)
    assert len(said) == 1 and f"--init_from=resume goes on from {config.out_dir}/ckpt.pt" in said[0]
    assert f'{ROOT / "train.py"}", line' not in errors  # torchrun's own traceback is all there is


@pytest.mark.slow
def test_an_alarm_of_the_first_process_leaves_no_riddle_to_the_others(sharded):
    config = sharded("run", max_blowup=0.5)
    command = [*TORCHRUN, "--standalone", "--nproc_per_node=2", str(ROOT / "train.py"), *flags(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=ENVIRONMENT, check=False)
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode != 0 and any("max_blowup" in line for line in said)
    assert all(re.search(r"max_blowup|what that one printed says why", line) for line in said)


def test_a_card_without_bfloat16_refuses_sharding_until_another_dtype_is_given(tiny, monkeypatch):
    half = train_script.pick_machine("cpu", "float32", False)._replace(dtype=torch.float16)
    monkeypatch.setattr(train_script, "pick_machine", lambda *settings: half)
    with pytest.raises(UserError, match="takes no float16: give --dtype=float32"):
        train(tiny(parallel="fsdp", dtype="auto"))


@pytest.mark.parametrize("changes", [{"optimizer_type": "muon"}, {"optimizer_type": "adafactor"}, {"dtype": "float16"}])
def test_what_needs_a_whole_model_is_refused(changes):
    with pytest.raises(ValueError, match="parallel"):
        TrainConfig(parallel="fsdp", **changes)
