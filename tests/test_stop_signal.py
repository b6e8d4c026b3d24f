"""Ctrl-C and its kin: what they stop, what is saved, and what stays whole."""

import os
import signal
from pathlib import Path

import pytest

import train as train_module
from tests.test_train import flags
from train import train
from wiggle import checkpoint
from wiggle.stop_signal import StopSignal


def test_a_second_signal_leaves_at_once():
    with pytest.raises(KeyboardInterrupt), StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.name == "SIGTERM" and stop.agreed()
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


def test_a_stop_behind_an_evaluation_that_saved_nothing_saves(tiny, monkeypatch):
    agreed, asked = StopSignal.agreed, []

    def stop_behind_step_6(self):
        asked.append(1)  # before each of two micro-batches a step
        self.name = "SIGINT" if len(asked) == 2 * 6 + 1 else self.name
        return agreed(self)

    monkeypatch.setattr(StopSignal, "agreed", stop_behind_step_6)
    monkeypatch.setattr(train_module, "evaluate", lambda *args: (float(len(asked)), 0.0))  # worse each time
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
