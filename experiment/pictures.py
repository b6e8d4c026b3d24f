"""The pictures of a comparison: curves.png and forest.png."""

import math
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from experiment.arms import ArmResult
from experiment.statistics import Difference

COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")  # Okabe and Ito
STYLES = ("-", "--", "-.", ":")


def colour_of(number: int, count: int) -> str:
    """The colour of one of `count` arms, no two alike: black for the control, then Okabe and Ito's, or more hues."""
    if count <= len(COLOURS) or number == 0:
        return COLOURS[number]
    return to_hex(colormaps["turbo"]((number - 1) / (count - 2)))


def draw_curves(results: list[ArmResult], path: Path) -> None:
    """Validation loss by tokens of each arm, and its difference to the control's, with bands over seeds."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    curves = [{seed: dict(run["curve"]) for seed, run in result.runs.items() if run["curve"]} for result in results]
    for i, (result, by_seed) in enumerate(zip(results, curves, strict=True)):
        style = {"color": colour_of(i, len(results)), "linestyle": STYLES[i % 4]}
        shade = min(0.18, 0.6 / len(results))  # so that many bands on one another stay apart
        draw_band(left, by_seed, style, shade, result.arm.name)
        if i:
            draw_band(right, subtract(by_seed, curves[0]), style, shade)
    control = results[0].arm.name
    right.axhline(0, color=COLOURS[0], linewidth=1)
    left.set(xlabel="tokens trained on, millions", ylabel="validation loss, nats a token")
    right.set(xlabel="tokens trained on, millions", ylabel=f"difference to {control}, nats a token")
    left.set_title("Validation loss during training, mean ± sd over seeds", fontsize=9)
    right.set_title("Difference to the control by seed, mean ± sd (below 0: better)", fontsize=9)
    for axes in (left, right):
        axes.grid(alpha=0.25)
    if left.get_legend_handles_labels()[0]:
        figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=130)


def subtract(arm: dict[int, dict], control: dict[int, dict]) -> dict[int, dict]:
    """Curves by seed of both, each {tokens: loss} -> their differences where both have a point."""
    shared = sorted(set(arm) & set(control))
    return {
        seed: {tokens: loss - control[seed][tokens] for tokens, loss in arm[seed].items() if tokens in control[seed]}
        for seed in shared
    }


def draw_band(axes: Axes, by_seed: dict[int, dict], style: dict, shade: float, label: str | None = None) -> None:
    """Mean and standard deviation over seeds of {tokens: value}, at the tokens that all seeds have."""
    tokens = sorted(set.intersection(*(set(curve) for curve in by_seed.values()))) if by_seed else []
    if not tokens:
        return
    values = np.array([[curve[t] for t in tokens] for curve in by_seed.values()])
    mean, sd = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else np.zeros(len(tokens))
    x = np.array(tokens) / 1e6
    axes.plot(x, mean, label=label, linewidth=1.6, marker="o", markersize=3, **style)
    axes.fill_between(x, mean - sd, mean + sd, color=style["color"], alpha=shade, linewidth=0)


def draw_forest(results: list[ArmResult], differences: list[Difference], title: str, path: Path) -> None:
    """Paired differences with the intervals that the verdicts are taken from, each seed a dot."""
    figure = Figure(figsize=(9, 1.9 + 0.5 * len(differences)), layout="constrained")
    axes = figure.subplots()
    for y, d in enumerate(differences):
        colour = colour_of(y + 1, len(results))
        axes.plot(d.values, np.full(len(d.values), y + 0.18), "o", color=colour, alpha=0.45, markersize=4, linewidth=0)
        axes.plot(d.mean, y, "D", color=colour, markersize=7)
        text = "" if math.isnan(d.mean) else f"{d.mean:+.4f}"
        if not math.isnan(d.low_holm):
            axes.plot([d.low_holm, d.high_holm], [y, y], color=colour, linewidth=1.5)
            axes.plot([d.low_equivalent, d.high_equivalent], [y, y], color=colour, linewidth=4, alpha=0.6)
            text += f" [{d.low_holm:+.4f}, {d.high_holm:+.4f}]"
        axes.text(1.02, y, f"{text}  {d.verdict}", transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    axes.axvline(0, color=COLOURS[0], linewidth=1)
    axes.set_yticks(range(len(differences)), [result.arm.name for result in results[1:]])
    axes.set_ylim(len(differences) - 0.5, -0.6)
    axes.grid(axis="x", alpha=0.25)
    axes.set_xlabel(f"validation loss minus that of {results[0].arm.name}, nats a token (left of 0: better)")
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=130)
