"""Sampling from a checkpoint alone."""

import pickle
from pathlib import Path

import pytest
import torch

import sample_bio
from model_bio import GPT, GPTConfig
from sample_bio import SampleConfig, sample
from tests.conftest import TINY
from train import TrainConfig, train
from wiggle.errors import UserError
from wiggle.tokenizer import ByteTokenizer


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("run"))
    return train(TrainConfig(**TINY | {"data_dir": str(corpus), "out_dir": out, "mlp": "bio"})).out_dir


def drawn(capsys, **options):
    capsys.readouterr()
    sample(SampleConfig(**{"num_samples": 1, "max_new_tokens": 40, "device": "cpu", "start": "ab"} | options))
    printed = capsys.readouterr().out
    return printed, printed.split("-" * 80 + "\n")[1]


def test_it_prints_what_the_model_is_and_a_sample_past_the_context(trained, capsys):
    printed, text = drawn(capsys, out_dir=trained)
    assert text.startswith("ab") and len(text) == 2 + 40 + 1
    for part in (
        "M parameters",
        "bio, oscillation + feature gate (threshold 0.25)",
        "events",
        "by layer",
        "step 6",
        "tokens/s",
    ):
        assert part in printed


def test_a_seed_repeats_and_greedy_needs_none(trained, capsys):
    texts = [drawn(capsys, out_dir=trained, seed=seed)[1] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    greedy = [drawn(capsys, out_dir=trained, temperature=0.0, seed=seed)[1] for seed in (1, 2)]
    assert greedy[0] == greedy[1]


def samples(printed):
    """The samples' texts in what was printed."""
    return printed.split("-" * 80 + "\n")[1:-1]


def test_many_samples_are_drawn_together_and_printed_apart(trained, capsys):
    printed, first = drawn(capsys, out_dir=trained, num_samples=5)
    texts = samples(printed)
    assert len(texts) == len(set(texts)) == 5 and texts[0] == first
    assert all(text.startswith("ab") and len(text) == 2 + 40 + 1 for text in texts)
    assert "tokens/s, 5 samples at a time" in printed and "fired on the samples" in printed
    assert samples(drawn(capsys, out_dir=trained, num_samples=5)[0]) == texts


def test_batches_are_even_and_fit_the_memory(trained, capsys, monkeypatch):
    model = GPT(GPTConfig(block_size=8, vocab_size=3, n_layer=2, n_head=1, n_embd=4))
    sample_bytes = 2 * 2 * 8 * 4 * 4  # keys and values, layers, tokens, width, float32
    for limit, sizes in ((4, [4, 3, 3]), (9.5, [5, 5]), (10, [10]), (0.5, [1] * 10)):
        monkeypatch.setattr(sample_bio, "CACHE_BYTES", int(limit * sample_bytes))
        assert sample_bio.batches(model, 10, 100, torch.float32) == sizes
    monkeypatch.setattr(sample_bio, "CACHE_BYTES", 2 * (2 * 2 * 16 * 16 * 4))
    printed = drawn(capsys, out_dir=trained, num_samples=3, temperature=0.0)[0]
    assert "2 samples at a time" in printed and len(samples(printed)) == 3 and len(set(samples(printed))) == 1
    one = drawn(capsys, out_dir=trained, temperature=0.0)[0]
    events = [next(line for line in text.splitlines() if line.startswith("events")) for text in (printed, one)]
    assert events[0] == events[1]  # the mean over samples, each of which fires alike


@pytest.mark.parametrize("every", [1, 3, 7, 50])
def test_looking_every_few_steps_shows_the_same(capsys, every):
    tokenizer = ByteTokenizer()
    text = "añ😀z".encode()
    steps = (torch.tensor([[byte], [65]]) for byte in text)
    assert sample_bio.decode(steps, len(text), tokenizer, every).tolist() == [list(text), [65] * len(text)]
    assert capsys.readouterr().out == "añ😀z\n"


def test_bfloat16_samples(trained, capsys):
    printed, text = drawn(capsys, out_dir=trained, dtype="bfloat16", num_samples=2)
    assert "bfloat16" in printed and len(text) == 2 + 40 + 1


def test_compiling_changes_no_text_and_its_failure_is_one_sentence(trained, capsys, monkeypatch):
    def broken(*args):
        raise RuntimeError("No working C++ compiler found\n\nSet TORCHDYNAMO_VERBOSE=1 for more")

    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    plain, compiled = (drawn(capsys, out_dir=trained, num_samples=2, compile=setting)[0] for setting in (False, True))
    assert samples(plain) == samples(compiled)
    assert "\ncompile  " in compiled and "\ncompile  " not in plain
    monkeypatch.setattr(torch, "compile", lambda function, **options: broken)
    with pytest.raises(UserError, match=r"does not work here \(No working C\+\+ compiler found\): .*--compile=False$"):
        drawn(capsys, out_dir=trained, compile=True)


@pytest.mark.slow
def test_a_real_compiler_changes_no_text(trained, capsys):
    torch.compiler.reset()
    texts = [samples(drawn(capsys, out_dir=trained, num_samples=3, compile=setting)[0]) for setting in (False, True)]
    assert texts[0] == texts[1]


def test_a_prompt_from_a_file(trained, capsys, tmp_path):
    (tmp_path / "prompt.txt").write_text("cab", encoding="utf-8")
    with_file = drawn(capsys, out_dir=trained, start=f"FILE:{tmp_path / 'prompt.txt'}", temperature=0.0)[1]
    assert with_file == drawn(capsys, out_dir=trained, start="cab", temperature=0.0)[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": "aé😀"}, "the tokenizer has no 'é', '😀'"),
        ({"start": "a\udcff"}, "UTF-8|surrogate|has no"),
        ({"start": ""}, "the prompt is empty"),
        ({"start": "FILE:nowhere.txt"}, "cannot read the prompt nowhere.txt: No such file"),
        ({"out_dir": "nowhere"}, "checkpoint nowhere does not exist"),
        ({"device": "quantum"}, "device='quantum' is unknown"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(trained, options, message):
    with pytest.raises(UserError, match=message) as error:
        sample(SampleConfig(**{"out_dir": trained, "device": "cpu"} | options))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_k": 0}, {"repetition_penalty": 0.0}, {"num_samples": 0}]
)
def test_impossible_values_are_refused_by_name(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        SampleConfig(**changes)


def test_a_nanogpt_checkpoint_takes_its_tokenizer_from_meta_pkl(tmp_path, capsys):
    model = GPT(GPTConfig(block_size=8, vocab_size=3, n_layer=1, n_head=1, n_embd=4))
    args = {
        k: getattr(model.config, k)
        for k in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "dropout", "bias")
    }
    torch.save({"model": model.state_dict(), "model_args": args, "config": {"dataset": "old"}}, tmp_path / "ckpt.pt")
    options = {"out_dir": str(tmp_path), "data_dir": str(tmp_path / "data"), "max_new_tokens": 12}
    with pytest.raises(UserError, match=r"holds no tokenizer: put nanoGPT's meta\.pkl of its 3 characters into"):
        drawn(capsys, **options)
    (tmp_path / "data" / "old").mkdir(parents=True)
    meta = {"vocab_size": 3, "itos": dict(enumerate("abc")), "stoi": {}}
    Path(tmp_path, "data", "old", "meta.pkl").write_bytes(pickle.dumps(meta))
    assert set(drawn(capsys, **options)[1].strip()) <= set("abc")


def test_the_script_reports_in_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        sample_bio.main(["--temprature=1"])
    assert stop.value.code == 1
    assert capsys.readouterr().err == "error: command line: unknown key 'temprature'; did you mean 'temperature'?\n"
