"""oscillation.c, called by ctypes."""

import ctypes

import torch

from . import c_library

FLAGS = ("-ffp-contract=off",)  # it says itself where to fuse: a phase must be rounded as torch rounds it


def load():
    """Returns (the function `run` or None, what serves the CPU and why)."""
    library, description = c_library.load("oscillation.c", FLAGS, alone=5)
    return library and bind(library), description


def bind(library):
    """The loaded library's function, called as `_plain` in oscillation.py is."""
    long, int_, pointer = ctypes.c_int64, ctypes.c_int, ctypes.c_void_p
    library.oscillation.argtypes = (long, long, long, int_, int_, ctypes.c_float, *[pointer] * 5)
    library.oscillation.restype = None

    def run(x, vectors, threshold, grad):
        dtype, features, rows = x.dtype, x.shape[-1], x.numel() // max(x.shape[-1], 1)
        blocks = min(-(-rows // 32), 64)  # of rows; by x's shape alone, so that no sum depends on the threads
        threads = min(torch.get_num_threads(), 1 + x.numel() // 32768)
        x, *vectors = (t.float().contiguous() for t in (x, *vectors))
        y, sums = torch.empty_like(x), None
        if grad is not None:
            grad, sums = grad.float().contiguous(), torch.empty(1 + blocks, len(vectors), features)
        w = (pointer * len(vectors))(*[v.data_ptr() for v in vectors])
        x_, g_, y_, s_ = (None if t is None else t.data_ptr() for t in (x, grad, y, sums))
        library.oscillation(rows, features, blocks, len(vectors), threads, threshold, x_, w, g_, y_, s_)
        return y.to(dtype), None if sums is None else sums[0].clone()

    return run
