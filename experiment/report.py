"""
What compare.py makes of its runs: paired statistics, table.csv, report.md, curves.png and forest.png.

An arm is an arms.Arm whose `runs` map a seed to what runs.jsonl keeps of the run; the first of several is the control.
"""

import csv
import io
import math
import os
import platform
import re
import shlex
import subprocess
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import stats
from statsmodels.stats.multitest import multipletests

from wiggle.files import atomic_write

COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")  # Okabe and Ito
STYLES = ("-", "--", "-.", ":")
NAN = float("nan")


@dataclass
class Difference:
    """
    An arm minus the control, paired by seed, in nats a token: below 0 is better.

    low..high: 95 % interval of the mean by Student's t; p: two-sided; p_holm: corrected for the number of arms.
    NaN where there are too few seeds to tell.
    """

    values: np.ndarray = field(default_factory=lambda: np.zeros(0))  # (seeds,)
    mean: float = NAN
    low: float = NAN
    high: float = NAN
    p: float = NAN
    p_holm: float = NAN
    verdict: str = "no verdict"


def paired(arm, control):
    """Losses by seed of both -> Difference over the seeds that both have, without a verdict."""
    values = np.array([arm[seed] - control[seed] for seed in sorted(set(arm) & set(control))])
    if len(values) < 2:
        return Difference(values, values.mean() if len(values) else NAN)
    if not values.any():  # the same model twice: no spread to make a t of
        return Difference(values, 0.0, 0.0, 0.0, 1.0)
    test = stats.ttest_1samp(values, 0.0)
    return Difference(values, values.mean(), *test.confidence_interval(0.95), test.pvalue)


def judge(differences, alpha=0.05):
    """Correct the p of all differences after Holm and give verdicts; fewer than 3 seeds get none."""
    enough = [d for d in differences if len(d.values) >= 3]
    corrected = multipletests([d.p for d in enough], method="holm")[1] if enough else []
    for d, p in zip(enough, corrected, strict=True):
        d.p_holm = p
        d.verdict = "inconclusive" if p >= alpha else "better" if d.mean < 0 else "worse"
    return differences


def losses(arm):
    """Loss by seed on the reporting half; what diverged is left out."""
    return {seed: run["loss"] for seed, run in arm.runs.items() if run["loss"] is not None}


def costs(arm):
    tokens = arm.config.sequences_per_step * arm.config.block_size
    peaks = [run["peak_mb"] for run in arm.runs.values() if run["peak_mb"] is not None]
    return {
        "parameters": arm.parameters,
        "flops_per_token": arm.flops,
        "ms_per_step": arm.ms,
        "tokens_per_second": 1000 * tokens / arm.ms,
        "peak_mb": float(np.median(peaks)) if peaks else NAN,
    }


def table(arms, differences, tuned):
    """A dict for each arm: what it is, how good, how sure, and what it costs, as such and by the control's."""
    lines = []
    for arm, d in zip(arms, [Difference(verdict="control"), *differences], strict=True):
        found = list(losses(arm).values())
        line = {"arm": arm.name} | ({tuned: NAN if arm.value is None else arm.value} if tuned else {})
        line |= {"steps": arm.config.max_iters, "seeds": len(found)}
        line |= {"val_loss": np.mean(found) if found else NAN, "val_sd": np.std(found, ddof=1) if found[1:] else NAN}
        line |= {"difference": d.mean, "low": d.low, "high": d.high, "p": d.p, "p_holm": d.p_holm, "verdict": d.verdict}
        for (key, cost), base in zip(costs(arm).items(), costs(arms[0]).values(), strict=True):
            line |= {key: cost, f"{key}_ratio": cost / base if base else NAN}
        lines.append(line | {"ms_per_step_ratio": arm.ratio})  # of what was measured side by side
    return lines


def as_csv(lines):
    text = io.StringIO()
    writer = csv.DictWriter(text, lines[0], lineterminator="\n")
    writer.writeheader()
    for line in lines:
        plain = {key: f"{value:.7g}" if isinstance(value, float) else value for key, value in line.items()}
        writer.writerow({key: "" if value == "nan" else value for key, value in plain.items()})
    return text.getvalue()


def summary(line):
    """A line of the table, to print."""
    text = f"{line['arm']:<16} val {line['val_loss']:.4f} +- {line['val_sd']:.4f}"
    if line["verdict"] != "control":
        text += f"  {line['difference']:+.4f} [{line['low']:+.4f}, {line['high']:+.4f}] {line['verdict']}"
        text += f"  parameters {line['parameters_ratio']:.2f}x, time a step {line['ms_per_step_ratio']:.2f}x"
    return text


# --- report.md ---


def markdown(study, lines, argv):
    control, match = lines[0]["arm"], {"steps": "steps", "flops": "FLOPs", "time": "seconds"}[study.options.match]
    varied = " and ".join(text.partition("=")[0] for text in study.options.vary)
    text = [f"# {varied}: {', '.join(line['arm'] for line in lines[1:])} against {control}", ""]
    for line in lines[1:]:
        numbers = f"{line['difference']:+.4f} nats a token, 95 % interval {line['low']:+.4f} to {line['high']:+.4f}"
        text.append(f"- {line['arm']}: **{line['verdict']}** ({numbers}, {line['seeds']} seeds)")
    text += ["", *(f"> **Note:** {note}." for note in study.notes), "", *big_table(lines, study.tuned), ""]
    text = [re.sub(r"[+]?\bnan[xM]?\b", "–", line) for line in text]  # too few seeds, or nothing to measure
    text += [
        "Validation loss is in nats a token, after the last step, on the reporting half of the validation split (every "
        "second block of about 4,096 tokens): mean and standard deviation over seeds. Differences to the control are "
        "paired by seed: with one seed all arms start from the same value of every weight that they share, and see the "
        "same batches in the same order. The interval is Student's, of each arm by itself; p is corrected for the "
        f"number of arms after Holm, and a verdict takes p < 0.05 and 3 seeds. All arms had equal {match}. The time of "
        "a step is a median of bursts by turns, with one process running; memory is the highest that training added to "
        "its process before an evaluation, or allocated on its card. Numbers in brackets are ratios to the control.",
        "",
    ]
    if study.tuned:
        tuning = ", ".join(map(str, study.seeds["tuning"]))
        text += [f"## {study.tuned}, tuned for each arm alike", ""]
        text += [f"Mean loss on the tuning half, seed {tuning}; in bold what was taken for the reporting runs.", ""]
        cells = [[tuning_cell(arm, value) for value in study.values] for arm in study.arms]
        named = [[arm.name, *row] for arm, row in zip(study.arms, cells, strict=True)]
        text += [*grid(["arm", *(f"{value:g}" for value in study.values)], named), ""]
    text += ["![validation loss by tokens](curves.png)", "", "![differences to the control](forest.png)", ""]
    text += ["## How it was made", "", "```", shlex.join(["python", "compare.py", *argv]), "```", ""]
    text += ["One run of each arm alone:", "", "```", *(command(study, arm) for arm in study.arms), "```", ""]
    return "\n".join([*text, *machine(study)]) + "\n"


def grid(header, rows):
    return [f"| {' | '.join(map(str, row))} |" for row in (header, ["---"] * len(header), *rows)]


def big_table(lines, tuned):
    header = [
        "arm",
        *([tuned] if tuned else []),
        "validation loss",
        "difference [95 % interval]",
        "p (Holm)",
        "verdict",
    ]
    header += ["parameters", "MFLOP a token", "ms a step", "tokens/s", "memory, MiB", "steps"]
    rows = []
    for line in lines:
        row = [line["arm"], *([f"{line[tuned]:g}"] if tuned else []), f"{line['val_loss']:.4f} ± {line['val_sd']:.4f}"]
        if line["verdict"] == "control":
            row += ["", "", "control"]
        else:
            row += [f"{line['difference']:+.4f} [{line['low']:+.4f}, {line['high']:+.4f}]", f"{line['p_holm']:.2g}"]
            row += [f"**{line['verdict']}**"]
        shown = {
            "parameters": f"{line['parameters'] / 1e6:.3f}M",
            "flops_per_token": f"{line['flops_per_token'] / 1e6:.2f}",
        }
        shown |= {"ms_per_step": f"{line['ms_per_step']:.1f}", "tokens_per_second": f"{line['tokens_per_second']:,.0f}"}
        shown |= {"peak_mb": f"{line['peak_mb']:,.0f}"}
        row += [f"{text} ({line[f'{key}_ratio']:.2f}x)" for key, text in shown.items()]
        rows.append([*row, f"{line['steps']:,}"])
    return grid(header, rows)


def tuning_cell(arm, value):
    loss = arm.tuning.get(value, NAN)
    return f"**{loss:.4f}**" if value == arm.value else f"{loss:.4f}"


def command(study, arm):
    """train.py's command for one reporting run of an arm."""
    flags = [f"--{key}={getattr(arm.config, key)}" for key in arm.settings]
    flags += [f"--{study.tuned}={arm.value:g}"] if arm.value is not None else []
    if study.options.match != "steps":
        flags += [f"--{key}={getattr(arm.config, key)}" for key in ("max_iters", "lr_decay_iters")]
    return shlex.join(["python", "train.py", *study.words, *flags, f"--seed={study.seeds['reporting'][0]}"])


def machine(study):
    """Versions and machine, as lines of a list."""
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).is_file():
        cpu = next((line.partition(": ")[2] for line in info.read_text().splitlines() if "model name" in line), cpu)
    device = torch.device(study.arms[0].config.device)
    card = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "scipy", "statsmodels"))
    return [
        f"- {platform.platform()}, {cpu}, {os.cpu_count()} cores{card}",
        f"- {study.threads} threads a process, {max(1, study.options.jobs)} at a time, {study.arms[0].config.dtype}",
        f"- Python {platform.python_version()}, {packages}; code at commit {commit()}",
    ]


def commit():
    def git(*arguments):
        run = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
        return run.stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + (" with changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


# --- pictures ---


def curves(arms, path):
    """Validation loss by tokens of each arm, and what it gains over the control, with bands over seeds."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    points = [{seed: dict(run["curve"]) for seed, run in arm.runs.items() if run["curve"]} for arm in arms]
    for i, (arm, runs) in enumerate(zip(arms, points, strict=True)):
        style = {"color": COLOURS[i % 8], "linestyle": STYLES[i // 8 % 4 if len(arms) > 8 else i % 4]}
        shade = min(0.18, 0.6 / len(arms))  # so that many bands on one another stay apart
        band(left, runs, style, shade, arm.name)
        if i:
            shared = set(runs) & set(points[0])
            apart = {seed: {t: v - points[0][seed][t] for t, v in runs[seed].items() if t in points[0][seed]}
                     for seed in shared}  # fmt: skip
            band(right, apart, style, shade)
    right.axhline(0, color=COLOURS[0], linewidth=1)
    left.set(xlabel="tokens trained on, millions", ylabel="validation loss, nats a token")
    right.set(xlabel="tokens trained on, millions", ylabel=f"difference to {arms[0].name}, nats a token")
    left.set_title("Validation loss during training, mean ± sd over seeds", fontsize=9)
    right.set_title("Difference to the control by seed, mean ± sd (below 0: better)", fontsize=9)
    for axes in (left, right):
        axes.grid(alpha=0.25)
    if left.get_legend_handles_labels()[0]:
        figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=130)


def band(axes, runs, style, shade, label=None):
    """runs: seed -> {tokens: value}. Draws what all seeds have."""
    tokens = sorted(set.intersection(*(set(curve) for curve in runs.values()))) if runs else []
    values = np.array([[curve[t] for t in tokens] for curve in runs.values()])
    if not tokens:
        return
    mean, sd = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else np.zeros(len(tokens))
    x = np.array(tokens) / 1e6
    axes.plot(x, mean, label=label, linewidth=1.6, marker="o", markersize=3, **style)
    axes.fill_between(x, mean - sd, mean + sd, color=style["color"], alpha=shade, linewidth=0)


def forest(arms, differences, path):
    """Paired differences with their 95 % intervals, each seed a dot."""
    figure = Figure(figsize=(9, 1.6 + 0.5 * len(differences)), layout="constrained")
    axes = figure.subplots()
    for y, d in enumerate(differences):
        colour = COLOURS[(y + 1) % 8]
        axes.plot(d.values, np.full(len(d.values), y + 0.18), "o", color=colour, alpha=0.45, markersize=4, linewidth=0)
        if not math.isnan(d.low):
            axes.plot([d.low, d.high], [y, y], color=colour, linewidth=2)
        axes.plot(d.mean, y, "D", color=colour, markersize=7)
        text = f"{d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}]  {d.verdict}"
        axes.text(1.02, y, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    axes.axvline(0, color=COLOURS[0], linewidth=1)
    axes.set_yticks(range(len(differences)), [arm.name for arm in arms[1:]])
    axes.set_ylim(len(differences) - 0.5, -0.6)
    axes.grid(axis="x", alpha=0.25)
    axes.set_xlabel(f"validation loss minus that of {arms[0].name}, nats a token (left of 0: better)")
    axes.set_title("Mean (diamond), 95 % interval (line) and single seeds (dots)", fontsize=10)
    figure.savefig(path, dpi=130)


def write(study, argv):
    """Write the report into study.out_dir -> lines to print."""
    differences = judge([paired(losses(arm), losses(study.arms[0])) for arm in study.arms[1:]])
    lines = table(study.arms, differences, study.tuned)
    for name, text in (("table.csv", as_csv(lines)), ("report.md", markdown(study, lines, argv))):
        with atomic_write(study.out_dir / name) as file:
            file.write(text.encode())
    curves(study.arms, study.out_dir / "curves.png")
    forest(study.arms, differences, study.out_dir / "forest.png")
    notes = [f"note      {note}" for note in study.notes]
    return [*map(summary, lines), *notes, f"report    {study.out_dir / 'report.md'}"]
