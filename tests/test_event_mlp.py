"""Event-driven steps compute what the dense MLP computes, and read what fires alone."""

import copy
import ctypes
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

import model_bio
from kernels import c_library, event_mlp, event_mlp_cpu
from kernels.decoding import pick_tokens
from kernels.event_mlp_cpu import EventMLPOnCPU
from kernels.neurons import HardEventGate, OscillatingNeuron
from kernels.screen import ROWS, screen_rows
from model_bio import GPT, GPTConfig

needs_compiler = pytest.mark.skipif(c_library.find_compiler() is None, reason="no C compiler")
SIZES = ((16, 64), (36, 144), (768, 3072), (65, 7), (3, 130), (1, 1))  # C, F


def make(C, F, bias=True, rate=0.15):
    """-> the modules of an MLP with hard events: c_fc, c_proj, neuron, gate; h has a standard deviation of about 1."""
    torch.manual_seed(C)
    c_fc, c_proj, neuron = nn.Linear(C, F, bias), nn.Linear(F, C, bias), OscillatingNeuron(F)
    nn.init.normal_(c_fc.weight, std=C**-0.5)
    nn.init.normal_(neuron.baseline)
    return c_fc, c_proj, neuron, HardEventGate(F, rate, input_std=1.0)


def dense(modules, x):
    c_fc, c_proj, neuron, gate = modules
    h = linear(x, c_fc.weight, c_fc.bias)
    return c_proj(torch.where(h.abs() <= gate.threshold, neuron.baseline, neuron(h)))


def firing(modules, x):
    c_fc, _, _, gate = modules
    return int((linear(x, c_fc.weight, c_fc.bias).abs() > gate.threshold).sum())


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@needs_compiler
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_a_step_is_the_dense_mlps_and_reads_little_more_than_what_fires(size, bias):
    modules = make(*size, bias=bias)
    steps = EventMLPOnCPU(*modules)
    for seed in range(5):
        x = torch.randn(1, 1, size[0], generator=torch.Generator().manual_seed(seed))
        before = steps.found.sum(0)
        torch.testing.assert_close(steps(x), dense(modules, x), atol=2e-6, rtol=2e-6)
        candidates, fired = (steps.found.sum(0) - before).tolist()
        assert fired == firing(modules, x) <= candidates
    if size[1] > 1000:
        assert steps.shares()[0] < 0.25 and steps.bytes_read() < 8 * size[0] * size[1] / 3


@needs_compiler
def test_the_number_of_threads_changes_no_bit(monkeypatch):
    steps, x = EventMLPOnCPU(*make(48, 700)), torch.randn(48)
    expected = steps(x)
    for threads in (2, 3, 64):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=threads: count)
        assert torch.equal(steps(x), expected)


@needs_compiler
@pytest.mark.parametrize("threshold", [0.0, 1e9])
def test_all_features_fire_at_a_threshold_of_0_and_none_at_a_huge_one(threshold):
    modules = make(32, 96)
    modules[3].threshold.fill_(threshold)
    steps, x = EventMLPOnCPU(*modules), torch.randn(32)
    torch.testing.assert_close(steps(x), dense(modules, x))
    assert steps.shares() == ((1.0, 1.0) if threshold == 0 else (0.0, 0.0))


@needs_compiler
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 30.0, 1e-38, 0.0])
def test_numbers_past_the_ordinary_give_what_they_give_densely(value):
    modules, x = make(32, 96), torch.randn(32)
    x[3] = value
    x = x if value else torch.zeros(32)
    torch.testing.assert_close(EventMLPOnCPU(*modules)(x), dense(modules, x), equal_nan=True, rtol=1e-5, atol=1e-5)
    modules[0].weight[5, 3] = math.nan
    torch.testing.assert_close(EventMLPOnCPU(*modules)(x), dense(modules, x), equal_nan=True, rtol=1e-5, atol=1e-5)


def hardest_rows(x, rows):
    """
    A weight (rows, C) whose error in the 8-bit copy is as large as it gets, half a step in each number, and points
    along x: Cauchy and Schwarz's inequality is an equality, where all numbers of x have one size.
    """
    q = torch.randint(-100, 100, (rows, x.numel()), generator=torch.Generator().manual_seed(0)).float()
    weight = (q + 0.499 * x.sign()) / 128
    weight[:, 0] = 127 / 128 * x[0].sign()  # the largest, which sets the scale to 1/128
    return weight


@needs_compiler
@pytest.mark.parametrize("direction", [1, -1])
def test_no_event_is_missed_where_the_bound_is_tight(direction):
    """Thresholds a hair from what each row gives in truth, where the 8-bit copy is off by 500 times as much."""
    modules = make(129, 512, bias=False)
    c_fc, gate = modules[0], modules[3]
    x = torch.randn(129).sign()
    c_fc.weight.copy_(direction * hardest_rows(x, 512))
    screen, h = screen_rows(c_fc.weight), c_fc(x)
    q = screen.coarse.transpose(1, 2).reshape(512, -1)[:, :129]
    error = h - screen.scale * (q.double() @ x.double()).float()
    assert (error.abs() > 0.98 * screen.error * x.norm()).all(), "the bound is not tight, so nothing is tested"
    gate.threshold.copy_(h.abs() - 1e-3)
    steps = EventMLPOnCPU(*modules)
    torch.testing.assert_close(steps(x), dense(modules, x))
    assert steps.shares()[1] == 1.0
    gate.threshold.copy_(h.abs() + 1e-3)
    steps = EventMLPOnCPU(*modules)
    torch.testing.assert_close(steps(x), dense(modules, x))
    assert steps.shares()[1] == 0.0


@needs_compiler
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e33])
def test_rows_with_one_number_far_from_the_others_are_multiplied_as_they_are(scale):
    """The large number meets a 0 in x, so the product is that of the others, which 24 bits would hardly hold."""
    modules, x = make(64, 256, bias=False), torch.randn(64)
    modules[0].weight *= scale
    modules[0].weight[:, 7] = 1e4 * scale
    x[7] = 0
    h = modules[0](x).abs()
    for hair, share in ((-1e-5, 1.0), (1e-5, 0.0)):
        modules[3].threshold.copy_((h + hair * scale).clamp(min=0))
        steps = EventMLPOnCPU(*modules)
        steps(x)
        assert steps.shares()[1] == share
        assert steps.screen.spread.all()


@needs_compiler
@pytest.mark.parametrize("size", SIZES)
def test_a_screen_holds_what_it_says_of_each_row(size):
    weight = torch.randn(size[1], size[0], generator=torch.Generator().manual_seed(0))
    weight[0] = 0
    screen = screen_rows(weight)
    q = screen.coarse.transpose(1, 2).reshape(screen.coarse.size(0) * ROWS, -1)
    assert not q[size[1] :].any() and not q[:, size[0] :].any()
    q = q[: size[1], : size[0]].double()
    error = (weight.double() - screen.scale.double()[:, None] * q).norm(dim=1)
    assert (error <= screen.error).all() and (weight.double().norm(dim=1) <= screen.norm).all()
    assert torch.equal(screen.sum.double(), 128 * q.sum(1))
    assert (screen.error <= 0.51 * screen.scale * math.sqrt(size[0])).all()


@needs_compiler
def test_the_build_without_native_instructions_computes_the_same(tmp_path, monkeypatch):
    modules, x = make(70, 300), torch.randn(70)
    steps = EventMLPOnCPU(*modules)
    expected = steps(x)
    library = c_library.build_library("event_mlp.c", c_library.find_compiler(), c_library.FLAGS, tmp_path)
    event_mlp_cpu.declare(plain := ctypes.CDLL(str(library)))
    monkeypatch.setattr(event_mlp_cpu, "load_kernel", lambda: (plain, "C"))
    torch.testing.assert_close(steps(x), expected, atol=1e-6, rtol=1e-6)
    first, second = steps.found.sum(0), EventMLPOnCPU(*modules)
    second(x)
    assert torch.equal(first, 2 * second.found.sum(0)), "other candidates, though integers are exact"


# --- in a model ---


def tiny_model(**changes):
    sizes = {"block_size": 32, "vocab_size": 50, "n_layer": 2, "n_head": 2, "n_embd": 32}
    model = GPT(GPTConfig(**sizes | {"mlp": "bio", "bio_event": "hard"} | changes), seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return model


def greedy_steps(model, prompt, count, events, monkeypatch):
    """-> the tokens (count,) and the logits (count, V) of greedy steps with the cache, event-driven or dense."""
    logits, pick = [], event_mlp.prepare
    monkeypatch.setattr(event_mlp, "prepare", pick if events else lambda *modules: None)
    monkeypatch.setattr(model_bio, "pick_tokens", lambda found, *a: logits.append(found) or pick_tokens(found, *a))
    tokens = torch.cat(list(model.stream(prompt, count, temperature=0)), dim=1)[0]
    monkeypatch.undo()
    return tokens, torch.cat(logits)


def assert_equal_but_for_ties(model, prompt, count, monkeypatch, tolerance=1e-4):
    """Dense and event-driven greedy steps agree up to the first tie, two likeliest tokens within the tolerance."""
    tokens, logits = greedy_steps(model, prompt, count, False, monkeypatch)
    for block in model.transformer.h:
        assert block.mlp.steps is None
    ours, our_logits = greedy_steps(model, prompt, count, True, monkeypatch)
    assert all(block.mlp.steps.tokens >= count - 1 - count // 8 for block in model.transformer.h)
    top = logits.topk(2).values
    ties = (top[:, 0] - top[:, 1] < tolerance).nonzero()
    same = int(ties[0]) + 1 if len(ties) else count  # steps whose texts are the same
    torch.testing.assert_close(our_logits[:same], logits[:same], atol=tolerance, rtol=0)
    assert torch.equal(ours[: same - 1], tokens[: same - 1]) and same > count // 4


@needs_compiler
@pytest.mark.parametrize("changes", [{}, {"bias": False, "position": "rope", "qk_norm": True, "use_rmsnorm": True}])
def test_generation_is_the_dense_ones_past_the_context_too(changes, monkeypatch):
    model = tiny_model(**changes)
    assert_equal_but_for_ties(model, torch.tensor([[1, 2, 3]]), 100, monkeypatch)


def step_both_ways(model, token, cache, place):
    """
    A step from one cache -> logits event-driven and dense, (V,) each, and the smallest distance of any |h| from its
    threshold. The cache keeps the dense step's keys and values.
    """
    mlps, margins = [block.mlp for block in model.transformer.h], []
    ours = model._next_logits(token, cache, place)[0]
    laid_out = [mlp.steps for mlp in mlps]
    for mlp in mlps:
        mlp.steps = None
    hooks = [
        mlp.c_fc.register_forward_hook(
            lambda _, __, h, gate=mlp.sparse_gate: margins.append((h.abs() - gate.threshold).abs().min().item())
        )
        for mlp in mlps
    ]
    dense = model._next_logits(token, cache, place)[0]
    for hook, mlp, steps in zip(hooks, mlps, laid_out, strict=True):
        hook.remove()
        mlp.steps = steps
    return ours, dense, min(margins)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("first", [1, 2, 3])
def test_a_thousand_greedy_tokens_at_gpt2s_width_are_the_dense_ones_but_where_an_input_meets_its_threshold(first):
    model = tiny_model(n_layer=12, n_head=12, n_embd=768, block_size=1024, bio_target_rate=0.08).eval()
    for block in model.transformer.h:
        block.mlp.prepare_steps()
    token, cache, knife_edge = torch.tensor([[first]]), model.new_cache(1, 1000), 0
    with torch.no_grad():
        for place in range(1000):
            ours, dense, margin = step_both_ways(model, token, cache, place)
            if margin < 1e-6:  # the rounding of a sum decides whether that feature fires
                knife_edge += 1
            else:
                torch.testing.assert_close(ours, dense, atol=1e-4, rtol=0)
                top = dense.topk(2).values
                assert ours.argmax() == dense.argmax() or top[0] - top[1] < 1e-4
            token = dense.argmax().view(1, 1)
    assert knife_edge < 100


@needs_compiler
def test_changed_weights_are_never_served_from_old_copies():
    model = tiny_model()
    mlp, x = model.transformer.h[0].mlp, torch.randn(1, 1, 32)
    model.generate(torch.tensor([[1, 2]]), 3)
    old = mlp.steps
    assert old.tokens == 2 and mlp.eval()(x) is not None and old.tokens == 3
    sources = [mlp.c_fc.weight, mlp.c_fc.bias, mlp.c_proj.weight, mlp.c_proj.bias, mlp.sparse_gate.threshold]
    for changed in (*sources, *mlp.oscillating.parameters()):
        mlp.prepare_steps()
        assert mlp.steps.serves(x, *mlp.parts())
        changed *= 1.5
        assert not mlp.steps.serves(x, *mlp.parts())
    mlp.prepare_steps()
    mlp.c_fc.weight.data = mlp.c_fc.weight.data.clone()
    assert not mlp.steps.serves(x, *mlp.parts())
    mlp.prepare_steps()
    mlp.c_fc.weight = nn.Parameter(mlp.c_fc.weight + 1)
    assert not mlp.steps.serves(x, *mlp.parts())
    expected = mlp(x)
    mlp.prepare_steps()
    torch.testing.assert_close(mlp(x), expected)


@needs_compiler
def test_a_write_that_torch_does_not_count_is_seen_at_the_next_generation():
    model, prompt = tiny_model(), torch.tensor([[1, 2, 3]])
    model.generate(prompt, 3)
    for block in model.transformer.h:
        block.mlp.c_fc.weight.data.mul_(-3)
        block.mlp.sparse_gate.threshold.detach().numpy()[:] *= 2
    old = model.transformer.h[0].mlp.steps
    model.generate(prompt, 3)
    assert model.transformer.h[0].mlp.steps is not old


@needs_compiler
@pytest.mark.parametrize("part", ["c_fc", "c_proj", "oscillating", "sparse_gate"])
def test_a_replaced_part_of_an_mlp_counts_at_once(part):
    mlp, x = tiny_model().eval().transformer.h[0].mlp, torch.randn(1, 1, 32)
    mlp.prepare_steps()
    other = tiny_model(bio_target_rate=0.5).transformer.h[1].mlp
    setattr(mlp, part, getattr(other, part))
    assert not mlp.steps.serves(x, *mlp.parts())
    expected = mlp(x)
    mlp.prepare_steps()
    assert mlp.steps.serves(x, *mlp.parts())
    torch.testing.assert_close(mlp(x), expected)


@needs_compiler
@pytest.mark.parametrize("part", ["c_fc", "c_proj", "oscillating", "sparse_gate"])
def test_a_part_with_a_class_or_hooks_of_its_own_is_called(part):
    mlp, x = tiny_model().eval().transformer.h[0].mlp, torch.randn(1, 1, 32)
    mlp.prepare_steps()
    calls = []
    hook = getattr(mlp, part).register_forward_hook(lambda *_: calls.append(part))
    mlp(x)
    assert calls == [part] * (part != "oscillating")  # whose vectors the gate reads, without a call
    hook.remove()
    assert mlp.steps.serves(x, *mlp.parts())
    adapted = getattr(mlp, part)
    adapted.__class__ = type("Adapted", (type(adapted),), {})
    mlp.steps = None
    mlp.prepare_steps()
    assert mlp.steps is None


@needs_compiler
def test_vectors_that_do_not_lie_in_a_row_and_weights_without_a_count_take_the_dense_way():
    model = tiny_model().eval()
    mlp = model.transformer.h[0].mlp
    mlp.sparse_gate.threshold = torch.tensor(0.5).expand(128)
    mlp.prepare_steps()
    assert mlp.steps is None
    with torch.inference_mode():
        model = tiny_model()
        model.generate(torch.tensor([[1]]), 3)
    assert model.transformer.h[0].mlp.steps is None


@needs_compiler
def test_torchs_default_dtype_changes_no_step():
    model, prompt = tiny_model(), torch.tensor([[1, 2, 3]])
    expected = model.generate(prompt, 5, temperature=0)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(model.generate(prompt, 5, temperature=0), expected)
        for block in model.transformer.h:
            block.mlp.steps = None
        assert torch.equal(model.generate(prompt, 5, temperature=0), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@needs_compiler
def test_a_layer_without_its_mlp_generates():
    model = tiny_model()
    model.transformer.h[0].mlp = nn.Identity()
    assert model.generate(torch.tensor([[1]]), 3).shape == (1, 4)


@needs_compiler
def test_an_optimizers_step_between_two_tokens_counts_at_once():
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    stream = model.stream(torch.tensor([[1, 2]]), 5, temperature=0)
    next(stream), next(stream)
    served = model.transformer.h[0].mlp.steps
    with torch.enable_grad():
        model(torch.tensor([[1, 2]]), torch.tensor([[2, 3]]))[1].backward()
    optimizer.step()
    next(stream)
    assert served.tokens == 1


@needs_compiler
def test_only_single_tokens_without_gradients_in_float32_take_the_event_driven_way():
    model = tiny_model().eval()
    mlp, x = model.transformer.h[0].mlp, torch.randn(1, 1, 32)
    mlp.prepare_steps()
    assert mlp.steps.serves(x, *mlp.parts())
    for other in (x.expand(1, 2, 32), x.double()):
        assert not mlp.steps.serves(other, *mlp.parts())
    with torch.enable_grad():
        assert not mlp.steps.serves(x, *mlp.parts())
    with torch.autocast("cpu", torch.bfloat16):
        assert not mlp.steps.serves(x, *mlp.parts())
    model.double().generate(torch.tensor([[1]]), 3)
    assert mlp.steps is None
    model = tiny_model()
    model.generate(torch.ones(2, 1, dtype=torch.long), 3)
    assert model.transformer.h[0].mlp.steps is None


@needs_compiler
def test_weights_laid_out_under_autocast_serve_without_it():
    model = tiny_model().eval()
    mlp, x = model.transformer.h[0].mlp, torch.randn(1, 1, 32)
    mlp.oscillating.baseline.normal_()
    expected = mlp(x)
    with torch.autocast("cpu", torch.bfloat16):
        mlp.prepare_steps()
    assert mlp.steps.serves(x, *mlp.parts())
    torch.testing.assert_close(mlp(x), expected, atol=1e-5, rtol=1e-5)


@needs_compiler
def test_a_copied_model_prepares_itself_anew():
    model = tiny_model()
    model.generate(torch.tensor([[1]]), 3)
    assert copy.deepcopy(model).transformer.h[0].mlp.steps is None


def test_without_a_kernel_the_dense_mlp_serves(monkeypatch):
    monkeypatch.setattr(event_mlp_cpu, "load_kernel", lambda: (None, "plain torch: no C compiler found"))
    model = tiny_model()
    model.generate(torch.tensor([[1]]), 3)
    assert model.transformer.h[0].mlp.steps is None


def test_a_soft_gate_has_nothing_to_prepare():
    model = tiny_model(bio_event="soft")
    model.generate(torch.tensor([[1]]), 3)
    assert model.transformer.h[0].mlp.steps is None
