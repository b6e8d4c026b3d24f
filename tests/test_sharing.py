"""A model becomes a plain GPT-2 where that computes the same, and keeps every weight where it brings its own code."""

import json

import pytest
import torch

from model_bio import GPTConfig
from tests.test_export import run, trained
from wiggle import checkpoint
from wiggle.sharing import is_plain_gpt2

pytest.importorskip("transformers")


@pytest.mark.parametrize(
    ("changes", "plain"),
    [
        ({}, True),
        ({"mlp": "gelu_tanh", "bias": False, "dropout": 0.1}, True),
        ({"c_fc_std": "unit", "gradient_checkpointing": True, "bio_gate": "none", "dendritic_beta": "unit"}, True),
        ({"mlp": "relu"}, False),
        ({"mlp": "bio"}, False),
        ({"position": "rope"}, False),
        ({"position": "none"}, False),
        ({"qk_norm": True}, False),
        ({"use_rmsnorm": True}, False),
    ],
)
def test_gpt2s_format_is_taken_where_it_has_a_place_for_all_that_is_computed(changes, plain):
    assert is_plain_gpt2(GPTConfig(**changes)) == plain


def test_ids_past_the_tokenizers_vocabulary_are_kept_and_never_drawn(tmp_path):
    model = trained(tmp_path / "best.pt", vocab_size=16, mlp="bio")
    run(tmp_path / "folder", tmp_path)
    settings = json.loads((tmp_path / "folder" / "generation_config.json").read_text())
    assert settings == {"suppress_tokens": [14, 15]}
    again, _ = checkpoint.load_model(tmp_path / "folder")
    assert again.sampled_vocab == 14 and torch.equal(again.lm_head.weight, model.lm_head.weight)
