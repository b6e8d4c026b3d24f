"""
WiggleGPT for Hugging Face transformers: GPTs whose MLP units oscillate, dendritic ones, and their controls.

export.py puts a copy of this file, which needs torch and transformers alone, beside weights of the names that training
gives them; AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True) opens both. Shapes are written with B
sequences in the batch, T tokens in a sequence, S tokens that are attended to, C = n_embd, H = n_head, D = C/H,
F = intermediate_size.

SPDX-License-Identifier: MIT
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

# The output's field for the keys and values of tokens read so far, which transformers 5 renamed
CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
# Activations without parameters: what stands between the MLP's matrices, of the output of c_fc
POINTWISE = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "relu2_clipped": lambda x: x.clamp(0, 1).square(),
    "leaky_relu2": lambda x: F.leaky_relu(x, 0.5).square(),
    "gelu2": lambda x: F.gelu(x).square(),
    "silu": F.silu,
    "gcu": lambda x: x * torch.cos(x),
    "golu": lambda x: x * torch.exp(-torch.exp(-x.clamp(min=-20))),
    "sintanh": lambda x: torch.sin(x) * torch.tanh(x),
}
GATED = {"swiglu": F.silu, "geglu": F.gelu}  # f of y = f(x)·z with x, z the halves of c_fc's output
SHAPE = {"block_size": 1024, "vocab_size": 50304, "n_layer": 12, "n_head": 12, "n_embd": 768, "intermediate_size": 3072}
PARTS = {"mlp": "gelu", "bias": True, "dropout": 0.0, "use_rmsnorm": False, "position": "learned", "qk_norm": False}
BIO = {"bio_gate": "feature", "bio_threshold": 0.25, "bio_event": "soft", "bio_target_rate": 0.15}
DENDRITIC = {"dendritic_branches": 2, "dendritic_beta": "layer"}
DEFAULTS = SHAPE | PARTS | BIO | DENDRITIC | {"use_cache": True}


class WiggleGPTConfig(PretrainedConfig):
    """The model's shape and parts, by the keys that it is trained with; intermediate_size: hidden units of each MLP."""

    model_type = "wigglegpt"
    keys_to_ignore_at_inference = (CACHE,)
    attribute_map = {  # noqa: RUF012 - transformers asks for a dict
        "max_position_embeddings": "block_size",
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
    }

    def __init__(self, **kwargs):
        for key, default in DEFAULTS.items():
            setattr(self, key, kwargs.pop(key, default))
        super().__init__(**{"tie_word_embeddings": True} | kwargs)


def oscillate(x, omega, phi, baseline):
    """sin(ω·x + φ)·tanh(x) + b with ω, φ, b of each feature."""
    return torch.sin(omega * x + phi) * torch.tanh(x) + baseline


def xielu(x, positive, negative):
    """αp·x² + x/2 above 0, αn·(exp(x) - 1 - x) + x/2 below, with αp and αn of a layer."""
    below = x.clamp(max=0)
    falling = (0.5 + F.softplus(negative)) * (below.expm1() - below)
    return torch.where(x > 0, F.softplus(positive) * x.square(), falling) + 0.5 * x


def polynorm(x, coefficients, bias):
    """a_1·n(x) + a_2·n(x²) + a_3·n(x³) + b, n dividing by the root mean square over a token's features."""
    terms = [a * F.rms_norm(x**power, x.shape[-1:], eps=1e-6) for power, a in enumerate(coefficients, start=1)]
    return sum(terms) + bias


class Neuron(nn.Module):
    """function(x, ...) with learned parameters of these names and sizes. In float32, whatever the dtype of x."""

    def __init__(self, function, **sizes):
        super().__init__()
        self.function = function
        for name, size in sizes.items():
            self.register_parameter(name, nn.Parameter(torch.ones(size)))

    def forward(self, x):
        return self.function(x.float(), **dict(self.named_parameters())).to(x.dtype)


NEURONS = {  # mlp -> number of features -> module, for the activations with parameters
    "bio": lambda features: Neuron(oscillate, omega=features, phi=features, baseline=features),
    "snake": lambda features: Neuron(lambda x, a: x + torch.sin(a * x).square() / (a + 1e-9), a=features),
    "xielu": lambda features: Neuron(xielu, positive=1, negative=1),
    "polynorm": lambda features: Neuron(polynorm, coefficients=3, bias=1),
}


class SparseEventGate(nn.Module):
    """oscillate(u·sigmoid(5·(v - threshold))), v = sigmoid(g·u + o), u = neuron(x); hard: u where |x| > threshold."""

    def __init__(self, config):
        super().__init__()
        features, self.hard = config.intermediate_size, config.bio_event == "hard"
        if self.hard:
            self.threshold = nn.Parameter(torch.ones(features), requires_grad=False)
            return
        self.threshold, self.dense = config.bio_threshold, config.bio_gate == "dense"
        if self.dense:
            self.gate = nn.Linear(features, features, bias=config.bias)
            self.transform = nn.Linear(features, features, bias=config.bias)
        else:
            self.gain = nn.Parameter(torch.ones(features))
            self.offset = nn.Parameter(torch.zeros(features))
        self.activation = NEURONS["bio"](features)

    def forward(self, x, neuron):
        u = neuron(x)
        if self.hard:
            return torch.where(x.float().abs() > self.threshold, u, neuron.baseline.to(u.dtype))
        voltage = torch.sigmoid(self.gate(u) if self.dense else self.gain * u + self.offset)
        passed = (u * torch.sigmoid(5 * (voltage - self.threshold))).to(u.dtype)
        return self.activation(self.transform(passed) if self.dense else passed)


class MLP(nn.Module):
    """c_fc -> neuron -> c_proj -> dropout, (B, T, C) -> same, for each neuron that `mlp` names."""

    def __init__(self, config):
        super().__init__()
        self.kind, self.hidden = config.mlp, config.intermediate_size
        self.branches = config.dendritic_branches if self.kind == "dendritic" else 1 + (self.kind in GATED)
        self.c_fc = nn.Linear(config.n_embd, self.branches * self.hidden, bias=config.bias)
        self.sparse_gate = None
        if self.kind == "bio":
            self.oscillating = NEURONS["bio"](self.hidden)
            self.sparse_gate = None if config.bio_gate == "none" else SparseEventGate(config)
        elif self.kind == "dendritic":
            betas = {"unit": self.hidden, "channel": self.branches * self.hidden}.get(config.dendritic_beta, 1)
            self.log_beta = nn.Parameter(torch.zeros(betas))
        elif self.kind in NEURONS:
            self.neuron = NEURONS[self.kind](self.hidden)
        self.c_proj = nn.Linear(self.hidden, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def activate(self, x):
        """The output of c_fc, (B, T, branches·F) -> hidden units (B, T, F)."""
        if self.kind == "bio":
            return self.oscillating(x) if self.sparse_gate is None else self.sparse_gate(x, self.oscillating)
        if self.kind == "dendritic":  # Σ_k softmax_k(β z)_k · z_k over the K branches of each unit
            z = x.unflatten(-1, (self.branches, self.hidden))
            beta = self.log_beta.exp().view(-1, min(self.hidden, self.log_beta.numel()))
            return (torch.softmax(beta * z.float(), dim=-2).to(z.dtype) * z).sum(-2)
        if self.kind in GATED:
            x, z = x.chunk(2, dim=-1)
            return GATED[self.kind](x) * z
        return self.neuron(x) if self.kind in NEURONS else POINTWISE[self.kind](x)

    def forward(self, x):
        return self.dropout(self.c_proj(self.activate(self.c_fc(x))))


class CausalSelfAttention(nn.Module):
    """Attention to what `mask` (B or 1, 1, T, S) lets a token see; without one, to itself and those before it."""

    def __init__(self, config, layer):
        super().__init__()
        self.layer, self.n_head, self.qk_norm, self.p = layer, config.n_head, config.qk_norm, config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x, rope, mask, cache):
        q, k, v = self.c_attn(x).unflatten(-1, (3, self.n_head, -1)).permute(2, 0, 3, 1, 4)  # (B, H, T, D) each
        if self.qk_norm:
            q, k = (F.rms_norm(t.float(), t.shape[-1:], eps=1e-6).to(t.dtype) for t in (q, k))
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)  # (B, H, S, D), or longer where a static cache has room left
        if mask is not None:
            k, v = k[:, :, : mask.size(-1)], v[:, :, : mask.size(-1)]
        p = self.p if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, mask, p, is_causal=mask is None)
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).flatten(2)))


def rotate(x, cos, sin):
    """Rotate each pair (x_i, x_{i + D/2}) by its token's angle, in float32. x: (B, H, T, D), cos: (B, 1, T, D/2)."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1).to(x.dtype)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config, layer):
        super().__init__()
        self.ln_1, self.attn = make_norm(config), CausalSelfAttention(config, layer)
        self.ln_2, self.mlp = make_norm(config), MLP(config)

    def forward(self, x, rope, mask, cache):
        x = x + self.attn(self.ln_1(x), rope, mask, cache)
        return x + self.mlp(self.ln_2(x))


def make_norm(config):
    return nn.RMSNorm(config.n_embd, eps=1e-6) if config.use_rmsnorm else nn.LayerNorm(config.n_embd, bias=config.bias)


class WiggleGPTForCausalLM(PreTrainedModel, GenerationMixin):
    """A GPT with tied embeddings. `forward` takes and gives what transformers' own causal language models do."""

    config_class = WiggleGPTConfig
    _supports_sdpa = True
    _no_split_modules = ("Block",)
    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        parts = {"wte": nn.Embedding(config.vocab_size, config.n_embd)}
        if config.position == "learned":
            parts["wpe"] = nn.Embedding(config.block_size, config.n_embd)
        parts["drop"] = nn.Dropout(config.dropout)
        parts["h"] = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        parts["ln_f"] = make_norm(config)
        self.transformer = nn.ModuleDict(parts)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        parts = {part for name, _ in self.named_parameters() for part in name.split(".")}
        delicate = {"oscillating", "threshold", "gain", "offset", "activation", "neuron", "log_beta"}
        self._keep_in_fp32_modules_strict = parts & delicate  # a neuron's few vectors, in a bfloat16 model too
        self.post_init()

    def get_input_embeddings(self):
        return self.transformer["wte"]

    def set_input_embeddings(self, value):
        self.transformer["wte"] = value

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        cache=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        logits_to_keep=0,
        **kwargs,
    ):
        x = self.transformer["wte"](input_ids) if inputs_embeds is None else inputs_embeds  # (B, T, C)
        cache = past_key_values if cache is None else cache
        if cache is None and (self.config.use_cache and not self.training if use_cache is None else use_cache):
            cache = DynamicCache()
        past = 0 if cache is None else cache.get_seq_length()
        position_ids = positions(attention_mask, past, x) if position_ids is None else position_ids
        if self.config.position == "learned":
            x = x + self.transformer["wpe"](position_ids)
        rope = rotary_angles(self.config, position_ids) if self.config.position == "rope" else None
        x, mask = self.transformer["drop"](x), visible(attention_mask, past, x)
        for block in self.transformer["h"]:
            x = block(x, rope, mask, cache)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(self.transformer["ln_f"](x[:, kept]))
        loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, **{CACHE: cache})


def positions(attention_mask, past, x):
    """Positions of x's T tokens, which follow `past` ones, (B or 1, T). Padding, by a mask (B, S), is not counted."""
    if attention_mask is not None and attention_mask.dim() == 2:
        return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -x.size(1) :]
    return torch.arange(past, past + x.size(1), device=x.device)[None]


def visible(attention_mask, past, x):
    """
    Which of S tokens each of x's T tokens may see, (B or 1, 1, T, S); None where all see what stands before them.

    attention_mask: (B, S), 0 for padding; or such a mask already; or None. A token always sees itself: no softmax is
    over nothing.
    """
    T = x.size(1)
    if (attention_mask is None and past == 0) or (attention_mask is not None and attention_mask.dim() == 4):
        return attention_mask
    place, other = torch.arange(past, past + T, device=x.device)[:, None], torch.arange(past + T, device=x.device)
    mask = (other <= place)[None, None]
    if attention_mask is not None:
        mask = mask & attention_mask.bool()[:, None, None, : past + T] | (other == place)
    return mask


def rotary_angles(config, position_ids):
    """(B or 1, T) -> cos and sin of each position's angles, (B or 1, 1, T, D/2)."""
    D = config.n_embd // config.n_head
    frequency = 10_000.0 ** (-torch.arange(0, D, 2, device=position_ids.device) / D)
    angle = position_ids[:, None, :, None] * frequency
    return angle.cos(), angle.sin()
