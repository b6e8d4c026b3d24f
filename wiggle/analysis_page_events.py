"""Pictures of who is active when: the units' rates, the tokens that wake most and fewest of them, one sentence."""

import itertools

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import SubFigure

from wiggle.analysis_events import SAME
from wiggle.analysis_panels import COLOURS, Layers, head_line, label, silence, spread, subplots, with_events

BINS = np.linspace(0, 1, 21)
TOKENS = 48  # named in the picture of rates by token: one half those of the highest, one half those of the lowest
UNITS = 120  # of a layer that the sentence shows, evenly spread over their order: more than one sees
RASTERS = 3  # layers whose units are shown on the sentence


def draw_rates(part: SubFigure, layers: Layers) -> None:
    """Of some layers: how many units are active on which share of the tokens; said above, what never or always is."""
    having = with_events(layers)
    chosen = [having[i] for i in spread(len(having))]
    head_line(part, "How often each hidden unit " + ("fires" if silence(layers) == "gate" else "is not exactly 0"))
    (axes,) = subplots(part, 1, len(chosen), sharey=True)
    for panel, i in zip(axes, chosen, strict=True):
        for state in ("before", "now"):
            rates = layers[i][state].figures["unit_rate"]
            weights = np.full(len(rates), 1 / len(rates))
            panel.hist(rates, BINS, weights=weights, color=COLOURS[state], alpha=0.5)
        now = layers[i]["now"].figures
        panel.set_title(
            f"layer {i + 1}\nnever {100 * now['silent']:.1f} %, always {100 * now['always_on']:.1f} %", fontsize=8
        )
        panel.set(xlim=(0, 1), xlabel="share of tokens")
    axes[0].set_ylabel("share of units")


def shown_tokens(layers: Layers) -> list[str]:
    """Tokens in the order of the mean of their rates over the layers, highest first; of many, both ends."""
    events = [layers[i]["now"].figures["events"] for i in with_events(layers)]
    mean = {line["token"]: 0.0 for line in events[0]}
    for line in itertools.chain(*events):
        mean[line["token"]] += line["rate"]
    order = sorted(mean, key=mean.get, reverse=True)
    return order if len(order) <= TOKENS else [*order[: TOKENS // 2], *order[-TOKENS // 2 :]]


def draw_tokens(part: SubFigure, layers: Layers) -> None:
    """The share of units that are active by token and layer."""
    having, order = with_events(layers), shown_tokens(layers)
    rates = [{line["token"]: line["rate"] for line in layers[i]["now"].figures["events"]} for i in having]
    head_line(part, "Share of units that are active, by token: the highest and the lowest means")
    axes = part.subplots()
    table = np.array([[layer[token] for token in order] for layer in rates])  # (layers, tokens)
    image = axes.imshow(table, aspect="auto", cmap="viridis", interpolation="nearest")
    part.colorbar(image, ax=axes, pad=0.01)
    label_tokens(axes, order)
    places = spread(len(having), 12)
    axes.set_yticks(places, [having[i] + 1 for i in places])
    axes.set_ylabel("layer")


def tokens_differ(layers: Layers) -> bool:
    """Whether tokens that occur often enough to be named have rates of their own, and not all the same."""
    lists = [[line["rate"] for line in layers[i]["now"].figures["events"]] for i in with_events(layers)]
    return any(rates and max(rates) - min(rates) > SAME for rates in lists)


def draw_sentence(part: SubFigure, layers: Layers) -> None:
    """Of up to three layers: which units are active on each token of a sentence, the busiest units at the top."""
    having = with_events(layers)
    chosen = [having[i] for i in spread(len(having), RASTERS)]
    head_line(part, "One sentence: units (the busiest at the top) that are active on each token")
    axes = part.subplots(len(chosen), 1, squeeze=False, sharex=True)[:, 0]
    for panel, i in zip(axes, chosen, strict=True):
        active = layers[i]["now"].events.active
        units, tokens = active.shape
        panel.imshow(
            active[spread(units, UNITS)],
            extent=(-0.5, tokens - 0.5, units, 0),
            aspect="auto",
            interpolation="nearest",
            cmap=ListedColormap(["white", COLOURS["now"]]),
            vmin=0,
            vmax=1,
        )
        panel.set_ylabel(f"layer {i + 1}: unit", fontsize=8)
        panel.tick_params(axis="y", labelsize=8)
    label_tokens(axes[-1], layers[chosen[-1]]["now"].events.tokens)


def label_tokens(axes: Axes, tokens: list[str]) -> None:
    """Write a token below each column, upright where one is long."""
    labels = [label(token) for token in tokens]
    turned = 90 if max(map(len, labels)) > 2 else 0
    axes.set_xticks(range(len(labels)), labels, fontsize=8, rotation=turned, family="monospace", parse_math=False)


def label_height(tokens: list[str]) -> float:
    """Inches of what label_tokens writes."""
    longest = max(len(label(token)) for token in tokens)
    return 0.2 if longest <= 2 else 0.1 + 0.07 * longest


def tokens_height(layers: Layers) -> float:
    """Inches of draw_tokens."""
    return 1.0 + 0.18 * min(12, len(with_events(layers))) + label_height(shown_tokens(layers))


def sentence_height(layers: Layers) -> float:
    """Inches of draw_sentence."""
    having = with_events(layers)
    return 0.7 + 1.4 * min(RASTERS, len(having)) + label_height(layers[having[-1]]["now"].events.tokens)
