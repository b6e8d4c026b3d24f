"""
The oscillation's three forms in plain torch: the reference of the tests, and what serves where no kernel does.

Equations: oscillation.py. x: (..., features), any float type; vectors: (features,) each. The three `_plain` functions
leave the gradients to autograd; `run_plain` has the formulas that the kernels follow.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

EVENTS = 4  # the number of vectors by which a kernel knows the form with hard events; 3 and 8 are the others
SURROGATE_WIDTH = 0.25  # of the sigmoid that stands for an event's step, as a share of the threshold
LEAST_WIDTH = 1e-6  # where the threshold is all but 0


def number_of_sums(vectors: Sequence[Tensor], grad: Tensor | None) -> int:
    """Sums over tokens that a kernel returns: gradients of vectors, or in the forward pass the counts of events."""
    events = len(vectors) == EVENTS
    if grad is None:
        return 1 if events else 0
    return len(vectors) - 1 if events else len(vectors)


def oscillate_plain(x: Tensor, omega: Tensor, phi: Tensor, baseline: Tensor) -> Tensor:
    """oscillate as its equation reads."""
    wide, omega, phi, baseline = in_float32(x, omega, phi, baseline)
    return (torch.sin(omega * wide + phi) * torch.tanh(wide) + baseline).to(x.dtype)


def oscillate_gated_plain(x: Tensor, vectors: Sequence[Tensor], threshold: float) -> Tensor:
    """oscillate_gated as its equations read."""
    wide, omega, phi, baseline, gain, offset, omega2, phi2, baseline2 = in_float32(x, *vectors)
    u = oscillate_plain(wide, omega, phi, baseline)
    s = torch.sigmoid(5 * (torch.sigmoid(gain * u + offset) - threshold))
    return oscillate_plain(u * s, omega2, phi2, baseline2).to(x.dtype)


def oscillate_events_plain(
    x: Tensor, omega: Tensor, phi: Tensor, baseline: Tensor, threshold: Tensor
) -> tuple[Tensor, Tensor]:
    """oscillate_events as its equations read -> (y, fired)."""
    wide, omega, phi, baseline, threshold = in_float32(x, omega, phi, baseline, threshold)
    f, fires, (step, _) = (
        oscillate_plain(wide, omega, phi, 0 * phi),
        wide.abs() > threshold,
        _soft_step(wide, threshold),
    )
    surrogate = f.detach() * (step - step.detach())  # 0 but for its gradient; NaN where x is, although no event
    y = torch.where(fires, f, 0) + surrogate + baseline
    return y.to(x.dtype), sum_over_tokens(fires.float())


def run_plain(
    x: Tensor, vectors: Sequence[Tensor], threshold: float, grad: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """
    What every kernel does: without grad (y, sums or None); with grad, the gradient of y, the gradients (dx, sums).

    vectors: omega, phi, baseline; for the gated form also gain, offset, omega2, phi2, baseline2; for hard events also
    the thresholds. sums: (number_of_sums, features).
    """
    if grad is None and len(vectors) == EVENTS:
        y, fired = oscillate_events_plain(x, *vectors)
        return y, fired[None]
    if grad is None:
        return (
            oscillate_plain(x, *vectors) if len(vectors) == 3 else oscillate_gated_plain(x, vectors, threshold)
        ), None
    backward = {3: _oscillate_backward, EVENTS: _events_backward}.get(len(vectors))
    wide, grad, *vectors = in_float32(x, grad, *vectors)
    if backward:
        dx, sums = backward(wide, grad, *vectors)
    else:
        dx, sums = _gated_backward(wide, grad, threshold, *vectors)
    return dx.to(x.dtype), torch.stack(sums)


def _oscillate_backward(
    x: Tensor, grad: Tensor, omega: Tensor, phi: Tensor, baseline: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """From the gradient of an oscillation's output: dx, and the gradients of omega, phi and baseline."""
    phase, t = omega * x + phi, torch.tanh(x)
    d = grad * torch.cos(phase) * t  # the gradient of the phase
    sums = sum_over_tokens(d * x), sum_over_tokens(d), sum_over_tokens(grad)
    return omega * d + grad * torch.sin(phase) * (1 - t * t), sums


def _gated_backward(x: Tensor, grad: Tensor, threshold: float, *vectors: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """As _oscillate_backward, of the gated form; vectors: all eight."""
    omega, phi, baseline, gain, offset, omega2, phi2, baseline2 = vectors
    u = oscillate_plain(x, omega, phi, baseline)
    v = torch.sigmoid(gain * u + offset)
    s = torch.sigmoid(5 * (v - threshold))
    dz, sums2 = _oscillate_backward(u * s, grad, omega2, phi2, baseline2)
    d = 5 * dz * u * s * (1 - s) * v * (1 - v)  # the gradient of gain u + offset
    dx, sums = _oscillate_backward(x, dz * s + d * gain, omega, phi, baseline)
    return dx, (*sums, sum_over_tokens(d * u), sum_over_tokens(d), *sums2)


def _events_backward(
    x: Tensor, grad: Tensor, omega: Tensor, phi: Tensor, baseline: Tensor, threshold: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """As _oscillate_backward, of hard events."""
    passed = torch.where(x.abs() <= threshold, 0, grad)
    dx, (domega, dphi, _) = _oscillate_backward(x, passed, omega, phi, baseline)
    f, (_, slope) = oscillate_plain(x, omega, phi, torch.zeros_like(phi)), _soft_step(x, threshold)
    return dx + grad * f * slope, (domega, dphi, sum_over_tokens(grad))


def _soft_step(x: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """The sigmoid that stands for the step of |x| > threshold in the gradient, and its derivative by x."""
    width = (SURROGATE_WIDTH * threshold).clamp(min=LEAST_WIDTH)
    step = torch.sigmoid((x.abs() - threshold) / width)
    return step, step * (1 - step) / width * x.sign()


def sum_over_tokens(t: Tensor) -> Tensor:
    """(..., features) -> (features,), for t without a leading dimension too."""
    return t.unsqueeze(0).flatten(0, -2).sum(0)


def in_float32(x: Tensor, *others: Tensor) -> list[Tensor]:
    """x and the others in float32, or all in float64 where x is."""
    return [t.to(torch.float64 if x.dtype == torch.float64 else torch.float32) for t in (x, *others)]
