"""What a run tells, on a terminal that may close and in a file that stays valid JSON."""

import errno
import io
import json
import os
import sys
from pathlib import Path

import pytest

import train as train_module
from tests.test_train import flags
from train import train
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


@pytest.fixture
def closed_pipe(monkeypatch):
    """Standard output is a pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    stream = open(writer, "w", encoding="utf-8")  # noqa: SIM115 - closed below
    monkeypatch.setattr(sys, "stdout", stream)
    yield
    monkeypatch.undo()
    stream.close()  # raises where something is still to be written


def test_a_run_whose_pipe_closes_goes_on_to_its_end(tiny, closed_pipe):
    config = tiny(log_interval=1, final_sample=20)
    train_module.main(flags(config))
    assert len((Path(config.out_dir) / "metrics.jsonl").read_text().splitlines()) == 6 + 2
    assert (Path(config.out_dir) / "best.pt").exists()


@pytest.mark.parametrize("call", [train, lambda config: train_module.main(flags(config))])
def test_a_run_without_any_standard_stream_goes_through(tiny, monkeypatch, call):
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    config = tiny(max_iters=1, final_sample=20)
    call(config)
    assert (Path(config.out_dir) / "best.pt").exists()


@pytest.mark.parametrize("call", [train, lambda config: train_module.main(flags(config))])
@pytest.mark.parametrize(("name", "encoding"), [("é", "ascii"), ("ω", "cp1252"), ("\udcff", "utf-8")])
def test_a_run_prints_on_a_console_that_lacks_a_letter(tiny, tmp_path, monkeypatch, call, name, encoding):
    console = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", console)
    call(tiny(max_iters=1, out_dir=str(tmp_path / name), final_sample=20))
    console.flush()
    escaped = name.encode(encoding, "backslashreplace")
    assert str(tmp_path).encode() + b"/" + escaped + b"/best.pt" in console.buffer.getvalue()
