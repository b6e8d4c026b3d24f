"""Differences against scipy and statsmodels, which verdicts may be given, and how often they are wrong."""

import itertools
import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from experiment.statistics import (
    ALPHA,
    Difference,
    holm,
    judge,
    paired,
    power_of,
    resolved,
    sd_range,
    seeds_needed,
)
from train import train


def by_seed(values):
    return dict(enumerate(values))


def verdict_of(arm, control, seeds=None, margin=None):
    (found,) = judge([paired(by_seed(arm), by_seed(control), range(seeds or len(control)))], margin)
    return found.verdict


def test_paired_is_the_t_test_of_scipy():
    draw = np.random.default_rng(0)
    control, arm = draw.normal(1.7, 0.01, 6), draw.normal(1.69, 0.01, 6)
    found = paired(by_seed(arm), by_seed(control) | {99: 5.0}, range(6))
    expected = stats.ttest_rel(arm, control)
    half = stats.t.ppf(0.975, 5) * np.std(arm - control, ddof=1) / math.sqrt(6)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert found.mean == pytest.approx((arm - control).mean())
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half))
    assert found.complete and found.diverged == 0


@pytest.mark.parametrize("ps", [[0.03, 0.001, 0.04], [0.5, 0.5, 0.01, 0.02], [1.0, 0.9], [0.0, 0.2], [0.3], []])
def test_holm_is_that_of_statsmodels(ps):
    expected = multipletests(ps, method="holm")[1] if ps else []
    assert [corrected for corrected, _ in holm(ps)] == pytest.approx(list(expected))


def difference(mean, p, n=5):
    return Difference(np.linspace(0.9, 1.1, n) * mean, mean, p=p)


def draws(arms, seeds, shift=0.0):
    """Made-up differences of several arms, unjudged."""
    generator = np.random.default_rng(arms * 1000 + seeds)
    control = by_seed(np.zeros(seeds))
    return [paired(by_seed(generator.normal(shift * arm, 0.01, seeds)), control, range(seeds)) for arm in range(arms)]


def test_the_corrected_interval_excludes_0_where_the_corrected_p_is_below_alpha():
    outcomes = set()
    for seeds in range(3, 40):
        for d in judge(draws(4, seeds, shift=0.004)):
            assert (d.low_holm > 0 or d.high_holm < 0) == (d.p_holm < ALPHA)
            assert d.low_holm <= d.low and d.high <= d.high_holm
            outcomes.add(d.p_holm < ALPHA)
    assert outcomes == {True, False}


def test_equivalence_is_two_one_sided_tests():
    (d,) = judge(draws(1, 8), margin=0.02)
    assert d.p_equivalent == pytest.approx(ttost_paired(d.values, np.zeros(8), -0.02, 0.02)[0])
    assert d.verdict == "equivalent"
    assert judge(draws(1, 8), margin=0.001)[0].verdict == "inconclusive"
    assert judge(draws(1, 8))[0].verdict == "inconclusive"


def test_the_interval_of_equivalence_lies_within_the_margin_where_its_p_is_below_alpha():
    outcomes = set()
    for seeds in range(3, 40):
        for d in judge(draws(4, seeds, shift=0.002), margin=0.01):
            assert (d.low_equivalent > -0.01 and d.high_equivalent < 0.01) == (d.p_equivalent < ALPHA)
            outcomes.add(d.p_equivalent < ALPHA)
    assert outcomes == {True, False}


def test_a_difference_that_is_certain_and_within_the_margin_is_equivalent():
    (d,) = judge([paired(by_seed([1.004, 1.005, 1.006] * 3), by_seed([1.0] * 9), range(9))], margin=0.01)
    assert d.p_holm < ALPHA and d.verdict == "equivalent"
    same = by_seed([1.0, 1.1, 1.2])
    assert judge([paired(same, same, range(3))], margin=0.01)[0].verdict == "equivalent"


def test_verdicts_take_holms_p_and_three_seeds():
    first, second, third, few = judge(
        [difference(-0.1, 0.03), difference(0.2, 0.001), difference(-0.3, 0.04), difference(-1, 1e-9, n=2)]
    )
    assert [d.p_holm for d in (second, first, third)] == pytest.approx([0.003, 0.06, 0.06])
    verdicts = ["inconclusive", "worse", "inconclusive", "no verdict"]
    assert [d.verdict for d in (first, second, third, few)] == verdicts
    assert judge([difference(-0.1, 0.03)])[0].verdict == "better"


@pytest.mark.parametrize("seeds", [0, 1, 2, 3, 5])
def test_arms_without_any_difference_are_inconclusive(seeds):
    same = by_seed([1.5 + 0.1 * i for i in range(seeds)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (found,) = judge([paired(same, dict(same), range(seeds))])
    assert found.verdict == ("inconclusive" if seeds >= 3 else "no verdict")
    if seeds >= 2:
        assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_one_arm_against_itself_gets_no_verdict(tiny, tmp_path, monkeypatch):
    """Real runs of one arm, split at random into two "arms": of 2,000 splits at most 6 % may end in a verdict."""
    small = {"n_layer": 1, "n_embd": 8, "n_head": 1, "max_iters": 4, "eval_interval": 4}
    pool = np.array([train(tiny(seed=seed, out_dir=str(tmp_path / str(seed)), **small)).val_loss for seed in range(24)])
    assert len(set(pool)) == 24
    monkeypatch.setattr("gc.collect", lambda: 0)  # statsmodels collects at each call, which takes longer than all else
    draw, false = np.random.default_rng(0), 0
    for _ in range(2000):
        chosen = draw.permutation(pool)[:10]
        false += verdict_of(chosen[:5], chosen[5:]) in ("better", "worse")
    assert 20 <= false <= 0.06 * 2000  # more than a few, too: a test that never speaks would be none


# --- seeds that diverged or are missing ---

NONE = None  # the loss of a run that diverged
LOW, HIGH = [1.80, 1.81, 1.82, 1.80, 1.82, 1.83], [1.90, 1.91, 1.92, 1.91, 1.90, 1.92]


def test_an_arm_with_a_diverged_seed_is_never_better():
    assert verdict_of(LOW, HIGH) == "better"
    for diverged in range(1, 7):
        arm = [*LOW[diverged:], *[NONE] * diverged]
        assert verdict_of(arm, HIGH) in ("inconclusive", "worse")
        assert verdict_of(arm, HIGH, margin=1.0) in ("inconclusive", "worse")


def test_a_diverged_seed_counts_as_worse_than_any_loss():
    assert verdict_of([*HIGH[:5], NONE], LOW) == "worse"
    assert verdict_of([NONE] * 6, LOW) == "worse"
    one_worse_by_far = paired(
        by_seed([1.0, 1.0, 1.0, 1.0, 1.0, 9.0]), by_seed([1.1, 1.2, 1.3, 1.4, 1.5, 1.0]), range(6)
    )
    one_diverged = paired(by_seed([1.0, 1.0, 1.0, 1.0, 1.0, NONE]), by_seed([1.1, 1.2, 1.3, 1.4, 1.5, 1.0]), range(6))
    expected = stats.wilcoxon(one_worse_by_far.values, alternative="greater").pvalue
    assert one_diverged.p == pytest.approx(min(1.0, 2 * expected))


def test_a_diverged_seed_is_in_no_mean():
    found = paired(by_seed([1.0, 1.1, NONE]), by_seed([1.2, 1.2, 1.2]), range(3))
    assert found.mean == pytest.approx(-0.15) and found.diverged == 1 and not found.complete
    assert np.isfinite([found.low, found.high, found.p]).all()


def test_a_control_that_diverged_gives_no_verdicts():
    assert verdict_of(LOW, [*HIGH[:5], NONE]) == "no verdict"
    assert verdict_of([NONE] * 6, [*HIGH[:5], NONE]) == "no verdict"


def test_a_missing_seed_of_either_side_allows_worse_but_not_better():
    assert verdict_of(LOW[:5], HIGH) == verdict_of(LOW[:5], HIGH, margin=1.0) == "inconclusive"
    assert verdict_of(LOW, HIGH[:5], seeds=6) == "inconclusive"
    assert verdict_of(HIGH[:5], LOW) == "worse"


# --- power ---


@pytest.mark.parametrize(
    ("effect", "seeds", "alpha"), [(1.0, 3, 0.05), (1.0, 5, 0.05 / 6), (0.8, 13, 0.05), (2.0, 6, 0.01)]
)
def test_power_is_that_of_the_noncentral_t(effect, seeds, alpha):
    assert power_of(-0.01 * effect, 0.01, seeds, alpha) == pytest.approx(
        TTestPower().power(effect, seeds, alpha), abs=1e-4
    )


def test_seeds_needed_are_the_fewest_and_resolved_is_their_inverse():
    needed = seeds_needed(0.01, 0.012, 0.05)
    assert power_of(0.01, 0.012, needed, 0.05) >= 0.8 > power_of(0.01, 0.012, needed - 1, 0.05)
    assert power_of(resolved(0.012, 5, 0.01), 0.012, 5, 0.01) == pytest.approx(0.8)
    assert seeds_needed(1.0, 0.001, 0.05) == 3 and seeds_needed(1e-5, 0.01, 0.05) is None


def test_the_range_of_a_standard_deviation_is_chi_squares():
    low, high = sd_range(5)
    assert (low, high) == pytest.approx((0.599, 2.874), abs=1e-3)


# --- how often verdicts are wrong: simulations from the differences between real runs ---

REPEATS = 2000


@pytest.fixture(scope="module")
def noise():
    """
    How differences to the control vary with the seed in the committed studies, each scaled to a deviation of 0.01.

    A value is the difference of two seeds' differences over √2: the mean of a few seeds would make tails too light.
    """
    pool = []
    for path in sorted(Path("results").glob("*/runs.jsonl")):
        losses = {}
        for record in map(json.loads, path.read_text().splitlines()):
            if record["kind"] == "reporting" and record["loss"] is not None:
                losses.setdefault((record["arm"], str(record["value"])), {})[record["seed"]] = record["loss"]
        control, *arms = losses.values() or [{}]  # a study that is still tuning has no reporting runs
        differences = [[arm[seed] - control[seed] for seed in arm if seed in control] for arm in arms]
        apart = [(a - b) / math.sqrt(2) for values in differences for a, b in itertools.combinations(values, 2)]
        pool += list(0.01 * np.array(apart) / np.std(apart)) if apart else []
    assert len(pool) > 200
    return np.array([*pool, *np.negative(pool)])


def verdicts_of(noise, means, seeds, margin=None):
    """The verdicts of arms with these true differences, for each of 2,000 simulated comparisons."""
    draw, control, found = np.random.default_rng(0), by_seed(np.zeros(seeds)), []
    for _ in range(REPEATS):
        values = draw.choice(noise, (len(means), seeds)) + np.array(means)[:, None]
        found.append([d.verdict for d in judge([paired(by_seed(v), control, range(seeds)) for v in values], margin)])
    return found


@pytest.mark.parametrize("seeds", [3, 5, 12])
@pytest.mark.slow
def test_a_comparison_without_differences_seldom_ends_in_a_verdict(noise, seeds):
    found = verdicts_of(noise, [0.0, 0.0, 0.0], seeds)
    false = sum("better" in verdicts or "worse" in verdicts for verdicts in found)
    assert 0.01 * REPEATS <= false <= 0.06 * REPEATS


@pytest.mark.parametrize("seeds", [5, 12])
@pytest.mark.slow
def test_arms_that_differ_by_the_margin_are_seldom_equivalent(noise, seeds):
    margin = 0.02
    found = verdicts_of(noise, [margin, -margin, margin], seeds, margin)
    false = sum("equivalent" in verdicts for verdicts in found)
    assert 0.01 * REPEATS <= false <= 0.06 * REPEATS


@pytest.mark.parametrize("seeds", [5, 8, 13])
@pytest.mark.slow
def test_power_is_what_it_is_said_to_be(noise, seeds):
    arms = 3
    size = resolved(noise.std(), seeds, ALPHA / arms)
    found = verdicts_of(noise, [-size, 0.0, 0.0], seeds)
    share = sum(verdicts[0] == "better" for verdicts in found) / REPEATS
    assert abs(share - 0.8) <= 0.05
    assert sum(verdicts[0] == "worse" for verdicts in found) == 0


@pytest.mark.slow
def test_five_looks_make_false_verdicts_three_times_as_frequent(noise):
    draw, control, looks, false = np.random.default_rng(0), by_seed(np.zeros(15)), (3, 6, 9, 12, 15), 0
    for _ in range(REPEATS):
        arm = by_seed(draw.choice(noise, 15))
        found = [judge([paired(arm, control, range(seeds))])[0].verdict for seeds in looks]
        false += found != ["inconclusive"] * len(looks)
    assert 0.12 * REPEATS <= false <= 0.18 * REPEATS  # the report says 15 %
