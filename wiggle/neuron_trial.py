"""The trial of a user's neuron: what would spoil a run, silently or not, is refused with the reason."""

import contextlib
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from wiggle.errors import UserError
from wiggle.neuron_offers import check_module

SHAPE = 2, 4  # sequences and tokens of a trial; an even number of tokens, so that a flip moves each of them
# Largest difference of two outputs, relative to the largest number in them, that is put down to float32's rounding.
REPEATED = 1e-5  # the same computation twice
RESHAPED = 1e-3  # one token alone and beside others: matrix products of another shape add up in another order


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn whatever a user's code raises into a UserError that begins with `what`."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{what}: {type(error).__name__}: {reason}") from None


def try_neuron(mlp: str, build: Callable[[], nn.Module], features: int, fan: int = 1) -> None:
    """
    Raise UserError, with the reason, where the class would spoil a run, silently or not. Tried on the CPU in float32:

    - one seed gives one start, and no two copies share a tensor;
    - what it says of itself is spelt rightly and of the right type (see wiggle.neuron_offers);
    - forward and backward run in training mode, keep shape and dtype, and make no parameter or buffer; an auxiliary
      loss is a scalar that has a gradient;
    - in eval mode the output is a function of the input and the state_dict, so that a loaded model is the saved one;
    - each token is treated by itself, in training mode too: else the model would see the tokens that it is to predict.

    features: the last dimension of what the module takes; fan: how many times that of what it gives.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.enable_grad():
        with explained(f"{mlp} cannot be built with {features} features"):
            first, again, other = (seeded(seed, build) for seed in (0, 0, 1))
            check_start(mlp, first, again, other)
            check_module(mlp, first)
        torch.manual_seed(0)
        x = torch.randn(*SHAPE, features)
        with explained(f"{mlp} with {features} features fails in training mode on a tensor of shape {tuple(x.shape)}"):
            check_training(mlp, first, x, fan)
        with explained(f"{mlp} with {features} features fails in eval mode on a tensor of shape {tuple(x.shape)}"):
            check_state(mlp, first, other, x)
            for mode in ("training", "eval"):
                check_tokens(mlp, first.train(mode == "training"), x, mode)
        check_places(mlp, first.eval(), x, fan)


def seeded(seed: int, function: Callable, *arguments):
    """What a function gives after torch.manual_seed(seed)."""
    torch.manual_seed(seed)
    return function(*arguments)


def differ(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Whether two outputs differ by more than `tolerance` times the largest finite number in the first."""
    scale = a.detach().abs().nan_to_num(0, 0, 0).max().item()
    return not torch.allclose(a, b, rtol=0, atol=tolerance * scale, equal_nan=True)


def check_start(mlp: str, first: nn.Module, again: nn.Module, other: nn.Module) -> None:
    """first and again: built under one seed; other: under another one."""
    start, repeated = first.state_dict(), again.state_dict()
    if set(start) != set(repeated) or not all(torch.equal(start[name], repeated[name]) for name in start):
        raise UserError(f"{mlp} starts otherwise each time, whatever the seed: draw with torch's own generator alone")
    storages = [{t.untyped_storage().data_ptr() for t in copy.state_dict().values()} for copy in (first, other)]
    if storages[0] & storages[1] - {0}:  # 0: tensors without elements
        raise UserError(f"{mlp} shares a tensor among all its copies, layers and models: make it in __init__")


def check_training(mlp: str, neuron: nn.Module, x: Tensor, fan: int) -> None:
    """Take two steps of training, which may change parameters and buffers, but not which there are."""
    before = {name: tuple(t.shape) for name, t in neuron.state_dict().items()}
    for _ in range(2):
        train_once(mlp, neuron, x, fan)
        with torch.no_grad():
            for parameter in neuron.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.01)  # shows what depends on a parameter that starts at 0
    if {name: tuple(t.shape) for name, t in neuron.state_dict().items()} != before:
        raise UserError(f"{mlp} makes or reshapes parameters or buffers in forward: make them in __init__")


def train_once(mlp: str, neuron: nn.Module, x: Tensor, fan: int) -> None:
    """One forward and backward pass in training mode; the output must be like x in shape, but for fan, and in dtype."""
    y = neuron.train()(x.clone().requires_grad_() * 1)  # no leaf: a neuron may work in place, as on c_fc's output
    got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
    if got != due_shape(x.shape, fan):
        raise UserError(wrong_shape(mlp, x.shape, got, fan))
    if y.dtype not in (x.dtype, torch.float32):
        raise UserError(f"{mlp} must give numbers of its input's type, {x.dtype}, but gives {y.dtype}: y.to(x.dtype)")
    loss = y.float().sum()
    if hasattr(neuron, "auxiliary_loss"):
        loss = loss + checked_auxiliary_loss(mlp, neuron)
    if loss.requires_grad:
        loss.backward()


def due_shape(shape: Iterable[int], fan: int) -> tuple[int, ...]:
    """The shape of what a neuron must give for an input of this shape."""
    *outer, features = shape
    return (*outer, features // fan)


def wrong_shape(mlp: str, shape: Iterable[int], got: object, fan: int) -> str:
    """The sentence for an output of the wrong shape or type."""
    due = "the same shape, (..., features)" if fan == 1 else f"{due_shape(shape, fan)}, as fan={fan} says"
    return f"{mlp} must map {tuple(shape)} to {due}, but gives {got}"


def checked_auxiliary_loss(mlp: str, neuron: nn.Module) -> Tensor:
    """What auxiliary_loss() gives after a forward pass in training mode; UserError unless training can use it."""
    loss = neuron.auxiliary_loss()
    if not isinstance(loss, Tensor) or loss.dim() or not loss.is_floating_point():
        got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise UserError(f"{mlp} has an auxiliary_loss that gives {got}: it must be a scalar tensor, as of mean()")
    if not loss.requires_grad:
        raise UserError(f"{mlp} has an auxiliary_loss without gradient, which trains nothing: leave out detach()")
    return loss.float()


def check_state(mlp: str, neuron: nn.Module, other: nn.Module, x: Tensor) -> None:
    """neuron: has been trained; other: a new copy, drawn under another seed, which loads the state of the first."""
    other.load_state_dict(neuron.state_dict())
    with torch.no_grad():
        y = seeded(1, neuron.eval(), x.clone())
        neuron(1 - 2 * x)
        if differ(y, seeded(2, neuron, x.clone()), REPEATED):
            raise UserError(
                f"{mlp} gives two outputs for one input in eval mode: it draws at random, or remembers what it saw; "
                "do so where self.training is set alone"
            )
        if differ(y, seeded(1, other.eval(), x.clone()), REPEATED):
            raise UserError(
                f"{mlp} keeps what no checkpoint holds (a plain tensor or number, or a buffer with persistent=False), "
                "drawn at random or changed in training, so that a loaded model would be another one: make it a "
                "parameter or a persistent buffer"
            )


def check_tokens(mlp: str, neuron: nn.Module, x: Tensor, mode: str) -> None:
    """No token's output may depend on another token, by its gradient or by its value."""
    state = {name: tensor.clone() for name, tensor in neuron.state_dict().items()}
    tokens = [(b, t) for b in range(SHAPE[0]) for t in range(SHAPE[1])]
    changed = x.clone()
    changed[tokens[1]] = 3 * torch.randn_like(x[0, 0])
    before, after = (output_from(neuron, state, t.clone().requires_grad_()).detach() for t in (x, changed))
    mixes = any(differ(before[token], after[token], REPEATED) for token in tokens if token != tokens[1])
    weights = torch.randn_like(before)
    for token in tokens:
        leaf = x.clone().requires_grad_()
        y = output_from(neuron, state, leaf)
        if y.requires_grad:
            (y.float() * weights)[token].sum().backward()
            gradient = torch.zeros_like(x) if leaf.grad is None else leaf.grad.nan_to_num(0)
            gradient[token] = 0
            mixes = mixes or bool(gradient.any())
    if mixes:
        raise UserError(
            f"{mlp} mixes tokens in {mode} mode, as statistics over a batch and shifts along the text do: a token's "
            "output must depend on that token alone"
        )


def output_from(neuron: nn.Module, state: dict[str, Tensor], leaf: Tensor) -> Tensor:
    """The output for `leaf` from a given state and under a fixed seed, so that the input alone makes a difference."""
    neuron.load_state_dict(state)
    return seeded(3, neuron, leaf * 1)


def check_places(mlp: str, neuron: nn.Module, x: Tensor, fan: int) -> None:
    """A token must give the same wherever it stands, alone as well: text is generated token by token."""
    tokens, features = x.shape[:-1].numel(), x.size(-1)
    with torch.no_grad():
        expected = neuron(x.clone()).flatten(0, 1)  # (tokens, F)
        for shape in ((1, 1, features), (tokens, 1, features), (1, tokens, features)):
            these = x.reshape(tokens, features)[: shape[0] * shape[1]]
            with explained(f"{mlp} with {features} features fails in eval mode on a tensor of shape {shape}"):
                y = neuron(these.reshape(shape).clone())
            if y.shape != due_shape(shape, fan):
                raise UserError(wrong_shape(mlp, shape, tuple(y.shape), fan))
            if differ(expected[: len(these)], y.flatten(0, 1), RESHAPED):
                raise UserError(f"{mlp} gives a token another output at another place: it must see the token alone")
