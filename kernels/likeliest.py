"""
The likeliest of a large vocabulary, for one token: exact logits of all that can be among the k largest.

Every row of lm_head is screened through an 8-bit copy (screen.py). The k-th largest lower end of the rows' intervals is
at most the k-th largest logit, so a row whose interval lies below it is not among the k. Here the lower ends of the
best of every 16 rows alone are compared, which finds little less. A quarter of the matrix is read, and some rows.
"""

import torch
import torch.nn as nn
from torch import Tensor

from kernels import screen
from kernels.huge_pages import hold_in_huge_pages
from kernels.matmul import Linear

LARGE = 2**22  # numbers in a matrix from which screening it saves more than its calls cost
FEW = 16  # of screen.c


class LikeliestRows(screen.LaidOut):
    """The first `rows` rows of lm_head's weight, laid out for one-token steps: 1 byte a number beside the weight."""

    def __init__(self, head: nn.Linear, rows: int):
        self.head, self.rows = head, rows
        super().__init__(head)
        self.screen = screen.screen_rows(self.kept[0][:rows])
        hold_in_huge_pages(self.screen.coarse)
        self.pointers = screen.pointers_to(*self.screen)

    def weights(self) -> tuple[Tensor]:
        return (self.head.weight,)

    def serves(self, x: Tensor, k: int, head: nn.Module, rows: int) -> bool:
        """Whether the k likeliest of so many rows of this head may be asked for x, its input, and are few enough."""
        asked = 2 * FEW * k <= rows == self.rows and screen.is_one_token(x, self.head.in_features)
        return asked and self.takes((head,))

    def __call__(self, x: Tensor, k: int) -> tuple[Tensor, Tensor] | None:
        """
        x: (..., C) with C numbers in all -> logits and ids, (1, n) each: the k likeliest and others, in order of ids;
        or None where x is not finite.
        """
        C, threads, library = x.numel(), torch.get_num_threads(), screen.load_kernel()[0]
        x, halves = x.contiguous(), x.new_empty(2 * self.screen.stride, dtype=torch.uint8)
        upper, best = x.new_empty(self.rows), x.new_empty(-(-self.rows // FEW))
        memory = [t.data_ptr() for t in (x, halves, upper, best)]
        if not library.screen_products(self.rows, C, self.screen.stride, threads, self.pointers, *memory):
            return None
        least = best.topk(k).values[-1].item()
        ids, logits = x.new_empty(1, self.rows, dtype=torch.int64), x.new_empty(1, self.rows)
        memory = [t.data_ptr() for t in (upper, self.kept[0], x, ids, logits)]
        n = library.products_of_likely(self.rows, C, threads, least, *memory)
        return logits[:, :n], ids[:, :n]


def prepare(head: nn.Linear, rows: int) -> LikeliestRows | None:
    """The LikeliestRows of a head's first `rows` rows; None where no kernel serves it, or it is too small to gain."""
    if type(head) not in (nn.Linear, Linear) or head.bias is not None:
        return None
    if rows * head.in_features < LARGE or not screen.fits(head.weight):
        return None
    return LikeliestRows(head, rows)
