"""Killed at any moment and resumed = never killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import TINY
from wiggle import checkpoint

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="its processes are forked")]
RUN = TINY | {"max_iters": 200, "eval_interval": 5, "dropout": 0.1, "learning_rate": 1e-3}


def flags(corpus, **changes):
    return [f"--{key}={value}" for key, value in (RUN | {"data_dir": corpus} | changes).items()]


def crash(what, world, out_dir, corpus, **changes):
    """Run tests/crash.py -> what it counted."""
    command = [sys.executable, str(ROOT / "tests" / "crash.py"), what, str(world), "1", str(out_dir)]
    done = subprocess.run([*command, *flags(corpus, **changes)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def metrics(out_dir):
    """Lines of metrics.jsonl without what a clock or the machine had a part in."""
    kept = {
        "step",
        "tokens",
        "lr",
        "loss",
        "grad_norm",
        "skipped",
        "event_rate",
        "val_loss",
        "val_stderr",
        "train_loss",
    }
    lines = [json.loads(line) for line in (out_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key in kept} for line in lines]


def assert_same(out_dir, reference):
    """The two runs ended with the same weights, moments, metrics and files."""
    assert metrics(out_dir) == metrics(reference)
    # killed between its first best.pt and its first ckpt.pt, a run starts anew and moves that best.pt to earlier-1
    files = [{p.name for p in path.iterdir() if p.name != "earlier-1"} for path in (out_dir, reference)]
    assert files[0] == files[1]
    for name in ("ckpt.pt", "best.pt"):
        a, b = checkpoint.read(out_dir / name), checkpoint.read(reference / name)
        assert a["iter_num"] == b["iter_num"] and a["best_val_loss"] == b["best_val_loss"]
        assert all(torch.equal(a["model"][key], tensor) for key, tensor in b["model"].items())
    moments = [checkpoint.read(path / "ckpt.pt")["optimizer"]["state"] for path in (out_dir, reference)]
    assert all(
        torch.equal(moments[0][i][key], value) for i, state in moments[1].items() for key, value in state.items()
    )


@pytest.mark.parametrize(("world", "mlp"), [(1, "bio"), (2, "gelu")])
def test_killed_and_resumed_is_never_killed(tmp_path, corpus, world, mlp):
    assert crash("none", world, tmp_path / "whole", corpus, mlp=mlp) == {
        "lives": 1, "kills": 0, "kills_inside_a_save": 0
    }  # fmt: skip
    for what in ("KILL", "TERM"):
        counted = crash(what, world, tmp_path / what, corpus, mlp=mlp)
        print(f"SIG{what}, {world} process(es): {counted}")
        assert counted["kills"] >= (20 if what == "KILL" else 15)
        assert what == "TERM" or counted["kills_inside_a_save"] >= 5
        assert_same(tmp_path / what, tmp_path / "whole")


class Torchrun:
    """A life of a run under torchrun, `steps` steps of it seen."""

    def __init__(self, argv, log, steps):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        with open(log, "wb") as output:
            self.process = subprocess.Popen([*command, str(ROOT / "train.py"), *argv], stdout=output, stderr=output)
        while log.read_bytes().count(b"loss") < steps and self.process.poll() is None:
            time.sleep(0.002)

    def workers(self):
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def kill(self, how):
        if how == "a power cut":
            for pid in [self.process.pid, *self.workers()]:
                os.kill(pid, signal.SIGKILL)
        elif how == "one process":
            os.kill(random.Random(1).choice(self.workers()), signal.SIGKILL)
        else:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds torchrun's workers through /proc")
def test_killed_under_torchrun(tmp_path, corpus):
    argv = flags(corpus, max_iters=60)
    crash("none", 2, tmp_path / "whole", corpus, max_iters=60)
    out_dir = tmp_path / "killed"
    for number, how in enumerate(("SIGTERM", "a power cut", "SIGTERM", "one process", None)):
        resume = ["--init_from=resume"] if number else []
        log = tmp_path / "log"
        life = Torchrun([*argv, f"--out_dir={out_dir}", *resume], log, 14 if how else 1000)
        if how:
            life.kill(how)
            assert ("stopped   by SIGTERM after step" in log.read_text()) == (how == "SIGTERM")
    assert life.process.returncode == 0, log.read_text()
    assert_same(out_dir, tmp_path / "whole")
