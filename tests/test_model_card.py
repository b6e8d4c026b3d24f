"""A model card says what its model is, how it was trained and what it reached, or that nothing tells."""

import json

import pytest

from tests.test_export import run, trained
from train import train
from wiggle.model_card import evaluation_of

pytest.importorskip("transformers")


def test_the_card_says_what_it_is_how_it_was_trained_and_what_it_reached(tmp_path, tiny):
    result = train(tiny(mlp="bio", learning_rate=3e-3, max_iters=3))
    run(tmp_path / "folder", tmp_path / "out")
    card = (tmp_path / "folder" / "README.md").read_text(encoding="utf-8")
    for text in (
        "bio, oscillation + feature gate",
        "sin(ω·x + φ)·tanh(x) + b",
        "trust_remote_code=True",
        f"| validation loss | {result.val_loss:.4f} ± {result.val_stderr:.4f} |",
        f"| validation, bits per byte | {result.val_bpb:.4f} |",
        "after 3 steps",
        "dataset = 'tiny'",
        "learning_rate = 0.003",
    ):
        assert text in card
    assert str(tmp_path) not in card  # where the files lay is nobody's business


def test_a_plain_gpt2s_card_asks_for_no_trust_and_says_what_is_not_known(tmp_path):
    trained(tmp_path / "best.pt")
    run(tmp_path / "folder", tmp_path)
    card = (tmp_path / "folder" / "README.md").read_text(encoding="utf-8")
    assert "trust_remote_code" not in card and "Its settings are not recorded" in card
    assert "No loss is recorded" in card and not (tmp_path / "folder" / "modeling_wigglegpt.py").exists()


def test_losses_are_those_of_the_checkpoints_own_step_whatever_else_the_log_holds(tmp_path):
    lines = [
        '{"step": 2, "val_loss": 3.0}',
        '{"step": 4, "loss": 1.0}',
        '{"step": 4, "val_loss": 2.0}',
        '{"step": 6, "val_loss": 1.5}',
        '{"step": 6, "val_',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert evaluation_of({"path": tmp_path / "best.pt", "iter_num": 4}) == {"step": 4, "val_loss": 2.0}
    assert evaluation_of({"path": tmp_path / "best.pt", "iter_num": 5}) == {}
    assert evaluation_of({"path": tmp_path / "none" / "best.pt", "iter_num": 4}) == {}


def test_the_card_has_what_evaluate_found_of_the_same_step_and_no_path(tmp_path, tiny):
    train(tiny(max_iters=3))
    of = {"checkpoint": "best.pt", "iter_num": 3}
    files = {
        f"{tmp_path}/novel.txt": {"bits_per_byte": 2.5} | of,
        "older.txt": {"bits_per_byte": 9.0} | of | {"iter_num": 2},
    }
    tasks = {"quiz": {"acc,none": 0.7, "acc_stderr,none": 0.05, "examples": 10} | of}
    (tmp_path / "out" / "evaluation.json").write_text(json.dumps({"files": files, "tasks": tasks}))
    run(tmp_path / "folder", tmp_path / "out")
    card = (tmp_path / "folder" / "README.md").read_text(encoding="utf-8")
    assert "| novel.txt, bits per byte | 2.5000 |" in card and "| quiz, acc | 0.7000 ± 0.0500 |" in card
    assert "older.txt" not in card and str(tmp_path) not in card
