"""The score of a text, and what is written behind a prompt, do not depend on what else is in the batch."""

import math

import pytest
import torch

from tests.test_modeling_wigglegpt import LETTERS, noisy
from wiggle.scoring import Sampling, Window, continue_texts, first_context, score, score_text, windows
from wiggle.tokenizer import ByteTokenizer, CharTokenizer, GPT2Tokenizer

CPU = torch.device("cpu")


def never(token):
    return False


@pytest.fixture(scope="module")
def model():
    return noisy(mlp="bio", position="rope", block_size=16)


@pytest.mark.parametrize("overlap", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 17])
def test_windows_score_each_token_once_and_give_it_the_context_that_was_asked_for(length, overlap):
    tokens = list(range(1, length + 1))
    scored = []
    for number, window in enumerate(windows([0], tokens, 4, overlap)):
        assert 1 <= len(window.tokens) <= 4 and window.targets == [token + 1 for token in window.tokens]
        assert number == 0 or len(window.tokens) - window.scored + 1 >= overlap
        scored += window.targets[-window.scored :]
    assert scored == tokens


def test_windows_are_the_harness_own_where_they_overlap_by_one_token():
    utils = pytest.importorskip("lm_eval.utils")
    for length in range(1, 14):
        tokens = list(range(1, length + 1))
        theirs = [(a, b) for a, b in utils.get_rolling_token_windows(tokens, 0, max_seq_len=4, context_len=1)]
        ours = [(window.tokens, window.targets[-window.scored :]) for window in windows([0], tokens, 4, overlap=1)]
        assert ours == theirs


def test_a_context_too_long_for_the_window_loses_its_beginning():
    assert list(windows([1, 2, 3, 4, 5], [6, 7], 4, overlap=1)) == [Window([3, 4, 5, 6], [4, 5, 6, 7], 2)]


def test_no_tokens_make_no_window():
    assert list(windows([0], [], 4, overlap=1)) == []


def test_a_score_is_the_sum_of_log_probabilities_whatever_else_is_in_the_batch(model):
    texts = [[1, 2, 3, 4, 5, 6, 7], [8, 9], [3, 3, 3, 3]]
    items = [next(windows(text[:1], text[1:], 16, 1)) for text in texts]
    items.append(Window(texts[0][:-1], texts[0][1:], scored=2))  # of the first text, the last two tokens alone
    found = score(model, items, CPU)
    for item, result in zip(items, found, strict=True):
        x, y = torch.tensor([item.tokens]), torch.tensor([item.targets])
        logits = model(x, y)[0].log_softmax(-1)[0]
        each = logits[torch.arange(len(item.tokens)), y[0]][-item.scored :]
        assert math.isclose(result.log_probability, each.sum().item(), abs_tol=1e-5)
        likeliest = logits.argmax(-1)[-item.scored :].tolist()
        assert result.greedy == (likeliest == item.targets[-item.scored :])


def test_greedy_says_whether_every_scored_token_is_the_likeliest(model):
    ids = model.generate(torch.tensor([[1, 2]]), 6, temperature=0)[0].tolist()
    assert score(model, list(windows(ids[:2], ids[2:], 16, 1)), CPU)[0].greedy
    ids[5] = (ids[5] + 1) % len(LETTERS)
    assert not score(model, list(windows(ids[:2], ids[2:], 16, 1)), CPU)[0].greedy


def test_a_text_of_many_windows_is_scored_whole(model, monkeypatch):
    monkeypatch.setattr("wiggle.scoring.WINDOWS_AT_ONCE", 3)
    monkeypatch.setattr("wiggle.scoring.TOKENS_AT_ONCE", 40)  # two windows a batch, and the text in several parts
    tokens = [i * i % len(LETTERS) for i in range(100)]
    tokenizer = CharTokenizer(LETTERS)
    parts = [score(model, [window], CPU)[0] for window in windows([0], tokens, 16, overlap=8)]
    expected = sum(part.log_probability for part in parts)
    assert math.isclose(score_text(model, tokenizer, tokens, CPU), expected, rel_tol=1e-5)


def test_the_first_context_is_end_of_text_or_a_line_break(toy_gpt2):
    assert first_context(GPT2Tokenizer()) == 50256
    assert first_context(ByteTokenizer()) == ord("\n") and first_context(CharTokenizer(LETTERS)) == 0


@pytest.mark.parametrize("position", ["learned", "rope"])
def test_prompts_of_all_lengths_are_continued_together_as_one_by_one_past_the_context_too(position):
    model = noisy(mlp="bio", position=position, n_embd=32, n_head=4, block_size=16)
    prompts = [[3], [4, 5, 6, 7, 8, 9, 10], [*range(14), 1, 2], [1, 2, 3]]
    together = continue_texts(model, prompts, 30, Sampling(), [never] * 4, CPU)
    for prompt, new in zip(prompts, together, strict=True):
        alone = continue_texts(model, [prompt], 30, Sampling(), [never], CPU)[0]
        assert alone == model.generate(torch.tensor([prompt]), 30, temperature=0)[0, len(prompt) :].tolist()
        assert new == alone and len(new) == 30


def test_a_text_that_is_over_ends_and_the_others_go_on(model):
    free = continue_texts(model, [[1, 2], [3]], 8, Sampling(), [never, never], CPU)
    found = continue_texts(model, [[1, 2], [3]], 8, Sampling(), [lambda token: True, never], CPU)
    assert found == [free[0][:1], free[1]]


def test_drawn_tokens_follow_torchs_seed_and_stay_within_the_vocabulary(model):
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(continue_texts(model, [[1], [2, 3]], 12, Sampling(1.0, top_k=5), [never, never], CPU))
    assert draws[0] == draws[1] != draws[2]
