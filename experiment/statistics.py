"""Differences paired by seed, intervals, verdicts corrected for the number of arms, and what the seeds can resolve."""

from dataclasses import dataclass, field

import numpy as np
from scipy import optimize, special, stats

NAN = float("nan")
ALPHA = 0.05
ENOUGH_SEEDS = 3  # for a verdict
POWER = 0.8  # the chance with which a difference is to be found
MANY_SEEDS = 1000  # more are not counted


@dataclass
class Difference:
    """
    An arm minus the control, paired by seed, in nats a token: below 0 is better.

    low..high: 95 % interval of the mean by Student's t, of this arm alone; p: two-sided; p_holm: corrected for the
    number of arms; low_holm..high_holm: the interval that excludes 0 where p_holm < 0.05. With a margin, p_equivalent:
    of two one-sided tests that the mean lies within it, corrected alike; low_equivalent..high_equivalent: the interval
    that lies within the margin where p_equivalent < 0.05. NaN where there are too few seeds to tell. Seeds with which
    either diverged are in none of these numbers but p and p_holm.
    """

    values: np.ndarray = field(default_factory=lambda: np.zeros(0))  # (seeds with a finite loss on both sides,)
    mean: float = NAN
    low: float = NAN
    high: float = NAN
    p: float = NAN
    p_holm: float = NAN
    low_holm: float = NAN
    high_holm: float = NAN
    p_equivalent: float = NAN
    low_equivalent: float = NAN
    high_equivalent: float = NAN
    verdict: str = "no verdict"
    diverged: int = 0  # seeds with which the arm diverged and the control did not
    complete: bool = True  # every planned seed has a finite loss on both sides


# --- one arm ---


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
        found.low, found.high = interval(values, ALPHA)
        found.p = t_test(values)
    if found.diverged:
        found.p = rank_test(values, found.diverged)
    if any(control[seed] is None for seed in both):
        found.p = NAN
    return found


def interaction(
    arm: dict[int, float | None],
    control: dict[int, float | None],
    base_arm: dict[int, float | None],
    base_control: dict[int, float | None],
    seeds: range | list[int],
) -> Difference:
    """
    (arm - control) - (base_arm - base_control), paired by seed: losses by seed of four -> Difference without a verdict.

    Ranks do not tell which of four runs a diverged seed speaks against: there is no p while one is missing or diverged.
    """
    found = paired(subtract(arm, control), subtract(base_arm, base_control), seeds)
    if not found.complete:
        found.p = NAN
    return found


def subtract(arm: dict[int, float | None], control: dict[int, float | None]) -> dict[int, float]:
    """The differences of two losses by seed, where both are finite."""
    both = [seed for seed in arm if seed in control and None not in (arm[seed], control[seed])]
    return {seed: arm[seed] - control[seed] for seed in both}


def standard_error(values: np.ndarray) -> float:
    return values.std(ddof=1) / np.sqrt(len(values))


def interval(values: np.ndarray, alpha: float) -> tuple[float, float]:
    """Student's interval of the mean, which misses it with probability alpha."""
    half = special.stdtrit(len(values) - 1, 1 - alpha / 2) * standard_error(values)
    return values.mean() - half, values.mean() + half


def t_test(values: np.ndarray, margin: float = 0.0) -> float:
    """
    p of Student's t: two-sided of "the mean is 0"; with a margin of two one-sided tests, "|mean| is the margin or more"
    (Schuirmann, 1987).
    """
    distance = abs(values.mean()) - margin
    if not values.std():  # the same model twice: no spread to make a t of
        return float(distance >= 0) if margin else float(distance == 0)
    t = distance / standard_error(values)
    return special.stdtr(len(values) - 1, t) if margin else 2 * special.stdtr(len(values) - 1, -t)


def rank_test(values: np.ndarray, diverged: int) -> float:
    """
    p of "the arm is worse", doubled so that it stands beside two-sided ones; each diverged seed outranks all finite
    differences.
    """
    above_all = np.abs(values).max(initial=0.0) + 1 + np.arange(diverged)
    return min(1.0, 2 * stats.wilcoxon(np.concatenate([values, above_all]), alternative="greater").pvalue)


# --- all arms together ---


def judge(differences: list[Difference], margin: float | None = None, alpha: float = ALPHA) -> list[Difference]:
    """
    Correct the p of all differences after Holm (1979) and give verdicts; fewer than 3 seeds get none.

    An arm is never better or equivalent while one of its seeds, or of the control's, is missing or diverged. A
    difference that is certain and yet certainly within the margin is equivalent.
    """
    judged = [d for d in differences if len(d.values) + d.diverged >= ENOUGH_SEEDS and not np.isnan(d.p)]
    for d, (p, factor) in zip(judged, holm([d.p for d in judged]), strict=True):
        d.p_holm = p
        if not d.diverged:
            d.low_holm, d.high_holm = interval(d.values, alpha / factor)
        d.verdict = "inconclusive"
        if p < alpha and (d.diverged or d.mean > 0):
            d.verdict = "worse"
        elif p < alpha and d.complete:
            d.verdict = "better"
    tested = [d for d in judged if margin and d.complete]
    for d, (p, factor) in zip(tested, holm([t_test(d.values, margin) for d in tested]), strict=True):
        d.p_equivalent = p
        d.low_equivalent, d.high_equivalent = interval(d.values, 2 * alpha / factor)
        if p < alpha:
            d.verdict = "equivalent"
    return differences


def holm(ps: list[float]) -> list[tuple[float, float]]:
    """For each p: (p corrected after Holm, the factor by which alpha is divided for it)."""
    if not ps:
        return []
    order = np.argsort(ps, kind="stable")
    ordered = np.array(ps)[order]
    steps = np.arange(len(ps), 0, -1)
    corrected = np.maximum.accumulate(steps * ordered)
    factors = np.divide(corrected, ordered, out=steps.astype(float), where=ordered > 0)
    found = np.empty((len(ps), 2))
    found[order] = np.column_stack([np.minimum(corrected, 1.0), factors])
    return [tuple(row) for row in found.tolist()]


# --- power ---


def power_of(difference: float, sd: float, seeds: int, alpha: float) -> float:
    """
    The chance that a two-sided paired t-test at this alpha finds a difference, where single differences vary by sd.

    This is the tail of the noncentral t, as a mean over 2,000 quantiles of the sample's variance: scipy's own is NaN
    for large differences.
    """
    quantiles = (np.arange(2000) + 0.5) / 2000
    sample_sd = np.sqrt(special.chdtri(seeds - 1, quantiles) / (seeds - 1))  # of a population whose sd is 1
    critical = special.stdtrit(seeds - 1, 1 - alpha / 2) * sample_sd
    shift = abs(difference) / sd * np.sqrt(seeds)
    return float((special.ndtr(shift - critical) + special.ndtr(-shift - critical)).mean())


def seeds_needed(difference: float, sd: float, alpha: float) -> int | None:
    """The fewest seeds that find a difference with a chance of 80 %; None where it takes more than 1,000."""
    low, high = ENOUGH_SEEDS, MANY_SEEDS
    if power_of(difference, sd, high, alpha) < POWER:
        return None
    while low < high:
        middle = (low + high) // 2
        if power_of(difference, sd, middle, alpha) < POWER:
            low = middle + 1
        else:
            high = middle
    return low


def sd_range(seeds: int) -> tuple[float, float]:
    """The 95 % interval of the true standard deviation, as a multiple of the one that so many seeds show."""
    low, high = special.chdtri(seeds - 1, [ALPHA / 2, 1 - ALPHA / 2])
    return float(np.sqrt((seeds - 1) / low)), float(np.sqrt((seeds - 1) / high))


def resolved(sd: float, seeds: int, alpha: float) -> float:
    """The difference that this many seeds find with a chance of 80 %."""
    return sd * optimize.brentq(lambda effect: power_of(effect, 1.0, seeds, alpha) - POWER, 0.0, 1000.0)
