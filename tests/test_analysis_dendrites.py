"""What wiggle/analysis_dendrites.py measures of dendritic units, against numbers found another way."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from model_bio import DendriticMLP, GPTConfig
from tests.conftest import branch_usage
from wiggle.analysis_dendrites import information, measure_dendrites
from wiggle.figures import Text


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def mutual_information(winners, labels):
    """I(winner; label) in bits, from the definition."""
    n, both = len(winners), Counter(zip(winners, labels, strict=True))
    one, other = Counter(winners), Counter(labels)
    return sum(c / n * math.log2(c * n / (one[w] * other[label])) for (w, label), c in both.items())


def test_a_winner_that_the_token_decides_tells_its_whole_entropy():
    mlp = DendriticMLP(GPTConfig(n_layer=1, n_head=1, n_embd=4, mlp="dendritic", bias=False))
    weight = mlp.c_fc.weight.data.zero_().view(2, mlp.hidden, 4)  # (K, F, C); a tie goes to the first branch
    weight[0, 0, :1] = weight[1, 0, 1:] = 1  # unit 0: token a pulls one branch, b, c and d the other
    draw = torch.Generator().manual_seed(0)
    token = torch.randint(4, (4000,), generator=draw)
    labels = {"token": token, "class": token // 2, "position": torch.randint(8, (4000,), generator=draw)}
    figures = measure_dendrites(mlp, torch.eye(4)[token], Text(token, list("abcd"), labels))
    usage, effective = branch_usage(mlp, torch.eye(4)[token])
    p = (token == 0).float().mean().item()
    whole = -p * math.log2(p) - (1 - p) * math.log2(1 - p)
    bits = {what: told["bits"] for what, told in figures["information"].items()}
    chance = mlp.hidden * figures["information"]["token"]["shuffled"].mean()  # unit 0's: the others' winners are fixed
    assert bits["token"][0] == pytest.approx(whole - chance, abs=1e-5) and 0 < chance < 2e-3
    assert figures["winner_entropy"][0] == pytest.approx(whole, abs=1e-5)
    assert 0.2 < bits["class"][0] < whole - 0.2 and abs(bits["position"][0]) < 2e-3
    assert np.allclose(bits["token"][1:], 0) and np.allclose(figures["winner_entropy"][1:], 0, atol=1e-6)
    assert figures["dead"] == pytest.approx((mlp.hidden - 1) / (2 * mlp.hidden))
    assert np.allclose(figures["usage"], usage.flatten()) and np.allclose(figures["effective_branches"], effective)
    assert figures["units"][0]["unit"] == 0
    assert [dict(branch) for branch in figures["units"][0]["tokens"]] == [{"a": 1.0}, {"b": 1.0, "c": 1.0, "d": 1.0}]


def test_information_is_that_of_its_definition_and_chance_is_taken_off():
    draw = torch.Generator().manual_seed(1)
    winners, labels = torch.randint(3, (600, 2), generator=draw), torch.randint(5, (600,), generator=draw)
    winners[:, 1] = torch.where(torch.rand(600, generator=draw) < 0.5, labels % 3, winners[:, 1])
    wins = torch.stack([(winners == k).float() for k in range(3)])
    bits, counts = information(wins, labels)
    for unit in range(2):
        expected = mutual_information(winners[:, unit].tolist(), labels.tolist())
        assert bits[unit].item() == pytest.approx(expected, abs=1e-5)
    assert torch.equal(counts.sum((0, 1)), torch.full((2,), 600.0))
    orders = [labels[torch.randperm(600, generator=draw)] for _ in range(10)]
    chance = torch.stack([information(wins, order)[0] for order in orders]).mean(0)
    expected = (3 - 1) * (5 - 1) / (2 * 600 * math.log(2))  # the bias of so small a sample (Miller, 1955)
    assert torch.allclose(chance, torch.tensor(expected), rtol=0.3)
    assert abs(bits[0] - chance[0]) < 0.01 and bits[1] - chance[1] > 0.2
