"""
Weights held in memory pages of 2 MiB where Linux does so, for steps that read them once a token.

With pages of 4 KiB a processor looks up an address every 4 KiB, in a virtual machine through two tables, and its
prefetching ends at each page: reading all weights of a 12/12/768 model took 1.4 times as long (LOG.md).
"""

import ctypes
import functools
import sys
from collections.abc import Callable

from torch import Tensor

PAGE = 2**21
COLLAPSE = 25  # MADV_COLLAPSE, of Linux 6.1 and later: moves what lies there into huge pages, now


@functools.cache
def _madvise() -> Callable | None:
    """The C library's madvise; None where this system has no such advice."""
    return getattr(ctypes.CDLL(None), "madvise", None) if sys.platform == "linux" else None


def hold_in_huge_pages(*tensors: Tensor | None) -> None:
    """
    Move the memory of tensors on the CPU into huge pages; where that cannot be done, everything stays as it is.

    Addresses and numbers do not change. It takes 0.3 to 4 ms a MB where pages must be moved, and nothing where they
    were moved before.
    """
    madvise = _madvise()
    for t in tensors:
        if madvise is None or t is None or t.device.type != "cpu" or t.nbytes < PAGE:
            continue
        first, last = t.data_ptr() // PAGE, -(-(t.data_ptr() + t.nbytes) // PAGE)  # its ends may share a page
        madvise(ctypes.c_void_p(first * PAGE), ctypes.c_size_t((last - first) * PAGE), COLLAPSE)
