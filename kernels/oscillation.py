"""
The oscillating neuron, alone and with its event gate, each as one operation that saves nothing but its input.

    oscillate        y = sin(omega x + phi) tanh(x) + baseline
    oscillate_gated  u = oscillate(x), v = sigmoid(gain u + offset), s = sigmoid(5 (v - threshold)), z = u s,
                     y = sin(omega2 z + phi2) tanh(z) + baseline2

x: (..., features), any float type, and y like it; each vector: (features,). All is computed in float32 (float64 for a
float64 x): a bfloat16 phase would be off by up to 0.058 in the sine. Backward recomputes what it needs from x, so an
operation keeps what GELU keeps. The vectors' gradients are summed over tokens in float32 and in a fixed order.

In eager mode a kernel serves the CPU (oscillation.c) and CUDA (oscillation_triton.py); `backend` says which and why.
Under torch.compile the CPU keeps its kernel, while elsewhere Inductor fuses the plain operations below with their
neighbours. float64, second derivatives and other devices take the plain operations too, and everything does with the
environment variable WIGGLE_KERNEL=plain, set before the first import.
"""

import functools
import os
from collections.abc import Sequence

import torch
from torch import Tensor

PLAIN = os.environ.get("WIGGLE_KERNEL") == "plain"
NAMES = ("omega", "phi", "baseline", "gain", "offset", "omega2", "phi2", "baseline2")


def oscillate(x, omega, phi, baseline):
    """One oscillation. Raises ValueError where a vector does not match x's last dimension."""
    return _apply(0.0, x, omega, phi, baseline)


def oscillate_gated(x, omega, phi, baseline, gain, offset, threshold, omega2, phi2, baseline2):
    """Oscillation, event gate and second oscillation. threshold is a number and has no gradient."""
    return _apply(float(threshold), x, omega, phi, baseline, gain, offset, omega2, phi2, baseline2)


def oscillate_plain(x, omega, phi, baseline):
    """oscillate as its equation reads, with autograd's own gradients: the reference of the tests."""
    wide, omega, phi, baseline = _wide(x, omega, phi, baseline)
    return (torch.sin(omega * wide + phi) * torch.tanh(wide) + baseline).to(x.dtype)


def oscillate_gated_plain(x, omega, phi, baseline, gain, offset, threshold, omega2, phi2, baseline2):
    """oscillate_gated as its equations read, with autograd's own gradients: the reference of the tests."""
    wide, gain, offset = _wide(x, gain, offset)
    u = oscillate_plain(wide, omega, phi, baseline)
    s = torch.sigmoid(5 * (torch.sigmoid(gain * u + offset) - threshold))
    return oscillate_plain(u * s, omega2, phi2, baseline2).to(x.dtype)


def backend(device):
    """What serves a device in eager mode: 'C (gcc, OpenMP)', 'Triton', or 'plain torch: ' and the reason."""
    return _kernel(torch.device(device).type)[1]


def _apply(threshold, x, *vectors):
    if x.ndim == 0 or not x.is_floating_point():
        raise ValueError(f"x: expected floats of shape (..., features), received {x.dtype} of shape {tuple(x.shape)}")
    features, device = x.shape[-1:], x.device
    for name, v in zip(NAMES, vectors, strict=False):
        if v.shape != features or v.device != device:
            expected = f"shape {tuple(features)} on {device} for x of shape {tuple(x.shape)}"
            raise ValueError(f"{name}: expected {expected}, received shape {tuple(v.shape)} on {v.device}")
    return _Oscillation.apply(threshold, x, *vectors)


class _Oscillation(torch.autograd.Function):
    @staticmethod
    def forward(ctx, threshold, x, *vectors):
        ctx.save_for_backward(x, *vectors)
        ctx.threshold = threshold
        return _choose(x)(x, vectors, threshold, None)[0]

    @staticmethod
    def backward(ctx, grad):
        x, *vectors = ctx.saved_tensors
        dx, sums = _choose(x)(x, vectors, ctx.threshold, grad)
        return None, dx, *sums.unbind()


def _choose(x):
    """What serves x. In here the gradient mode is on only in a backward pass that must be differentiated again."""
    if torch.compiler.is_compiling():
        return _compiled if x.device.type == "cpu" and x.dtype != torch.float64 and not PLAIN else _plain
    return _plain if x.dtype == torch.float64 or torch.is_grad_enabled() else _kernel(x.device.type)[0]


@functools.cache
def _kernel(device_type):
    """(what serves a type of device in eager mode, its description), decided at its first use."""
    if PLAIN:
        return _plain, "plain torch: WIGGLE_KERNEL=plain"
    if device_type == "cpu":
        from . import oscillation_cpu

        run, description = oscillation_cpu.load()
        return run or _plain, description
    if device_type == "cuda":
        try:
            from . import oscillation_triton

            one = torch.ones(1, device="cuda")
            oscillation_triton.run(one, (one, one, one), 0.0, None)
            return oscillation_triton.run, "Triton"
        except Exception as error:  # no Triton, no compiler for its launcher, too old a card: none of them is fatal
            return _plain, f"plain torch: Triton does not work here ({type(error).__name__})"
    return _plain, f"plain torch: no kernel for {device_type}"


def _plain(x, vectors, threshold, grad):
    """
    What every kernel does: (y, None) without grad, and (dx, sums) with grad, the gradient of y.

    vectors: omega, phi, baseline and, for the gated form, gain, offset, omega2, phi2, baseline2. sums: (3 or 8,
    features) are their gradients.
    """
    if grad is None and len(vectors) == 8:
        return oscillate_gated_plain(x, *vectors[:5], threshold, *vectors[5:]), None
    if grad is None:
        return oscillate_plain(x, *vectors), None
    dtype = x.dtype
    x, grad, omega, phi, baseline, *gate = _wide(x, grad, *vectors)
    if not gate:
        dx, sums = _pull(x, grad, omega, phi)
        return dx.to(dtype), torch.stack(sums)
    gain, offset, omega2, phi2, _ = gate
    u = oscillate_plain(x, omega, phi, baseline)
    v = torch.sigmoid(gain * u + offset)
    s = torch.sigmoid(5 * (v - threshold))
    dz, sums2 = _pull(u * s, grad, omega2, phi2)
    d = 5 * dz * u * s * (1 - s) * v * (1 - v)  # the gradient of gain u + offset
    dx, sums = _pull(x, dz * s + d * gain, omega, phi)
    return dx.to(dtype), torch.stack((*sums, _total(d * u), _total(d), *sums2))


def _pull(x, grad, omega, phi):
    """From the gradient of an oscillation's output, those of x and of omega, phi and baseline."""
    phase, t = omega * x + phi, torch.tanh(x)
    d = grad * torch.cos(phase) * t
    return omega * d + grad * torch.sin(phase) * (1 - t * t), (_total(d * x), _total(d), _total(grad))


def _total(t):
    return t.unsqueeze(0).flatten(0, -2).sum(0)


def _wide(x, *vectors):
    return [t.to(torch.float64 if x.dtype == torch.float64 else torch.float32) for t in (x, *vectors)]


@torch.library.custom_op("wiggle::oscillation", mutates_args=())
def _compiled(x: Tensor, vectors: Sequence[Tensor], threshold: float, grad: Tensor | None) -> tuple[Tensor, Tensor]:
    """The CPU's kernel as one opaque operation, since torch.compile cannot look into ctypes. It costs 10 us a call."""
    y, sums = _kernel(x.device.type)[0](x, vectors, threshold, grad)
    return y.contiguous(), x.new_empty(0) if sums is None else sums


@_compiled.register_fake
def _(x, vectors, threshold, grad):
    sums = x.new_empty(0) if grad is None else x.new_empty((len(vectors), x.shape[-1]), dtype=torch.float32)
    return x.new_empty(x.shape), sums
