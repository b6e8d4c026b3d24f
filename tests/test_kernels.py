"""The oscillation's kernels: each path against the readable reference, and the build of the C kernel."""

import ctypes
import functools
import math
import multiprocessing
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import gelu

from kernels import attention, c_library, cache, matmul, oscillation, oscillation_cpu
from kernels.matmul import Linear
from kernels.oscillation import oscillate, oscillate_gated, oscillate_gated_plain, oscillate_plain
from kernels.rotary import normalise, rotate
from model_bio import CausalSelfAttention, GPTConfig, rope_tables
from wiggle.optimizers import orthogonalise

ROOT = Path(__file__).parent.parent
THRESHOLD = 0.3
FORMS = {"oscillate": (3, oscillate, oscillate_plain), "gated": (8, oscillate_gated, oscillate_gated_plain)}
HAS_COMPILER = os.name == "posix" and any(map(shutil.which, ("gcc", "cc", "clang")))


@functools.cache
def c_kernel():
    return oscillation_cpu.load()[0]


@pytest.fixture(params=["C", "plain", "triton"])
def path(request, monkeypatch):
    """Makes eager mode take this path for CPU tensors."""
    if request.param == "C" and not HAS_COMPILER:
        pytest.skip("no C compiler")
    if request.param == "triton" and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("test_triton_on_its_interpreter runs this one")
    if request.param == "triton":
        from kernels.oscillation_triton import run
    else:
        run = c_kernel() if request.param == "C" else oscillation._plain
    assert run is not None
    monkeypatch.setattr(oscillation, "_kernel", lambda device_type: (run, request.param))
    return request.param


@pytest.mark.slow
def test_triton_on_its_interpreter():
    """The tests of the Triton path, in a process of their own: Triton chooses its interpreter when it is imported."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    tests = "triton and (reference or precision or strides or infinity or phases or deterministic)"
    command = [sys.executable, "-m", "pytest", __file__, "--noconftest", "-k", tests]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and " passed" in result.stdout and "skipped" not in result.stdout, result.stdout


def make(shape, form, dtype=torch.float32, seed=0, scale=2.0):
    """x and the form's vectors, drawn so that every gradient matters."""
    generator = torch.Generator().manual_seed(seed)
    centres = (1.0, 0.1, 0.2, 1.5, -0.3, 1.2, 0.4, -0.1)[: FORMS[form][0]]
    x = (torch.randn(shape, generator=generator) * scale).to(dtype)
    return x, [torch.randn(shape[-1], generator=generator) * 0.3 + centre for centre in centres]


def call(function, x, vectors):
    if len(vectors) == 3:
        return function(x, *vectors)
    return function(x, *vectors[:5], THRESHOLD, *vectors[5:])


def run(function, x, vectors, grad=None):
    """The output and the gradients of x and of each vector, for an upstream gradient that differs everywhere."""
    x, vectors = x.detach().requires_grad_(), [v.detach().requires_grad_() for v in vectors]
    y = call(function, x, vectors)
    if grad is None:
        grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, (x, *vectors), grad)]


def assert_close(got, expected, rows, rtol=4e-6):
    """y and dx within rtol, and the vectors' gradients within the rounding of their sums over the rows."""
    for n, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert a.dtype == b.dtype and a.shape == b.shape
        if n < 2:
            torch.testing.assert_close(a, b, rtol=rtol, atol=4e-6, equal_nan=True)
        else:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=4e-6 * max(1, rows) ** 0.5, equal_nan=True)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(1, 1), (70, 43), (3, 5, 130), (17,), (0, 4), (2, 0)], ids=str)
def test_matches_the_reference(path, form, shape):
    _, function, reference = FORMS[form]
    x, vectors = make(shape, form)
    got = run(function, x, vectors)
    assert_close(got, run(reference, x, vectors), math.prod(shape[:-1]))
    assert all(t.is_contiguous() for t in got)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype,ulp", [(torch.bfloat16, 2**-7), (torch.float16, 2**-10)], ids=["bf16", "f16"])
def test_low_precision(path, form, dtype, ulp):
    """y and dx are the float32 values rounded once; the vectors' gradients are as good as in float32."""
    _, function, reference = FORMS[form]
    x, vectors = make((40, 17), form, dtype)
    assert_close(run(function, x, vectors), run(reference, x, vectors), 40, rtol=ulp)
    assert call(function, x, vectors).dtype == dtype


@pytest.mark.parametrize("form", FORMS)
def test_strides(path, form):
    """A transposed input and an expanded gradient, as sum().backward() gives."""
    _, function, reference = FORMS[form]
    x, vectors = make((17, 33), form)
    x, vectors = x.t(), make((33, 17), form)[1]
    assert_close(
        run(function, x, vectors, torch.ones(()).expand(33, 17)), run(reference, x, vectors, torch.ones(33, 17)), 33
    )
    sparse = [torch.stack((v, -v), 1)[:, 0] for v in vectors]
    assert not sparse[0].is_contiguous() and torch.equal(call(function, x, sparse), call(function, x, vectors))


@pytest.mark.parametrize("form", FORMS)
def test_not_a_number_and_infinity(path, form):
    _, function, reference = FORMS[form]
    x, vectors = make((9, 20), form)
    x[0, 0], x[1, 1], x[2, 2] = math.nan, math.inf, -math.inf
    vectors[-3][5] = math.nan  # omega, or omega2
    if form == "gated":
        vectors[3][6] = math.nan  # gain
    got, expected = run(function, x, vectors), run(reference, x, vectors)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a.isnan(), b.isnan())
    assert got[0].isnan().sum() == 3 + 9 * (1 if form == "oscillate" else 2)
    assert_close(got, expected, 9)


@pytest.mark.parametrize("scale", [1e3, 1e5, 1e8, 1e30])
def test_large_phases(path, scale):
    """The sine is right for the float32 phase however large; a Triton kernel may round the phase itself once less."""
    x, (omega, phi, _) = make((64, 40), "oscillate", scale=scale)
    zero = torch.zeros(40)
    y, dx, domega, *_ = run(oscillate, x, (omega, phi, zero), torch.ones(64, 40))
    phase = (omega * x + phi).double()
    assert (y - phase.sin() * x.double().tanh()).abs().max() < 1e-6
    expected = omega * phase.cos() * x.double().tanh() + phase.sin() * (1 - x.double().tanh() ** 2)
    assert (dx - expected).abs().max() < 4e-6
    terms = phase.cos() * x.double().tanh() * x
    assert ((domega - terms.sum(0)).abs() / terms.abs().sum(0)).max() < 1e-6


@pytest.mark.skipif(not HAS_COMPILER, reason="no C compiler")
def test_c_without_native_instructions(tmp_path):
    """The build for a CPU without fused multiply-add, and without OpenMP, is as accurate."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    library = c_library.build("oscillation.c", compiler, (*c_library.FLAGS, *oscillation_cpu.FLAGS), tmp_path)
    kernel = oscillation_cpu.bind(ctypes.CDLL(str(library)))
    for scale in (2.0, 2e4):
        x, vectors = make((64, 40), "gated", scale=scale)
        assert (kernel(x, vectors, THRESHOLD, None)[0] - call(oscillate_gated_plain, x, vectors)).abs().max() < 2e-6


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck(form):
    _, function, _ = FORMS[form]
    x, vectors = make((4, 3), form, torch.float64)
    inputs = [t.double().requires_grad_() for t in (x, *vectors)]
    assert torch.autograd.gradcheck(lambda x, *v: call(function, x, v), inputs)
    assert torch.autograd.gradgradcheck(lambda x, *v: call(function, x, v), inputs)


@pytest.mark.parametrize("form", FORMS)
def test_second_derivative(path, form):
    """A gradient of the gradient is right, not silently zero, although the kernels only know the first."""
    _, function, reference = FORMS[form]
    x, vectors = make((5, 7), form)
    second = []
    for f in (function, reference):
        x = x.detach().requires_grad_()
        (first,) = torch.autograd.grad(call(f, x, vectors).sum(), x, create_graph=True)
        second += torch.autograd.grad(first.square().sum(), x)
    torch.testing.assert_close(*second, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saves_what_gelu_saves(path, form, dtype):
    def saved_bytes(function, x, parameters):
        kept, known = [], {p.data_ptr() for p in parameters}

        def pack(t):
            kept.append(0 if t.data_ptr() in known else t.numel() * t.element_size())
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            function(x)
        return sum(kept)

    x, vectors = make((6, 16), form, dtype)
    x, vectors = x.requires_grad_(), [v.requires_grad_() for v in vectors]
    expected = saved_bytes(gelu, x, ())
    assert expected == x.numel() * x.element_size()
    assert saved_bytes(lambda x: call(FORMS[form][1], x, vectors), x, vectors) == expected
    assert saved_bytes(lambda x: call(FORMS[form][2], x, vectors), x, vectors) > expected


@pytest.mark.parametrize("form", FORMS)
def test_autocast(path, form):
    """Under autocast the input comes in bfloat16 and leaves so; parameters and their gradients stay in float32."""
    x, vectors = make((6, 16), form)
    vectors = [v.requires_grad_() for v in vectors]
    layer = torch.nn.Linear(16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = layer(x)
        y = call(FORMS[form][1], hidden, vectors)
    y.float().square().sum().backward()
    assert hidden.dtype == y.dtype == torch.bfloat16
    expected = run(FORMS[form][2], hidden, vectors, 2 * y.detach())
    for v, grad in zip(vectors, expected[2:], strict=True):
        assert v.grad.dtype == torch.float32
        torch.testing.assert_close(v.grad, grad, rtol=1e-5, atol=1e-5)
    assert layer.weight.grad.abs().sum() > 0


def test_vectors_of_other_types(path):
    x, vectors = make((6, 16), "gated")
    for dtype in (torch.bfloat16, torch.float64):
        typed = [v.to(dtype) for v in vectors]
        got, expected = run(oscillate_gated, x, typed), run(oscillate_gated_plain, x, typed)
        assert_close(got[:2], expected[:2], 6)
        for a, b in zip(got[2:], expected[2:], strict=True):
            assert a.dtype == dtype
            torch.testing.assert_close(a, b, rtol=2**-7, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_gradient_checkpointing(path, form):
    x, vectors = make((6, 16), form)

    def checkpointed(x, *args):
        return torch.utils.checkpoint.checkpoint(FORMS[form][1], x, *args, use_reentrant=False)

    for a, b in zip(run(checkpointed, x, vectors), run(FORMS[form][1], x, vectors), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("form", FORMS)
def test_deterministic(path, form):
    """Bit for bit over repeats, and the C kernel whatever the number of threads."""
    x, vectors = make((40, 17) if path == "triton" else (3000, 100), form)
    threads = torch.get_num_threads()
    try:
        first = run(FORMS[form][1], x, vectors)
        for n in (threads, threads, 1, 2, 3) if path == "C" else (threads, threads):
            torch.set_num_threads(n)
            assert all(map(torch.equal, first, run(FORMS[form][1], x, vectors)))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_on_cuda(form, dtype):
    """The same operation on a card, whatever serves it there."""
    x, vectors = make((3000, 100), form, dtype)
    got = run(FORMS[form][1], x.cuda(), [v.cuda() for v in vectors])
    expected = run(FORMS[form][2], x, vectors)
    assert_close([t.cpu() for t in got], expected, 3000, rtol=2e-5 if dtype == torch.float32 else 2**-9)


def compiled(backend, form):
    """Compares compiled with eager, in the kernel's and in the plain form of the graph."""
    _, function, reference = FORMS[form]
    x, vectors = make((9, 17), form)
    torch._dynamo.reset()
    compiled = torch.compile(function, backend=backend, fullgraph=True)
    assert_close(run(compiled, x, vectors), run(reference, x, vectors), 9)
    assert_close(run(compiled, x[:5].t().contiguous().t(), vectors), run(reference, x[:5], vectors), 5)
    low = x.bfloat16(), [v.double() for v in vectors]
    assert_close(run(compiled, *low), run(reference, *low), 9, rtol=2**-7)


@pytest.mark.parametrize("form", FORMS)
def test_compiled_operation(path, form):
    """What torch.compile is told of the opaque operation, shapes, types and strides, is what it does."""
    x, vectors = make((17, 33), form, torch.bfloat16)
    x, vectors = x.t(), make((33, 17), form)[1]
    for grad in (None, torch.ones(33, 17, dtype=torch.bfloat16)):
        arguments = (x, vectors, THRESHOLD, grad)
        torch.library.opcheck(oscillation._compiled, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("plain", [False, True], ids=["kernel", "plain"])
@pytest.mark.parametrize("form", FORMS)
def test_compile(form, plain, monkeypatch):
    monkeypatch.setattr(oscillation, "PLAIN", plain)
    compiled("aot_eager", form)


@pytest.mark.slow
@pytest.mark.parametrize("plain", [False, True], ids=["kernel", "plain"])
@pytest.mark.parametrize("form", FORMS)
def test_compile_with_inductor(form, plain, monkeypatch):
    if not HAS_COMPILER:
        pytest.skip("no C compiler")
    monkeypatch.setattr(oscillation, "PLAIN", plain)
    compiled("inductor", form)


@pytest.mark.slow
def test_triton_compiles_for_a_card():
    """The kernel passes Triton's compiler for the RTX 3070 where there is none, and does not spill its registers."""
    pytest.importorskip("triton", minversion="3.3")
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from kernels.oscillation_triton import _kernel
for nv in (3, 8):
    for back in (False, True):
        types = ["*bf16", "*fp32", "*bf16", "*bf16", "*fp32", "i32", "i32", "i32", "fp32"] + 3 * ["constexpr"]
        source = ASTSource(_kernel, dict(zip(_kernel.arg_names, types)), {{"NV": nv, "BACK": back, "R": 4}})
        print(len(triton.compile(source, target=GPUTarget("cuda", 86, 32)).asm["cubin"]) > 1000)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.split() == ["True"] * 4, result.stderr


@pytest.mark.parametrize("n", range(3))
def test_wrong_shapes(n):
    x, vectors = make((5, 4), "oscillate")
    vectors[n] = torch.zeros(3)
    with pytest.raises(
        ValueError, match=rf"{oscillation.NAMES[n]}: expected shape \(4,\).*\(5, 4\).*received .*\(3,\)"
    ):
        oscillate(x, *vectors)
    vectors[n] = torch.zeros(4, device="meta")
    with pytest.raises(ValueError, match=f"{oscillation.NAMES[n]}: expected .* on cpu .* on meta"):
        oscillate(x, *vectors)


def test_wrong_inputs():
    _, vectors = make((5, 4), "oscillate")
    for x in (torch.tensor(1.0), torch.ones(5, 4, dtype=torch.int64)):
        with pytest.raises(ValueError, match="x: expected floats of shape"):
            oscillate(x, *vectors)


@pytest.mark.skipif(os.name != "posix", reason="the C kernel is for POSIX systems")
class TestBuild:
    @pytest.fixture(autouse=True)
    def fresh(self, tmp_path, monkeypatch):
        """An empty cache folder of its own, and no memory of earlier decisions."""
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
        monkeypatch.setattr(cache.tempfile, "tempdir", str(tmp_path))
        oscillation._kernel.cache_clear()
        yield
        oscillation._kernel.cache_clear()

    def assert_plain(self, reason):
        assert oscillation.backend("cpu").startswith("plain torch: ") and reason in oscillation.backend("cpu")
        x, vectors = make((5, 4), "gated")
        assert torch.equal(call(oscillate_gated, x, vectors), call(oscillate_gated_plain, x, vectors))

    @pytest.mark.skipif(not HAS_COMPILER, reason="no C compiler")
    def test_two_processes_at_once(self, tmp_path):
        fork = multiprocessing.get_context("fork")
        pair = [fork.Process(target=lambda: sys.exit(oscillation_cpu.load()[0] is None)) for _ in range(2)]
        for process in pair:
            process.start()
        for process in pair:
            process.join(60)
        assert [process.exitcode for process in pair] == [0, 0]
        folder = tmp_path / "home" / "wigglegpt"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert [p.suffix for p in folder.iterdir()] == [".so"], "one library and no leftovers"

    @pytest.mark.skipif(not HAS_COMPILER, reason="no C compiler")
    def test_built_once_and_announced(self, tmp_path):
        assert oscillation.backend("cpu").startswith("C (")
        (library,) = (tmp_path / "home" / "wigglegpt").iterdir()
        first = library.stat()
        oscillation._kernel.cache_clear()
        assert oscillation.backend("cpu").startswith("C (") and library.stat() == first

    def test_refuses_folders_that_others_can_write_to(self, tmp_path):
        home, temporary = tmp_path / "home" / "wigglegpt", tmp_path / f"wigglegpt-{os.getuid()}"
        assert cache.private_folder() == home
        home.chmod(0o777)
        assert cache.private_folder() == temporary
        home.chmod(0o720)
        assert cache.private_folder() == temporary
        temporary.rmdir()
        temporary.symlink_to(tmp_path)
        assert cache.private_folder() is None
        self.assert_plain("no cache folder" if HAS_COMPILER else "no C compiler")

    def test_without_a_compiler(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        self.assert_plain("no C compiler found")

    def test_with_a_broken_compiler(self, tmp_path, monkeypatch):
        (tmp_path / "gcc").write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "gcc").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        self.assert_plain("could not build oscillation.c")

    @pytest.mark.skipif(not HAS_COMPILER, reason="no C compiler")
    def test_with_a_compiler_that_lacks_openmp(self, tmp_path, monkeypatch):
        """As Apple's: one thread serves where few would, and plain torch where many would."""
        real = next(filter(None, map(shutil.which, ("gcc", "cc", "clang"))))
        (tmp_path / "gcc").write_text(f'#!/bin/sh\ncase "$*" in *openmp*) exit 1;; esac\nexec {real} "$@"\n')
        (tmp_path / "gcc").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
        assert oscillation.backend("cpu") == "C (gcc, one thread)"
        oscillation._kernel.cache_clear()
        monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
        self.assert_plain("could not build oscillation.c")

    def test_with_the_kernel_switched_off(self):
        code = "from kernels.oscillation import *; print(backend('cpu'))"
        environment = {**os.environ, "WIGGLE_KERNEL": "plain"}
        output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert output.stdout == "plain torch: WIGGLE_KERNEL=plain\n"

    def test_devices_without_a_kernel(self):
        assert oscillation.backend("meta") == "plain torch: no kernel for meta"
        x, vectors = make((5, 4), "gated")
        y = call(oscillate_gated, x.to("meta"), [v.to("meta") for v in vectors])
        assert y.shape == x.shape and y.device.type == "meta"


@pytest.mark.parametrize("decades", [0, 3, 9])
def test_newton_schulz_on_the_gram_matrix_is_the_plain_iteration(decades):
    left, right = (torch.linalg.qr(torch.randn(2, n, 16)).Q for n in (16, 64))
    g = left @ torch.diag(torch.logspace(0, -decades, 16)) @ right.mT
    x = g.double() / g.double().norm(dim=(-2, -1), keepdim=True)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    torch.testing.assert_close(orthogonalise(g), x.float(), atol=1e-3, rtol=0)
    torch.testing.assert_close(orthogonalise(g.mT), x.mT.float(), atol=1e-3, rtol=0)
    assert x.abs().max() > 0.1
    assert not orthogonalise(torch.zeros(1, 16, 64)).any()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_normalised_and_turned_heads_are_the_plain_operations(dtype, tolerance):
    angle = torch.outer(torch.arange(5.0), torch.tensor([1.0, 0.3, 0.1, 0.01]))
    cos, sin = angle.cos(), angle.sin()
    heads = torch.randn(2, 5, 3, 8, dtype=dtype).transpose(1, 2)  # (B, H, T, D), as attention cuts them
    x, z = (heads.clone().requires_grad_() for _ in range(2))
    a, b = (z.float() / (z.float().square().mean(-1, keepdim=True) + 1e-6).sqrt()).chunk(2, dim=-1)
    plain = torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)
    fast = rotate(normalise(x), cos, sin)
    assert fast.dtype == dtype and fast.shape == x.shape
    weight = torch.randn_like(plain)
    for y in (fast, plain):
        (y.float() * weight).sum().backward()
    torch.testing.assert_close(fast.float(), plain, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(x.grad, z.grad, atol=2 * tolerance, rtol=tolerance)
    assert not normalise(torch.zeros(3, 8)).any()
    wide = torch.randn(2, 4, 6)
    compiled = torch.compile(lambda x: rotate(normalise(x), cos[:4, :3], sin[:4, :3]), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(wide), rotate(normalise(wide), cos[:4, :3], sin[:4, :3]))


def attention_by_its_equation(qkv, heads, norm, rope):
    B, T, width = qkv.shape
    q, k, v = qkv.view(B, T, 3, heads, -1).permute(2, 0, 3, 1, 4)  # (B, H, T, D) each
    if norm:
        q, k = (x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() for x in (q, k))
    if rope:
        pairs = [x.chunk(2, dim=-1) for x in (q, k)]
        cos, sin = rope
        q, k = (torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1) for a, b in pairs)
    later = torch.ones(T, T, dtype=torch.bool).triu(1)
    shares = torch.softmax((q @ k.mT / math.sqrt(q.size(-1))).masked_fill(later, -math.inf), dim=-1)
    return (shares @ v).transpose(1, 2).reshape(B, T, width // 3)


@pytest.mark.skipif(not HAS_COMPILER, reason="no C compiler")
class TestAttention:
    SIZES = ((3, 64, 4, 32), (2, 1, 2, 8), (2, 37, 3, 10), (1, 300, 1, 128), (2, 17, 1, 48), (1, 9, 2, 2))

    @staticmethod
    def make(B, T, H, D, scale=2.0):
        """-> qkv (B, T, 3·C), the gradient of the output (B, T, C), rope."""
        generator = torch.Generator().manual_seed(T)
        qkv, grad = (torch.randn(B, T, n * H * D, generator=generator) for n in (3, 1))
        return scale * qkv, grad, rope_tables(T, D)

    @staticmethod
    def check(function, size, norm, turned, scale=2.0):
        qkv, grad, rope = TestAttention.make(*size, scale)
        rope = rope if turned else None
        x, z = qkv.requires_grad_(), qkv.detach().double().requires_grad_()
        y, expected = function(x, size[2], norm, rope), attention_by_its_equation(z, size[2], norm, rope)
        y.backward(grad)
        expected.backward(grad.double())
        torch.testing.assert_close(y.double(), expected, atol=2e-5, rtol=0)
        torch.testing.assert_close(x.grad.double(), z.grad, atol=5e-5, rtol=0)

    @pytest.mark.parametrize("turned", [False, True])
    @pytest.mark.parametrize("norm", [False, True])
    @pytest.mark.parametrize("size", SIZES)
    def test_is_its_equation(self, size, norm, turned):
        self.check(attention.attend, size, norm, turned)

    def test_without_native_instructions(self, tmp_path, monkeypatch):
        compiler = shutil.which("cc") or shutil.which("gcc")
        library = c_library.build("attention.c", compiler, c_library.FLAGS, tmp_path)
        run = attention.bind(ctypes.CDLL(str(library)))
        monkeypatch.setattr(attention, "_kernel", lambda: (run, "C"))
        self.check(attention.attend, (2, 37, 3, 10), True, True)

    def test_large_scores(self):
        """Where a softmax becomes a choice of one; scores up to some 10,000."""
        qkv, _, _ = self.make(2, 37, 3, 10, scale=80.0)
        expected = attention_by_its_equation(qkv.double(), 3, False, None)
        assert (attention.attend(qkv, 3) - expected).abs().max() < 1.0
        assert ((attention.attend(qkv, 3) - expected).abs() < 1e-3).float().mean() > 0.99

    def test_a_token_sees_none_after_it(self):
        """Not by a bit; and what sees a NaN does not hide it."""
        qkv, grad, rope = self.make(2, 37, 3, 10)
        x, z = qkv.clone().requires_grad_(), qkv.clone()
        z[:, 20:] = 1e15 * torch.randn(2, 17, 90)
        grad[:, 20:] = 0
        y = attention.attend(x, 3, True, rope)
        assert torch.equal(y[:, :20], attention.attend(z, 3, True, rope)[:, :20])
        y.backward(grad)
        assert not x.grad[:, 20:].any() and x.grad[:, 1:20].all()
        for bad in (math.nan, math.inf):
            z[:, 20] = bad
            assert not attention.attend(z, 3, True, rope)[:, 20:].isfinite().any()

    def test_threads_change_no_bit(self):
        qkv, grad, rope = self.make(3, 64, 4, 32)
        threads, results = torch.get_num_threads(), []
        try:
            for count in (1, 2, 5):
                torch.set_num_threads(count)
                x = qkv.clone().requires_grad_()
                y = attention.attend(x, 4, True, rope)
                y.backward(grad)
                results.append((y, x.grad))
        finally:
            torch.set_num_threads(threads)
        for y, dx in results[1:]:
            assert torch.equal(y, results[0][0]) and torch.equal(dx, results[0][1])

    def test_keeps_its_input_alone(self):
        qkv, _, _ = self.make(3, 64, 4, 32)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            attention.attend(qkv.requires_grad_(), 4)
        assert [t.shape for t in kept] == [qkv.shape]

    @pytest.mark.parametrize("changes", [{}, {"qk_norm": True, "position": "rope"}])
    def test_the_model_takes_it_where_it_serves(self, changes, monkeypatch):
        """In training and in evaluation, with the same result as the model's own lines; not with dropout."""
        calls, attend = [], attention.attend
        monkeypatch.setattr(attention, "attend", lambda *a: calls.append(a) or attend(*a))
        block = CausalSelfAttention(GPTConfig(n_head=3, n_embd=48, dropout=0.1, **changes))
        x, rope = torch.randn(2, 20, 48), rope_tables(20, 16) if changes else None
        block(x, rope)
        assert not calls, "dropout lies between the scores and the values"
        block.eval()
        fast = block(x, rope)
        assert len(calls) == 1
        monkeypatch.setattr(attention, "serves", lambda qkv: False)
        torch.testing.assert_close(fast, block(x, rope), atol=1e-6, rtol=1e-5)
        assert len(calls) == 1

    def test_serves_float32_on_the_cpu_alone(self):
        x = torch.zeros(1, 4, 24)
        assert attention.serves(x)
        assert not any(map(attention.serves, (x.double(), x.bfloat16(), x.to("meta"))))

    def test_says_what_serves(self):
        assert attention.backend("cpu").startswith("C (") and attention.backend("meta") == "plain torch"

    def test_wrong_shapes(self):
        qkv, _, (cos, sin) = self.make(2, 5, 3, 8)
        with pytest.raises(ValueError, match=r"qkv: expected \(B, T, 3·5·D\) for 5 heads, received \(2, 5, 72\)"):
            attention.attend(qkv, 5)
        with pytest.raises(ValueError, match=r"sin: expected \(5, 4\) for qkv \(2, 5, 72\), received \(4, 4\)"):
            attention.attend(qkv, 3, rope=(cos, sin[:4]))


class TestLinear:
    """Large products by oneDNN, on any processor that has it."""

    @pytest.fixture
    def calls(self, monkeypatch):
        """How often oneDNN was called: a list of the first matrix's shapes. Here no product is too small for it."""
        if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
            pytest.skip("this build of torch has no oneDNN beside MKL")
        calls = []
        monkeypatch.setattr(matmul, "_is_amd", lambda: True)
        run = matmul._one_dnn.__wrapped__()
        monkeypatch.setattr(matmul, "_one_dnn", lambda: lambda a, b, bias: calls.append(a.shape) or run(a, b, bias))
        monkeypatch.setattr(matmul, "SMALL", 0)
        return calls

    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("size", [(40, 24), (24, 40), (24, 24), (65, 3)])
    def test_is_linears(self, calls, size, bias):
        layer = Linear(*size, bias=bias)
        layer.weight.data += torch.randn_like(layer.weight)
        x, grad = torch.randn(3, 7, size[0], requires_grad=True), torch.randn(3, 7, size[1])
        wanted = [x, *layer.parameters()]
        y, expected = layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias)
        assert y.shape == expected.shape and len(calls) == 1
        torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
        ours, theirs = (torch.autograd.grad(out, wanted, grad) for out in (y, expected))
        assert len(calls) == 3
        for a, b in zip(ours, theirs, strict=True):
            assert a.shape == b.shape
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)

    def test_other_shapes_fare_as_with_linear(self, calls):
        layer = Linear(8, 6)
        assert layer(torch.randn(8)).shape == (6,) and layer(torch.randn(0, 8)).shape == (0, 6)
        for wrong in (torch.randn(4, 16), torch.randn(2, 4)):
            with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), torch.no_grad():
                layer(wrong)

    def test_second_derivatives(self, calls):
        layer, x = Linear(5, 4), torch.randn(3, 5, requires_grad=True)
        (dx,) = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
        (ours,) = torch.autograd.grad(dx.sum(), layer.weight)
        y = torch.nn.functional.linear(x, layer.weight, layer.bias)
        (dx,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        (expected,) = torch.autograd.grad(dx.sum(), layer.weight)
        assert len(calls) > 3
        torch.testing.assert_close(ours, expected)

    def test_only_what_is_wanted_is_computed(self, calls):
        layer = Linear(8, 6).requires_grad_(False)
        layer(torch.randn(4, 8, requires_grad=True)).sum().backward()
        assert len(calls) == 2
        layer.requires_grad_(True)(torch.randn(4, 8)).sum().backward()
        assert len(calls) == 4

    def test_nan_and_infinity_come_through(self, calls):
        layer = Linear(8, 6, bias=False)
        layer.weight.data.fill_(1.0)
        assert layer(torch.full((4, 8), math.nan)).isnan().all() and layer(torch.full((4, 8), math.inf)).isinf().all()
        assert len(calls) == 2

    def test_serves_large_float32_products_on_the_cpu_alone(self, calls, monkeypatch):
        x = torch.randn(4, 8)
        assert Linear(8, 6).double()(x.double()).dtype == torch.float64
        assert Linear(8, 6, device="meta")(x.to("meta")).shape == (4, 6)
        with torch.autocast("cpu", torch.bfloat16):
            assert Linear(8, 6)(x).dtype == torch.bfloat16
        monkeypatch.setattr(matmul, "SMALL", 4 * 8 * 6 + 1)
        Linear(8, 6)(x)
        assert not calls
        Linear(8, 7)(x)
        assert len(calls) == 1

    def test_torch_serves_where_onednn_is_not_known_to_be_faster(self, monkeypatch):
        monkeypatch.setattr(matmul, "_is_amd", lambda: False)
        assert matmul._one_dnn.__wrapped__() is None
        monkeypatch.setattr(matmul, "_one_dnn", lambda: None)
        monkeypatch.setattr(matmul, "SMALL", 0)
        layer, x = Linear(8, 6), torch.randn(4, 8)
        assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))
        assert matmul.backend("cpu") == matmul.backend("meta") == "torch's own choice"
