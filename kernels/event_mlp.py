"""
An MLP with hard events on one token, reading only what fires, as generation needs it: on the CPU in float32
(event_mlp_cpu.py and event_mlp.c), and on a card (event_mlp_triton.py).

With h = c_fc(x), a feature f gives a_f + b_f where |h_f| > threshold_f, a = sin(omega h + phi) tanh(h), and exactly its
baseline b_f where it is silent. So

    c_proj(output) = (c_proj(b)) + sum over firing f of a_f c_proj.weight[:, f],

a constant and the columns of what fires, which are kept transposed, as rows. Who may fire is found through an 8-bit
copy of c_fc.weight (screen.py): where the whole interval for h_f lies within the threshold, any float32 product leaves
f silent, and nothing more is read of it. The others, the candidates, are multiplied in full. On the CPU 16 further bits
a number are read for that, which make 24-bit integers: each weight is right to 2^-24 of the largest of its row. Rows in
which that is far from the others, where it would not do, are multiplied in float32 as they are.

Exact therefore means: equal to the dense computation but for rounding, as another BLAS library is. The two can decide
differently only where |h_f| and threshold_f agree in all digits that the sum holds.
"""

import torch
import torch.nn as nn

from kernels import event_mlp_cpu, oscillation, screen
from kernels.event_mlp_base import EventMLP
from kernels.matmul import Linear
from kernels.neurons import HardEventGate, OscillatingNeuron

HALVES = torch.bfloat16, torch.float16


def prepare(c_fc: nn.Linear, c_proj: nn.Linear, neuron: nn.Module, gate: nn.Module) -> EventMLP | None:
    """The EventMLP of an MLP with hard events, see there; None where no kernel serves it."""
    modules = c_fc, c_proj, neuron, gate
    known = (nn.Linear, Linear), (nn.Linear, Linear), (OscillatingNeuron,), (HardEventGate,)
    if any(type(module) not in types for module, types in zip(modules, known, strict=True)):
        return None  # of a class of somebody else's, whose forward pass is its own
    weights = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    device = c_fc.weight.device
    if not all(map(screen.is_ordinary, weights)) or backend(device).startswith("plain"):
        return None
    if device.type == "cuda" and c_fc.weight.dtype == c_proj.weight.dtype in (torch.float32, *HALVES):
        from kernels.event_mlp_triton import EventMLPOnCard  # imports triton, which is not everywhere

        return EventMLPOnCard(*modules)
    if not all(map(screen.is_plain, weights)) or not screen.fits(c_fc.weight):
        return None
    return event_mlp_cpu.EventMLPOnCPU(*modules)


def backend(device: torch.device | str) -> str:
    """What serves event-driven steps on a device: 'C (gcc, OpenMP)', 'Triton', or 'plain torch: ' and the reason."""
    return event_mlp_cpu.load_kernel()[1] if torch.device(device).type == "cpu" else oscillation.backend(device)
