"""What the tests share: a tiny corpus, and settings for a tiny model that trains on it in a second."""

import os
import random
import signal
import tempfile
from pathlib import Path

import pytest
import torch

from model_bio import GPT, GPTConfig
from train import TrainConfig
from wiggle import configurator, corpora
from wiggle import tokenizer as tokenizers
from wiggle.figures import Text

os.environ["OMP_NUM_THREADS"] = "1"  # of the scripts that tests start
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it, and would fail its tests
torch.set_num_threads(1)  # tiny models gain nothing from a second thread, and wait for it where the machine is busy

TINY = {
    "dataset": "tiny",
    "block_size": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 16,
    "batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_iters": 6,
    "warmup_iters": 2,
    "eval_interval": 3,
    "eval_iters": 2,
    "learning_rate": 1e-2,
    "device": "cpu",
    "compile": False,
}


class FakeRun:
    """Stands in for what wandb.init returns."""

    id = "abc"

    def log(self, numbers, step):
        pass

    def finish(self):
        pass


def untrained(seed, neuron=None, **changes):
    """A tiny GPT, not trained, in eval mode; its larger c_fc lets the phases of oscillating neurons pass π/2."""
    shape = {"block_size": 16, "vocab_size": 10, "n_layer": 2, "n_head": 2, "n_embd": 16, "c_fc_std": 0.5}
    return GPT(GPTConfig(**shape | changes), neuron, seed=seed).eval()


def random_text():
    """20 windows of 16 tokens, each of ten letters among them, for the analysis of an `untrained` GPT."""
    idx = torch.randint(10, (20, 16), generator=torch.Generator().manual_seed(0))
    token = idx.flatten()
    labels = {"token": token, "class": token // 5, "position": torch.arange(16).repeat(20) // 2}
    return Text(idx, list("abcdefghij"), labels)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A data_dir with the dataset 'tiny', the same in each session."""
    return write_tiny_corpus(tmp_path_factory.mktemp("corpus"))


def write_tiny_corpus(folder):
    """Prepare the dataset 'tiny', some 6,000 characters of made-up words, below `folder` -> its data_dir."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 5))) for _ in range(40)]
    (folder / "tiny.txt").write_text("\n".join(" ".join(draw.choices(words, k=8)) for _ in range(200)))
    corpora.prepare(str(folder / "tiny.txt"), data_dir=str(folder / "data"))
    return folder / "data"


@pytest.fixture(scope="session")
def words(tmp_path_factory):
    """The command line of a tiny experiment, on a corpus whose validation split has two blocks of 4,096 and more."""
    folder, draw = tmp_path_factory.mktemp("long"), random.Random(0)
    vocabulary = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 5))) for _ in range(40)]
    (folder / "long.txt").write_text("\n".join(" ".join(draw.choices(vocabulary, k=8)) for _ in range(3000)))
    corpora.prepare(str(folder / "long.txt"), data_dir=str(folder / "data"))
    tiny = TINY | {"dataset": "long", "data_dir": str(folder / "data"), "n_layer": 1, "eval_interval": 2}
    (folder / "tiny.py").write_text("".join(f"{key} = {value!r}\n" for key, value in tiny.items()))
    return [str(folder / "tiny.py")]


@pytest.fixture
def tiny(corpus, tmp_path):
    """tiny(key=value, ...) -> a TrainConfig of the tiny model, its run in a folder of its own."""

    def make(**changes):
        return TrainConfig(**TINY | {"data_dir": str(corpus), "out_dir": str(tmp_path / "out")} | changes)

    return make


@pytest.fixture
def arguments(corpus, tmp_path):
    """arguments(config_file, key=value, ...) -> a TrainConfig from a config file cut down to the tiny model."""

    def make(*files, **changes):
        values = TINY | {"data_dir": str(corpus), "out_dir": str(tmp_path / "out")} | changes
        return configurator.read_settings(TrainConfig, [*map(str, files), *(f"--{k}={v}" for k, v in values.items())])

    return make


@pytest.fixture
def toy_gpt2(monkeypatch):
    """GPT2Tokenizer over a few merges made here: byte pairs, so that characters are split across tokens."""
    tiktoken = pytest.importorskip("tiktoken")
    merges = (b"He", b"ll", b"\x82\xac", b"\xf0\x9f", b"th", b"the", b" m", b"\n\n")
    ranks = {bytes([i]): i for i in range(256)} | {merge: 256 + i for i, merge in enumerate(merges)}
    special = {tokenizers.END_OF_TEXT: 50256}
    toy = tiktoken.Encoding("toy", pat_str=tokenizers.GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=special)
    monkeypatch.setattr(tokenizers, "gpt2_encoding", lambda: toy)
    return tokenizers.GPT2Tokenizer()


@pytest.fixture
def strict_folder():
    """A folder in which a file of mode 0 cannot be read: root, whom no mode stops, is nobody for the test."""
    if os.name != "posix":
        pytest.skip("needs file modes")
    is_root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        if is_root:
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            if is_root:
                os.seteuid(0)


def branch_usage(mlp, x):
    """A dendritic MLP's usage (K, F), the share of inputs x (N, C) that each branch wins, and exp of its entropy."""
    winner = mlp.c_fc(x).unflatten(-1, (mlp.branches, -1)).argmax(-2)  # β > 0: the largest z has the largest share
    usage = torch.stack([(winner == k).float().mean(0) for k in range(mlp.branches)])
    return usage, torch.special.entr(usage).sum(0).exp()
