"""What event-driven steps on the CPU and on a card have in common. Equations: event_mlp.py."""

import torch
import torch.nn as nn
from torch import Tensor

from kernels import screen


class EventMLP(screen.LaidOut):
    """
    An MLP's weights laid out for one-token steps, and what was found in them. A subclass knows the device.

    c_fc, c_proj: its matrices (F, C) and (C, F), with or without bias. neuron: holds omega, phi and baseline, gate:
    threshold, (F,) each. tokens: the number of calls so far, found: (parts, 2), in all of them the numbers of features
    that were candidates and that fired.
    """

    tokens: int
    found: Tensor

    @torch.no_grad()
    def __init__(self, c_fc: nn.Linear, c_proj: nn.Linear, neuron: nn.Module, gate: nn.Module):
        self.c_fc, self.c_proj, self.neuron, self.gate = c_fc, c_proj, neuron, gate
        super().__init__(c_fc, c_proj, neuron, gate)
        self.features = c_fc.out_features
        self.lay_out()

    def lay_out(self) -> None:
        """Make what a call reads of the weights that `kept` holds."""
        raise NotImplementedError

    def constant(self) -> Tensor:
        """What c_proj gives where all features are silent, (C,) in float32: in float64 first, which autocast leaves."""
        _, _, weight, bias, *_, baseline = self.kept
        constant = weight.double() @ baseline.double()
        return (constant if bias is None else constant + bias).float()

    def weights(self) -> tuple[Tensor | None, ...]:
        c_fc, c_proj, neuron = self.c_fc, self.c_proj, self.neuron
        matrices = c_fc.weight, c_fc.bias, c_proj.weight, c_proj.bias
        return *matrices, self.gate.threshold, neuron.omega, neuron.phi, neuron.baseline

    def serves(self, x: Tensor, *modules: nn.Module) -> bool:
        """
        Whether x is one token that this may compute in place of c_fc, c_proj, neuron and gate as the MLP has them now;
        where it is not, they do.
        """
        raise NotImplementedError

    def __call__(self, x: Tensor) -> Tensor:
        """x: the input of c_fc, (..., C) with C numbers in all -> the output of c_proj, same shape."""
        raise NotImplementedError

    def shares(self) -> tuple[float, float]:
        """The shares of features that were candidates, and that fired, in all calls so far."""
        candidates, firing = (self.found.sum(0) / max(self.tokens * self.features, 1)).tolist()
        return candidates, firing

    def bytes_read(self) -> float:
        """Bytes of weights that a call read, in the mean of all calls so far."""
        raise NotImplementedError

    def bytes_dense(self) -> int:
        """Bytes of weights that the dense MLP reads."""
        return 2 * self.c_fc.weight.nbytes
