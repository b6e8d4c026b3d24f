"""The page that wiggle/analysis_page*.py draw: nothing collides, and no section or panel is empty."""

import math

import numpy as np
import pytest
import torch
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text

from tests.conftest import random_text, untrained
from wiggle import figures
from wiggle.analysis import State, measure_networks
from wiggle.analysis_page import draw_page
from wiggle.analysis_page_activation import binned
from wiggle.analysis_page_events import label_tokens
from wiggle.analysis_page_neurons import draw_oscillation, draw_sharpness
from wiggle.analysis_panels import draw_violins

NAMES = {"before": "untrained, seed 1337", "mixed": "its branches on today's inputs", "now": "step 200000"}
SENTENCE = "oscillating: 0.0 % of phases past pi/2 (before 0.0), |x| 0.09, 95 % below 0.29, omega 1.01 +- 0.10"
KINDS = {
    "gelu": {"mlp": "gelu"},
    "relu2": {"mlp": "relu2"},
    "swiglu": {"mlp": "swiglu"},
    "snake": {"mlp": "snake"},
    "polynorm": {"mlp": "polynorm"},
    "none": {"mlp": "bio", "bio_gate": "none"},
    "feature": {"mlp": "bio"},
    "hard": {"mlp": "bio", "bio_event": "hard"},
    "dendritic": {"mlp": "dendritic"},
    "channel": {"mlp": "dendritic", "dendritic_branches": 4, "dendritic_beta": "channel"},
}
INPUTS = ["Pre-activations", "Not linear"]


def page(kind="none", text=None, title="run, step 6", legend=NAMES, sentences=1, **changes):
    """The page of two networks of a kind that are not trained."""
    before, now = (untrained(seed, **KINDS[kind] | {"n_layer": 1} | changes) for seed in (1, 2))
    layers = measure_networks(before, now, text or random_text())
    steps = (0, 100, 200000) if now.config.mlp == "dendritic" else ()
    betas = [(step, [1 + 0.01 * i for i in range(len(layers))]) for step in steps]
    lines = [f"layer {i}  {SENTENCE}" for i in range(1, len(layers) + 1)] * sentences
    return draw_page(title, legend, layers, betas, lines)


def texts(artist):
    """All texts of a figure that are seen; ticks outside their axis are not."""
    if not artist.get_visible():
        return []
    if isinstance(artist, Axis):
        low, high = artist.get_view_interval()
        ticks = [tick for tick in artist.get_major_ticks() if low - 1e-9 <= tick.get_loc() <= high + 1e-9]
        found = [artist.label, *(tick.label1 for tick in ticks)]
    else:
        found = [artist] if isinstance(artist, Text) else []
        found += [text for child in artist.get_children() for text in texts(child)]
    return [text for text in dict.fromkeys(found) if text.get_visible() and text.get_text().strip()]


def collisions(figure):
    """Pairs of texts that come closer than 2 pixels on one line, or overlap; and texts that leave the page."""
    figure.draw_without_rendering()  # which lays it out
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts(figure)]
    found = []
    for i, (text, box) in enumerate(boxes):
        if box.x0 < 0 or box.y0 < -1 or box.x1 > figure.bbox.x1 or box.y1 > figure.bbox.y1:
            found.append(f"{text!r} leaves the page")
        for other, place in boxes[:i]:
            beside = min(box.x1, place.x1) - max(box.x0, place.x0) > -2
            if beside and min(box.y1, place.y1) - max(box.y0, place.y0) > 1:
                found.append(f"{text!r} meets {other!r}")
    return found


def titles(figure):
    """Of the panels that are seen."""
    return [axes.get_title() for axes in figure.axes if axes.get_visible() and axes.get_title()]


@pytest.mark.slow
def test_words_as_tokens_do_not_collide():
    words = [" the", "\n", ".", " Shakespeare", " a", "ing", " extraordinary", "你好世界", "  ", "'s"]
    assert collisions(page("relu2", random_text()._replace(tokens=words), n_layer=4)) == []


@pytest.mark.parametrize("n_layer", [1, 4, 12])
@pytest.mark.parametrize("kind", ["feature", "hard", "relu2", "swiglu", "polynorm", "channel"])
@pytest.mark.slow
def test_texts_do_not_collide(kind, n_layer):
    assert collisions(page(kind, n_layer=n_layer, sentences=7)) == []


@pytest.mark.parametrize(
    ("kind", "learned"),
    [
        ("gelu", []),
        ("snake", ["a"]),
        ("polynorm", ["a_1", "a_2", "a_3", "bias"]),
        ("dendritic", []),
        ("none", ["ω of oscillating", "φ of oscillating", "b of oscillating"]),
    ],
)
def test_what_is_learned_has_a_panel_each(kind, learned):
    found = titles(page(kind))
    assert found[:2] == INPUTS and [title for title in found[3:] if title in learned] == learned
    known = {"layer 1: std", "Phase, and π/2", "As a wave", "Effective branches of a unit", "Weights of a unit"}
    known |= {"Sharpness", "With the token", "With the class", "With the position", "ω = "}
    rest = [title for title in found[2:] if not title.startswith(tuple(known))]
    assert rest == learned


@pytest.mark.parametrize(("kind", "third"), [("gelu", None), ("relu2", "Exact zeros"), ("feature", "Events")])
def test_silence_is_a_section_of_those_that_have_it(kind, third):
    figure = page(kind)
    assert (third in titles(figure)) == (third is not None)
    heads = " ".join(text.get_text() for text in texts(figure))
    assert ("One sentence" in heads) == (third is not None)
    assert ("by token" in heads) == (third is not None)


def test_tokens_have_no_picture_where_all_are_alike_or_too_rare():
    idx = torch.arange(10)[None]  # each token once
    text = figures.Text(idx, list("abcdefghij"), {"token": idx[0]})
    heads = " ".join(word.get_text() for word in texts(page("relu2", text)))
    assert "One sentence" in heads and "by token" not in heads


def test_labels_of_tokens_are_drawn_whatever_characters_they_hold():
    strange = ["$x$", " the", "\n\n", "你", "\u0301", "\\xe2", "a" * 40, "_", "{", "\x00"]
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    label_tokens(axes, strange)
    figure.draw_without_rendering()
    shown = [text.get_text() for text in axes.get_xticklabels()]
    assert shown == ["$x$", "␣the", "\\n\\n", "\\u4f60", "\\u0301", "\\xe2", "a" * 11 + "…", "_", "{", "\\x00"]


def test_an_output_by_its_input_is_the_mean_in_each_bin():
    x = np.random.default_rng(0).normal(size=20_000)
    centre, mean, low, high = binned(x, x**2)
    assert np.allclose(mean, centre**2, atol=0.02) and (low <= mean).all() and (mean <= high).all()
    centre, mean, *_ = binned(np.zeros(50), np.arange(50.0))  # an input that never moves
    assert centre.tolist() == [0.0] and mean.tolist() == [24.5]


@pytest.mark.parametrize(("n_layer", "means"), [(4, True), (9, False)])
def test_means_are_written_where_there_is_room(n_layer, means):
    layers = [{state: State({"share": np.float64(0.25)}, {}) for state in ("before", "now")}] * n_layer
    axes = Figure().subplots(1, 3)[0]
    draw_violins(axes, layers, "Share", "of all", "share")
    assert all(("\n0.25\n0.25" in label.get_text()) == means for label in axes.get_xticklabels())
    assert axes.get_xlabel() == ("layer, and values" if means else "layer")


def test_a_legend_of_layers_names_a_few():
    axes = Figure().subplots()
    draw_sharpness(axes, [(0, [1.0] * 8), (9, [2.0] * 8)])
    named = [int(text.get_text()) for text in axes.get_legend().get_texts()]
    assert len(named) <= 6 and named[0] == 1 and named[-1] == 8


def test_long_and_strange_names_fit_and_are_shown_as_they_are():
    long = "/home/somebody/experiments/2026-03-14_oscillation_against_gelu/seed-3/best.pt, step 12000"
    figure = page("gelu", title="r" * 200 + ", step 6, validation loss 2.253", legend=NAMES | {"before": long})
    assert collisions(figure) == []
    shown = [text.get_text() for text in texts(figure)]
    assert "…best.pt, step 12000" not in shown and any(long.endswith(text[1:]) for text in shown if text[0] == "…")
    strange = {"before": "_runs/$\\a$/best.pt", "now": "$now$"}
    figure = page("gelu", title="$\\undefined$", legend=strange)
    figure.draw_without_rendering()  # a '$' starts no formula
    assert {*strange.values(), "$\\undefined$"} <= {text.get_text() for text in texts(figure)}


def test_the_line_at_half_pi_is_in_the_panel_of_the_phase_alone():
    marked = [
        axes.get_title()
        for axes in page("none").axes
        if any(np.allclose(line.get_ydata(), math.pi / 2) for line in axes.get_lines())
    ]
    assert marked == ["Phase, and π/2"]


@pytest.mark.parametrize(("c_fc_std", "waves"), [(0.02, False), (0.5, True)])
def test_waves_have_a_panel_where_there_are_some(c_fc_std, waves):
    before, now = (untrained(seed, mlp="bio", bio_gate="none", c_fc_std=c_fc_std) for seed in (1, 2))
    figure = Figure()
    draw_oscillation(figure.subfigures(), measure_networks(before, now, random_text()), "oscillating")
    found = titles(figure)
    assert found == ["Phase, and π/2", *(["As a wave"] if waves else [])]


def test_sharpness_of_one_step_is_drawn_as_points():
    for steps, marker in (((6, 6), "."), ((0, 6), "None")):
        axes = Figure().subplots()
        draw_sharpness(axes, [(step, [1.0, 2.0]) for step in steps])
        assert {line.get_marker() for line in axes.get_lines()} == {marker}
