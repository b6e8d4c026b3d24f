"""The table of a comparison: a line for each arm, as table.csv, as report.md and as the terminal show it."""

import csv
import io

import numpy as np

from experiment.arms import at_point, spell
from experiment.contrasts import Contrast, control_of
from experiment.markdown import grid, number
from experiment.statistics import NAN, Difference
from experiment.study import ArmCost, ArmResult, Study
from experiment.targets import target_columns
from wiggle.evaluation import bits_per_byte

COSTS = {  # column of table.csv -> how report.md spells it
    "parameters": lambda value: f"{value / 1e6:.3f}M",
    "flops_per_token": lambda value: f"{value / 1e6:.2f}",
    "activation_flops_per_token": lambda value: number(value / 1e6, ".3f"),
    "ms_per_step": lambda value: number(value, ".1f"),
    "tokens_per_second": lambda value: number(value, ",.0f"),
    "peak_mb": lambda value: number(value, ",.0f"),
}


def costs(result: ArmResult) -> dict[str, float]:
    """The figures of COSTS of one arm."""
    config, cost = result.arm.config, result.cost
    peaks = [run["peak_mb"] for run in result.runs.values() if run["peak_mb"] is not None]
    return {
        "parameters": cost.parameters,
        "flops_per_token": cost.flops_per_token,
        "activation_flops_per_token": cost.activation_flops,
        "ms_per_step": cost.ms_per_step,
        "tokens_per_second": 1000 * config.sequences_per_step * config.block_size / cost.ms_per_step,
        "peak_mb": float(np.median(peaks)) if peaks else NAN,
    }


def table(study: Study, results: list[ArmResult], contrasts: list[Contrast]) -> list[dict]:
    """A dict for each arm: what it is, how good, how sure, and what it costs; then one for each interaction."""
    tested, by_name = {contrast.name: contrast for contrast in contrasts}, {r.arm.name: r for r in results}
    controls = {contrast.control for contrast in contrasts if not contrast.is_interaction}
    any_diverged = any(run["loss"] is None for result in results for run in result.runs.values())
    lines = []
    for result in results:
        line = figures_of_arm(study, result, any_diverged) | judged(tested.get(result.arm.name))
        if result.arm.name in controls:
            line["verdict"] = "control"
        control = by_name[control_of(study, result.arm).name]
        for (key, cost), base in zip(costs(result).items(), costs(control).values(), strict=True):
            line |= {key: cost, f"{key}_ratio": cost / base if base else NAN}
        lines.append(line | ratio_of_times(result.cost, control.cost) | target_columns(study, result))
    for contrast in contrasts:
        if contrast.is_interaction:
            seeds = len(contrast.difference.values)
            lines.append(dict.fromkeys(lines[0], NAN) | {"arm": contrast.name, "seeds": seeds} | judged(contrast))
    return lines


def ratio_of_times(arm: ArmCost, control: ArmCost) -> dict[str, float]:
    """The ratio of two arms' times of a step, of what was timed by turns, and its standard error, as columns."""
    ratio = arm.ratio / control.ratio
    error = ratio * np.hypot(arm.ratio_error / arm.ratio, control.ratio_error / control.ratio)
    return {"ms_per_step_ratio": ratio, "ms_per_step_ratio_error": error}


def figures_of_arm(study: Study, result: ArmResult, any_diverged: bool) -> dict:
    """The settings and the loss of one arm, as columns. any_diverged: whether a run of any arm has diverged."""
    found = [run["loss"] for run in result.runs.values() if run["loss"] is not None]
    point = result.point or [NAN] * len(study.swept)
    line = {"arm": result.arm.name} | dict(zip(study.swept, point, strict=True))
    line["steps"] = NAN
    if result.point is not None:
        line["steps"] = at_point(result.arm.config, study.swept, point).max_iters
    line["seeds"] = len(found)
    line |= {"diverged": len(result.runs) - len(found)} if any_diverged else {}
    loss = float(np.mean(found)) if found else NAN
    bits = bits_per_byte(loss, *result.val_size) if result.val_size else NAN
    return line | {"val_loss": loss, "val_sd": np.std(found, ddof=1) if found[1:] else NAN, "bits_per_byte": bits}


def judged(contrast: Contrast | None) -> dict:
    """The difference to the control as columns; None: of an arm that is judged against nothing."""
    d = contrast.difference if contrast else Difference()
    verdict = contrast.verdict if contrast else d.verdict
    columns = {"difference": d.mean, "low": d.low, "high": d.high, "p": d.p, "p_holm": d.p_holm}
    return columns | {"p_equivalent": d.p_equivalent, "verdict": verdict}


def is_arm(line: dict) -> bool:
    """Whether a line of the table is an arm's, and no interaction's."""
    return not np.isnan(line["parameters"])


def as_csv(lines: list[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, lines[0], lineterminator="\n")
    writer.writeheader()
    for line in lines:
        plain = {key: f"{value:.7g}" if isinstance(value, float) else str(value) for key, value in line.items()}
        writer.writerow({key: "" if value == "nan" else value for key, value in plain.items()})
    return text.getvalue()


# --- words and numbers ---


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
    if not is_arm(line):
        return f"{line['arm']}: {interval(line)} {line['verdict']}"
    text = f"{line['arm']:<16} val {number(line['val_loss'], '.4f')} +- {number(line['val_sd'], '.4f')}"
    if line["verdict"] != "control":
        text += f"  {interval(line)} {line['verdict']}  parameters {number(line['parameters_ratio'], '.2f')}x"
        text += f", time a step {number(line['ms_per_step_ratio'], '.2f')}x"
    return text


# --- in report.md ---


def big_table(study: Study, lines: list[dict]) -> list[str]:
    """The lines of table.csv as a markdown table."""
    header = [
        "arm",
        *study.swept,
        "validation loss",
        "bits a byte",
        "difference [95 % interval]",
        "p (Holm)",
        "verdict",
    ]
    header += ["parameters", "MFLOP a token", "of its activation", "ms a step", "tokens/s", "memory, MiB", "steps"]
    rows = []
    for line in lines:
        tested = [interval(line), number(line["p_holm"], ".2g"), f"**{line['verdict']}**"]
        if not is_arm(line):
            row = [line["arm"], *[""] * (len(study.swept) + 2), *tested]
            rows.append(row + [""] * (len(header) - len(row)))
            continue
        point = [spell(line[key]).replace("nan", "–") for key in study.swept]
        row = [line["arm"], *point, loss_cell(study, line), number(line["bits_per_byte"], ".4f")]
        row += ["", "", "control"] if line["verdict"] == "control" else tested
        for key, shown in COSTS.items():
            ratio = line[f"{key}_ratio"]
            error = line.get(f"{key}_ratio_error", NAN)
            known = f"{ratio:.2f}x" if not error > 0 else f"{ratio:.2f} ± {error:.2f}x"
            row.append(shown(line[key]) + ("" if np.isnan(ratio) else f" ({known})"))
        rows.append([*row, number(line["steps"], ",")])
    return grid(header, rows)


def loss_cell(study: Study, line: dict) -> str:
    """'1.9974 ± 0.0131', with the number of seeds where some are missing."""
    loss = f"{number(line['val_loss'], '.4f')} ± {number(line['val_sd'], '.4f')}"
    return loss if line["seeds"] == len(study.seeds["reporting"]) else f"{loss} ({seeds_text(study, line)})"
