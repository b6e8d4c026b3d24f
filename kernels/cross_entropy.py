"""The loss of a language model without all of its logits, which are the largest tensor of a training step."""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F


class ChunkedCrossEntropy(torch.autograd.Function):
    """
    Mean cross entropy of the logits x @ weight.T, of which CHUNK rows exist at a time; a target of -1 is ignored.

    x: (N, C), weight: (V, C), targets: (N,) int64 -> loss, a scalar in float32. The forward pass computes a chunk's
    gradients as soon as its logits, as in Hsu et al., 2024 (Liger Kernel), so no logit is computed twice. They are
    gradients of the summed loss, and the backward pass divides by the number of targets: small ones would underflow in
    float16.
    """

    CHUNK = 1024  # rows of logits that exist at once

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        grad_x = torch.empty_like(x)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        total = torch.zeros((), device=x.device)
        chunks = zip(*(t.split(ChunkedCrossEntropy.CHUNK) for t in (x, targets, grad_x)), strict=True)
        for rows, ids, grad_rows in chunks:
            logits = (rows @ weight.T).float()  # (n, V)
            total += F.cross_entropy(logits, ids, ignore_index=-1, reduction="sum")
            counted = (ids != -1).unsqueeze(1)  # (n, 1)
            # The gradient of the summed loss with respect to the logits is softmax(logits) - onehot(ids).
            grad_logits = logits.softmax(dim=-1).scatter_add_(1, ids.clamp(min=0).unsqueeze(1), -counted.float())
            grad_logits = (grad_logits * counted).to(x.dtype)
            torch.mm(grad_logits, weight, out=grad_rows)
            grad_weight += grad_logits.T @ rows
        count = (targets != -1).sum()
        ctx.save_for_backward(grad_x, grad_weight, count)
        return total / count

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_x, grad_weight, count = ctx.saved_tensors
        scale = grad / count
        return grad_x * scale, grad_weight * scale, None
