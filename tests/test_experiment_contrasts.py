"""Which differences are tested: each arm's to the control of its level, and the interactions."""

import numpy as np
import pytest

from experiment.contrasts import control_of, level_key, make_contrasts
from experiment.study import Arm, ArmCost, ArmResult, Study
from tests.test_experiment_report import study_of
from train import TrainConfig
from wiggle.errors import UserError


def grid_study(cells, control=None, seeds=4, vary=None):
    """A Study whose arms have these settings, the first one the control, and no runs."""
    arms = [Arm(" ".join(map(str, settings.values())), settings, TrainConfig()) for settings in cells]
    options = study_of("", {"gelu": []}).options
    vary = vary or [f"{key}=a,b" for key in max(cells, key=len)]
    options = type(options)(**vars(options) | {"control": control, "margin": None, "vary": vary})
    return Study(options, [], arms, {}, [], None, {"reporting": range(seeds)}, 1)


def grid(first, second, key="n_layer"):
    return [{"mlp": a, key: b} for a in first for b in second]


def results_of(study, losses):
    """losses: by arm's name, one a seed."""
    return [
        ArmResult(arm, ArmCost(1, 1.0, 1.0, 1.0), (), {seed: {"loss": x} for seed, x in enumerate(losses[arm.name])})
        for arm in study.arms
    ]


def controls(study):
    return [control_of(study, arm).name for arm in study.arms]


def test_each_value_of_the_second_key_has_its_own_control():
    study = grid_study(grid(["gelu", "relu2"], [1, 2]))
    assert controls(study) == ["gelu 1", "gelu 2", "gelu 1", "gelu 2"]


def test_keys_varied_together_are_one_side_of_a_grid():
    cells = [{"mlp": a, "c_fc_std": b, "n_layer": c} for a, b in (("gelu", 0.02), ("relu2", 0.1)) for c in (1, 2)]
    assert controls(grid_study(cells, vary=["mlp+c_fc_std=a,b", "n_layer=1,2"])) == ["gelu 0.02 1", "gelu 0.02 2"] * 2
    flat = [{"mlp": "gelu", "n_layer": 2}, {"mlp": "relu2", "n_layer": 2}, {"mlp": "gelu", "n_layer": 4}]
    assert controls(grid_study(flat, vary=["mlp+n_layer=a,b"])) == ["gelu 2"] * 3


def test_a_level_without_its_control_is_refused():
    study = grid_study(grid(["gelu", "relu2"], [1, 2])[:1] + grid(["relu2"], [1, 2]))
    with pytest.raises(UserError, match="relu2 2 has no control, which would be gelu 1 with n_layer=2"):
        controls(study)


def test_a_control_that_is_named_serves_all_arms():
    assert controls(grid_study(grid(["gelu", "relu2"], [1, 2]), control="gelu 1")) == ["gelu 1"] * 4


def test_an_arm_that_does_not_read_the_second_key_is_the_control_of_all():
    cells = [{"mlp": "gelu"}, {"mlp": "bio", "bio_gate": "none"}, {"mlp": "bio", "bio_gate": "feature"}]
    study = grid_study(cells)
    assert controls(study) == ["gelu"] * 3
    results = results_of(study, {key: [1.0, 2.0, 3.0, 4.0] for key in ["gelu", "bio none", "bio feature"]})
    assert [contrast.is_interaction for contrast in make_contrasts(study, results)] == [False, False]


def test_an_interaction_is_the_difference_of_two_differences_and_is_corrected_with_them():
    study, draw = grid_study(grid(["gelu", "relu2"], [1, 2]), seeds=6), np.random.default_rng(0)
    seed_effect = draw.normal(0, 0.1, 6)  # of each seed, which pairing takes away
    means = {"gelu 1": 2.0, "gelu 2": 1.9, "relu2 1": 1.95, "relu2 2": 1.70}
    losses = {name: mean + seed_effect + draw.normal(0, 0.005, 6) for name, mean in means.items()}
    found = {contrast.name: contrast for contrast in make_contrasts(study, results_of(study, losses))}
    assert list(found) == ["relu2 1", "relu2 2", "interaction of relu2 2"]
    assert found["relu2 2"].control == "gelu 2" and found["interaction of relu2 2"].control == "relu2 1"
    apart = (losses["relu2 2"] - losses["gelu 2"]) - (losses["relu2 1"] - losses["gelu 1"])
    interaction = found["interaction of relu2 2"]
    assert interaction.difference.values == pytest.approx(apart)
    assert interaction.verdict == "gains more" and found["relu2 1"].verdict == "better"
    ps = sorted(contrast.difference.p for contrast in found.values())
    assert min(contrast.difference.p_holm for contrast in found.values()) == pytest.approx(3 * ps[0])


def test_an_interaction_with_a_diverged_run_has_no_verdict():
    study, losses = grid_study(grid(["gelu", "relu2"], [1, 2])), [1.0, 1.1, 1.2, 1.3]
    by_arm = dict.fromkeys(["gelu 1", "gelu 2", "relu2 1"], losses) | {"relu2 2": [1.0, None, 1.0, 1.0]}
    found = {contrast.name: contrast for contrast in make_contrasts(study, results_of(study, by_arm))}
    assert found["interaction of relu2 2"].verdict == "no verdict"
    assert found["relu2 2"].verdict == "inconclusive"


def test_each_dataset_has_its_own_control_and_there_is_no_interaction():
    study = grid_study(grid(["gelu", "bio"], ["a", "b"], "dataset"), control="gelu a")
    assert level_key(study) == "dataset" and controls(study) == ["gelu a", "gelu b"] * 2
    results = results_of(study, {key: [1.0, 2.0, 3.0, 4.0] for key in ["gelu a", "gelu b", "bio a", "bio b"]})
    assert [contrast.name for contrast in make_contrasts(study, results)] == ["bio a", "bio b"]
    only = grid_study([{"dataset": "a"}, {"dataset": "b"}])
    results = results_of(only, {key: [1.0, 2.0, 3.0, 4.0] for key in ["a", "b"]})
    assert make_contrasts(only, results) == []
