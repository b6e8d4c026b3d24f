"""
How the hidden units of any MLP use their activation: the inputs they see, what they make of them, and what is learned.

Shapes: n tokens; F hidden units, each of which reads `fan` rows of c_fc: 1, 2 where it is gated, K where it is a
dendrite. Everything is read off c_fc's output and c_proj's input, so no activation needs code of its own here.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from kernels.activations import XIELU
from kernels.matmul import Linear
from model_bio import MLP, BioMLP
from wiggle.figures import to_array
from wiggle.telemetry import catch_hidden, unexplained_share

SAMPLES = 2**17  # pre-activations, with what came of each, that are kept of a layer
FEW = 8  # parts up to which a parameter is shown part by part


class Use(NamedTuple):
    """Some pre-activations of a layer's hidden units, and what the units gave for them."""

    seen: np.ndarray  # (samples, fan), outputs of c_fc
    given: np.ndarray  # (samples,), inputs of c_proj


def hidden_units(mlp: BioMLP | MLP, x: Tensor) -> tuple[Tensor, Tensor]:
    """x: (n, C), inputs of the MLP -> c_fc's output (n, fan·F) and c_proj's input (n, F), both in float32."""
    caught, hooks = catch_hidden(mlp)
    try:
        mlp(x)
    finally:
        for hook in hooks:
            hook.remove()
    return caught["h"], caught["y"]


def measure_activation(mlp: BioMLP | MLP, x: Tensor) -> tuple[dict, Use]:
    """
    x: (n, C), inputs of the MLP -> figures for analysis.json, and samples to draw.

    The standard deviation of the pre-activations and the non-linear share are those of a comparison's report (see
    telemetry.nonlinearities). zeros: the share of the hidden outputs that are exactly 0.
    """
    h, y = hidden_units(mlp, x)
    n, units = y.shape
    some = torch.randperm(n, generator=torch.Generator().manual_seed(0))[: 1 + SAMPLES // units].to(h.device)
    seen = h[some].view(len(some), -1, units).transpose(1, 2)  # (tokens, F, fan)
    use = Use(seen.flatten(0, 1).cpu().numpy(), to_array(y[some]))
    figures = {
        "preactivations": use.seen.ravel(),
        "preactivation_std": h.std().item(),
        "nonlinear_share": unexplained_share(h, y),
        "zeros": (y == 0).float().mean().item(),
    }
    return figures, use


def learned_parameters(mlp: nn.Module) -> dict[str, np.ndarray]:
    """
    What an MLP has learned besides its matrices, and its buffers of numbers, by name: a value or an array each.

    Left out are c_fc, c_proj and the historic dense gate's matrices. xielu's parameters and a dendrite's are shown as
    the numbers that its equation names, αp, αn and β.
    """
    matrices = tuple(f"{name}." for name, module in mlp.named_modules() if isinstance(module, Linear))
    found = {}
    for name, values in mlp.state_dict().items():
        owner, _, last = name.rpartition(".")
        module = mlp.get_submodule(owner)
        if name.startswith(matrices) or not values.is_floating_point():
            continue
        if isinstance(module, XIELU):
            last = {"positive": "alpha_p", "negative": "alpha_n"}[last]
            values = getattr(module, last)()
        elif last == "log_beta":
            last, values = "beta", values.exp()
        found |= split(f"{owner}.{last}".lstrip("."), values)
    return found


def split(name: str, values: Tensor) -> dict[str, np.ndarray]:
    """
    A parameter of a layer's few values, or of each unit's few, part by part: name_1, name_2, ...

    polynorm has three coefficients, which have no distribution; a polynomial with learned coefficients, (4, F), has one
    distribution for each power. Others stay whole.
    """
    few = [dim for dim, size in enumerate(values.shape) if size <= FEW]
    if values.numel() == 1 or not few or values.dim() > 2:
        return {name: to_array(values)}
    return {f"{name}_{i}": to_array(part) for i, part in enumerate(values.unbind(few[0]), 1)}
