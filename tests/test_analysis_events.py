"""Who is active when, as wiggle/analysis_events.py measures it."""

import numpy as np
import pytest
import torch

from kernels import event_mlp_cpu
from model_bio import MLP, BioMLP, GPTConfig
from tests.conftest import random_text, untrained
from wiggle.analysis_events import active_units, find_sentence, measure_events, mlp_work
from wiggle.figures import Text


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


SHAPE = {"n_layer": 1, "n_head": 1, "n_embd": 4}
TEXT = random_text()


def test_events_are_told_by_token():
    mlp = BioMLP(GPTConfig(**SHAPE, mlp="bio", bias=False))
    weight = mlp.c_fc.weight.data.zero_()  # (16, 4): x = 0 does not fire, x = 1.5 does
    for token, firing in enumerate((4, 12, 8, 16)):
        weight[:firing, token] = 1.5
    token = torch.tensor([0] * 30 + [1] * 25 + [2] * 20 + [3] * 19)  # the last one is too rare to be named
    figures = measure_events(mlp, torch.eye(4)[token], Text(token, list("abcd"), {"token": token}))[0]
    assert figures["events"] == [
        {"token": "b", "count": 25, "rate": 0.75},
        {"token": "c", "count": 20, "rate": 0.5},
        {"token": "a", "count": 30, "rate": 0.25},
    ]
    assert figures["event_rate"].tolist() == [0.25] * 30 + [0.75] * 25 + [0.5] * 20 + [1.0] * 19


def test_of_an_activation_with_exact_zeros_a_unit_is_active_where_it_is_not_zero():
    mlp = untrained(1, mlp="relu2").transformer.h[0].mlp
    x = torch.randn(400, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(active_units(mlp, x), mlp.c_fc(x) > 0)


@pytest.mark.parametrize("event", ["soft", "hard"])
def test_of_a_gate_a_unit_is_active_where_it_fires(event):
    mlp = untrained(1, mlp="bio", bio_event=event).transformer.h[0].mlp
    x = torch.randn(400, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(active_units(mlp, x), mlp.fires(x)) and mlp.fires(x).any()


def test_units_that_never_and_always_fire_are_counted_and_the_busiest_stand_first():
    mlp = MLP(GPTConfig(**SHAPE, mlp="relu", bias=False), lambda features: torch.nn.ReLU())
    mlp.c_fc.weight.zero_()
    mlp.c_fc.weight[:8, 0] = -1.0  # x = 1 on token a: 8 of 16 units are 0 there
    mlp.c_fc.weight[4:8, 1] = 1.0  # token b
    mlp.c_fc.weight[8:, :2] = 1.0
    token = torch.tensor([0] * 30 + [1] * 10)
    figures, events = measure_events(mlp, torch.eye(4)[token], Text(token[None], list("ab"), {"token": token}))
    assert figures["silent"] == 4 / 16 and figures["always_on"] == 8 / 16 and figures["silence"] == "zeros"
    assert sorted(figures["unit_rate"]) == [0.0] * 4 + [0.25] * 4 + [1.0] * 8
    assert events.active.shape == (16, 40) and events.tokens[:2] == ["a", "a"]
    assert np.array_equal(events.active.mean(1), sorted(figures["unit_rate"], reverse=True))


def sentence(*windows):
    """The sentence that is found in windows of characters, all of one length."""
    tokens = sorted(set("".join(windows)))
    token = torch.tensor([tokens.index(character) for window in windows for character in window])
    found = find_sentence(Text(token.view(len(windows), -1), tokens, {"token": token}))
    return "".join(windows)[found]


def test_the_sentence_is_the_longest_whole_one_of_a_window():
    assert sentence("d. Oh! It is I. I a", "m. No. Yes! It is a") == "It is I."
    assert sentence("no full stop at all", "not in here, either") == "no full stop at all"
    assert sentence("a longer one begins", "in another window. ") == "a longer one begins"


def test_work_is_what_is_left_without_the_rows_of_silent_units():
    hard, soft = (untrained(1, mlp="bio", bio_event=event) for event in ("hard", "soft"))
    matrix = 16 * 64
    whole = {"bytes": 16 * matrix, "multiply_adds": 4 * matrix}
    rates = [{"event_rate": {"mean": rate}} for rate in (0.25, 0.5)]
    assert mlp_work(hard, rates) == whole | {"bytes_left": 11 * matrix, "multiply_adds_left": 2.75 * matrix}
    assert mlp_work(soft, rates) == whole | {"bytes_left": 16 * matrix, "multiply_adds_left": 4 * matrix}
    screened = mlp_work(hard, [layer | {"screened_bytes": 100.0} for layer in rates])
    assert screened["bytes_screened"] == 200


@pytest.mark.skipif(event_mlp_cpu.load_kernel()[0] is None, reason="generation screens with a compiled kernel")
def test_what_generation_reads_of_screened_weights_is_counted():
    x = torch.randn(320, 16, generator=torch.Generator().manual_seed(0))
    quiet, busy = (
        measure_events(untrained(1, mlp="bio", bio_event="hard", bio_target_rate=rate).transformer.h[0].mlp, x, TEXT)
        for rate in (0.05, 0.5)
    )
    least = 64 * (64 + 20)  # the 8-bit copy, a row padded to 64, and what goes with it
    assert least < quiet[0]["screened_bytes"] < busy[0]["screened_bytes"] < least + 2 * 4 * 64 * 16
    assert "screened_bytes" not in measure_events(untrained(1, mlp="bio").transformer.h[0].mlp, x, TEXT)[0]


def test_tokens_of_the_sentence_are_those_of_the_text():
    text = random_text()
    mlp = untrained(1, mlp="relu").transformer.h[0].mlp
    _, events = measure_events(mlp, torch.randn(320, 16), text)
    assert events.tokens == [text.tokens[i] for i in text.labels["token"][:16]]
