"""The page of pictures that shows what wiggle.analysis measured: distributions by layer, curves, and findings."""

import math
import textwrap

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch

from wiggle.analysis import State

COLOURS = {"before": "#7F7F7F", "mixed": "#E69F00", "now": "#0072B2"}  # of the states, from Okabe and Ito's palette
WIDTH = 13  # inches of the page
SHOWN = 6  # layers in an atlas, neurons in each of its rows, and layers in a legend

Layers = list[dict[str, State]]  # as measure_networks returns them
Betas = list[tuple[int, list[float]]]  # step, and mean β of each layer


@torch.no_grad()
def draw_page(title: str, names: dict[str, str], layers: Layers, betas: Betas, lines: list[str]) -> Figure:
    """
    Draw everything that was measured.

    names: what the legend calls each state. betas: empty where nothing is dendritic. lines: the findings in words.
    """
    neurons = layers[0]["now"].neurons
    words = [part for line in lines for part in textwrap.wrap(line, 200, subsequent_indent=" " * 9)]
    heights = [0.4]
    heights += [3, 1.3 * min(SHOWN, len(layers))] * len(neurons)
    heights += [3, 3] if betas else []
    heights += [0.5 + 0.13 * len(words)]
    figure = Figure(figsize=(WIDTH, sum(heights)), dpi=130, layout="constrained")
    head, *parts = figure.subfigures(len(heights), 1, height_ratios=heights)
    draw_head(head, title, {state: names[state] for state in layers[0]})
    for i, name in enumerate(neurons):
        draw_oscillation(parts[2 * i], layers, name, with_events=i == 0)
        draw_atlas(parts[2 * i + 1], layers, name)
    if betas:
        draw_competition(parts[-3], layers, betas)
        draw_information(parts[-2], layers)
    head_line(parts[-1], "In words")
    parts[-1].text(0.01, 0, "\n".join(words), va="bottom", fontsize=7, family="monospace", parse_math=False)
    return figure


def draw_head(part: SubFigure, title: str, names: dict[str, str]) -> None:
    """Write the title, and the legend of the states; of a name that is too long for both to fit, only the end."""
    part.text(0.01, 0.5, shorten(title, 54), fontsize=12, va="center", parse_math=False)
    patches = [Patch(color=COLOURS[state], alpha=0.6) for state in names]
    labels = [shorten(name, 36) for name in names.values()]
    for text in part.legend(patches, labels, loc="center right", ncols=3, frameon=False).get_texts():
        text.set_parse_math(False)


def shorten(text: str, length: int) -> str:
    return text if len(text) <= length else f"…{text[1 - length :]}"


def head_line(part: SubFigure, text: str) -> None:
    part.suptitle(text, x=0.01, ha="left", fontsize=11, weight="bold")


def draw_oscillation(part: SubFigure, layers: Layers, name: str, with_events: bool) -> None:
    """What the neurons of one name learned, and how far their phases go; with_events: also how many features fire."""
    head_line(part, f"{name}: what was learned, and its use")
    events = with_events and "event_rate" in layers[0]["now"].figures
    frequency, shift, phase, wave, *last = part.subplots(1, 5 if events else 4)
    draw_violins(frequency, layers, "Frequency", "ω, radians a unit of x", "neurons", name, "omega")
    draw_violins(shift, layers, "Phase shift", "φ, radians", "neurons", name, "phi")
    draw_violins(phase, layers, "Phase, and π/2", "|ωx + φ|, radians", "neurons", name, "abs_phase")
    phase.axhline(math.pi / 2, color="#D55E00", linestyle="--")
    draw_violins(wave, layers, "As a wave", "share past π/2", "neurons", name, "beyond_maximum")
    wave.set_ylim(bottom=0)
    if not any(state.figures["neurons"][name]["beyond_maximum"].any() for layer in layers for state in layer.values()):
        wave.text(0.5, 0.5, "no phase passes π/2", ha="center", fontsize=8, transform=wave.transAxes)
    if events:
        draw_violins(last[0], layers, "Events", "share of features", "event_rate")


def draw_competition(part: SubFigure, layers: Layers, betas: Betas) -> None:
    head_line(part, "How branches compete")
    effective, weights, sharpness = part.subplots(1, 3)
    draw_violins(effective, layers, "Effective branches of a unit", "exp(entropy of usage)", "effective_branches")
    draw_violins(weights, layers, "Weights of a unit", "cosine of two branches", "cosine")
    draw_sharpness(sharpness, betas)


def draw_information(part: SubFigure, layers: Layers) -> None:
    head_line(part, "Mutual information of a unit's winner")
    labels = layers[0]["now"].figures["information"]
    for axes, label in zip(part.subplots(1, len(labels), sharey=True), labels, strict=True):
        draw_violins(axes, layers, f"With the {label}", "bits", "information", label, "bits")


def draw_violins(axes: Axes, layers: Layers, title: str, ylabel: str, *keys: str) -> None:
    """Draw by layer the distribution, the median and, where it fits, the mean of the array that `keys` lead to."""
    labels = places = np.arange(1, len(layers) + 1)
    room = (WIDTH / axes.get_subplotspec().get_gridspec().ncols - 0.75) / len(layers)  # inches of a layer's label
    for i, state in enumerate(layers[0]):
        arrays = [layer[state].figures for layer in layers]
        for key in keys:
            arrays = [figures[key] for figures in arrays]
        if room > 0.4:
            labels = [f"{label}\n{values.mean():.2f}" for label, values in zip(labels, arrays, strict=True)]
        arrays = [v if v.size < 20_000 else np.random.default_rng(0).choice(v, 20_000) for v in arrays]  # for speed
        at = places + 0.84 * ((i + 0.5) / len(layers[0]) - 0.5)
        for body in axes.violinplot(arrays, at, widths=0.8 / len(layers[0]), showextrema=False)["bodies"]:
            body.set(facecolor=COLOURS[state], alpha=0.6)
        axes.plot(at, [np.median(values) for values in arrays], "o", color=COLOURS[state], markersize=4, clip_on=False)
    step = math.ceil(0.22 / room)  # label only every so many layers
    axes.set_xticks(places[::step], labels[::step], fontsize=8)
    axes.set(xlabel="layer, and means" if room > 0.4 else "layer", ylabel=ylabel, title=title)


def draw_atlas(part: SubFigure, layers: Layers, name: str) -> None:
    """Draw y by x for some neurons of some layers, before and now; thick over the middle 98 % of a neuron's inputs."""
    head_line(part, f"{name}: y by x in order of ω, thick where used")
    chosen = spread(len(layers))
    rows = part.subplots(len(chosen), SHOWN, squeeze=False, sharex="row", sharey="row")
    for row, i in zip(rows, chosen, strict=True):
        before, now = layers[i]["before"], layers[i]["now"]
        neuron, x = now.neurons[name]
        low, high = torch.from_numpy(np.quantile(x.cpu(), (0.01, 0.99), axis=0))  # (F,) each
        wide = torch.linspace(low.min(), high.max(), 200)[:, None].expand(-1, x.size(1))  # (200, F)
        old = before.neurons[name][0](wide.to(x.device)).cpu()
        new = neuron(wide.to(x.device)).cpu()
        used = new.where((wide >= low) & (wide <= high), math.nan)
        omega, phi = (now.figures["neurons"][name][key] for key in ("omega", "phi"))
        for axes, j in zip(row, omega.argsort()[np.linspace(0, len(omega) - 1, SHOWN).astype(int)], strict=True):
            axes.plot(wide[:, j], old[:, j], "-", color=COLOURS["before"], linewidth=1)
            axes.plot(wide[:, j], new[:, j], ":", color=COLOURS["now"], linewidth=1)
            axes.plot(wide[:, j], used[:, j], "-", color=COLOURS["now"], linewidth=2.5)
            axes.set_title(f"ω = {omega[j]:.2f}, φ = {phi[j]:.2f}", fontsize=8)
        row[0].set_ylabel(f"layer {i + 1}: y", fontsize=8)


def draw_sharpness(axes: Axes, betas: Betas) -> None:
    """Draw β of each layer by step."""
    steps, means = zip(*betas, strict=True)
    layers = len(means[0])
    named = spread(layers)
    labels = [i + 1 if i in named else "_" for i in range(layers)]  # matplotlib's legend leaves out "_"
    axes.set_prop_cycle(color=colormaps["viridis"](np.linspace(0, 0.9, layers)))
    axes.plot(steps, means, marker="." if len(set(steps)) == 1 else None, label=labels)
    axes.set(xlabel="step", ylabel="β, mean over units", title="Sharpness")
    axes.legend(title="layer", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)


def spread(count: int) -> np.ndarray:
    """Up to SHOWN of the numbers below `count`, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, SHOWN).round().astype(int))
