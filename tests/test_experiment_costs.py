"""What an arm costs: operations of its activation, and how sure a ratio of times is."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from experiment import costs
from experiment.costs import activation_flops_per_token, operations_of, standard_error_of_ratio
from experiment.ledger import Ledger
from experiment.study import Arm
from kernels.activations import ACTIVATIONS
from model_bio import GPT, GPTConfig
from tests.test_experiment_report import study_of
from train import TrainConfig

# As the equations are written, by hand: +, -, ·, /, max, exp, sin, cos, tanh, erf and root count one each.
BY_HAND = {
    "gelu": "x / √2, erf, 1 +, · x, / 2",
    "relu": "max",
    "relu2": "max, square",
    "silu": "-, exp, 1 +, x /",
    "swiglu": "-, exp, 1 +, x /, · z",
    "snake": "a · x, sin, square, / a, x +",
    "gcu": "cos, · x",
    "golu": "-, exp, -, exp, · x",
    "sintanh": "sin, tanh, ·",
}


@pytest.mark.parametrize("name", BY_HAND)
def test_operations_of_an_activation_are_those_of_its_equation(name):
    assert ACTIVATIONS[name].operations == len(BY_HAND[name].split(","))


def test_a_gate_and_branches_cost_more_than_the_oscillation_alone():
    none, feature, dense = (operations_of(GPTConfig(mlp="bio", bio_gate=gate)) for gate in ("none", "feature", "dense"))
    assert (none, feature, dense) == (6, 25, 23)
    assert operations_of(GPTConfig(mlp="bio", bio_event="hard")) == 8
    assert operations_of(GPTConfig(mlp="dendritic", dendritic_branches=2)) == 10
    assert math.isnan(operations_of(GPTConfig(mlp="mine.py:Wave")))


@pytest.mark.parametrize(("mlp", "hidden"), [("relu", 64), ("swiglu", 42)])
def test_an_activation_counts_on_each_hidden_unit_of_each_layer_three_times(mlp, hidden):
    with torch.device("meta"):
        model = GPT(GPTConfig(block_size=8, vocab_size=10, n_layer=3, n_head=2, n_embd=16, bias=False, mlp=mlp))
    assert model.transformer.h[0].mlp.hidden == pytest.approx(hidden, abs=1)
    expected = 3 * 3 * model.transformer.h[0].mlp.hidden * ACTIVATIONS[mlp].operations
    assert activation_flops_per_token(model) == expected < 0.2 * model.flops_per_token()


def test_the_error_of_a_ratio_is_that_of_its_mean_over_rounds():
    assert standard_error_of_ratio([20.0, 22.0, 21.0], [10.0, 10.0, 10.0]) == pytest.approx(0.1 / np.sqrt(3))
    assert standard_error_of_ratio([20.0, 40.0], [10.0, 20.0]) == 0  # a machine that was slow for both tells nothing
    assert math.isnan(standard_error_of_ratio([20.0], [10.0]))


def test_ratios_of_one_ledger_have_one_base_whatever_the_control_was(tmp_path, monkeypatch):
    ms = {"gelu": 10.0, "bio": 20.0, "relu2": 11.0}
    monkeypatch.setattr(costs, "first_steps_alone", lambda study, models, *a: [([], [ms[c.mlp]]) for c, _ in models])
    ledger, study = Ledger(tmp_path / "runs.jsonl"), study_of("", {"gelu": []})
    for names in (["gelu", "bio"], ["bio", "relu2"]):
        arms = [Arm(name, {"mlp": name}, TrainConfig(mlp=name)) for name in names]
        timed = costs.time_arms(dataclasses.replace(study, arms=arms), {TrainConfig().dataset: {}}, ledger)
    assert [timed[name][1] for name in ("bio", "relu2")] == pytest.approx([2.0, 1.1])
