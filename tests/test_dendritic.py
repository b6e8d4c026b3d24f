"""The dendritic unit: its equation, its size, its start, its usage, and that it learns."""

import math

import pytest
import torch

from model_bio import ACTIVATIONS, GPT, MLP, DendriticMLP, GPTConfig
from train import train
from wiggle import checkpoint
from wiggle.optimizers import configure_optimizer

BETAS = ("layer", "unit", "channel", "fixed")


def small(**changes):
    return GPTConfig(**{"block_size": 16, "vocab_size": 31, "n_layer": 2, "n_head": 2, "n_embd": 16} | changes)


def dendrites(**changes):
    """A block far from its start, so that a mistake shows."""
    block = DendriticMLP(small(mlp="dendritic", **changes))
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    return block


# --- equations ---


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("K", [2, 3])
def test_dendritic_unit_is_its_equation(beta, K):
    block = dendrites(dendritic_branches=K, dendritic_beta=beta)
    x = torch.randn(5, 16)
    hidden = block.c_proj.in_features
    rows, offsets = block.c_fc.weight.view(K, hidden, 16), block.c_fc.bias.view(K, hidden)
    sharpness = {"unit": lambda k, j: j, "channel": lambda k, j: k * hidden + j}.get(beta, lambda k, j: 0)
    expected = torch.zeros(5, hidden)
    for t in range(5):
        for j in range(hidden):
            z = [(rows[k, j] @ x[t] + offsets[k, j]).item() for k in range(K)]
            weight = [math.exp(math.exp(block.log_beta[sharpness(k, j)].item()) * z[k]) for k in range(K)]
            expected[t, j] = sum(w * v for w, v in zip(weight, z, strict=True)) / sum(weight)
    torch.testing.assert_close(block(x), block.c_proj(expected), atol=1e-4, rtol=1e-4)


def test_dendritic_beta_goes_from_the_mean_to_the_maximum():
    x, block = torch.randn(7, 16), dendrites(dendritic_branches=4)
    z = block.c_fc(x).unflatten(-1, (4, -1))
    for log_beta, expected in ((-30.0, z.mean(1)), (9.0, z.amax(1))):
        with torch.no_grad():
            block.log_beta.fill_(log_beta)
        torch.testing.assert_close(block(x), block.c_proj(expected), atol=2e-3, rtol=0)


def test_dendritic_block_has_no_other_nonlinearity():
    block, (a, b) = dendrites(), torch.randn(2, 7, 16)
    with torch.no_grad():
        block.log_beta.fill_(-30.0)  # no competition: what is left must be affine
    torch.testing.assert_close(block(a + b), block(a) + block(b) - block(0 * a), atol=1e-4, rtol=1e-4)


# --- sizes ---


@pytest.mark.parametrize("width", [64, 128, 192, 384, 768])
@pytest.mark.parametrize("bias", [False, True])
def test_the_block_has_the_parameters_of_gelus(width, bias):
    arms = [{"dendritic_branches": K, "dendritic_beta": beta} for K in (2, 3, 4, 8) for beta in BETAS]
    with torch.device("meta"):
        control = MLP(small(n_embd=width, bias=bias), ACTIVATIONS["gelu"].build)
        expected = sum(p.numel() for p in control.parameters())
        for arm in arms:
            block = GPT(small(n_embd=width, bias=bias, n_layer=1, mlp="dendritic", **arm), seed=0).transformer.h[0].mlp
            assert sum(p.numel() for p in block.parameters()) == pytest.approx(expected, rel=0.01), arm


def test_a_block_of_two_branches_at_gpt2s_width_has_8_thirds_of_it_in_units():
    with torch.device("meta"):
        assert GPT(small(mlp="dendritic", n_embd=768, bias=False)).transformer.h[0].mlp.c_proj.in_features == 2048


# --- starts ---


@pytest.mark.parametrize("beta", BETAS)
def test_beta_starts_where_it_is_told_and_is_not_decayed(beta):
    model = GPT(small(mlp="dendritic", dendritic_branches=3, dendritic_beta=beta, dendritic_beta_init=8.0), seed=0)
    block = model.transformer.h[0].mlp
    hidden = block.c_proj.in_features
    assert block.log_beta.numel() == {"layer": 1, "unit": hidden, "channel": 3 * hidden, "fixed": 1}[beta]
    torch.testing.assert_close(block.log_beta.exp(), torch.full_like(block.log_beta, 8.0))
    optimizer = configure_optimizer(model, 10.0, 1.0, (0.9, 0.99), "cpu")
    x = torch.randint(31, (2, 16))
    model(x, x)[1].backward()
    undecayed = {id(p) for p in optimizer.param_groups[1]["params"]}
    assert optimizer.param_groups[1]["weight_decay"] == 0
    if beta == "fixed":
        before = block.log_beta.clone()
        optimizer.step()
        assert block.log_beta.grad is None and torch.equal(before, block.log_beta)
    else:
        assert id(block.log_beta) in undecayed and block.log_beta.grad.abs().max() > 0
        optimizer.step()
        assert (block.log_beta.exp() > 0).all()


# --- in a model ---


@pytest.mark.parametrize("mlp", ["dendritic", "swiglu", "xielu", "polynorm"])
def test_blocks_with_shapes_of_their_own_train_save_and_load(tiny, mlp):
    result = train(tiny(mlp=mlp, max_blowup=None, max_iters=10, learning_rate=3e-2))
    lines = [line["loss"] for line in result.history if "loss" in line]
    assert lines[-1] < lines[0]
    model, meta = checkpoint.load_model(f"{result.out_dir}/best.pt")
    assert model.config.mlp == mlp and meta["origin"] == "WiggleGPT"
    x = torch.zeros(1, 5, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.transformer.h[0].mlp(torch.randn(2, 3, 16)).dtype == torch.bfloat16
    torch.testing.assert_close(
        model.generate(x, 20, temperature=0), model.generate(x, 20, temperature=0, use_cache=False)
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dendritic_branches": 1}, "dendritic_branches=1.*at least 2"),
        ({"dendritic_beta_init": 0.0}, "dendritic_beta_init=0.0.*above 0"),
        ({"dendritic_beta_init": math.inf}, "above 0"),
        ({"dendritic_beta": "head"}, "dendritic_beta='head' is unknown: choose one of layer, unit, channel, fixed"),
    ],
)
def test_what_no_dendrite_can_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small(mlp="dendritic", **changes)
