"""What the report says, from made-up runs: verdicts, seeds, tuning noise, power, and no NaN."""

from pathlib import Path

import pytest

from experiment import report
from experiment.markdown import number
from experiment.study import Arm, ArmCost, ArmResult, CompareOptions, Comparison, Study
from experiment.tuning import Tuning
from train import TrainConfig

LOSSES = {"gelu": [2.00, 2.02, 2.01, 2.03], "bio": [1.90, 1.93, 1.90, 1.92], "silu": [2.001, 2.021, 2.012, 2.029]}


def study_of(out_dir, losses, swept=None, also=(), tuning_seeds=2, margin=None, target_loss=None, finalists=None):
    arms = [
        Arm(name, {"mlp": name}, TrainConfig(mlp=name, max_iters=500, device="cpu", dtype="float32")) for name in losses
    ]
    options = CompareOptions(
        vary=[f"mlp={','.join(losses)}"],
        control=None,
        seeds=4,
        sweep=[],
        also=[],
        tuning_seeds=tuning_seeds,
        finalists=finalists,
        match="steps",
        power=0.01,
        margin=margin,
        target_loss=target_loss,
        jobs=1,
        executor="processes",
        slurm=None,
        out_dir=None,
        reuse=None,
        keep=False,
        report=False,
    )
    seeds = {"tuning": range(1000, 1000 + tuning_seeds), "reporting": range(4)}
    return Study(options, ["config.py"], arms, swept or {}, list(also), Path(out_dir), seeds, 1)


def comparison_of(study, losses, where="", point=()):
    results = []
    for arm in study.arms:
        runs = {seed: {"loss": loss, "peak_mb": 10.0, "curve": []} for seed, loss in enumerate(losses[arm.name])}
        results.append(ArmResult(arm, ArmCost(1000, 1e6, 5.0, 1.0), point, runs))
    return Comparison(where, results)


def text_of(tmp_path, losses, **more):
    study = study_of(tmp_path, losses, **more)
    printed = report.write(study, [comparison_of(study, losses)], {}, [], ["config.py"])
    return (tmp_path / "report.md").read_text(), "\n".join(printed)


def test_a_verdict_stands_with_its_interval_and_its_seeds(tmp_path):
    text, printed = text_of(tmp_path, LOSSES)
    assert "- bio: **better** (-0.1025 nats a token, 95 % interval -0.1177 to -0.0873, 4 seeds)" in text
    assert "-0.1025 [-0.1177, -0.0873] better" in printed


def test_a_diverged_seed_is_told_wherever_the_arm_stands_and_nothing_is_nan(tmp_path):
    text, printed = text_of(tmp_path, LOSSES | {"bio": [1.90, None, 1.90, 1.92]})
    assert "- bio: **inconclusive** (" in text and "3 of 4 seeds, 1 diverged)" in text
    assert "(3 of 4 seeds, 1 diverged) |" in text and "judged by ranks" in text
    text, printed = text_of(tmp_path, LOSSES | {"bio": [None] * 4})
    assert "0 of 4 seeds, 4 diverged" in text and "nan" not in text + printed
    assert "diverge" not in text_of(tmp_path, LOSSES)[0]


def test_the_report_says_what_the_seeds_resolve(tmp_path):
    text, printed = text_of(tmp_path, LOSSES)
    assert "## Power" in text and "| arm | sd of paired differences | resolved | seeds for 0.01 |" in text
    assert "| silu | 0.0013 | " in text and "p < 0.05 / 2" in text
    assert "power     4 seeds find " in printed


def test_equivalence_is_a_verdict_where_a_margin_is_given(tmp_path):
    text, _ = text_of(tmp_path, LOSSES, margin=0.01)
    assert "- silu: **equivalent**" in text and "differs by less than 0.01 nats" in text
    text, _ = text_of(tmp_path, LOSSES)
    assert "- silu: **inconclusive**" in text and "equivalent" not in text


def tuning_of(losses, tuning_seeds):
    whole = {point: found for point, found in losses.items() if len(found) == tuning_seeds}
    return Tuning(whole, {point: found for point, found in losses.items() if point not in whole})


def tuned(tmp_path, losses, tuning_seeds, **more):
    swept = {"learning_rate": [1e-3, 2e-3], "c_fc_std": [None, "unit"]}
    also = [("c_fc_std", None)]
    study = study_of(tmp_path, LOSSES, swept=swept, also=also, tuning_seeds=tuning_seeds, **more)
    comparisons = [
        comparison_of(study, LOSSES, "", (2e-3, "unit")),
        comparison_of(study, LOSSES, "c_fc_std=None", (1e-3, None)),
    ]
    report.write(
        study, comparisons, {arm.name: tuning_of(losses, tuning_seeds) for arm in study.arms}, [], ["config.py"]
    )
    return (tmp_path / "report.md").read_text()


def test_the_grid_of_tuning_has_a_row_for_each_arm_and_scale(tmp_path):
    losses = {(1e-3, None): [2.0, 2.12], (2e-3, None): [2.2, float("inf")], (2e-3, "unit"): [1.9, 1.92]}
    text = tuned(tmp_path, losses, 2)
    assert "| arm | c_fc_std | learning_rate 0.001 | learning_rate 0.002 |" in text
    assert "| gelu | None | 2.0600 | diverged |" in text and "| gelu | unit | – | **1.9100** |" in text
    lead = "leads the second best by 0.1500 (median over arms), which varies over tuning seeds by a standard deviation"
    assert f"{lead} of 0.0707 (0.0707 at most)" in text  # 0.10 and 0.20
    assert "## At c_fc_std=None" in text and (tmp_path / "table-c_fc_std=None.csv").is_file()
    assert "python train.py config.py --mlp=bio --learning_rate=0.002 --c_fc_std=unit --seed=0" in text


def test_points_that_the_first_seed_left_behind_stand_in_brackets(tmp_path):
    losses = {
        (1e-3, None): [2.0, 2.12],
        (2e-3, None): [2.2],
        (1e-3, "unit"): [float("inf")],
        (2e-3, "unit"): [1.9, 1.92],
    }
    text = tuned(tmp_path, losses, 2, finalists=1)
    assert "| gelu | None | 2.0600 | (2.2000) |" in text and "| gelu | unit | (diverged) | **1.9100** |" in text
    assert "Of each arm the best point and the best of those with c_fc_std=None went on from the first" in text
    assert "Numbers in brackets are of points with fewer seeds" in text


def test_one_tuning_seed_leaves_the_noise_of_the_choice_unknown(tmp_path):
    assert "With one tuning seed the noise of this choice is not known" in tuned(tmp_path, {(2e-3, "unit"): [1.9]}, 1)


@pytest.mark.parametrize(("value", "form", "text"), [(float("nan"), ".2f", "–"), (1234.5, ",.0f", "1,234")])
def test_a_number_that_is_not_known_is_a_dash(value, form, text):
    assert number(value, form) == text
