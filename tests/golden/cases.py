"""The short runs whose losses losses.json holds, and how each one is made."""

import json
import subprocess
import sys
from pathlib import Path

from train import TrainConfig, train
from wiggle import custom_neuron

FOLDER = Path(__file__).parent
LOSSES = FOLDER / "losses.json"

COMMON = {
    "dataset": "tiny",
    "block_size": 32,
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 32,
    "batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_iters": 20,
    "warmup_iters": 2,
    "eval_interval": 10,
    "eval_iters": 4,
    "learning_rate": 3e-3,
    "device": "cpu",
    "compile": False,
    "max_blowup": None,
}
CASES = {
    "gelu": {},
    "relu2": {"mlp": "relu2", "bias": True},
    "swiglu": {"mlp": "swiglu"},
    "snake": {"mlp": "snake"},
    "gcu": {"mlp": "gcu"},
    "bio_none": {"mlp": "bio", "bio_gate": "none"},
    "bio_feature": {"mlp": "bio", "bio_gate": "feature"},
    "bio_hard": {"mlp": "bio", "bio_event": "hard"},
    "bio_dense": {"mlp": "bio", "bio_gate": "dense"},
    "dendritic": {"mlp": "dendritic", "dendritic_branches": 3, "dendritic_beta": "unit"},
    "user_neuron": {"mlp": f"{FOLDER / 'neuron.py'}:Wave"},
    "muon": {"mlp": "bio", "optimizer_type": "muon", "learning_rate": 1e-2},
    "adafactor": {"optimizer_type": "adafactor"},
    "rope_qk_norm": {"mlp": "bio", "position": "rope", "qk_norm": True},
    "no_position_rmsnorm": {"position": "none", "use_rmsnorm": True},
    "dropout": {"mlp": "bio", "dropout": 0.2},
    "gradient_checkpointing": {"mlp": "bio", "gradient_checkpointing": True, "dropout": 0.1},
    "wsd_unclipped": {"lr_schedule": "wsd", "decay_fraction": 0.5, "grad_clip": 0.0},
    "two_processes": {"mlp": "bio", "dropout": 0.1},
    "resumed": {"mlp": "bio", "dropout": 0.1, "optimizer_type": "muon"},
    "started_from_weights": {"mlp": "bio"},
}


def losses_of(case, data_dir, out_dir):
    """Run a case -> {"losses": of its first 20 steps, "val_loss": after the last one}."""
    settings = COMMON | {"data_dir": str(data_dir), "out_dir": str(out_dir)} | CASES[case]
    if case == "two_processes":
        return in_two_processes(settings, out_dir)
    neuron = custom_neuron.load_neuron(settings.get("mlp", "gelu"))
    before = []
    if case == "resumed":
        before = train(TrainConfig(**settings | {"max_iters": 10, "lr_decay_iters": 20}), neuron).first_losses
        settings |= {"init_from": "resume", "lr_decay_iters": 20}
    if case == "started_from_weights":
        first = train(TrainConfig(**settings | {"out_dir": f"{out_dir}-first", "max_iters": 5}), neuron)
        settings |= {"init_from": first.out_dir}
    result = train(TrainConfig(**settings), neuron)
    return {"losses": before + result.first_losses, "val_loss": result.val_loss}


def in_two_processes(settings, out_dir):
    """As losses_of, by two processes that each take half of every step; settings: of TrainConfig, as flags."""
    flags = [f"--{key}={value}" for key, value in settings.items() if key != "out_dir"]
    command = [sys.executable, str(FOLDER.parent / "crash.py"), "none", "2", "0", str(out_dir), *flags]
    subprocess.run(command, check=True, capture_output=True)
    lines = [json.loads(line) for line in Path(out_dir, "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    return {"losses": losses, "val_loss": [line["val_loss"] for line in lines if "val_loss" in line][-1]}
