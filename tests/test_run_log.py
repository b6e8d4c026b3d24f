"""What a run tells, on a terminal that may close and in a file that stays valid JSON."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_train import ROOT, flags
from wiggle.run_log import Metrics, RunLog, print_line


def refuse_constant(name):
    raise AssertionError(f"{name} is no JSON")


def test_metrics_are_valid_json_where_a_run_diverges(tmp_path):
    log = RunLog(Metrics(tmp_path / "metrics.jsonl"))
    log.record({"step": 1, "loss": float("nan"), "grad_norm": float("inf"), "event_rate": [0.5, float("nan")]})
    log.close()
    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse_constant)
    assert line == {"step": 1, "loss": None, "grad_norm": None, "event_rate": [0.5, None]}


def test_a_closed_terminal_ends_nothing(monkeypatch):
    class Closed:
        tries = 0

        def write(self, text):
            self.tries += 1
            raise OSError(errno.EIO, "Input/output error")

    closed = Closed()
    monkeypatch.setattr(sys, "stdout", closed)
    print_line("hello")
    print_line("again")
    assert closed.tries == 2


TRAIN = """
import sys
sys.path.insert(0, {root!r})
from train import TrainConfig, train
train(TrainConfig(**{settings!r}))
"""


@pytest.mark.parametrize("redirection", ["", ">&- 2>&-"])
def test_train_prints_on_any_console_where_no_script_of_ours_calls_it(tiny, tmp_path, redirection):
    config = tiny(max_iters=1, out_dir=str(tmp_path / "ω"), final_sample=5)
    code = TRAIN.format(root=str(ROOT), settings=vars(config))
    argv = ["sh", "-c", f'exec "$0" "$@" {redirection}', sys.executable, "-c", code]
    done = subprocess.run(argv, capture_output=True, timeout=120, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and done.stderr == b"" and (tmp_path / "ω" / "best.pt").exists()


def test_a_run_whose_pipe_closes_goes_on_to_its_end(tiny):
    config = tiny(max_iters=30, log_interval=1, eval_interval=30, final_sample=20)
    command = 'exec "$0" "$@" | head -n 3'
    argv = ["sh", "-c", command, sys.executable, str(ROOT / "train.py"), *flags(config)]
    done = subprocess.run(argv, capture_output=True, cwd=ROOT, timeout=120)
    assert done.stdout.count(b"\n") == 3 and done.stderr == b""
    assert len((Path(config.out_dir) / "metrics.jsonl").read_text().splitlines()) == 31
    assert (Path(config.out_dir) / "best.pt").exists()


def test_a_run_without_standard_output_on_a_narrow_console_goes_through(tiny, tmp_path):
    for name, redirection, encoding in (("é", ">&-", "ascii"), ("ω", "", "cp1252"), ("\udcff", "", "utf-8")):
        config = tiny(max_iters=1, out_dir=str(tmp_path / name))
        argv = ["sh", "-c", f'exec "$0" "$@" {redirection}', sys.executable, str(ROOT / "train.py"), *flags(config)]
        environment = os.environ | {"PYTHONIOENCODING": encoding}
        done = subprocess.run(argv, capture_output=True, cwd=ROOT, timeout=120, env=environment)
        assert done.returncode == 0 and done.stderr == b""
        assert (tmp_path / name / "best.pt").exists()
