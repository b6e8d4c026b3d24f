"""
GPT-2 in Hugging Face's layout: its weights become a model here, and a model of GPT-2's kind becomes such a folder.

Weights have the same names in both. OpenAI's Conv1D keeps a matrix as (in, out) where Linear keeps (out, in), and GPT-2
has a bias everywhere. transformers, and what it brings along, is imported where it is needed: most users never do.
"""

import contextlib
import math
import os
from pathlib import Path

import torch

from model_bio import GPT, GPTConfig, model_args
from wiggle.errors import UserError, plausible
from wiggle.files import known_beginning
from wiggle.huggingface_tokenizer import folder_tokenizer, read_json
from wiggle.tokenizer import END_OF_TEXT, Tokenizer
from wiggle.weights import model_with_weights

PRETRAINED = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")  # OpenAI's models, by their names at Hugging Face
# transformers' activation_function -> mlp, and back
MLP_OF = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu"}
ACTIVATION_FUNCTION_OF = {"gelu": "gelu", "gelu_tanh": "gelu_new"}
CONV1D = (".attn.c_attn.weight", ".attn.c_proj.weight", ".mlp.c_fc.weight", ".mlp.c_proj.weight")
CAUSAL_MASKS = (".attn.bias", ".attn.masked_bias")  # buffers that some versions of transformers save
# Keys of GPTConfig that GPT-2's config.json has a word for
EXPRESSED = {"block_size", "vocab_size", "n_layer", "n_head", "n_embd", "dropout", "bias", "mlp"}
# Keys of config.json that change what transformers computes -> the value that GPT computes. The other keys are sizes,
# dropout, ids of tokens, heads of other tasks, or another rounding of the same function (reorder_and_upcast_attn).
COMPUTED = {
    "model_type": "gpt2",
    "auto_map": None,  # code in the folder
    "quantization_config": None,
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "tie_word_embeddings": True,
}


# --- their folder -> our model ---


def is_pretrained(path: str | Path) -> bool:
    """Whether a path is a folder of weights in Hugging Face's layout, or no path but one of PRETRAINED."""
    return any(Path(path).glob("model.safetensors*")) or (str(path) in PRETRAINED and not Path(path).exists())


def load_pretrained(path: str | Path, overrides: dict) -> tuple[GPT, dict]:
    """GPT-2's weights by name or in a folder -> (model, meta), as in checkpoint.load_model."""
    with plausible(path):
        try:
            model = gpt_from_pretrained(path, overrides)
        except ImportError:
            raise UserError(f"{path} needs a library: pip install transformers") from None
        tokenizer = folder_tokenizer(pretrained_folder(path), model.config.vocab_size)
    meta = {"path": path, "origin": "GPT-2", "config": {}, "iter_num": 0, "best_val_loss": math.nan}
    return model, meta | {"tokenizer": tokenizer and tokenizer.identity()}


def gpt_from_pretrained(model_type: str | Path, override_args: dict | None = None) -> GPT:
    """
    One of OpenAI's GPT-2s by its name at Hugging Face, or a model of its kind in a folder -> GPT.

    override_args: may hold 'dropout'. Raises ImportError without transformers, UserError where the model cannot be
    fetched, and ValueError where it computes something else than GPT, or a weight is missing, surplus or damaged.
    """
    from transformers import GPT2Config

    if set(override_args or {}) - {"dropout"}:
        raise ValueError(f"only dropout can be overridden, not {', '.join(set(override_args) - {'dropout'})}")
    folder = pretrained_folder(model_type)
    theirs = GPT2Config.from_dict(read_json(folder / "config.json"))  # it knows the defaults, and keys' older names
    check_computation(folder, theirs)
    config = GPTConfig(
        block_size=theirs.n_positions,
        vocab_size=theirs.vocab_size,
        n_layer=theirs.n_layer,
        n_head=theirs.n_head,
        n_embd=theirs.n_embd,
        mlp=MLP_OF[theirs.activation_function],
        **(override_args or {}),
    )
    return model_with_weights(config, read_weights(folder))


def pretrained_folder(model_type: str | Path) -> Path:
    """A folder as it is; a name at Hugging Face -> its folder in their cache, fetched where it is not there yet."""
    folder = Path(os.path.expanduser(model_type))
    if folder.is_dir():
        return folder
    from huggingface_hub import HfApi, constants, snapshot_download

    name, files = str(model_type), ["config.json", "model.safetensors"]
    with contextlib.suppress(OSError):  # it is not in the cache yet
        folder = Path(snapshot_download(name, allow_patterns=files, local_files_only=True))
        if all((folder / file).is_file() for file in files):
            return folder
    try:
        HfApi().model_info(name, timeout=5)  # where there is no connection, a download would try for minutes
        return Path(snapshot_download(name, allow_patterns=files))
    except Exception as error:  # the client's own kinds of error, which differ by version
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"{name} could not be fetched from {constants.ENDPOINT} ({reason}): connect once, or name a folder that "
            "holds its config.json and model.safetensors"
        ) from None


def check_computation(folder: Path, theirs) -> None:
    """Raise ValueError where transformers would compute something else than GPT from a folder. theirs: GPT2Config."""
    for key, known in COMPUTED.items():
        value = getattr(theirs, key, known)
        if value != known:
            raise ValueError(f"its config.json says {key}={value!r}, only {known!r} is known here")
    if theirs.activation_function not in MLP_OF:
        raise ValueError(f"its config.json says activation_function={theirs.activation_function!r} has no mlp here")
    if theirs.n_inner not in (None, 4 * theirs.n_embd):
        raise ValueError(f"its config.json says n_inner={theirs.n_inner}, only {4 * theirs.n_embd} is known here")
    if getattr(theirs, "pruned_heads", None):
        raise ValueError("its config.json says that heads of attention were pruned, which is not known here")
    if (folder / "adapter_config.json").exists():
        raise ValueError("its adapter_config.json adds an adapter to the weights: merge the two before")


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of model.safetensors, or of the files that its index names, by GPT's names and in its layout."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    files = ["model.safetensors"]
    if not (folder / files[0]).exists():
        files = sorted(set(read_json(folder / "model.safetensors.index.json")["weight_map"].values()))
    weights = {}
    for file in files:
        what = known_beginning(folder / file)  # raises OSError with the reason, where safetensors has another
        try:
            found = load_file(folder / file)
        except SafetensorError as error:
            raise ValueError(f"{file} {what or f'is damaged: {error}'}") from None
        for name, tensor in found.items():
            if name.startswith(("wte.", "wpe.", "h.", "ln_f.")):  # saved without the head, as GPT2Model
                name = f"transformer.{name}"
            if not name.endswith(CAUSAL_MASKS):
                weights[name] = tensor.t() if name.endswith(CONV1D) else tensor
    if "transformer.wte.weight" in weights:
        weights.setdefault("lm_head.weight", weights["transformer.wte.weight"])  # a tied head is not saved
    return weights


# --- our model -> their folder ---


def check_exportable(config: GPTConfig) -> None:
    """Raise UserError, with the reason, for a model that GPT-2's format has no place for."""
    if config.mlp not in ACTIVATION_FUNCTION_OF:
        known = " and ".join(ACTIVATION_FUNCTION_OF)
        raise UserError(f"mlp={config.mlp} cannot be exported: GPT-2's format knows {known}")
    own, gpt2 = [], []
    for key, value in model_args(config).items():
        default = GPTConfig.__dataclass_fields__[key].default
        # How a model was begun and trained is nothing that its folder must say, nor are other MLPs' keys.
        idle = key in ("gradient_checkpointing", "c_fc_std") or key.startswith(("bio_", "dendritic_"))
        if key not in EXPRESSED and not idle and value != default:
            own.append(f"{key}={value!r}")
            gpt2.append(f"{key}={default!r}")
    if own:
        has = ", ".join(gpt2)
        raise UserError(f"{', '.join(own)} cannot be exported: GPT-2's format has no place for it, a GPT-2 has {has}")


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
