"""The page of pictures that shows what wiggle.analysis measured: distributions by layer, curves, and findings."""

import textwrap

import torch
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch

from wiggle import analysis_page_activation as activation
from wiggle import analysis_page_events as events
from wiggle import analysis_page_neurons as neurons
from wiggle.analysis_page_neurons import Betas
from wiggle.analysis_panels import COLOURS, SHOWN, WIDTH, Layers, drawable, head_line, shorten, silence


@torch.no_grad()
def draw_page(title: str, names: dict[str, str], layers: Layers, betas: Betas, lines: list[str]) -> Figure:
    """
    Draw everything that was measured: each section that has something to show, and no other.

    names: what the legend calls each state. betas: empty where nothing is dendritic. lines: the findings in words.
    """
    words = [part for line in lines for part in textwrap.wrap(drawable(line), 200, subsequent_indent=" " * 9)]
    sections = plan_sections(layers, betas)
    heights = [0.4, *(height for height, _, _ in sections), 0.45 + 0.13 * len(words)]
    figure = Figure(figsize=(WIDTH, sum(heights)), dpi=130, layout=ConstrainedLayoutEngine(hspace=0))
    head, *parts, last = figure.subfigures(len(heights), 1, height_ratios=heights)
    draw_head(head, title, {state: names[state] for state in layers[0]})
    for part, (_, draw, arguments) in zip(parts, sections, strict=True):
        draw(part, layers, *arguments)
    head_line(last, "In words")
    last.text(0.01, 1 - 0.4 / heights[-1], "\n".join(words), va="top", fontsize=7, family="monospace", parse_math=False)
    return figure


def plan_sections(layers: Layers, betas: Betas) -> list[tuple]:
    """What a page shows -> (inches, function that draws it, what this takes besides its place and the layers)."""
    sections = []
    now = layers[0]["now"]
    if now.use:
        sections += [(2.9, activation.draw_summary, ()), (4.0, activation.draw_shapes, ())]
    if silence(layers):
        sections += [(2.5, events.draw_rates, ())]
        if events.tokens_differ(layers):
            sections += [(events.tokens_height(layers), events.draw_tokens, ())]
        sections += [(events.sentence_height(layers), events.draw_sentence, ())]
    if activation.learned_names(layers):
        sections += [(activation.learned_height(layers), activation.draw_learned, ())]
    for name in now.neurons:
        sections += [(3, neurons.draw_oscillation, (name,))]
        sections += [(1.3 * min(SHOWN, len(layers)), neurons.draw_atlas, (name,))]
    if betas:
        sections += [(3, neurons.draw_competition, (betas,)), (3, neurons.draw_information, ())]
    return sections


def draw_head(part: SubFigure, title: str, names: dict[str, str]) -> None:
    """Write the title, and the legend of the states; of a name that is too long for both to fit, only the end."""
    part.text(0.01, 0.5, shorten(title, 54), fontsize=12, va="center", parse_math=False)
    patches = [Patch(color=COLOURS[state], alpha=0.6) for state in names]
    labels = [shorten(name, 36) for name in names.values()]
    for text in part.legend(patches, labels, loc="center right", ncols=3, frameon=False).get_texts():
        text.set_parse_math(False)
