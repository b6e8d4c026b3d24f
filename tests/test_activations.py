"""The built-in activations: each is its equation, has GELU's parameters, starts as GELU's block does, and learns."""

import math
import re

import pytest
import torch

from kernels.activations import ACTIVATIONS, Snake
from model_bio import GPT, MLP, MLPS, GPTConfig
from train import TrainConfig
from wiggle.configurator import read_settings
from wiggle.optimizers import configure_optimizer


def phi(v):
    """The normal distribution's function Φ."""
    return 0.5 * (1 + math.erf(v / math.sqrt(2)))


def silu(v):
    return v / (1 + math.exp(-v))


def halves(function):
    """A gated unit's rows: function(x)·z of the two halves x, z."""
    return lambda row: [function(x) * z for x, z in zip(row[: len(row) // 2], row[len(row) // 2 :], strict=True)]


def each(function):
    return lambda row: [function(v) for v in row]


def polynorm(row):
    def n(values):
        return [v / math.sqrt(sum(u * u for u in values) / len(values) + 1e-6) for v in values]

    terms = zip(n(row), n([v**2 for v in row]), n([v**3 for v in row]), strict=True)
    return [0.5 * a + 0.25 * b - 0.125 * c + 0.1 for a, b, c in terms]


# Plain Python, on purpose: a second way to the same numbers. Learned parameters are those that `disturb` sets.
FORMULAS = {
    "gelu": each(lambda v: v * phi(v)),
    "gelu_tanh": each(lambda v: 0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))),
    "relu": each(lambda v: max(0, v)),
    "relu2": each(lambda v: max(0, v) ** 2),
    "relu2_clipped": each(lambda v: min(max(0, v), 1) ** 2),
    "leaky_relu2": each(lambda v: (v if v > 0 else v / 2) ** 2),
    "gelu2": each(lambda v: (v * phi(v)) ** 2),
    "silu": each(silu),
    "swiglu": halves(silu),
    "geglu": halves(lambda v: v * phi(v)),
    "snake": lambda row: [v + math.sin(a * v) ** 2 / a for v, a in zip(row, (0.3, 0.6, 0.9, 1.2, 1.5, 2), strict=True)],
    "gcu": each(lambda v: v * math.cos(v)),
    "golu": each(lambda v: v * math.exp(-math.exp(-v))),
    "xielu": each(lambda v: 1.1 * v * v + v / 2 if v > 0 else 0.7 * (math.exp(v) - 1 - v) + v / 2),
    "polynorm": polynorm,
    "sintanh": each(lambda v: math.sin(v) * math.tanh(v)),
}


@torch.no_grad()
def disturb(name, neuron):
    """Give learned parameters values other than those of the start, so that a parameter that is not used shows."""
    if name == "snake":
        neuron.a.copy_(torch.tensor([0.3, 0.6, 0.9, 1.2, 1.5, 2]))
    if name == "xielu":
        neuron.positive.fill_(math.log(math.expm1(1.1)))
        neuron.negative.fill_(math.log(math.expm1(0.7 - 0.5)))
    if name == "polynorm":
        neuron.coefficients.copy_(torch.tensor([0.5, 0.25, -0.125]))
        neuron.bias.fill_(0.1)


def small(**changes):
    return GPTConfig(**{"block_size": 16, "vocab_size": 31, "n_layer": 2, "n_head": 2, "n_embd": 16} | changes)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_its_equation(name):
    neuron, x = ACTIVATIONS[name].build(6), torch.linspace(-3, 3, 30).view(5, 6)
    disturb(name, neuron)
    expected = torch.tensor([FORMULAS[name](row) for row in x.tolist()])
    torch.testing.assert_close(neuron(x), expected, atol=1e-5, rtol=1e-5)
    assert neuron(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_finite_with_its_gradient_far_from_zero(name):
    neuron, x = ACTIVATIONS[name].build(8), torch.tensor([[-1e4, -90.0, -20.0, 0.0, 1e-9, 20.0, 90.0, 1e4]])
    x.requires_grad_()
    neuron(x).sum().backward()
    assert neuron(x).isfinite().all() and x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in neuron.parameters())


def test_learned_activations_start_as_published():
    x = torch.linspace(-3, 3, 50).view(5, 10)
    torch.testing.assert_close(
        ACTIVATIONS["xielu"].build(10)(x), torch.where(x > 0, 0.8 * x**2, 0.8 * (x.exp() - 1 - x)) + x / 2
    )
    assert ACTIVATIONS["polynorm"].build(10).coefficients.tolist() == pytest.approx([1 / 3] * 3)


def test_snake_survives_a_frequency_of_zero():
    neuron, x = Snake(3), torch.randn(4, 3)
    with torch.no_grad():
        neuron.a.zero_()
    neuron(x).sum().backward()
    torch.testing.assert_close(neuron(x), x)
    assert neuron.a.grad.isfinite().all()


@pytest.mark.parametrize("width", [64, 128, 192, 384, 768])
@pytest.mark.parametrize("bias", [False, True])
def test_every_activations_block_has_the_parameters_of_gelus(width, bias):
    with torch.device("meta"):
        control = MLP(small(n_embd=width, bias=bias), ACTIVATIONS["gelu"].build)
        expected = sum(p.numel() for p in control.parameters())
        for name in ACTIVATIONS:
            block = GPT(small(n_embd=width, bias=bias, n_layer=1, mlp=name), seed=0).transformer.h[0].mlp
            assert sum(p.numel() for p in block.parameters()) == pytest.approx(expected, rel=0.01), name


def test_gated_blocks_at_gpt2s_width_are_what_the_paper_says():
    with torch.device("meta"):
        for name in ("swiglu", "geglu"):
            block = GPT(small(mlp=name, n_embd=768, bias=False)).transformer.h[0].mlp
            assert block.c_proj.in_features == 2048  # 8/3 of 768
        assert GPT(small(n_embd=516)).transformer.h[0].mlp.c_proj.in_features == 2064  # the control is never rounded


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_share_every_weight_that_both_have(name):
    gelu, other = (dict(GPT(small(mlp=mlp), seed=5).named_parameters()) for mlp in ("gelu", name))
    shared = {n for n in gelu if n in other and gelu[n].shape == other[n].shape}
    assert all(torch.equal(gelu[n], other[n]) for n in shared)
    assert (set(gelu) if ACTIVATIONS[name].fan == 1 else {n for n in gelu if "mlp" not in n}) <= shared


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_model_of_each_activation_takes_a_step_that_moves_all_it_learns(name):
    model, idx = GPT(small(mlp=name), seed=0), torch.arange(32).view(2, 16) % 31
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = configure_optimizer(model, 0.1, 1e-2, (0.9, 0.99), "cpu")
    losses = []
    for _ in range(3):
        loss = model(idx, idx.roll(-1, 1))[1]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(not torch.equal(before[n], p) for n, p in model.named_parameters())


def test_what_an_activation_learns_is_not_decayed():
    for name in ("snake", "xielu", "polynorm"):
        model = GPT(small(mlp=name), seed=0)
        groups = configure_optimizer(model, 0.1, 1e-2, (0.9, 0.99), "cpu").param_groups
        decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        assert all(decay[id(p)] == 0 for block in model.transformer.h for p in block.mlp.neuron.parameters())


@pytest.mark.parametrize(("setting", "std"), [(None, 0.02), ("unit", 0.25), (0.1, 0.1)])
def test_c_fc_starts_at_its_own_scale_from_the_same_draws(setting, std):
    usual, own = (GPT(small(c_fc_std=value), seed=3).state_dict() for value in (None, setting))
    for name in usual:
        factor = std / 0.02 if name.endswith("mlp.c_fc.weight") else 1.0
        torch.testing.assert_close(own[name], usual[name] * factor)


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_an_impossible_scale_is_refused(value):
    with pytest.raises(ValueError, match="c_fc_std"):
        small(c_fc_std=value)


# --- who names the arms ---


def test_help_lists_the_table_of_activations(capsys):
    with pytest.raises(SystemExit):
        read_settings(TrainConfig, ["--help"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  mlp = ")]
    assert line.endswith(f": {', '.join(MLPS)}, or file.py:Name")


def test_the_readme_lists_the_table_of_activations(request):
    text = (request.config.rootpath / "README.md").read_text(encoding="utf-8")
    (listed,) = re.findall(r"The arms are (.*?);", text, flags=re.DOTALL)
    assert sorted(re.findall(r"`(\w+)`", listed)) == sorted(MLPS)
