"""
The oscillating neuron, alone and with its event gate, each as one operation that saves nothing but its input.

    oscillate        y = sin(omega x + phi) tanh(x) + baseline
    oscillate_gated  u = oscillate(x), v = sigmoid(gain u + offset), s = sigmoid(5 (v - threshold)), z = u s,
                     y = sin(omega2 z + phi2) tanh(z) + baseline2

x: (..., features), any float type, and y like it; each vector: (features,). The computation is in float32 (float64 for
a float64 x): a bfloat16 phase would be off by up to 0.058 in the sine. The backward pass recomputes u, v, s and z from
x, so an operation keeps as much memory as GELU. The vectors' gradients are summed over tokens in a fixed order.

A kernel serves the CPU (oscillation.c) and CUDA (oscillation_triton.py); `backend` says which and why. torch.compile
keeps the kernels, as one opaque operation: the backward pass that Inductor would make of the gated form keeps four
float32 tensors where the kernel keeps x. float64, second derivatives, other devices, a card's compiled steps without
gradients and WIGGLE_KERNEL=plain take the plain operations below.
"""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from kernels import PLAIN, oscillation_cpu

WIDTH = 0.25  # of the surrogate's sigmoid, as a share of the threshold

NAMES = ("omega", "phi", "baseline", "gain", "offset", "omega2", "phi2", "baseline2")  # the order of `vectors` below


def oscillate(x: Tensor, omega: Tensor, phi: Tensor, baseline: Tensor) -> Tensor:
    """The oscillation alone. Raises ValueError where a vector does not match x's last dimension or device."""
    return _check_and_apply(0.0, x, omega, phi, baseline)


def oscillate_gated(
    x: Tensor,
    omega: Tensor,
    phi: Tensor,
    baseline: Tensor,
    gain: Tensor,
    offset: Tensor,
    threshold: float,
    omega2: Tensor,
    phi2: Tensor,
    baseline2: Tensor,
) -> Tensor:
    """Oscillation, event gate and second oscillation. threshold has no gradient. Raises ValueError as `oscillate`."""
    return _check_and_apply(float(threshold), x, omega, phi, baseline, gain, offset, omega2, phi2, baseline2)


def oscillate_events(
    x: Tensor, threshold: Tensor, omega: Tensor, phi: Tensor, baseline: Tensor
) -> tuple[Tensor, Tensor]:
    """
    The oscillation with hard events -> (y, fired).

    fired: (features,) in float32, without gradient: the number of tokens on which each feature fires.
    """
    y = oscillate_events_plain(x, threshold, omega, phi, baseline)
    return y, _sum_over_tokens((x.detach().float().abs() > threshold).float())


def oscillate_plain(x: Tensor, omega: Tensor, phi: Tensor, baseline: Tensor) -> Tensor:
    """oscillate as its equation reads, with autograd's own gradients: the reference of the tests."""
    wide, omega, phi, baseline = _in_float32(x, omega, phi, baseline)
    return (torch.sin(omega * wide + phi) * torch.tanh(wide) + baseline).to(x.dtype)


def oscillate_gated_plain(x: Tensor, vectors: Sequence[Tensor], threshold: float) -> Tensor:
    """oscillate_gated as its equations read, with autograd's own gradients: the reference of the tests."""
    wide, omega, phi, baseline, gain, offset, omega2, phi2, baseline2 = _in_float32(x, *vectors)
    u = oscillate_plain(wide, omega, phi, baseline)
    s = torch.sigmoid(5 * (torch.sigmoid(gain * u + offset) - threshold))
    return oscillate_plain(u * s, omega2, phi2, baseline2).to(x.dtype)


def oscillate_events_plain(x: Tensor, threshold: Tensor, omega: Tensor, phi: Tensor, baseline: Tensor) -> Tensor:
    """The y of oscillate_events as its equations read: the reference of the tests."""
    wide, threshold, omega, phi, baseline = _in_float32(x, threshold, omega, phi, baseline)
    f = torch.sin(omega * wide + phi) * torch.tanh(wide)
    slope = torch.sigmoid((wide.abs() - threshold) / (WIDTH * threshold).clamp(min=1e-6))
    surrogate = f.detach() * (slope - slope.detach())  # 0 in the forward pass
    return (torch.where(wide.abs() <= threshold, 0.0, f) + surrogate + baseline).to(x.dtype)


def backend(device: torch.device | str) -> str:
    """What serves a device in eager mode: 'C (gcc, OpenMP)', 'Triton', or 'plain torch: ' and the reason."""
    return _load_kernel(torch.device(device).type)[1]


def _check_and_apply(threshold: float, x: Tensor, *vectors: Tensor) -> Tensor:
    if x.ndim == 0 or not x.is_floating_point():
        raise ValueError(f"x: expected floats of shape (..., features), received {x.dtype} of shape {tuple(x.shape)}")
    features, device = x.shape[-1:], x.device
    for name, v in zip(NAMES[: len(vectors)], vectors, strict=True):
        if v.shape != features or v.device != device:
            expected = f"shape {tuple(features)} on {device} for x of shape {tuple(x.shape)}"
            raise ValueError(f"{name}: expected {expected}, received shape {tuple(v.shape)} on {v.device}")
    if torch.compiler.is_compiling() and not _compiles_opaquely(x):
        # Without an autograd.Function: torch 2.11 loses the gradients of one whose forward pass returns what .to(dtype)
        # left as it was.
        return _run_plain(x, vectors, threshold, None)[0]
    return _Oscillation.apply(threshold, x, *vectors)


def _compiles_opaquely(x: Tensor) -> bool:
    """
    Whether torch.compile takes the kernel of x's device as one operation that it cannot look into.

    On a card the steps of generation, which need no gradients, are left to Inductor: it fuses them with their
    neighbours.
    """
    if PLAIN or x.dtype == torch.float64:
        return False
    return x.device.type == "cpu" or (x.device.type == "cuda" and torch.is_grad_enabled())


class _Oscillation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, threshold: float, x: Tensor, *vectors: Tensor) -> Tensor:
        ctx.save_for_backward(x, *vectors)
        ctx.threshold = threshold
        return _choose_kernel(x)(x, vectors, threshold, None)[0]

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *vectors = ctx.saved_tensors
        dx, sums = _choose_kernel(x)(x, vectors, ctx.threshold, grad)
        return None, dx, *sums.unbind()


def _choose_kernel(x: Tensor) -> Callable:
    """The kernel for x. Inside _Oscillation, gradients are on only where a second derivative is wanted."""
    if torch.compiler.is_compiling():
        return _run_compiled
    return _run_plain if x.dtype == torch.float64 or torch.is_grad_enabled() else _load_kernel(x.device.type)[0]


@functools.cache
def _load_kernel(device_type: str) -> tuple[Callable, str]:
    """(the kernel of a type of device in eager mode, what `backend` says of it), decided at the first use."""
    if PLAIN:
        return _run_plain, "plain torch: WIGGLE_KERNEL=plain"
    if device_type == "cpu":
        run_c, description = oscillation_cpu.load_kernel()
        return run_c or _run_plain, description
    if device_type == "cuda":
        try:
            from kernels.oscillation_triton import run_triton  # imports triton, which is not everywhere

            one = torch.ones(1, device="cuda")
            for x in (one, one.half()):  # 16-bit numbers take other instructions
                run_triton(x, (one, one, one), 0.0, None)
            return run_triton, "Triton"
        except Exception as error:  # no Triton, no compiler for its launcher, too old a card: none of them is fatal
            return _run_plain, f"plain torch: Triton does not work here ({type(error).__name__})"
    return _run_plain, f"plain torch: no kernel for {device_type}"


def _run_plain(
    x: Tensor, vectors: Sequence[Tensor], threshold: float, grad: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """
    What every kernel does: without grad (y, None); with grad, the gradient of y, the gradients (dx, sums).

    vectors: omega, phi, baseline and, for the gated form, gain, offset, omega2, phi2, baseline2. sums: (3 or 8,
    features), the vectors' gradients, summed over tokens.
    """
    if grad is None and len(vectors) == 8:
        return oscillate_gated_plain(x, vectors, threshold), None
    if grad is None:
        return oscillate_plain(x, *vectors), None
    dtype = x.dtype
    x, grad, omega, phi, baseline, *gate = _in_float32(x, grad, *vectors)
    if not gate:
        dx, sums = _oscillate_backward(x, grad, omega, phi)
        return dx.to(dtype), torch.stack(sums)
    gain, offset, omega2, phi2, _ = gate
    u = oscillate_plain(x, omega, phi, baseline)
    v = torch.sigmoid(gain * u + offset)
    s = torch.sigmoid(5 * (v - threshold))
    dz, sums2 = _oscillate_backward(u * s, grad, omega2, phi2)
    d = 5 * dz * u * s * (1 - s) * v * (1 - v)  # the gradient of gain u + offset
    dx, sums = _oscillate_backward(x, dz * s + d * gain, omega, phi)
    return dx.to(dtype), torch.stack((*sums, _sum_over_tokens(d * u), _sum_over_tokens(d), *sums2))


def _oscillate_backward(
    x: Tensor, grad: Tensor, omega: Tensor, phi: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """From the gradient of an oscillation's output: dx, and the gradients of omega, phi and baseline."""
    phase, t = omega * x + phi, torch.tanh(x)
    d = grad * torch.cos(phase) * t  # the gradient of the phase
    sums = _sum_over_tokens(d * x), _sum_over_tokens(d), _sum_over_tokens(grad)
    return omega * d + grad * torch.sin(phase) * (1 - t * t), sums


def _sum_over_tokens(t: Tensor) -> Tensor:
    """(..., features) -> (features,), for t without a leading dimension too."""
    return t.unsqueeze(0).flatten(0, -2).sum(0)


def _in_float32(x: Tensor, *others: Tensor) -> list[Tensor]:
    """x and the others in float32, or all in float64 where x is."""
    return [t.to(torch.float64 if x.dtype == torch.float64 else torch.float32) for t in (x, *others)]


@torch.library.custom_op(
    "wiggle::oscillation",
    mutates_args=(),
    schema="(Tensor x, Tensor[] vectors, float threshold, Tensor? grad) -> (Tensor, Tensor)",
)
def _run_compiled(x: Tensor, vectors: Sequence[Tensor], threshold: float, grad: Tensor | None) -> tuple[Tensor, Tensor]:
    """A device's kernel as one opaque operation, since torch.compile cannot trace ctypes. A call costs 10 us more."""
    y, sums = _load_kernel(x.device.type)[0](x, vectors, threshold, grad)
    return y.contiguous(), x.new_empty(0) if sums is None else sums


@_run_compiled.register_fake
def _shapes_of_compiled(
    x: Tensor, vectors: Sequence[Tensor], threshold: float, grad: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What torch.compile may assume of _run_compiled's results: their shapes, types and strides."""
    sums = x.new_empty(0) if grad is None else x.new_empty((len(vectors), x.shape[-1]), dtype=torch.float32)
    return x.new_empty(x.shape), sums
