"""When a run is down to a loss: interpolated between evaluations, censored where it never is."""

import math

import pytest

from experiment import report
from experiment.study import ArmResult
from experiment.targets import NEVER, arrival, median_arrival
from tests.test_experiment_report import comparison_of, study_of

CURVE = [[100_000, 2.4], [200_000, 2.2], [300_000, 2.0]]


def test_a_target_between_two_evaluations_is_interpolated():
    assert arrival(CURVE, 2.1).tokens == pytest.approx(250_000)
    assert arrival(CURVE, 2.2).tokens == pytest.approx(200_000)
    assert arrival(CURVE, 2.1).text == "0.250M"


def test_the_first_time_counts():
    assert arrival([[1e5, 3.0], [2e5, 1.0], [3e5, 3.0], [4e5, 1.0]], 2.0).tokens == pytest.approx(1.5e5)


def test_a_run_that_was_there_at_its_first_evaluation_is_there_by_then():
    assert arrival(CURVE, 2.5) == (found := arrival(CURVE, 2.4)) and found.text == "≤ 0.100M"


def test_a_run_that_never_gets_there_is_censored_and_so_is_one_that_diverged():
    assert (arrival(CURVE, 1.9).tokens, arrival(CURVE, 1.9).text) == (NEVER, "> 0.300M")
    assert (arrival([], 1.9).tokens, arrival([], 1.9).text) == (NEVER, "diverged")


def result_of(study, *curves):
    (result, *_) = comparison_of(study, {arm.name: [2.0] for arm in study.arms}).results
    return ArmResult(result.arm, result.cost, (), {seed: {"curve": curve} for seed, curve in enumerate(curves)})


def test_a_censored_seed_counts_in_the_median_as_later_than_all_others(tmp_path):
    study = study_of(tmp_path, {"gelu": []}, target_loss=2.1)
    late = [[100_000, 2.4], [300_000, 2.2]]
    tokens, seconds, reached = median_arrival(result_of(study, CURVE, CURVE, late), 2.1)
    config = study.arms[0].config
    assert tokens == pytest.approx(250_000) and reached == 2
    assert seconds == pytest.approx(250_000 / (config.sequences_per_step * config.block_size) * 0.005)  # 5 ms a step
    tokens, seconds, reached = median_arrival(result_of(study, CURVE, late, late), 2.1)
    assert math.isnan(tokens) and math.isnan(seconds) and reached == 1


def test_the_report_and_the_table_hold_every_seed(tmp_path):
    losses = {"gelu": [2.0] * 4, "bio": [1.9] * 4}
    study = study_of(tmp_path, losses, target_loss=2.1)
    comparison = comparison_of(study, losses)
    for result in comparison.results:
        for seed, run in result.runs.items():
            run["curve"] = CURVE[: 2 + (seed > 0)]
    report.write(study, [comparison], {}, [], ["config.py"])
    text, table = (tmp_path / "report.md").read_text(), (tmp_path / "table.csv").read_text()
    assert "## Time to a loss of 2.1" in text and "interpolated linearly" in text
    assert "| bio | 3 of 4 | 0.250M |" in text and "| > 0.200M | 0.250M, " in text
    assert "tokens_to_target,seconds_to_target,seeds_at_target" in table and "250000" in table
