"""That the pictures show what they say: colours told apart, intervals that the verdicts are taken from."""

import numpy as np
from matplotlib.axes import Axes

from experiment.contrasts import Contrast
from experiment.pictures import COLOURS, colour_of, draw_band, draw_curves, draw_forest, limits, move_apart
from experiment.statistics import judge, paired
from experiment.study import Arm, ArmCost, ArmResult
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


def contrasts_of(results, seeds):
    losses = [{seed: run["loss"] for seed, run in result.runs.items()} for result in results]
    judged = judge([paired(arm, losses[0], range(seeds)) for arm in losses[1:]])
    return [Contrast(result.arm.name, "gelu", d) for result, d in zip(results[1:], judged, strict=True)]


def pairs_of(results):
    return [(result, results[0]) for result in results[1:]]


def test_no_two_of_thirty_arms_have_one_colour():
    for count in range(2, 30):
        colours = [colour_of(i, count) for i in range(count)]
        assert len(set(colours)) == count and colours[0] == COLOURS[0]


def test_the_forest_draws_the_corrected_intervals(tmp_path, monkeypatch):
    drawn, real = [], Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda axes, x, *more, **how: drawn.append(x) or real(axes, x, *more, **how))
    draw = np.random.default_rng(0)
    results = results_of({name: list(draw.normal(2.0, 0.01, 5)) for name in ("gelu", "relu", "silu", "bio")})
    contrasts = contrasts_of(results, 5)
    draw_forest(results, contrasts, "title", tmp_path / "forest.png")
    differences = [contrast.difference for contrast in contrasts]
    lines = [tuple(x) for x in drawn if isinstance(x, list)]
    assert all((d.low_holm, d.high_holm) in lines for d in differences)
    assert all((d.low, d.high) not in lines or d.low == d.low_holm for d in differences)


def test_an_arm_that_diverged_with_every_seed_is_drawn_without_numbers(tmp_path):
    results = results_of({"gelu": [2.0, 2.1, 2.2], "relu": [None] * 3, "silu": [2.0, 2.2, None]})
    draw_forest(results, contrasts_of(results, 3), "title", tmp_path / "forest.png")
    draw_curves(results, pairs_of(results), tmp_path / "curves.png")
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


def test_names_at_the_ends_of_curves_do_not_overlap():
    moved = move_apart([0.1, 0.11, 0.12, 0.5, 0.9], 0.05)
    assert moved == sorted(moved) and min(np.diff(moved)) > 0.049
    assert moved[3:] == [0.5, 0.9] and np.isclose(np.mean(moved[:3]), 0.11)


def test_neither_the_first_losses_nor_an_arm_that_is_far_off_set_the_axis():
    arms = {f"arm{i}": {0: {1e5: 9.0, 5e5: 2.1, 1e6: 2.0 + i / 100}} for i in range(5)}
    low, high = limits(arms)
    assert 1.9 < low < 2.0 and 2.1 < high < 2.2
    assert limits(arms | {"far": {0: {1e5: 9.0, 5e5: 8.0, 1e6: 7.0}}}) == (low, high)
    assert limits(arms | {"near": {0: {1e5: 9.0, 5e5: 2.5, 1e6: 2.3}}})[1] > 2.5
    assert limits({"one": {0: {1e6: 2.0}}}, (0.0,))[0] < 0


def test_no_colour_of_the_forest_is_used_twice(tmp_path, monkeypatch):
    drawn, real = [], Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda axes, *x, **how: drawn.append(how) or real(axes, *x, **how))
    draw = np.random.default_rng(0)
    results = results_of({f"arm {i}": list(draw.normal(2.0, 0.01, 3)) for i in range(14)})
    contrasts = contrasts_of(results, 3)
    interactions = [Contrast(f"interaction of {c.name}", "arm 1", c.difference, True) for c in contrasts[1:]]
    draw_forest(results, contrasts + interactions, "title", tmp_path / "forest.png")
    diamonds = [how["color"] for how in drawn if how.get("markersize") == 7]
    assert len(set(diamonds)) == len(diamonds) == 25
