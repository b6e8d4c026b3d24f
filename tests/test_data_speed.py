"""What bench.py --only=data measures: every way to prepare gives the same tokens, and the measures are plausible."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from wiggle import data_speed
from wiggle.data_speed import Texts, TimedBatches
from wiggle.errors import UserError
from wiggle.tokenizer import gpt2_encoding

pytest.importorskip("datasets")
pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    try:
        gpt2_encoding()
    except UserError as error:
        pytest.skip(str(error))
    return data_speed.write_texts(tmp_path_factory.mktemp("texts"), 1.5)


def test_texts_are_as_large_as_asked(texts):
    assert isinstance(texts, Texts) and 1.5 <= texts.megabytes < 2.5 and list(texts.folder.glob("*.parquet"))


def test_every_way_gives_the_same_tokens(texts, tmp_path):
    data_speed.prepare_here(texts, "tiktoken", tmp_path)
    data_speed.prepare_as_nanogpt(texts, 1, tmp_path)
    data_speed.prepare_by_streaming_loop(texts, tmp_path)
    ours = [np.fromfile(tmp_path / "ours" / f"{split}.bin", np.uint16) for split in ("train", "val")]
    nanogpt, loop = (np.fromfile(tmp_path / f"{name}.bin", np.uint16) for name in ("nanogpt", "loop"))
    assert np.array_equal(nanogpt, loop) and len(loop) == sum(map(len, ours))
    assert np.array_equal(np.sort(loop), np.sort(np.concatenate(ours)))


def test_the_stages_of_a_preparation_take_time_each(texts):
    seconds = data_speed.stage_seconds(texts, "tiktoken")
    assert list(seconds) == ["reading", "hashing", "encoding", "writing"] and min(seconds.values()) > 0


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
def test_memory_of_a_process_and_of_its_family():
    assert 10 < data_speed.proportional_set_size(os.getpid()) <= data_speed.resident_memory()
    assert next(data_speed.family(os.getpid())) == os.getpid()
    assert data_speed.proportional_set_size(2**30) == 0


def test_waiting_for_batches_is_timed():
    class Batches:
        def batch(self, first, count):
            return torch.tensor(first), torch.tensor(count)

    timed = TimedBatches(Batches())
    assert timed.batch(3, 4) == (3, 4) and 0 < timed.seconds < 1
