"""Unusual neurons that spoil nothing, for tests/test_neuron_trial.py and tests/test_custom_neuron.py."""

import numpy
import torch
from torch import nn


class WinnersTakeAll(nn.Module):
    """Keeps the 128 largest features: at 64 features it would fail."""

    def __init__(self, features):
        super().__init__()

    def forward(self, x):
        return x * (x >= x.topk(128).values[..., -1:])


class Wide(nn.Module):
    """Features that are mixed by a large matrix, with outputs in the thousands."""

    def __init__(self, features):
        super().__init__()
        self.mix = nn.Linear(features, features)
        self.gain = 3000

    def forward(self, x):
        return self.gain * self.mix(x)


class Noisy(nn.Module):
    """Draws in training alone: dropout, noise and a layer that is left out now and then."""

    def __init__(self, features):
        super().__init__()
        self.drop = nn.Dropout(0.3)
        self.linear = nn.Linear(features, features)

    def forward(self, x):
        if self.training:
            x = x + 0.1 * torch.randn_like(x)
            if torch.rand(()) < 0.5:
                return x
        return self.drop(self.linear(x).relu())


class ReadsNumbers(nn.Module):
    """Its constructor reads numbers, which the meta device does not have."""

    def __init__(self, features):
        super().__init__()
        self.slope = torch.linspace(0.5, 1.5, features).mean().item()
        self.a = nn.Parameter(torch.from_numpy(torch.rand(features).numpy()))

    def forward(self, x):
        return self.slope * self.a * x


class InPlace(nn.Module):
    """Works in place, which a leaf of the graph would not allow."""

    def __init__(self, features):
        super().__init__()

    def forward(self, x):
        return x.mul_(2).sin_()


class Step(nn.Module):
    """Has no gradient at all."""

    def __init__(self, features):
        super().__init__()

    def forward(self, x):
        return (x > 0).to(x.dtype)


class Fixed(nn.Module):
    """A parameter of whole numbers that is not trained."""

    def __init__(self, features):
        super().__init__()
        self.order = nn.Parameter(torch.arange(features).flip(0), requires_grad=False)

    def forward(self, x):
        return torch.relu(x)[..., self.order]


class Root(nn.Module):
    """NaN for half of its inputs, and so is its gradient there."""

    def __init__(self, features):
        super().__init__()

    def forward(self, x):
        return x.sqrt()


class Habituates(nn.Module):
    """A running mean of earlier batches, kept in a persistent buffer."""

    def __init__(self, features):
        super().__init__()
        self.register_buffer("usual", torch.zeros(features))

    def forward(self, x):
        y = torch.relu(x - self.usual)
        if self.training:
            self.usual = 0.9 * self.usual + 0.1 * x.detach().flatten(0, -2).mean(0)
        return y


class Recomputed(nn.Module):
    """Recomputes its inside in backward, by torch's older way."""

    def __init__(self, features):
        super().__init__()
        self.a = nn.Parameter(torch.ones(features))

    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(lambda x: torch.sin(self.a * x), x, use_reentrant=True)


class Normed(nn.Module):
    """A matrix of spectral norm 1, estimated in training."""

    def __init__(self, features):
        super().__init__()
        self.mix = nn.utils.parametrizations.spectral_norm(nn.Linear(features, features))

    def forward(self, x):
        return self.mix(x)


class ByNumpy(nn.Module):
    """Computed by a library that has no bfloat16."""

    def __init__(self, features):
        super().__init__()

    def forward(self, x):
        return x * torch.from_numpy(numpy.sin(x.detach().numpy()))


class DrawnAlike(nn.Module):
    """A plain tensor that is drawn, but the same in each copy."""

    def __init__(self, features):
        super().__init__()
        self.mask = torch.rand(features, generator=torch.Generator().manual_seed(5))

    def forward(self, x):
        return self.mask * x
