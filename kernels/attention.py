"""
Causal self-attention with what stands before it, as one operation that saves nothing but its input.

For each head, on queries and keys that are normalised and turned as rotary.py says where that is asked for:
y = softmax(q kᵀ / sqrt(D) + causal mask) v. On a CPU torch takes four passes for it and keeps five tensors;
attention.c takes one, which halves the time at a small model's sizes. It serves float32 in eager mode, without dropout.
"""

import ctypes
import functools

import torch

from . import c_library
from .oscillation import PLAIN


def serves(qkv):
    """Whether `attend` takes qkv; where it does not, model_bio.py's own lines do the same."""
    fits = qkv.device.type == "cpu" and qkv.dtype == torch.float32 and not torch.compiler.is_compiling()
    return fits and _kernel()[0] is not None


def backend(device):
    """What serves a device in eager mode and float32: 'C (gcc, OpenMP)', or 'plain torch' and perhaps a reason."""
    return _kernel()[1] if torch.device(device).type == "cpu" else "plain torch"


def attend(qkv, heads, norm=False, rope=None):
    """
    qkv: (B, T, 3·C), queries, keys and values of each token -> (B, T, C). norm: normalise queries and keys; rope:
    cosine and sine, (T, D/2) each, that turn them, or None.
    """
    _, T, width = qkv.shape
    if width % (3 * heads):
        raise ValueError(f"qkv: expected (B, T, 3·{heads}·D) for {heads} heads, received {tuple(qkv.shape)}")
    cos, sin = rope or (None, None)
    for name, table in (("cos", cos), ("sin", sin)):
        expected = (T, width // (6 * heads))
        if rope and (table.shape != expected or 2 * expected[1] * 3 * heads != width):
            raise ValueError(f"{name}: expected {expected} for qkv {tuple(qkv.shape)}, received {tuple(table.shape)}")
    return _Attention.apply(qkv, heads, norm, cos, sin)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv, heads, norm, cos, sin):
        ctx.save_for_backward(qkv, cos, sin)
        ctx.rest = heads, norm
        return _kernel()[0](qkv, heads, norm, cos, sin, None)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        qkv, cos, sin = ctx.saved_tensors
        return _kernel()[0](qkv, *ctx.rest, cos, sin, grad), None, None, None, None


@functools.cache
def _kernel():
    """(The C function as a Python function, or None; what serves the CPU and why.) Decided at its first use."""
    if PLAIN:
        return None, "plain torch: WIGGLE_KERNEL=plain"
    library, description = c_library.load("attention.c", ("-ffp-contract=fast",), alone=2)
    return library and bind(library), description


def bind(library):
    """The loaded library's function: y for qkv without grad, and with grad, the gradient of y, that of qkv."""
    long, int_, pointer = ctypes.c_int64, ctypes.c_int, ctypes.c_void_p
    library.attention.argtypes = (*[long] * 4, int_, int_, *[pointer] * 6)
    library.attention.restype = None
    library.attention_scratch.argtypes, library.attention_scratch.restype = (long, long), long

    def run(qkv, heads, norm, cos, sin, grad):
        B, T, width = qkv.shape
        D, threads = width // (3 * heads), max(1, min(torch.get_num_threads(), B * heads))
        y = torch.empty(B, T, width // 3 if grad is None else width)
        scratch = torch.empty(threads, library.attention_scratch(T, D))
        inputs = [None if t is None else t.float().contiguous() for t in (qkv, cos, sin, grad)]
        pointers = [None if t is None else t.data_ptr() for t in (*inputs, y, scratch)]
        library.attention(B, T, heads, D, threads, norm, *pointers)
        return y

    return run
