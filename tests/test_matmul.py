"""Linear is nn.Linear, whichever library computes its product."""

import math

import pytest
import torch
from torch.nn.functional import linear

from kernels import matmul
from kernels.matmul import Linear


@pytest.fixture
def calls(monkeypatch):
    """-> the shape of the first matrix of each call to oneDNN, which serves any size on any processor here."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        pytest.skip("this build of torch has no oneDNN beside MKL")
    calls = []
    monkeypatch.setattr(matmul, "_is_amd", lambda: True)
    run = matmul._one_dnn.__wrapped__()
    monkeypatch.setattr(matmul, "_one_dnn", lambda: lambda a, b, bias: calls.append(a.shape) or run(a, b, bias))
    monkeypatch.setattr(matmul, "SMALL_PRODUCT", 0)
    return calls


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(40, 24), (24, 40), (24, 24), (65, 3)])
def test_onednn_gives_linears_output_and_gradients(calls, size, bias):
    layer = Linear(*size, bias=bias)
    layer.weight.data += torch.randn_like(layer.weight)
    x, grad = torch.randn(3, 7, size[0], requires_grad=True), torch.randn(3, 7, size[1])
    wanted = [x, *layer.parameters()]
    y, expected = layer(x), linear(x, layer.weight, layer.bias)
    assert y.shape == expected.shape and len(calls) == 1
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
    ours, theirs = (torch.autograd.grad(out, wanted, grad) for out in (y, expected))
    assert len(calls) == 3
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_other_shapes_fare_as_with_linear(calls):
    layer = Linear(8, 6)
    assert layer(torch.randn(8)).shape == (6,) and layer(torch.randn(0, 8)).shape == (0, 6)
    for wrong in (torch.randn(4, 16), torch.randn(2, 4)):
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), torch.no_grad():
            layer(wrong)


def test_second_derivatives_are_linears(calls):
    layer, x = Linear(5, 4), torch.randn(3, 5, requires_grad=True)
    (dx,) = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
    (ours,) = torch.autograd.grad(dx.sum(), layer.weight)
    (dx,) = torch.autograd.grad(linear(x, layer.weight, layer.bias).pow(3).sum(), x, create_graph=True)
    (expected,) = torch.autograd.grad(dx.sum(), layer.weight)
    assert len(calls) > 3
    torch.testing.assert_close(ours, expected)


def test_only_the_wanted_gradients_are_computed(calls):
    layer = Linear(8, 6).requires_grad_(False)
    layer(torch.randn(4, 8, requires_grad=True)).sum().backward()
    assert len(calls) == 2
    layer.requires_grad_(True)(torch.randn(4, 8)).sum().backward()
    assert len(calls) == 4


def test_nan_and_infinity_come_through(calls):
    layer = Linear(8, 6, bias=False)
    layer.weight.data.fill_(1.0)
    assert layer(torch.full((4, 8), math.nan)).isnan().all() and layer(torch.full((4, 8), math.inf)).isinf().all()
    assert len(calls) == 2


def test_onednn_serves_large_float32_products_on_the_cpu_alone(calls, monkeypatch):
    x = torch.randn(4, 8)
    assert Linear(8, 6).double()(x.double()).dtype == torch.float64
    assert Linear(8, 6, device="meta")(x.to("meta")).shape == (4, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert Linear(8, 6)(x).dtype == torch.bfloat16
    monkeypatch.setattr(matmul, "SMALL_PRODUCT", 4 * 8 * 6 + 1)
    Linear(8, 6)(x)
    assert not calls
    Linear(8, 7)(x)
    assert len(calls) == 1


def test_torch_serves_where_onednn_is_not_known_to_be_faster(monkeypatch):
    monkeypatch.setattr(matmul, "_is_amd", lambda: False)
    assert matmul._one_dnn.__wrapped__() is None
    monkeypatch.setattr(matmul, "_one_dnn", lambda: None)
    monkeypatch.setattr(matmul, "SMALL_PRODUCT", 0)
    layer, x = Linear(8, 6), torch.randn(4, 8)
    assert torch.equal(layer(x), linear(x, layer.weight, layer.bias))
    assert matmul.backend("cpu") == matmul.backend("meta") == "torch's own choice"


@pytest.mark.parametrize("shape", [(6, 4), (32, 5), (7, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_with_one_vector_is_linears(monkeypatch, shape, bias):
    layer, x, alone = Linear(shape[1], shape[0], bias=bias), torch.randn(1, 1, shape[1]), []
    vector_product = matmul.vector_product
    monkeypatch.setattr(matmul, "vector_product", lambda *args: alone.append(args) or vector_product(*args))
    monkeypatch.setattr(matmul, "CACHED_MATRIX", 0)
    expected = linear(x, layer.weight, layer.bias)
    assert torch.equal(layer(x), expected) and not alone  # where a gradient is wanted, nothing changes
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)
        torch.testing.assert_close(layer(x[0, 0]), expected[0, 0])
        assert len(alone) == 2
        torch.testing.assert_close(layer(x.expand(2, 3, -1)), expected.expand(2, 3, -1))
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        assert len(alone) == 2
