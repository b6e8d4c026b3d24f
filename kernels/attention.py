"""
Causal self-attention, QK norm and rotary positions included, as one operation that saves nothing but its input.

For each head, on queries and keys that are normalised and rotated as in rotary.py where that is asked for:
y = softmax(q kᵀ / sqrt(D) + causal mask) v. On a CPU torch takes four passes over memory for it and keeps five tensors;
attention.c takes one pass, which halves the time at a small model's sizes. It serves float32 in eager mode, without
dropout.
"""

import ctypes
import functools

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from kernels import PLAIN
from kernels.c_library import load_library


def serves(qkv: Tensor) -> bool:
    """Whether `attend` takes qkv; where it does not, the caller computes the same by torch's own operations."""
    fits = qkv.device.type == "cpu" and qkv.dtype == torch.float32 and not torch.compiler.is_compiling()
    fits = fits and type(qkv) is Tensor  # a subclass, such as a fake tensor, may have no numbers where C reads them
    return fits and _load_library()[0] is not None


def backend(device: torch.device | str) -> str:
    """What serves a device in eager mode and float32: 'C (gcc, OpenMP)', or 'plain torch' and perhaps a reason."""
    return _load_library()[1] if torch.device(device).type == "cpu" else "plain torch"


def attend(qkv: Tensor, heads: int, norm: bool = False, rope: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """
    qkv: (B, T, 3·C), queries, keys and values of each token -> (B, T, C).

    norm: normalise queries and keys. rope: cosine and sine of the positions' angles, (T, D/2) each, by which queries
    and keys are rotated, or None. Raises ValueError where the shapes do not fit each other.
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


def conversation_mask(begins: Tensor) -> Tensor:
    """
    What each token may look at where conversations stand side by side in a sequence: its own one's, up to itself.

    begins: (B, T), as in GPT.forward -> (B, 1, T, T), True where the third dimension's token sees the fourth's.
    """
    places = torch.arange(begins.size(1), device=begins.device)
    return ((places <= places[:, None]) & (places >= begins[:, :, None])).unsqueeze(1)


def serves_step(qkv: Tensor, keys: Tensor) -> bool:
    """Whether `attend_step` takes qkv and the kept keys; where it does not, as with `serves`."""
    return qkv.size(1) == 1 and keys.dtype == torch.float32 and not torch.is_grad_enabled() and serves(qkv)


def attend_step(
    qkv: Tensor,
    heads: int,
    norm: bool,
    rope: tuple[Tensor, Tensor] | None,
    keys: Tensor,
    values: Tensor,
    place: int,
) -> Tensor:
    """
    `attend` for the token at `place` alone, in one call instead of some twenty operations on a few numbers each.

    qkv: (B, 1, 3·C), norm and rope as there. keys and values: contiguous (B, H, tokens, D), of those before it, ready
    to be multiplied; its own are added. -> (B, 1, C).
    """
    (B, _, width), tokens = qkv.shape, keys.size(2)
    C, D = width // 3, width // (3 * heads)
    if keys.size(0) != B or place >= tokens:
        raise ValueError(f"the cache holds {keys.size(0)} sequences of {tokens} tokens, received {B} at place {place}")
    lib, qkv = _load_library()[0], qkv.contiguous()
    threads = max(1, min(torch.get_num_threads(), B * heads, 1 + B * C * place // 2**16))
    y, scratch = qkv.new_empty(B, 1, C), qkv.new_empty(threads * lib.attention_step_scratch(place + 1, D))
    cos, sin = (None, None) if rope is None else (table.data_ptr() for table in rope)
    pointers = (t.data_ptr() for t in (keys, values, y, scratch))
    sizes = B, heads, D, tokens, place + 1, threads, norm
    lib.attention_step(*sizes, qkv.data_ptr(), cos, sin, *pointers)
    return y


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, qkv: Tensor, heads: int, norm: bool, cos: Tensor | None, sin: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(qkv, cos, sin)
        ctx.heads, ctx.norm = heads, norm
        return _run_c(_load_library()[0], heads, norm, qkv, cos, sin, None)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        qkv, cos, sin = ctx.saved_tensors
        return _run_c(_load_library()[0], ctx.heads, ctx.norm, qkv, cos, sin, grad), None, None, None, None


@functools.cache
def _load_library() -> tuple[ctypes.CDLL | None, str]:
    """(attention.c's library or None, what `backend` says of the CPU), decided at the first use."""
    if PLAIN:
        return None, "plain torch: WIGGLE_KERNEL=plain"
    library, description = load_library("attention.c", ("-ffp-contract=fast",), max_threads_without_openmp=2)
    if library is not None:
        declare(library)
    return library, description


def declare(library: ctypes.CDLL) -> None:
    """Declare the C functions' arguments."""
    long, int_, pointer = ctypes.c_int64, ctypes.c_int, ctypes.c_void_p
    library.attention.argtypes = (*[long] * 4, int_, int_, *[pointer] * 6)
    library.attention.restype = None
    library.attention_scratch.argtypes, library.attention_scratch.restype = (long, long), long
    library.attention_step.argtypes = (*[long] * 5, int_, int_, *[pointer] * 7)
    library.attention_step.restype = None
    library.attention_step_scratch.argtypes, library.attention_step_scratch.restype = (long, long), long


def _run_c(
    lib: ctypes.CDLL, heads: int, norm: bool, qkv: Tensor, cos: Tensor | None, sin: Tensor | None, grad: Tensor | None
) -> Tensor:
    """y (B, T, C) without grad; the gradient of qkv (B, T, 3·C) with grad, the gradient of y."""
    B, T, width = qkv.shape
    D, threads = width // (3 * heads), max(1, min(torch.get_num_threads(), B * heads))
    inputs = [None if t is None else t.float().contiguous() for t in (qkv, cos, sin, grad)]
    y = inputs[0].new_empty(B, T, width // 3 if grad is None else width)
    scratch = y.new_empty(threads, lib.attention_scratch(T, D))
    pointers = [None if t is None else t.data_ptr() for t in (*inputs, y, scratch)]
    lib.attention(B, T, heads, D, threads, norm, *pointers)
    return y
