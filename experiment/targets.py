"""Tokens and seconds until a run's validation loss is down to a target, the figure by which records are kept."""

from dataclasses import dataclass

import numpy as np

from experiment.markdown import grid, number
from experiment.statistics import NAN
from experiment.study import ArmResult, Study

NEVER = float("inf")
EXPLANATION = (
    "Tokens, and seconds, until the validation loss was down to the target for the first time: that of the evaluations "
    "during training (eval_iters={}), interpolated linearly between them. Seconds are tokens times the arm's time a "
    "token in the table above: training alone, timed with one process running. A seed that did not get there is "
    "censored: > stands before the tokens that it was trained on, and in the median it counts as later than all "
    "others. ≤ marks a seed that was there at its first evaluation."
)


@dataclass(frozen=True)
class Arrival:
    """When a run got to the target. tokens: NEVER where it did not; text: as the report shows it."""

    tokens: float
    text: str


def arrival(curve: list[list[float]], target: float) -> Arrival:
    """curve: [tokens, validation loss] at each evaluation, in their order; [] of a run that diverged."""
    reached = next((i for i, (_, loss) in enumerate(curve) if loss <= target), None)
    if reached is None:
        return Arrival(NEVER, f"> {millions(curve[-1][0])}" if curve else "diverged")
    tokens, loss = curve[reached]
    if reached == 0:
        return Arrival(tokens, f"≤ {millions(tokens)}")
    earlier, higher = curve[reached - 1]
    tokens = earlier + (tokens - earlier) * (higher - target) / (higher - loss)
    return Arrival(tokens, millions(tokens))


def millions(tokens: float) -> str:
    return f"{tokens / 1e6:.3f}M"


def median_arrival(result: ArmResult, target: float) -> tuple[float, float, int]:
    """(median tokens, median seconds, seeds that got there); NaN where half of the seeds or more did not."""
    arrivals = [arrival(run["curve"], target).tokens for run in result.runs.values()]
    median = float(np.median(arrivals)) if arrivals else NEVER
    tokens = NAN if median == NEVER else median
    return tokens, tokens * seconds_a_token(result), sum(tokens < NEVER for tokens in arrivals)


def seconds_a_token(result: ArmResult) -> float:
    """Of training alone, from the time of a step; NaN where nothing was timed."""
    config = result.arm.config
    return result.cost.ms_per_step / 1000 / (config.sequences_per_step * config.block_size)


def target_columns(study: Study, result: ArmResult) -> dict[str, float]:
    """The columns of table.csv; none without --target_loss."""
    if study.options.target_loss is None:
        return {}
    tokens, seconds, reached = median_arrival(result, study.options.target_loss)
    return {"tokens_to_target": tokens, "seconds_to_target": seconds, "seeds_at_target": reached}


def target_section(study: Study, results: list[ArmResult]) -> list[str]:
    """Lines of report.md: a row for each arm, a column for each seed; none without --target_loss."""
    target, seeds = study.options.target_loss, study.seeds["reporting"]
    if target is None:
        return []
    rows = []
    for result in results:
        tokens, seconds, reached = median_arrival(result, target)
        median = "–" if np.isnan(tokens) else millions(tokens)
        row = [result.arm.name, f"{reached} of {len(result.runs)}", median, number(seconds, ",.1f")]
        for seed in seeds:
            there = arrival(result.runs[seed]["curve"], target) if seed in result.runs else Arrival(NEVER, "–")
            seconds = there.tokens * seconds_a_token(result)
            row.append(there.text + (f", {seconds:,.1f} s" if seconds < NEVER else ""))
        rows.append(row)
    header = ["arm", "seeds there", "median tokens", "median seconds", *(f"seed {seed}" for seed in seeds)]
    text = EXPLANATION.format(study.arms[0].config.eval_iters)
    return [f"## Time to a loss of {target:g}", "", text, "", *grid(header, rows), ""]
