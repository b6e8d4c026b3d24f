"""
An MLP with hard events on one token, reading only what fires, as generation needs it: on the CPU in float32, by
event_mlp.c, and on a card, by event_mlp_triton.py.

With h = c_fc(x), a feature f gives a_f + b_f where |h_f| > threshold_f, a = sin(omega h + phi) tanh(h), and exactly its
baseline b_f where it is silent. So

    c_proj(output) = (c_proj(b)) + sum over firing f of a_f c_proj.weight[:, f],

a constant and the columns of what fires, which are kept transposed, as rows. Who may fire is found through an 8-bit
copy of c_fc.weight (screen.py): where the whole interval for h_f lies within the threshold, any float32 product leaves
f silent, and nothing more is read of it. The others, the candidates, are multiplied in full. On the CPU 16 further bits
a number are read for that, which make 24-bit integers: each weight is right to 2^-24 of the largest of its row, which
is what a float32 sum over the row can lose.

Exact therefore means: equal to the dense computation but for rounding, as another BLAS library is. The two can decide
differently only where |h_f| and threshold_f agree in all digits that the sum holds.
"""

import ctypes
import functools

import torch
import torch.nn as nn
from torch import Tensor

from kernels import PLAIN, oscillation, screen
from kernels.c_library import load_library
from kernels.huge_pages import hold_in_huge_pages

BLOCK = 128  # of event_mlp.c


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
        super().__init__()
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

    def serves(self, x: Tensor) -> bool:
        """Whether x is one token that this may compute; where it is not, the MLP's modules compute the same."""
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


class EventMLPOnCPU(EventMLP):
    """Beside the model's own weights it keeps 7 bytes for each number of c_fc.weight."""

    def lay_out(self) -> None:
        self.tokens, self.blocks = 0, -(-self.features // BLOCK)
        self.found = torch.zeros(self.blocks, 2, dtype=torch.int64)
        weight, bias, projected, _, threshold, omega, phi, _ = self.kept
        self.screen = screen.screen_rows(weight, with_rest=True)
        columns = projected.t().contiguous()
        self.arrays = (*self.screen, columns, bias, threshold, omega, phi, self.constant())
        hold_in_huge_pages(self.screen.coarse, self.screen.rest, columns)
        self.pointers = screen.pointers_to(*self.arrays)

    def serves(self, x: Tensor) -> bool:
        return self.takes(x, self.c_fc.in_features)

    def __call__(self, x: Tensor) -> Tensor:
        C, stride, threads = x.numel(), self.screen.stride, min(torch.get_num_threads(), self.blocks)
        x, y = x.contiguous(), torch.empty(x.shape)
        halves, shrunk = torch.empty(2 * stride, dtype=torch.uint8), torch.empty(stride)
        sums = torch.empty(self.blocks, C)
        memory = [t.data_ptr() for t in (x, halves, shrunk, sums, self.found, y)]
        load_kernel()[0].event_mlp(self.features, C, stride, threads, self.pointers, *memory)
        self.tokens += 1
        return y

    def bytes_read(self) -> float:
        width, (candidates, firing) = self.c_fc.in_features, self.shares()
        return self.features * (self.screen.row_bytes + 4 + 2 * self.screen.stride * candidates + 4 * width * firing)


def prepare(c_fc: nn.Linear, c_proj: nn.Linear, neuron: nn.Module, gate: nn.Module) -> EventMLP | None:
    """The EventMLP of an MLP with hard events, see there; None where no kernel serves it."""
    device, dtypes = c_fc.weight.device, {c_fc.weight.dtype, c_proj.weight.dtype}
    if backend(device).startswith("plain") or len(dtypes) > 1 or torch.float64 in dtypes:
        return None
    if device.type == "cuda":
        from kernels.event_mlp_triton import EventMLPOnCard  # imports triton, which is not everywhere

        return EventMLPOnCard(c_fc, c_proj, neuron, gate)
    plain = all(t.dtype == torch.float32 for t in (c_fc.weight, gate.threshold, neuron.omega))
    return EventMLPOnCPU(c_fc, c_proj, neuron, gate) if plain and screen.fits(c_fc.weight) else None


def backend(device: torch.device) -> str:
    """What serves event-driven steps on a device: 'C (gcc, OpenMP)', 'Triton', or 'plain torch: ' and the reason."""
    return load_kernel()[1] if device.type == "cpu" else oscillation.backend(device)


@functools.cache
def load_kernel() -> tuple[ctypes.CDLL | None, str]:
    """(event_mlp.c's library or None, what serves one-token steps on the CPU and why), decided at the first use."""
    if PLAIN:
        return None, "plain torch: WIGGLE_KERNEL=plain"
    library, description = load_library("event_mlp.c", screen.FLAGS, max_threads_without_openmp=2)
    if library is not None:
        declare(library)
    return library, description


def declare(library: ctypes.CDLL) -> None:
    """Declare the C function's arguments."""
    long, pointer = ctypes.c_int64, ctypes.c_void_p
    library.event_mlp.argtypes = (long, long, long, ctypes.c_int, *[pointer] * 7)
    library.event_mlp.restype = None
