"""What a model's neurons do while it trains: events and sharpness, by layer, for the log."""

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
