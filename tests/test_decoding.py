"""What generation is made of: the draw of a token, the cache of keys and values, and matrices cast once."""

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd

from kernels.decoding import KVCache, cast_matrices, pick_tokens


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("top_k", "top_p"), [(None, None), (5, None), (None, 0.8), (6, 0.7)])
def test_draws_follow_the_distribution(top_k, top_p):
    logits = torch.tensor([0.3, -1.0, 2.0, 0.9, 1.4, -0.2, 0.0])
    p = (logits / 0.7).softmax(0)
    order = p.argsort(descending=True)
    p[order[top_k or 7 :]] = 0
    p /= p.sum()
    if top_p:
        p[order[(p[order].cumsum(0) < top_p).sum() + 1 :]] = 0
        p /= p.sum()
    many = logits.expand(40_000, 7)
    drawn = pick_tokens(many, 0.7, top_k, top_p, seeded(0))
    assert torch.equal(drawn, pick_tokens(many, 0.7, top_k, top_p, seeded(0)))
    assert not torch.equal(drawn, pick_tokens(many, 0.7, top_k, top_p, seeded(1)))
    found, expected = torch.bincount(drawn[:, 0], minlength=7), 40_000 * p
    assert not found[p == 0].any()
    chi_square = ((found - expected)[p > 0] ** 2 / expected[p > 0]).sum()
    assert chi_square < 22.5  # the 99.9th percentile with 6 degrees of freedom


def test_temperature_0_takes_the_likeliest():
    logits = torch.randn(5, 9)
    assert torch.equal(pick_tokens(logits, 0, 3, 0.5, None), logits.argmax(1, keepdim=True))


def test_places_as_a_slice_and_as_a_tensor_show_the_same_tokens():
    caches = [KVCache((2, 1, 3, 8, 4), torch.device("cpu"), torch.float32) for _ in range(2)]
    k, v = torch.randn(2, 1, 3, 6, 4)
    for cache in caches:
        assert cache.extend(1, slice(0, 5), k[:, :, :5], v[:, :, :5])[2] is None
    keys, values, mask = caches[0].extend(1, slice(5, 6), k[:, :, 5:], v[:, :, 5:])
    assert torch.equal(keys, k) and torch.equal(values, v) and mask is None
    keys, values, mask = caches[1].extend(1, torch.tensor([5]), k[:, :, 5:], v[:, :, 5:])
    assert keys.shape == (1, 3, 8, 4) and mask.tolist() == [[True] * 6 + [False] * 2]
    assert torch.equal(keys[:, :, mask[0]], k) and torch.equal(values[:, :, mask[0]], v)
    assert not caches[0].keys_0.any(), "another layer's"


def test_a_compiled_step_writes_into_one_layers_buffers_at_a_time():
    """A buffer that a traced operation makes anew is copied whole, for all layers' tokens, at each token."""
    cache, (k, v) = KVCache((3, 1, 2, 64, 4), torch.device("cpu"), torch.float32), torch.randn(2, 1, 2, 1, 4)
    sizes = []

    def note_sizes(graph, inputs):
        made = [node for node in graph.graph.nodes if node.op == "call_function"]
        sizes.extend(node.meta["val"].numel() for node in made if isinstance(node.meta.get("val"), torch.Tensor))
        return make_boxed_func(graph.forward)

    def step(cache, place, k, v):
        return [cache.extend(layer, place, k, v)[0].sum() for layer in range(3)]

    torch._dynamo.reset()
    compiled = torch.compile(step, backend=aot_autograd(fw_compiler=note_sizes), fullgraph=True)
    with torch.no_grad():
        compiled(cache, torch.tensor([5]), k, v)
    assert torch.equal(cache.keys_2[:, :, 5:6], k) and torch.equal(cache.values_0[:, :, 5:6], v)
    assert max(sizes) == cache.keys_0.numel(), "one layer's buffer, which is written in place"


def test_matrices_are_cast_and_nothing_else():
    model = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 5))
    model[0].weight = model[2].weight  # tied
    cast_matrices(model, torch.bfloat16)
    assert model[0].weight is model[2].weight and model[0].weight.dtype == torch.bfloat16
    assert {p.dtype for p in (model[1].weight, model[1].bias, model[2].bias)} == {torch.float32}
