"""
What the MLPs of a GPT learned, measured on a text: the part that serves every kind of MLP alike.

Shapes: N tokens of text. An MLP has C inputs.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from model_bio import GPT, DendriticMLP, OwnMLP
from wiggle.analysis_activation import Use, learned_parameters, measure_activation
from wiggle.analysis_dendrites import measure_dendrites
from wiggle.analysis_events import Events, has_gate, measure_events
from wiggle.analysis_oscillation import Oscillator, add_movement, measure_oscillations
from wiggle.errors import UserError
from wiggle.figures import Text
from wiggle.telemetry import record_inputs

TOKENS = 4096  # of the text, on which the use of an activation is measured, as in a comparison's report
SPARSE = 0.01  # share of exact zeros in a layer's hidden outputs from which they are shown as silence


class State(NamedTuple):
    """What was measured of one layer of one network."""

    figures: dict  # what analysis.json reports, with an array where that has a distribution
    neurons: dict[str, Oscillator]  # its oscillating neurons, by name in the MLP
    use: Use | None = None  # None where a module stands for the MLP, and has no pre-activations that one could find
    events: Events | None = None  # None where no unit is ever silent


@torch.no_grad()
def measure_networks(before: GPT, now: GPT, text: Text) -> list[dict[str, State]]:
    """
    Measure two networks of one shape, each on the inputs of its own layers -> by layer {"before": ..., "now": ...}.

    Of dendritic networks also "mixed": the branches of `before` on the inputs that the layers of `now` get. Raises
    UserError where activations are not finite, or the MLPs hold nothing that could be shown.
    """
    sources = {"before": (before, before), "now": (now, now)}  # state: (network that is measured, whose inputs it gets)
    if now.config.mlp == "dendritic":
        sources = {"before": (before, before), "mixed": (before, now), "now": (now, now)}
    layers = [{} for _ in now.transformer.h]
    for state, (network, source) in sources.items():
        inputs = mlp_inputs(source, text.idx)
        for layer, block, x in zip(layers, network.transformer.h, inputs, strict=True):
            layer[state] = measure_layer(block.mlp, x, text)
    for layer in layers:
        for name in layer["now"].neurons:
            add_movement(layer["before"].figures["neurons"][name], layer["now"].figures["neurons"][name])
    return layers


def measure_layer(mlp: nn.Module, x: Tensor, text: Text) -> State:
    """x: (N, C), the inputs of an MLP of any kind."""
    figures, use, events = {}, None, None
    if not isinstance(mlp, OwnMLP):
        some = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:TOKENS].to(x.device)
        figures, use = measure_activation(mlp, x[some])
        if has_gate(mlp) or figures["zeros"] > SPARSE:
            found, events = measure_events(mlp, x, text)
            figures |= found
    if isinstance(mlp, DendriticMLP):
        figures |= measure_dendrites(mlp, x, text)
    banks, neurons = measure_oscillations(mlp, x)
    figures |= {"learned": learned_parameters(mlp)} | ({"neurons": banks} if banks else {})
    if use is None and not figures["learned"]:
        raise UserError("a module in the MLP's place that has learned nothing has nothing to analyse")
    return State(figures, neurons, use, events)


def mlp_inputs(model: GPT, idx: Tensor) -> list[Tensor]:
    """idx: (B, T) -> what the MLP of each layer is given, (N, C). Reads some 4,096 tokens at a time."""
    with record_inputs(block.mlp for block in model.transformer.h) as inputs:
        for part in idx.split(max(1, 4096 // idx.size(1))):
            if not model.hidden(part.to(model.lm_head.weight.device)).isfinite().all():
                raise UserError("the model's activations are not finite on this text: its weights are too large")
    return [torch.cat(parts) for parts in inputs.values()]
