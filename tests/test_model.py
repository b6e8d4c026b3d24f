"""The model against its equations, an independent GPT-2, and the invariants of the design."""

import collections
import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import model_bio
from kernels import attention, c_library, cross_entropy
from kernels.decoding import cast_matrices
from model_bio import (
    ACTIVATIONS,
    GPT,
    BioMLP,
    CausalSelfAttention,
    GPTConfig,
    model_args,
    rope_tables,
)
from wiggle.telemetry import event_rates


def small(**changes):
    return GPTConfig(**{"block_size": 16, "vocab_size": 31, "n_layer": 2, "n_head": 2, "n_embd": 16} | changes)


VARIANTS = [
    {},
    *({"mlp": "bio", "bio_gate": gate} for gate in ("none", "feature", "dense")),
    {"mlp": "bio", "bio_event": "hard"},
    {"mlp": "bio", "position": "rope", "use_rmsnorm": True, "bias": False},
    {"mlp": "bio", "position": "none"},
    {"mlp": "gelu", "position": "rope", "qk_norm": True},
]


def ids(*shape, vocab=31):
    return torch.randint(0, vocab, shape, generator=torch.Generator().manual_seed(0))


def loud(model):
    """Random weights far from the start's small ones, so that a mistake shows in the logits."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def parameters(**changes):
    with torch.device("meta"):
        return GPT(GPTConfig(**changes))


# --- the neurons ---


@pytest.mark.parametrize("gate", ["none", "feature", "dense"])
def test_bio_mlp_is_its_parts_in_order(gate):
    mlp = BioMLP(small(bio_gate=gate))
    x = torch.randn(3, 5, 16)
    expected = mlp.oscillating(mlp.c_fc(x))
    expected = expected if gate == "none" else mlp.sparse_gate.pass_on(expected)
    torch.testing.assert_close(mlp(x), mlp.c_proj(expected), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("width", [64, 384])
@pytest.mark.parametrize("event", ["soft", "hard"])
def test_a_gate_starts_selective(width, event):
    model = GPT(small(mlp="bio", bio_event=event, n_embd=width, n_layer=1), seed=0)
    normalised = torch.randn(50, width)
    assert 0.1 < model.transformer.h[0].mlp.fires(normalised).float().mean() < 0.2


def test_event_rates_are_the_share_above_the_threshold():
    model = loud(GPT(small(mlp="bio", dropout=0.5))).train()
    x, seen = ids(3, 16), []
    hooks = [
        block.mlp.register_forward_hook(
            lambda m, i, o: seen.append(
                (torch.sigmoid(m.sparse_gate.gain * m.oscillating(m.c_fc(i[0])) + m.sparse_gate.offset) > 0.25)
                .float()
                .mean()
            )
        )
        for block in model.transformer.h
    ]
    model.eval().hidden(x)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(event_rates(model.train(), x), torch.stack(seen))
    assert model.training
    assert event_rates(GPT(small()), x) is None
    assert event_rates(GPT(small(mlp="bio", bio_gate="none")), x) is None


# --- sizes ---


def test_parameters_of_gpt2s_shape():
    assert round(parameters(bias=False).get_num_params(non_embedding=False) / 1e6, 2) == 124.37
    assert round(parameters(bias=True).get_num_params(non_embedding=False) / 1e6, 2) == 124.48
    gelu = parameters(bias=False).get_num_params()
    for gate, most in (("none", 1.001), ("feature", 1.0025)):
        assert 1 < parameters(bias=False, mlp="bio", bio_gate=gate).get_num_params() / gelu < most
    assert round(parameters(bias=False, mlp="bio", bio_gate="dense").get_num_params() / 1e6, 1) == 350.3
    historic = parameters(bias=False, mlp="bio", bio_gate="dense", n_layer=4, n_head=6, n_embd=384)
    assert round(historic.get_num_params() / 1e6, 1) == 45.3


def test_flops_as_nanogpt_counts_them():
    model = parameters(bias=False)
    assert round(model.flops_per_token() / 1e6) == 855
    assert model.estimate_mfu(12, 0.5) == pytest.approx(model.flops_per_token() * 12 * 1024 / 0.5 / 312e12)


# --- the GELU model is GPT-2 ---


def hugging_face(activation, folder=None):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=31, n_positions=16, n_embd=16, n_layer=2, n_head=2, activation_function=activation,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = loud(transformers.GPT2LMHeadModel(config))
    if folder:
        theirs.save_pretrained(folder)
    return theirs


@pytest.mark.parametrize(("mlp", "activation"), [("gelu", "gelu"), ("gelu_tanh", "gelu_new")])
def test_gelu_model_equals_an_independent_gpt2(tmp_path, mlp, activation):
    theirs = hugging_face(activation, tmp_path)
    ours = GPT.from_pretrained(str(tmp_path)).eval()
    assert ours.config.mlp == mlp
    x = ids(3, 16)
    logits, loss = ours(x, x)
    reference = theirs(x)
    torch.testing.assert_close(logits, reference.logits, atol=1e-5, rtol=1e-5)
    expected = nn.functional.cross_entropy(reference.logits.flatten(0, 1), x.flatten())
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    other = {"gelu": "gelu_tanh", "gelu_tanh": "gelu"}[mlp]
    wrong = GPT(GPTConfig(**model_args(ours.config) | {"mlp": other})).eval()
    wrong.load_state_dict(ours.state_dict())
    assert (wrong(x, x)[0] - reference.logits).abs().max() > 1e-4  # the test can tell the two forms apart


def test_gelu_state_dict_has_nanogpts_names():
    layer = "ln_1.weight ln_1.bias attn.c_attn.weight attn.c_attn.bias attn.c_proj.weight attn.c_proj.bias ln_2.weight "
    layer += "ln_2.bias mlp.c_fc.weight mlp.c_fc.bias mlp.c_proj.weight mlp.c_proj.bias"
    names = {"transformer.wte.weight", "transformer.wpe.weight", "transformer.ln_f.weight", "transformer.ln_f.bias"}
    names |= {f"transformer.h.{i}.{name}" for i in (0, 1) for name in layer.split()} | {"lm_head.weight"}
    assert set(GPT(small()).state_dict()) == names
    assert set(GPT(small(bias=False)).state_dict()) == {name for name in names if not name.endswith("bias")}


# --- forward ---


@pytest.mark.parametrize("changes", VARIANTS)
def test_no_logit_sees_the_future(changes):
    model = loud(GPT(small(**changes)))
    x = ids(2, 16)
    y = x.clone()
    y[:, 9] = (y[:, 9] + 1) % 31
    before, after = model(x, x)[0], model(y, y)[0]
    torch.testing.assert_close(before[:, :9], after[:, :9], atol=1e-6, rtol=0)
    assert (before[:, 9] - after[:, 9]).abs().max() > 1e-3


@pytest.mark.parametrize("changes", VARIANTS)
def test_loss_and_last_logits(changes):
    model = loud(GPT(small(**changes)))
    x = ids(2, 10)
    targets = x.roll(-1, 1)
    targets[:, -3:] = -1
    logits, loss = model(x, targets)
    last, none = model(x)
    assert none is None and last.shape == (2, 1, 31)
    torch.testing.assert_close(last, logits[:, [-1]], atol=1e-5, rtol=1e-5)
    expected = nn.functional.cross_entropy(logits[:, :-3].flatten(0, 1), targets[:, :-3].flatten())
    torch.testing.assert_close(loss, expected)


def test_rope_depends_on_distance_alone_and_none_on_nothing():
    x = ids(1, 1).repeat(1, 8)
    attention = [loud(GPT(small(position=p))).hidden(x) for p in ("learned", "rope", "none")]
    spread = [(h - h[:, :1]).abs().max().item() for h in attention]
    assert spread[0] > 0.1 and spread[1] < 1e-5 and spread[2] < 1e-5  # one token repeated: every mixture is that token
    model = loud(GPT(small(position="rope")))
    a, b = ids(1, 6), ids(1, 6).flip(1)
    assert (model(torch.cat([a, b], 1))[0] - model(torch.cat([b[:, :3], a, b[:, 3:]], 1))[0]).abs().max() > 1e-3


@pytest.mark.skipif(c_library.find_compiler() is None, reason="no C compiler")
@pytest.mark.parametrize("changes", [{}, {"qk_norm": True, "position": "rope"}])
def test_the_kernel_for_attention_serves_without_dropout_and_changes_nothing(changes, monkeypatch):
    calls, attend = [], attention.attend
    monkeypatch.setattr(attention, "attend", lambda *args: calls.append(args) or attend(*args))
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


def test_gradient_checkpointing_changes_nothing():
    gradients = []
    for recompute in (False, True):
        model = GPT(small(mlp="bio", gradient_checkpointing=recompute), seed=3)
        x = ids(2, 16)
        model(x, x)[1].backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_in_chunks_is_the_plain_one(monkeypatch, dtype):
    x = ids(3, 16)
    targets = x.roll(-1, 1)
    targets[0, 5:9] = -1
    found = []
    for limit in (2**25, 0):
        monkeypatch.setattr(model_bio, "LARGE_LOGITS", limit)
        monkeypatch.setattr(cross_entropy, "CHUNK", 7)
        model = loud(GPT(small(mlp="bio"))).train()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits, loss = model(x, targets)
        assert (logits is None) == (limit == 0) and loss.dtype == torch.float32
        (3 * loss).backward()
        found.append((loss, [p.grad for p in model.parameters()]))
        assert model.eval()(x, targets)[0].shape == (3, 16, 31)
    close = {"atol": 1e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 2e-2}
    torch.testing.assert_close(*(loss for loss, _ in found), **close)
    for a, b in zip(*(gradients for _, gradients in found), strict=True):
        torch.testing.assert_close(a, b, **close)


COMPILED = [{}, {"mlp": "bio"}, {"mlp": "bio", "bio_event": "hard"}, {"mlp": "dendritic"}]


@pytest.mark.parametrize("changes", COMPILED, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_training_step_is_one_graph_with_the_loss_in_chunks(monkeypatch, changes, dtype):
    monkeypatch.setattr(model_bio, "LARGE_LOGITS", 0)
    torch._dynamo.reset()
    model, x = GPT(small(**changes)).train(), ids(3, 16)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        compiled = torch.compile(model, backend="eager", fullgraph=True)  # which a break of the graph would fail
        torch.testing.assert_close(compiled(x, x)[1], model(x, x)[1])


def test_too_long_a_context_is_an_error_with_both_lengths():
    with pytest.raises(ValueError, match=r"17 tokens .* block_size=16"):
        GPT(small())(ids(1, 17))


# --- initialisation ---


def test_models_of_one_seed_share_every_weight_that_both_have():
    models = [GPT(small(**changes), seed=5) for changes in VARIANTS]
    torch.manual_seed(5)
    models.append(GPT(small()))  # without a seed, torch's own counts
    first = models[0].state_dict()
    for model in models[1:]:
        for name, tensor in model.state_dict().items():
            if name in first:
                assert torch.equal(tensor, first[name]), name
    assert not torch.equal(GPT(small(), seed=6).state_dict()["lm_head.weight"], first["lm_head.weight"])


def test_initial_scales():
    model = GPT(small(n_embd=64, n_layer=8, mlp="bio", vocab_size=500), seed=0)
    state = model.state_dict()
    assert state["transformer.h.0.mlp.c_fc.weight"].std().item() == pytest.approx(0.02, rel=0.03)
    assert state["transformer.h.0.mlp.c_proj.weight"].std().item() == pytest.approx(0.02 / 4, rel=0.03)
    assert state["transformer.wte.weight"].std().item() == pytest.approx(0.02, rel=0.03)
    omega, phi = (state[f"transformer.h.3.mlp.oscillating.{name}"] for name in ("omega", "phi"))
    assert omega.mean().item() == pytest.approx(1, abs=0.03) and omega.std().item() == pytest.approx(0.1, rel=0.2)
    assert phi.mean().item() == pytest.approx(0, abs=0.03) and phi.std().item() == pytest.approx(0.1, rel=0.2)
    assert (
        not state["transformer.h.3.mlp.c_fc.bias"].any() and not state["transformer.h.3.mlp.oscillating.baseline"].any()
    )
    assert torch.equal(state["transformer.ln_f.weight"], torch.ones(64))


class Noisy(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features))

    def forward(self, x):
        return x * self.weight


def test_a_users_neuron_draws_by_seed_and_disturbs_nothing():
    config = small(mlp="mine.py:Noisy")
    a, b, other = (GPT(config, neuron=Noisy, seed=seed) for seed in (1, 1, 2))
    weight = "transformer.h.1.mlp.neuron.weight"
    torch.randn(3)
    assert torch.equal(a.state_dict()[weight], b.state_dict()[weight])
    assert not torch.equal(a.state_dict()[weight], other.state_dict()[weight])
    assert not torch.equal(a.state_dict()[weight], a.state_dict()["transformer.h.0.mlp.neuron.weight"])
    assert a.state_dict()[weight].std() > 0.5  # its own draw, not the matrices' 0.02
    assert torch.equal(a.state_dict()["lm_head.weight"], GPT(small(), seed=1).state_dict()["lm_head.weight"])
    with pytest.raises(ValueError, match="neuron"):
        GPT(config)
    with pytest.raises(ValueError, match="takes no neuron"):
        GPT(small(), neuron=Noisy)


def test_crop_block_size():
    for position in ("learned", "rope", "none"):
        model = loud(GPT(small(position=position)))
        x = ids(1, 6)
        before = model(x)[0]
        model.crop_block_size(8)
        torch.testing.assert_close(model(x)[0], before)
        assert all(p.untyped_storage().nbytes() == p.nbytes for p in model.parameters())  # which a checkpoint writes
        with pytest.raises(ValueError, match="block_size=8"):
            model(ids(1, 9))
        with pytest.raises(ValueError, match="must lie in"):
            model.crop_block_size(9)


# --- generation ---


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class Operations(TorchDispatchMode):
    """Counts what torch is asked to do."""

    def __init__(self):
        super().__init__()
        self.count = collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count[function.overloadpacket.__name__] += 1
        return function(*args, **kwargs or {})


@pytest.fixture
def uncompiled(monkeypatch):
    """torch.compile left out, so that stream(compiled=True) runs a compiled step's code as it stands."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


@pytest.mark.parametrize("changes", VARIANTS)
def test_cached_generation_equals_uncached_past_the_context(changes):
    model = loud(GPT(small(**changes)))
    for length in (1, 16, 40):
        prompt = ids(2, length)
        cached = model.generate(prompt, 50, temperature=0)
        assert torch.equal(cached, model.generate(prompt, 50, temperature=0, use_cache=False))
        assert torch.equal(cached[:, :length], prompt)


@pytest.mark.parametrize("changes", VARIANTS)
def test_steps_of_fixed_shape_equal_those_that_read_a_slice(changes, uncompiled):
    model = loud(GPT(small(**changes)))
    for batch, length in ((1, 1), (3, 16), (2, 40)):
        prompt = ids(batch, length)
        options = {"temperature": 0, "repetition_penalty": 1.3}
        sliced = model.generate(prompt, 50, **options)
        assert torch.equal(sliced, model.generate(prompt, 50, **options, compiled=True))
    x = ids(2, 16)
    with torch.no_grad():
        caches = [model.new_cache(2, 16) for _ in range(2)]
        for buffer in caches[1].buffers():
            buffer.normal_()  # what lies behind a place is never looked at, whatever it is
        for cache in caches:
            model.hidden(x[:, :5], cache)
        for place in range(5, 16):
            token = x[:, place : place + 1]
            hidden = [model.hidden(token, caches[0], place), model.hidden(token, caches[1], torch.tensor([place]))]
            torch.testing.assert_close(*(model.lm_head(h) for h in hidden), atol=1e-5, rtol=0)


def test_one_cache_serves_many_streams(uncompiled):
    model = loud(GPT(small(mlp="bio")))
    cache = model.new_cache(2, 30)
    for length in (9, 3, 20):
        expected = model.generate(ids(2, length), 10, temperature=0)
        for compiled in (False, True):
            given = model.generate(ids(2, length), 10, temperature=0, cache=cache, compiled=compiled)
            assert torch.equal(given, expected)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"mlp": "bio", "position": "rope", "qk_norm": True, "use_rmsnorm": True}])
def test_a_compiled_step_equals_the_eager_one_and_is_compiled_once(changes):
    torch.compiler.reset()
    model = loud(GPT(small(**changes)))
    options = {"temperature": 0, "repetition_penalty": 1.3}
    torch._dynamo.utils.counters.clear()
    for length in (1, 9, 40):  # past the context, too
        prompt = ids(2, length)
        assert torch.equal(model.generate(prompt, 30, **options), model.generate(prompt, 30, **options, compiled=True))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    first, again = (model.generate(ids(2, 4), 20, compiled=True, generator=seeded(3)) for _ in range(2))
    assert torch.equal(first, again)


def test_no_step_waits_for_the_device(uncompiled):
    model = loud(GPT(small(mlp="bio")))
    waiting = {"_local_scalar_dense", "nonzero", "masked_select", "multinomial", "equal", "_to_copy", "unique2"}
    for options in ({"temperature": 0}, {"top_k": 5, "top_p": 0.9, "repetition_penalty": 1.2}, {}):
        with Operations() as operations:
            for _ in model.stream(ids(2, 3), 20, generator=seeded(0), compiled=True, **options):
                pass
        assert operations.count["index_put_"] and not waiting & set(operations.count)


@pytest.mark.parametrize("changes", [{}, {"mlp": "bio", "bio_gate": "feature", "position": "rope", "qk_norm": True}])
def test_matrices_cast_once_give_autocasts_logits(changes, uncompiled):
    model = loud(GPT(small(**changes)))
    kept = copy.deepcopy(model)
    cast_matrices(kept, torch.bfloat16)
    assert kept.lm_head.weight is kept.transformer.wte.weight
    for name, parameter in kept.named_parameters():
        matrix = parameter.dim() == 2 and "wpe" not in name
        assert parameter.dtype == (torch.bfloat16 if matrix else torch.float32), name
    x = ids(2, 16)
    exact = model(x, x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        cast, once = model(x, x)[0], kept(x, x)[0]
        assert kept.hidden(x).dtype == torch.float32  # the residual stream
        cache = kept.new_cache(2, 16)
        assert cache.keys_0.dtype == torch.bfloat16
        kept.hidden(x[:, :12], cache)
        sliced = kept.lm_head(kept.hidden(x[:, 12:13], cache, 12))
        fixed = kept.lm_head(kept.hidden(x[:, 12:13], cache, torch.tensor([12])))
        first, again = (kept.generate(x, 30, generator=seeded(1), compiled=compiled) for compiled in (False, True))
    rounding = (cast - exact).abs().max()
    assert 0 < (once - cast).abs().max() < 1.5 * rounding  # only the token embedding is rounded that was not before
    for step in (sliced, fixed):
        assert (step[:, 0] - once[:, 12]).abs().max() < 1.5 * rounding
    assert first.shape == again.shape == (2, 46)


def test_greedy_generation_is_the_argmax_of_forward():
    model = loud(GPT(small(mlp="bio")))
    text = model.generate(ids(1, 3), 10, temperature=0)
    for end in range(3, 13):
        assert text[0, end] == model(text[:, :end])[0].argmax()


def test_padding_ids_are_never_sampled():
    model = GPT(GPTConfig(block_size=8, vocab_size=50304, n_layer=1, n_head=1, n_embd=4))
    model.transformer.wte.weight.data[50257:] = 100.0  # the padding would win by far
    model.transformer.ln_f.bias.data.fill_(1.0)
    assert model(torch.zeros(1, 1, dtype=torch.long))[0].argmax() >= 50257
    for temperature in (0, 1.0):
        assert model.generate(torch.zeros(4, 1, dtype=torch.long), 20, temperature=temperature).max() < 50257
    model = loud(GPT(small()))
    model.sampled_vocab = 7
    assert model.generate(ids(8, 3, vocab=7), 30).max() < 7


def test_top_k_and_top_p_keep_what_they_say():
    model = loud(GPT(small()))
    prompt = ids(1, 4)
    probabilities = model(prompt)[0][0, -1].softmax(-1)
    order = probabilities.argsort(descending=True)
    many = prompt.repeat(2000, 1)
    generator = torch.Generator().manual_seed(0)
    drawn = model.generate(many, 1, top_k=3, generator=generator)[:, -1]
    assert set(drawn.tolist()) == set(order[:3].tolist())
    kept = (probabilities[order].cumsum(0) < 0.6).sum() + 1  # the fewest whose sum reaches 0.6
    drawn = model.generate(many, 1, top_p=0.6, generator=generator)[:, -1]
    assert set(drawn.tolist()) == set(order[:kept].tolist())
    assert set(model.generate(many, 1, top_p=1e-9, generator=generator)[:, -1].tolist()) == {order[0].item()}
    share = (model.generate(many, 1, generator=generator)[:, -1] == order[0]).float().mean()
    assert share == pytest.approx(probabilities[order[0]].item(), abs=0.05)


@pytest.mark.parametrize("sign", [1, -1])
def test_repetition_penalty_makes_seen_ids_less_likely_whatever_the_sign(sign):
    model = loud(GPT(small()))
    prompt = ids(1, 5)
    with torch.no_grad():  # all logits of one sign
        model.transformer.wte.weight.fill_(0.3 * sign)
        model.transformer.wte.weight += 0.01 * torch.randn(31, 16, generator=torch.Generator().manual_seed(2))
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.fill_(1.0)
    assert (model(prompt)[0] * sign > 0).all()
    drawn = model.generate(
        prompt.repeat(3000, 1), 1, repetition_penalty=50.0, generator=torch.Generator().manual_seed(0)
    )
    plain = model.generate(prompt.repeat(3000, 1), 1, generator=torch.Generator().manual_seed(0))
    share = [torch.isin(d[:, -1], prompt[0]).float().mean() for d in (drawn, plain)]
    assert share[0] < 0.2 * share[1]


def test_generation_leaves_the_mode_alone_and_ignores_dropout():
    model = GPT(small(dropout=0.5)).train()
    assert torch.equal(model.generate(ids(1, 3), 20, temperature=0), model.generate(ids(1, 3), 20, temperature=0))
    assert model.training


# --- impossible settings ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_head": 3}, "n_head=3 does not divide n_embd=16"),
        ({"mlp": "gelo"}, "mlp='gelo' is unknown"),
        ({"bio_gate": "soft"}, "bio_gate='soft' is unknown"),
        ({"mlp": "bio", "bio_event": "hard", "bio_gate": "none"}, "bio_event='hard' is a form of bio_gate='feature'"),
        ({"bio_event": "firm"}, "bio_event='firm' is unknown: choose one of soft, hard"),
        ({"bio_target_rate": 1.0}, "bio_target_rate=1.0 must lie between 0 and 1"),
        ({"position": "alibi"}, "position='alibi' is unknown"),
        ({"bio_threshold": 1.5}, "bio_threshold=1.5 must lie in 0..1"),
        ({"bio_threshold": float("nan")}, "bio_threshold=nan must lie in 0..1"),
        ({"vocab_size": 0}, "vocab_size=0 must be at least 1"),
        ({"dropout": -0.1}, "dropout=-0.1 must lie in 0..1"),
        ({"n_layer": 0}, "n_layer=0 must be at least 1"),
        ({"n_head": 16, "position": "rope"}, "must be even"),
        ({"mlp": "relu", "use_bio_mlp": True}, "use_bio_mlp=True contradicts mlp='relu'"),
    ],
)
def test_impossible_settings_are_refused_with_a_sentence(changes, message):
    with pytest.raises(ValueError, match=message.replace("'", ".")):
        small(**changes)


def test_historic_spellings_resolve():
    assert small(use_bio_mlp=True).mlp == "bio" and small(use_bio_mlp=False).mlp == "gelu"
    assert small(use_rope=True).position == "rope" and small(use_rope=False).position == "learned"
    assert small(bio_compartments=4) == small()
    assert "use_bio_mlp" not in model_args(small(use_bio_mlp=True))


def test_every_activation_has_a_block():
    for mlp in ACTIVATIONS:
        assert GPT(small(mlp=mlp))(ids(1, 4))[0].isfinite().all()
    assert BioMLP(small(bio_gate="none")).sparse_gate is None
