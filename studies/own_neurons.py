"""
A neuron for each thing that a user's class may say, in a few lines; wiggle/custom_neuron.py lists them all.

    python compare.py config/compare_tiny.py --vary 'mlp=gelu,studies/own_neurons.py:TopK(share=0.1)' --seeds=3

Nothing here is claimed to be good.
"""

import torch
from torch import nn
from torch.nn import functional as F


class GEGLU(nn.Module):
    """gelu(x)·z of two halves x, z (Shazeer, 2020), with fewer units so that parameters match the control's."""

    fan = 2

    def forward(self, xz):
        x, z = xz.chunk(2, dim=-1)
        return F.gelu(x) * z


class DReLU(nn.Module):
    """max(x, 0)·max(z, 0) of two halves x, z: sparse, for either can silence a unit (Song et al., 2024)."""

    fan = 2

    def forward(self, xz):
        x, z = xz.relu().chunk(2, dim=-1)
        return x * z


class TopK(nn.Module):
    """Keeps a token's largest features, a `share` of them, and lets the rest be 0 (Makhzani and Frey, 2013)."""

    def __init__(self, features, share=0.1):
        super().__init__()
        self.kept = max(1, round(share * features))

    def forward(self, x):
        return torch.where(x >= x.topk(self.kept).values[..., -1:], x, 0)


class Yat(nn.Module):
    """
    A whole MLP without an activation: its hidden units are (w·x)²/(‖w - x‖² + ε) (Bouhsine, 2025), then a matrix.

    (B, T, C) -> (B, T, C).
    """

    stands_for = "mlp"

    def __init__(self, config, epsilon=1e-3):
        super().__init__()
        self.w = nn.Parameter(0.02 * torch.randn(4 * config.n_embd, config.n_embd))
        self.down = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)
        self.epsilon = epsilon

    def forward(self, x):
        dot, norms = x @ self.w.T, self.w.square().sum(-1)
        distance = norms + x.square().sum(-1, keepdim=True) - 2 * dot  # ‖w - x‖², which rounding may make negative
        return self.down(dot.square() / (distance.clamp(min=0) + self.epsilon))


class Quiet(nn.Module):
    """GELU whose mean absolute activity is a part of the training loss, `price` a nat: an L1 penalty."""

    def __init__(self, price=0.01):
        super().__init__()
        self.price = price

    def forward(self, x):
        y = F.gelu(x)
        self.activity = y.float().abs().mean()
        return y

    def auxiliary_loss(self):
        return self.price * self.activity


class ByDepth(nn.Module):
    """Leaky ReLU whose leak falls from 1, the identity, in the first layer to 0 in the last."""

    def __init__(self, layer, config):
        super().__init__()
        self.leak = 1 - layer / max(1, config.n_layer - 1)

    def forward(self, x):
        return F.leaky_relu(x, self.leak)


class Polynomial(nn.Module):
    """
    Σ_k a_k·tanh(x)^k, k = 0 .. degree, with a of each feature learned and tanh(x) at the start.

    The coefficients are a matrix by shape alone: they are not decayed, and Muon leaves them to AdamW. c_fc starts at
    unit variance, for near 0 all powers but the first vanish.
    """

    c_fc_std = "unit"
    parameter_options = {  # noqa: RUF012 - read, never changed
        "a": {"decay": False, "orthogonalise": False, "learning_rate_scale": 0.5}
    }

    def __init__(self, features, degree=3):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(degree + 1, features))
        self.a.data[1] = 1.0

    def forward(self, x):
        y, z = torch.zeros_like(x), torch.tanh(x)
        for coefficients in self.a.flip(0):  # Horner's scheme
            y = y * z + coefficients
        return y.to(x.dtype)


class Bloated(nn.Module):
    """A whole MLP of 16·C hidden units, four times the control's: the alarm stops it."""

    stands_for = "mlp"

    def __init__(self, config):
        super().__init__()
        self.up = nn.Linear(config.n_embd, 16 * config.n_embd, bias=False)
        self.down = nn.Linear(16 * config.n_embd, config.n_embd, bias=False)

    def forward(self, x):
        return self.down(F.gelu(self.up(x)))
