"""A full disk, and other refusals of the system: one sentence, and no file is spoilt."""

import errno
import io
import math
import os
import sys
from pathlib import Path

import pytest

from train import train
from wiggle import checkpoint, files, run_log
from wiggle.errors import UserError


def content_of(out_dir):
    return {path: path.read_bytes() for path in Path(out_dir).iterdir()}


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
