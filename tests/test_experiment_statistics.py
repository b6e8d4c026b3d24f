"""Paired differences against scipy, Holm's correction, and which verdicts may be given."""

import math
import warnings

import numpy as np
import pytest
from scipy import stats

from experiment.statistics import Difference, judge, paired
from train import train


def by_seed(values):
    return dict(enumerate(values))


def verdict_of(arm, control, seeds=None):
    (found,) = judge([paired(by_seed(arm), by_seed(control), range(seeds or len(control)))])
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


def difference(mean, p, n=5):
    return Difference(np.full(n, mean), mean, p=p)


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
    assert verdict_of(LOW[:5], HIGH) == "inconclusive"
    assert verdict_of(LOW, HIGH[:5], seeds=6) == "inconclusive"
    assert verdict_of(HIGH[:5], LOW) == "worse"
