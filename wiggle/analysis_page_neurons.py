"""Pictures of what oscillating neurons and dendritic units learned, each kind in its own terms."""

import math

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure

from wiggle.analysis_panels import COLOURS, SHOWN, Layers, draw_violins, head_line, spread, subplots, values_of

Betas = list[tuple[int, list[float]]]  # step, and mean β of each layer


def draw_oscillation(part: SubFigure, layers: Layers, name: str) -> None:
    """How far the phases of the neurons of one name go: past π/2 a neuron is a wave, and not just a bent x²."""
    head_line(part, f"{name}: how far the phase goes")
    waves = any(values.any() for state in layers[0] for values in values_of(layers, state, *wave_keys(name)))
    (axes,) = subplots(part, 1, 2 if waves else 1, fewest=3)
    draw_violins(axes[0], layers, "Phase, and π/2", "|ωx + φ|, radians", "neurons", name, "abs_phase")
    axes[0].axhline(math.pi / 2, color="#D55E00", linestyle="--")
    if waves:
        draw_violins(axes[1], layers, "As a wave", "share past π/2", *wave_keys(name))
        axes[1].set_ylim(bottom=0)


def wave_keys(name: str) -> tuple[str, str, str]:
    """Where the figures of a layer have the share of a neuron's phases that pass π/2."""
    return "neurons", name, "beyond_maximum"


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
        old = before.neurons[name].neuron(wide.to(x.device)).cpu()
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
