"""
A matrix's rows screened through an 8-bit copy: an interval for each row's product with a vector, which no rounding
escapes, at a quarter of the float32 rows' bytes.

A row is w = s q + e with 8-bit integers q, the vector x = d X + r with 16-bit integers X. By Cauchy and Schwarz

    |w·x - s d (q·X)| <= |e| |x| + s |q| |r| <= |e| (|x| + |r|) + |w| |r|,       since s |q| <= |w| + |e|,

and q·X is exact, in integers. A float32 product of n numbers is off by at most n u / (1 - n u) |w| |x| with u = 2^-24,
in whatever order it is summed up (Higham, 2002, section 3.1), which widens the interval once more. So the interval
holds the product that any float32 implementation computes. At width 768 its half width is about a fifth of the
product's standard deviation over rows.
"""

import ctypes
import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn as nn
from torch import Tensor

from kernels import PLAIN
from kernels.c_library import load_library

CHUNK, ROWS = 64, 4  # of screen.c
WIDEST = 66_000  # numbers in a row, up to which sums of products of 8-bit numbers fit 32 bits
FLAGS = ("-ffp-contract=off",)


class Screen(NamedTuple):
    """What screen.c reads of a matrix (N, K), at 1 byte a number, and 2 more with `rest`. The vectors are (N,)."""

    coarse: Tensor  # q, int8 (N / ROWS, K / CHUNK, ROWS, CHUNK), both rounded up and padded with zeros
    scale: Tensor  # s, float32, as the next three
    error: Tensor  # at least |e|
    norm: Tensor  # at least |w|
    sum: Tensor  # 128 times the sum of q
    rest: Tensor | None  # int16 (N, K), K rounded up likewise: w / s = q + rest / 65536, rounded; or None
    spread: Tensor  # uint8: whether the row's numbers are too unlike for q and rest to hold all of them well

    @property
    def stride(self) -> int:
        """Bytes of a row of the copy."""
        return self.coarse.size(1) * CHUNK

    @property
    def row_bytes(self) -> int:
        """Bytes that are read of a row to screen it."""
        return self.stride + 4 * 4


def screen_rows(weight: Tensor, with_rest: bool = False) -> Screen:
    """weight: (N, K), contiguous, in float32 on the CPU -> its Screen, without rest or with it. Needs the kernel."""
    N, K = weight.shape
    coarse = weight.new_zeros(-(-N // ROWS), -(-K // CHUNK), ROWS, CHUNK, dtype=torch.int8)
    rest = weight.new_zeros(N, coarse.size(1) * CHUNK, dtype=torch.int16) if with_rest else None
    screen = Screen(coarse, *weight.new_empty(4, N), rest, weight.new_empty(N, dtype=torch.uint8))
    pointers = [None if t is None else t.data_ptr() for t in (weight, *screen)]
    load_kernel()[0].screen_rows(N, K, screen.stride, torch.get_num_threads(), *pointers)
    return screen


class LaidOut:
    """
    Weights of a model laid out once more, as steps of one token read them, for as long as none of them changes.

    modules: those whose weights these are. A subclass names the weights in `weights`. A model that is copied or pickled
    goes without, and lays out its own.
    """

    def __init__(self, *modules: nn.Module):
        self.modules = modules
        # As long as these are kept, no other tensor can have their addresses, by which a change is noticed.
        self.kept = [None if t is None else t.detach() for t in self.weights()]
        self.state, self.sums = self._state(), self._sums()

    def weights(self) -> tuple[Tensor | None, ...]:
        """The tensors as the model has them now."""
        raise NotImplementedError

    def _state(self) -> list[tuple[int, int] | None]:
        """What changes with any of the weights: where each lies, and how often it was written to."""
        weights = self.weights()
        return [None if t is None else (t.data_ptr(), None if t.is_inference() else t._version) for t in weights]

    @torch.no_grad()
    def _sums(self) -> Tensor:
        """The sums of the weights' rows, one after the other: torch counts no write through .data, or through NumPy."""
        return torch.cat([t.sum(-1, dtype=torch.float32).view(-1) for t in self.weights() if t is not None])

    def is_current(self, modules: Sequence[nn.Module], whole: bool = False) -> bool:
        """Whether these modules and weights are still those that were laid out. whole: read all of them to be sure."""
        same = tuple(modules) == self.modules and self._state() == self.state
        return same and (not whole or torch.equal(self._sums(), self.sums))

    def takes(self, modules: Sequence[nn.Module]) -> bool:
        """Whether a call may stand for those of the modules: none keeps gradients or has hooks, and all are current."""
        hooks = any(m._forward_hooks or m._forward_pre_hooks for m in modules)
        return not hooks and not torch.is_grad_enabled() and self.is_current(modules)

    def __reduce__(self) -> tuple:
        return type(None), ()


def pointers_to(*tensors: Tensor | None) -> ctypes.Array:
    """The tensors' addresses, as a C function takes them."""
    return (ctypes.c_void_p * len(tensors))(*[None if t is None else t.data_ptr() for t in tensors])


def is_ordinary(t: Tensor) -> bool:
    """Whether a weight's numbers lie where they seem to, and torch counts changes of it."""
    return type(t) in (Tensor, nn.Parameter) and not t.is_inference()


def is_plain(t: Tensor) -> bool:
    """Whether a weight is ordinary, and its numbers lie in a row, in float32 on the CPU, as C reads them."""
    return is_ordinary(t) and t.device.type == "cpu" and t.dtype == torch.float32 and t.is_contiguous()


def is_one_token(x: Tensor, width: int) -> bool:
    """Whether x is a token of that width, in float32 on the CPU, whose products are wanted in float32."""
    kind = x.numel() == width and x.dtype == torch.float32 and x.device.type == "cpu"
    return kind and not torch.is_autocast_enabled("cpu")


def fits(weight: Tensor) -> bool:
    """Whether a matrix can be screened here."""
    return is_plain(weight) and weight.size(1) <= WIDEST and load_kernel()[0] is not None


@functools.cache
def load_kernel() -> tuple[ctypes.CDLL | None, str]:
    """(screen.c's library or None, what serves the CPU and why), decided at the first use."""
    if PLAIN:
        return None, "plain torch: WIGGLE_KERNEL=plain"
    library, description = load_library("screen.c", FLAGS, max_threads_without_openmp=2)
    if library is not None:
        declare(library)
    return library, description


def declare(library: ctypes.CDLL) -> None:
    """Declare the C functions' arguments."""
    long, int_, pointer = ctypes.c_int64, ctypes.c_int, ctypes.c_void_p
    library.screen_rows.argtypes = (long, long, long, int_, *[pointer] * 8)
    library.screen_rows.restype = None
    library.screen_products.argtypes = (long, long, long, int_, *[pointer] * 5)
    library.screen_products.restype = int_
    library.products_of_likely.argtypes = (long, long, int_, ctypes.c_float, *[pointer] * 5)
    library.products_of_likely.restype = long
