"""
Your own neuron: --mlp=my_neurons.py:Name puts the class Name of my_neurons.py between c_fc and c_proj.

The class is any nn.Module that is built with the number of hidden features and maps (..., features) to (..., features),
each token by itself. Its file is executed, so name only files that you have read; checkpoints keep the class's name and
the SHA-256 of that one file, never code. Before a model is built the class is tried at the model's own width.
"""

import hashlib
import sys
import types
from dataclasses import dataclass, field

import torch
from torch import nn

from model_bio import MLPS, GPTConfig
from wiggle.device import autocast
from wiggle.errors import UserError
from wiggle.files import read_bytes
from wiggle.neuron_trial import SHAPE, differ, explained, train_once, try_neuron


@dataclass(frozen=True)
class Neuron:
    """
    A class from a user's file. Called with the number of hidden features it builds one, as the class itself would.

    The first call with a number tries the class (see `try_neuron`), and raises UserError where it is unfit. On the meta
    device the neuron is built on the CPU and moved there: its constructor may read numbers, as by `.item()`.
    """

    mlp: str  # file.py:Name, as it was given
    sha256: str  # of the file's bytes
    build: type[nn.Module]
    tried: set[int] = field(default_factory=set, compare=False, repr=False)  # numbers of features

    @property
    def name(self) -> str:
        """The class's name."""
        return self.mlp.rpartition(":")[2]

    def try_at(self, features: int) -> None:
        """Try the class with so many features, unless that was done. Raises UserError where it is unfit."""
        if features not in self.tried:
            try_neuron(self.mlp, self.build, features)
            self.tried.add(features)

    def __call__(self, features: int) -> nn.Module:
        self.try_at(features)
        if not torch.empty(0).is_meta:
            return self.build(features)
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            neuron = self.build(features)
        return neuron.to("meta")


def load_neuron(mlp: str) -> Neuron | None:
    """'file.py:Name', split at the last colon -> Neuron; a name of model_bio.MLPS -> None. Raises UserError."""
    if mlp in MLPS:
        return None
    file, _, name = mlp.rpartition(":")
    if not (file.endswith(".py") and name.isidentifier()):
        raise UserError(f"{mlp!r} names no neuron: write file.py:ClassName")
    text = read_bytes(file)
    sha256 = hashlib.sha256(text).hexdigest()
    module = types.ModuleType(f"neuron_{sha256[:16]}")
    module.__file__ = file
    sys.modules[module.__name__] = module  # where dataclasses and torch.compile look for a class's own module
    with explained(f"{file} does not run"):
        exec(compile(text, file, "exec"), module.__dict__)
    build = getattr(module, name, None)
    if not (isinstance(build, type) and issubclass(build, nn.Module)):
        raise UserError(f"{file} has no class {name} that is an nn.Module")
    return Neuron(mlp, sha256, build)


def try_in_run(neuron: Neuron, config: GPTConfig, device: torch.device, dtype: torch.dtype) -> None:
    """Raise UserError unless the neuron trains on this device under autocast to this dtype, as the model would."""
    with torch.random.fork_rng(devices=[]), explained(f"{neuron.mlp} fails on {device} in {dtype}"):
        built = neuron(4 * config.n_embd).to(device)
        x = torch.randn(*SHAPE, 4 * config.n_embd).to(device, dtype)
        before = {name: buffer.clone() for name, buffer in built.named_buffers()}
        with autocast(device, dtype):
            train_once(neuron.mlp, built, x)
        if config.gradient_checkpointing and any(differ(before[name], b, 0) for name, b in built.named_buffers()):
            raise UserError(
                f"{neuron.mlp} changes its buffers in training, which gradient_checkpointing=True would do twice a "
                "step, and with other gradients: set it to False"
            )
