"""Sampling from a checkpoint alone."""

import errno
import io
import pickle
import re
import sys
from pathlib import Path

import pytest
import torch

import sample_bio
from kernels import event_mlp
from model_bio import GPT, GPTConfig, model_args
from sample_bio import SampleConfig, sample, with_compiler
from tests.conftest import TINY
from train import TrainConfig, train
from wiggle import checkpoint
from wiggle.device import Machine
from wiggle.errors import UserError
from wiggle.tokenizer import CharTokenizer


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
        assert sample_bio.batch_sizes(model, 10, 100, torch.float32) == sizes
    monkeypatch.setattr(sample_bio, "CACHE_BYTES", 2 * (2 * 2 * 16 * 16 * 4))
    printed = drawn(capsys, out_dir=trained, num_samples=3, temperature=0.0)[0]
    assert "2 samples at a time" in printed and len(samples(printed)) == 3 and len(set(samples(printed))) == 1
    one = drawn(capsys, out_dir=trained, temperature=0.0)[0]
    events = [next(line for line in text.splitlines() if line.startswith("events")) for text in (printed, one)]
    assert events[0] == events[1]  # the mean over samples, each of which fires alike


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


def test_a_prompt_file_of_windows_is_the_same_prompt(trained, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "prompt.txt").write_bytes(b"\xef\xbb\xbfcab\r\n")
    from_file = drawn(capsys, out_dir=trained, start="FILE:~/prompt.txt", temperature=0.0)[1]
    assert from_file == drawn(capsys, out_dir=trained, start="cab\n", temperature=0.0)[1]


def save(path, characters, **changes):
    """A tiny random model of these characters."""
    shape = {"block_size": 8, "vocab_size": len(characters), "n_layer": 1, "n_head": 1, "n_embd": 4}
    model = GPT(GPTConfig(**shape | changes))
    content = {"model": model.state_dict(), "model_args": model_args(model.config)}
    checkpoint.save(path, content | {"tokenizer": CharTokenizer(characters).identity()})


@pytest.mark.skipif(event_mlp.backend("cpu").startswith("plain"), reason="no C compiler")
def test_what_hard_events_left_unread_is_said_with_the_speed_of_one_sample(tmp_path, capsys):
    save(tmp_path / "best.pt", "ab", mlp="bio", bio_event="hard", n_embd=128)
    out = {"out_dir": str(tmp_path)}
    read = re.search(r"tokens/s, (\S+) of the MLPs' (\S+) MB read a token", drawn(capsys, **out)[0])
    assert 0 < float(read[1]) < float(read[2]) == 0.5
    assert "read a token" not in drawn(capsys, num_samples=2, **out)[0]  # together they read every weight


def test_where_the_text_had_no_line_break_the_default_prompt_is_one_that_it_had(tmp_path, capsys):
    save(tmp_path / "best.pt", "abc")
    text = drawn(capsys, out_dir=str(tmp_path), start=SampleConfig.start)[1]
    assert len(text) == 1 + 40 + 1 and text[0] == "a"
    with pytest.raises(UserError, match="the tokenizer has no 'd'"):
        drawn(capsys, out_dir=str(tmp_path), start="d")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_console_that_is_not_utf_8_gets_escapes(tmp_path, monkeypatch, encoding):
    save(tmp_path / "ω" / "best.pt", "λ😀")
    (tmp_path / "p.txt").write_text("λ😀", encoding="utf-8")
    console = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", console)
    argv = [f"--out_dir={tmp_path}/ω", f"--start=FILE:{tmp_path}/p.txt", "--device=cpu", "--num_samples=2"]
    sample_bio.main([*argv, "--max_new_tokens=20"])
    printed = console.buffer.getvalue().decode("ascii")
    assert f"{tmp_path}/\\u03c9/best.pt" in printed and printed.count("\n\\u03bb\\U0001f600") == 2


def test_a_reader_that_leaves_stops_the_samples(trained, monkeypatch, capsys):
    def leave(*args, **options):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    stdout = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(stdout, "flush", leave)
    with pytest.raises(SystemExit) as stop:
        sample_bio.main([f"--out_dir={trained}", "--device=cpu", "--max_new_tokens=1000000"])
    assert stop.value.code == 141 and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": "aé😀"}, "the tokenizer has no 'é', '😀'"),
        ({"start": "a\udcff"}, "UTF-8|surrogate|has no"),
        ({"start": ""}, "the prompt is empty"),
        ({"start": "FILE:nowhere.txt"}, "cannot read nowhere.txt: No such file"),
        ({"out_dir": "nowhere"}, "checkpoint nowhere does not exist"),
        ({"device": "quantum"}, "device='quantum' is unknown"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(trained, options, message):
    with pytest.raises(UserError, match=message) as error:
        sample(SampleConfig(**{"out_dir": trained, "device": "cpu"} | options))
    assert "\n" not in str(error.value)


def test_auto_compiles_for_long_jobs_alone(monkeypatch):
    """Compiling takes up to a minute, and a compiled step saves some milliseconds."""
    monkeypatch.setattr(sample_bio, "pick_compile", lambda setting, device: (setting is not False, f"by {setting}"))
    card = Machine(torch.device("cuda"), torch.bfloat16, False, "eager")
    found = [with_compiler(card, setting, steps).how for setting in ("auto", True) for steps in (500, 8191, 8192)]
    short = "eager (compile=auto is for jobs of 8,192 steps and more)"
    assert found == [short, short, "by auto", *["by True"] * 3]
    assert with_compiler(card._replace(device=torch.device("cpu")), "auto", 500).how == "by auto"


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


@pytest.mark.parametrize(("vocab_size", "known"), [(50256, False), (50257, True), (50304, True), (100_277, False)])
def test_only_gpt2s_vocabulary_means_gpt2s_tokenizer_where_no_file_names_one(tmp_path, vocab_size, known):
    model = GPT(GPTConfig(block_size=2, vocab_size=vocab_size, n_layer=1, n_head=1, n_embd=1))
    meta = {"tokenizer": None, "origin": "nanoGPT", "config": {}, "path": "ckpt.pt"}
    if known:
        assert checkpoint.find_tokenizer(model, meta, tmp_path).kind == "gpt2"
    else:
        with pytest.raises(UserError, match=r"^ckpt\.pt holds no tokenizer: put nanoGPT's meta\.pkl"):
            checkpoint.find_tokenizer(model, meta, tmp_path)


def test_the_script_reports_in_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        sample_bio.main(["--temprature=1"])
    assert stop.value.code == 1
    assert capsys.readouterr().err == "error: command line: unknown key 'temprature'; did you mean 'temperature'?\n"
