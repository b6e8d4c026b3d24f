"""
The oscillating neuron and its two event gates, as modules with what they learn; each knows its features alone.

Their equations as fused operations: oscillation.py.
"""

import math
from statistics import NormalDist

import torch
import torch.nn as nn
from torch import Tensor

from kernels.matmul import Linear
from kernels.oscillation import oscillate, oscillate_events, oscillate_gated


class OscillatingNeuron(nn.Module):
    """
    y = sin(ω·x + φ)·tanh(x) + b, with ω, φ, b of each feature learnable.

    x: (..., features) -> y: same shape and dtype. The phase is formed in float32 whatever the dtype of x: in bfloat16
    the sine would be off by up to 0.06. Start: ω ~ N(1, 0.1), φ ~ N(0, 0.1), b = 0, so y ≈ x² for small x.
    """

    def __init__(self, features: int):
        super().__init__()
        self.omega = nn.Parameter(1 + 0.1 * torch.randn(features))
        self.phi = nn.Parameter(0.1 * torch.randn(features))
        self.baseline = nn.Parameter(torch.zeros(features))

    def forward(self, x):
        return oscillate(x, self.omega, self.phi, self.baseline)


class SparseEventGate(nn.Module):
    """
    Lets a feature through by how strongly it fires, and oscillates once more.

    voltage v = sigmoid(g·x + o); spike strength s = sigmoid(5·(v - threshold)); y = OscillatingNeuron(x·s).
    With dense=True, the historic form: v = sigmoid(W_g x + b_g), y = OscillatingNeuron(W_t (x·s) + b_t), which costs
    two features × features matrices a layer.

    Here x is the output of the first oscillation, whose input is h, c_fc's output. input_std: standard deviation of h
    at the start, which fixes where g and o start: about 15 % of features fire, those with |h| > 1.44 standard
    deviations. With g = 1 and o = 0 all of them would fire for ever, and the gate would be a constant.
    """

    def __init__(
        self, features: int, threshold: float = 0.25, dense: bool = False, bias: bool = True, input_std: float = 0.5
    ):
        super().__init__()
        self.threshold = threshold
        if dense:
            self.gate = Linear(features, features, bias=bias)
            self.transform = Linear(features, features, bias=bias)
        else:
            edge = min(1.44 * input_std, 1.6)  # near 1.6 the oscillation is at its first maximum
            onset = math.sin(edge) * math.tanh(edge)
            inside = min(max(threshold, 0.01), 0.99)
            self.gain = nn.Parameter(torch.full((features,), 1 / onset))
            self.offset = nn.Parameter(torch.full((features,), math.log(inside / (1 - inside)) - 1))
        self.dense = dense
        self.activation = OscillatingNeuron(features)

    def voltage(self, x: Tensor) -> Tensor:
        """v in (0, 1) of each feature; x: (..., features) -> same shape."""
        return torch.sigmoid(self.gate(x) if self.dense else self.gain * x + self.offset)

    def fires(self, h: Tensor, neuron: OscillatingNeuron) -> Tensor:
        """Which features count as firing, their voltage above the threshold; h: (..., features) -> bool, same shape."""
        return self.voltage(neuron(h)) > self.threshold

    def pass_on(self, x: Tensor) -> Tensor:
        """x: the first oscillation's output (..., features) -> y: same shape, part by part."""
        strength = torch.sigmoid(5 * (self.voltage(x) - self.threshold))
        passed = (x * strength).to(x.dtype)
        return self.activation(self.transform(passed) if self.dense else passed)

    def forward(self, h: Tensor, neuron: OscillatingNeuron) -> Tensor:
        """h: c_fc's output (..., features); neuron: the first oscillation -> y: same shape."""
        if self.dense:
            return self.pass_on(neuron(h))
        first = neuron.omega, neuron.phi, neuron.baseline
        second = self.activation.omega, self.activation.phi, self.activation.baseline
        return oscillate_gated(h, *first, self.gain, self.offset, self.threshold, *second)  # which saves h alone


class HardEventGate(nn.Module):
    """
    Decides which features fire, |h| > threshold for c_fc's output h, and keeps each at a target rate of events.

    Homeostasis: the threshold of each feature is no parameter, but follows its measured event rate once a training
    step, t <- t exp(ETA (rate - target)). That is an integral controller on log t, so it does not depend on h's scale.
    Start: the rate is the target's where h is normal. input_std: standard deviation of h at the start.

    threshold: (features,), in the state dict. events: (2, features), counted since the last step: tokens on which a
    feature fired, and all tokens. A block that is recomputed in the backward pass counts its tokens twice, in both.
    """

    ETA = 1.0  # relative change of a threshold, in one step, by an excess of 1 in the rate

    def __init__(self, features: int, target_rate: float = 0.15, input_std: float = 0.5):
        super().__init__()
        self.target_rate = target_rate
        start = -NormalDist(0, input_std).inv_cdf(target_rate / 2)  # exceeded by |h| with the target's probability
        self.register_buffer("threshold", torch.full((features,), start))
        self.register_buffer("events", torch.zeros(2, features), persistent=False)

    def fires(self, h: Tensor, neuron: OscillatingNeuron) -> Tensor:
        """Which features fire, whatever the neuron makes of it; h: (..., features) -> bool, same shape."""
        return h.float().abs() > self.threshold

    def forward(self, h: Tensor, neuron: OscillatingNeuron) -> Tensor:
        """h: c_fc's output (..., features) -> neuron(h) where a feature fires, its baseline where it is silent."""
        y, fired = oscillate_events(h, neuron.omega, neuron.phi, neuron.baseline, self.threshold)
        if self.training:
            self.events[0] += fired
            self.events[1] += h.numel() // h.shape[-1]
        return y

    @torch.no_grad()
    def regulate(self, events: Tensor, skipped: Tensor | bool) -> None:
        """
        Move the thresholds by what was counted during a step, and begin to count anew.

        events: as the attribute, the mean over all processes. skipped: whether the optimizer took no step.
        """
        fired, tokens = events
        excess = (fired - self.target_rate * tokens) / tokens.clamp(min=1)  # 0 where nothing was counted
        self.threshold *= torch.exp(self.ETA * (1.0 - 1.0 * skipped) * excess)
        self.events.zero_()
