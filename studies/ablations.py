"""
The oscillation with one piece taken away at a time, as neurons that a user would write.

    python compare.py config/quickstart.py --vary mlp=studies/ablations.py:Full,studies/ablations.py:NoTanh --seeds=3

Full is y = sin(ω·x + φ)·tanh(x) + b, the neuron of mlp=bio with bio_gate=none. Every class draws ω and φ as Full does,
in the same order, so that with one seed all of them start from the same values of what they have in common.
"""

import torch
from torch import nn


class Full(nn.Module):
    """y = sin(ω·x + φ)·tanh(x) + b of each feature; x: (..., features) -> y: same shape and dtype. In float32."""

    def __init__(self, features):
        super().__init__()
        self.omega = nn.Parameter(1 + 0.1 * torch.randn(features))
        self.phi = nn.Parameter(0.1 * torch.randn(features))
        self.baseline = nn.Parameter(torch.zeros(features))

    def hold(self, name, value):
        """Replace a learned vector by one that stays as it is."""
        delattr(self, name)
        self.register_buffer(name, value.detach().clone())

    def wave(self, x):
        return torch.sin(self.omega * x + self.phi)

    def envelope(self, x):
        return torch.tanh(x)

    def forward(self, x):
        wide = x.float()
        return (self.wave(wide) * self.envelope(wide) + self.baseline).to(x.dtype)


class OmegaOne(Full):
    """ω = 1 for ever: y = sin(x + φ)·tanh(x) + b."""

    def __init__(self, features):
        super().__init__(features)
        self.hold("omega", torch.ones(features))


class PhiZero(Full):
    """φ = 0 for ever: y = sin(ω·x)·tanh(x) + b."""

    def __init__(self, features):
        super().__init__(features)
        self.hold("phi", torch.zeros(features))


class Frozen(Full):
    """ω and φ stay as they were drawn: a random, fixed shape for each feature."""

    def __init__(self, features):
        super().__init__(features)
        self.hold("omega", self.omega)
        self.hold("phi", self.phi)


class NoBaseline(Full):
    """b = 0 for ever: y = sin(ω·x + φ)·tanh(x)."""

    def __init__(self, features):
        super().__init__(features)
        self.hold("baseline", torch.zeros(features))


class NoTanh(Full):
    """No envelope: y = sin(ω·x + φ) + b, which is odd at φ = 0 where the oscillation is even."""

    def envelope(self, x):
        return torch.ones_like(x)


class NoSine(Full):
    """The identity for the sine: y = (ω·x + φ)·tanh(x) + b, near x·tanh(x). ω is now a gain, φ the weight of a tanh."""

    def wave(self, x):
        return self.omega * x + self.phi
