"""
An MLP with hard events on one token, reading only what fires, as generation needs it: on the CPU in float32
(event_mlp_cpu.py and event_mlp.c), and on a card (event_mlp_triton.py).

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

import torch
import torch.nn as nn

from kernels import event_mlp_cpu, oscillation, screen
from kernels.event_mlp_base import EventMLP


def prepare(c_fc: nn.Linear, c_proj: nn.Linear, neuron: nn.Module, gate: nn.Module) -> EventMLP | None:
    """The EventMLP of an MLP with hard events, see there; None where no kernel serves it."""
    device, dtypes = c_fc.weight.device, {c_fc.weight.dtype, c_proj.weight.dtype}
    if backend(device).startswith("plain") or len(dtypes) > 1 or torch.float64 in dtypes:
        return None
    if device.type == "cuda":
        from kernels.event_mlp_triton import EventMLPOnCard  # imports triton, which is not everywhere

        return EventMLPOnCard(c_fc, c_proj, neuron, gate)
    plain = all(t.dtype == torch.float32 for t in (c_fc.weight, gate.threshold, neuron.omega))
    return event_mlp_cpu.EventMLPOnCPU(c_fc, c_proj, neuron, gate) if plain and screen.fits(c_fc.weight) else None


def backend(device: torch.device | str) -> str:
    """What serves event-driven steps on a device: 'C (gcc, OpenMP)', 'Triton', or 'plain torch: ' and the reason."""
    return event_mlp_cpu.load_kernel()[1] if torch.device(device).type == "cpu" else oscillation.backend(device)
