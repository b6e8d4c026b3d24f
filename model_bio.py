"""
A GPT whose MLP units oscillate, beside the GELU control that it is judged against.

With mlp='gelu' and the rest at their defaults this is nanoGPT's GPT-2: same state-dict names, same logits. mlp='bio'
puts an OscillatingNeuron (and a SparseEventGate) between the two matrices of the MLP, and changes nothing else.

Shapes are written with B sequences in the batch, T tokens in a sequence, C = n_embd, H = n_head, D = C/H,
F = 4·C hidden features of the MLP, V = vocab_size, L = n_layer.
"""

import functools
import hashlib
import inspect
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from kernels import attention as fused_attention
from kernels import event_mlp, likeliest
from kernels.activations import ACTIVATIONS
from kernels.cross_entropy import chunked_cross_entropy
from kernels.decoding import STEP_OPTIONS, KVCache, Past, check_drawing, pick_tokens, weaken_seen
from kernels.huge_pages import hold_in_huge_pages
from kernels.matmul import Linear
from kernels.neurons import HardEventGate, OscillatingNeuron, SparseEventGate
from kernels.rotary import normalise, rope_tables, rotate

LARGE_LOGITS = 2**25  # numbers in a batch's logits from which training takes its loss in chunks: 128 MiB in float32
MLPS = (*ACTIVATIONS, "bio", "dendritic")
OWN_NEURON = re.compile(r"(.+\.py):([A-Za-z_]\w*)(?:\((.*)\))?", re.DOTALL)  # file.py:Name(key=value), a user's class
# Historic key -> (today's key, what its values mean). Only today's key is stored.
HISTORIC = {
    "use_bio_mlp": ("mlp", {True: "bio", False: "gelu"}),
    "use_rope": ("position", {True: "rope", False: "learned"}),
}


@dataclass
class GPTConfig:
    """The model's shape and parts. Raises ValueError, with a sentence, for what cannot be built."""

    # model
    block_size: int = 1024  # tokens of context
    vocab_size: int = 50304  # GPT-2's 50257 rounded up to a multiple of 64; a dataset's own vocabulary goes before it
    n_layer: int = 12  # blocks
    n_head: int = 12  # attention heads a block, must divide n_embd
    n_embd: int = 768  # width
    dropout: float = 0.0  # 0 is good for pretraining, for fine-tuning try 0.1
    c_fc_std: float | Literal["unit"] | None = None  # std of c_fc at the start; None = 0.02, unit = 1/sqrt(n_embd)
    bias: bool = True  # in Linear and LayerNorm, as GPT-2 has them; False is a bit better and faster
    mlp: str = "gelu"  # what stands in the MLP: {MLPS}, or file.py:Name
    bio_gate: Literal["none", "feature", "dense"] = "feature"  # event gate of mlp=bio; dense is history's, and blows up
    bio_threshold: float = 0.25  # voltage above which a feature counts as firing, where bio_event=soft
    bio_event: Literal["soft", "hard"] = "soft"  # of bio_gate=feature; hard: a feature fires, or gives a constant
    bio_target_rate: float = 0.15  # share of tokens on which each feature is made to fire, where bio_event=hard
    dendritic_branches: int = 2  # K of mlp=dendritic: branches that compete in a unit
    dendritic_beta: Literal["layer", "unit", "channel", "fixed"] = "layer"  # what learns a sharpness of its own
    dendritic_beta_init: float = 1.0  # the sharpness at the start; for ever where dendritic_beta=fixed
    use_rmsnorm: bool = False  # RMSNorm (eps 1e-6) for LayerNorm
    position: Literal["learned", "rope", "none"] = "learned"  # how a token knows its place
    qk_norm: bool = False  # RMS-normalise each head's queries and keys, without weights: bears higher learning rates
    gradient_checkpointing: bool = False  # recompute each block in backward: less memory, a third more time
    use_bio_mlp: bool | None = None  # historic spelling of mlp: True = bio, False = gelu
    use_rope: bool | None = None  # historic spelling of position: True = rope, False = learned
    bio_compartments: int | None = None  # DEPRECATED: accepted so that old files load, ignored

    @staticmethod
    def modern(key: str, value):
        """(key, value) of a setting in today's spelling, whichever spelling it is given in."""
        if value is None or key not in HISTORIC:
            return key, value
        modern_key, meaning = HISTORIC[key]
        return modern_key, meaning[value]

    def __post_init__(self):
        for old in HISTORIC:
            given = getattr(self, old)
            key, value = self.modern(old, given)
            if given is None:
                continue
            if getattr(self, key) not in (type(self).__dataclass_fields__[key].default, value):
                raise ValueError(f"{old}={given} contradicts {key}={getattr(self, key)!r}: give one of the two")
            setattr(self, key, value)
            setattr(self, old, None)
        self.bio_compartments = None
        for key in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd"):
            value = getattr(self, key)  # a TrainConfig's vocab_size is None until its dataset is known
            if value is not None and value < 1:
                raise ValueError(f"{key}={value} must be at least 1")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_head={self.n_head} does not divide n_embd={self.n_embd}")
        if self.position == "rope" and (self.n_embd // self.n_head) % 2:
            raise ValueError(f"position='rope' turns pairs: n_embd/n_head={self.n_embd // self.n_head} must be even")
        for key in ("dropout", "bio_threshold"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"{key}={getattr(self, key)} must lie in 0..1")
        if not 0 < self.bio_target_rate < 1:
            raise ValueError(f"bio_target_rate={self.bio_target_rate} must lie between 0 and 1")
        if self.dendritic_branches < 2 or not 0 < self.dendritic_beta_init < math.inf:
            given = f"dendritic_branches={self.dendritic_branches}, dendritic_beta_init={self.dendritic_beta_init}"
            raise ValueError(f"{given}: at least 2 branches compete, with a sharpness above 0")
        if self.mlp not in MLPS and not OWN_NEURON.fullmatch(self.mlp):
            raise ValueError(f"mlp={self.mlp!r} is unknown: choose one of {', '.join(MLPS)}, or file.py:ClassName")
        if isinstance(self.c_fc_std, float) and not 0 < self.c_fc_std < math.inf:
            raise ValueError(f"c_fc_std={self.c_fc_std} must be above 0")
        for key in ("bio_gate", "bio_event", "dendritic_beta", "position"):
            known = get_args(GPTConfig.__annotations__[key])
            if getattr(self, key) not in known:
                raise ValueError(f"{key}={getattr(self, key)!r} is unknown: choose one of {', '.join(known)}")
        if self.hard_events and self.bio_gate != "feature":
            raise ValueError(f"bio_event='hard' is a form of bio_gate='feature', not of bio_gate={self.bio_gate!r}")

    @property
    def hard_events(self) -> bool:
        """Whether the MLPs have hard events, which need homeostasis in training."""
        return self.mlp == "bio" and self.bio_event == "hard"

    def initial_c_fc_std(self, of_neuron: float | str | None = None) -> float:
        """
        The standard deviation of c_fc's initial weights, whichever way c_fc_std says it.

        of_neuron: what a user's class says, likewise; it holds where the config says nothing.
        """
        std = of_neuron if self.c_fc_std is None else self.c_fc_std
        if std == "unit":
            return 1 / math.sqrt(self.n_embd)
        return 0.02 if std is None else std


class BioMLP(nn.Module):
    """c_fc -> OscillatingNeuron -> event gate (unless bio_gate='none') -> c_proj -> dropout. (B, T, C) -> same."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        hidden = 4 * config.n_embd
        self.c_fc = Linear(config.n_embd, hidden, bias=config.bias)
        self.oscillating = OscillatingNeuron(hidden)
        self.sparse_gate = None
        input_std = config.initial_c_fc_std() * math.sqrt(config.n_embd)  # of c_fc's output on a normalised x
        if config.bio_event == "hard":
            self.sparse_gate = HardEventGate(hidden, config.bio_target_rate, input_std)
        elif config.bio_gate != "none":
            options = {"dense": config.bio_gate == "dense", "bias": config.bias, "input_std": input_std}
            self.sparse_gate = SparseEventGate(hidden, config.bio_threshold, **options)
        self.c_proj = Linear(hidden, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)
        self.steps: event_mlp.EventMLP | None = None

    def forward(self, x):
        steps = None if self.training or torch.compiler.is_compiling() else self.steps
        if steps is not None and steps.serves(x, *self.parts()):
            return steps(x)
        h, gate = self.c_fc(x), self.sparse_gate  # (B, T, F)
        y = self.oscillating(h) if gate is None else gate(h, self.oscillating)
        return self.dropout(self.c_proj(y))  # (B, T, C)

    def prepare_steps(self) -> None:
        """With hard events: lay the weights out for steps of one token, which then read what fires alone."""
        if self.steps is None or not self.steps.is_current(self.parts(), whole=True):
            self.steps = None  # before the new one takes memory
            self.steps = event_mlp.prepare(*self.parts())

    def parts(self) -> tuple[nn.Module, ...]:
        """What event-driven steps stand for, in the order of event_mlp.prepare."""
        return self.c_fc, self.c_proj, self.oscillating, self.sparse_gate

    def fires(self, x: Tensor) -> Tensor:
        """Which hidden features fire, of an MLP with a gate. x: input of c_fc (..., C) -> bool (..., F)."""
        return self.sparse_gate.fires(self.c_fc(x), self.oscillating)


class MLP(nn.Module):
    """
    The control: c_fc -> activation -> c_proj -> dropout. (B, T, C) -> same.

    neuron: number of features -> module, as Activation.build. fan: rows of c_fc that a hidden unit reads. vectors:
    parameters that the block has besides its matrices, of each hidden unit.
    """

    def __init__(self, config: GPTConfig, neuron: Callable[[int], nn.Module], fan: int = 1, vectors: int = 0):
        super().__init__()
        self.hidden = 4 * config.n_embd if fan == 1 else matched_hidden(config, fan, vectors)
        self.c_fc = Linear(config.n_embd, fan * self.hidden, bias=config.bias)
        self.neuron = neuron(fan * self.hidden)
        self.c_proj = Linear(self.hidden, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        return self.dropout(self.c_proj(self.neuron(self.c_fc(x))))


def matched_hidden(config: GPTConfig, fan: int, vectors: int) -> int:
    """
    The number of hidden units whose block has as many parameters as the control's with 4·C units, within 1 %.

    Each unit reads `fan` rows of c_fc and has `vectors` parameters of its own. The number is a multiple of the highest
    power of two, up to 64, that allows it.
    """
    C = config.n_embd
    exact = 4 * C * (2 * C + config.bias) / ((fan + 1) * C + fan * config.bias + vectors)
    rounded = [multiple * round(exact / multiple) for multiple in (64, 32, 16, 8, 4, 2, 1)]
    return next((hidden for hidden in rounded if abs(hidden / exact - 1) < 0.008), rounded[-1])


class OwnMLP(nn.Module):
    """A user's module in place of both matrices: neuron -> dropout. (B, T, C) -> same."""

    def __init__(self, config: GPTConfig, neuron: Callable[[int], nn.Module]):
        super().__init__()
        self.neuron = neuron(config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        return self.dropout(self.neuron(x))


def build_own(neuron: Callable[..., nn.Module], config: GPTConfig, layer: int, features: int) -> nn.Module:
    """
    A user's module for layer number `layer`, which is to take (..., features).

    Its class, or what custom_neuron.load_neuron makes of it, gets what its signature names of features, config and
    layer; where that is nothing, as of nn.Identity, the number of features.
    """
    known = {"features": features, "config": config, "layer": layer}
    signature = inspect.signature(neuron).parameters
    named = {key: value for key, value in known.items() if key in signature}
    return neuron(**named) if named else neuron(features)


def own_features(neuron: Callable[..., nn.Module], config: GPTConfig) -> int:
    """The size of the last dimension of what a user's module takes: c_fc's outputs, or C where it is the whole MLP."""
    if stands_for_mlp(neuron):
        return config.n_embd
    fan = getattr(neuron, "fan", 1)
    return 4 * config.n_embd if fan == 1 else fan * matched_hidden(config, fan, 0)


def stands_for_mlp(neuron: Callable[..., nn.Module] | None) -> bool:
    """Whether a user's class replaces the whole MLP, and not the neuron between its matrices alone."""
    return getattr(neuron, "stands_for", None) == "mlp"


class DendriticMLP(MLP):
    """
    No activation function: each hidden unit owns K affine branches that compete. (B, T, C) -> (B, T, C).

    z_k = W_k x + b_k, y = Σ_k softmax_k(β z)_k · z_k, then c_proj. β -> 0 is the branches' mean, β -> ∞ their maximum
    (maxout, Goodfellow et al., 2013). β = exp(log_beta) is learned for the layer, each unit, or each channel (unit and
    branch), or 'fixed'. There are F ≈ 8·C/(K+1) units.
    """

    def __init__(self, config: GPTConfig):
        K = config.dendritic_branches
        betas = {"unit": 1, "channel": K}.get(config.dendritic_beta, 0)  # of a unit
        super().__init__(config, lambda features: None, fan=K, vectors=betas)
        self.branches = K
        self.log_beta = nn.Parameter(torch.full((betas * self.hidden or 1,), math.log(config.dendritic_beta_init)))
        self.log_beta.requires_grad_(config.dendritic_beta != "fixed")

    def compete(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: input of c_fc (..., C) -> z and softmax(β z) over the branches, both (..., K, F)."""
        z = self.c_fc(x).unflatten(-1, (self.branches, self.hidden))
        beta = self.log_beta.exp().view(-1, min(self.hidden, self.log_beta.numel()))  # (1 or K, 1 or F)
        return z, torch.softmax(beta * z.float(), dim=-2).to(z.dtype)

    def forward(self, x):
        z, share = self.compete(x)
        return self.dropout(self.c_proj((share * z).sum(-2)))


class CausalSelfAttention(nn.Module):
    """
    Multi-head attention in which a token sees itself and those before it. (B, T, C) -> same.

    rope: cos and sin of the tokens' positions, (T, D/2) each, or (B, 1, T, D/2) where they differ by sequence, or None.
    past: while generating, where keys and values are kept and those of earlier tokens found (Past), or None. mask: what
    each token may look at (conversation_mask), or None for all tokens up to itself.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.qk_norm = config.qk_norm

    def forward(self, x, rope=None, past=None, mask=None):
        B, T, C = x.shape
        qkv, dropout = self.c_attn(x), self.dropout if self.training else 0.0  # (B, T, 3C)
        if past is None and mask is None and not dropout and fused_attention.serves(qkv):
            return self.resid_dropout(self.c_proj(fused_attention.attend(qkv, self.n_head, self.qk_norm, rope)))
        if past is not None and isinstance(past.places, slice) and fused_attention.serves_step(qkv, past.keys):
            place = past.places.start
            y = fused_attention.attend_step(qkv, self.n_head, self.qk_norm, rope, past.keys, past.values, place)
            return self.resid_dropout(self.c_proj(y))
        qk, v = qkv.split((2 * C, C), dim=2)
        qk = qk.view(B, T, 2 * self.n_head, C // self.n_head).transpose(1, 2)  # (B, 2H, T, D)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)  # (B, H, T, D)
        if self.qk_norm:
            qk = normalise(qk)
        if rope is not None:
            qk = rotate(qk, *rope)
        q, k = qk.split(self.n_head, dim=1)
        if past is not None:
            k, v, mask = past.extend(k, v)  # (B, H, S, D), S >= T
        # a single token may look at all that a cache holds, so it is not causal
        y = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=mask is None and T > 1)  # (B, H, T, D)
        y = y.transpose(1, 2).reshape(B, T, C)
        return self.resid_dropout(self.c_proj(y))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). (B, T, C) -> same; rope, past and mask are attention's."""

    def __init__(self, config: GPTConfig, neuron: Callable[..., nn.Module] | None = None, layer: int = 0):
        super().__init__()
        self.ln_1 = make_norm(config)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = make_norm(config)
        build = functools.partial(build_own, neuron, config, layer)  # number of features -> the user's module
        own = {"bio": BioMLP, "dendritic": DendriticMLP}.get(config.mlp)
        if own:
            self.mlp = own(config)
        elif stands_for_mlp(neuron):
            self.mlp = OwnMLP(config, build)
        elif neuron is not None:
            self.mlp = MLP(config, build, getattr(neuron, "fan", 1))
        else:
            activation = ACTIVATIONS[config.mlp]
            self.mlp = MLP(config, activation.build, activation.fan)

    def forward(self, x, rope=None, past=None, mask=None):
        x = x + self.attn(self.ln_1(x), rope, past, mask)
        return x + self.mlp(self.ln_2(x))


def make_norm(config: GPTConfig) -> nn.Module:
    """The norm before attention, before the MLP, and before lm_head."""
    if config.use_rmsnorm:
        return nn.RMSNorm(config.n_embd, eps=1e-6)
    return nn.LayerNorm(config.n_embd, bias=config.bias)


def stable_seed(*parts: object) -> int:
    """A 63-bit seed from anything printable: the same on every machine, in every process."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class GPT(nn.Module):
    """
    config: GPTConfig. neuron: for mlp='file.py:Name', the user's class (see build_own); its attributes `fan`,
    `stands_for` and `c_fc_std` say what it needs. seed: of the initial weights; None takes torch's own
    (torch.manual_seed). See `_initialise` for what it promises.
    """

    def __init__(self, config: GPTConfig, neuron: Callable[..., nn.Module] | None = None, seed: int | None = None):
        super().__init__()
        if (config.mlp not in MLPS) != (neuron is not None):
            what = "needs its class: GPT(config, neuron=...)" if neuron is None else "takes no neuron"
            raise ValueError(f"mlp={config.mlp!r} {what}")
        self.config = config
        parts = {"wte": nn.Embedding(config.vocab_size, config.n_embd)}
        if config.position == "learned":
            parts["wpe"] = nn.Embedding(config.block_size, config.n_embd)
        parts["drop"] = nn.Dropout(config.dropout)
        parts["h"] = nn.ModuleList(Block(config, neuron, layer) for layer in range(config.n_layer))
        parts["ln_f"] = make_norm(config)
        self.transformer = nn.ModuleDict(parts)
        self.lm_head = Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight  # tied: Press and Wolf, 2017
        if config.position == "rope":
            cos, sin = rope_tables(config.block_size, config.n_embd // config.n_head)
            self.register_buffer("rope_cos", cos, persistent=False)
            self.register_buffer("rope_sin", sin, persistent=False)
        self.likeliest: likeliest.LikeliestRows | None = None
        self.sampled_vocab = config.vocab_size
        if config.vocab_size == 50304:  # GPT-2's vocabulary, rounded up for speed
            self.limit_sampling(50257)
        if not self.lm_head.weight.is_meta:
            self._initialise(torch.initial_seed() if seed is None else seed, neuron)

    @torch.no_grad()
    def _initialise(self, seed, neuron):
        """
        Paired initialisation, all of it in this one place.

        Each parameter's unit draw is a function of (seed, its name, its shape) alone, so two models with one seed
        share every weight that both have, whatever else they contain. Matrices and embeddings: N(0, 0.02), those that
        write to the residual stream (c_proj) N(0, 0.02/sqrt(2·n_layer)), as in GPT-2. ω: N(1, 0.1), φ: N(0, 0.1).
        Biases and b are 0, norms and snake's a 1, g and o of a gate and a dendrite's β as their class says. A user's
        neuron draws for itself, under a generator seeded by its name.
        """
        users = [f"transformer.h.{layer}.mlp.neuron." for layer in range(self.config.n_layer) if neuron]
        for layer, prefix in enumerate(users):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(stable_seed(seed, prefix))
                drawn = build_own(neuron, self.config, layer, own_features(neuron, self.config))
                self.get_submodule(prefix[:-1]).load_state_dict(drawn.state_dict())
        c_fc_std = self.config.initial_c_fc_std(getattr(neuron, "c_fc_std", None))
        for name, parameter in self.named_parameters():
            if any(name.startswith(prefix) for prefix in users):
                continue
            last = name.rsplit(".", 1)[-1]
            mean, std = {"omega": (1.0, 0.1), "phi": (0.0, 0.1)}.get(last, (0.0, 0.02))
            if name.endswith("mlp.c_fc.weight"):
                std = c_fc_std
            if name.endswith("c_proj.weight"):
                std /= math.sqrt(2 * self.config.n_layer)
            if parameter.dim() > 1 or last in ("omega", "phi"):
                generator = torch.Generator().manual_seed(stable_seed(seed, name, tuple(parameter.shape)))
                parameter.copy_(mean + std * torch.randn(parameter.shape, generator=generator))
            elif last == "bias":
                parameter.zero_()

    def hidden(
        self, idx: Tensor, cache: KVCache | None = None, place: int | Tensor = 0, begins: Tensor | None = None
    ) -> Tensor:
        """
        idx: (B, T) token ids -> (B, T, C), the input of lm_head. begins: as in `forward`.

        With a cache, the tokens before `place` have been read, and idx follows them. The place of a single token may be
        a tensor (1,): then no shape depends on it (see KVCache.extend).
        """
        places = slice(place, place + idx.size(1)) if isinstance(place, int) else place
        if isinstance(place, int) and places.stop > self.config.block_size:
            raise ValueError(f"{places.stop} tokens do not fit the context of block_size={self.config.block_size}")
        x = self.transformer.wte(idx).to(self.transformer.ln_f.weight.dtype)  # (B, T, C); matrices may be less exact
        rope = mask = None
        if begins is not None:
            mask = fused_attention.conversation_mask(begins)
            places = torch.arange(idx.size(1), device=idx.device) - begins  # (B, T), within the own conversation
        if self.config.position == "learned":
            x = x + self.transformer.wpe.weight[places]  # (T, C), the same for each sequence, or (B, T, C)
        elif self.config.position == "rope":
            places = places if begins is None else places[:, None]  # all heads alike
            rope = self.rope_cos[places], self.rope_sin[places]
        x = self.transformer.drop(x)
        recompute = self.config.gradient_checkpointing and self.training
        for layer, block in enumerate(self.transformer.h):
            past = None if cache is None else Past(cache, layer, places)
            x = checkpoint(block, x, rope, None, mask, use_reentrant=False) if recompute else block(x, rope, past, mask)
        return self.transformer.ln_f(x)

    def forward(
        self, idx: Tensor, targets: Tensor | None = None, begins: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """
        idx, targets: (B, T) int64; a target of -1 is ignored. begins: where conversations stand side by side in a
        sequence, the place at which each token's own one begins, (B, T) int64: none sees another, and the positions of
        each count from 0, so that each has the logits that it has alone.

        Without targets: (logits of the last position (B, 1, V), None). With targets: (logits (B, T, V), mean loss),
        and in training (None, mean loss) where the logits would be large.
        """
        x = self.hidden(idx, begins=begins)
        if targets is None:
            return self.lm_head(x[:, [-1], :]), None
        if self.training and idx.numel() * self.config.vocab_size > LARGE_LOGITS:
            low = torch.is_autocast_enabled(x.device.type)
            dtype = torch.get_autocast_dtype(x.device.type) if low else x.dtype
            return None, chunked_cross_entropy(x.flatten(0, 1), self.lm_head.weight, targets.flatten(), dtype)
        logits = self.lm_head(x)
        return logits, F.cross_entropy(logits.view(-1, logits.size(-1)).float(), targets.reshape(-1), ignore_index=-1)

    def auxiliary_loss(self) -> Tensor | None:
        """What users' neurons add to the training loss after a forward pass, summed over layers; None for no such."""
        neurons = [getattr(block.mlp, "neuron", None) for block in self.transformer.h]
        losses = [neuron.auxiliary_loss().float() for neuron in neurons if hasattr(neuron, "auxiliary_loss")]
        return torch.stack(losses).sum() if losses else None

    def regulate_events(
        self, skipped: Tensor | bool = False, mean_over_processes: Callable[[Tensor], Tensor] = lambda events: events
    ) -> None:
        """
        Homeostasis of hard events: move each feature's threshold towards its target rate, by what fired in training
        since the last call. Once a step, after the optimizer's; other models have nothing to move.

        skipped: whether the optimizer took no step, so that thresholds stay, too. mean_over_processes: of what each
        process counted, so that all have the same thresholds.
        """
        gates = [block.mlp.sparse_gate for block in self.transformer.h if self.config.hard_events]
        if gates:
            counted = mean_over_processes(torch.stack([gate.events for gate in gates]))  # in one message
            for gate, events in zip(gates, counted, strict=True):
                gate.regulate(events, skipped)

    def limit_sampling(self, vocab_size: int) -> None:
        """Never sample an id of `vocab_size` or more: a tokenizer's own size, past which ids stand for nothing."""
        self.sampled_vocab = min(self.config.vocab_size, vocab_size)

    def get_num_params(self, non_embedding: bool = True) -> int:
        """Number of parameters, without the position embedding by default (the token one is lm_head's too)."""
        total = sum(p.numel() for p in self.parameters())
        if non_embedding and self.config.position == "learned":
            total -= self.transformer.wpe.weight.numel()
        return total

    def describe(self) -> str:
        """What the model is, in one line."""
        c = self.config
        what = c.mlp
        if c.mlp == "bio":
            gate = f" + {c.bio_gate} gate (threshold {c.bio_threshold})" if c.bio_gate != "none" else ", no gate"
            gate = f" + hard events (target rate {c.bio_target_rate:g})" if c.hard_events else gate
            what = f"bio, oscillation{gate}"
        if c.mlp == "dendritic":
            what = f"dendritic, {c.dendritic_branches} branches, beta {c.dendritic_beta} from {c.dendritic_beta_init:g}"
        millions = self.get_num_params(non_embedding=False) / 1e6
        return f"{what}: {c.n_layer} layers, {c.n_head} heads, width {c.n_embd}: {millions:.2f}M parameters"

    def flops_per_token(self) -> int:
        """Training FLOPs a token, forward and backward: 6·N + 12·L·C·T (PaLM, appendix B, as nanoGPT counts)."""
        attention = 12 * self.config.n_layer * self.config.n_embd * self.config.block_size
        return 6 * self.get_num_params() + attention

    def estimate_mfu(self, fwdbwd_per_iter: float, dt: float, peak_flops: float = 312e12) -> float:
        """Share of the card's peak that is used: sequences a step, seconds a step, peak in FLOP/s (default: A100)."""
        return self.flops_per_token() * self.config.block_size * fwdbwd_per_iter / dt / peak_flops

    def crop_block_size(self, block_size: int) -> None:
        """Shorten the context, e.g. of GPT-2's 1,024 tokens, to save memory."""
        if not 1 <= block_size <= self.config.block_size:
            raise ValueError(f"block_size={block_size} must lie in 1..{self.config.block_size}, the model's own")
        self.config.block_size = block_size
        if self.config.position == "learned":
            self.transformer.wpe.weight = nn.Parameter(self.transformer.wpe.weight[:block_size].detach().clone())
            self.transformer.wpe.num_embeddings = block_size
        elif self.config.position == "rope":
            self.rope_cos, self.rope_sin = self.rope_cos[:block_size], self.rope_sin[:block_size]

    @staticmethod
    def from_pretrained(model_type: str, override_args: dict | None = None) -> "GPT":
        """
        GPT-2's weights through Hugging Face transformers: 'gpt2', 'gpt2-medium', 'gpt2-large', 'gpt2-xl', or a folder.

        override_args: may hold 'dropout'. Raises ImportError without transformers, OSError where nothing is found.
        """
        from wiggle.huggingface import gpt_from_pretrained  # the one import upwards, at call time: nanoGPT's spelling

        return gpt_from_pretrained(model_type, override_args)

    def generate(
        self, idx: Tensor, max_new_tokens: int, temperature: float = 1.0, top_k: int | None = None, **options
    ) -> Tensor:
        """idx: (B, T) -> (B, T + max_new_tokens): the prompt and its continuation; options: those of `stream`."""
        return torch.cat([idx, *self.stream(idx, max_new_tokens, temperature, top_k, **options)], dim=1)

    @torch.no_grad()
    def stream(
        self,
        idx: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float = 1.0,
        use_cache: bool = True,
        cache: KVCache | None = None,
        compiled: bool = False,
        generator: torch.Generator | None = None,
    ) -> Iterator[Tensor]:
        """
        Continue idx (B, T), yielding (B, 1) ids one step at a time, without ever waiting for the device.

        temperature 0 is greedy. top_k keeps the k likeliest ids, top_p the fewest that hold that much probability
        (Holtzman et al., 2020). repetition_penalty > 1 makes ids seen so far less likely (Keskar et al., 2019).
        When the context is full, its oldest half is dropped and the rest read again, with the cache and without.
        compiled: steps with the cache go through torch.compile, on a card as one CUDA graph. That is bound to its
        `cache`, so give the next call the same one, from `new_cache`.
        """
        if idx.dim() != 2 or idx.size(1) < 1:
            raise ValueError(f"expected a prompt of shape (B, T) with T >= 1, got {tuple(idx.shape)}")
        check_drawing(temperature, top_k, top_p, repetition_penalty)
        (B, T), size, device = idx.shape, self.config.block_size, idx.device
        text = torch.cat([idx, idx.new_zeros(B, max_new_tokens)], dim=1)  # all tokens, the new ones filled in
        seen = torch.zeros(B, self.config.vocab_size, dtype=torch.bool, device=device).scatter_(1, idx, True)
        cache = (cache or self.new_cache(B, T + max_new_tokens)) if use_cache else None
        likely = None  # so many of the likeliest ids suffice for a draw; None: all are needed
        if repetition_penalty == 1.0:
            likely = 1 if temperature == 0 else top_k
        if B == 1 and use_cache and not compiled:
            self._prepare_steps(likely)
        if compiled:
            step = torch.compile(self._next_logits_compiled, fullgraph=True, dynamic=False, options=STEP_OPTIONS)
        start, token, training = max(0, T - size), None, self.training
        self.eval()
        try:
            for end in range(T, T + max_new_tokens):
                if end - start > size:
                    start, token = start + (size + 1) // 2, None
                place, ids = end - 1 - start, None  # place: of the newest token
                if cache is None or token is None:
                    logits = self._next_logits(text[:, start:end], cache)
                elif compiled:
                    logits = step(token, cache, torch.full((1,), place, device=device))
                else:
                    logits, ids = self._likely_logits(token, cache, place, likely)
                if repetition_penalty != 1.0:
                    logits = weaken_seen(logits, seen, repetition_penalty)
                token = pick_tokens(logits[:, : self.sampled_vocab], temperature, top_k, top_p, generator, ids)
                text[:, end : end + 1] = token
                seen.scatter_(1, token, True)
                yield token
        finally:
            self.train(training)

    def _next_logits(self, idx, cache, place=0):
        """What may follow idx (B, T), which stands at `place` (see `hidden`) -> (B, V) in float32."""
        return self.lm_head(self.hidden(idx, cache, place)[:, -1]).float()

    def _likely_logits(self, token, cache, place, k):
        """_next_logits with None for ids; or, of a single sequence, a part with the k likeliest, and ids (1, n)."""
        x, found, likely = self.hidden(token, cache, place), None, self.likeliest
        if k is not None and likely is not None and likely.serves(x, k, self.lm_head, self.sampled_vocab):
            found = likely(x, k)
        return found or (self.lm_head(x)[:, -1].float(), None)

    def _prepare_steps(self, k: int | None) -> None:
        """Lay weights out for steps of one token of one sequence, of which the k likeliest ids are wanted, or all."""
        hold_in_huge_pages(*(matrix for matrix in self.parameters() if matrix.dim() > 1))
        for block in self.transformer.h:
            if self.config.hard_events and isinstance(block.mlp, BioMLP):
                block.mlp.prepare_steps()
        rows, kept = self.sampled_vocab, self.likeliest
        if k is not None and (kept is None or kept.rows != rows or not kept.is_current((self.lm_head,), whole=True)):
            self.likeliest = likeliest.prepare(self.lm_head, rows)

    def _next_logits_compiled(self, token, cache, place):
        with sdpa_kernel(SDPBackend.MATH):  # one query in plain products, which Inductor fuses
            return self._next_logits(token, cache, place)

    def new_cache(self, batch: int, tokens: int) -> KVCache:
        """A KVCache for `stream`: of `batch` sequences, each of so many tokens, prompt and continuation together."""
        device, dtype = self.lm_head.weight.device, self.lm_head.weight.dtype
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        tokens = math.ceil(tokens / 256) * 256  # so that few sizes are ever compiled
        c = self.config
        shape = (c.n_layer, batch, c.n_head, min(tokens, c.block_size), c.n_embd // c.n_head)
        return KVCache(shape, device, dtype)


def model_args(config: GPTConfig) -> dict:
    """What a checkpoint keeps of a GPTConfig (or of a subclass): plain values, historic spellings resolved."""
    keys = GPTConfig.__dataclass_fields__
    return {k: v for k, v in asdict(config).items() if k in keys and k not in (*HISTORIC, "bio_compartments")}
