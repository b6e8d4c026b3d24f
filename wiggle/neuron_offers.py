"""What a user's neuron may say of itself beside __init__ and forward, and that nothing it says goes unheard."""

import difflib
import math
from typing import NamedTuple

from torch import nn

from model_bio import GPT
from wiggle.errors import UserError

# What is read off the class, before a model is built, and what is read off each module
OF_CLASS = ("fan", "stands_for", "c_fc_std")
OF_MODULE = ("parameter_options", "auxiliary_loss")
LIKE = 0.72  # difflib's ratio from which a name counts as a misspelt one: aux_loss is one of auxiliary_loss


class Treatment(NamedTuple):
    """How an optimizer treats a parameter."""

    decay: bool  # by the run's weight_decay
    learning_rate_scale: float  # its learning rate in the run's
    orthogonalise: bool  # its updates, where the optimizer is Muon


def treatments(model: GPT) -> dict[str, Treatment]:
    """
    By the name of each trained parameter of a GPT, how it is treated.

    Matrices and embeddings are decayed, and Muon takes the matrices of the blocks; what neurons learn of each feature
    is not decayed. A user's neuron may say otherwise of its own parameters, by `parameter_options`.
    """
    found = {
        name: Treatment(p.dim() >= 2, 1.0, p.dim() == 2 and name.startswith("transformer.h."))
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    for layer, block in enumerate(model.transformer.h):
        neuron = getattr(block.mlp, "neuron", None)
        for name, options in getattr(neuron, "parameter_options", {}).items():
            full = f"transformer.h.{layer}.mlp.neuron.{name}"
            found[full] = found[full]._replace(**options)
    return found


def check_class(mlp: str, cls: type[nn.Module]) -> None:
    """Raise UserError where what a class says of itself cannot be meant: it would be passed over, or break a model."""
    for klass in cls.__mro__:
        if klass.__module__.partition(".")[0] != "torch":
            check_spelling(mlp, [name for name in vars(klass) if not hasattr(nn.Module, name)])
    fan, stands_for, std = (getattr(cls, name, None) for name in OF_CLASS)
    if stands_for not in (None, "mlp"):
        raise UserError(
            f"{mlp} has stands_for={stands_for!r}: 'mlp' is all that a class can stand for besides a neuron"
        )
    if stands_for == "mlp" and (fan is not None or std is not None):
        extra = "fan" if fan is not None else "c_fc_std"
        raise UserError(f"{mlp} stands for the whole MLP, which has no c_fc: leave out its {extra}")
    if fan is not None and (type(fan) is not int or fan < 1):
        raise UserError(f"{mlp} has fan={fan!r}: it is the number of c_fc's rows that a hidden unit reads, 1 or more")
    if std is not None and std != "unit" and not (type(std) in (int, float) and 0 < std < math.inf):
        raise UserError(f"{mlp} has c_fc_std={std!r}: it is a standard deviation above 0, or 'unit' for 1/sqrt(n_embd)")
    if not callable(getattr(cls, "auxiliary_loss", check_class)):
        raise UserError(f"{mlp} has an auxiliary_loss that is no method: it is called after each forward in training")


def check_spelling(mlp: str, names: list[str]) -> None:
    """Raise UserError for a name that is nearly one of those that are read."""
    for name in names:
        near = difflib.get_close_matches(name, (*OF_CLASS, *OF_MODULE), 1, LIKE)
        if near and name != near[0] and not name.startswith("_"):
            raise UserError(f"{mlp} has {name}, which nothing reads: did you mean {near[0]}? If not, call it otherwise")


def check_module(mlp: str, neuron: nn.Module) -> None:
    """Raise UserError where what a built neuron says of itself is misspelt, late, or names no parameter of its own."""
    late = [name for name in OF_CLASS if name in vars(neuron)]
    if late:
        raise UserError(f"{mlp} sets {late[0]} in __init__, too late to be read: make it an attribute of the class")
    check_spelling(mlp, list(vars(neuron)))
    options = getattr(neuron, "parameter_options", {})
    if not isinstance(options, dict) or not all(isinstance(option, dict) for option in options.values()):
        raise UserError(f"{mlp} has parameter_options that are no dict of dicts: {{'name': {{'decay': False}}}}")
    trained = {name: parameter for name, parameter in neuron.named_parameters() if parameter.requires_grad}
    for name, option in options.items():
        if name not in trained:
            known = ", ".join(trained) or "none"
            raise UserError(f"{mlp} has parameter_options for {name!r}, but its trained parameters are: {known}")
        for key, value in option.items():
            check_option(f"{mlp} has parameter_options for {name!r} with {key}={value!r}", key, value, trained[name])


def check_option(what: str, key: str, value: object, parameter: nn.Parameter) -> None:
    """Raise UserError unless an entry of parameter_options can be followed. what: how the sentence begins."""
    if key not in Treatment._fields:
        raise UserError(f"{what}: the options are {', '.join(Treatment._fields)}")
    if key == "learning_rate_scale":
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise UserError(f"{what}: it is a factor above 0 (a parameter without gradient is not trained at all)")
    elif type(value) is not bool:
        raise UserError(f"{what}: it is True or False")
    if key == "orthogonalise" and value and parameter.dim() != 2:
        raise UserError(f"{what}: Muon orthogonalises matrices, and this one has {parameter.dim()} dimensions")
