"""The loss of a language model without its logits: they are the largest tensor of a training step."""

import torch
from torch.nn import functional as F


class ChunkedCrossEntropy(torch.autograd.Function):
    """
    mean cross_entropy(x @ weight.T, targets), a target of -1 ignored, without ever holding all the logits.

    x: (N, C), weight: (V, C), targets: (N,) -> loss in float32. A chunk's gradients are taken as soon as its logits
    are there, as in Hsu et al., 2024 (Liger Kernel), so nothing is computed twice. They are divided by the number of
    targets last: in float16 they would vanish.
    """

    CHUNK = 1024  # rows whose logits exist at once

    @staticmethod
    def forward(ctx, x, weight, targets):
        grad_x = torch.empty_like(x)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        total = torch.zeros((), device=x.device)
        for rows, wanted, grad in zip(*(t.split(ChunkedCrossEntropy.CHUNK) for t in (x, targets, grad_x)), strict=True):
            logits = (rows @ weight.T).float()  # (n, V)
            total += F.cross_entropy(logits, wanted, ignore_index=-1, reduction="sum")
            kept = (wanted != -1).unsqueeze(1)
            slope = logits.softmax(dim=-1).scatter_add_(1, wanted.clamp(min=0).unsqueeze(1), -kept.float())
            slope = (slope * kept).to(x.dtype)  # of the summed loss by the logits
            torch.mm(slope, weight, out=grad)
            grad_weight += slope.T @ rows
        count = (targets != -1).sum()
        ctx.save_for_backward(grad_x, grad_weight, count)
        return total / count

    @staticmethod
    def backward(ctx, grad):
        grad_x, grad_weight, count = ctx.saved_tensors
        scale = grad / count
        return grad_x * scale, grad_weight * scale, None
