"""The loss in chunks against torch's cross entropy of all the logits."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from kernels.cross_entropy import ChunkedCrossEntropy


@pytest.mark.parametrize("rows", [1, 7, 20])  # less than a chunk, one chunk, two and a part
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 5e-3)])
def test_loss_and_gradients_are_those_of_all_logits(monkeypatch, rows, dtype, tolerance):
    monkeypatch.setattr(ChunkedCrossEntropy, "CHUNK", 7)
    x, weight = torch.randn(rows, 16).to(dtype), torch.randn(31, 16).to(dtype)
    targets = torch.randint(31, (rows,))
    targets[1::3] = -1  # ignored
    found = []
    for chunked in (True, False):
        a, b = x.clone().requires_grad_(), weight.clone().requires_grad_()
        if chunked:
            loss = ChunkedCrossEntropy.apply(a, b, targets)
        else:
            loss = cross_entropy(a.float() @ b.float().T, targets, ignore_index=-1)
        (3 * loss).backward()
        found.append((loss, a.grad, b.grad))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, atol=tolerance, rtol=tolerance)


def test_autograd_keeps_gradients_and_no_logits():
    x, weight = torch.randn(50, 8, requires_grad=True), torch.randn(4000, 8, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ChunkedCrossEntropy.apply(x, weight, torch.zeros(50, dtype=torch.long))
    assert sorted(t.shape for t in kept) == [(), x.shape, weight.shape]


def test_small_gradients_survive_float16():
    """Divided by 60,000 targets before a GradScaler's factor multiplies them, those of x would be 0."""
    rows, scale = 60_000, 65_536.0
    x, weight = torch.zeros(rows, 1, dtype=torch.float16), torch.tensor([[1e-3], [2e-3]], dtype=torch.float16)
    loss = ChunkedCrossEntropy.apply(x.requires_grad_(), weight, torch.zeros(rows, dtype=torch.long))
    (scale * loss).backward()
    expected = torch.full((rows, 1), 0.5 * 1e-3 * scale / rows).half()  # softmax gives each of the two ids 0.5
    torch.testing.assert_close(x.grad, expected, atol=0, rtol=1e-2)
