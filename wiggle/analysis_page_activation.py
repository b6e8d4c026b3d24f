"""Pictures of what any MLP's hidden units see, what they make of it, and what is learned besides the matrices."""

import itertools

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure

from wiggle.analysis_panels import COLOURS, Layers, draw_violins, head_line, silence, spread, subplots, values_of

BINS = 48  # of a histogram and of a curve; half of them where the samples are sliced
FEWEST = 12  # samples of a bin that is drawn
MIDDLE = (0.002, 0.998)  # quantiles of the pre-activations between which a curve is drawn
A_ROW = 4  # learned parameters side by side
SLICES = {"dotted": 0.1, "dashed": 0.5, "solid": 0.9}  # of a second input: line style -> its quantile
SYMBOLS = {
    "omega": "ω",
    "phi": "φ",
    "baseline": "b",
    "gain": "g",
    "offset": "o",
    "beta": "β",
    "alpha_p": "αp",
    "alpha_n": "αn",
    "coefficients_1": "a_1",
    "coefficients_2": "a_2",
    "coefficients_3": "a_3",
}


def draw_summary(part: SubFigure, layers: Layers) -> None:
    """By layer: how wide the pre-activations are, how non-linear the layer is, and how much of it is silent."""
    head_line(part, "How non-linear each layer is")
    silent = silence(layers)
    (axes,) = subplots(part, 1, 3 if silent else 2, fewest=3)
    draw_violins(axes[0], layers, "Pre-activations", "std of c_fc's output", "preactivation_std")
    draw_violins(axes[1], layers, "Not linear", "share of variance", "nonlinear_share")
    widest = max(float(std) for state in layers[0] for (std,) in values_of(layers, state, "preactivation_std"))
    axes[0].set_ylim(0, 1.15 * widest or 1)
    axes[1].set_ylim(0, 1)
    if silent == "gate":
        draw_violins(axes[2], layers, "Events", "share that fire", "event_rate")
    elif silent == "zeros":
        draw_violins(axes[2], layers, "Exact zeros", "share of c_proj's input", "zeros")
        axes[2].set_ylim(0, 1)


def draw_shapes(part: SubFigure, layers: Layers) -> None:
    """Of some layers: the distribution of the pre-activations, and below it what the units give for them."""
    fan = layers[0]["now"].use.seen.shape[1]
    what = "Pre-activations, and a hidden unit's output over them: its mean, and the middle 90 % of units and tokens"
    if fan > 1:
        styles = [f"{100 * quantile:.0f} % ({style})" for style, quantile in SLICES.items()]
        what = (
            f"Pre-activations, and the mean output by the first, with the second near its {', '.join(styles)} quantile"
        )
    head_line(part, what)
    chosen = spread(len(layers))
    for column, i in zip(subplots(part, 2, len(chosen), sharex="col").T, chosen, strict=True):
        seen, shape = column
        states = {state: layers[i][state] for state in ("before", "now")}
        stds = " to ".join(f"{state.figures['preactivation_std']:.2f}" for state in states.values())
        seen.set_title(f"layer {i + 1}: std {stds}", fontsize=9)
        for state, found in states.items():
            draw_histogram(seen, found.use.seen, COLOURS[state])
            draw_output(shape, found.use.seen, found.use.given, COLOURS[state], width=1.5 if state == "now" else 3)
        seen.set(yticks=[], ylim=(0, None))
        shape.set_xlabel("pre-activation" if fan == 1 else "first pre-activation", fontsize=8)
        seen.tick_params(labelsize=8)
        shape.tick_params(labelsize=8)
        if i == 0:
            seen.set_ylabel("density" if fan == 1 else "density\n(dashed: second)", fontsize=8)
            shape.set_ylabel("output", fontsize=8)


def draw_histogram(axes: Axes, seen: np.ndarray, colour: str) -> None:
    """seen: (samples, fan). The first pre-activation of a unit is filled, a second one, or further ones, dashed."""
    low, high = np.quantile(seen, MIDDLE)
    edges = np.linspace(low, max(high, low + 1e-6), BINS + 1)
    axes.hist(seen[:, 0], edges, density=True, color=colour, alpha=0.5)
    if seen.shape[1] > 1:
        axes.hist(seen[:, 1:].ravel(), edges, density=True, color=colour, histtype="step", linestyle="--")


def draw_output(axes: Axes, seen: np.ndarray, given: np.ndarray, colour: str, width: float) -> None:
    """seen: (samples, fan), given: (samples,). See draw_shapes; over a third and further inputs the mean is taken."""
    if seen.shape[1] == 1:
        x, mean, low, high = binned(seen[:, 0], given)
        axes.fill_between(x, low, high, color=colour, alpha=0.25, linewidth=0)
        axes.plot(x, mean, color=colour, linewidth=width, marker="." if len(x) == 1 else None)
        return
    second = seen[:, 1]
    order = second.argsort().argsort()  # the rank of each sample
    for style, quantile in SLICES.items():
        near = np.abs(order - quantile * len(second)) <= 0.08 * len(second)
        x, mean, *_ = binned(seen[near, 0], given[near], BINS // 2)
        axes.plot(x, mean, color=colour, linewidth=width, linestyle=style)


def binned(x: np.ndarray, y: np.ndarray, bins: int = BINS) -> tuple[np.ndarray, ...]:
    """
    y by x, both (samples,), in bins of equal width -> of each bin x's mean, y's mean, y's 5 and 95 % quantiles.

    Bins with few samples are left out; where all have few, everything is one bin.
    """
    order = np.argsort(x)
    x, y = x[order], y[order]
    edges = np.searchsorted(x, np.linspace(*np.quantile(x, MIDDLE), bins + 1))
    parts = [slice(a, b) for a, b in itertools.pairwise(edges) if b - a >= FEWEST] or [slice(None)]
    return tuple(np.array([(x[p].mean(), y[p].mean(), *np.quantile(y[p], (0.05, 0.95))) for p in parts]).T)


def learned_names(layers: Layers) -> list[str]:
    """The learned parameters that are drawn by layer: a dendrite's one β is not, its section shows it by step."""
    learned = layers[0]["now"].figures["learned"]
    return [name for name, values in learned.items() if name != "beta" or values.size > 1]


def draw_learned(part: SubFigure, layers: Layers) -> None:
    """The distribution of each learned parameter, by layer; of one that a layer has once, its value."""
    head_line(part, "What was learned besides c_fc and c_proj" if layers[0]["now"].use else "What was learned")
    names = learned_names(layers)
    rows = -(-len(names) // A_ROW)
    axes = part.subplots(rows, A_ROW, squeeze=False).ravel()
    pair = [{state: layer[state] for state in ("before", "now")} for layer in layers]
    for panel, name in zip(axes, names, strict=False):
        owner, _, last = name.rpartition(".")
        symbol = SYMBOLS.get(last, last)
        title = symbol if owner in ("", "neuron") else f"{symbol} of {owner}"
        once = all(values.size == 1 for values in values_of(layers, "now", "learned", name))
        draw_violins(panel, pair, title, "value" if once else "values of all units", "learned", name)
    for unused in axes[len(names) :]:
        unused.set_visible(False)


def learned_height(layers: Layers) -> float:
    """Inches of draw_learned; 0 where nothing is learned."""
    return 2.7 * -(-len(learned_names(layers)) // A_ROW)
