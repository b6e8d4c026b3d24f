"""What the sections of the analysis page share: colours, a row of panels, distributions by layer, texts that fit."""

import functools
import math
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.ft2font import FT2Font

from wiggle.analysis import State
from wiggle.figures import readable

COLOURS = {"before": "#7F7F7F", "mixed": "#E69F00", "now": "#0072B2"}  # of the states, from Okabe and Ito's palette
WIDTH = 13  # inches of the page
DRAWN = 4000  # values, at most, from which the outline of a distribution is estimated, which takes time
SHOWN = 6  # layers of which a section shows each by itself, and neurons in each row of an atlas

Layers = list[dict[str, State]]  # as measure_networks returns them


def head_line(part: SubFigure, text: str) -> None:
    part.suptitle(text, x=0.01, ha="left", fontsize=11, weight="bold")


def shorten(text: str, length: int) -> str:
    return text if len(text) <= length else f"…{text[1 - length :]}"


def spread(count: int, most: int = SHOWN) -> np.ndarray:
    """Up to `most` of the numbers below `count`, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, most).round().astype(int))


def subplots(part: SubFigure, rows: int, columns: int, fewest: int = 4, **options) -> np.ndarray:
    """(rows, columns) axes, no wider than the ones of `fewest` columns would be."""
    axes = part.subplots(rows, max(columns, fewest), squeeze=False, **options)
    for unused in axes[:, columns:].flat:
        unused.set_visible(False)
    return axes[:, :columns]


def values_of(layers: Layers, state: str, *keys: str) -> list[np.ndarray]:
    """By layer, the number or array that `keys` lead to in the figures of a state, in one dimension."""
    found = [layer[state].figures for layer in layers]
    for key in keys:
        found = [figures[key] for figures in found]
    return [np.atleast_1d(values) for values in found]


def with_events(layers: Layers) -> list[int]:
    """The layers in which both networks have silent units."""
    return [i for i, layer in enumerate(layers) if layer["before"].events and layer["now"].events]


def silence(layers: Layers) -> str | None:
    """What a silent unit is: one whose "gate" does not fire, or one that gives "zeros"; None where there is none."""
    having = with_events(layers)
    if not having:
        return None
    return layers[having[0]]["now"].figures["silence"]


def draw_violins(axes: Axes, layers: Layers, title: str, ylabel: str, *keys: str) -> None:
    """Draw by layer the distribution, the median and, where it fits, the mean of what `keys` lead to."""
    labels = places = np.arange(1, len(layers) + 1)
    room = (WIDTH / axes.get_subplotspec().get_gridspec().ncols - 0.75) / len(layers)  # inches of a layer's label
    for i, state in enumerate(layers[0]):
        arrays = values_of(layers, state, *keys)
        if room > 0.4:
            means = [round(float(values.mean()), 2) + 0.0 for values in arrays]  # + 0.0 takes the sign off -0.0
            labels = [f"{label}\n{mean:.2f}" for label, mean in zip(labels, means, strict=True)]
        at = places + 0.84 * ((i + 0.5) / len(layers[0]) - 0.5)
        several = max(values.size for values in arrays) > 1
        if several:
            some = [v if v.size < DRAWN else np.random.default_rng(0).choice(v, DRAWN) for v in arrays]
            for body in axes.violinplot(some, at, widths=0.8 / len(layers[0]), showextrema=False)["bodies"]:
                body.set(facecolor=COLOURS[state], alpha=0.6)
        axes.plot(at, [np.median(values) for values in arrays], "o", color=COLOURS[state], markersize=4, clip_on=False)
    step = math.ceil(0.22 / room)  # label only every so many layers
    axes.set_xticks(places[::step], labels[::step], fontsize=8)
    axes.margins(y=0.05 if several else 0.2)
    what = "layer, and means" if several else "layer, and values"
    axes.set(xlim=(0.5, len(layers) + 0.5), xlabel=what if room > 0.4 else "layer", ylabel=ylabel)
    axes.set_title(title, parse_math=False)


def drawable(text: str) -> str:
    """A text as the page's fonts can draw it: escaped where they have no shape for a character."""
    shapes = font_characters()
    return "".join(c if ord(c) in shapes else c.encode("unicode_escape").decode("ascii") for c in text)


def label(token: str, longest: int = 12) -> str:
    """A token as a label, whatever characters it holds: readable, drawable, and cut."""
    text = drawable(readable(token))
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


@functools.cache
def font_characters() -> frozenset[int]:
    """The code points that the page's font for texts and words has."""
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    fonts = [FT2Font(str(folder / file)).get_charmap() for file in ("DejaVuSans.ttf", "DejaVuSansMono.ttf")]
    return frozenset(fonts[0]) & frozenset(fonts[1])
