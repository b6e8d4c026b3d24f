"""What a model's neurons do, by layer: events and sharpness for the log, and how non-linear the MLPs are."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from model_bio import GPT, OwnMLP
from wiggle.sharded import whole

RECTIFIERS = {"relu", "relu2", "relu2_clipped"}  # activations that are exactly 0 on one side


@torch.no_grad()
def event_rates(model: GPT, idx: torch.Tensor) -> torch.Tensor | None:
    """
    The share of hidden features that fire on idx (B, T), by layer: (n_layer,); None for a model without events.

    A feature with a gate fires as the gate says, and that of a rectifier where it is not 0.
    """
    gated = model.config.mlp == "bio" and model.config.bio_gate != "none"
    if not gated and model.config.mlp not in RECTIFIERS:
        return None
    active, hooks = [], []
    for block in model.transformer.h:
        if gated:
            hook = block.mlp.register_forward_pre_hook(lambda mlp, args: active.append(mlp.fires(args[0])))
        else:
            hook = block.mlp.c_proj.register_forward_pre_hook(lambda _, args: active.append(args[0] != 0))
        hooks.append(hook)
    run_hooked(model, idx, hooks)
    return torch.stack([layer.float().mean() for layer in active])


def run_hooked(model: GPT, idx: torch.Tensor, hooks: list[RemovableHandle]) -> None:
    """Run the model on idx (B, T) in eval mode, then remove the hooks and put its mode back, whatever happens."""
    training = model.training
    model.eval()
    try:
        model(idx)  # not model.hidden: a sharded model gathers its weights when it is called
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()


def sharpness(model: GPT) -> torch.Tensor | None:
    """A dendritic model's β by layer, the mean over a layer's units: (n_layer,); None for a model without dendrites."""
    if model.config.mlp != "dendritic":
        return None
    return torch.stack([whole(block.mlp.log_beta.detach()).exp().mean() for block in model.transformer.h])


class Nonlinearity(NamedTuple):
    """How an MLP uses its activation on some tokens."""

    preactivation_std: float  # standard deviation of c_fc's output, over tokens and features
    share: float  # of the variance of c_proj's input, what no affine map of each unit's own pre-activations explains


@torch.no_grad()
def nonlinearities(model: GPT, idx: torch.Tensor) -> list[Nonlinearity] | None:
    """
    How non-linear each layer's MLP is on idx (B, T): a list over layers, for every kind of MLP with c_fc and c_proj.

    None where a user's module stands for the MLP, and has no pre-activations that one could find.

    A hidden unit's own pre-activations are the rows of c_fc that it reads: one, two where it is gated, K where it is a
    dendrite. A share of 0 means that the MLP is linear, and 1 that no unit is: an even function of normal input.
    """
    if isinstance(model.transformer.h[0].mlp, OwnMLP):
        return None
    caught, hooks = zip(*(catch_hidden(block.mlp) for block in model.transformer.h), strict=True)
    run_hooked(model, idx, [hook for pair in hooks for hook in pair])
    return [Nonlinearity(layer["h"].std().item(), unexplained_share(layer["h"], layer["y"])) for layer in caught]


def catch_hidden(mlp: nn.Module) -> tuple[dict[str, torch.Tensor], list[RemovableHandle]]:
    """
    Hook an MLP's two matrices -> (what a forward pass fills, the hooks).

    "h": c_fc's output, (tokens, rows of c_fc); "y": c_proj's input, (tokens, F); both in float32.
    """
    caught = {}
    output = mlp.c_fc.register_forward_hook(lambda module, args, h: caught.update(h=h.flatten(0, -2).float()))
    given = mlp.c_proj.register_forward_pre_hook(lambda module, args: caught.update(y=args[0].flatten(0, -2).float()))
    return caught, [output, given]


@contextlib.contextmanager
def record_inputs(modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, list[torch.Tensor]]]:
    """While this context lasts, each call of one of the modules appends its input, (N, features), to its list."""
    inputs = {module: [] for module in modules}

    def record(module, arguments):
        if module in inputs:
            inputs[module].append(arguments[0].flatten(0, -2))

    with register_module_forward_pre_hook(record):
        yield inputs


def unexplained_share(h: torch.Tensor, y: torch.Tensor) -> float:
    """
    The share of the variance of y (N, F) that affine maps of each unit's own pre-activations do not explain: in 0..1.

    h: (N, fan·F), those of unit j in the columns j, j + F, ... as c_fc gives them.
    """
    n, units = y.shape
    own = h.view(n, -1, units).permute(2, 0, 1).double()  # (F, N, fan)
    own = own - own.mean(1, keepdim=True)
    wanted = (y.double() - y.double().mean(0)).T.unsqueeze(-1)  # (F, N, 1)
    gram = own.mT @ own  # (F, fan, fan), singular where a unit's pre-activations never move
    explained = (own @ (torch.linalg.pinv(gram, hermitian=True) @ (own.mT @ wanted))).square().sum()
    total = wanted.square().sum()
    return (1 - explained / total).clamp(0, 1).item() if total > 0 else 0.0
