"""The README.md of an exported folder: what the model is, how to open it, what it reached, and how it was trained."""

import json
import math
from dataclasses import fields
from pathlib import Path

from model_bio import ACTIVATIONS, GPT
from wiggle.judgements import judgements_of
from wiggle.sharing import is_plain_gpt2
from wiggle.tokenizer import Tokenizer
from wiggle.train_config import TrainConfig

HEAD = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- wigglegpt
---

# A WiggleGPT model
"""
EQUATIONS = {name: activation.equation for name, activation in ACTIVATIONS.items()} | {
    "bio": "sin(ω·x + φ)·tanh(x) + b, with ω, φ and b of each feature learned",
    "dendritic": "Σ_k softmax_k(β z)_k · z_k over a unit's affine branches z_k, no activation function",
}
GATES = {
    "none": "",
    "feature": ", then a gate of each feature, v = sigmoid(g·x + o), and oscillation of x·sigmoid(5·(v - threshold))",
    "dense": ", then a gate over all features, v = sigmoid(W x + o), and a second oscillation",
    "hard": " where a feature fires, |x| > threshold, and b where it is silent",
}
OPEN = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(folder{trust})
tokenizer = AutoTokenizer.from_pretrained(folder{trust})
ids = tokenizer({prompt!r}, return_tensors="pt")["input_ids"]
print(tokenizer.decode(model.generate(ids, max_new_tokens=100, do_sample=True, top_k=200)[0]))
```

In WiggleGPT itself: `python sample_bio.py --init_from=FOLDER`, or `python train.py --init_from=FOLDER` to train on."""
OWN_CODE = """

The code is `modeling_wigglegpt.py` beside the weights (MIT licence; it needs torch and transformers alone): read it
before you let it run. `torch.export.export(model, (ids,), {"use_cache": False})` works on it."""
# Settings that say where a run's files lay, what it computed on and how it was watched
OF_THE_MACHINE = ("out_dir", "data_dir", "init_from", "eval_only", "log_interval", "final_sample", "device", "compile")
OF_THE_MACHINE += ("max_blowup", "wandb_log", "wandb_project", "wandb_run_name", "wandb_group", "wandb_arm")


def model_card(model: GPT, tokenizer: Tokenizer, meta: dict) -> str:
    """The text of README.md, from what checkpoint.load_model returned and the model's tokenizer."""
    c = model.config
    gate = GATES["hard" if c.hard_events else c.bio_gate] if c.mlp == "bio" else ""
    parts = {
        "position": f"positions: {c.position}",
        "norm": "RMSNorm" if c.use_rmsnorm else "LayerNorm",
        "qk_norm": "queries and keys normalised" if c.qk_norm else "",
        "context": f"a context of {c.block_size:,} tokens",
        "vocabulary": f"{tokenizer.vocab_size:,} {tokenizer.kind} tokens",
    }
    about = f"{model.describe()}, {', '.join(filter(None, parts.values()))}. "
    about += f"Its MLP's hidden units compute `{EQUATIONS[c.mlp]}`{gate}."
    plain = is_plain_gpt2(c)
    trust = "" if plain else ", trust_remote_code=True"
    how = OPEN.format(trust=trust, prompt=prompt_for(tokenizer)) + ("" if plain else OWN_CODE)
    sections = {"How to open it": how, "What it reached": reached(meta), "How it was trained": trained(meta)}
    return "\n\n".join([HEAD + "\n" + about, *(f"## {title}\n\n{text}" for title, text in sections.items())]) + "\n"


def prompt_for(tokenizer: Tokenizer) -> str:
    """A prompt that the tokenizer knows, to show."""
    known = set(tokenizer.characters) if tokenizer.kind == "char" else set("Once")
    return "Once" if set("Once") <= known else tokenizer.characters[-1]


def reached(meta: dict) -> str:
    """The losses of a checkpoint: those that its run's metrics.jsonl has of its step, else the checkpoint's own."""
    found = evaluation_of(meta)
    if not found and not math.isfinite(meta["best_val_loss"]):
        return "No loss is recorded in its checkpoint."
    loss = found.get("val_loss", meta["best_val_loss"])
    steps = f" after {meta['iter_num']:,} steps" if meta["iter_num"] else ""
    lines = [f"Loss{steps}, in nats a token (standard error over windows of text):", "", "| | |", "|---|---|"]
    error = f" ± {found['val_stderr']:.4f}" if found.get("val_stderr") is not None else ""
    lines.append(f"| validation loss | {loss:.4f}{error} |")
    if found.get("train_loss") is not None:
        lines.append(f"| training loss | {found['train_loss']:.4f} |")
    if found.get("val_bpb") is not None:
        lines.append(f"| validation, bits per byte | {found['val_bpb']:.4f} |")
    if not Path(meta["path"]).is_dir():
        for name, metric, value, error in judgements_of(Path(meta["path"]), meta["iter_num"]):
            lines.append(f"| {name}, {metric} | {value:.4f}{f' ± {error:.4f}' if error else ''} |")
    return "\n".join(lines)


def evaluation_of(meta: dict) -> dict:
    """What metrics.jsonl beside a checkpoint says of the evaluation at the checkpoint's step, or {}."""
    path = Path(meta["path"]).with_name("metrics.jsonl")
    if not path.is_file() or Path(meta["path"]).is_dir():
        return {}
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # a run that was killed may leave half a line
            continue
        if entry.get("step") == meta["iter_num"] and entry.get("val_loss") is not None:
            found = entry
    return found


def trained(meta: dict) -> str:
    """The settings of a checkpoint's run that are not the defaults, as a config file has them."""
    recorded = meta["config"]
    changed = [
        f"{field.name} = {recorded[field.name]!r}"
        for field in fields(TrainConfig)
        if field.name in recorded and recorded[field.name] != field.default and field.name not in OF_THE_MACHINE
    ]
    if not changed:
        return f"Its settings are not recorded: the weights come from {meta['origin']}."
    lines = "\n".join(changed)
    return f"By WiggleGPT's `train.py`, with these settings; all others are its defaults.\n\n```python\n{lines}\n```"
