"""event_mlp.py's computation on the CPU, in float32, by event_mlp.c."""

import ctypes
import functools

import torch
import torch.nn as nn
from torch import Tensor

from kernels import PLAIN, screen
from kernels.c_library import load_library
from kernels.event_mlp_base import EventMLP
from kernels.huge_pages import hold_in_huge_pages

BLOCK = 128  # of event_mlp.c


class EventMLPOnCPU(EventMLP):
    """Beside the model's own weights it keeps 7 bytes for each number of c_fc.weight."""

    def lay_out(self) -> None:
        self.tokens, self.blocks = 0, -(-self.features // BLOCK)
        self.found = torch.zeros(self.blocks, 2, dtype=torch.int64, device="cpu")
        weight, bias, projected, _, threshold, omega, phi, _ = self.kept
        self.screen = screen.screen_rows(weight, with_rest=True)
        columns = projected.t().contiguous()
        self.arrays = (*self.screen, weight, columns, bias, threshold, omega, phi, self.constant())
        hold_in_huge_pages(self.screen.coarse, self.screen.rest, columns)
        self.pointers = screen.pointers_to(*self.arrays)

    def serves(self, x: Tensor, *modules: nn.Module) -> bool:
        return screen.is_one_token(x, self.c_fc.in_features) and self.takes(modules)

    def __call__(self, x: Tensor) -> Tensor:
        C, stride, threads = x.numel(), self.screen.stride, min(torch.get_num_threads(), self.blocks)
        x, y = x.contiguous(), x.new_empty(x.shape)
        halves, shrunk = x.new_empty(2 * stride, dtype=torch.uint8), x.new_empty(stride)
        sums = x.new_empty(self.blocks, C)
        memory = [t.data_ptr() for t in (x, halves, shrunk, sums, self.found, y)]
        load_kernel()[0].event_mlp(self.features, C, stride, threads, self.pointers, *memory)
        self.tokens += 1
        return y

    def bytes_read(self) -> float:
        width, (candidates, firing) = self.c_fc.in_features, self.shares()
        return self.features * (self.screen.row_bytes + 4 + 2 * self.screen.stride * candidates + 4 * width * firing)


@functools.cache
def load_kernel() -> tuple[ctypes.CDLL | None, str]:
    """(event_mlp.c's library or None, what serves one-token steps on the CPU and why), decided at the first use."""
    if PLAIN:
        return None, "plain torch: WIGGLE_KERNEL=plain"
    library, description = load_library("event_mlp.c", screen.FLAGS, max_threads_without_openmp=2)
    if library is not None:
        declare(library)
    return library, description


def declare(library: ctypes.CDLL) -> None:
    """Declare the C function's arguments."""
    long, pointer = ctypes.c_int64, ctypes.c_void_p
    library.event_mlp.argtypes = (long, long, long, ctypes.c_int, *[pointer] * 7)
    library.event_mlp.restype = None
