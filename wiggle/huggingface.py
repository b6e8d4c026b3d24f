"""
A folder in Hugging Face's layout becomes a model here: GPT-2's weights, or what export.py wrote of any model.

Weights have the same names in all of them. OpenAI's Conv1D keeps a matrix as (in, out) where Linear keeps (out, in).
transformers, and what it brings along, is imported where it is needed: most users never do. Code that a folder holds is
not run.
"""

import contextlib
import math
import os
from pathlib import Path

import torch

from model_bio import GPT, GPTConfig
from wiggle.errors import UserError, plausible
from wiggle.files import known_beginning
from wiggle.huggingface_tokenizer import folder_tokenizer, read_json
from wiggle.weights import model_with_weights

PRETRAINED = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")  # OpenAI's models, by their names at Hugging Face
OWN_TYPE = "wigglegpt"  # model_type of a folder of modeling_wigglegpt.py, as export.py writes it
# transformers' activation_function -> mlp
MLP_OF = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu"}
CONV1D = (".attn.c_attn.weight", ".attn.c_proj.weight", ".mlp.c_fc.weight", ".mlp.c_proj.weight")
CAUSAL_MASKS = (".attn.bias", ".attn.masked_bias")  # buffers that some versions of transformers save
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


def is_pretrained(path: str | Path) -> bool:
    """Whether a path is a folder of weights in Hugging Face's layout, or no path but one of PRETRAINED."""
    return any(Path(path).glob("model.safetensors*")) or (str(path) in PRETRAINED and not Path(path).exists())


def load_pretrained(path: str | Path, overrides: dict) -> tuple[GPT, dict]:
    """Weights in Hugging Face's layout, by a name of PRETRAINED or in a folder -> (model, meta) of load_model."""
    with plausible(path):
        try:
            model = gpt_from_pretrained(path, overrides)
        except ImportError:
            raise UserError(f"{path} needs a library: pip install transformers") from None
        folder = pretrained_folder(path)
        tokenizer = folder_tokenizer(folder, model.config.vocab_size)
    origin = "WiggleGPT" if is_own(folder) else "GPT-2"
    meta = {"path": path, "origin": origin, "config": {}, "iter_num": 0, "best_val_loss": math.nan}
    return model, meta | {"tokenizer": tokenizer and tokenizer.identity()}


def gpt_from_pretrained(model_type: str | Path, override_args: dict | None = None) -> GPT:
    """
    One of OpenAI's GPT-2s by its name at Hugging Face, or a model of its kind, or of ours, in a folder -> GPT.

    override_args: may hold 'dropout' and 'gradient_checkpointing'. Raises ImportError without transformers, UserError
    where the model cannot be fetched, and ValueError where it computes something else than GPT, or a weight is missing,
    surplus or damaged.
    """
    from transformers import GPT2Config  # before anything is fetched

    fixed = set(override_args or {}) - {"dropout", "gradient_checkpointing"}
    if fixed:
        raise ValueError(f"dropout and gradient_checkpointing alone can be overridden, not {', '.join(fixed)}")
    folder = pretrained_folder(model_type)
    if is_own(folder):
        settings = read_json(folder / "config.json")
        args = {key: settings[key] for key in GPTConfig.__dataclass_fields__ if key in settings}
        return model_with_weights(GPTConfig(**args | (override_args or {})), tied(read_weights(folder)))
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
    return model_with_weights(config, tied(linear_weights(read_weights(folder))))


def is_own(folder: Path) -> bool:
    """Whether a folder holds a model in the format of modeling_wigglegpt.py."""
    return read_json(folder / "config.json").get("model_type") == OWN_TYPE


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
    """All tensors of model.safetensors, or of the files that its index names, by the names in there."""
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
        weights |= found
    return weights


def linear_weights(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """GPT-2's weights as transformers saves them -> by GPT's names, each matrix as Linear keeps it, (out, in)."""
    linear = {}
    for name, tensor in weights.items():
        if name.startswith(("wte.", "wpe.", "h.", "ln_f.")):  # saved without the head, as GPT2Model
            name = f"transformer.{name}"
        if not name.endswith(CAUSAL_MASKS):
            linear[name] = tensor.t() if name.endswith(CONV1D) else tensor
    return linear


def tied(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights with a head, which folders leave out where it is the token embedding."""
    if "transformer.wte.weight" in weights:
        weights.setdefault("lm_head.weight", weights["transformer.wte.weight"])
    return weights
