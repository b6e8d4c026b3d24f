"""What a model's neurons do, by layer: events and sharpness for the log, and how non-linear the MLPs are."""

from typing import NamedTuple

import torch

from model_bio import GPT


@torch.no_grad()
def event_rates(model: GPT, idx: torch.Tensor) -> torch.Tensor | None:
    """The share of hidden features that fire on idx (B, T), by layer: (n_layer,); None for a model without a gate."""
    if model.config.mlp != "bio" or model.config.bio_gate == "none":
        return None
    rates, training = [], model.training
    hooks = [
        block.mlp.register_forward_pre_hook(lambda mlp, args: rates.append(mlp.event_rate(args[0])))
        for block in model.transformer.h
    ]
    model.eval()
    try:
        model.hidden(idx)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return torch.stack(rates)


def sharpness(model: GPT) -> torch.Tensor | None:
    """A dendritic model's β by layer, the mean over a layer's units: (n_layer,); None for a model without dendrites."""
    if model.config.mlp != "dendritic":
        return None
    return torch.stack([block.mlp.log_beta.detach().exp().mean() for block in model.transformer.h])


class Nonlinearity(NamedTuple):
    """How an MLP uses its activation on some tokens."""

    preactivation_std: float  # standard deviation of c_fc's output, over tokens and features
    share: float  # of the variance of c_proj's input, what no linear map of c_fc's input explains: 0 = a linear MLP


@torch.no_grad()
def nonlinearities(model: GPT, idx: torch.Tensor) -> list[Nonlinearity]:
    """
    How non-linear each layer's MLP is on idx (B, T): a list over layers, for every kind of MLP.

    c_proj's input (N tokens, F) is regressed on c_fc's input (N, C) and a constant; the share is the unexplained
    variance, of all features together, corrected for the number of regressors. N must be well above C.
    """
    caught, training = [], model.training
    hooks = []
    for block in model.transformer.h:
        layer = {}
        caught.append(layer)
        hooks.append(block.mlp.c_fc.register_forward_hook(_catch_c_fc(layer)))
        hooks.append(block.mlp.c_proj.register_forward_pre_hook(_catch_c_proj(layer)))
    model.eval()
    try:
        model.hidden(idx)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return [Nonlinearity(layer["h"].std().item(), unexplained_share(layer["x"], layer["y"])) for layer in caught]


def _catch_c_fc(layer):
    return lambda module, args, output: layer.update(x=args[0].flatten(0, -2), h=output.float())


def _catch_c_proj(layer):
    return lambda module, args: layer.update(y=args[0].flatten(0, -2))


def unexplained_share(x: torch.Tensor, y: torch.Tensor) -> float:
    """The share of y's variance that no affine map of x explains; x: (N, C), y: (N, F), N > C + 1. In 0..1."""
    x, y = x.double(), y.double()
    x, y = x - x.mean(0), y - y.mean(0)
    n, c = x.shape
    residual = y - x @ torch.linalg.lstsq(x.cpu(), y.cpu(), driver="gelsd").solution.to(x.device)
    unexplained = residual.square().sum() / max(1, n - c - 1)
    total = y.square().sum() / (n - 1)
    return (unexplained / total).item() if total > 0 else 0.0
