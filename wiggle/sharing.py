"""
A model here becomes a folder that transformers opens: a plain GPT-2 where that says it all, else one with its own code.

The code is modeling_wigglegpt.py, a copy of which lies in the folder. What stands in a folder is read back by
huggingface.py.
"""

from pathlib import Path

import torch

from model_bio import GPT, GPTConfig, model_args
from wiggle.files import read_bytes, to_json
from wiggle.huggingface import CONV1D, OWN_TYPE
from wiggle.huggingface_tokenizer import fast_tokenizer
from wiggle.tokenizer import END_OF_TEXT, Tokenizer

# mlp -> transformers' activation_function, for a plain GPT-2
ACTIVATION_FUNCTION_OF = {"gelu": "gelu", "gelu_tanh": "gelu_new"}
# Keys of GPTConfig that GPT-2's config.json has a word for
EXPRESSED = {"block_size", "vocab_size", "n_layer", "n_head", "n_embd", "dropout", "bias", "mlp"}
# Keys of GPTConfig that say how a model was begun and trained, and change nothing that it computes
OF_TRAINING = {"gradient_checkpointing", "c_fc_std", "dendritic_beta_init"}
MODELING = "modeling_wigglegpt"
FOR_ONE_MLP = ("bio_", "dendritic_")  # how keys begin that only mlp=bio, or only mlp=dendritic, reads


def is_plain_gpt2(config: GPTConfig) -> bool:
    """Whether GPT-2's own format has a place for all that a model computes."""
    rest = [key for key in model_args(config) if key not in EXPRESSED | OF_TRAINING and not key.startswith(FOR_ONE_MLP)]
    usual = all(getattr(config, key) == GPTConfig.__dataclass_fields__[key].default for key in rest)
    return usual and config.mlp in ACTIVATION_FUNCTION_OF


def folder_files(model: GPT, tokenizer: Tokenizer) -> dict[str, bytes]:
    """
    The files by which transformers opens a model and its tokenizer: name -> content.

    Raises ImportError without safetensors and tokenizers, which transformers brings along.
    """
    from safetensors.torch import save

    config = model.config
    if is_plain_gpt2(config):
        files = {"config.json": to_json(gpt2_config(config, tokenizer), indent=2)}
        weights = gpt2_weights(model, tokenizer.vocab_size)
    else:
        files = {"config.json": to_json(own_config(model, tokenizer), indent=2)}
        files[f"{MODELING}.py"] = read_bytes(Path(__file__).with_name(f"{MODELING}.py"))
        files["generation_config.json"] = to_json(generation_config(config, tokenizer), indent=2)
        weights = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    files["model.safetensors"] = save(weights, {"format": "pt"})
    files["tokenizer.json"] = fast_tokenizer(tokenizer).to_str().encode()
    files["tokenizer_config.json"] = to_json(tokenizer_config(config, tokenizer), indent=2)
    return files


# --- weights ---


def gpt2_weights(model: GPT, vocab_size: int) -> dict[str, torch.Tensor]:
    """What GPT2LMHeadModel loads: matrices as (in, out), a bias everywhere, and no lm_head, which is tied."""
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    weights["transformer.wte.weight"] = weights["transformer.wte.weight"][:vocab_size]  # the rest stands for no text
    for name in [name for name in weights if name.endswith(".weight") and "transformer.w" not in name]:
        weights.setdefault(name.removesuffix("weight") + "bias", torch.zeros(weights[name].size(0)))
        weights[name] = weights[name].t().contiguous() if name.endswith(CONV1D) else weights[name]
    return weights


# --- settings ---


def end_of_text(tokenizer: Tokenizer) -> int | None:
    """The id of '<|endoftext|>', which GPT-2's tokenizer has and the others lack."""
    return tokenizer.encode(END_OF_TEXT, special=True)[0] if tokenizer.kind == "gpt2" else None


def gpt2_config(config: GPTConfig, tokenizer: Tokenizer) -> dict:
    """The content of config.json. wigglegpt_tokenizer: the tokenizer's identity, which `load_pretrained` reads back."""
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
        "bos_token_id": end_of_text(tokenizer),
        "eos_token_id": end_of_text(tokenizer),
        "vocab_size": tokenizer.vocab_size,
        "wigglegpt_tokenizer": tokenizer.identity(),
    }


def own_config(model: GPT, tokenizer: Tokenizer) -> dict:
    """The content of config.json for modeling_wigglegpt.py: the keys of GPTConfig by their names, and what it adds."""
    args = {key: value for key, value in model_args(model.config).items() if key != "gradient_checkpointing"}
    return {
        "architectures": ["WiggleGPTForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{MODELING}.WiggleGPTConfig",
            "AutoModelForCausalLM": f"{MODELING}.WiggleGPTForCausalLM",
        },
        "model_type": OWN_TYPE,
        **args,
        "intermediate_size": model.transformer.h[0].mlp.c_proj.in_features,
        "bos_token_id": end_of_text(tokenizer),
        "eos_token_id": end_of_text(tokenizer),
        "wigglegpt_tokenizer": tokenizer.identity(),
    }


def generation_config(config: GPTConfig, tokenizer: Tokenizer) -> dict:
    """What `generate` does where it is not told: it never draws an id past the tokenizer's vocabulary."""
    end, unused = end_of_text(tokenizer), list(range(tokenizer.vocab_size, config.vocab_size))
    ids = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "suppress_tokens": unused or None}
    return {key: value for key, value in ids.items() if value is not None}


def tokenizer_config(config: GPTConfig, tokenizer: Tokenizer) -> dict:
    """The content of tokenizer_config.json. A batch of prompts is padded on the left: text goes on behind them."""
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    settings |= {"model_max_length": config.block_size, "padding_side": "left"}
    if tokenizer.kind == "gpt2":
        settings |= {f"{name}_token": END_OF_TEXT for name in ("bos", "eos", "pad")}
    return settings
