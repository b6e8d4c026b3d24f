"""The screened head gives the logits that the dense one gives, of all ids that a draw may take."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from kernels import c_library, likeliest
from kernels.likeliest import LikeliestRows
from model_bio import GPT, GPTConfig

pytestmark = pytest.mark.skipif(c_library.find_compiler() is None, reason="no C compiler")


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def make(rows, width, spread=1.0):
    """-> lm_head and an x; spread: of the rows' sizes, 0 for a head whose logits are all about as large."""
    torch.manual_seed(rows)
    head = nn.Linear(width, rows, bias=False)
    head.weight *= torch.exp(spread * torch.randn(rows, 1))
    return head, torch.randn(1, 1, width)


@pytest.mark.parametrize(("rows", "width", "k"), [(999, 33, 1), (5000, 64, 7), (5000, 64, 150), (50257, 96, 200)])
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_the_k_likeliest_are_among_those_found_and_have_their_logits(rows, width, k, spread):
    head, x = make(rows, width, spread)
    found, ids = LikeliestRows(head, rows)(x, k)
    logits = linear(x, head.weight)[0]
    assert set(logits.topk(k).indices[0].tolist()) <= set(ids[0].tolist())
    torch.testing.assert_close(found, logits.gather(1, ids), atol=1e-5, rtol=1e-5)
    assert ids.numel() < k + rows / 4


def test_rows_past_the_sampled_vocabulary_are_not_found():
    head, x = make(2000, 32)
    head.weight[1990:] = 100 * x
    assert LikeliestRows(head, 1990)(x, 1)[1].max() < 1990


def test_the_number_of_threads_changes_no_bit(monkeypatch):
    head, x = make(3000, 70)
    rows = LikeliestRows(head, 3000)
    expected = rows(x, 5)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert all(map(torch.equal, rows(x, 5), expected))


def test_a_row_that_is_no_number_is_found_and_an_x_that_is_none_is_refused():
    head, x = make(2000, 32)
    head.weight[77, 3] = math.nan
    found, ids = LikeliestRows(head, 2000)(x, 1)
    assert ids[0, found.argmax()] == 77 and found.isnan().sum() == 1
    x[0, 0, 0] = math.inf
    assert LikeliestRows(head, 2000)(x, 1) is None


@pytest.mark.parametrize(
    "options", [{"temperature": 0}, {"top_k": 5, "temperature": 2.0}, {"top_k": 40, "top_p": 0.9}, {"top_k": 2000}]
)
def test_generation_draws_the_same_tokens_with_it(options, monkeypatch):
    model = GPT(GPTConfig(block_size=64, vocab_size=2003, n_layer=1, n_head=2, n_embd=32), seed=1)
    model.lm_head.weight *= 20
    model.limit_sampling(2000)
    prompt, texts, calls = torch.tensor([[5, 6]]), [], []
    call = LikeliestRows.__call__
    monkeypatch.setattr(LikeliestRows, "__call__", lambda *a: calls.append(a) or call(*a))
    for smallest in (10**9, 0):
        monkeypatch.setattr(likeliest, "LARGE", smallest)
        texts.append(model.generate(prompt, 40, generator=torch.Generator().manual_seed(0), **options))
    assert torch.equal(*texts)
    assert len(calls) == (0 if options.get("top_k") == 2000 else 39)


def test_where_all_logits_count_none_is_left_out(monkeypatch):
    monkeypatch.setattr(likeliest, "LARGE", 0)
    model = GPT(GPTConfig(block_size=64, vocab_size=2000, n_layer=1, n_head=2, n_embd=32), seed=1)
    for options in ({}, {"top_p": 0.9}, {"temperature": 0, "repetition_penalty": 1.2}, {"use_cache": False}):
        model.generate(torch.tensor([[5, 6]]), 4, **options)
        assert model.likeliest is None
    model.generate(torch.tensor([[5, 6], [7, 8]]), 4, temperature=0)
    assert model.likeliest is None
    model.generate(torch.tensor([[5, 6]]), 4, temperature=0)
    before = model.likeliest
    model.generate(torch.tensor([[5, 6]]), 4, temperature=0)
    assert model.likeliest is before
    model.lm_head.weight *= 2
    model.generate(torch.tensor([[5, 6]]), 4, temperature=0)
    assert model.likeliest is not before


# --- in a model ---


def with_screened_head(monkeypatch, **changes):
    """A tiny model whose head is screened, after a first generation."""
    monkeypatch.setattr(likeliest, "LARGE", 0)
    shape = {"block_size": 32, "vocab_size": 400, "n_layer": 1, "n_head": 2, "n_embd": 16}
    model = GPT(GPTConfig(**shape | changes), seed=3)
    model.generate(torch.tensor([[1, 2]]), 3, temperature=0)
    assert model.likeliest is not None
    return model


def greedy(model, dense, monkeypatch):
    monkeypatch.setattr(likeliest, "LARGE", 2**62 if dense else 0)
    model.likeliest = None if dense else model.likeliest
    return model.generate(torch.tensor([[1, 2]]), 8, temperature=0).tolist()


def test_a_write_that_torch_does_not_count_is_seen_at_the_next_generation(monkeypatch):
    model = with_screened_head(monkeypatch)
    model.lm_head.weight.data.copy_(model.lm_head.weight.flip(0).clone())
    assert greedy(model, False, monkeypatch) == greedy(model, True, monkeypatch)


def test_a_head_that_is_replaced_or_has_a_bias_or_a_hook_is_called(monkeypatch):
    model = with_screened_head(monkeypatch)
    model.lm_head = nn.Linear(16, 400, bias=False)
    assert greedy(model, False, monkeypatch) == greedy(model, True, monkeypatch)
    model.lm_head = nn.Linear(16, 400)
    model.lm_head.bias[7] = 100
    assert greedy(model, False, monkeypatch)[0][2:] == [7] * 8
    model = with_screened_head(monkeypatch)
    model.lm_head.register_forward_hook(lambda _, __, y: torch.nn.functional.one_hot(torch.full(y.shape[:-1], 9), 400))
    assert greedy(model, False, monkeypatch)[0][2:] == [9] * 8


def test_a_vocabulary_cut_between_two_tokens_holds_at_once(monkeypatch):
    model = with_screened_head(monkeypatch)
    stream = model.stream(torch.tensor([[1, 2]]), 8, temperature=0)
    next(stream), next(stream)
    model.limit_sampling(10)
    assert all(int(token) < 10 for token in stream)


def test_a_model_made_in_inference_mode_generates(monkeypatch):
    monkeypatch.setattr(likeliest, "LARGE", 0)
    with torch.inference_mode():
        model = GPT(GPTConfig(block_size=32, vocab_size=400, n_layer=1, n_head=2, n_embd=16))
        assert model.generate(torch.tensor([[1, 2]]), 8, temperature=0).shape == (1, 10)
