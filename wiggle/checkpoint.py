"""Checkpoints: written whole and sealed, checked when read, and opened whoever wrote them. Nothing in them is run."""

import hashlib
import math
import os
import pickle
import re
import zipfile
import zlib
from pathlib import Path

import torch

from model_bio import GPT, GPTConfig
from wiggle.dataset import read_meta
from wiggle.errors import UserError, plausible
from wiggle.files import atomic_write, writing
from wiggle.huggingface import is_pretrained, load_pretrained
from wiggle.tokenizer import GPT2Tokenizer, from_identity

# Our checkpoints end with this and a SHA-256 in hexadecimal: the ZIP archive's comment, behind its length.
# The archive's own checksums leave out headers and padding, half of a tiny file.
SEAL = b"wigglegpt: the SHA-256 without this comment is "
SEAL = (len(SEAL) + 64).to_bytes(2, "little") + SEAL


class Hashing:
    """A file to write to that takes the SHA-256 of what it is given."""

    def __init__(self, file):
        self.file, self.flush, self.digest = file, file.flush, hashlib.sha256()

    def write(self, data):
        self.digest.update(data)
        return self.file.write(data)


def save(path, content, previous=None):
    """
    Write a checkpoint of tensors and plain values, and read it back.

    What stood at `path` stays until the new one is whole and verified; then it becomes `previous`.
    """
    with atomic_write(path, previous, verify=sealed) as file:
        hashing = Hashing(file)
        try:
            torch.save(content | {"sealed": True}, hashing)
        except RuntimeError as error:
            raise error.__context__ or error from None  # torch covers what stopped its writing: a full disk, Ctrl-C
        file.seek(-2, os.SEEK_END)  # the length of the archive's comment, zero so far
        file.write(SEAL + hashing.digest.hexdigest().encode())


def sealed(path):
    """Whether a checkpoint is, to the byte, what `save` wrote; None for a file without a seal, as foreign ones are."""
    with open(path, "rb") as file:
        if hasattr(os, "posix_fadvise"):  # what was just written is to come from the disk, not from memory
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        archive = file.seek(0, os.SEEK_END) - len(SEAL) - 64  # its bytes before the comment's length
        file.seek(max(archive, 0))
        if file.read(len(SEAL)) != SEAL:
            return None
        expected = file.read()
        file.seek(0)
        digest = hashlib.sha256()
        for start in range(0, archive, 2**22):
            digest.update(file.read(min(2**22, archive - start)))
        digest.update(b"\0\0")  # the comment's length when the SHA-256 was taken
        return digest.hexdigest().encode() == expected


def save_last(out_dir, content):
    """Write out_dir/ckpt.pt and keep the one before it as ckpt.prev.pt."""
    save(Path(out_dir) / "ckpt.pt", content, previous=Path(out_dir) / "ckpt.prev.pt")


def find(path):
    """A checkpoint file, or the one to open in a run's folder: best.pt, else ckpt.pt, else ckpt.prev.pt."""
    path = Path(path)
    if not path.is_dir():
        return path
    for name in ("best.pt", "ckpt.pt", "ckpt.prev.pt"):
        if (path / name).is_file():
            return path / name
    raise UserError(f"{path} holds no checkpoint (best.pt, ckpt.pt): train one, or name another with --out_dir")


def read(path, device="cpu"):
    """
    A checkpoint file's content, every byte of it checked. Nothing in the file is executed.

    torch.load does not look at the archive's checksums, so a flipped bit would go unseen: our seal covers all bytes,
    and the zip module's test those of a foreign file that carry content.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist")
    damaged = None
    try:
        whole = sealed(path)
        if whole is None:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, ValueError, RuntimeError) as error:
        raise UserError(f"checkpoint {path} is truncated or no checkpoint at all ({error})") from None
    if damaged or whole is False:
        raise UserError(f"checkpoint {path} is damaged: the checksum of {damaged or 'the file'} is wrong")
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
        raise UserError(f"{path} is not a checkpoint of a GPT: it has no 'model' and 'model_args'")
    return content


def read_last(out_dir, say=print):
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


def translate(state, args):
    """
    Foreign names -> ours. state: weights by name, args: their model_args -> (state, keywords of GPTConfig, origin).

    Knows nanoGPT's files and WiggleGPT's second and third version; refuses the first, whose neurons exist nowhere now.
    """
    state = {name.removeprefix("_orig_mod."): tensor for name, tensor in state.items()}
    state = {name: tensor for name, tensor in state.items() if not name.endswith(".attn.bias")}  # nanoGPT's causal mask
    args = {key: value for key, value in args.items() if key in GPTConfig.__dataclass_fields__}
    if any(".mlp.dendritic." in name for name in state):
        raise UserError("this checkpoint is of WiggleGPT 1: its dendritic compartments were removed, and cannot be run")
    if any(".mlp.activation.omega" in name for name in state):
        state = {name.replace(".mlp.activation.", ".mlp.oscillating."): tensor for name, tensor in state.items()}
        # Its RoPE turned q and k of a head alike, so that positions cancelled: such a model knows none.
        position = "none" if args.pop("use_rope", False) else "learned"
        return state, args | {"bio_gate": "none", "position": position}, "WiggleGPT 3"
    if any(".mlp.sparse_gate.gate." in name for name in state) and "mlp" not in args:
        return state, args | {"bio_gate": "dense"}, "WiggleGPT 2"
    return state, args, "WiggleGPT" if "mlp" in args else "nanoGPT"


def check_neuron(content, neuron, path):
    """Raise UserError unless `neuron` is the user's own one that a checkpoint's content was trained with, if any."""
    mlp, recorded = str(content["model_args"].get("mlp")), content.get("neuron_sha256")
    recorded = recorded if isinstance(recorded, str) else None
    if ".py:" in mlp and neuron is None:
        raise UserError(f"{path} has a neuron of your own, which no checkpoint holds: name it, as in --neuron={mlp}")
    given = getattr(neuron, "sha256", recorded)  # a bare class has none
    if recorded not in (None, given):
        raise UserError(
            f"{path} was trained with {mlp} of SHA-256 {recorded[:12]}..., but the file given has {given[:12]}...: "
            "restore the file as it was"
        )
    if recorded and getattr(neuron, "name", "") not in ("", mlp.rpartition(":")[2]):
        raise UserError(f"{path} was trained with {mlp}, not with {neuron.name}")


def build(path, content, neuron=None, **overrides):
    """A checkpoint's content -> (model with its weights, origin); the arguments are load_model's."""
    with plausible(path):
        state, args, origin = translate(content["model"], content["model_args"])
        check_neuron(content, neuron, path)
        config = GPTConfig(**args | overrides)
        layers = len({name.split(".")[2] for name in state if name.startswith("transformer.h.")})
        if layers != config.n_layer:
            raise ValueError(f"it has the weights of {layers} layers, and n_layer={config.n_layer}")
        with torch.device("meta"):  # so that a false number is found before anything of its size is built
            expected = {name: tuple(tensor.shape) for name, tensor in GPT(config, neuron).state_dict().items()}
        for name in expected | state:
            found = tuple(state[name].shape) if name in state else None
            if found != expected.get(name):
                raise ValueError(f"{name} has the shape {found}, expected {expected.get(name)}")
        if not torch.equal(state["lm_head.weight"], state["transformer.wte.weight"]):
            raise ValueError("lm_head is not tied to the token embedding, as it is in all models here")
        model = GPT(config, neuron)
        model.load_state_dict(state)
    return model, origin


def load_model(path, device="cpu", neuron=None, **overrides):
    """
    A checkpoint file, a run's folder, or GPT-2's weights -> (model in eval mode, meta).

    Opens ours, nanoGPT's, and WiggleGPT 2's and 3's; and a name such as 'gpt2', or a folder with model.safetensors,
    through transformers. meta: path, origin, config, tokenizer (an identity, or None where the file names none),
    iter_num, best_val_loss. neuron: for mlp='file.py:Name', its class, as in GPT. overrides: keys of GPTConfig that no
    weight depends on, such as dropout.
    """
    if is_pretrained(path):
        model, meta = load_pretrained(path, overrides)
    else:
        path = find(path)
        content = read(path)
        model, origin = build(path, content, neuron, **overrides)
        with plausible(path):
            numbers = int(content.get("iter_num", 0)), float(content.get("best_val_loss", math.nan))
            meta = {"config": dict(content.get("config", {})), "tokenizer": content.get("tokenizer")}
        meta |= {"path": path, "origin": origin, "iter_num": numbers[0], "best_val_loss": numbers[1]}
    if meta["tokenizer"]:
        model.limit_sampling(from_identity(meta["tokenizer"]).vocab_size)
    return model.to(device).eval(), meta


def find_tokenizer(model, meta, data_dir):
    """The tokenizer of what load_model returned; nanoGPT's files only name their dataset, whose folder has it."""
    if meta["tokenizer"]:
        return from_identity(meta["tokenizer"])
    name = str(meta["config"].get("dataset", ""))
    if name and (known := read_meta(Path(data_dir, name))):
        return from_identity(known["tokenizer"])
    if model.config.vocab_size >= GPT2Tokenizer.vocab_size:
        return GPT2Tokenizer()
    raise UserError(
        f"{meta['path']} holds no tokenizer: put nanoGPT's meta.pkl of its {model.config.vocab_size} characters "
        f"into {Path(data_dir, name or 'NAME')}"
    )


def best_val_loss(out_dir):
    """Of a run's best.pt, which may be newer than its ckpt.pt; infinite where there is no whole one."""
    try:
        return float(read(Path(out_dir) / "best.pt")["best_val_loss"])
    except (UserError, KeyError, TypeError):
        return math.inf


def tidy(out_dir, source, say=print):
    """Clear what a run that resumes from `source` would trip over: half-written files, and a damaged ckpt.pt."""
    last = Path(out_dir) / "ckpt.pt"
    with writing(out_dir):
        for path in Path(out_dir).glob("*.tmp"):
            if re.fullmatch(r"(ckpt\.pt|best\.pt|config\.json)\.\d+\.tmp", path.name):
                path.unlink()
                say(f"note      removed {path}, which was being written when the run ended")
        if source != last and last.exists():  # or it would become the previous one
            os.replace(last, last.with_name("ckpt.damaged.pt"))


def set_aside(out_dir, say=print):
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
        say(f"note     {out_dir} held a run already: its files are in {folder} now")
