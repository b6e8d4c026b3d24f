"""The built-in activations: what may stand between the two matrices of an MLP, each with its equation and source."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Pointwise(nn.Module):
    """A function without parameters, as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def golu(x: Tensor) -> Tensor:
    """x·exp(-exp(-x)); x: any shape -> same shape."""
    # exp(-exp(20)) is 0 in float32: the clamp changes no value, and keeps inf·0 out of the gradient.
    return x * torch.exp(-torch.exp(-x.clamp(min=-20)))


class Snake(nn.Module):
    """y = x + sin²(a·x)/a, in float32, with a of each feature learnable and 1 at the start. (..., features) -> same."""

    def __init__(self, features: int):
        super().__init__()
        self.a = nn.Parameter(torch.ones(features))

    def forward(self, x):
        return (x + torch.sin(self.a * x.float()).square() / (self.a + 1e-9)).to(x.dtype)


class XIELU(nn.Module):
    """
    y = αp·x² + x/2 for x > 0, αn·(exp(x) - 1 - x) + x/2 below, in float32. (..., features) -> same.

    One αp = softplus(positive) and one αn = 1/2 + softplus(negative) a layer are learned; both are 0.8 at the start.
    """

    def __init__(self, features: int):
        super().__init__()
        self.positive = nn.Parameter(torch.tensor([0.8]).expm1().log())
        self.negative = nn.Parameter(torch.tensor([0.8 - 0.5]).expm1().log())

    def alpha_p(self) -> Tensor:
        """αp, (1,): the curvature above 0."""
        return F.softplus(self.positive)

    def alpha_n(self) -> Tensor:
        """αn, (1,): the curvature below 0, at least 1/2."""
        return 0.5 + F.softplus(self.negative)

    def forward(self, x):
        wide = x.float()
        below = wide.clamp(max=0)  # keeps exp from overflowing where the other branch is taken
        rising = self.alpha_p() * wide.square()
        falling = self.alpha_n() * (below.expm1() - below)
        return (torch.where(wide > 0, rising, falling) + 0.5 * wide).to(x.dtype)


class PolyNorm(nn.Module):
    """
    y = a_1·n(x) + a_2·n(x²) + a_3·n(x³) + b with n(u) = u/sqrt(mean(u²) + 1e-6) over a token's features, in float32.

    The three a, 1/3 at the start, and b, 0, are learned for the layer. (..., features) -> same.
    """

    def __init__(self, features: int):
        super().__init__()
        self.coefficients = nn.Parameter(torch.full((3,), 1 / 3))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        wide = x.float()
        powers = (wide, wide.square(), wide**3)
        terms = [a * F.rms_norm(u, u.shape[-1:], eps=1e-6) for a, u in zip(self.coefficients, powers, strict=True)]
        return (sum(terms) + self.bias).to(x.dtype)


class Activation(NamedTuple):
    """
    What may stand between c_fc and c_proj.

    build: number of features that c_fc gives -> module that maps (..., features) to (..., features/fan). fan: rows of
    c_fc that a hidden unit reads; with 2 (a gated unit) there are fewer units, so that parameters match the control's.
    operations: of a hidden unit in the forward pass, read off the equation: each addition, multiplication, division,
    negation or comparison is one, and so is each exp, sin, cos, tanh, erf and root. Φ(x) = (1 + erf(x/√2))/2 and
    sigmoid(x) = 1/(1 + exp(-x)) are written out, common factors are formed once, and of two branches the longer counts.
    """

    equation: str
    source: str
    operations: int
    build: Callable[[int], nn.Module]
    fan: int = 1


def pointwise(equation: str, source: str, operations: int, function: Callable[[Tensor], Tensor]) -> Activation:
    """An activation without parameters."""
    return Activation(equation, source, operations, lambda features: Pointwise(function))


def gated(equation: str, source: str, operations: int, function: Callable[[Tensor], Tensor]) -> Activation:
    """function(x)·z of two halves x, z of c_fc's output."""

    def gate(xz):
        x, z = xz.chunk(2, dim=-1)
        return function(x) * z

    return Activation(equation, source, operations, lambda features: Pointwise(gate), fan=2)


SHAZEER = "Shazeer, 2020"
# The one list of built-in activations: --help, the README's list of arms and the tests follow from it.
ACTIVATIONS = {
    "gelu": Activation("x·Φ(x), the erf form", "Hendrycks and Gimpel, 2016; nanoGPT's", 5, lambda n: nn.GELU()),
    "gelu_tanh": Activation("x·Φ(x), the tanh form", "OpenAI's GPT-2", 9, lambda n: nn.GELU(approximate="tanh")),
    "relu": Activation("max(x, 0)", "Nair and Hinton, 2010", 1, lambda n: nn.ReLU()),
    "relu2": pointwise("max(x, 0)²", "So et al., 2021, Primer", 2, lambda x: F.relu(x).square()),
    "relu2_clipped": pointwise("min(max(x, 0), 1)²", "SCReLU of NNUE networks", 3, lambda x: x.clamp(0, 1).square()),
    "leaky_relu2": pointwise(
        "leaky_relu(x, 1/2)²", "modded-nanogpt, pull request 249, 2026", 3, lambda x: F.leaky_relu(x, 0.5).square()
    ),
    "gelu2": pointwise("gelu(x)²", "GELU squared as relu2 is ReLU squared", 6, lambda x: F.gelu(x).square()),
    "silu": Activation("x·sigmoid(x)", "Elfwing et al., 2017", 4, lambda n: nn.SiLU()),
    "swiglu": gated("silu(x)·z", SHAZEER, 5, F.silu),
    "geglu": gated("gelu(x)·z", SHAZEER, 6, F.gelu),
    "snake": Activation("x + sin²(a·x)/a", "Ziyin et al., 2020", 5, Snake),
    "gcu": pointwise("x·cos(x)", "Noel et al., 2021, growing cosine unit", 2, lambda x: x * torch.cos(x)),
    "golu": pointwise("x·exp(-exp(-x))", "Das et al., 2025", 5, golu),
    "xielu": Activation("αp·x² + x/2, αn·(exp(x) - 1 - x) + x/2", "Huang and Schlag, 2024", 7, XIELU),
    "polynorm": Activation("a_1·n(x) + a_2·n(x²) + a_3·n(x³) + b", "Zhuo et al., 2024", 17, PolyNorm),
    "sintanh": pointwise(
        "sin(x)·tanh(x)", "the oscillation with nothing learned", 3, lambda x: torch.sin(x) * torch.tanh(x)
    ),
}
