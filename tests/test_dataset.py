"""Batches: each window once an epoch, in an order that depends on (seed, number) alone."""

import json
import pickle

import numpy as np
import pytest
import torch

from wiggle.dataset import Dataset, permute
from wiggle.errors import UserError
from wiggle.tokenizer import ByteTokenizer


def make(folder, train=1000, val=200, dtype="uint16", identity=None):
    folder.mkdir(exist_ok=True)
    for split, count in (("train", train), ("val", val)):
        (np.arange(count) % 256).astype(dtype).tofile(folder / f"{split}.bin")
    meta = {"tokenizer": identity or ByteTokenizer().identity(), "dtype": dtype}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def opened(folder, block_size=16, seed=1):
    data = Dataset(folder, block_size, seed)
    data.check_ids(256)
    return data


@pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 17, 100, 1000, 4097])
def test_permute_is_a_permutation(n):
    out = permute(np.arange(n), n, key=9)
    assert sorted(out.tolist()) == list(range(n))
    if n >= 100:
        assert not np.array_equal(out, permute(np.arange(n), n, key=10))
        assert abs(np.corrcoef(np.arange(n), out)[0, 1]) < 0.3


def test_permute_needs_no_memory():
    out = permute(np.array([0, 1, 10**12]), 10**13, key=1)
    assert len(set(out.tolist())) == 3 and out.min() >= 0 and out.max() < 10**13


def test_an_epoch_visits_each_window_once_and_the_next_cuts_elsewhere(tmp_path):
    data = opened(make(tmp_path / "d"))
    count = (1000 - 16) // 16
    epochs = [data.train_starts(np.arange(e * count, (e + 1) * count)) for e in range(4)]
    for starts in epochs:
        assert len(set(starts.tolist())) == count
        assert len({s % 16 for s in starts.tolist()}) == 1
        assert starts.min() >= 0 and starts.max() + 17 <= 1000
    assert len({int(e[0]) % 16 for e in epochs}) > 1
    assert not np.array_equal(np.argsort(epochs[0]), np.argsort(epochs[1]))


def test_batches_have_no_state_and_slice_as_you_like(tmp_path):
    data = opened(make(tmp_path / "d"))
    x, y = data.batch(60, 12)  # crosses an epoch's end
    parts = [data.batch(60 + i, 3) for i in (9, 0, 6, 3)]
    assert torch.equal(x, torch.cat([parts[i][0] for i in (1, 3, 2, 0)]))
    assert torch.equal(x[:, 1:], y[:, :-1])
    assert torch.equal((x + 1) % 256, y)  # this corpus counts up
    assert not torch.equal(x, opened(tmp_path / "d", seed=2).batch(60, 12)[0])


def test_evaluation_windows_are_fixed_and_do_not_overlap(tmp_path):
    data = opened(make(tmp_path / "d"))
    everything = data.fixed_windows("val", 0)
    assert everything.tolist() == list(range(0, 192, 16))
    some = data.fixed_windows("val", 5)
    assert len(some) == 5 and set(some.tolist()) <= set(everything.tolist()) and some.max() > 100
    assert data.fixed_windows("val", 999).tolist() == everything.tolist()


def test_uint32(tmp_path):
    folder = make(tmp_path / "d", dtype="uint32")
    (np.arange(1000) + 70_000).astype("uint32").tofile(folder / "train.bin")
    data = Dataset(folder, 16, 1)
    data.check_ids(80_000)
    assert data.batch(0, 4)[0].min() >= 70_000


@pytest.mark.parametrize(
    ("breakage", "message"),
    [
        (lambda f: (f / "val.bin").unlink(), "val.bin is missing"),
        (lambda f: (f / "train.bin").write_bytes(bytes(32)), "train.bin holds 16 tokens, too few for one window"),
        (lambda f: (f / "train.bin").write_bytes(b""), "train.bin holds 0 tokens"),
        (lambda f: (f / "meta.json").write_text("{"), "meta.json is damaged"),
        (lambda f: (f / "meta.json").write_text("[]"), "meta.json is damaged"),
        (
            lambda f: (f / "meta.json").write_text('{"tokenizer": 3, "dtype": "uint16"}'),
            "tokenizer's description is damaged",
        ),
        (
            lambda f: np.full(500, 300, "uint16").tofile(f / "val.bin"),
            "val.bin holds token id 300, past the vocabulary of 256",
        ),
    ],
)
def test_broken_data_is_one_sentence(tmp_path, breakage, message):
    breakage(make(tmp_path / "d"))
    with pytest.raises(UserError, match=message):
        opened(tmp_path / "d")


def test_the_shortest_data_that_serves(tmp_path):
    data = opened(make(tmp_path / "d", train=17, val=17))
    x, y = data.batch(0, 3)
    assert x.tolist() == [list(range(16))] * 3 and y[0, -1] == 16


def test_without_meta_ids_are_gpt2s(tmp_path):
    folder = make(tmp_path / "d")
    (folder / "meta.json").unlink()
    data = Dataset(folder, 16, 1)
    assert data.tokenizer["kind"] == "gpt2" and data.model_vocab == 50304
    assert data.identity != Dataset(make(tmp_path / "e", train=999), 16, 1).identity


def test_nanogpts_meta_pkl_is_read(tmp_path):
    folder = make(tmp_path / "d")
    (folder / "meta.json").unlink()
    characters = "abc\n"
    meta = {"vocab_size": 4, "itos": dict(enumerate(characters)), "stoi": {c: i for i, c in enumerate(characters)}}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    assert Dataset(folder, 16, 1).tokenizer["characters"] == characters


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def test_a_hostile_meta_pkl_is_refused_and_runs_nothing(tmp_path):
    folder = make(tmp_path / "d")
    (folder / "meta.json").unlink()
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 2, "itos": Hostile(tmp_path / "ran")}))
    with pytest.raises(UserError, match=r"it would call .*open"):
        Dataset(folder, 16, 1)
    assert not (tmp_path / "ran").exists()
