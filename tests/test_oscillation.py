"""The oscillation and its gate: each path against the equations, and what torch.compile and autograd see of it."""

import ctypes
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses import FakeTensorMode
from torch.nn.functional import gelu

from kernels import c_library, oscillation, oscillation_cpu, oscillation_plain
from kernels.oscillation import oscillate, oscillate_events, oscillate_gated
from kernels.oscillation_plain import oscillate_events_plain, oscillate_gated_plain, oscillate_plain

ROOT = Path(__file__).parent.parent
THRESHOLD = 0.3
VECTORS = {"oscillate": 3, "events": 4, "gated": 8}  # of each form
needs_compiler = pytest.mark.skipif(c_library.find_compiler() is None, reason="no C compiler")
each_form = pytest.mark.parametrize("form", VECTORS)
each_smooth_form = pytest.mark.parametrize("form", ["oscillate", "gated"])  # whose gradient is its derivative


@pytest.fixture(scope="module")
def c_kernel():
    if c_library.find_compiler() is None:
        pytest.skip("no C compiler")
    return oscillation_cpu.load_kernel()[0]


@pytest.fixture(params=["C", "plain", "triton"])
def path(request, monkeypatch):
    """Makes eager mode take this path for CPU tensors."""
    if request.param == "triton" and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("test_triton_on_its_interpreter runs this one")
    if request.param == "triton":
        from kernels.oscillation_triton import run_triton as kernel
    else:
        kernel = request.getfixturevalue("c_kernel") if request.param == "C" else oscillation_plain.run_plain
    assert kernel is not None
    monkeypatch.setattr(oscillation, "_load_kernel", lambda device_type: (kernel, request.param))
    return request.param


def make(shape, form, dtype=torch.float32, scale=2.0):
    """x and the form's vectors, drawn so that every gradient matters."""
    generator = torch.Generator().manual_seed(0)
    centres = (1.0, 0.1, 0.2, 1.5, -0.3, 1.2, 0.4, -0.1)[: VECTORS[form]]
    x = (torch.randn(shape, generator=generator) * scale).to(dtype)
    return x, [torch.randn(shape[-1], generator=generator) * 0.3 + centre for centre in centres]


def fused(x, *vectors):
    """The operation under test, in the form that takes so many vectors."""
    if len(vectors) == 4:
        return oscillate_events(x, *vectors)[0]
    return oscillate(x, *vectors) if len(vectors) == 3 else oscillate_gated(x, *vectors[:5], THRESHOLD, *vectors[5:])


def plain(x, *vectors):
    """The reference of `fused`."""
    if len(vectors) == 4:
        return oscillate_events_plain(x, *vectors)[0]
    return oscillate_plain(x, *vectors) if len(vectors) == 3 else oscillate_gated_plain(x, vectors, THRESHOLD)


def run(function, x, vectors, grad=None):
    """The output and the gradients of x and of each vector, for an upstream gradient that differs everywhere."""
    x, vectors = x.detach().requires_grad_(), [v.detach().requires_grad_() for v in vectors]
    y = function(x, *vectors)
    if grad is None:
        grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, (x, *with_gradient(vectors)), grad)]


def with_gradient(vectors):
    """Of a form's vectors those that have a gradient: thresholds have none."""
    return vectors[:3] if len(vectors) == 4 else vectors


FAST = 2**-10  # what a card's fast tanh, right to 11 bits, may move a y or dx of 16 bits


def assert_close(got, expected, rows, rtol=4e-6, atol=4e-6):
    """y and dx within rtol and atol, and the vectors' gradients within the rounding of their sums over the rows."""
    for n, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert a.dtype == b.dtype and a.shape == b.shape
        if n < 2:
            torch.testing.assert_close(a, b, rtol=rtol, atol=atol, equal_nan=True)
        else:
            rtol = 1e-5 if atol < FAST else 2**-7
            torch.testing.assert_close(a, b, rtol=rtol, atol=atol * max(1, rows) ** 0.5, equal_nan=True)


# --- values and gradients ---


@each_form
@pytest.mark.parametrize("shape", [(1, 1), (70, 43), (3, 5, 130), (17,), (0, 4), (2, 0)], ids=str)
def test_each_path_gives_the_values_and_gradients_of_the_reference(path, form, shape):
    x, vectors = make(shape, form)
    got = run(fused, x, vectors)
    assert_close(got, run(plain, x, vectors), math.prod(shape[:-1]))
    assert all(t.is_contiguous() for t in got)


@each_form
@pytest.mark.parametrize("dtype,ulp", [(torch.bfloat16, 2**-7), (torch.float16, 2**-10)], ids=["bf16", "f16"])
def test_low_precision_is_float32_rounded_once(path, form, dtype, ulp):
    """That holds for y and dx; the vectors' gradients are as good as in float32. A card's units are not as exact."""
    x, vectors = make((40, 17), form, dtype)
    assert_close(run(fused, x, vectors), run(plain, x, vectors), 40, ulp, FAST if path == "triton" else 4e-6)
    assert fused(x, *vectors).dtype == dtype


@each_form
def test_strides_change_nothing(path, form):
    """A transposed input, an expanded gradient as of sum().backward(), and vectors with a stride of 2."""
    x, vectors = make((17, 33), form)[0].t(), make((33, 17), form)[1]
    got = run(fused, x, vectors, torch.ones(()).expand(33, 17))
    assert_close(got, run(plain, x, vectors, torch.ones(33, 17)), 33)
    sparse = [torch.stack((v, -v), 1)[:, 0] for v in vectors]
    assert not sparse[0].is_contiguous() and torch.equal(fused(x, *sparse), fused(x, *vectors))


@each_form
def test_nan_and_infinity_come_through(path, form):
    x, vectors = make((9, 20), form)
    x[0, 0], x[1, 1], x[2, 2] = math.nan, math.inf, -math.inf
    broken = {"oscillate": [0], "gated": [3, 5], "events": []}[form]  # omega, or gain and omega2
    for column, n in enumerate(broken, start=5):
        vectors[n][column] = math.nan
    got, expected = run(fused, x, vectors), run(plain, x, vectors)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a.isnan(), b.isnan())
    assert got[0].isnan().sum() == 3 + 9 * len(broken)
    assert_close(got, expected, 9)


@pytest.mark.parametrize("scale", [1e3, 1e5, 1e8, 1e30])
def test_the_sine_is_right_for_large_phases(path, scale):
    """The phase is the float32 one, however large; a Triton kernel may round it once less."""
    x, (omega, phi, _) = make((64, 40), "oscillate", scale=scale)
    y, dx, domega, *_ = run(oscillate, x, (omega, phi, torch.zeros(40)), torch.ones(64, 40))
    phase = (omega * x + phi).double()
    assert (y - phase.sin() * x.double().tanh()).abs().max() < 1e-6
    expected = omega * phase.cos() * x.double().tanh() + phase.sin() * (1 - x.double().tanh() ** 2)
    assert (dx - expected).abs().max() < 4e-6
    terms = phase.cos() * x.double().tanh() * x
    assert ((domega - terms.sum(0)).abs() / terms.abs().sum(0)).max() < 1e-6


@pytest.mark.parametrize("scale", [1.0, 1e2, 1e4])
def test_the_sine_is_right_for_large_phases_of_16_bits(path, scale):
    x, (omega, phi, _) = make((64, 40), "oscillate", torch.float16, scale)
    y = oscillate(x, omega, phi, torch.zeros(40))
    expected = (omega * x.float() + phi).double().sin() * x.double().tanh()
    assert (y - expected).abs().max() < 2**-11 + (FAST if path == "triton" else 0)


@needs_compiler
def test_the_c_kernel_is_as_accurate_without_native_instructions(tmp_path):
    """The build for a CPU without fused multiply-add, and without OpenMP."""
    flags = (*c_library.FLAGS, *oscillation_cpu.FLAGS)
    library = c_library.build_library("oscillation.c", c_library.find_compiler(), flags, tmp_path)
    kernel = oscillation_cpu.kernel_of(ctypes.CDLL(str(library)))
    for scale in (2.0, 2e4):
        x, vectors = make((64, 40), "gated", scale=scale)
        assert (kernel(x, vectors, THRESHOLD, None)[0] - plain(x, *vectors)).abs().max() < 2e-6


@each_smooth_form
def test_float64_passes_gradcheck_twice(form):
    x, vectors = make((4, 3), form, torch.float64)
    inputs = [t.double().requires_grad_() for t in (x, *vectors)]
    assert torch.autograd.gradcheck(fused, inputs)
    assert torch.autograd.gradgradcheck(fused, inputs)


@each_smooth_form
def test_a_second_derivative_is_right(path, form):
    """It is not silently zero, although the kernels only know the first one."""
    x, vectors = make((5, 7), form)
    second = []
    for function in (fused, plain):
        x = x.detach().requires_grad_()
        (first,) = torch.autograd.grad(function(x, *vectors).sum(), x, create_graph=True)
        second += torch.autograd.grad(first.square().sum(), x)
    torch.testing.assert_close(*second, rtol=1e-4, atol=1e-4)


@each_form
def test_repeats_change_no_bit(path, form):
    """Nor does the number of threads, for the C kernel."""
    x, vectors = make((40, 17) if path == "triton" else (3000, 100), form)
    threads = torch.get_num_threads()
    try:
        first = run(fused, x, vectors)
        for n in (threads, threads, 1, 2, 3) if path == "C" else (threads, threads):
            torch.set_num_threads(n)
            assert all(map(torch.equal, first, run(fused, x, vectors)))
    finally:
        torch.set_num_threads(threads)


def test_vectors_of_other_types_get_gradients_of_their_type(path):
    x, vectors = make((6, 16), "gated")
    for dtype in (torch.bfloat16, torch.float64):
        typed = [v.to(dtype) for v in vectors]
        got, expected = run(fused, x, typed), run(plain, x, typed)
        assert_close(got[:2], expected[:2], 6)
        for a, b in zip(got[2:], expected[2:], strict=True):
            assert a.dtype == dtype
            torch.testing.assert_close(a, b, rtol=2**-7, atol=1e-5)


# --- hard events ---


def test_a_silent_feature_gives_exactly_its_baseline(path):
    x, vectors = make((40, 17), "events")
    y, fired = oscillate_events(x, *vectors)
    silent, (*neuron, threshold) = x.abs() <= vectors[3], vectors
    assert torch.equal(y[silent], neuron[2].expand(40, 17)[silent])
    torch.testing.assert_close(y[~silent], oscillate_plain(x, *neuron)[~silent], rtol=1e-5, atol=1e-6)
    assert torch.equal(fired, (x.abs() > threshold).sum(0).float()) and not fired.requires_grad


def test_the_surrogate_gradient_is_its_formula(path):
    """dy/dx = f'(x) [fires] + f(x) p (1 - p)/w sign(x), p = sigmoid((|x| - t)/w), w = t/4, by another way: float64."""
    x, (omega, phi, baseline, threshold) = make((40, 17), "events")
    dx, domega, dphi, dbaseline = run(fused, x, (omega, phi, baseline, threshold), torch.ones(40, 17))[1:]
    w, phase = threshold.double() / 4, (omega * x + phi).double()
    p = 1 / (1 + torch.exp(-(x.double().abs() - threshold) / w))
    tanh, fires = x.double().tanh(), x.abs() > threshold
    derivative = omega * phase.cos() * tanh + phase.sin() * (1 - tanh**2)
    expected = derivative * fires + phase.sin() * tanh * p * (1 - p) / w * x.sign()
    torch.testing.assert_close(dx, expected.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(domega, (phase.cos() * tanh * x * fires).sum(0).float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dphi, (phase.cos() * tanh * fires).sum(0).float(), rtol=1e-4, atol=1e-4)
    assert torch.equal(dbaseline, torch.full((17,), 40.0))


def test_a_threshold_of_zero_silences_nothing_but_zero(path):
    x, (*neuron, threshold) = make((40, 17), "events")
    got, expected = run(fused, x, (*neuron, 0 * threshold)), run(plain, x, neuron)
    torch.testing.assert_close(got[0], expected[0], rtol=1e-5, atol=1e-5)
    assert all(t.isfinite().all() for t in got)


# --- under autograd, autocast and torch.compile ---


def saved_bytes(function, x, parameters=()):
    """What autograd keeps of a call, without the parameters, which live anyway."""
    kept, known = [], {p.data_ptr() for p in parameters}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        function(x, *parameters)
    return sum(t.numel() * t.element_size() for t in kept if t.data_ptr() not in known)


@each_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_operation_saves_what_gelu_saves(path, form, dtype):
    x, vectors = make((6, 16), form, dtype)
    x, vectors = x.requires_grad_(), [v.requires_grad_() for v in vectors]
    assert saved_bytes(fused, x, vectors) == saved_bytes(gelu, x) == x.numel() * x.element_size()
    assert saved_bytes(plain, x, vectors) > saved_bytes(gelu, x)


@each_form
def test_autocast_leaves_vectors_and_their_gradients_in_float32(path, form):
    """The input comes in bfloat16 and the output leaves so."""
    x, vectors = make((6, 16), form)
    vectors = [v.requires_grad_() for v in vectors]
    layer = torch.nn.Linear(16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = layer(x)
        y = fused(hidden, *vectors)
    y.float().square().sum().backward()
    assert hidden.dtype == y.dtype == torch.bfloat16
    expected = run(plain, hidden, vectors, 2 * y.detach())
    for v, grad in zip(with_gradient(vectors), expected[2:], strict=True):
        assert v.grad.dtype == torch.float32
        torch.testing.assert_close(v.grad, grad, rtol=1e-5, atol=1e-5)
    assert layer.weight.grad.abs().sum() > 0


def checkpointed(x, *vectors):
    return torch.utils.checkpoint.checkpoint(fused, x, *vectors, use_reentrant=False)


@each_form
def test_gradient_checkpointing_changes_no_bit(path, form):
    x, vectors = make((6, 16), form)
    for a, b in zip(run(checkpointed, x, vectors), run(fused, x, vectors), strict=True):
        assert torch.equal(a, b)


@each_form
def test_the_compiled_operation_is_as_declared(path, form):
    """What torch.compile is told of the opaque operation, shapes, types and strides, is what it does."""
    x, vectors = make((17, 33), form, torch.bfloat16)[0].t(), make((33, 17), form)[1]
    for grad in (None, torch.ones(33, 17, dtype=torch.bfloat16)):
        arguments = (x, vectors, THRESHOLD, grad)
        torch.library.opcheck(oscillation._run_compiled, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_on_a_card_torch_compile_keeps_the_kernel_in_training_and_fuses_generation(dtype):
    """Its backward pass of the gated form would keep four float32 tensors of x's shape where the kernel keeps x."""
    with FakeTensorMode():
        x = torch.empty(2, 4, device="cuda", dtype=dtype)
        assert oscillation._compiles_opaquely(x) == (dtype != torch.float64)
        with torch.no_grad():
            assert not oscillation._compiles_opaquely(x)


@pytest.mark.parametrize("opaque", [True, False])
def test_compiled_training_keeps_the_gated_forms_input_alone(monkeypatch, opaque):
    """What the forward graph hands to the backward one, beside y and the vectors: x, or without the kernel more."""
    monkeypatch.setattr(oscillation, "PLAIN", not opaque)
    torch._dynamo.reset()
    kept = []

    def note_kept(graph, inputs):
        (outputs,) = next(node for node in graph.graph.nodes if node.op == "output").args
        kept.append(sum(node.meta["val"].numel() for node in outputs if node.meta["val"].numel() >= 900))
        return make_boxed_func(graph.forward)

    x, vectors = make((100, 9), "gated")
    inputs = [t.requires_grad_() for t in (x, *vectors)]
    partition = min_cut_rematerialization_partition
    backend = aot_autograd(fw_compiler=note_kept, bw_compiler=make_boxed, partition_fn=partition)
    torch.compile(fused, backend=backend, fullgraph=True)(*inputs)
    y_and_x = 2 * x.numel()
    assert kept[0] == y_and_x if opaque else kept[0] >= y_and_x


def make_boxed(graph, inputs):
    return make_boxed_func(graph.forward)


def test_plain_operations_are_compiled_without_an_autograd_function(monkeypatch):
    """torch 2.11 gives the function's inputs zero gradients in float32, whose .to(x.dtype) changes nothing."""
    monkeypatch.setattr(oscillation, "PLAIN", True)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    x, vectors = make((3, 4), "gated")
    y = fused(x.requires_grad_(), *vectors)
    assert "_Oscillation" not in type(y.grad_fn).__name__ and y.grad_fn is not None


def assert_compiles(backend, form):
    """The compiled operation is the reference in contiguous, strided and low-precision calls."""
    x, vectors = make((9, 17), form)
    torch._dynamo.reset()
    compiled = torch.compile(fused, backend=backend, fullgraph=True)
    assert_close(run(compiled, x, vectors), run(plain, x, vectors), 9)
    assert_close(run(compiled, x[:5].t().contiguous().t(), vectors), run(plain, x[:5], vectors), 5)
    low = x.bfloat16(), [v.double() for v in vectors]
    assert_close(run(compiled, *low), run(plain, *low), 9, rtol=2**-7)


@pytest.mark.parametrize("without_kernel", [False, True], ids=["kernel", "plain"])
@each_form
def test_torch_compile_changes_nothing(form, without_kernel, monkeypatch):
    monkeypatch.setattr(oscillation, "PLAIN", without_kernel)
    assert_compiles("aot_eager", form)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("without_kernel", [False, True], ids=["kernel", "plain"])
@each_form
def test_inductor_changes_nothing(form, without_kernel, monkeypatch):
    monkeypatch.setattr(oscillation, "PLAIN", without_kernel)
    assert_compiles("inductor", form)


# --- on a card ---


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@each_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_card_gives_the_values_and_gradients_of_the_reference(form, dtype):
    x, vectors = make((3000, 100), form, dtype)
    got = run(fused, x.cuda(), [v.cuda() for v in vectors])
    rtol = {torch.float32: 2e-5, torch.float16: 2**-9, torch.bfloat16: 2**-6}[dtype]
    atol = 4e-6 if dtype == torch.float32 else FAST
    assert_close([t.cpu() for t in got], run(plain, x, vectors), 3000, rtol, atol)


@pytest.mark.slow
def test_triton_on_its_interpreter():
    """The tests of the Triton path, in a process of their own: Triton chooses its interpreter when it is imported."""
    pytest.importorskip("triton", minversion="3.8")  # older interpreters fail with numpy 2.4
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    tests = "triton and (reference or precision or strides or infinity or phases or repeats or baseline or formula)"
    command = [sys.executable, "-m", "pytest", __file__, "--noconftest", "-k", tests]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and " passed" in result.stdout and "skipped" not in result.stdout, result.stdout


# --- what is refused, and what serves where no kernel does ---


@pytest.mark.parametrize("n", range(3))
def test_a_vector_of_another_shape_or_device_is_refused(n):
    x, vectors = make((5, 4), "oscillate")
    name, vectors[n] = oscillation.NAMES[n], torch.zeros(3)
    with pytest.raises(ValueError, match=rf"{name}: expected shape \(4,\).*\(5, 4\).*received .*\(3,\)"):
        oscillate(x, *vectors)
    vectors[n] = torch.zeros(4, device="meta")
    with pytest.raises(ValueError, match=f"{name}: expected .* on cpu .* on meta"):
        oscillate(x, *vectors)


@pytest.mark.parametrize("x", [torch.tensor(1.0), torch.ones(5, 4, dtype=torch.int64)], ids=["number", "integers"])
def test_what_is_no_array_of_floats_is_refused(x):
    with pytest.raises(ValueError, match="x: expected floats of shape"):
        oscillate(x, *make((5, 4), "oscillate")[1])


def test_plain_torch_serves_where_no_kernel_can_be_compiled(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(
        oscillation, "_load_kernel", oscillation._load_kernel.__wrapped__
    )  # not what was decided before
    assert oscillation.backend("cpu") == "plain torch: no C compiler found"
    x, vectors = make((5, 4), "gated")
    assert torch.equal(fused(x, *vectors), plain(x, *vectors))


def test_plain_torch_serves_devices_without_a_kernel():
    assert oscillation.backend("meta") == "plain torch: no kernel for meta"
    x, vectors = make((5, 4), "gated")
    y = fused(x.to("meta"), *(v.to("meta") for v in vectors))
    assert y.shape == x.shape and y.device.type == "meta"
