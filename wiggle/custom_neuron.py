"""
Your own neuron: --mlp=my_neurons.py:Name puts the class Name of my_neurons.py between c_fc and c_proj.

The class is an nn.Module that maps (..., features) to (..., features), each token by itself. What else it may say:

    class TopK(nn.Module):
        fan = 2                    # c_fc gives two halves, (..., features) -> (..., features/2); fewer units, so that
                                   # parameters match the control's, as for swiglu
        stands_for = "mlp"         # instead of that: the class is the whole MLP, (B, T, C) -> (B, T, C)
        c_fc_std = "unit"          # c_fc's start, a standard deviation or 'unit', where the run's c_fc_std is None
        parameter_options = {"a": {"decay": False, "learning_rate_scale": 0.1, "orthogonalise": False}}
                                   # by a parameter's name, as named_parameters() gives it; orthogonalise is Muon's

        def __init__(self, features, config, layer, share=0.1): ...
        def forward(self, x): ...
        def auxiliary_loss(self): ...   # a scalar, of the last forward in training: added to the training loss alone

The constructor gets what it names of `features` (the last dimension of forward's input), `config` (the GPTConfig) and
`layer` (its number, from 0); its other parameters are given as in --mlp='my_neurons.py:TopK(share=0.2)', by name and as
plain Python values. One whose single parameter has another name gets the features there.

What a class says and is not used, or is misspelt, is an error. Before a model is built the class is tried at the
model's own width. Its file is executed, so name only files that you have read; checkpoints keep the class's name, its
arguments and a SHA-256 of its source with all that this uses (see wiggle.neuron_identity), never code.
"""

import ast
import hashlib
import importlib
import inspect
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from model_bio import MLPS, OWN_NEURON, GPTConfig, own_features
from wiggle.device import autocast
from wiggle.errors import UserError
from wiggle.files import read_bytes
from wiggle.neuron_identity import followed_file, identify
from wiggle.neuron_offers import check_class
from wiggle.neuron_trial import SHAPE, differ, explained, train_once, try_neuron

KNOWN = ("features", "config", "layer")  # what a constructor may name, and the model gives

# What the last user's file left behind: its folder on sys.path, and the modules that it imported from there. Both go
# when the next file is run, which may lie beside other modules of the same names, or beside these with another text.
_folders: list[str] = []
_helpers: set[str] = set()


class Spec(NamedTuple):
    """What file.py:Name(key=value) says."""

    file: str
    class_name: str
    arguments: dict

    @property
    def name(self) -> str:
        """The class with its arguments, one spelling for each meaning: 'TopK(share=0.2)'."""
        given = ", ".join(f"{key}={value!r}" for key, value in sorted(self.arguments.items()))
        return f"{self.class_name}({given})" if given else self.class_name


@dataclass(frozen=True)
class Neuron:
    """
    A class from a user's file. Called with the number of features, the config and the layer's number it builds one.

    The first call with a number tries the class (see `try_neuron`), and raises UserError where it is unfit. On the meta
    device the neuron is built on the CPU and moved there: its constructor may read numbers, as by `.item()`.
    """

    mlp: str  # file.py:Name(key=value), as it was given
    sha256: str  # of the class's source with what it uses
    build: type[nn.Module]
    file_sha256: str | None = None  # of its file's bytes: what runs and checkpoints were known by before
    parts: dict[str, str] = field(default_factory=dict)  # what the class is made of, each with its own hash
    tried: set[tuple] = field(default_factory=set, compare=False, repr=False)  # what it was built with

    @property
    def name(self) -> str:
        """The class's name with its arguments."""
        return parse_spec(self.mlp).name

    @property
    def fan(self) -> int:
        """Rows of c_fc that a hidden unit reads."""
        return getattr(self.build, "fan", 1)

    @property
    def stands_for(self) -> str | None:
        """'mlp' where the class replaces the whole MLP."""
        return getattr(self.build, "stands_for", None)

    @property
    def c_fc_std(self) -> float | str | None:
        """The class's own start for c_fc."""
        return getattr(self.build, "c_fc_std", None)

    def make(self, features: int, config: GPTConfig | None, layer: int) -> nn.Module:
        """Build one, untried."""
        parameters, arguments = inspect.signature(self.build).parameters, parse_spec(self.mlp).arguments
        if takes_features_alone(self.build, arguments):
            return self.build(features)
        known = dict(zip(KNOWN, (features, config, layer), strict=True))
        return self.build(**{key: value for key, value in known.items() if key in parameters}, **arguments)

    def try_at(self, features: int, config: GPTConfig | None = None, layer: int = 0) -> None:
        """Try the class as it is built here, unless that was done. Raises UserError where it is unfit."""
        parameters = inspect.signature(self.build).parameters
        place = features, str(config) if "config" in parameters else "", layer if "layer" in parameters else 0
        if place not in self.tried:
            try_neuron(self.mlp, lambda: self.make(features, config, layer), features, self.fan)
            self.tried.add(place)

    def __call__(self, features: int, config: GPTConfig | None = None, layer: int = 0) -> nn.Module:
        self.try_at(features, config, layer)
        if not torch.empty(0).is_meta:
            return self.make(features, config, layer)
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            neuron = self.make(features, config, layer)
        return neuron.to("meta")


BuildNeuron = Neuron | Callable[..., nn.Module]  # a user's neuron, as GPT takes it


def parse_spec(mlp: str) -> Spec:
    """'file.py:Name' or 'file.py:Name(key=value)', split at the last '.py:' -> Spec. Raises UserError."""
    match = OWN_NEURON.fullmatch(mlp)
    if not match:
        raise UserError(f"{mlp!r} names no neuron: write file.py:ClassName, or file.py:ClassName(key=value)")
    file, name, given = match.groups()
    if not (given or "").strip():
        return Spec(file, name, {})
    try:
        call = ast.parse(f"{name}({given})", mode="eval").body
        arguments = {argument.arg: ast.literal_eval(argument.value) for argument in call.keywords}
        understood = isinstance(call, ast.Call) and not call.args and None not in arguments
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError, AttributeError):
        understood = False
    if not understood:
        raise UserError(
            f"the arguments in {mlp!r} are not understood: each is a name and a plain Python value, as in "
            f"{name}(share=0.2, kind='soft')"
        )
    return Spec(file, name, arguments)


def load_neuron(mlp: str) -> Neuron | None:
    """A class from a user's file, as parse_spec reads it -> Neuron; a name of model_bio.MLPS -> None. Or UserError."""
    if mlp in MLPS:
        return None
    file, name, arguments = parse_spec(mlp)
    text = read_bytes(file)
    module = run_file(file, text)
    build = getattr(module, name, None)
    if not (isinstance(build, type) and issubclass(build, nn.Module)):
        raise UserError(f"{file} has no class {name} that is an nn.Module")
    check_class(mlp, build)
    check_arguments(mlp, build, arguments)
    sha256, parts = identify(file, name)
    return Neuron(mlp, sha256, build, hashlib.sha256(text).hexdigest(), parts)


def run_file(file: str, text: bytes) -> types.ModuleType:
    """Execute a user's file as a module, which may import modules that lie beside it."""
    module = types.ModuleType(f"neuron_{hashlib.sha256(text).hexdigest()[:16]}")
    module.__file__ = file
    sys.modules[module.__name__] = module  # where dataclasses and torch.compile look for a class's own module
    forget_the_last_file()
    folder = str(Path(file).resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
        _folders.append(folder)
    before = set(sys.modules)
    with explained(f"{file} does not run"):
        exec(compile(text, file, "exec"), module.__dict__)
    _helpers.update(helper for helper in set(sys.modules) - before if followed_file(helper))
    return module


def forget_the_last_file() -> None:
    """Undo what the last user's file did to the imports of this process."""
    for helper in _helpers:
        sys.modules.pop(helper, None)
    for folder in set(_folders) & set(sys.path):
        sys.path.remove(folder)
    _helpers.clear()
    _folders.clear()
    importlib.invalidate_caches()


def takes_features_alone(build: type[nn.Module], arguments: dict) -> bool:
    """Whether a constructor's one parameter, of whatever name, is the number of features."""
    (first, *more) = [*inspect.signature(build).parameters.values(), None]
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    alone = first is not None and len(more) == 1 and first.kind not in variable
    return alone and first.default is first.empty and first.name not in KNOWN and not arguments


def check_arguments(mlp: str, build: type[nn.Module], arguments: dict) -> None:
    """Raise UserError unless the constructor takes these arguments, and needs no others."""
    parameters = inspect.signature(build).parameters
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    any_name = any(p.kind == inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    own = [name for name, p in parameters.items() if p.kind in by_name and name not in KNOWN]
    takes = f"its arguments are {', '.join(own)}" if own else "it takes none"
    for key in arguments:
        if key in KNOWN:
            raise UserError(f"{mlp}: {key} is given by the model, not as an argument")
        if key not in own and not any_name:
            raise UserError(f"{mlp}: {build.__name__} has no argument {key}; {takes}")
    if takes_features_alone(build, arguments):
        return
    for name in own:
        if parameters[name].default is inspect.Parameter.empty and name not in arguments:
            raise UserError(
                f"{mlp}: {build.__name__} needs a value for {name}: write {build.__name__}({name}=...), or name it "
                f"{', '.join(KNOWN[:-1])} or {KNOWN[-1]} where the model is to give it"
            )


def try_in_run(neuron: Neuron, config: GPTConfig, device: torch.device, dtype: torch.dtype) -> None:
    """Raise UserError unless the neuron trains on this device under autocast to this dtype, as the model would."""
    features = own_features(neuron, config)
    with torch.random.fork_rng(devices=[]), explained(f"{neuron.mlp} fails on {device} in {dtype}"):
        built = neuron(features, config).to(device)
        x = torch.randn(*SHAPE, features).to(device, dtype)
        before = {name: buffer.clone() for name, buffer in built.named_buffers()}
        with autocast(device, dtype):
            train_once(neuron.mlp, built, x, neuron.fan)
        if config.gradient_checkpointing and any(differ(before[name], b, 0) for name, b in built.named_buffers()):
            raise UserError(
                f"{neuron.mlp} changes its buffers in training, which gradient_checkpointing=True would do twice a "
                "step, and with other gradients: set it to False"
            )
