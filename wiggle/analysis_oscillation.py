"""
What oscillating neurons learned: ω, φ, how far their phases |ωx + φ| go, and whether they still oscillate.

Shapes: N tokens of text. An MLP has C inputs and F neurons.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from model_bio import MLP, BioMLP, OscillatingNeuron, OwnMLP, SparseEventGate
from wiggle.figures import sample_rows, to_array
from wiggle.telemetry import record_inputs

LINEAR = 0.1  # |ω| below which a neuron counts as linearised: over usual inputs its sine does not bend


class Oscillator(NamedTuple):
    """The oscillating neurons of one name in an MLP, and some of the inputs that they get."""

    neuron: OscillatingNeuron
    inputs: Tensor  # (some, F)


def measure_oscillations(mlp: BioMLP | MLP | OwnMLP, x: Tensor) -> tuple[dict[str, dict], dict[str, Oscillator]]:
    """
    x: (N, C), the inputs of an MLP -> (figures, neurons), both by a neuron's name in the MLP.

    Empty for an MLP without an OscillatingNeuron, or one that is never called.
    """
    neurons = {name: module for name, module in mlp.named_modules() if isinstance(module, OscillatingNeuron)}
    if not neurons:
        return {}, {}
    gate = getattr(mlp, "sparse_gate", None)
    activation = mlp.oscillating if isinstance(mlp, BioMLP) else mlp.neuron
    given = x[None] if isinstance(mlp, OwnMLP) else mlp.c_fc(x)  # a module in the MLP's place takes (B, T, C)
    with record_inputs(neurons.values()) as inputs:  # part by part: BioMLP.forward fuses them into one kernel
        y = activation(given)  # (N, F)
        if isinstance(gate, SparseEventGate):  # which oscillates once more
            gate.pass_on(y)
    inputs = {name: torch.cat(inputs[neuron]).float() for name, neuron in neurons.items() if inputs[neuron]}
    figures = {name: oscillation_figures(neurons[name], x) for name, x in inputs.items()}
    return figures, {name: Oscillator(neurons[name], sample_rows(x)) for name, x in inputs.items()}


def oscillation_figures(neuron: OscillatingNeuron, x: Tensor) -> dict[str, np.ndarray | float]:
    """x: (N, F), the neuron's inputs in float32."""
    phase = (neuron.omega * x + neuron.phi).abs()
    omega = to_array(neuron.omega)
    return {
        "omega": omega,  # (F,), radians a unit of x
        "phi": to_array(neuron.phi),  # (F,), radians
        "abs_x": to_array(sample_rows(x).abs()),
        "abs_phase": to_array(sample_rows(phase)),  # |ωx + φ|, radians
        "beyond_maximum": to_array((phase > math.pi / 2).float().mean(0)),  # (F,), share of a neuron's activations
        "linearised": np.mean(np.abs(omega) < LINEAR),  # share of the neurons
    }


def add_movement(before: dict, now: dict) -> None:
    """Add to a neuron's figures how far ω and φ moved from those before, and how well they still agree with them."""
    for key in ("omega", "phi"):
        correlation = np.corrcoef(before[key], now[key])[0, 1]
        now[f"{key}_moved"] = {"mean_abs": abs(now[key] - before[key]).mean(), "correlation": correlation}
