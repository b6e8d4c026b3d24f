"""The oscillation's kernel for the CPU: oscillation.c, called through ctypes."""

import ctypes
import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kernels.c_library import load_library
from kernels.oscillation_plain import number_of_sums

# The C code says itself where to fuse a multiplication with an addition: a phase must be rounded as torch rounds it.
FLAGS = ("-ffp-contract=off",)


def load_kernel() -> tuple[Callable | None, str]:
    """Returns (a kernel with the arguments of oscillation_plain.run_plain, or None; what serves the CPU and why)."""
    library, description = load_library("oscillation.c", FLAGS, max_threads_without_openmp=5)
    return library and kernel_of(library), description


def kernel_of(library: ctypes.CDLL) -> Callable:
    """Declare the C function's arguments and return it with those of oscillation_plain.run_plain."""
    long, int_, pointer = ctypes.c_int64, ctypes.c_int, ctypes.c_void_p
    library.oscillation.argtypes = (long, long, long, int_, int_, int_, ctypes.c_float, *[pointer] * 5)
    library.oscillation.restype = None
    return functools.partial(_run_c, library)


def _run_c(
    lib: ctypes.CDLL, x: Tensor, vectors: Sequence[Tensor], threshold: float, grad: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    dtype, features, rows = x.dtype, x.shape[-1], x.numel() // max(x.shape[-1], 1)
    blocks = min(-(-rows // 32), 64)  # of rows: a function of x's shape alone, so that no sum depends on the threads
    threads = min(torch.get_num_threads(), 1 + x.numel() // 32768)  # one more for every 32,768 numbers
    x, *vectors = (t.float().contiguous() for t in (x, *vectors))
    grad = None if grad is None else grad.float().contiguous()
    y, ns = torch.empty_like(x), number_of_sums(vectors, grad)
    sums = x.new_empty(1 + blocks, ns, features) if ns else None
    w = (ctypes.c_void_p * len(vectors))(*[v.data_ptr() for v in vectors])
    x_, g_, y_, s_ = (None if t is None else t.data_ptr() for t in (x, grad, y, sums))
    lib.oscillation(rows, features, blocks, len(vectors), ns, threads, threshold, x_, w, g_, y_, s_)
    return y.to(dtype), None if sums is None else sums[0].clone()
