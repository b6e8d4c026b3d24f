"""The pictures of a comparison: curves.png and forest.png."""

import math
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from experiment.contrasts import Contrast
from experiment.study import ArmResult

# Black for the control, then Okabe and Ito's colours without their pale yellow, then darker ones that stay apart
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
COLOURS += ("#6A3D9A", "#8C510A", "#B2182B", "#1B3A8C")
STYLES = ("-", "--", "-.", ":")
WARM_UP = 0.2  # share of the tokens at the start, whose high losses set no limit of an axis
LINE_OF_TEXT = 0.05  # height of a label, as a share of the axes

Curves = dict[int, dict[int, float]]  # by seed: {tokens: loss}


def colour_of(number: int, count: int) -> str:
    """The colour of one of `count` arms, no two alike: black for the control, then COLOURS, or more hues."""
    if count <= len(COLOURS) or number == 0:
        return COLOURS[number]
    return to_hex(colormaps["turbo"]((number - 1) / (count - 2)))


# --- curves.png ---


def draw_curves(results: list[ArmResult], pairs: list[tuple[ArmResult, ArmResult]], path: Path) -> None:
    """
    Validation loss by tokens of each arm, and its difference to its control's, with bands over seeds.

    pairs: (arm, its control) of all arms that are judged.
    """
    figure = Figure(figsize=(13, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    losses = {result.arm.name: curves_of(result) for result in results}
    differences = {arm.arm.name: subtract(curves_of(arm), curves_of(control)) for arm, control in pairs}
    draw_panel(left, losses, list(losses))
    draw_panel(right, differences, list(losses), include=(0.0,))
    right.axhline(0, color=COLOURS[0], linewidth=1)
    controls = sorted({control.arm.name for _, control in pairs})
    against = controls[0] if len(controls) == 1 else "each arm's control"
    left.set(ylabel="validation loss, nats a token")
    right.set(ylabel=f"difference to {against}, nats a token")
    left.set_title("Validation loss during training, mean ± sd over seeds", fontsize=9)
    right.set_title("Difference to the control by seed, mean ± sd (below 0: better)", fontsize=9)
    figure.savefig(path, dpi=130)


def draw_panel(axes: Axes, by_arm: dict[str, Curves], order: list[str], include: tuple = ()) -> None:
    """
    The curves of some arms, each with its name at its end.

    order: names of all arms, which fixes colours and line styles. include: values that the axis shows in any case.
    """
    ends = {}
    for name, by_seed in by_arm.items():
        i = order.index(name)
        style = {"color": colour_of(i, len(order)), "linestyle": STYLES[i % len(STYLES)]}
        shade = min(0.15, 0.5 / len(order))  # so that many bands on one another stay apart
        if (mean := draw_band(axes, by_seed, style, shade)) is not None:
            ends[name] = float(mean[-1]), style["color"]
    axes.set_xlabel("tokens trained on, millions")
    axes.grid(alpha=0.25)
    if ends:
        axes.set_ylim(limits(by_arm, include))
        label_ends(axes, ends)


def limits(by_arm: dict[str, Curves], include: tuple = ()) -> tuple[float, float]:
    """
    Limits of the axis: all that the curves show after WARM_UP, of all arms but those that are far off.

    Far off is an arm that ends 20 times as far from the middle as half of the arms do, and 5 times as far as a curve
    goes: one that nearly diverged, beside which the others would be one line.
    """
    shown = [values for by_seed in by_arm.values() if (values := values_after_warm_up(by_seed))]
    ends = np.array([values[-1] for values in shown])
    apart = np.abs(ends - np.median(ends))
    far = max(20 * np.median(apart), 5 * np.median([np.ptp(values) for values in shown]))
    kept = np.concatenate([include, *(values for values, off in zip(shown, apart, strict=True) if off <= far)])
    room = 0.04 * (np.ptp(kept) or 1.0)
    return kept.min() - room, kept.max() + room


def values_after_warm_up(by_seed: Curves) -> list[float]:
    """The values of all seeds, in the order of their tokens, without the first WARM_UP of the longest run."""
    points = sorted(point for curve in by_seed.values() for point in curve.items())
    return [value for tokens, value in points if tokens >= WARM_UP * points[-1][0]]


def label_ends(axes: Axes, ends: dict[str, tuple[float, str]]) -> None:
    """
    Write each arm's name beside the end of its curve, moved apart where ends lie close, with an arrow where that is off
    the axes. ends: (value, colour).
    """
    low, high = axes.get_ylim()
    names = sorted(ends, key=lambda name: ends[name][0])
    wanted = [min(1.0, max(0.0, (ends[name][0] - low) / (high - low))) for name in names]
    for name, y, place in zip(names, wanted, move_apart(wanted, LINE_OF_TEXT), strict=True):
        value, colour = ends[name]
        text = name if low <= value <= high else f"{name} {'↑' if value > high else '↓'}"
        line = {"xycoords": "axes fraction", "textcoords": "axes fraction", "annotation_clip": False}
        arrow = {"arrowstyle": "-", "color": colour, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0}
        axes.annotate(text, (1.0, y), (1.08, place), va="center", fontsize=8, color=colour, arrowprops=arrow, **line)


def move_apart(places: list[float], distance: float) -> list[float]:
    """Ascending places, pushed from one another until neighbours are about `distance` apart."""
    moved = list(places)
    for _ in range(20 * len(moved)):
        for i in range(len(moved) - 1):
            push = max(0.0, distance - (moved[i + 1] - moved[i])) / 2
            moved[i], moved[i + 1] = moved[i] - push, moved[i + 1] + push
    return moved


def curves_of(result: ArmResult) -> Curves:
    """The validation losses during each run that has any."""
    return {seed: dict(run["curve"]) for seed, run in result.runs.items() if run["curve"]}


def subtract(arm: Curves, control: Curves) -> Curves:
    """The differences of two arms' curves by seed, where both have a point."""
    shared = sorted(set(arm) & set(control))
    return {
        seed: {tokens: loss - control[seed][tokens] for tokens, loss in arm[seed].items() if tokens in control[seed]}
        for seed in shared
    }


def draw_band(axes: Axes, by_seed: Curves, style: dict, shade: float) -> np.ndarray | None:
    """Mean and standard deviation over seeds, at the tokens that all have -> the mean; None where there are none."""
    tokens = sorted(set.intersection(*(set(curve) for curve in by_seed.values()))) if by_seed else []
    if not tokens:
        return None
    values = np.array([[curve[t] for t in tokens] for curve in by_seed.values()])
    mean, sd = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else np.zeros(len(tokens))
    x = np.array(tokens) / 1e6
    axes.plot(x, mean, linewidth=1.6, marker="o", markersize=3, **style)
    axes.fill_between(x, mean - sd, mean + sd, color=style["color"], alpha=shade, linewidth=0)
    return mean


# --- forest.png ---


def draw_forest(results: list[ArmResult], contrasts: list[Contrast], title: str, path: Path) -> None:
    """Paired differences with the intervals that the verdicts are taken from, each seed a dot."""
    figure = Figure(figsize=(9, 1.9 + 0.5 * len(contrasts)), layout="constrained")
    axes = figure.subplots()
    names = [result.arm.name for result in results]
    rows = names + [contrast.name for contrast in contrasts if contrast.is_interaction]  # each with its own colour
    controls = {contrast.control for contrast in contrasts if not contrast.is_interaction}
    labels = []
    for y, contrast in enumerate(contrasts):
        d, colour = contrast.difference, colour_of(rows.index(contrast.name), len(rows))
        axes.plot(d.values, np.full(len(d.values), y + 0.18), "o", color=colour, alpha=0.45, markersize=4, linewidth=0)
        axes.plot(d.mean, y, "D", color=colour, markersize=7)
        text = "" if math.isnan(d.mean) else f"{d.mean:+.4f}"
        if not math.isnan(d.low_holm):
            axes.plot([d.low_holm, d.high_holm], [y, y], color=colour, linewidth=1.5)
            axes.plot([d.low_equivalent, d.high_equivalent], [y, y], color=colour, linewidth=4, alpha=0.6)
            text += f" [{d.low_holm:+.4f}, {d.high_holm:+.4f}]"
        axes.text(1.02, y, f"{text}  {contrast.verdict}", transform=axes.get_yaxis_transform(), va="center", fontsize=9)
        single = contrast.is_interaction or len(controls) == 1
        labels.append(contrast.name if single else f"{contrast.name} − {contrast.control}")
    axes.axvline(0, color=COLOURS[0], linewidth=1)
    axes.set_yticks(range(len(contrasts)), labels)
    axes.set_ylim(len(contrasts) - 0.5, -0.6)
    axes.grid(axis="x", alpha=0.25)
    against = controls.pop() if len(controls) == 1 else "the control"
    axes.set_xlabel(f"validation loss minus that of {against}, nats a token (left of 0: better)")
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=130)
