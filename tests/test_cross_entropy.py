"""The loss in chunks against torch's cross entropy of all the logits."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy as plain_cross_entropy

from kernels import cross_entropy
from kernels.cross_entropy import chunked_cross_entropy, rows_at_once

ROOT = Path(__file__).parents[1]
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
CUDA = torch.device("cuda", 0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK", 7)


@pytest.mark.parametrize("rows", [1, 7, 20])  # less than a chunk, one chunk, two and a part
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 5e-3)])
def test_loss_and_gradients_are_those_of_all_logits(small_chunks, rows, dtype, tolerance):
    x, weight = torch.randn(rows, 16).to(dtype), torch.randn(31, 16).to(dtype)
    targets = torch.randint(31, (rows,))
    targets[1::3] = -1  # ignored
    found = []
    for chunked in (True, False):
        a, b = x.clone().requires_grad_(), weight.clone().requires_grad_()
        if chunked:
            loss = chunked_cross_entropy(a, b, targets)
        else:
            loss = plain_cross_entropy(a.float() @ b.float().T, targets, ignore_index=-1)
        (3 * loss).backward()
        found.append((loss, a.grad, b.grad))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, atol=tolerance, rtol=tolerance)


def test_autograd_keeps_gradients_and_no_logits():
    x, weight = torch.randn(50, 8, requires_grad=True), torch.randn(4000, 8, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        chunked_cross_entropy(x, weight, torch.zeros(50, dtype=torch.long))
    assert sorted(t.shape for t in kept) == [(), x.shape, weight.shape]


def test_small_gradients_survive_float16():
    """Divided by 60,000 targets before a GradScaler's factor multiplies them, those of x would be 0."""
    rows, scale = 60_000, 65_536.0
    x, weight = torch.zeros(rows, 1, dtype=torch.float16), torch.tensor([[1e-3], [2e-3]], dtype=torch.float16)
    loss = chunked_cross_entropy(x.requires_grad_(), weight, torch.zeros(rows, dtype=torch.long))
    (scale * loss).backward()
    expected = torch.full((rows, 1), 0.5 * 1e-3 * scale / rows).half()  # softmax gives each of the two ids 0.5
    torch.testing.assert_close(x.grad, expected, atol=0, rtol=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_gradients_sums_are_not_rounded_to_the_type_of_their_terms(small_chunks, dtype):
    """x and weight in float32 get gradients as exact as low-precision logits allow: no sum is rounded to 8 bits."""
    x, weight = torch.randn(50, 16, generator=seeded()), torch.randn(31, 16, generator=seeded(1))
    targets = torch.randint(31, (50,), generator=seeded(2))
    a, b = x.clone().requires_grad_(), weight.clone().requires_grad_()
    chunked_cross_entropy(a, b, targets, dtype).backward()
    low_x, low_weight = x.to(dtype), weight.to(dtype)
    grad = (low_x @ low_weight.T).float().softmax(1) - torch.nn.functional.one_hot(targets, 31)
    grad = grad.to(dtype).double() / 50  # the one rounding that a product in this type needs
    assert a.grad.dtype == b.grad.dtype == torch.float32
    torch.testing.assert_close(a.grad.double(), grad @ low_weight.double(), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(b.grad.double(), grad.T @ low_x.double(), rtol=1e-4, atol=1e-7)


# --- under torch.compile ---


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_the_compiled_operation_is_as_declared(dtype):
    arguments = torch.randn(9, 4), torch.randn(5, 4), torch.randint(5, (9,)), dtype
    checks = "test_schema", "test_faketensor"
    torch.library.opcheck(cross_entropy._loss_and_gradients, arguments, test_utils=checks)


def test_torch_compile_changes_no_bit_and_breaks_no_graph(small_chunks):
    x, weight = torch.randn(20, 16, generator=seeded()), torch.randn(31, 16, generator=seeded(1))
    targets = torch.randint(31, (20,), generator=seeded(2))
    torch._dynamo.reset()
    found = []
    for function in (chunked_cross_entropy, torch.compile(chunked_cross_entropy, backend="aot_eager", fullgraph=True)):
        a, b = x.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = function(a, b, targets)
        loss.backward()
        found.append((loss, a.grad, b.grad))
    assert all(map(torch.equal, *found))


# --- on a card ---


def test_a_cards_chunk_follows_its_memory_and_this_processs_cap(monkeypatch):
    """Not what is free now, which changes from step to step, and with it the rounding of sums."""
    monkeypatch.setattr(cross_entropy, "_load_kernel", lambda: lambda logits, ids: None)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda index: fraction)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(total_memory=total))
    total, fraction = 8 * 2**30, 1.0
    rows = rows_at_once(CUDA, 50304, torch.bfloat16)
    assert rows % 128 == 0 and 0.9 * total / 32 < rows * 50304 * 2 <= total / 32
    total = 80 * 2**30
    assert rows_at_once(CUDA, 50304, torch.bfloat16) > 9 * rows
    fraction = 0.1
    assert rows_at_once(CUDA, 50304, torch.bfloat16) == rows
    fraction = 1e-6
    assert rows_at_once(CUDA, 50304, torch.bfloat16) == 128


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="test_triton_on_its_interpreter runs this one")
@pytest.mark.parametrize("vocabulary", [31, 4096, 9001])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_triton_gives_the_loss_and_gradients_of_plain_torch(dtype, vocabulary):
    from kernels.cross_entropy_triton import differentiate

    logits = 4 * torch.randn(5, vocabulary, generator=seeded())
    logits[1, 3], logits[2] = 80.0, 0.0  # one id that is nearly certain, and none that is likelier than another
    logits, ids = logits.to(dtype), torch.tensor([0, 3, -1, vocabulary - 1, 7])
    loss, grad = cross_entropy._differentiate_plain(logits, ids)
    found, written = differentiate(logits.clone(), ids)
    torch.testing.assert_close(found, loss, rtol=1e-5, atol=1e-5)
    ulp = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]  # the interpreter cuts
    torch.testing.assert_close(written, grad, rtol=ulp, atol=1e-6)
    assert not written[2].any() and written.dtype == dtype


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="test_triton_on_its_interpreter runs this one")
def test_triton_lets_nan_and_infinity_through():
    from kernels.cross_entropy_triton import differentiate

    logits = torch.randn(4, 9, generator=seeded())
    logits[0, 2], logits[1, 2], logits[2, 2] = torch.nan, torch.inf, -torch.inf
    loss, grad = differentiate(logits.clone(), torch.tensor([1, 1, 1, 1]))
    assert loss.isnan() and grad[:2].isnan().all() and not grad[2:].isnan().any() and grad[2, 2] == 0


@pytest.mark.slow
def test_triton_on_its_interpreter():
    """The tests of the Triton kernel, in a process of their own: Triton chooses its interpreter when it is imported."""
    pytest.importorskip("triton", minversion="3.8")  # older interpreters fail with numpy 2.4
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    tests = "test_triton_gives or test_triton_lets"
    command = [sys.executable, "-m", "pytest", __file__, "--noconftest", "-n0", "-k", tests]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and " passed" in result.stdout and "skipped" not in result.stdout, result.stdout


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_a_card_gives_the_loss_and_gradients_of_the_cpu_cuda(dtype):
    x, weight = torch.randn(300, 64, generator=seeded()), torch.randn(1000, 64, generator=seeded(1))
    targets = torch.randint(1000, (300,), generator=seeded(2))
    targets[::5] = -1
    found = []
    for device in ("cpu", "cuda"):
        a, b = (t.to(device).requires_grad_() for t in (x, weight))
        loss = chunked_cross_entropy(a, b, targets.to(device), dtype)
        loss.backward()
        found.append([t.cpu() for t in (loss, a.grad, b.grad)])
    for ours, expected in zip(*found, strict=True):
        assert (ours - expected).norm() < (1e-4 if dtype == torch.float32 else 2e-2) * expected.norm()
