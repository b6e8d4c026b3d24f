"""Checkpoints: written whole and sealed, checked when read, and opened whoever wrote them. Nothing in them is run."""

import math
import os
import pickle
import re
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from model_bio import GPT, GPTConfig
from wiggle.custom_neuron import Neuron, parse_spec
from wiggle.dataset import read_meta
from wiggle.errors import UserError, plausible
from wiggle.files import atomic_write, known_beginning, reading, writing
from wiggle.huggingface import is_pretrained, load_pretrained
from wiggle.neuron_identity import changes
from wiggle.run_log import print_line
from wiggle.seal import Hashing, append_seal, seal_holds
from wiggle.tokenizer import GPT2Tokenizer, Tokenizer, from_identity
from wiggle.weights import model_with_weights

# --- writing ---


def save(path: str | Path, content: dict, previous: Path | None = None) -> None:
    """
    Write a checkpoint of tensors and plain values, and read it back.

    What stood at `path` stays until the new one is whole and verified; then it becomes `previous`.
    """
    with atomic_write(path, previous, verify=seal_holds) as file:
        hashing = Hashing(file)
        try:
            torch.save(content | {"sealed": True}, hashing)
        except RuntimeError as error:
            raise error.__context__ or error from None  # torch hides what stopped its writing: a full disk, Ctrl-C
        append_seal(file, hashing.digest.hexdigest())


def save_last(out_dir: str | Path, content: dict) -> None:
    """Write out_dir/ckpt.pt and keep the one before it as ckpt.prev.pt."""
    save(Path(out_dir) / "ckpt.pt", content, previous=Path(out_dir) / "ckpt.prev.pt")


# --- reading ---


def find_file(path: str | Path) -> Path:
    """A checkpoint file, or the one to open in a run's folder: best.pt, else ckpt.pt, else ckpt.prev.pt."""
    path = Path(path)
    if not path.is_dir():
        return path
    for name in ("best.pt", "ckpt.pt", "ckpt.prev.pt"):
        if (path / name).is_file():
            return path / name
    if any(path.glob("pytorch_model*.bin")):
        write = f"GPT2LMHeadModel.from_pretrained({str(path)!r}).save_pretrained({str(path)!r})"
        raise UserError(
            f"{path} holds pytorch_model.bin, but no model.safetensors: let transformers write it, by {write}"
        )
    raise UserError(f"{path} holds no checkpoint (best.pt, ckpt.pt, or model.safetensors): name another folder or file")


def read(path: str | Path, device: str | torch.device = "cpu") -> dict:
    """
    A checkpoint file's content, every byte of it checked. Nothing in the file is executed.

    torch.load does not look at the archive's checksums, so a flipped bit would go unseen: our seal covers all bytes,
    and the zip module's test those of a foreign file that carry content. Raises UserError for what is no checkpoint.
    """
    path = Path(path)
    with reading(f"checkpoint {path}"):
        if not path.is_file():
            raise UserError(f"checkpoint {path} does not exist, or is no file")
        whole = seal_holds(path)
    if whole is None:
        check_archive(path)
    if whole is False:
        raise UserError(f"checkpoint {path} is damaged: the checksum of the file is wrong")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("WeightsUnpickler error: ")[-1].splitlines()[0]
        raise UserError(
            f"checkpoint {path} holds more than tensors and plain values, and was not run: {reason}"
        ) from None
    except Exception as error:  # a whole archive that torch did not write raises almost anything
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path} is not a checkpoint of torch: {type(error).__name__}: {reason}") from None
    if isinstance(content, dict) and "sealed" in content and not whole:
        hint = "(or torch.save wrote it again: then drop its key 'sealed')"
        raise UserError(f"checkpoint {path} is damaged: it does not end with the checksum that it was given {hint}")
    if not isinstance(content, dict) or not {"model", "model_args"} <= set(content):
        raise UserError(f"{path} is not a checkpoint of a GPT: it has no 'model' and 'model_args', as nanoGPT's have")
    return content


def check_archive(path: Path) -> None:
    """Raise UserError unless a file that others wrote is a ZIP archive, as torch's are, with the right checksums."""
    if path.suffix == ".safetensors":
        raise UserError(f"{path} holds weights alone: name its folder, {path.parent}, with config.json beside them")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, ValueError, RuntimeError) as error:
        what = known_beginning(path) or f"is truncated or no checkpoint at all ({error})"
        raise UserError(f"checkpoint {path} {what}") from None
    if damaged:
        raise UserError(f"checkpoint {path} is damaged: the checksum of {damaged} is wrong")


def read_last(out_dir: str | Path, say: Callable[[str], None] = print_line) -> tuple[dict, Path]:
    """The newest whole checkpoint of a run -> (content, its path). A damaged one is reported and the previous used."""
    last, previous = Path(out_dir) / "ckpt.pt", Path(out_dir) / "ckpt.prev.pt"
    if not last.exists() and not previous.exists():
        raise UserError(f"{out_dir} holds no ckpt.pt to resume from: start with --init_from=scratch")
    try:
        return read(last), last
    except UserError as error:
        if not previous.exists():
            raise
        say(f"warning   {error}; going on from {previous}")
        return read(previous), previous


# --- a checkpoint's content -> a model ---


def translate(weights: dict, args: dict) -> tuple[dict, dict, str]:
    """
    Foreign names -> ours. weights: by name, args: their model_args -> (weights, keywords of GPTConfig, origin).

    Knows nanoGPT's files and WiggleGPT's second and third version; refuses the first, whose neurons exist nowhere now.
    """
    # torch.compile and DistributedDataParallel put these before the names of the model that they wrap.
    weights = {re.sub(r"^(_orig_mod\.|module\.)+", "", name): tensor for name, tensor in weights.items()}
    # Older nanoGPTs save each layer's causal mask.
    weights = {name: tensor for name, tensor in weights.items() if not name.endswith(".attn.bias")}
    args = {key: value for key, value in args.items() if key in GPTConfig.__dataclass_fields__}
    if any(".mlp.dendritic." in name for name in weights):
        raise UserError("this checkpoint is of WiggleGPT 1: its dendritic compartments were removed, and cannot be run")
    if any(".mlp.activation.omega" in name for name in weights):
        weights = {name.replace(".mlp.activation.", ".mlp.oscillating."): tensor for name, tensor in weights.items()}
        # WiggleGPT 3's RoPE turned q and k of a head alike, so that positions cancelled: such a model knows none.
        position = "none" if args.pop("use_rope", False) else "learned"
        return weights, args | {"bio_gate": "none", "position": position}, "WiggleGPT 3"
    if any(".mlp.sparse_gate.gate." in name for name in weights) and "mlp" not in args:
        return weights, args | {"bio_gate": "dense"}, "WiggleGPT 2"
    return weights, args, "WiggleGPT" if "mlp" in args else "nanoGPT"


def check_neuron(path: Path, content: dict, neuron: Callable[..., nn.Module] | None) -> None:
    """Raise UserError unless `neuron` is the user's own one that a checkpoint's content was trained with, if any."""
    mlp, recorded = str(content["model_args"].get("mlp")), content.get("neuron_sha256")
    recorded = recorded if isinstance(recorded, str) else None
    if ".py:" not in mlp:
        if neuron is not None:
            raise UserError(f"{path} was trained without a neuron of your own: name none")
        return
    if neuron is None:
        raise UserError(
            f"{path} has a neuron of your own, {mlp}, which no checkpoint holds: name it, by --mlp in train.py, by "
            "--neuron in sample_bio.py and analyze_bio.py; export.py has no place for it"
        )
    if recorded is None or not isinstance(neuron, Neuron):  # a bare class has no hash
        return
    if neuron.name != parse_spec(mlp).name:
        raise UserError(f"{path} was trained with {mlp}, not with {neuron.name}")
    if recorded not in (neuron.sha256, neuron.file_sha256):
        before = content.get("neuron_parts")
        changed = ", ".join(changes(before, neuron.parts)) if isinstance(before, dict) else "its file"
        raise UserError(
            f"{path} was trained with {mlp} of SHA-256 {recorded[:12]}..., and the class given has "
            f"{neuron.sha256[:12]}... (changed since: {changed}): restore it as it was"
        )


def build_model(
    path: str | Path, content: dict, neuron: Callable[..., nn.Module] | None = None, **overrides
) -> tuple[GPT, str]:
    """The content of the checkpoint at `path` -> (model with its weights, origin). The rest as in load_model."""
    with plausible(path):
        weights, args, origin = translate(content["model"], content["model_args"])
        check_neuron(path, content, neuron)
        return model_with_weights(GPTConfig(**args | overrides), weights, neuron), origin


def load_model(
    path: str | Path,
    device: str | torch.device = "cpu",
    neuron: Callable[..., nn.Module] | None = None,
    **overrides,
) -> tuple[GPT, dict]:
    """
    A checkpoint file, a run's folder, or GPT-2's weights -> (model in eval mode, meta).

    Opens ours, nanoGPT's, and WiggleGPT 2's and 3's; and a name such as 'gpt2', or a folder with model.safetensors, of
    Hugging Face. meta: path, origin, config, tokenizer (an identity, or None where the file names none), iter_num,
    best_val_loss. neuron: for mlp='file.py:Name', its class, as in GPT. overrides: keys of GPTConfig that no weight
    depends on, such as dropout. Raises UserError for whatever is no model here.
    """
    path = os.path.expanduser(path)
    with reading(path):
        pretrained = is_pretrained(path)
        path = path if pretrained else find_file(path)
    if pretrained:
        model, meta = load_pretrained(path, overrides)
    else:
        content = read(path)
        model, origin = build_model(path, content, neuron, **overrides)
        with plausible(path):
            numbers = int(content.get("iter_num", 0)), float(content.get("best_val_loss", math.nan))
            meta = {"config": dict(content.get("config", {})), "tokenizer": content.get("tokenizer")}
        meta |= {"path": path, "origin": origin, "iter_num": numbers[0], "best_val_loss": numbers[1]}
    if meta["tokenizer"]:
        model.limit_sampling(from_identity(meta["tokenizer"]).vocab_size)
    return model.to(device).eval(), meta


def find_tokenizer(model: GPT, meta: dict, data_dir: str | Path) -> Tokenizer:
    """
    The tokenizer of what load_model returned. nanoGPT's files only name their dataset, whose folder in data_dir has it.

    Raises UserError where there is none, or one of another vocabulary than the model's.
    """
    if meta["tokenizer"]:
        return from_identity(meta["tokenizer"])
    vocab_size = model.config.vocab_size
    if meta["origin"] == "GPT-2":
        raise UserError(f"{meta['path']} holds no tokenizer, and its vocabulary of {vocab_size:,} is not GPT-2's")
    name = str(meta["config"].get("dataset", ""))
    folder = Path(os.path.expanduser(data_dir), name or "NAME")
    if name and (known := read_meta(folder)):
        tokenizer = from_identity(known["tokenizer"])
        if vocab_size not in (tokenizer.vocab_size, 50304 if tokenizer.kind == "gpt2" else None):
            raise UserError(
                f"{folder} has {tokenizer.vocab_size:,} {tokenizer.kind} tokens, and the model in {meta['path']} "
                f"{vocab_size:,}: it was trained on another dataset of that name, whose meta.pkl belongs there"
            )
        return tokenizer
    if GPT2Tokenizer.vocab_size <= vocab_size <= 50304:  # nanoGPT rounds 50,257 up
        return GPT2Tokenizer()
    raise UserError(
        f"{meta['path']} holds no tokenizer: put nanoGPT's meta.pkl of its {vocab_size} characters into {folder}"
    )


# --- a run's folder, before training writes to it ---


def remove_leftovers(out_dir: str | Path, source: Path, say: Callable[[str], None] = print_line) -> None:
    """Clear what a run that resumes from `source` would trip over: half-written files, and a damaged ckpt.pt."""
    last = Path(out_dir) / "ckpt.pt"
    with writing(out_dir):
        for path in Path(out_dir).glob("*.tmp"):
            if re.fullmatch(r"(ckpt\.pt|best\.pt|config\.json)\.\d+\.tmp", path.name):
                path.unlink()
                say(f"note      removed {path}, which was being written when the run ended")
        if source != last and last.exists():  # else the damaged one would become ckpt.prev.pt
            os.replace(last, last.with_name("ckpt.damaged.pt"))


def set_aside(out_dir: str | Path, say: Callable[[str], None] = print_line) -> None:
    """Move an earlier run's files out of the way of a new one, into out_dir/earlier-1 (or -2, ...). Nothing is lost."""
    out_dir = Path(out_dir)
    names = ("ckpt.pt", "ckpt.prev.pt", "best.pt", "metrics.jsonl", "config.json")
    present = [out_dir / name for name in names if (out_dir / name).exists()]
    if any(path.suffix == ".pt" for path in present):
        taken = [int(p.name[8:]) for p in out_dir.glob("earlier-*") if p.name[8:].isdigit()]
        folder = out_dir / f"earlier-{max(taken, default=0) + 1}"
        with writing(folder):
            folder.mkdir()
            for path in present:
                os.replace(path, folder / path.name)
        say(f"note      {out_dir} held a run already: its files are in {folder} now")
