"""Files on disk that several scripts share: durable writes, checkpoints, and their loading."""

import contextlib
import json
import os
import pickle
import zipfile
import zlib
from pathlib import Path

import torch

from configurator import UserError
from model_bio import GPT, GPTConfig


@contextlib.contextmanager
def atomic_write(path):
    """
    Open a temporary file beside `path` for binary writing; on success flush it to disk and rename it over `path`.

    Whoever opens `path`, at whatever moment the machine stops, finds the old content or the new, never a part.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder):
    """Flush a folder's entries, so that a rename survives a power cut. Windows cannot, and does not need to."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def save(path, content):
    """Write a checkpoint of tensors and plain values; what stood at `path` stays whole until the new one is."""
    with atomic_write(path) as file:
        torch.save(content, file)


def write_json(path, content):
    with atomic_write(path) as file:
        file.write(json.dumps(content, indent=2).encode() + b"\n")


def save_last(out_dir, content):
    """Write out_dir/ckpt.pt and keep the one before it as ckpt.prev.pt."""
    path, previous = Path(out_dir) / "ckpt.pt", Path(out_dir) / "ckpt.prev.pt"
    fresh = path.with_name("ckpt.new.pt")
    save(fresh, content)
    if path.exists():
        os.replace(path, previous)
    os.replace(fresh, path)
    sync_folder(path.parent)


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

    torch.load does not look at the archive's checksums, so a flipped bit would go unseen: the zip module's test does.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, ValueError, RuntimeError) as error:
        raise UserError(f"checkpoint {path} is truncated or no checkpoint at all ({error})") from None
    if damaged:
        raise UserError(f"checkpoint {path} is damaged: the checksum of {damaged} is wrong")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("WeightsUnpickler error: ")[-1].splitlines()[0]
        raise UserError(
            f"checkpoint {path} holds more than tensors and plain values, and was not run: {reason}"
        ) from None
    except Exception as error:  # a whole archive that torch did not write raises almost anything
        raise UserError(f"{path} is not a checkpoint of torch: {type(error).__name__}: {error}") from None
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


def load_model(path, device="cpu", neuron=None, **overrides):
    """
    A checkpoint file or a run's folder -> (model in eval mode, meta).

    Opens ours, nanoGPT's, and WiggleGPT 2's and 3's. meta: path, origin, config, tokenizer (an identity, or None where
    the file names none), iter_num, best_val_loss. neuron: for mlp='file.py:Name', its class, as in GPT. overrides: keys
    of GPTConfig that no weight depends on, such as dropout.
    """
    path = find(path)
    content = read(path)
    state, args, origin = translate(content["model"], content["model_args"])
    try:
        model = GPT(GPTConfig(**args | overrides), neuron)
        model.load_state_dict(state)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{path} does not fit a model here: {' '.join(str(error).split())[:300]}") from None
    tokenizer = content.get("tokenizer")
    if tokenizer:
        model.sampled_vocab = min(model.sampled_vocab, tokenizer["vocab_size"])
    meta = {
        "path": path,
        "origin": origin,
        "config": content.get("config", {}),
        "tokenizer": tokenizer,
        "iter_num": content.get("iter_num", 0),
        "best_val_loss": float(content.get("best_val_loss", float("nan"))),
    }
    return model.to(device).eval(), meta


def set_aside(out_dir, say=print):
    """Move an earlier run's files out of the way of a new one, into out_dir/earlier-1 (or -2, ...). Nothing is lost."""
    out_dir = Path(out_dir)
    names = ("ckpt.pt", "ckpt.prev.pt", "best.pt", "metrics.jsonl", "config.json")
    present = [out_dir / name for name in names if (out_dir / name).exists()]
    if any(path.suffix == ".pt" for path in present):
        taken = [int(p.name[8:]) for p in out_dir.glob("earlier-*") if p.name[8:].isdigit()]
        folder = out_dir / f"earlier-{max(taken, default=0) + 1}"
        folder.mkdir()
        for path in present:
            os.replace(path, folder / path.name)
        say(f"note     {out_dir} held a run already: its files are in {folder} now")


class Metrics:
    """
    metrics.jsonl: an object a line. `kept` bytes of an existing file stay, the rest is cut off: a resumed run writes
    again what it had written after its last checkpoint, so no line is missing or doubled.
    """

    def __init__(self, path, kept=0):
        self.file = open(path, "ab")  # noqa: SIM115 - open as long as the run
        self.file.truncate(min(kept, self.file.tell()))

    def write(self, line):
        self.file.write(json.dumps(line).encode() + b"\n")
        self.file.flush()

    def sync(self):
        """Flush to disk -> the file's length in bytes, for a checkpoint to keep."""
        os.fsync(self.file.fileno())
        return self.file.seek(0, os.SEEK_END)

    def close(self):
        self.file.close()
