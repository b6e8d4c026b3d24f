"""
What a model's MLPs do and learned, whichever activation they have: pictures, analysis.png, and figures, analysis.json.

    python analyze_bio.py --out_dir=out/quickstart

Everything is compared with an earlier state of the model on the same text: --before, else the untrained network, which
is drawn again from the seed in the checkpoint. By layer, for every activation, a user's own too: the distribution of
the pre-activations, the output over them, the share of its variance that no straight line explains, and what is learned
besides the matrices. Where units fall silent, by a gate or by exact zeros: how often each is active, on which tokens,
and what of the MLPs' work that leaves.

Oscillating neurons: how far the phase |ωx + φ| goes. Only past π/2, the sine's first maximum, is a neuron a wave and
not just a bent x². Dendritic units: usage and β of their branches, and whether the branches factor the input: the
mutual information of a unit's winning branch with the token, its class, and its place in the window, less what shuffled
labels give. Branches look informative whenever their inputs are, so the baselines are the earlier network, and its
branches on the present network's inputs.
"""

import contextlib
import json
import math
import sys
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import torch

from model_bio import GPT
from wiggle import checkpoint, configurator, errors
from wiggle.analysis import measure_networks
from wiggle.analysis_events import mlp_work
from wiggle.analysis_page import draw_page
from wiggle.analysis_words import describe_layer, describe_work
from wiggle.chat_dataset import open_dataset
from wiggle.custom_neuron import load_neuron
from wiggle.device import pick_device, send_windows
from wiggle.errors import UserError
from wiggle.figures import Text, summarise
from wiggle.files import atomic_write, to_json, writing
from wiggle.tokenizer import from_identity


@dataclass
class AnalyzeConfig:
    """What to look at, and on which text."""

    out_dir: str = "out"  # a run's folder (best.pt, else ckpt.pt), or a checkpoint file
    before: str | None = None  # the earlier state, given likewise; None = the untrained network
    seed: int | None = None  # of the untrained network; None = the training seed, which the checkpoint records
    neuron: str | None = None  # file.py:Name, for a checkpoint with your own neuron
    to: str | None = None  # the folder for analysis.png and analysis.json; None = the checkpoint's
    dataset: str | None = None  # folder under data_dir; None = what the model was trained on
    data_dir: str = "data"  # where datasets lie
    tokens: int = 16384  # of the validation split, in evenly spread windows, at least one; memory grows with it
    device: str = "auto"  # auto (cuda > mps > cpu), cpu, cuda, cuda:1, mps


def find_earlier(config, model, meta, neuron, device):
    """Open or draw the network that `model` is compared with -> (it, what the page calls it, its step)."""
    if config.before:
        before, found = checkpoint.load_model(config.before, device, neuron)
        shapes, own = ({name: weight.shape for name, weight in m.state_dict().items()} for m in (before, model))
        same = shapes == own and before.config.block_size == model.config.block_size
        if not same or (neuron is None and before.config.mlp != model.config.mlp):
            raise UserError(f"{found['path']} is another network ({before.describe()}) than {meta['path']}")
        return before, f"{found['path']}, step {found['iter_num']}", found["iter_num"]
    recorded, origin = (meta["config"].get(key) for key in ("seed", "init_from"))
    seed = next(seed for seed in (config.seed, recorded, 0) if seed is not None)
    if seed != recorded or origin not in ("scratch", "resume") or meta["origin"] != "WiggleGPT":
        print(f"note      seed {seed} draws an untrained network, but not the one that this checkpoint began as")
    return GPT(model.config, neuron, seed).to(device).eval(), f"untrained, seed {seed}", 0


def read_text(config, model, meta):
    """Read evenly spread windows of the validation split -> Text."""
    name = config.dataset or meta["config"].get("dataset")
    if not name:
        raise UserError(f"{meta['path']} does not say what it was trained on: name it with --dataset")
    data = open_dataset(Path(config.data_dir, str(name)), model.config.block_size, seed=0)
    data.check_ids(model.config.vocab_size)
    tokenizer = from_identity(data.tokenizer)
    if meta["tokenizer"] and from_identity(meta["tokenizer"]).identity() != tokenizer.identity():
        raise UserError(f"{data.folder} has another vocabulary than {meta['path']} was trained on")
    windows = data.windows("val", data.fixed_windows("val", max(1, config.tokens // data.block_size)))
    idx = send_windows(windows, torch.device("cpu"))[0]
    seen, token = idx.flatten().unique(return_inverse=True)  # (M,), and (N,) numbers below M
    encoded = [tokenizer.token_bytes(i) for i in seen]
    pieces = [token.decode("utf-8", "replace") for token in encoded]
    # a token's class: the Unicode category of its first letter, and whether a space, as of GPT-2's words, goes before
    kinds = [(piece[0] == " ", unicodedata.category((piece.strip() or piece)[0])) for piece in pieces]
    classes = torch.tensor([sorted(set(kinds)).index(kind) for kind in kinds])
    eighth = torch.arange(idx.size(1)) * 8 // idx.size(1)  # of the window
    tokens = [token.decode("utf-8", "backslashreplace") for token in encoded]  # where a part of a character is \xe2
    return Text(idx, tokens, {"token": token, "class": classes[token], "position": eighth.repeat(len(idx))})


def beta_history(path, layers, began, step):
    """[(step, mean β of each layer)]: of the earlier network, of metrics.jsonl beside `path`, of the present one."""
    start, end = ([layer[state].figures["beta"].mean() for layer in layers] for state in ("before", "now"))
    between = []
    with contextlib.suppress(OSError):
        for line in path.with_name("metrics.jsonl").read_bytes().splitlines():
            with contextlib.suppress(ValueError, TypeError, KeyError):  # a line that was cut off, or has no β
                logged = json.loads(line)
                if began < logged["step"] < step and len(logged["beta"]) == len(layers):
                    between.append((logged["step"], logged["beta"]))
    return [(began, start), *between, (step, end)]


def folder_of(config, path):
    """The folder for the page. Raises UserError for a model that was named, and is no file of the user's."""
    if config.to or path.exists():
        return Path(config.to or (path if path.is_dir() else path.parent))
    raise UserError(f"{path} is no folder of yours: name one for the page with --to")


@errors.script
def main(argv=None):
    config = configurator.read_settings(AnalyzeConfig, sys.argv[1:] if argv is None else argv, __doc__)
    device = pick_device(config.device)
    neuron = load_neuron(config.neuron) if config.neuron else None
    model, meta = checkpoint.load_model(config.out_dir, device, neuron)
    before, before_name, before_step = find_earlier(config, model, meta, neuron, device)
    text = read_text(config, model, meta)
    path, step, val_loss = Path(meta["path"]), meta["iter_num"], meta["best_val_loss"]
    to = folder_of(config, path)
    with writing(to):  # before the measuring, which takes a while
        to.mkdir(parents=True, exist_ok=True)

    layers = measure_networks(before, model, text)
    summaries = [{state: summarise(found.figures) for state, found in layer.items()} for layer in layers]
    numbered = [f"layer {n:<{len(str(len(layers)))}}" for n in range(1, len(layers) + 1)]
    lines = [f"{n}  {line}" for n, layer in zip(numbered, summaries, strict=True) for line in describe_layer(layer)]
    work = None
    if any(layer["now"].events for layer in layers):
        work = mlp_work(model, [layer["now"] for layer in summaries])
        lines.append(describe_work(work))
    report = {
        "checkpoint": str(path),
        "step": step,
        "model": model.describe(),
        "before": before_name,
        "val_loss": val_loss,
        "tokens": text.idx.numel(),
        "findings": lines,
        "work_a_token": work,
        "layers": summaries,
    }

    folder = path if path.is_dir() else path.absolute().parent
    title = f"{folder.name}, step {step}"
    title += "" if math.isnan(val_loss) else f", validation loss {val_loss:.3f}"
    names = {"before": before_name, "mixed": "its branches on today's inputs", "now": f"step {step}"}
    betas = beta_history(path, layers, before_step, step) if model.config.mlp == "dendritic" else []
    page = draw_page(title, names, layers, betas, lines)
    with atomic_write(to / "analysis.png") as picture, atomic_write(to / "analysis.json") as figures:
        page.savefig(picture, format="png")
        figures.write(to_json(report, indent=2))
    print(*lines, f"written   {to / 'analysis.png'} and analysis.json", sep="\n")


if __name__ == "__main__":
    main()
