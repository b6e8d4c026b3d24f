"""Neurons that would spoil a run, each in its own way, for tests/test_neuron_trial.py."""

import random

import numpy
import torch
from torch import nn
from torch.nn import functional as F


class Neuron(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.features = features


class Shrinks(Neuron):
    def forward(self, x):
        return x[..., :7]


class Doubles(Neuron):
    def forward(self, x):
        return x.double()


class Halves(Neuron):
    def forward(self, x):
        return x.bfloat16()


class Pair(Neuron):
    def forward(self, x):
        return x, x


class Fails(Neuron):
    def forward(self, x):
        raise RuntimeError("of itself")


class FailsAtItsWidth(Neuron):
    def forward(self, x):
        return x.view(*x.shape[:-1], -1, 64).flatten(-2)


class FailsInTraining(Neuron):
    def forward(self, x):
        return x.sin() if not self.training else x.sin(1)


class FailsBackward(Neuron):
    def forward(self, x):
        y = x.exp()
        z = y * 2
        y.add_(1)
        return z + y


class FailsInEval(Neuron):
    def forward(self, x):
        return x.sin() if self.training else x.sin(1)


class CannotBeBuilt(Neuron):
    def __init__(self, features):
        super().__init__(features)
        self.groups = nn.GroupNorm(7, features)


class Lazy(Neuron):
    def __init__(self, features):
        super().__init__(features)
        self.linear = nn.LazyLinear(features)

    def forward(self, x):
        return self.linear(x)


class GrowsInForward(Neuron):
    def forward(self, x):
        if not hasattr(self, "scale"):
            self.scale = nn.Parameter(torch.ones(self.features))
        return self.scale * x


class Mixes(Neuron):
    def forward(self, x):
        return x.cumsum(-2)


class LooksAhead(Neuron):
    def forward(self, x):
        return x + x.flip(-2)


class LooksAheadInTraining(Neuron):
    def forward(self, x):
        return x + x.flip(-2) if self.training else x


class LooksAheadOnceItHasLearned(Neuron):
    def __init__(self, features):
        super().__init__(features)
        self.share = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return x + self.share * x.roll(-1, -2)


class LooksAheadALittle(Neuron):
    def forward(self, x):
        return x + 1e-9 * x.roll(-1, -2)


class LooksAheadWithoutGradient(Neuron):
    def forward(self, x):
        return x + x.roll(-1, -2).sign()


class LooksAtTheOtherSequence(Neuron):
    def forward(self, x):
        return x * x.flip(0)


class BatchNorm(Neuron):
    def __init__(self, features):
        super().__init__(features)
        self.norm = nn.BatchNorm1d(features)

    def forward(self, x):
        return self.norm(x.flatten(0, -2)).view_as(x)


class ScaledByTheBatch(Neuron):
    def forward(self, x):
        return x / x.detach().abs().max()


class SeesItsPlace(Neuron):
    def forward(self, x):
        return x * torch.arange(1, 1 + x.size(-2)).unsqueeze(-1)


class LosesAPlace(Neuron):
    def forward(self, x):
        return x.squeeze().sin()


class NeedsTwoTokens(Neuron):
    def forward(self, x):
        if x.size(-2) < 2:
            raise RuntimeError("two")
        return x


class Draws(Neuron):
    def forward(self, x):
        return x + torch.rand_like(x)


class DropsAlways(Neuron):
    def forward(self, x):
        return F.dropout(x, 0.1)


class Remembers(Neuron):
    last = 0

    def forward(self, x):
        x, self.last = x + self.last, x.detach().mean()
        return x


class DrawnPlainTensor(Neuron):
    def __init__(self, features):
        super().__init__(features)
        self.mask = torch.rand(features)

    def forward(self, x):
        return self.mask * x


class DrawnBuffer(Neuron):
    def __init__(self, features):
        super().__init__(features)
        self.register_buffer("mask", torch.rand(features), persistent=False)

    def forward(self, x):
        return self.mask * x


class DrawnOrder(Neuron):
    def __init__(self, features):
        super().__init__(features)
        self.order = torch.randperm(features).tolist()

    def forward(self, x):
        return x + x[..., self.order]


class DrawnByPython(Neuron):
    def __init__(self, features):
        super().__init__(features)
        self.slope = random.random()

    def forward(self, x):
        return self.slope * x


class DrawnByNumpy(Neuron):
    def __init__(self, features):
        super().__init__(features)
        self.a = nn.Parameter(torch.from_numpy(numpy.random.rand(features)).float())

    def forward(self, x):
        return self.a * x


class CountsItsCopies(Neuron):
    copies = 0

    def __init__(self, features):
        super().__init__(features)
        CountsItsCopies.copies += 1
        self.frequency = float(self.copies)

    def forward(self, x):
        return torch.sin(self.frequency * x)


class CountsItsSteps(Neuron):
    steps = 0

    def forward(self, x):
        self.steps += self.training
        return x * (1 + self.steps)


class KeepsAnOldParameter(Neuron):
    def __init__(self, features):
        super().__init__(features)
        self.a, self.cached = nn.Parameter(torch.ones(features)), None

    def forward(self, x):
        self.cached = self.a.exp().detach() if self.cached is None else self.cached
        return self.cached * x + self.a


class SharesAParameter(Neuron):
    a = nn.Parameter(torch.ones(1))

    def __init__(self, features):
        super().__init__(features)
        self.own = SharesAParameter.a

    def forward(self, x):
        return self.own * x
