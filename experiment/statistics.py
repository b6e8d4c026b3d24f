"""Differences paired by seed, their intervals, and verdicts corrected for the number of arms."""

from dataclasses import dataclass, field

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests

NAN = float("nan")
ALPHA = 0.05
ENOUGH_SEEDS = 3  # for a verdict


@dataclass
class Difference:
    """
    An arm minus the control, paired by seed, in nats a token: below 0 is better.

    low..high: 95 % interval of the mean by Student's t; p: two-sided; p_holm: corrected for the number of arms.
    NaN where there are too few seeds to tell. Seeds with which either diverged are in none of these numbers but p.
    """

    values: np.ndarray = field(default_factory=lambda: np.zeros(0))  # (seeds with a finite loss on both sides,)
    mean: float = NAN
    low: float = NAN
    high: float = NAN
    p: float = NAN
    p_holm: float = NAN
    verdict: str = "no verdict"
    diverged: int = 0  # seeds with which the arm diverged and the control did not
    complete: bool = True  # every planned seed has a finite loss on both sides


def paired(arm: dict[int, float | None], control: dict[int, float | None], seeds: range | list[int]) -> Difference:
    """
    Losses by seed of both, None where a run diverged -> Difference over the planned seeds, without a verdict.

    An arm that diverged is judged by ranks, its diverged seeds as the worst: Wilcoxon's signed-rank test (1945). Where
    the control diverged there is no p, and so no verdict.
    """
    both = [seed for seed in seeds if seed in arm and seed in control]
    values = np.array([arm[seed] - control[seed] for seed in both if None not in (arm[seed], control[seed])])
    found = Difference(values, complete=len(values) == len(seeds))
    found.diverged = sum(arm[seed] is None and control[seed] is not None for seed in both)
    if len(values):
        found.mean = values.mean()
    if len(values) >= 2:
        found.mean, found.low, found.high, found.p = t_test(values)
    if found.diverged:
        found.p = rank_test(values, found.diverged)
    if None in control.values():
        found.p = NAN
    return found


def t_test(values: np.ndarray) -> tuple[float, float, float, float]:
    """Student's t of paired differences -> (mean, lower and upper end of its 95 % interval, two-sided p)."""
    if not values.any():  # the same model twice: no spread to make a t of
        return 0.0, 0.0, 0.0, 1.0
    test = stats.ttest_1samp(values, 0.0)
    return values.mean(), *test.confidence_interval(1 - ALPHA), test.pvalue


def rank_test(values: np.ndarray, diverged: int) -> float:
    """
    p of "the arm is worse", doubled so that it stands beside two-sided ones; each diverged seed outranks all finite
    differences.
    """
    above_all = np.abs(values).max(initial=0.0) + 1 + np.arange(diverged)
    return min(1.0, 2 * stats.wilcoxon(np.concatenate([values, above_all]), alternative="greater").pvalue)


def judge(differences: list[Difference], alpha: float = ALPHA) -> list[Difference]:
    """
    Correct the p of all differences after Holm (1979) and give verdicts; fewer than 3 seeds get none.

    An arm is never better while one of its seeds, or of the control's, is missing or diverged.
    """
    judged = [d for d in differences if len(d.values) + d.diverged >= ENOUGH_SEEDS and not np.isnan(d.p)]
    corrected = multipletests([d.p for d in judged], method="holm")[1] if judged else []
    for d, p in zip(judged, corrected, strict=True):
        d.p_holm = p
        d.verdict = "inconclusive"
        if p < alpha and (d.diverged or d.mean > 0):
            d.verdict = "worse"
        elif p < alpha and d.complete:
            d.verdict = "better"
    return differences
