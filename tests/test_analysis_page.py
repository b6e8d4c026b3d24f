"""The page that wiggle/analysis_page.py draws: nothing collides, and no panel is empty without saying why."""

import math

import numpy as np
import pytest
import torch
from matplotlib.axis import Axis
from matplotlib.text import Text

from model_bio import OscillatingNeuron
from wiggle.analysis import State
from wiggle.analysis_page import draw_page

NAMES = {"before": "untrained, seed 1337", "mixed": "its branches on today's inputs", "now": "step 200000"}
SENTENCE = "oscillating: 0.0 % of phases past pi/2 (before 0.0), |x| 0.09, 95 % below 0.29, omega 1.01 +- 0.10"


def oscillating_state(seed, names, beyond):
    draw = np.random.default_rng(seed)
    bank = {key: draw.normal(1, 0.1, 8).astype(np.float32) for key in ("omega", "phi", "abs_x", "abs_phase")}
    bank["beyond_maximum"] = np.full(8, beyond)
    x = torch.from_numpy(draw.normal(0, 1, (50, 8)).astype(np.float32))
    figures = {"neurons": dict.fromkeys(names, bank), "event_rate": draw.uniform(size=50)}
    return State(figures, {name: (OscillatingNeuron(8), x) for name in names})


def dendritic_state(seed):
    draw = np.random.default_rng(seed)
    figures = {key: draw.normal(-1, 0.1, 8) for key in ("effective_branches", "cosine")}
    told = {label: {"bits": draw.normal(-0.1, 0.02, 8)} for label in ("token", "class", "position")}
    return State(figures | {"information": told}, {})


def oscillating_page(n_layer=1, names=("oscillating",), title="run, step 6", legend=NAMES, beyond=0.25):
    layers = [
        {state: oscillating_state(2 * i + k, names, beyond) for k, state in enumerate(("before", "now"))}
        for i in range(n_layer)
    ]
    return draw_page(title, legend, layers, [], [f"layer {i}  {SENTENCE}" for i in range(n_layer)])


def dendritic_page(n_layer=1, steps=(0, 100, 200000)):
    layers = [{state: dendritic_state(3 * i + k) for k, state in enumerate(NAMES)} for i in range(n_layer)]
    betas = [(step, [1 + 0.01 * i for i in range(n_layer)]) for step in steps]
    return draw_page("run, step 6", NAMES, layers, betas, [f"layer 1  {SENTENCE}"] * 7 * n_layer)


def texts(artist):
    """All texts of a figure that are seen; ticks outside their axis are not."""
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


def panel(figure, title):
    return next(axes for axes in figure.axes if axes.get_title() == title)


@pytest.mark.parametrize("n_layer", [1, 12])
@pytest.mark.slow
def test_texts_of_an_oscillating_page_do_not_collide(n_layer):
    figure = oscillating_page(n_layer)
    assert collisions(figure) == []


@pytest.mark.parametrize(("n_layer", "means"), [(4, True), (5, False)])
def test_means_are_written_where_there_is_room(n_layer, means):
    events = panel(oscillating_page(n_layer), "Events")
    assert all(("\n" in label.get_text()) == means for label in events.get_xticklabels())
    assert events.get_xlabel() == ("layer, and means" if means else "layer")


@pytest.mark.parametrize("n_layer", [1, 12])
@pytest.mark.slow
def test_texts_of_a_dendritic_page_do_not_collide(n_layer):
    figure = dendritic_page(n_layer)
    assert collisions(figure) == []
    named = [int(text.get_text()) for text in panel(figure, "Sharpness").get_legend().get_texts()]
    assert len(named) <= 6 and named[0] == 1 and named[-1] == n_layer


def test_long_and_strange_names_fit_and_are_shown_as_they_are():
    long = "/home/somebody/experiments/2026-03-14_oscillation_against_gelu/seed-3/best.pt, step 12000"
    figure = oscillating_page(title="r" * 200 + ", step 6, validation loss 2.253", legend=NAMES | {"before": long})
    assert collisions(figure) == []
    shown = [text.get_text() for text in texts(figure)]
    assert "…best.pt, step 12000" not in shown and any(long.endswith(text[1:]) for text in shown if text[0] == "…")
    strange = {"before": "_runs/$\\a$/best.pt", "now": "$now$"}
    figure = oscillating_page(title="$\\undefined$", legend=strange)
    figure.draw_without_rendering()  # a '$' starts no formula
    assert {*strange.values(), "$\\undefined$"} <= {text.get_text() for text in texts(figure)}


def test_the_line_at_half_pi_is_in_the_panel_of_the_phase_alone():
    figure = oscillating_page(names=("oscillating", "sparse_gate.activation"))
    marked = [
        axes.get_title()
        for axes in figure.axes
        if any(np.allclose(line.get_ydata(), math.pi / 2) for line in axes.get_lines())
    ]
    assert marked == ["Phase, and π/2"] * 2


@pytest.mark.parametrize("beyond", [0.0, 0.25])
def test_a_panel_without_waves_says_so(beyond):
    wave = panel(oscillating_page(beyond=beyond), "As a wave")
    assert wave.get_ylim()[0] == 0
    assert [text.get_text() for text in wave.texts] == ([] if beyond else ["no phase passes π/2"])


def test_sharpness_of_one_step_is_drawn_as_points():
    for steps, marker in (((6, 6), "."), ((0, 6), "None")):
        lines = panel(dendritic_page(steps=steps), "Sharpness").get_lines()
        assert {line.get_marker() for line in lines} == {marker}
