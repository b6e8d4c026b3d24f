"""
Train a GPT, oscillating or not.

    python train.py config/quickstart.py
    python train.py config/quickstart.py --use_bio_mlp=False --out_dir=out/control     (its GELU control)
    python train.py config/quickstart.py --init_from=resume                            (go on after a stop)
    torchrun --nproc_per_node=4 train.py config/config_gpt2_bio_3070.py
"""

import contextlib
import math
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import blowup
import checkpoint
import configurator
import durable
import memory
import neurons
import prepare_data
from configurator import UserError
from dataset import Dataset
from device import (
    Card,
    autocast,
    describe,
    keep_freed_memory,
    mean_over_processes,
    peak_flops,
    peak_memory,
    pick_compile,
    pick_device,
    pick_dtype,
    send,
)
from guard import GuardedOptimizer, StopSignal
from kernels.oscillation import backend
from model_bio import GPT, GPTConfig, model_args, stable_seed
from tokenizer import from_identity, stream


@dataclass
class TrainConfig(GPTConfig):
    """nanoGPT's keys with nanoGPT's defaults, and this project's. Raises ValueError for contradictory settings."""

    # run
    out_dir: str = "out"  # checkpoints, metrics.jsonl and config.json go here
    init_from: str = "scratch"  # scratch, resume, gpt2 / gpt2-medium / ..., or the path of a checkpoint to start from
    eval_only: bool = False  # evaluate once, write nothing, leave
    eval_interval: int = 2000  # steps between evaluations, after which checkpoints are written
    eval_iters: int = 200  # batches of an evaluation, spread evenly over the split; 0 = all of it
    log_interval: int = 1  # steps between logged lines
    always_save_checkpoint: bool = True  # False: write ckpt.pt only when the validation loss improves
    final_sample: int = 0  # tokens to sample and print when training ends
    seed: int = 1337  # of the initial weights, the order of the data and dropout

    # wandb (WANDB_MODE=offline keeps it on this machine)
    wandb_log: bool = False  # log to Weights & Biases too
    wandb_project: str = "wigglegpt"  # project there
    wandb_run_name: str = "run"  # name there

    # data
    dataset: str = "openwebtext"  # folder under data_dir, made by prepare_data.py
    data_dir: str = "data"  # where datasets lie
    batch_size: int | Literal["auto"] = 12  # sequences a micro-batch; auto: as many as a CUDA card is measured to hold
    gradient_accumulation_steps: int | None = None  # micro-batches a step over all processes; None = 40, nanoGPT's
    tokens_per_step: int | None = None  # instead of gradient_accumulation_steps, which then follows from it

    # model, where the default is not GPTConfig's
    vocab_size: int | None = None  # None = the dataset's own, 50304 for GPT-2's BPE
    bias: bool = False  # biases in Linear and LayerNorm; False is a bit better and faster
    max_blowup: float | None = 1.5  # stop where parameters or FLOPs pass this many times the GELU's; None = do not look

    # optimizer
    optimizer_type: Literal["adamw", "adafactor", "muon"] = "adamw"  # the last two keep fewer moments: less memory
    learning_rate: float = 6e-4  # the highest
    max_iters: int = 600000  # steps
    weight_decay: float = 1e-1  # of matrices and embeddings
    beta1: float = 0.9  # AdamW's
    beta2: float = 0.95  # AdamW's; nearer to 1 where a step holds few tokens
    grad_clip: float = 1.0  # clip the gradient's norm here; 0 = never
    max_skipped: int = 10  # stop after so many steps in a row whose loss or gradient is not finite; none is taken

    # learning rate
    lr_schedule: Literal["cosine", "wsd", "constant"] = "cosine"  # wsd: warm-up, stable, linear decay at the end
    decay_lr: bool = True  # nanoGPT's spelling: False = constant
    warmup_iters: int = 2000  # steps of linear warm-up, for all schedules
    lr_decay_iters: int | None = None  # step at which min_lr is reached; None = max_iters
    min_lr: float | None = None  # the lowest; None = learning_rate / 10 (Hoffmann et al., 2022)
    decay_fraction: float = 0.2  # share of lr_decay_iters that wsd decays over

    # machine
    device: str = "auto"  # auto (cuda > mps > cpu), cpu, cuda, cuda:1, mps
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: bfloat16 where the card has it
    compile: bool | Literal["auto"] = "auto"  # torch.compile; auto: on a GPU with a working Triton
    backend: str = "auto"  # of torch.distributed; auto: nccl on cuda, else gloo

    def __post_init__(self):
        shape = self.gpt_config(50304 if self.vocab_size is None else self.vocab_size)  # checks the model's keys
        for key, value in model_args(shape).items():
            if key != "vocab_size":
                setattr(self, key, value)
        self.use_bio_mlp = self.use_rope = self.bio_compartments = None
        positive = ("eval_interval", "log_interval", "batch_size", "gradient_accumulation_steps", "tokens_per_step")
        positive += ("max_iters", "lr_decay_iters", "learning_rate", "max_blowup", "max_skipped")
        for key in positive:
            if getattr(self, key) not in (None, "auto") and not 0 < getattr(self, key) < math.inf:
                raise ValueError(f"{key}={getattr(self, key)} must be above 0")
        for key in ("eval_iters", "final_sample", "warmup_iters", "weight_decay", "grad_clip", "min_lr", "seed"):
            if getattr(self, key) is not None and not 0 <= getattr(self, key) < math.inf:
                raise ValueError(f"{key}={getattr(self, key)} must be at least 0")
        for key in ("beta1", "beta2", "decay_fraction"):
            if not 0 <= getattr(self, key) <= (1 if key == "decay_fraction" else 0.999999):
                raise ValueError(f"{key}={getattr(self, key)} must lie in 0..1")
        if not self.decay_lr and self.lr_schedule == "wsd":
            raise ValueError("decay_lr=False contradicts lr_schedule='wsd': give one of the two")
        given, auto = self.gradient_accumulation_steps, self.batch_size == "auto"
        if auto and (self.tokens_per_step is None or given is not None):
            raise ValueError("batch_size='auto' needs tokens_per_step, and no gradient_accumulation_steps beside it")
        size = 1 if auto else self.batch_size
        micro_batch = size * self.block_size
        if self.tokens_per_step is not None and self.tokens_per_step % micro_batch:
            raise ValueError(
                f"tokens_per_step={self.tokens_per_step} is no multiple of batch_size x block_size = "
                f"{size} x {self.block_size} = {micro_batch}"
            )
        if given is not None and self.tokens_per_step not in (None, given * micro_batch):
            raise ValueError(
                f"gradient_accumulation_steps={given} makes {given * micro_batch} tokens a step, which contradicts "
                f"tokens_per_step={self.tokens_per_step}: give one of the two"
            )

    def gpt_config(self, vocab_size):
        fields = {key: getattr(self, key) for key in GPTConfig.__dataclass_fields__}
        return GPTConfig(**fields | {"vocab_size": vocab_size})

    @property
    def micro_batches(self):
        """Micro-batches a step, over all processes: of one sequence each where batch_size is 'auto' still."""
        if self.tokens_per_step is not None:
            return self.sequences_per_step // (1 if self.batch_size == "auto" else self.batch_size)
        return 40 if self.gradient_accumulation_steps is None else self.gradient_accumulation_steps

    @property
    def sequences_per_step(self):
        if self.tokens_per_step is not None:
            return self.tokens_per_step // self.block_size
        return self.micro_batches * self.batch_size

    def learning_rate_at(self, step):
        """Learning rate of step number `step`, the first being 0."""
        last = self.lr_decay_iters or self.max_iters
        low = self.learning_rate / 10 if self.min_lr is None else self.min_lr
        if step < self.warmup_iters:
            return self.learning_rate * (step + 1) / (self.warmup_iters + 1)
        if self.lr_schedule == "constant" or not self.decay_lr:
            return self.learning_rate
        if step >= last:
            return low
        if self.lr_schedule == "wsd":
            length = max(1, min(round(self.decay_fraction * last), last - self.warmup_iters))
            share = min(1.0, (last - step) / length)  # 1 until the decay begins
        else:
            share = 0.5 * (1 + math.cos(math.pi * (step - self.warmup_iters) / (last - self.warmup_iters)))
        return low + share * (self.learning_rate - low)


@dataclass
class TrainResult:
    """What train() returns: losses in nats a token, seconds of training proper (evaluations and saves left out)."""

    val_loss: float
    val_stderr: float
    train_loss: float
    best_val_loss: float
    steps: int
    tokens: int
    seconds: float
    tokens_per_second: float
    first_losses: list  # of steps 1 to 20, as far as this call took them: a run's fingerprint
    history: list  # the lines of metrics.jsonl that this call wrote, as dicts
    out_dir: str
    interrupted: str | None = None  # the signal that stopped it


@memory.explained
def train(config, neuron=None):
    """
    Train as the TrainConfig says -> TrainResult. May be called many times in one process.

    neuron: for mlp='file.py:Name', what neurons.load makes of it, or a class. Raises UserError for what can be mended.
    """
    # --- processes: under torchrun each one runs this function on its share of every step, and the first one writes ---
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    master = rank == 0
    say = print_line if master else lambda line: None
    if config.micro_batches % world:
        raise UserError(f"{config.micro_batches} micro-batches a step do not divide among {world} processes")
    device = pick_device(config.device)
    if world > 1 and device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    keep_freed_memory(device)
    card = Card(device) if config.batch_size == "auto" else None
    dtype = pick_dtype(config.dtype, device)
    compiled, how = pick_compile(config.compile, device)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # for what stays in float32

    # --- model and data ---
    resumed = model = None
    if config.init_from == "resume":
        resumed, source = checkpoint.read_last(config.out_dir, say)
    elif config.init_from != "scratch":
        model = load_start(config, neuron, say)
        config = replace(config, **model_args(model.config))
    if master:
        prepare_missing(config, say)
    if own_group := world > 1 and not dist.is_initialized():
        usual = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(usual if config.backend == "auto" else config.backend)
        dist.barrier()  # the first process may be preparing data
    data = Dataset(Path(config.data_dir, config.dataset), config.block_size, config.seed)
    if resumed:
        check_resumable(config, resumed, data, say)
        free = {"dropout": config.dropout, "gradient_checkpointing": config.gradient_checkpointing}
        model, _ = checkpoint.build(source, resumed, neuron, **free)
        say(f"resume    {source}, {resumed['iter_num']} steps done")
    elif model is None:
        model = GPT(config.gpt_config(config.vocab_size or data.model_vocab), neuron, config.seed)
    data.check_ids(model.config.vocab_size)
    model.sampled_vocab = min(model.sampled_vocab, data.tokenizer["vocab_size"])
    neurons = f", oscillation by {backend(device)}" if config.mlp == "bio" else ""
    announce(config, model, data, describe(device, dtype, how) + neurons, say)
    looking = config.max_blowup is not None and config.mlp != "gelu" and not config.eval_only
    if master and looking and (resumed or config.init_from == "scratch"):
        blowup.alarm(model.config, config.max_blowup, bool(resumed), device, dtype, neuron, say)

    # --- optimizer; `raw` is what is evaluated and saved, `model` may be wrapped ---
    raw = model.to(device)
    asked = config  # what a checkpoint keeps: a run that is resumed elsewhere measures anew
    if card:
        config = replace(config, batch_size=memory.measure(config, card, raw, data, dtype, say))
    layout = config.batch_size, config.block_size, config.micro_batches
    tokens_per_step, shown = math.prod(layout), " x ".join(map(str, layout))
    say(f"batch     {shown} = {tokens_per_step:,} tokens a step, {config.max_iters:,} steps")
    betas = config.beta1, config.beta2
    optimizer = raw.configure_optimizers(
        config.weight_decay, config.learning_rate, betas, device.type, config.optimizer_type
    )
    guarded = GuardedOptimizer(raw, optimizer, device, dtype, config.max_skipped)
    step, best, seconds = 0, math.inf, 0.0
    if resumed:
        with checkpoint.plausible(source):
            guarded.load_state_dict(resumed)
        step, seconds, best = resumed["iter_num"], resumed["seconds"], checkpoint.best_val_loss(config.out_dir)
    if compiled:
        model = torch.compile(model)
    if world > 1:
        model = DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)

    def measure():
        count = config.eval_iters * (TrainConfig.batch_size if card else config.batch_size)  # never the card's choice
        val_loss, val_stderr = evaluate(raw, data, "val", count, device, dtype)
        train_loss, _ = evaluate(raw, data, "train", count or len(data.fixed_windows("val", 0)), device, dtype)
        return {"val_loss": val_loss, "val_stderr": val_stderr, "train_loss": train_loss}

    # --- files ---
    out_dir, metrics, wandb, history = Path(config.out_dir), None, None, []
    if master and not config.eval_only:
        if resumed:
            checkpoint.tidy(out_dir, source, say)
        else:
            checkpoint.set_aside(out_dir, say)
        resolved = {"vocab_size": raw.config.vocab_size, "gradient_accumulation_steps": config.micro_batches}
        resolved |= {"device": str(device), "dtype": str(dtype).removeprefix("torch."), "compile": compiled}
        durable.write_json(out_dir / "config.json", asdict(config) | resolved)
        metrics = durable.Metrics(out_dir / "metrics.jsonl", resumed["metrics_bytes"] if resumed else 0)
        wandb = start_wandb(config) if config.wandb_log else None

    def record(**line):
        history.append(line)
        if metrics:
            metrics.write(line)
        if wandb:
            wandb.log({key: value for key, value in line.items() if not isinstance(value, list)}, step=line["step"])

    def save(best_too):
        weights = {"model": raw.state_dict(), "model_args": model_args(raw.config), "tokenizer": data.tokenizer}
        weights |= {"config": asdict(asked), "iter_num": step, "best_val_loss": best}
        weights |= {"neuron_sha256": getattr(neuron, "sha256", None)}
        if best_too:
            checkpoint.save(out_dir / "best.pt", weights)
        state = {"dataset": data.identity, "seconds": seconds, "metrics_bytes": metrics.sync()}
        checkpoint.save_last(out_dir, weights | guarded.state_dict() | state)

    # --- the loop ---
    peak = peak_flops(device)
    found, timed_steps, timed_seconds, first_losses = None, 0, 0.0, []
    bar = tqdm(
        total=config.max_iters, initial=step, unit="step", leave=False, disable=not (master and sys.stderr.isatty())
    )
    with StopSignal() as stop, bar:
        clock, clock_step, first = time.perf_counter(), step, step
        while step < config.max_iters and not config.eval_only:
            lr = config.learning_rate_at(step)
            loss, norm = train_step(model, guarded, data, config, step, lr, device, dtype)
            step += 1
            if step <= 20:
                first_losses.append(loss)
            bar.update()

            last = step == config.max_iters
            evaluating = last or step % config.eval_interval == 0
            logging = evaluating or step % config.log_interval == 0
            progress = {"step": step, "tokens": step * tokens_per_step, "lr": lr}
            if logging:  # nothing but this and an evaluation waits for the device
                layers = {"event_rate": raw.event_rates(data.batch(step, 1)[0].to(device)), "beta": raw.betas()}
                loss, norm, (skipped, _) = loss.item(), norm.item(), guarded.skipped.tolist()
                guarded.raise_if_stuck(step, loss, norm)
                spent = time.perf_counter() - clock
                seconds += spent
                if clock_step > first:  # the first interval warms up, and is left out of the mean speed
                    timed_steps, timed_seconds = timed_steps + step - clock_step, timed_seconds + spent
                step_seconds = spent / (step - clock_step)
                speed = tokens_per_step / step_seconds
                layers = {key: v if v is None else [round(x, 4) for x in v.tolist()] for key, v in layers.items()}
                record(**progress, seconds=round(seconds, 3), loss=loss, grad_norm=norm, skipped=skipped,
                       ms=round(1000 * step_seconds, 2), tokens_per_second=round(speed),
                       peak_mb=round(peak_memory(device)), **layers)  # fmt: skip
                line = f"loss {loss:.4f}  lr {lr:.2e}  {1000 * step_seconds:.0f} ms  {speed / 1000:.1f}k tok/s"
                if peak:
                    mfu = raw.estimate_mfu(config.sequences_per_step, step_seconds, peak * world)
                    line += f"  mfu {100 * mfu:.1f} %"
                if rates := layers["event_rate"]:
                    line += f"  events {100 * sum(rates) / len(rates):.0f} %"
                if sharpness := layers["beta"]:
                    line += f"  beta {sum(sharpness) / len(sharpness):.2f}"
                if skipped:
                    line += f"  {skipped} skipped"
                say(f"{step:>7}/{config.max_iters} {line}  {duration(step_seconds * (config.max_iters - step))} left")
            if evaluating:
                found = measure()
                better = found["val_loss"] <= best  # equal: a run that was killed after best.pt, before ckpt.pt
                best = min(best, found["val_loss"])
                record(**progress, seconds=round(seconds, 3), **found)
                line = f"val {found['val_loss']:.4f} +- {found['val_stderr']:.4f}  train {found['train_loss']:.4f}"
                saved = better or config.always_save_checkpoint
                if master and saved:
                    save(best_too=better)
                    line += f"{'  (best)' if better else ''}  saved {out_dir / ('best.pt' if better else 'ckpt.pt')}"
                say(f"{step:>7}/{config.max_iters} {line}")
            if logging:
                clock, clock_step = time.perf_counter(), step
            if stop.agreed(world, logging) and not last:
                if master and not (evaluating and saved):
                    save(best_too=False)
                say(f"stopped   by {stop.name} after step {step}, saved: --init_from=resume goes on from here")
                break
    interrupted = stop.name if step < config.max_iters and not config.eval_only else None
    if found is None and not interrupted:  # eval_only, or a finished run resumed
        found = measure()
        say(f"eval      val {found['val_loss']:.4f} +- {found['val_stderr']:.4f}  train {found['train_loss']:.4f}")
    if master and config.final_sample and not interrupted and not config.eval_only:
        print_sample(raw, data.tokenizer, config)
    if metrics:
        metrics.close()
    if wandb:
        wandb.finish()
    if own_group:
        time.sleep(0.1)  # gloo's threads need Python's lock to drop their last tensors; the end holds it and joins them
        dist.destroy_process_group()
    found = found or dict.fromkeys(("val_loss", "val_stderr", "train_loss"), math.nan)
    speed = timed_steps * tokens_per_step / timed_seconds if timed_seconds else math.nan
    return TrainResult(
        **found,
        best_val_loss=best,
        steps=step,
        tokens=step * tokens_per_step,
        seconds=seconds,
        tokens_per_second=speed,
        first_losses=[loss.item() for loss in first_losses],
        history=history,
        out_dir=config.out_dir,
        interrupted=interrupted,
    )


def train_step(model, guarded, data, config, step, lr, device, dtype):
    """One step, without waiting for the device -> (mean loss of all its micro-batches, gradient norm)."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    micro_batches = config.micro_batches // world  # of this process
    for group in guarded.optimizer.param_groups:
        group["lr"] = lr
    loss_sum = torch.zeros((), device=device)
    for micro in range(micro_batches):
        number = rank * micro_batches + micro  # of this micro-batch within the step
        x, y = data.batch(step * config.sequences_per_step + number * config.batch_size, config.batch_size)
        x, y = send(x, device), send(y, device)  # (B, T) each
        torch.manual_seed(stable_seed(config.seed, "dropout", step, micro, rank))
        if world > 1:
            model.require_backward_grad_sync = micro == micro_batches - 1  # once a step is enough
        with autocast(device, dtype):
            loss = model(x, y)[1] / micro_batches
        guarded.scaler.scale(loss).backward()
        loss_sum += loss.detach()
    loss = mean_over_processes(loss_sum)
    return loss, guarded.step(loss, config.grad_clip or math.inf)


def evaluate(model, data, split, count, device, dtype):
    """
    Mean loss over `count` fixed, non-overlapping windows of a split (0: all of them) -> (mean, its standard error).

    The same weights give the same number, whatever the batch size of training. Under torchrun the windows are shared.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    losses = window_losses(model, data, split, data.fixed_windows(split, count)[rank::world], device, dtype)
    sums = torch.stack([losses.sum(), (losses**2).sum(), torch.tensor(len(losses), dtype=torch.float64)])
    total, squares, n = mean_over_processes(sums, sum_only=True).tolist()
    mean = total / n
    return mean, math.sqrt(max(0.0, squares / n - mean**2) / max(1, n - 1))


@torch.no_grad()
def window_losses(model, data, split, starts, device, dtype):
    """Mean loss of each window of a split that begins at one of `starts` (N,) -> (N,) float64, on the CPU."""
    config, losses = model.config, []
    # about 8,192 tokens at once, fewer where their logits would pass 256 MB in float32
    batch = max(1, min(8192 // config.block_size, 2**26 // (config.block_size * config.vocab_size)))
    training = model.training
    model.eval()
    for i in range(0, len(starts), batch):
        x, y = (send(ids, device) for ids in data.windows(split, starts[i : i + batch]))  # (B, T)
        with autocast(device, dtype):
            logits = model(x, y)[0]  # (B, T, V)
        losses.append(F.cross_entropy(logits.float().transpose(1, 2), y, reduction="none").mean(1).double().cpu())
    model.train(training)
    return torch.cat([torch.zeros(0, dtype=torch.float64), *losses])


def load_start(config, neuron, say):
    """The model that init_from names: GPT-2 of Hugging Face, or any checkpoint that checkpoint.load_model opens."""
    if not (checkpoint.is_pretrained(config.init_from) or Path(config.init_from).exists()):
        raise UserError(
            f"init_from={config.init_from!r} is no file: choose scratch, resume, gpt2, or a checkpoint's path"
        )
    model, meta = checkpoint.load_model(config.init_from, neuron=neuron, dropout=config.dropout)
    if config.mlp not in ("gelu", model.config.mlp):
        raise UserError(f"init_from={config.init_from} has mlp={model.config.mlp}, which contradicts mlp={config.mlp}")
    length = model.config.block_size
    if config.block_size > length and config.block_size != TrainConfig.block_size:  # the default asks for nothing
        raise UserError(f"block_size={config.block_size} is longer than {config.init_from}'s {length}")
    model.crop_block_size(min(config.block_size, length))
    say(f"start     weights of {meta['path']} ({meta['origin']}), a fresh optimizer")
    return model.train()


# What a resumed run may not change: the others may, and are listed where they do.
FIXED = (*(set(GPTConfig.__dataclass_fields__) - {"dropout", "gradient_checkpointing"}), "seed", "optimizer_type")


def check_resumable(config, resumed, data, say):
    """Raise UserError where the settings are not those of the run that is to go on."""
    kinds = {"config": dict, "optimizer": dict, "scaler": dict, "dataset": dict, "skipped": list, "iter_num": int}
    kinds |= {"seconds": float, "metrics_bytes": int}
    if not all(isinstance(resumed.get(key), kind) for key, kind in kinds.items()):
        raise UserError(
            f"ckpt.pt in {config.out_dir} is not of this train.py: --init_from=PATH starts from its weights"
        )
    with checkpoint.plausible(f"the config in {config.out_dir}/ckpt.pt"):
        known = {key: value for key, value in resumed["config"].items() if key in TrainConfig.__dataclass_fields__}
        old, new = TrainConfig(**known), config
    for key in FIXED:
        if getattr(old, key) != getattr(new, key):
            raise UserError(
                f"{key}={getattr(new, key)!r} cannot resume a run with {key}={getattr(old, key)!r}: "
                "give it as it was, or start anew with another --out_dir"
            )
    if old.sequences_per_step != new.sequences_per_step:
        raise UserError(f"{new.sequences_per_step} sequences a step cannot resume a run with {old.sequences_per_step}")
    if data.identity != resumed["dataset"]:
        raise UserError(f"dataset {config.dataset} is not the one that the run in {config.out_dir} was trained on")
    before, after = asdict(old) | {"init_from": ""}, asdict(new) | {"init_from": ""}
    changed = [f"{key} {before[key]} -> {after[key]}" for key in after if before[key] != after[key]]
    if changed:
        say(f"changed   {', '.join(changed)}")


def prepare_missing(config, say):
    """Make a dataset that needs no input and is not there yet, and say so."""
    folder = Path(config.data_dir, config.dataset)
    if config.dataset in ("shakespeare_works", "python_stdlib") and not (folder / "train.bin").exists():
        say(f"data      {folder} is not there yet: preparing it")
        prepare_data.prepare(config.dataset, config.data_dir)


def announce(config, model, data, machine, say):
    unit = {"char": "characters", "byte": "bytes", "gpt2": "tokens"}[data.tokenizer["kind"]]
    train_tokens, val_tokens = (f"{len(data.splits[split]) / 1e6:.2f}M" for split in ("train", "val"))
    say(f"data      {config.dataset}: {train_tokens} {unit} to train on, {val_tokens} to validate, "
        f"vocabulary {data.tokenizer['vocab_size']:,}")  # fmt: skip
    say(f"model     {model.describe()}, {model.flops_per_token() / 1e6:.1f} MFLOP a token")
    say(f"device    {machine}")


def start_wandb(config):
    try:
        import wandb
    except ImportError:
        raise UserError("wandb_log=True needs a library: pip install wandb") from None
    wandb.init(project=config.wandb_project, name=config.wandb_run_name, config=asdict(config), dir=config.out_dir)
    return wandb


def print_sample(model, identity, config):
    tokenizer = from_identity(identity)
    push = stream(tokenizer)
    device = next(model.parameters()).device
    start = torch.tensor([tokenizer.encode("\n")], device=device)
    generator = torch.Generator(device).manual_seed(config.seed)
    print("sample\n")
    for token in model.stream(start, config.final_sample, temperature=0.8, generator=generator):
        print(push(token.item()), end="", flush=True)
    print(push())


def print_line(line):
    with contextlib.suppress(OSError):  # a closed terminal or pipe ends no run
        tqdm.write(line)  # goes above a progress bar
        sys.stdout.flush()


def duration(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


@configurator.script
def main(argv=None):
    config = configurator.load(TrainConfig, sys.argv[1:] if argv is None else argv)
    result = train(config, neurons.load(config.mlp))
    if result.interrupted:
        sys.exit(128 + getattr(signal, result.interrupted, signal.SIGINT))


if __name__ == "__main__":
    main()
