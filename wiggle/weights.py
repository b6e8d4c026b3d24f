"""Weights by name -> a model that has them, where every weight is accounted for."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import nn

from model_bio import GPT, GPTConfig


def model_with_weights(
    config: GPTConfig, weights: Mapping[str, torch.Tensor], neuron: Callable[..., nn.Module] | None = None
) -> GPT:
    """
    Build the GPT that `config` describes and give it `weights`, named as in its state dict.

    neuron: the class of a user's own neuron, as in GPT. Raises ValueError, with a sentence, for a weight that is
    missing, surplus, of another shape, no floating-point number or not finite, and for a head that is not tied to the
    token embedding; RuntimeError where the weights do not fit `neuron`.
    """
    check_weights(config, weights, neuron)
    model = GPT(config, neuron)
    model.load_state_dict(weights)
    return model


class Placeholder:
    """Stands for a user's class: asks for the same matrices around it, and has no weights itself."""

    def __init__(self, neuron: Callable[..., nn.Module]):
        self.fan, self.stands_for = getattr(neuron, "fan", 1), getattr(neuron, "stands_for", None)

    def __call__(self, features: int) -> nn.Module:
        return nn.Identity()


def check_weights(
    config: GPTConfig, weights: Mapping[str, torch.Tensor], neuron: Callable[..., nn.Module] | None
) -> None:
    """Raise model_with_weights's ValueErrors, before anything of the size that `config` claims is allocated."""
    layers = len({name.split(".")[2] for name in weights if name.startswith("transformer.h.")})
    if layers != config.n_layer:
        raise ValueError(f"it has the weights of {layers} layers, and n_layer={config.n_layer}")
    own_neuron = neuron is not None
    with torch.device("meta"):
        # Not every class of a user's can be built without memory, and load_state_dict checks its weights by itself.
        expected = GPT(config, Placeholder(neuron) if own_neuron else None).state_dict()
    for name in expected | weights:
        if own_neuron and ".mlp.neuron." in name:
            continue
        if name not in weights:
            raise ValueError(f"it lacks {name}")
        if name not in expected:
            raise ValueError(f"it holds {name}, for which a {config.mlp} model has no place")
        found, due = tuple(weights[name].shape), tuple(expected[name].shape)
        if found != due:
            raise ValueError(f"{name} has the shape {found}, expected {due}")
        if not weights[name].is_floating_point():
            raise ValueError(f"{name} is of {weights[name].dtype}, no floating-point number")
        if not weights[name].isfinite().all():
            raise ValueError(
                f"{name} is not finite: the run that wrote it diverged, and an earlier checkpoint may be good"
            )
    if not torch.equal(weights["lm_head.weight"], weights["transformer.wte.weight"]):
        raise ValueError("lm_head is not tied to the token embedding, as it is in all models here")


@torch.no_grad()
def grow_vocabulary(
    model: GPT, vocab_size: int, neuron: Callable[[int], nn.Module] | None = None, seed: int | None = None
) -> None:
    """
    Give a model `vocab_size` token ids, more than it has, on the device where it is.

    The new rows of the token embedding, which is lm_head's matrix, too, are those that a new model of this size has
    under `seed`. neuron: as in GPT.
    """
    old = model.transformer.wte.weight
    new = GPT(replace(model.config, vocab_size=vocab_size, n_layer=1), neuron, seed).transformer.wte.weight.to(old)
    new[: len(old)] = old
    model.transformer.wte.weight = model.lm_head.weight = nn.Parameter(new)
    model.transformer.wte.num_embeddings = model.lm_head.out_features = vocab_size
    model.config.vocab_size = model.sampled_vocab = vocab_size
