"""
The oscillating neuron, alone and with a soft or a hard event gate, each as one operation that saves its input alone.

    oscillate        y = sin(omega x + phi) tanh(x) + baseline
    oscillate_gated  u = oscillate(x), v = sigmoid(gain u + offset), s = sigmoid(5 (v - threshold)), z = u s,
                     y = sin(omega2 z + phi2) tanh(z) + baseline2
    oscillate_events y = sin(omega x + phi) tanh(x) + baseline where |x| > threshold, else y = baseline

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
from kernels.oscillation_plain import EVENTS, number_of_sums, run_plain

NAMES = ("omega", "phi", "baseline", "gain", "offset", "omega2", "phi2", "baseline2")  # the order of `vectors` below
NAMES_OF_EVENTS = ("omega", "phi", "baseline", "threshold")


def oscillate(x: Tensor, omega: Tensor, phi: Tensor, baseline: Tensor) -> Tensor:
    """The oscillation alone. Raises ValueError where a vector does not match x's last dimension or device."""
    return _check_and_apply(0.0, x, omega, phi, baseline)[0]


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
    return _check_and_apply(float(threshold), x, omega, phi, baseline, gain, offset, omega2, phi2, baseline2)[0]


def oscillate_events(
    x: Tensor, omega: Tensor, phi: Tensor, baseline: Tensor, threshold: Tensor
) -> tuple[Tensor, Tensor]:
    """
    The oscillation with hard events -> (y, fired). threshold, (features,), has no gradient. Raises ValueError as above.

    fired: (features,) in float32, the number of tokens on which each feature fires. The step at the threshold has the
    gradient of a sigmoid of width threshold / 4: a surrogate gradient (Bengio et al., 2013; Neftci et al., 2019).
    """
    y, sums = _check_and_apply(0.0, x, omega, phi, baseline, threshold)
    return y, sums[0]


def backend(device: torch.device | str) -> str:
    """What serves a device in eager mode: 'C (gcc, OpenMP)', 'Triton', or 'plain torch: ' and the reason."""
    return _load_kernel(torch.device(device).type)[1]


def _check_and_apply(threshold: float, x: Tensor, *vectors: Tensor) -> tuple[Tensor, Tensor | None]:
    """As run_plain's forward pass, with gradients, by whatever serves x."""
    if x.ndim == 0 or not x.is_floating_point():
        raise ValueError(f"x: expected floats of shape (..., features), received {x.dtype} of shape {tuple(x.shape)}")
    features, device = x.shape[-1:], x.device
    names = NAMES_OF_EVENTS if len(vectors) == EVENTS else NAMES[: len(vectors)]
    for name, v in zip(names, vectors, strict=True):
        if v.shape != features or v.device != device:
            expected = f"shape {tuple(features)} on {device} for x of shape {tuple(x.shape)}"
            raise ValueError(f"{name}: expected {expected}, received shape {tuple(v.shape)} on {v.device}")
    if torch.compiler.is_compiling() and not _compiles_opaquely(x):
        # Without an autograd.Function: torch 2.11 loses the gradients of one whose forward pass returns what .to(dtype)
        # left as it was.
        return run_plain(x, vectors, threshold, None)
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
    def forward(ctx: FunctionCtx, threshold: float, x: Tensor, *vectors: Tensor) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(x, *vectors)
        ctx.threshold = threshold
        y, sums = _choose_kernel(x)(x, vectors, threshold, None)
        if sums is not None:
            ctx.mark_non_differentiable(sums)
        return y, sums

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        x, *vectors = ctx.saved_tensors
        dx, sums = _choose_kernel(x)(x, vectors, ctx.threshold, grad)
        without = len(vectors) - len(sums)  # gradient: the thresholds of hard events
        return None, dx, *sums.unbind(), *[None] * without


def _choose_kernel(x: Tensor) -> Callable:
    """The kernel for x. Inside _Oscillation, gradients are on only where a second derivative is wanted."""
    if torch.compiler.is_compiling():
        return _run_compiled
    # A subclass, such as a fake tensor, may have no numbers where a kernel would read them.
    plain = x.dtype == torch.float64 or torch.is_grad_enabled() or type(x) not in (Tensor, torch.nn.Parameter)
    return run_plain if plain else _load_kernel(x.device.type)[0]


@functools.cache
def _load_kernel(device_type: str) -> tuple[Callable, str]:
    """(the kernel of a type of device in eager mode, what `backend` says of it), decided at the first use."""
    if PLAIN:
        return run_plain, "plain torch: WIGGLE_KERNEL=plain"
    if device_type == "cpu":
        run_c, description = oscillation_cpu.load_kernel()
        return run_c or run_plain, description
    if device_type == "cuda":
        try:
            from kernels.oscillation_triton import run_triton  # imports triton, which is not everywhere

            one = torch.ones(1, device="cuda")
            for x in (one, one.half()):  # 16-bit numbers take other instructions
                run_triton(x, (one, one, one), 0.0, None)
            return run_triton, "Triton"
        except Exception as error:  # no Triton, no compiler for its launcher, too old a card: none of them is fatal
            return run_plain, f"plain torch: Triton does not work here ({type(error).__name__})"
    return run_plain, f"plain torch: no kernel for {device_type}"


@torch.library.custom_op(
    "wiggle::oscillation",
    mutates_args=(),
    schema="(Tensor x, Tensor[] vectors, float threshold, Tensor? grad) -> (Tensor, Tensor)",
)
def _run_compiled(x: Tensor, vectors: Sequence[Tensor], threshold: float, grad: Tensor | None) -> tuple[Tensor, Tensor]:
    """A device's kernel as one opaque operation, since torch.compile cannot trace ctypes. A call costs 10 us more."""
    y, sums = _load_kernel(x.device.type)[0](x, vectors, threshold, grad)
    return y.contiguous(), x.new_empty((0, x.shape[-1]), dtype=torch.float32) if sums is None else sums


@_run_compiled.register_fake
def _shapes_of_compiled(
    x: Tensor, vectors: Sequence[Tensor], threshold: float, grad: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What torch.compile may assume of _run_compiled's results: their shapes, types and strides."""
    shape = (number_of_sums(vectors, grad), x.shape[-1])
    return x.new_empty(x.shape), x.new_empty(shape, dtype=torch.float32)
