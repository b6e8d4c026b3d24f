"""
Your own neuron: --mlp=my_neurons.py:Name puts class Name of my_neurons.py between c_fc and c_proj.

The class is any nn.Module that is built with the number of features and maps (..., features) to (..., features). Its
file is executed, so name only files that you have read; checkpoints keep the name and the text's hash, never the code.
"""

import hashlib
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from model_bio import MLPS
from wiggle.errors import UserError


@dataclass(frozen=True)
class Neuron:
    """A class from a user's file: call it with the number of features to build one. sha256: of the file's text."""

    name: str
    sha256: str
    build: type

    def __call__(self, features):
        return self.build(features)


def load_neuron(mlp):
    """'file.py:Name', split at the last colon -> Neuron, tried on a small tensor; a name of model_bio.MLPS -> None."""
    if mlp in MLPS:
        return None
    file, _, name = mlp.rpartition(":")
    if not file.endswith(".py"):
        raise UserError(f"{mlp!r} names no neuron: write file.py:ClassName")
    try:
        text = Path(file).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the neuron's file {file}: {error.strerror}") from None
    sha256 = hashlib.sha256(text).hexdigest()
    module = types.ModuleType(f"neuron_{sha256[:16]}")
    module.__file__ = file
    sys.modules[module.__name__] = module  # where dataclasses and the compiler look for a class's own module
    try:
        exec(compile(text, file, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        raise UserError(f"{file} does not run: {type(error).__name__}: {error}") from None
    build = getattr(module, name, None)
    if not (isinstance(build, type) and issubclass(build, nn.Module)):
        raise UserError(f"{file} has no class {name} that is an nn.Module")
    with torch.random.fork_rng(devices=[]):
        attempt(mlp, build)
    return Neuron(name, sha256, build)


@torch.no_grad()
def attempt(mlp, build, features=64):
    """Raise UserError unless the class keeps shapes and treats each token by itself."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, features)
    try:
        neuron = build(features).eval()
        y, tokens = neuron(x), [neuron(token.view(1, 1, -1)) for token in x.view(-1, features)]
    except Exception as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{mlp} with {features} features fails on a tensor of shape {tuple(x.shape)}: {what}") from None
    got = tuple(y.shape) if isinstance(y, torch.Tensor) else type(y).__name__
    if got != tuple(x.shape):
        raise UserError(f"{mlp} must map {tuple(x.shape)} to the same shape, (..., features), but gives {got}")
    if not torch.allclose(y, torch.cat(tokens).view_as(y), atol=1e-5, equal_nan=True):
        raise UserError(f"{mlp} mixes tokens, or draws at random in eval mode: a neuron sees one token alone")
