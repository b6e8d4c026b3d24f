"""That the pictures show what they say: colours told apart, intervals that the verdicts are taken from."""

import numpy as np
from matplotlib.axes import Axes

from experiment.arms import Arm, ArmCost, ArmResult
from experiment.pictures import COLOURS, colour_of, draw_band, draw_curves, draw_forest
from experiment.statistics import judge, paired
from train import TrainConfig

COST = ArmCost(1000, 1e6, 5.0, 1.0)


def results_of(losses):
    """{arm: [loss of each seed, None where it diverged]} -> results, the control first."""
    results = []
    for name, values in losses.items():
        runs = {}
        for seed, loss in enumerate(values):
            curve = [] if loss is None else [[1000, loss + 0.1], [2000, loss]]
            runs[seed] = {"loss": loss, "peak_mb": None, "curve": curve}
        results.append(ArmResult(Arm(name, {"mlp": name}, TrainConfig()), COST, (), runs))
    return results


def differences_of(results, seeds):
    losses = [{seed: run["loss"] for seed, run in result.runs.items()} for result in results]
    return judge([paired(arm, losses[0], range(seeds)) for arm in losses[1:]])


def test_no_two_of_thirty_arms_have_one_colour():
    for count in range(2, 30):
        colours = [colour_of(i, count) for i in range(count)]
        assert len(set(colours)) == count and colours[0] == COLOURS[0]


def test_the_forest_draws_the_corrected_intervals(tmp_path, monkeypatch):
    drawn, real = [], Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda axes, x, *more, **how: drawn.append(x) or real(axes, x, *more, **how))
    draw = np.random.default_rng(0)
    results = results_of({name: list(draw.normal(2.0, 0.01, 5)) for name in ("gelu", "relu", "silu", "bio")})
    differences = differences_of(results, 5)
    draw_forest(results, differences, "title", tmp_path / "forest.png")
    lines = [tuple(x) for x in drawn if isinstance(x, list)]
    assert all((d.low_holm, d.high_holm) in lines for d in differences)
    assert all((d.low, d.high) not in lines or d.low == d.low_holm for d in differences)


def test_an_arm_that_diverged_with_every_seed_is_drawn_without_numbers(tmp_path):
    results = results_of({"gelu": [2.0, 2.1, 2.2], "relu": [None] * 3, "silu": [2.0, 2.2, None]})
    draw_forest(results, differences_of(results, 3), "title", tmp_path / "forest.png")
    draw_curves(results, tmp_path / "curves.png")
    for name in ("forest.png", "curves.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"


def test_a_band_is_drawn_where_all_seeds_have_points():
    lines = []

    class Canvas:
        def plot(self, x, y, **style):
            lines.append((list(x), list(y)))

        def fill_between(self, x, low, high, **style):
            lines.append((list(low), list(high)))

    curves = {0: {1e6: 2.0, 2e6: 1.0, 3e6: 0.5}, 1: {1e6: 4.0, 2e6: 3.0}}
    draw_band(Canvas(), curves, {"color": "k"}, 0.1)
    assert lines[0] == ([1.0, 2.0], [3.0, 2.0])
    assert np.allclose(lines[1][1], [3 + 2**0.5, 2 + 2**0.5])
