"""evaluate.py judges a checkpoint by a text or by tasks, prints a table, and keeps the results beside it."""

import json
import math
import sys

import pytest
import torch

import evaluate
from model_bio import model_args
from tests.test_modeling_wigglegpt import LETTERS, noisy
from wiggle import checkpoint
from wiggle.tokenizer import ByteTokenizer, CharTokenizer


@pytest.fixture
def saved(tmp_path):
    """saved(tokenizer) -> a run's folder with best.pt of a tiny model."""

    def make(tokenizer=None):
        tokenizer = tokenizer or CharTokenizer(LETTERS)
        model = noisy(mlp="bio", block_size=8, vocab_size=tokenizer.vocab_size)
        content = {"model": model.state_dict(), "model_args": model_args(model.config), "iter_num": 7}
        checkpoint.save(tmp_path / "run" / "best.pt", content | {"tokenizer": tokenizer.identity()})
        return tmp_path / "run"

    return make


def refused(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        evaluate.main(list(argv))
    error = capsys.readouterr().err
    assert stop.value.code == 1 and error.count("\n") == 1
    return error


def test_bits_a_byte_of_a_text_are_printed_and_kept(saved, tmp_path, capsys):
    run, text = saved(ByteTokenizer()), tmp_path / "text.txt"
    text.write_text("Zwölf Boxkämpfer", encoding="utf-8")
    evaluate.main([f"--out_dir={run}", f"--file={text}", "--device=cpu"])
    found = json.loads((run / "evaluation.json").read_text())["files"][str(text)]
    assert (found["tokens"], found["bytes"], found["iter_num"], found["checkpoint"]) == (18, 18, 7, "best.pt")
    assert (
        found["bits_per_byte"] == pytest.approx(found["nats_per_token"] / math.log(2))
        and found["tokens_per_second"] > 0
    )
    printed = capsys.readouterr().out
    assert f"{found['nats_per_token']:.4f} nats a token, {found['bits_per_byte']:.4f} bits a byte" in printed


def test_a_short_texts_nats_are_the_models_loss_on_it(saved, tmp_path):
    run, text = saved(), tmp_path / "text.txt"
    text.write_text("abcdef")
    evaluate.main([f"--out_dir={run}", f"--file={text}", "--device=cpu"])
    model, _ = checkpoint.load_model(run)
    ids = torch.tensor([CharTokenizer(LETTERS).encode("\nabcdef")])
    loss = model(ids[:, :-1], ids[:, 1:])[1].item()
    found = json.loads((run / "evaluation.json").read_text())["files"][str(text)]
    assert found["nats_per_token"] == pytest.approx(loss, abs=1e-5)


def test_results_of_other_texts_and_keys_stay(saved, tmp_path):
    run = saved()
    (run / "evaluation.json").write_text('{"tasks": {"old": {"acc,none": 1}}, "mine": 3}')
    for name in ("one.txt", "two.txt"):
        (tmp_path / name).write_text("abc")
        evaluate.main([f"--out_dir={run}", f"--file={tmp_path / name}", "--device=cpu"])
    kept = json.loads((run / "evaluation.json").read_text())
    assert kept["tasks"] == {"old": {"acc,none": 1}} and kept["mine"] == 3
    assert list(kept["files"]) == [str(tmp_path / "one.txt"), str(tmp_path / "two.txt")]


def test_tasks_are_shown_as_a_table_and_kept(saved, monkeypatch, capsys):
    harness = pytest.importorskip("wiggle.harness")
    metrics = {"acc,none": 0.25, "acc_stderr,none": 0.05, "exact_match,strict": 0.5, "examples": 80, "num_fewshot": 5}

    def run_tasks(lm, names, include_path, **options):
        lm.tokens, lm.seconds = 1000, 2.0
        assert (names, include_path, options) == (["one", "two"], None, {"num_fewshot": 5, "limit": 80})
        return {"one": metrics}

    monkeypatch.setattr(harness, "run_tasks", run_tasks)
    run = saved()
    evaluate.main([f"--out_dir={run}", "--tasks=one, two", "--num_fewshot=5", "--limit=80", "--device=cpu"])
    lines = capsys.readouterr().out.splitlines()
    assert "one   80        5      acc                   0.2500 +- 0.0500" in lines
    assert "one   80        5      exact_match (strict)  0.5000" in lines
    assert "speed     1,000 tokens in 2.0 s, 500 tokens/s" in lines
    kept = json.loads((run / "evaluation.json").read_text())["tasks"]["one"]
    assert kept["acc,none"] == 0.25 and kept["tokens_per_second"] == 500 and kept["iter_num"] == 7


def test_what_cannot_be_judged_is_one_sentence(saved, tmp_path, capsys, monkeypatch):
    run = saved()
    (tmp_path / "empty.txt").touch()
    assert "nothing to judge by: name --tasks of lm-eval" in refused(capsys, f"--out_dir={run}")
    assert "limit=0 must be at least 1" in refused(capsys, f"--out_dir={run}", "--tasks=a", "--limit=0")
    assert "is empty" in refused(capsys, f"--out_dir={run}", f"--file={tmp_path / 'empty.txt'}")
    (tmp_path / "foreign.txt").write_text("Ω")
    assert "the tokenizer has no 'Ω'" in refused(capsys, f"--out_dir={run}", f"--file={tmp_path / 'foreign.txt'}")
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "wiggle.harness", raising=False)
    assert "--tasks needs lm-eval" in (error := refused(capsys, f"--out_dir={run}", "--tasks=arc_easy"))
    assert "pip install lm-eval" in error
    (tmp_path / "text.txt").write_text("abc")
    (run / "evaluation.json").write_text("[1")
    assert "evaluation.json is damaged: move it away" in refused(
        capsys, f"--out_dir={run}", f"--file={tmp_path / 'text.txt'}"
    )
