"""The report's words on how non-linear its arms start and end."""

import pytest

from experiment.nonlinearity import by_layer, nonlinearity_section, notes_on_starts
from experiment.study import Arm, ArmCost, ArmResult
from train import TrainConfig


def result(name, *starts, end=((1.0, 0.3), (1.0, 0.1))):
    """An arm with a run for each of `starts`: by layer (standard deviation, non-linear share)."""
    runs = {seed: {"loss": 1.0, "nonlinearity": {"start": start, "end": end}} for seed, start in enumerate(starts)}
    return ArmResult(Arm(name, {}, TrainConfig()), ArmCost(1, 1.0, 1.0, 1.0), (), runs)


def test_the_table_is_the_mean_over_seeds_by_layer():
    gelu = result("gelu", [[0.2, 0.06], [0.3, 0.08]], [[0.4, 0.08], [0.3, 0.10]])
    assert by_layer(gelu, "start").ravel().tolist() == pytest.approx([0.3, 0.07, 0.3, 0.09])
    assert "| gelu | 0.30 0.30 | 0.07 0.09 | 1.00 1.00 | 0.30 0.10 |" in nonlinearity_section([gelu])


def test_arms_that_start_more_than_a_factor_of_two_apart_are_noted_with_the_figure():
    gelu, even = result("gelu", [[0.2, 0.06]]), result("sintanh", [[0.2, 0.98]])
    (note,) = notes_on_starts([(even, gelu)])
    assert "sintanh and gelu start apart: the non-linear share" in note and "0.98 against 0.06" in note
    wide = result("wide", [[0.5, 0.07]])
    assert "standard deviation of c_fc's output is 0.50 against 0.20" in notes_on_starts([(wide, gelu)])[0]
    assert notes_on_starts([(result("near", [[0.39, 0.11]]), gelu)]) == []


def test_ledgers_without_the_figures_say_nothing():
    old = ArmResult(Arm("old", {}, TrainConfig()), ArmCost(1, 1.0, 1.0, 1.0), (), {1: {"loss": 1.0}})
    assert nonlinearity_section([old]) == [] and notes_on_starts([(result("new", [[0.2, 0.9]]), old)]) == []
