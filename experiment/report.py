"""What compare.py writes about its runs: report.md, table.csv and the pictures."""

import csv
import io
import os
import platform
import shlex
import statistics
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from experiment.arms import ArmResult, Comparison, Point, Study, Tuning, at_point, spell
from experiment.nonlinearity import nonlinearity_section
from experiment.pictures import draw_curves, draw_forest
from experiment.statistics import (
    ALPHA,
    ENOUGH_SEEDS,
    MANY_SEEDS,
    NAN,
    Difference,
    judge,
    paired,
    resolved,
    sd_range,
    seeds_needed,
)
from wiggle.files import atomic_write

BUDGETS = {"steps": "steps", "flops": "FLOPs", "time": "seconds"}  # --match -> what all arms have alike
COSTS = {  # column of table.csv -> how report.md spells it
    "parameters": lambda value: f"{value / 1e6:.3f}M",
    "flops_per_token": lambda value: f"{value / 1e6:.2f}",
    "ms_per_step": lambda value: number(value, ".1f"),
    "tokens_per_second": lambda value: number(value, ",.0f"),
    "peak_mb": lambda value: number(value, ",.0f"),
}
METHOD = (
    "Validation loss is in nats a token, after the last step, on the reporting half of the validation split (every "
    "second block of about 4,096 tokens): mean and standard deviation over seeds. Differences to the control are "
    "paired by seed: with one seed all arms start from the same value of every weight that they share, and see the "
    "same batches in the same order. The interval is Student's, of each arm by itself; p is corrected for the "
    "number of arms after Holm, and a verdict takes p < 0.05 and 3 seeds. forest.png draws the intervals that the "
    "verdicts are taken from, corrected as p is.{equivalent}{budget} The time of a step is a median of bursts by "
    "turns, with one process running; memory is the highest that training added to its process before an "
    "evaluation, or allocated on its card. Numbers in brackets are ratios to the control."
)
EQUIVALENT = (
    " An arm is equivalent where two one-sided paired t-tests, corrected alike, show that it differs by less than "
    "{margin:g} nats, even if it does differ."
)
DIVERGED = (
    "A diverged seed counts as worse than any loss: its arm is judged by ranks (Wilcoxon's signed-rank test) and can "
    "not be better or equivalent, nor can any arm of which a seed is missing; means and intervals are of the seeds "
    "that ended."
)


def write(
    study: Study, comparisons: list[Comparison], tunings: dict[str, Tuning], notes: list[str], argv: list[str]
) -> list[str]:
    """
    Write the report into study.out_dir -> lines to print.

    comparisons: the arms at their best points first, then one for each --also; tunings: by arm; argv: of compare.py.
    """
    sections, printed = [], []
    for comparison in comparisons:
        differences = compare_arms(study, comparison.results)
        lines = table(study, comparison.results, differences)
        suffix = f"-{comparison.where}" if comparison.where else ""
        with atomic_write(study.out_dir / f"table{suffix}.csv") as file:
            file.write(as_csv(lines).encode())
        draw_curves(comparison.results, study.out_dir / f"curves{suffix}.png")
        title = forest_title(study, comparison)
        draw_forest(comparison.results, differences, title, study.out_dir / f"forest{suffix}.png")
        sections.append(Section(comparison, differences, lines, suffix))
        printed += [f"at {comparison.where}:"] if suffix else []
        printed += map(summary, lines)
        printed += power_summary(study, differences)
    with atomic_write(study.out_dir / "report.md") as file:
        file.write(markdown(study, sections, tunings, notes, argv).encode())
    return [*printed, *(f"note      {note}" for note in notes), f"report    {study.out_dir / 'report.md'}"]


def compare_arms(study: Study, results: list[ArmResult]) -> list[Difference]:
    """The judged difference of each arm but the first, the control, to the control."""
    losses = [{seed: run["loss"] for seed, run in result.runs.items()} for result in results]
    return judge([paired(arm, losses[0], study.seeds["reporting"]) for arm in losses[1:]], study.options.margin)


def forest_title(study: Study, comparison: Comparison) -> str:
    """What is compared in which setting, and what is drawn."""
    config, seeds = study.arms[0].config, len(study.seeds["reporting"])
    varied = {text.partition("=")[0] for text in study.options.vary}
    setting = {
        "n_layer": f"{config.n_layer} layers",
        "n_embd": f"width {config.n_embd}",
        "optimizer_type": config.optimizer_type,
        "max_iters": f"{config.max_iters:,} steps",
    }
    told = [text for key, text in setting.items() if key not in varied | set(study.swept)]
    where = [f"at {comparison.where}"] if comparison.where else []
    drawn = "mean (diamond), 95 % interval corrected after Holm (line), single seeds (dots)"
    if study.options.margin:
        drawn += f"; equivalent: thick line within ±{study.options.margin:g}"
    return f"{', '.join([config.dataset, *told, *where, f'{seeds} seeds'])}\n{drawn}"


# --- table.csv ---


def costs(result: ArmResult) -> dict[str, float]:
    """The figures of COSTS of one arm."""
    config, cost = result.arm.config, result.cost
    peaks = [run["peak_mb"] for run in result.runs.values() if run["peak_mb"] is not None]
    return {
        "parameters": cost.parameters,
        "flops_per_token": cost.flops_per_token,
        "ms_per_step": cost.ms_per_step,
        "tokens_per_second": 1000 * config.sequences_per_step * config.block_size / cost.ms_per_step,
        "peak_mb": float(np.median(peaks)) if peaks else NAN,
    }


def table(study: Study, results: list[ArmResult], differences: list[Difference]) -> list[dict]:
    """A dict for each arm: what it is, how good, how sure, and what it costs, as such and by the control's."""
    lines = []
    any_diverged = any(run["loss"] is None for result in results for run in result.runs.values())
    for result, d in zip(results, [Difference(verdict="control"), *differences], strict=True):
        found = [run["loss"] for run in result.runs.values() if run["loss"] is not None]
        point = result.point or [NAN] * len(study.swept)
        line = {"arm": result.arm.name} | dict(zip(study.swept, point, strict=True))
        line |= {
            "steps": at_point(result.arm.config, study.swept, point).max_iters if result.point is not None else NAN
        }
        line["seeds"] = len(found)
        line |= {"diverged": len(result.runs) - len(found)} if any_diverged else {}
        line |= {"val_loss": np.mean(found) if found else NAN, "val_sd": np.std(found, ddof=1) if found[1:] else NAN}
        line |= {"difference": d.mean, "low": d.low, "high": d.high, "p": d.p, "p_holm": d.p_holm, "verdict": d.verdict}
        for (key, cost), base in zip(costs(result).items(), costs(results[0]).values(), strict=True):
            line |= {key: cost, f"{key}_ratio": cost / base if base else NAN}
        lines.append(line | {"ms_per_step_ratio": result.cost.ratio})  # of what was timed side by side
    return lines


def as_csv(lines: list[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, lines[0], lineterminator="\n")
    writer.writeheader()
    for line in lines:
        plain = {key: f"{value:.7g}" if isinstance(value, float) else str(value) for key, value in line.items()}
        writer.writerow({key: "" if value == "nan" else value for key, value in plain.items()})
    return text.getvalue()


# --- words and numbers ---


def number(value: float, form: str) -> str:
    """A formatted number, or a dash where it is NaN: too few seeds, or nothing to measure."""
    return "–" if np.isnan(value) else format(value, form)


def interval(line: dict) -> str:
    """'+0.0123 [-0.0100, +0.0346]', as far as a line of the table has it."""
    low, high = number(line["low"], "+.4f"), number(line["high"], "+.4f")
    return number(line["difference"], "+.4f") + ("" if low == "–" else f" [{low}, {high}]")


def seeds_text(study: Study, line: dict) -> str:
    """'6 seeds', or '5 of 6 seeds, 1 diverged'."""
    planned, diverged = len(study.seeds["reporting"]), line.get("diverged", 0)
    text = f"{line['seeds']} seeds" if line["seeds"] == planned else f"{line['seeds']} of {planned} seeds"
    return f"{text}, {diverged} diverged" if diverged else text


def summary(line: dict) -> str:
    """A line of the table, to print."""
    text = f"{line['arm']:<16} val {number(line['val_loss'], '.4f')} +- {number(line['val_sd'], '.4f')}"
    if line["verdict"] != "control":
        text += f"  {interval(line)} {line['verdict']}  parameters {number(line['parameters_ratio'], '.2f')}x"
        text += f", time a step {number(line['ms_per_step_ratio'], '.2f')}x"
    return text


# --- report.md ---


@dataclass(frozen=True)
class Section:
    """What the report says of one comparison. suffix: of the names of its files."""

    comparison: Comparison
    differences: list[Difference]
    lines: list[dict]
    suffix: str


def markdown(
    study: Study, sections: list[Section], tunings: dict[str, Tuning], notes: list[str], argv: list[str]
) -> str:
    """The text of report.md; sections: the best points' first."""
    best, *others = sections
    lines = best.lines
    varied = " and ".join(text.partition("=")[0] for text in study.options.vary)
    text = [f"# {varied}: {', '.join(line['arm'] for line in lines[1:])} against {lines[0]['arm']}", ""]
    text += [*verdicts(study, lines), "", *(f"> **Note:** {note}." for note in notes), ""]
    text += [*big_table(study, lines), "", method(study, lines), ""]
    diverged = any("diverged" in line for section in sections for line in section.lines)
    text += [DIVERGED, ""] if diverged else []
    text += power_section(study, best)
    text += nonlinearity_section(best.comparison.results)
    if study.swept:
        text += tuning_section(study, best.comparison, tunings)
    text += ["![validation loss by tokens](curves.png)", "", "![differences to the control](forest.png)", ""]
    for section in others:
        where = section.comparison.where
        text += [
            f"## At {where}",
            "",
            f"Each arm at its best point with {where}; p is corrected within this table.",
            "",
        ]
        text += [*verdicts(study, section.lines), "", *big_table(study, section.lines), ""]
        text += [f"![differences to the control at {where}](forest{section.suffix}.png)", ""]
        text += nonlinearity_section(section.comparison.results)
    text += ["## How it was made", "", "```", shlex.join(["python", "compare.py", *argv]), "```", ""]
    commands = [command(study, result) for result in best.comparison.results]
    text += ["One run of each arm alone:", "", "```", *commands, "```", ""]
    return "\n".join([*text, *machine(study)]) + "\n"


def method(study: Study, lines: list[dict]) -> str:
    """How the numbers of the table came about, as far as it holds for this study."""
    options = study.options
    equal = f" All arms had equal {BUDGETS[options.match]}."
    if options.match == "steps" and len({line["steps"] for line in lines}) > 1:
        equal = ""
    equivalent = EQUIVALENT.format(margin=options.margin) if options.margin else ""
    return METHOD.format(budget=equal, equivalent=equivalent)


def verdicts(study: Study, lines: list[dict]) -> list[str]:
    """A line of a list for each arm but the control."""
    text = []
    for line in lines[1:]:
        low, high = number(line["low"], "+.4f"), number(line["high"], "+.4f")
        numbers = f"{number(line['difference'], '+.4f')} nats a token, 95 % interval {low} to {high}"
        text.append(f"- {line['arm']}: **{line['verdict']}** ({numbers}, {seeds_text(study, line)})")
    return text


def grid(header: list, rows: list[list]) -> list[str]:
    """The lines of a markdown table."""
    return [f"| {' | '.join(map(str, row))} |" for row in (header, ["---"] * len(header), *rows)]


def big_table(study: Study, lines: list[dict]) -> list[str]:
    """The lines of table.csv as a markdown table."""
    header = ["arm", *study.swept, "validation loss", "difference [95 % interval]", "p (Holm)", "verdict"]
    header += ["parameters", "MFLOP a token", "ms a step", "tokens/s", "memory, MiB", "steps"]
    rows = []
    for line in lines:
        loss = f"{number(line['val_loss'], '.4f')} ± {number(line['val_sd'], '.4f')}"
        if line["seeds"] < len(study.seeds["reporting"]):
            loss += f" ({seeds_text(study, line)})"
        row = [line["arm"], *(spell(line[key]).replace("nan", "–") for key in study.swept), loss]
        if line["verdict"] == "control":
            row += ["", "", "control"]
        else:
            row += [interval(line), number(line["p_holm"], ".2g"), f"**{line['verdict']}**"]
        for key, shown in COSTS.items():
            ratio = line[f"{key}_ratio"]
            row.append(shown(line[key]) + ("" if np.isnan(ratio) else f" ({ratio:.2f}x)"))
        rows.append([*row, number(line["steps"], ",")])
    return grid(header, rows)


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
    text += [f"Mean loss on the tuning half, seed {seeds}; in bold what was taken for the reporting runs. "]
    text += [text.pop() + tuning_noise(study, tunings), ""]
    across = f"{first} " if rest else ""
    header = ["arm", *rest, *(across + spell(value) for value in study.swept[first])]
    return [*text, *grid(header, rows), ""]


def tuning_cell(tuning: Tuning, point: Point, taken: Point | None) -> str:
    loss = tuning.mean(point)
    text = "diverged" if loss == float("inf") else number(loss, ".4f")
    return f"**{text}**" if point == taken else text


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


def power_section(study: Study, section: Section) -> list[str]:
    """What the seeds of this study can resolve, and how many it takes to find the difference of --power."""
    wanted, arms, seeds = study.options.power, len(section.differences), len(study.seeds["reporting"])
    rows = []
    for result, d in zip(section.comparison.results[1:], section.differences, strict=True):
        if len(d.values) >= ENOUGH_SEEDS and (sd := d.values.std(ddof=1)):
            needed = seeds_needed(wanted, sd, ALPHA / arms) or f"over {MANY_SEEDS:,}"
            rows.append([result.arm.name, f"{sd:.4f}", f"{resolved(sd, len(d.values), ALPHA / arms):.4f}", needed])
    if not rows:
        return []
    low, high = sd_range(seeds)
    text = (
        f"At p < 0.05 / {arms}, Holm's first step, the seeds at hand find the difference in the third column with a "
        f"chance of 80 %, and so many as in the last column find one of {wanted:g}. The standard deviation of {seeds} "
        f"seeds is itself uncertain: the true one lies between {low:.2f} and {high:.1f} times it (95 %)."
    )
    header = ["arm", "sd of paired differences", "resolved", f"seeds for {wanted:g}"]
    return ["## Power", "", text, "", *grid(header, rows), ""]


def power_summary(study: Study, differences: list[Difference]) -> list[str]:
    """The line on power to print: from the arm that varies least to the one that varies most."""
    wanted, alpha, seeds = study.options.power, ALPHA / len(differences), len(study.seeds["reporting"])
    sds = [d.values.std(ddof=1) for d in differences if len(d.values) >= ENOUGH_SEEDS]
    if not any(sds):
        return []
    low, high = (resolved(sd, seeds, alpha) for sd in (min(sds), max(sds)))
    least, most = (seeds_needed(wanted, sd, alpha) or f"over {MANY_SEEDS:,}" for sd in (min(sds), max(sds)))
    return [f"power     {seeds} seeds find {low:.4f} to {high:.4f} at 80 %; {wanted:g} takes {least} to {most} seeds"]


def command(study: Study, result: ArmResult) -> str:
    """train.py's command for one reporting run of an arm."""
    config, tuned = result.arm.config, zip(study.swept, result.point or [], strict=False)
    flags = [f"--{key}={getattr(config, key)}" for key in result.arm.settings]
    flags += [f"--{key}={spell(value)}" for key, value in tuned]
    if study.options.match != "steps":
        flags += [f"--{key}={getattr(config, key)}" for key in ("max_iters", "lr_decay_iters")]
    return shlex.join(["python", "train.py", *study.words, *flags, f"--seed={study.seeds['reporting'][0]}"])


def machine(study: Study) -> list[str]:
    """Versions and machine, as lines of a list."""
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).is_file():
        cpu = next((line.partition(": ")[2] for line in info.read_text().splitlines() if "model name" in line), cpu)
    config = study.arms[0].config
    device = torch.device(config.device)
    card = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "scipy"))
    return [
        f"- {platform.platform()}, {cpu}, {os.cpu_count()} cores{card}",
        f"- {study.threads} threads a process, {max(1, study.options.jobs)} at a time, {config.dtype}",
        f"- Python {platform.python_version()}, {packages}; code at commit {commit()}",
    ]


def commit() -> str:
    """The commit of this code, and whether files differ from it."""

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
        return run.stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + (" with changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
