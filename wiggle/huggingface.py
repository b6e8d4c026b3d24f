"""
GPT-2 in Hugging Face's layout: its weights become a model here, and a model of GPT-2's kind becomes such a folder.

Names are the same in both. OpenAI's Conv1D keeps a matrix as (in, out) where Linear keeps (out, in), and GPT-2 has a
bias everywhere. transformers is imported where it is needed: most users never do.
"""

import json
import math
from pathlib import Path

import torch

from model_bio import GPT, GPTConfig, model_args
from wiggle.errors import UserError, plausible
from wiggle.tokenizer import END_OF_TEXT, GPT2Tokenizer, Tokenizer, gpt2_encoding

# transformers' activation_function -> mlp, and back
MLP_OF = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu"}
ACTIVATION_FUNCTION_OF = {"gelu": "gelu", "gelu_tanh": "gelu_new"}
CONV1D = (".attn.c_attn.weight", ".attn.c_proj.weight", ".mlp.c_fc.weight", ".mlp.c_proj.weight")
# Keys of GPTConfig that GPT-2's config.json has a word for
EXPRESSED = {"block_size", "vocab_size", "n_layer", "n_head", "n_embd", "dropout", "bias", "mlp"}


# --- their folder -> our model ---


def is_pretrained(path: str | Path) -> bool:
    """Whether a path is a folder in Hugging Face's layout, or no path but a name there, such as gpt2-medium."""
    return any(Path(path).glob("model.safetensors*")) or (str(path).startswith("gpt2") and not Path(path).exists())


def gpt_from_pretrained(model_type: str, override_args: dict | None = None) -> GPT:
    """
    GPT-2's weights through transformers: 'gpt2', 'gpt2-medium', 'gpt2-large', 'gpt2-xl', or a folder -> GPT.

    override_args: may hold 'dropout'. Raises ImportError without transformers, OSError where nothing is found,
    ValueError for a model that is not GPT-2's kind.
    """
    from transformers import GPT2LMHeadModel

    theirs = GPT2LMHeadModel.from_pretrained(model_type)
    if theirs.config.activation_function not in MLP_OF:
        raise ValueError(f"{model_type}: activation_function={theirs.config.activation_function!r} has no mlp here")
    if set(override_args or {}) - {"dropout"}:
        raise ValueError(f"only dropout can be overridden, not {', '.join(set(override_args) - {'dropout'})}")
    config = GPTConfig(
        block_size=theirs.config.n_positions,
        vocab_size=theirs.config.vocab_size,
        n_layer=theirs.config.n_layer,
        n_head=theirs.config.n_head,
        n_embd=theirs.config.n_embd,
        mlp=MLP_OF[theirs.config.activation_function],
        **(override_args or {}),
    )
    model = GPT(config, seed=0)
    buffers = (".attn.bias", ".attn.masked_bias")  # causal masks, which some versions of transformers save
    state = {name: weight for name, weight in theirs.state_dict().items() if not name.endswith(buffers)}
    model.load_state_dict({name: w.t() if name.endswith(CONV1D) else w for name, w in state.items()})
    return model


def load_pretrained(path: str | Path, overrides: dict) -> tuple[GPT, dict]:
    """GPT-2's weights by name or in a folder -> (model, meta), as in checkpoint.load_model."""
    meta = {"path": path, "origin": "GPT-2", "config": {}, "iter_num": 0, "best_val_loss": math.nan}
    with plausible(path):
        config = {}
        if Path(path).is_dir():
            config = json.loads(Path(path, "config.json").read_text(encoding="utf-8"))
        for key, value in {"model_type": "gpt2", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True}.items():
            if config.get(key, value) != value:
                raise ValueError(f"its config.json says {key}={config[key]!r}, only {value!r} is known here")
        try:
            model = gpt_from_pretrained(str(path), overrides)
        except ImportError:
            raise UserError(f"{path} needs a library: pip install transformers") from None
        gpt2 = {"kind": "gpt2"} if model.config.vocab_size >= GPT2Tokenizer.vocab_size else None
        return model, meta | {"tokenizer": config.get("wigglegpt_tokenizer", gpt2)}


# --- our model -> their folder ---


def check_exportable(config: GPTConfig) -> None:
    """Raise UserError, with the reason, for a model that GPT-2's format has no place for."""
    if config.mlp not in ACTIVATION_FUNCTION_OF:
        known = " and ".join(ACTIVATION_FUNCTION_OF)
        raise UserError(f"mlp={config.mlp} cannot be exported: GPT-2's format knows {known}")
    for key, value in model_args(config).items():
        # How a model was begun and trained is nothing that its folder must say, nor are other MLPs' keys.
        idle = key in ("gradient_checkpointing", "c_fc_std") or key.startswith(("bio_", "dendritic_"))
        if key not in EXPRESSED and not idle and value != GPTConfig.__dataclass_fields__[key].default:
            raise UserError(f"{key}={value!r} cannot be exported: GPT-2's format has no place for it")


def gpt2_weights(model: GPT, vocab_size: int) -> dict[str, torch.Tensor]:
    """What GPT2LMHeadModel loads: matrices as (in, out), a bias everywhere, and no lm_head, which is tied."""
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    weights["transformer.wte.weight"] = weights["transformer.wte.weight"][:vocab_size]  # the rest stands for no text
    for name in [name for name in weights if name.endswith(".weight") and "transformer.w" not in name]:
        weights.setdefault(name.removesuffix("weight") + "bias", torch.zeros(weights[name].size(0)))
        weights[name] = weights[name].t().contiguous() if name.endswith(CONV1D) else weights[name]
    return weights


def gpt2_config(config: GPTConfig, tokenizer: Tokenizer) -> dict:
    """The content of config.json. wigglegpt_tokenizer: the tokenizer's identity, which `load_pretrained` reads back."""
    end = END_OF_TEXT if tokenizer.kind == "gpt2" else None
    end_id = end and tokenizer.encode(end, special=True)[0]
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": ACTIVATION_FUNCTION_OF[config.mlp],
        "n_positions": config.block_size,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "bos_token_id": end_id,
        "eos_token_id": end_id,
        "vocab_size": tokenizer.vocab_size,
        "wigglegpt_tokenizer": tokenizer.identity(),
    }


def fast_tokenizer(tokenizer: Tokenizer):
    """One of our tokenizers -> the same as a Tokenizer of Hugging Face's library."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    if tokenizer.kind == "char":
        fast = Tokenizer(models.WordLevel({character: i for i, character in enumerate(tokenizer.characters)}))
        fast.pre_tokenizer, fast.decoder = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated"), decoders.Fuse()
        return fast
    gpt2 = tokenizer.kind == "gpt2"
    ranks = gpt2_encoding()._mergeable_ranks if gpt2 else {bytes([byte]): byte for byte in range(256)}
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2 spells each byte as a visible character
    letters = {byte: chr(256 + i) for i, byte in enumerate(sorted(set(range(256)) - set(shown)))}
    letters |= {byte: chr(byte) for byte in shown}
    spelled = {token: "".join(letters[byte] for byte in token) for token in sorted(ranks, key=ranks.get)}
    merges = [tuple(spelled[part] for part in merged_pair(token, ranks)) for token in spelled if len(token) > 1]
    fast = Tokenizer(models.BPE({spelled[token]: ranks[token] for token in spelled}, merges))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=gpt2)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([END_OF_TEXT] if gpt2 else [])  # it gets the next id, 50256
    return fast


def merged_pair(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two tokens that a token is merged from: what its bytes come to when the lowest rank is merged first."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        i = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], math.inf))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts
