"""Datasets: refused where they are not what they say, and cut into batches by (seed, number) alone."""

import hashlib
import json
import os
import pickle
import shlex
import sys

import numpy as np
import pytest
import torch

from wiggle import dataset
from wiggle.corpora import fingerprint, prepare
from wiggle.dataset import BatchesAhead, Dataset, permute, read_meta
from wiggle.errors import UserError
from wiggle.tokenizer import ByteTokenizer


def write_dataset(folder, train=1000, val=200, dtype="uint16", identity=None):
    folder.mkdir(exist_ok=True)
    for split, count in (("train", train), ("val", val)):
        (np.arange(count) % 256).astype(dtype).tofile(folder / f"{split}.bin")
    meta = {"tokenizer": identity or ByteTokenizer().identity(), "dtype": dtype}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


@pytest.fixture
def prepared(tmp_path):
    """The folder of a dataset as prepare_data.py makes it, of 1,800 training tokens and 200."""
    (tmp_path / "text.txt").write_text("0123456789" * 200)
    return prepare(str(tmp_path / "text.txt"), tmp_path)


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
    data = opened(write_dataset(tmp_path / "d"))
    count = (1000 - 16) // 16
    epochs = [data.train_starts(np.arange(e * count, (e + 1) * count)) for e in range(4)]
    for starts in epochs:
        assert len(set(starts.tolist())) == count
        assert len({s % 16 for s in starts.tolist()}) == 1
        assert starts.min() >= 0 and starts.max() + 17 <= 1000
    assert len({int(e[0]) % 16 for e in epochs}) > 1
    assert not np.array_equal(np.argsort(epochs[0]), np.argsort(epochs[1]))


def test_batches_have_no_state_and_slice_as_you_like(tmp_path):
    data = opened(write_dataset(tmp_path / "d"))
    ids = data.batch(60, 12)  # crosses an epoch's end
    parts = [data.batch(60 + i, 3) for i in (9, 0, 6, 3)]
    assert torch.equal(ids, torch.cat([parts[i] for i in (1, 3, 2, 0)]))
    assert ids.shape == (12, 17) and ids.is_contiguous()
    assert torch.equal((ids[:, :-1] + 1) % 256, ids[:, 1:])  # this corpus counts up
    assert not torch.equal(ids, opened(tmp_path / "d", seed=2).batch(60, 12))


@pytest.mark.parametrize(("rank", "world"), [(0, 1), (0, 2), (1, 2)])
def test_batches_prepared_ahead_are_the_same_batches(tmp_path, rank, world):
    data = opened(write_dataset(tmp_path / "d"))
    numbers = [step * 12 + rank * (12 // world) + i for step in range(4, 9) for i in range(0, 12 // world, 3)]
    with BatchesAhead(data, 12, 3, rank, world) as ahead:
        for place, first in enumerate(numbers):
            assert place == 0 or (first, 3) in ahead.prepared  # it was guessed
            assert torch.equal(ahead.batch(first, 3), data.batch(first, 3))
        assert torch.equal(ahead.batch(1000, 5), data.batch(1000, 5))  # nobody guessed that


def test_an_error_of_a_batch_prepared_ahead_comes_when_it_is_asked_for(tmp_path):
    folder = write_dataset(tmp_path / "d", train=100)
    ids = np.zeros(100, "uint16")
    data = opened(folder)
    second = data.train_starts(np.arange(1, 2))[0]
    ids[second + 8] = 300  # in the middle of the second sequence's window
    data.splits["train"] = ids
    with BatchesAhead(data, 1, 1) as ahead:
        ahead.batch(0, 1)
        with pytest.raises(UserError, match="id 300, past the vocabulary"):
            ahead.batch(1, 1)


@pytest.mark.parametrize("first", [0, 4090, 4096, 8190])
def test_a_batch_does_not_depend_on_the_blocks_that_its_windows_are_looked_up_in(tmp_path, first):
    data = opened(write_dataset(tmp_path / "d"))
    ids = data.windows("train", data.train_starts(np.arange(first, first + 12)))
    assert torch.equal(data.batch(first, 12), ids)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
@pytest.mark.slow
def test_memory_stays_flat_however_much_of_a_file_is_read(tmp_path):
    folder = write_dataset(tmp_path / "d", train=40_000_000, dtype="uint32", val=2000)  # 160 MB
    data = Dataset(folder, 1024, 1)
    data.batch(0, 12)
    before, largest = resident_mb(), 0
    for number in range(3000):
        data.batch(12 * number, 12)
        largest = max(largest, resident_mb()) if number % 20 == 0 else largest
    assert largest < before + 80


def resident_mb():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS"))


@pytest.mark.skipif(sys.platform == "win32", reason="a mapped file cannot be replaced there")
@pytest.mark.parametrize("replaced", [True, False])
def test_a_corpus_that_is_replaced_or_removed_while_it_is_read_stays_what_was_opened(tmp_path, monkeypatch, replaced):
    monkeypatch.setattr(dataset, "WINDOWS_A_MAPPING", 4)
    data, whole = (opened(write_dataset(tmp_path / "data"), 16) for _ in range(2))
    expected = [whole.batch(first, 4) for first in range(0, 40, 4)]
    found = [data.batch(0, 4)]
    if replaced:
        other = write_dataset(tmp_path / "other", train=40, dtype="uint32")
        os.replace(other / "train.bin", tmp_path / "data" / "train.bin")
    else:
        (tmp_path / "data" / "train.bin").unlink()
    found += [data.batch(first, 4) for first in range(4, 40, 4)]
    assert torch.equal(torch.cat(found), torch.cat(expected))


def test_evaluation_windows_are_fixed_and_do_not_overlap(tmp_path):
    data = opened(write_dataset(tmp_path / "d"))
    everything = data.fixed_windows("val", 0)
    assert everything.tolist() == list(range(0, 192, 16))
    some = data.fixed_windows("val", 5)
    assert len(some) == 5 and set(some.tolist()) <= set(everything.tolist()) and some.max() > 100
    assert data.fixed_windows("val", 999).tolist() == everything.tolist()


def test_uint32(tmp_path):
    folder = write_dataset(tmp_path / "d", dtype="uint32")
    (np.arange(1000) + 70_000).astype("uint32").tofile(folder / "train.bin")
    data = Dataset(folder, 16, 1)
    data.check_ids(80_000)
    assert data.batch(0, 4).min() >= 70_000


@pytest.mark.parametrize(
    ("breakage", "message"),
    [
        (lambda f: (f / "val.bin").unlink(), "val.bin is missing"),
        (lambda f: (f / "train.bin").write_bytes(bytes(32)), "train.bin holds 16 tokens, too few for one window"),
        (lambda f: (f / "train.bin").write_bytes(b""), "train.bin holds 0 tokens"),
        (lambda f: (f / "train.bin").write_bytes(bytes(201)), "its 201 bytes are no whole number of uint16 ids"),
        (lambda f: (f / "meta.json").write_text("{"), "meta.json is damaged"),
        (lambda f: (f / "meta.json").write_bytes(b"\xff\xfe"), "meta.json is damaged"),
        (
            lambda f: (f / "meta.json").write_text(
                '{"tokenizer": {"kind": "byte"}, "dtype": "uint16", "val_tokens": "9"}'
            ),
            "meta.json is damaged .its counts of tokens",
        ),
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
    breakage(write_dataset(tmp_path / "d"))
    with pytest.raises(UserError, match=message):
        opened(tmp_path / "d")


def test_the_shortest_data_that_serves(tmp_path):
    data = opened(write_dataset(tmp_path / "d", train=17, val=17))
    assert data.batch(0, 3).tolist() == [list(range(17))] * 3


def test_a_missing_dataset_is_told_with_the_command_that_makes_it_there(tmp_path):
    with pytest.raises(UserError, match=r"train.bin is missing: python prepare_data.py TEXT") as caught:
        Dataset(tmp_path / "my data" / "nowhere", 16, 1)
    words = shlex.split(str(caught.value))
    assert "--name=nowhere" in words and f"--data_dir={tmp_path / 'my data'}" in words
    with pytest.raises(UserError, match=r"missing: python prepare_data.py python_stdlib makes it$"):
        Dataset("data/python_stdlib", 16, 1)


def test_ids_past_a_models_vocabulary_are_told_with_what_would_fit(tmp_path):
    data = Dataset(write_dataset(tmp_path / "d"), 16, 1)
    with pytest.raises(UserError, match="id 255, past the vocabulary of 255: it needs a model whose vocabulary is 256"):
        data.check_ids(255)
    with pytest.raises(UserError, match="past the vocabulary of 255"):
        data.windows("train", np.array([240]))
    assert data.windows("train", np.array([0])).shape == (1, 17)


# --- data that is not what meta.json says ---


def test_whole_data_is_known_by_the_sha256_of_its_files(prepared):
    hashes = {s: hashlib.sha256((prepared / f"{s}.bin").read_bytes()).hexdigest() for s in ("train", "val")}
    assert Dataset(prepared, 16, 1).identity == hashes


def test_a_large_file_without_a_hash_is_known_by_its_size_and_its_ends(tmp_path):
    data = np.random.default_rng(0).integers(0, 9, 3 * 2**20, dtype=np.uint8).tobytes()
    (tmp_path / "x").write_bytes(data)
    ends = data[: 2**20] + data[-(2**20) :]
    assert fingerprint(tmp_path / "x") == hashlib.sha256(str(len(data)).encode() + ends).hexdigest()


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 5])


def rewrite(path):
    path.write_bytes(path.read_bytes()[::-1])


def forget(folder, *keys):
    """Make a dataset's meta.json one of an earlier version, which lacked some keys."""
    meta = {key: value for key, value in read_meta(folder).items() if not key.endswith(keys)}
    (folder / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("keys", [("x",), ("fingerprint", "place"), ("fingerprint", "sha256")])
def test_truncated_data_is_refused_whatever_meta_json_records(prepared, split, keys):
    forget(prepared, *keys)
    whole = len(Dataset(prepared, 16, 1).splits[split])
    truncate(prepared / f"{split}.bin")
    message = f"{split}.bin holds {whole // 5:,} tokens, but its meta.json says {whole:,}: prepare the data anew"
    with pytest.raises(UserError, match=message):
        Dataset(prepared, 16, 1)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("split", ["train", "val"])
def test_data_that_was_rewritten_under_an_old_meta_json_is_refused(prepared, monkeypatch, split, large):
    monkeypatch.setattr(dataset, "LARGE", 100 if large else 10**6)
    Dataset(prepared, 16, 1)
    rewrite(prepared / f"{split}.bin")
    with pytest.raises(UserError, match=f"{split}.bin is not the file that its meta.json describes: prepare the data"):
        Dataset(prepared, 16, 1)


def test_the_advice_on_damaged_data_mends_it(tmp_path, prepared):
    truncate(prepared / "train.bin")
    prepare(str(tmp_path / "text.txt"), tmp_path)
    identity = Dataset(prepared, 16, 1).identity
    rewrite(prepared / "train.bin")  # by another program
    (prepared / "meta.json").unlink()
    assert Dataset(prepared, 16, 1).identity != identity


def test_a_damaged_byte_in_the_middle_is_found(prepared):
    data = bytearray((prepared / "train.bin").read_bytes())
    data[len(data) // 2] ^= 1
    (prepared / "train.bin").write_bytes(data)
    with pytest.raises(UserError, match=r"not the file that its meta.json describes"):
        Dataset(prepared, 16, 1)


# --- files that cannot be read ---


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "meta.json"])
def test_a_file_that_may_not_be_read_is_named(strict_folder, name):
    folder = write_dataset(strict_folder / "d")
    (folder / name).chmod(0)
    with pytest.raises(UserError, match=f"cannot read .*{name}: Permission denied"):
        Dataset(folder, 16, 1)
    (folder / name).chmod(0o600)
    folder.chmod(0)
    with pytest.raises(UserError, match=r"cannot read .*: Permission denied"):
        Dataset(folder, 16, 1)
    folder.chmod(0o700)


@pytest.mark.skipif(sys.platform == "win32", reason="needs links, and POSIX's words")
@pytest.mark.parametrize("name", ["train.bin", "val.bin", "meta.json"])
def test_what_stands_in_a_files_place_is_named(tmp_path, name):
    folder = write_dataset(tmp_path / "d")
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(UserError, match=f"{name}: Is a directory|{name} holds"):
        Dataset(folder, 16, 1)
    (folder / name).rmdir()
    (folder / name).symlink_to(folder / name)
    with pytest.raises(UserError, match=f"cannot read .*{name}: Too many levels of symbolic links"):
        Dataset(folder, 16, 1)


def test_a_link_to_a_missing_meta_json_does_not_make_it_gpt2s_tokens(tmp_path):
    folder = write_dataset(tmp_path / "d")
    (folder / "meta.json").rename(folder / "moved.json")
    (folder / "meta.json").symlink_to(tmp_path / "nowhere.json")
    with pytest.raises(UserError, match=r"cannot read .*meta.json: No such file"):
        Dataset(folder, 16, 1)


# --- nanoGPT's datasets ---


def test_without_meta_ids_are_gpt2s(tmp_path):
    folder = write_dataset(tmp_path / "d")
    (folder / "meta.json").unlink()
    data = Dataset(folder, 16, 1)
    assert data.tokenizer["kind"] == "gpt2" and data.model_vocab == 50304
    assert data.identity != Dataset(write_dataset(tmp_path / "e", train=999), 16, 1).identity


def write_meta_pkl(folder, meta):
    write_dataset(folder)
    (folder / "meta.json").unlink()
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    return folder


def test_nanogpts_meta_pkl_is_read(tmp_path):
    characters = "abc\n"
    meta = {"vocab_size": 4, "itos": dict(enumerate(characters)), "stoi": {c: i for i, c in enumerate(characters)}}
    assert Dataset(write_meta_pkl(tmp_path / "d", meta), 16, 1).tokenizer["characters"] == characters


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"vocab_size": 2, "itos": {0: "the", 1: "cow"}}, "its tokens are not single characters"),
        ({"vocab_size": 2, "itos": {0: "a", 1: ""}}, "its tokens are not single characters"),
        ({"vocab_size": 2, "itos": {0: 97, 1: 98}}, "its tokens are not single characters"),
        ({"vocab_size": 2, "itos": {0: "a", 1: "a"}}, "each of them once"),
        ({"vocab_size": 3, "itos": {0: "a", 1: "b"}}, r"KeyError\(2\)"),
        (["a", "b"], "TypeError"),
    ],
)
def test_a_meta_pkl_of_other_things_than_characters_is_refused(tmp_path, meta, message):
    with pytest.raises(UserError, match=f"meta.pkl is not nanoGPT's meta.pkl of characters: .*{message}"):
        Dataset(write_meta_pkl(tmp_path / "d", meta), 16, 1)


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def test_a_hostile_meta_pkl_is_refused_and_runs_nothing(tmp_path):
    folder = write_meta_pkl(tmp_path / "d", {"vocab_size": 2, "itos": Hostile(tmp_path / "ran")})
    with pytest.raises(UserError, match=r"it would call .*open"):
        Dataset(folder, 16, 1)
    assert not (tmp_path / "ran").exists()
