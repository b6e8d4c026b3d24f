"""Which parameters decay, and Muon: its orthogonalisation, the size of its updates, its state."""

import copy

import pytest
import torch
from torch import nn

from model_bio import GPT, GPTConfig
from wiggle.optimizers import Muon, configure_optimizer, orthogonalise


def tiny_model():
    config = GPTConfig(block_size=16, vocab_size=31, n_layer=2, n_head=2, n_embd=16, mlp="bio", bio_gate="feature")
    return GPT(config, seed=1)


def take_steps(model, optimizer, count):
    x = torch.randint(31, (2, 16), generator=torch.Generator().manual_seed(0))
    for _ in range(count):
        model(x, x)[1].backward()
        optimizer.step()
        optimizer.zero_grad()


def test_only_matrices_decay():
    model = tiny_model()
    decayed, free = configure_optimizer(model, 0.1, 1e-3, (0.9, 0.95), "cpu").param_groups
    assert decayed["weight_decay"] == 0.1 and free["weight_decay"] == 0
    assert all(p.dim() >= 2 for p in decayed["params"])
    vectors = {"omega", "phi", "baseline", "gain", "offset", "bias"}
    named = {id(p) for name, p in model.named_parameters() if name.rsplit(".", 1)[-1] in vectors}
    assert named <= {id(p) for p in free["params"]}
    assert len(decayed["params"]) + len(free["params"]) == len(list(model.parameters()))


def test_orthogonalise_makes_singular_values_one_and_keeps_the_directions():
    matrices = torch.randn(3, 20, 8) * torch.tensor([1e-4, 1.0, 1e4])[:, None, None]
    for g in (matrices, matrices.mT):
        singular = torch.linalg.svdvals(orthogonalise(g))
        assert singular.min() > 0.3 and singular.max() < 1.3
        left, _, right = torch.linalg.svd(g, full_matrices=False)
        assert ((orthogonalise(g) * (left @ right)).sum((1, 2)) / 8 > 0.6).all()  # it points where UV^T does


@pytest.mark.parametrize("decades", [0, 3, 9])
def test_orthogonalise_is_the_plain_newton_schulz_iteration(decades):
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


def test_muon_moves_every_parameter_and_keeps_one_moment_of_a_matrix():
    model = tiny_model()
    optimizer = configure_optimizer(model, 0.1, 1e-2, (0.9, 0.99), "cpu", "muon")
    before = {name: p.clone() for name, p in model.named_parameters()}
    take_steps(model, optimizer, 3)
    for name, parameter in model.named_parameters():
        assert (parameter - before[name]).abs().max() > 0, name
        if parameter.dim() == 2 and name.startswith("transformer.h."):
            assert len(optimizer.state[parameter]) == 1  # where AdamW keeps two


def test_muon_goes_on_from_its_saved_state_to_the_same_weights():
    models = [tiny_model() for _ in range(2)]
    first, second = (configure_optimizer(m, 0.1, 1e-2, (0.9, 0.99), "cpu", "muon") for m in models)
    take_steps(models[0], first, 3)
    models[1].load_state_dict(models[0].state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    take_steps(models[0], first, 2)
    take_steps(models[1], second, 2)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_muons_update_has_adamws_size():
    weight = nn.Parameter(torch.zeros(64, 32))
    rest = [{"params": [nn.Parameter(torch.zeros(1))]}]
    optimizer = Muon([{"params": [weight], "weight_decay": 0.0}], rest, 0.5, (0.9, 0.99), fused=False)
    weight.grad = torch.randn(64, 32)
    optimizer.step()
    assert weight.square().mean().sqrt().item() == pytest.approx(0.5 * 0.2, rel=0.25)  # lr times AdamW's usual RMS
