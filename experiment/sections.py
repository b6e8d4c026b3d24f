"""Sections of a report: how the arms were tuned, and what the seeds can resolve."""

import statistics

from experiment.arms import spell
from experiment.contrasts import Contrast
from experiment.markdown import grid, number
from experiment.statistics import ALPHA, ENOUGH_SEEDS, MANY_SEEDS, resolved, sd_range, seeds_needed
from experiment.study import Comparison, Point, Study
from experiment.tuning import Tuning

# --- tuning ---


def tuning_section(study: Study, best: Comparison, tunings: dict[str, Tuning]) -> list[str]:
    """The tuning losses: a column for each value of the first swept key, a row for each arm and the others' values."""
    first, *rest = study.swept
    taken = {result.arm.name: result.point for result in best.results}
    others = sorted({point[1:] for point in study.points}, key=[point[1:] for point in study.points].index)
    rows = []
    for arm in study.arms:
        for other in others:
            cells = [tuning_cell(tunings[arm.name], (value, *other), taken[arm.name]) for value in study.swept[first]]
            rows.append([arm.name, *map(spell, other), *cells])
    seeds = ", ".join(map(str, study.seeds["tuning"]))
    text = [f"## {' and '.join(study.swept)}, tuned for each arm alike", ""]
    how = f"Mean loss on the tuning half, seed {seeds}; in bold what was taken for the reporting runs."
    text += [" ".join(filter(None, [how, method_of_finalists(study, tunings), tuning_noise(study, tunings)])), ""]
    across = f"{first} " if rest else ""
    header = ["arm", *rest, *(across + spell(value) for value in study.swept[first])]
    return [*text, *grid(header, rows), ""]


def tuning_cell(tuning: Tuning, point: Point, taken: Point | None) -> str:
    if point in tuning.partly:
        return f"({loss_text(statistics.mean(tuning.partly[point]))})"
    text = loss_text(tuning.mean(point))
    return f"**{text}**" if point == taken else text


def loss_text(loss: float) -> str:
    return "diverged" if loss == float("inf") else number(loss, ".4f")


def method_of_finalists(study: Study, tunings: dict[str, Tuning]) -> str:
    """What --finalists did, where it was given, and what numbers in brackets are, where there are any."""
    text = []
    if study.options.finalists:
        parts = "".join(f" and the best of those with {key}={spell(value)}" for key, value in study.also)
        best = "point" if study.options.finalists == 1 else f"{study.options.finalists} points"
        text += [f"Of each arm the best {best}{parts} went on from the first seed to the next."]
    if any(tuning.partly for tuning in tunings.values()):
        text += ["Numbers in brackets are of points with fewer seeds, from which none was chosen."]
    return " ".join(text)


def tuning_noise(study: Study, tunings: dict[str, Tuning]) -> str:
    """A sentence on how much of the choice of a point is noise."""
    if len(study.seeds["tuning"]) < 2:
        return "With one tuning seed the noise of this choice is not known, and no interval holds it."
    leads = [lead for tuning in tunings.values() if (lead := tuning.lead())]
    if not leads:
        return ""
    ahead = statistics.median(map(statistics.mean, leads))
    spreads = list(map(statistics.stdev, leads))
    return (
        f"The point taken leads the second best by {ahead:.4f} (median over arms), which varies over tuning seeds by a "
        f"standard deviation of {statistics.median(spreads):.4f} ({max(spreads):.4f} at most): noise of the choice "
        "that no interval holds."
    )


# --- power ---


def power_section(study: Study, contrasts: list[Contrast]) -> list[str]:
    """What the seeds of this study can resolve, and how many it takes to find the difference of --power."""
    wanted, tests, seeds = study.options.power, len(contrasts), len(study.seeds["reporting"])
    rows = []
    for contrast in contrasts:
        d = contrast.difference
        if len(d.values) >= ENOUGH_SEEDS and (sd := d.values.std(ddof=1)):
            needed = seeds_needed(wanted, sd, ALPHA / tests) or f"over {MANY_SEEDS:,}"
            rows.append([contrast.name, f"{sd:.4f}", f"{resolved(sd, len(d.values), ALPHA / tests):.4f}", needed])
    if not rows:
        return []
    low, high = sd_range(seeds)
    text = (
        f"At p < 0.05 / {tests}, Holm's first step, the seeds at hand find the difference in the third column with a "
        f"chance of 80 %, and so many as in the last column find one of {wanted:g}. The standard deviation of {seeds} "
        f"seeds is itself uncertain: the true one lies between {low:.2f} and {high:.1f} times it (95 %)."
    )
    header = ["arm", "sd of paired differences", "resolved", f"seeds for {wanted:g}"]
    return ["## Power", "", text, "", *grid(header, rows), ""]


def power_summary(study: Study, contrasts: list[Contrast]) -> list[str]:
    """The line on power to print: from the arm that varies least to the one that varies most."""
    values = [contrast.difference.values for contrast in contrasts]
    sds = [v.std(ddof=1) for v in values if len(v) >= ENOUGH_SEEDS]
    if not any(sds):
        return []
    wanted, alpha, seeds = study.options.power, ALPHA / len(contrasts), len(study.seeds["reporting"])
    low, high = (resolved(sd, seeds, alpha) for sd in (min(sds), max(sds)))
    least, most = (seeds_needed(wanted, sd, alpha) or f"over {MANY_SEEDS:,}" for sd in (min(sds), max(sds)))
    differences = f"{low:.4f}" + (f" to {high:.4f}" if len(contrasts) > 1 else "")
    needed = f"{least}" + (f" to {most}" if len(contrasts) > 1 else "")
    return [f"power     {seeds} seeds find {differences} at 80 %; {wanted:g} takes {needed} seeds"]
