"""
Turn a trained GELU model into a standard GPT-2 folder, which transformers and what builds on it open as it is.

    python export.py --out_dir=out/control --to=gelu-gpt2

    from transformers import AutoModelForCausalLM, AutoTokenizer
    model, tokenizer = (auto.from_pretrained("gelu-gpt2") for auto in (AutoModelForCausalLM, AutoTokenizer))
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

import checkpoint
import configurator
from configurator import UserError
from durable import atomic_write, write_json
from model_bio import GPTConfig, model_args
from tokenizer import END_OF_TEXT, gpt2_encoding

ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new"}  # mlp -> what transformers calls it
EXPRESSED = {"block_size", "vocab_size", "n_layer", "n_head", "n_embd", "dropout", "bias", "mlp"}


@dataclass
class ExportConfig:
    """What to export, and where to."""

    out_dir: str = "out"  # a run's folder (best.pt, else ckpt.pt), or a checkpoint file
    to: str = "export"  # the folder to make
    data_dir: str = "data"  # where a nanoGPT checkpoint's meta.pkl is looked for


def check(config):
    """Raise UserError, with the reason, for a GPTConfig that GPT-2's format has no place for."""
    if config.mlp not in ACTIVATIONS:
        raise UserError(f"mlp={config.mlp} cannot be exported: GPT-2's format knows {' and '.join(ACTIVATIONS)}")
    for key, value in model_args(config).items():
        idle = key == "gradient_checkpointing" or key.startswith(("bio_", "dendritic_"))  # of training, of other MLPs
        if key not in EXPRESSED and not idle and value != GPTConfig.__dataclass_fields__[key].default:
            raise UserError(f"{key}={value!r} cannot be exported: GPT-2's format has no place for it")


def gpt2_weights(model, vocab_size):
    """What GPT2LMHeadModel loads: matrices as (in, out), a bias everywhere, and no lm_head, which is tied."""
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    weights["transformer.wte.weight"] = weights["transformer.wte.weight"][:vocab_size]  # the rest stands for no text
    for name in [name for name in weights if name.endswith(".weight") and "transformer.w" not in name]:
        weights.setdefault(name.removesuffix("weight") + "bias", torch.zeros(weights[name].size(0)))
        weights[name] = weights[name].t().contiguous() if ".c_" in name else weights[name]
    return weights


def fast_tokenizer(tokenizer):
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
    merges = [tuple(spelled[part] for part in halves(token, ranks)) for token in spelled if len(token) > 1]
    fast = Tokenizer(models.BPE({spelled[token]: ranks[token] for token in spelled}, merges))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=gpt2)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([END_OF_TEXT] if gpt2 else [])  # it gets the next id, 50256
    return fast


def halves(token, ranks):
    """The two tokens that a token is merged from: what its bytes come to when the lowest rank is merged first."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        i = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], math.inf))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


@configurator.script
def main(argv=None):
    config = configurator.load(ExportConfig, sys.argv[1:] if argv is None else argv)
    folder = Path(config.to)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already, and not empty: name a new folder with --to")
    model, meta = checkpoint.load_model(config.out_dir)
    check(c := model.config)
    tokenizer = checkpoint.find_tokenizer(model, meta, config.data_dir)
    try:
        from safetensors.torch import save

        weights, fast = save(gpt2_weights(model, tokenizer.vocab_size), {"format": "pt"}), fast_tokenizer(tokenizer)
    except ImportError:
        raise UserError("the export needs a library: pip install transformers") from None
    end = END_OF_TEXT if tokenizer.kind == "gpt2" else None
    what = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "activation_function": ACTIVATIONS[c.mlp]}
    what |= {"n_positions": c.block_size, "n_layer": c.n_layer, "n_head": c.n_head, "n_embd": c.n_embd}
    what |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), c.dropout)
    what |= dict.fromkeys(("bos_token_id", "eos_token_id"), end and fast.token_to_id(end))
    what |= {"vocab_size": tokenizer.vocab_size, "wigglegpt_tokenizer": tokenizer.identity()}
    how = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    how |= dict.fromkeys(("bos_token", "eos_token"), end) if end else {}
    for name, content in (("model.safetensors", weights), ("tokenizer.json", fast.to_str().encode())):
        with atomic_write(folder / name) as file:
            file.write(content)
    write_json(folder / "tokenizer_config.json", how)
    write_json(folder / "config.json", what)
    print(f"exported  {meta['path']} to {folder}: {model.describe()}, {tokenizer.vocab_size:,} {tokenizer.kind} tokens")


if __name__ == "__main__":
    main()
