"""The work of an experiment's processes, and the progress of all of them."""

import math
import os
import shutil
import statistics
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from experiment.ledger import Run
from model_bio import GPT
from train import TrainConfig, train, windows_of
from wiggle import checkpoint, custom_neuron
from wiggle.chat_dataset import open_dataset
from wiggle.custom_neuron import Neuron
from wiggle.dataset import Dataset
from wiggle.device import peak_memory, send_windows
from wiggle.errors import UserError
from wiggle.evaluation import evaluate, window_losses
from wiggle.guarded_step import Diverged
from wiggle.run_log import duration, print_line
from wiggle.telemetry import nonlinearities

VALIDATION_BLOCK = 4096  # tokens; blocks of validation belong to the tuning half and to the reporting half by turns
FIRST_STEPS = 20  # their losses tell whether the code still computes what it did, and their time is taken


class Progress:
    """A bar over all runs, weighted by the time that each is expected to take, and a line for each that ends."""

    def __init__(self, runs: list[Run], ms_per_step: dict[str, float]):
        """ms_per_step: by arm, NaN where it is not known."""
        self.ms_per_step = ms_per_step
        self.total, self.ended, self.done, self.start = len(runs), 0, 0.0, time.perf_counter()
        self.work = sum(map(self.expected_ms, runs))
        form = "{percentage:3.0f} % |{bar}| {elapsed}, {remaining} left"
        self.bar = tqdm(total=self.work, bar_format=form, smoothing=0, leave=False, disable=not sys.stderr.isatty())

    def plan(self, runs: list[Run]) -> None:
        """Add runs that were not known from the start."""
        self.total, self.work = self.total + len(runs), self.work + sum(map(self.expected_ms, runs))
        self.bar.total = self.work

    def expected_ms(self, run: Run) -> float:
        ms = self.ms_per_step[run.arm.name]
        return run.config.max_iters * (1.0 if math.isnan(ms) else ms)

    def skip(self, run: Run) -> None:
        """Take a run that is finished already off what is left."""
        self.ended, self.work = self.ended + 1, self.work - self.expected_ms(run)
        self.bar.total = self.work

    def end(self, run: Run, outcome: str) -> None:
        self.ended, self.done = self.ended + 1, self.done + self.expected_ms(run)
        self.bar.update(self.expected_ms(run))
        left = (time.perf_counter() - self.start) * max(0.0, self.work - self.done) / self.done
        print_line(f"{self.ended:>5}/{self.total} {run}: {outcome}  {duration(left)} left")


# --- what a process does ---


def planned_neuron(mlp: str, sha256: str | None) -> Neuron | None:
    """The user's neuron that mlp names, if any. Raises UserError where its file is not the planned one."""
    neuron = custom_neuron.load_neuron(mlp)
    if neuron and sha256 and neuron.sha256 != sha256:
        file = custom_neuron.parse_spec(mlp).file
        raise UserError(
            f"{file} was edited while the comparison ran: undo that, or start the command again, which takes the new "
            "text as another neuron"
        )
    return neuron


def one_run(config: TrainConfig, stage: str, keep: Path | None, neuron_sha256: str | None = None) -> dict:
    """
    Train as the config says, its device and dtype resolved -> what runs.jsonl keeps: `loss` is on the half of
    validation that the stage, tuning or reporting, is judged on. A run that diverged has losses of None: that is an
    outcome, no failure. keep: folder for its best.pt and metrics.jsonl, or None. neuron_sha256: of the file of a user's
    neuron.
    """
    here = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    try:
        neuron = planned_neuron(config.mlp, neuron_sha256)
        return here | train_and_judge(replace(config, max_blowup=None), neuron, stage, keep)
    except Diverged as error:
        nothing = dict.fromkeys(("loss", "train_loss", "peak_mb"))
        return here | nothing | {"diverged": str(error), "curve": [], "first_losses": []}


def train_and_judge(config: TrainConfig, neuron: Neuron | None, stage: str, keep: Path | None) -> dict:
    """What one_run returns, of a run that did not diverge. Raises Diverged where its validation loss is not finite."""
    device = torch.device(config.device)
    before = 0.0 if device.type == "cuda" else peak_memory(device)  # a fresh process's own
    result = train(config, neuron)
    if result.interrupted:
        raise UserError(f"stopped by {result.interrupted}")
    if not math.isfinite(result.val_loss):
        raise Diverged("the validation loss is not finite")
    model, meta = checkpoint.load_model(Path(config.out_dir, "ckpt.pt"), config.device, neuron)
    if meta["iter_num"] != result.steps:  # train() keeps no weights of a run that is diverging
        raise Diverged(f"the weights of the last {result.steps - meta['iter_num']} steps were not fit to be saved")
    data = open_dataset(Path(config.data_dir, config.dataset), config.block_size, config.seed)
    data.check_ids(model.config.vocab_size)
    judged, _ = evaluate(model, data, "val", windows_of(config), device, getattr(torch, config.dtype))
    if abs(judged - result.val_loss) > 1e-3 * abs(result.val_loss):
        raise UserError(
            f"the model in ckpt.pt has validation loss {judged:.4f} where the trained one had {result.val_loss:.4f}: "
            f"{config.mlp} keeps something that no checkpoint holds; register it as a parameter or a persistent buffer"
        )
    starts = data.fixed_windows("val", 0)
    starts = starts[half_of_windows(len(starts), config.block_size) == ("tuning", "reporting").index(stage)]
    losses = window_losses(model, data, "val", starts, device, getattr(torch, config.dtype)).numpy()
    if not np.isfinite(losses).all():
        raise Diverged("the validation loss is not finite")
    if keep:
        Path(keep).mkdir(parents=True, exist_ok=True)
        for name in ("best.pt", "metrics.jsonl"):
            os.replace(Path(config.out_dir, name), Path(keep, name))
    logged = [line for line in result.history if "ms" in line]
    return {
        "loss": float(np.average(losses, weights=data.targets("val", starts))),
        "train_loss": result.train_loss,
        "peak_mb": logged[0]["peak_mb"] - round(before),  # before the first evaluation, whose batches are larger
        "skipped": logged[-1]["skipped"],
        "steps": result.steps,
        "tokens": result.tokens,
        "seconds": round(result.seconds, 2),
        "curve": [[line["tokens"], line["val_loss"]] for line in result.history if "val_loss" in line],
        "first_losses": result.first_losses,
        "event_rate": late_event_rate(result.history, result.steps),
        "nonlinearity": {
            "start": nonlinearity(GPT(model.config, neuron, config.seed).to(device), data),
            "end": nonlinearity(model, data),
        },
    }


def late_event_rate(history: list[dict], steps: int) -> list[float] | None:
    """
    The share of hidden features that fire, by layer, the mean over what was logged in the last half of so many steps;
    None for a model without events. history: the lines of metrics.jsonl.
    """
    late = [line["event_rate"] for line in history if line["step"] > steps / 2 and line.get("event_rate")]
    return [round(statistics.mean(layer), 4) for layer in zip(*late, strict=True)] or None


def nonlinearity(model: GPT, data: Dataset) -> list[list[float]] | None:
    """
    By layer: the standard deviation of c_fc's output, and the share of the MLP that is not linear, on validation; None
    where a user's module stands for the MLP.
    """
    windows = data.windows("val", data.fixed_windows("val", max(1, 4096 // data.block_size)))
    idx = send_windows(windows, model.lm_head.weight.device)[0]
    layers = nonlinearities(model, idx)
    return layers and [[round(layer.preactivation_std, 4), round(layer.share, 4)] for layer in layers]


def half_of_windows(windows: int, block_size: int) -> np.ndarray:
    """To which half of validation each window belongs: (windows,) of 0, tuning, and 1, reporting."""
    return np.arange(windows) // max(1, VALIDATION_BLOCK // block_size) % 2


def first_steps(configs: list[TrainConfig], hashes: list[str | None], rounds: int) -> list[tuple[list, list]]:
    """
    Take the first steps of each config by turns, `rounds` times -> for each (its first losses, the milliseconds a step
    of each round), both empty for one that fails. hashes: SHA-256 of the file of each one's neuron, where it is a
    user's.
    """
    neurons = [planned_neuron(config.mlp, sha256) for config, sha256 in zip(configs, hashes, strict=True)]
    found = [([], []) for _ in configs]
    for _ in range(rounds):
        for config, neuron, (losses, ms) in zip(configs, neurons, found, strict=True):
            short = min(FIRST_STEPS, config.max_iters)
            cut = {"max_iters": short, "lr_decay_iters": config.lr_decay_iters or config.max_iters}
            config = replace(
                config, **cut, max_blowup=None, log_interval=5, eval_interval=short, eval_iters=1, wandb_log=False
            )
            shutil.rmtree(config.out_dir, ignore_errors=True)
            try:
                result = train(config, neuron)
            except Exception:
                traceback.print_exc()
                continue
            losses[:] = result.first_losses
            timed = [line["ms"] for line in result.history if "ms" in line]
            ms.append(statistics.median(timed[1:] or timed))  # the first steps warm up
    return found
