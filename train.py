"""
Train a GPT, oscillating or not.

    python train.py config/quickstart.py
    python train.py config/quickstart.py --use_bio_mlp=False --out_dir=out/control     (its GELU control)
    python train.py config/quickstart.py --init_from=resume                            (go on after a stop)
    torchrun --nproc_per_node=4 train.py config/config_gpt2_bio_3070.py
"""

import contextlib
import math
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from kernels import oscillation
from model_bio import GPT, model_args, stable_seed
from wiggle import blowup, checkpoint, configurator, corpora, custom_neuron, errors
from wiggle.batch_size import choose_batch_size
from wiggle.beginning import check_resumable, load_start, with_shape_of_weights
from wiggle.chat_dataset import open_dataset
from wiggle.compiler import compiled_or_eager
from wiggle.custom_neuron import BuildNeuron, Neuron
from wiggle.dataset import BatchesAhead, Dataset
from wiggle.device import (
    Machine,
    attention_order,
    autocast,
    keep_freed_memory,
    peak_flops,
    peak_memory,
    pick_machine,
    send_windows,
)
from wiggle.distributed import (
    Processes,
    any_process,
    connect,
    disconnect,
    lost_process_in_words,
    mean_over_processes,
    processes,
    rank_and_world,
    wait_for_all,
)
from wiggle.errors import UserError
from wiggle.evaluation import bits_per_byte, evaluate
from wiggle.files import write_json
from wiggle.guarded_step import Diverged, GuardedOptimizer
from wiggle.lock import folder_lock
from wiggle.optimizers import configure_optimizer, set_learning_rate
from wiggle.out_of_memory import out_of_memory, out_of_memory_advice
from wiggle.run_log import Metrics, RunLog, Say, duration, print_line, start_wandb
from wiggle.sampling import print_sample
from wiggle.sharded import local, shard, whole_weights
from wiggle.stop_signal import StopSignal
from wiggle.telemetry import event_rates, sharpness
from wiggle.tokenizer import from_identity
from wiggle.train_config import TrainConfig
from wiggle.weights import grow_vocabulary


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
    val_bpb: float | None = None  # val_loss in bits a byte of text; None where the dataset does not count its bytes


def train(config: TrainConfig, neuron: BuildNeuron | None = None) -> TrainResult:
    """
    Train as the TrainConfig says. May be called many times in one process.

    While it runs, out_dir is locked: a second run in the same folder is refused.

    neuron: for mlp='file.py:Name', what custom_neuron.load_neuron makes of it, or a class. Raises UserError for what
    can be mended.
    """
    writes = processes().first and not config.eval_only
    lock = folder_lock(Path(config.out_dir), "a training run") if writes else contextlib.nullcontext()
    with lost_process_in_words(config.out_dir), lock:
        setup = run = prepare(config, neuron)
        try:
            run = build(setup)
            interrupted = loop(run)
            return finish(run, interrupted)
        except Diverged as error:
            raise Diverged(f"{error}; {advice_after_divergence(run)}") from None
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            settings = setup.config if run is setup else run.resolved
            advice = out_of_memory_advice(settings, setup.model, setup.machine.device, setup.machine.dtype)
        finally:
            if run is not setup:
                run.log.close()  # an open one at Weights & Biases would receive the next run's numbers
        raise UserError(advice)  # outside the except clause, whose error would keep the failed step's tensors alive


# --- prepare: on the CPU, all that can be found wrong before anything is written ---


@dataclass
class Setup:
    """What a run begins with: the settings, where it computes, its data, and its model on the CPU."""

    config: TrainConfig  # as asked; with init_from=PATH the model's keys are those of the weights
    neuron: BuildNeuron | None
    processes: Processes
    connected: bool  # whether this run made the process group, and must end it
    machine: Machine
    say: Say  # prints a line, in the first process
    data: Dataset
    model: GPT
    resumed: dict | None  # the content of the checkpoint that the run goes on from
    source: Path | None  # that checkpoint's file


def prepare(config: TrainConfig, neuron: BuildNeuron | None) -> Setup:
    """Settings -> Setup. Under torchrun every process does this, and the first one says what it finds."""
    here = processes()
    say = print_line if here.first else lambda line: None
    if config.micro_batches % here.world:
        raise UserError(f"{config.micro_batches} micro-batches a step do not divide among {here.world} processes")
    machine = pick_machine(config.device, config.dtype, config.compile)
    if config.parallel == "fsdp" and machine.dtype == torch.float16:
        raise UserError("this card has no bfloat16, and parallel='fsdp' takes no float16: give --dtype=float32")
    if here.world > 1 and machine.device.type == "cuda":
        machine = machine._replace(device=torch.device("cuda", here.local_rank))
        torch.cuda.set_device(machine.device)
    if machine.device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # for what stays in float32
    keep_freed_memory(machine.device)

    resumed = source = model = vocabulary = None
    if config.init_from == "resume":
        resumed, source = checkpoint.read_last(config.out_dir, say)
        config = with_shape_of_weights(config, resumed)
    elif config.init_from != "scratch":
        model, vocabulary = load_start(config, neuron, say)
        with errors.plausible(f"the shape of {config.init_from}"):
            config = replace(config, **model_args(model.config))
    if here.first:
        prepare_missing(config, say)
    connected = connect(config.backend, machine.device)
    wait_for_all()  # the first process may be preparing data
    data = open_dataset(Path(config.data_dir, config.dataset), config.block_size, config.seed)
    if vocabulary not in (None, data.tokenizer, from_identity(data.tokenizer).with_marks(()).identity()):
        raise UserError(
            f"the weights in {config.init_from} were trained on another vocabulary ({vocabulary['vocab_size']:,} "
            f"{vocabulary['kind']} tokens) than dataset {config.dataset} has: their ids mean other text"
        )
    if resumed:
        check_resumable(config, resumed, data, say)
        free = {"dropout": config.dropout, "gradient_checkpointing": config.gradient_checkpointing}
        model, _ = checkpoint.build_model(source, resumed, neuron, **free)
        say(f"resume    {source}, {resumed['iter_num']} steps done")
    elif model is None:
        model = GPT(config.gpt_config(config.vocab_size or data.model_vocab), neuron, config.seed)
    if model.config.vocab_size < data.model_vocab and "marks" in data.tokenizer:
        new = data.model_vocab - model.config.vocab_size
        grow_vocabulary(model, data.model_vocab, neuron, config.seed)
        config = replace(config, vocab_size=data.model_vocab)
        say(f"grown     the vocabulary by {new} ids, for the marks of conversations: their rows are drawn anew")
    data.check_ids(model.config.vocab_size)
    model.limit_sampling(data.tokenizer["vocab_size"])

    if isinstance(neuron, Neuron):
        custom_neuron.try_in_run(neuron, model.config, machine.device, machine.dtype)
    announce(config, model, data, machine, say)
    for note in config.notes():
        say(f"note      {note}")
    looking = config.max_blowup is not None and config.mlp != "gelu" and not config.eval_only
    if here.first and looking and (resumed or config.init_from == "scratch"):
        blowup.alarm(model.config, config.max_blowup, bool(resumed), machine.device, machine.dtype, neuron, say)
    wait_for_all()  # the alarm ends the first process
    return Setup(config, neuron, here, connected, machine, say, data, model, resumed, source)


def prepare_missing(config: TrainConfig, say: Say) -> None:
    """Make a dataset that needs no input and is not there yet, and say so."""
    folder = Path(config.data_dir, config.dataset)
    if config.dataset in ("shakespeare_works", "python_stdlib") and not (folder / "train.bin").exists():
        say(f"data      {folder} is not there yet: preparing it")
        corpora.prepare(config.dataset, config.data_dir)


def announce(config: TrainConfig, model: GPT, data: Dataset, machine: Machine, say: Say) -> None:
    """Print what the run trains on, what it trains, and what it computes on."""
    say(f"data      {config.dataset}: {data.describe()}")
    say(f"model     {model.describe()}, {model.flops_per_token() / 1e6:.1f} MFLOP a token")
    kernel = f", oscillation by {oscillation.backend(machine.device)}" if config.mlp == "bio" else ""
    say(f"device    {machine}{kernel}")


# --- build: on the device ---


@dataclass
class Run(Setup):
    """A Setup on its device, with what the loop needs, and how far the loop has come."""

    resolved: TrainConfig  # `config` with the batch_size that the steps take, where 'auto' was measured
    trained: nn.Module  # the model as it trains: compiled, or wrapped for several processes; `model` is saved
    guarded: GuardedOptimizer
    log: RunLog
    step: int = 0  # steps taken
    seconds: float = 0.0  # of training proper
    best: float = math.inf  # the lowest validation loss so far
    saved_step: int | None = None  # steps that the weights in ckpt.pt have taken; None = this run has no ckpt.pt
    evaluated: dict | None = None  # the last evaluation
    first_losses: list = field(default_factory=list)  # of steps 1 to 20, on the device
    timed_steps: int = 0  # steps whose time counts for the mean speed
    timed_seconds: float = 0.0

    @property
    def writes(self) -> bool:
        """Whether this process writes files."""
        return self.processes.first and not self.config.eval_only


def build(setup: Setup) -> Run:
    """Move the model to its device, measure batch_size='auto', make the optimizer, and open the run's files."""
    config, machine, resumed = setup.config, setup.machine, setup.resumed
    trained = model = setup.model.to(machine.device)
    if machine.compiled:
        setup.machine = machine = compiled_or_eager(model, machine, setup.say)
    if any_process(not machine.compiled):  # all must measure and take the same steps
        setup.machine = machine = machine._replace(compiled=False)
    sharded = config.parallel == "fsdp" and setup.processes.world > 1
    if sharded:
        shard(model, machine.device)
    if machine.compiled:
        trained = torch.compile(model)
    size = config.batch_size
    if size == "auto":
        size = choose_batch_size(config, model, trained, setup.data, machine, setup.say)
    shape = size, config.block_size, config.sequences_per_step // size
    tokens = f"{' x '.join(map(str, shape))} = {math.prod(shape):,} tokens a step"
    setup.say(f"batch     {tokens}, {config.max_iters:,} steps")
    betas = config.beta1, config.beta2
    optimizer = configure_optimizer(
        model, config.weight_decay, config.learning_rate, betas, machine.device.type, config.optimizer_type
    )
    guarded = GuardedOptimizer(model, optimizer, machine.device, machine.dtype, config.max_skipped)
    done = {}
    if resumed:
        with errors.plausible(setup.source):
            guarded.load_state_dict(resumed)
        steps = resumed["iter_num"]
        done = {"step": steps, "saved_step": steps, "seconds": resumed["seconds"], "best": best_so_far(setup)}
    if setup.processes.world > 1 and not sharded:
        cards = [machine.device.index] if machine.device.type == "cuda" else None
        # Buffers are constants, or the same in all processes, or counts of each process's own.
        trained = DistributedDataParallel(trained, device_ids=cards, broadcast_buffers=False)
    resolved = replace(config, batch_size=size)
    run = Run(**vars(setup), resolved=resolved, trained=trained, guarded=guarded, log=RunLog(), **done)
    if run.writes:
        run.log = open_files(run)
    return run


def best_so_far(setup: Setup) -> float:
    """The validation loss of a resumed run's best.pt, measured again where it was measured on other windows."""
    path = Path(setup.config.out_dir, "best.pt")
    try:
        content = checkpoint.read(path)
        loss, windows = float(content["best_val_loss"]), content.get("eval_windows")
    except (UserError, KeyError, TypeError):  # no whole best.pt: the next evaluation is the best
        return math.inf
    if windows == len(setup.data.fixed_windows("val", windows_of(setup.config))):
        return loss
    device, dtype = setup.machine.device, setup.machine.dtype
    model, _ = checkpoint.build_model(path, content, setup.neuron)
    again, _ = evaluate(model.to(device), setup.data, "val", windows_of(setup.config), device, dtype)
    setup.say(f"best      {path}, {loss:.4f} on other windows, is at {again:.4f} on this run's")
    return again


def open_files(run: Run) -> RunLog:
    """Put what an earlier run left in out_dir in order, write config.json, and open the logs -> RunLog."""
    out_dir, machine, c = Path(run.config.out_dir), run.machine, run.config
    wandb = None
    if c.wandb_log:  # first: without a key it ends the run, and then nothing is touched
        same = (run.resumed or {}).get("wandb_id")
        wandb = start_wandb(c.wandb_project, c.wandb_run_name, asdict(run.resolved), c.out_dir, same)
    if run.resumed:
        checkpoint.remove_leftovers(out_dir, run.source, run.say)
    else:
        checkpoint.set_aside(out_dir, run.say)
    found = {"vocab_size": run.model.config.vocab_size, "gradient_accumulation_steps": run.resolved.micro_batches}
    found |= {"device": str(machine.device), "dtype": str(machine.dtype).removeprefix("torch.")}
    write_json(out_dir / "config.json", asdict(run.resolved) | found | {"compile": machine.compiled})
    metrics = Metrics(out_dir / "metrics.jsonl", run.resumed["metrics_bytes"] if run.resumed else 0)
    return RunLog(metrics, wandb)


# --- the loop ---


def loop(run: Run) -> str | None:
    """Take the steps that are left -> the name of the signal that stopped the run before its end, or None."""
    config, device, dtype = run.resolved, run.machine.device, run.machine.dtype
    if config.eval_only:
        return None
    hidden = not (run.processes.first and sys.stderr.isatty())
    bar = tqdm(total=config.max_iters, initial=run.step, unit="step", leave=False, disable=hidden)
    ahead = BatchesAhead(run.data, config.sequences_per_step, config.batch_size, *rank_and_world())
    with StopSignal(run.processes.first) as stop, bar, ahead:
        first = timed_from = run.step
        clock = time.perf_counter()
        while run.step < config.max_iters:
            lr = config.learning_rate_at(run.step)
            taken = train_step(run.trained, run.guarded, ahead, config, run.step, lr, device, dtype, stop.agreed)
            if taken is None:
                save_and_say(run, stop.name)
                return stop.name
            run.step += 1
            bar.update()
            if run.step <= 20:
                run.first_losses.append(taken.loss)

            last = run.step == config.max_iters
            evaluating = last or run.step % config.eval_interval == 0
            logging = evaluating or run.step % config.log_interval == 0
            if logging:  # nothing but this and an evaluation waits for the device
                figures = step_figures(run, taken)
                spent, steps = time.perf_counter() - clock, run.step - timed_from
                run.seconds += spent
                if timed_from > first:  # the first interval warms up, and is left out of the mean speed
                    run.timed_steps, run.timed_seconds = run.timed_steps + steps, run.timed_seconds + spent
                log_step(run, lr, figures, spent / steps)
            if evaluating:
                evaluate_and_save(run, lr)
            if logging:
                clock, timed_from = time.perf_counter(), run.step
    return None


class Step(NamedTuple):
    """What a step of training gives, on the device."""

    loss: Tensor  # mean over its targets
    norm: Tensor  # of the gradient
    auxiliary: Tensor | None  # the mean of what users' neurons add to the loss; None where none adds


def train_step(
    model: nn.Module,
    guarded: GuardedOptimizer,
    data: Dataset | BatchesAhead,
    config: TrainConfig,
    step: int,
    lr: float,
    device: torch.device,
    dtype: torch.dtype,
    stopping: Callable[[], bool] = lambda: False,
) -> Step | None:
    """
    One step, without waiting for the device.

    stopping: asked before each micro-batch; where it says True the step is given up, as if it had never begun -> None.
    """
    rank, world = rank_and_world()
    micro_batches = config.micro_batches // world  # of this process
    set_learning_rate(guarded.optimizer, lr)
    loss_sum, auxiliary_sum = torch.zeros((), device=device), None
    for micro in range(micro_batches):
        if stopping():
            guarded.optimizer.zero_grad(set_to_none=True)
            return None
        number = rank * micro_batches + micro  # of this micro-batch within the step
        first, sequences = step * config.sequences_per_step + number * config.batch_size, config.sequences_per_step
        batch = send_windows(data.batch(first, config.batch_size), device)  # what the model is called with
        torch.manual_seed(stable_seed(config.seed, "dropout", step, micro, rank))
        if isinstance(model, DistributedDataParallel):
            model.require_backward_grad_sync = micro == micro_batches - 1  # once a step is enough
        with autocast(device, dtype), attention_order(device):
            loss = model(*batch)[1] / (data.loss_divisor(first, config.batch_size, sequences) / world)
            auxiliary = guarded.model.auxiliary_loss()
        loss_sum += loss.detach()
        if auxiliary is not None:  # of users' neurons: trained on, but no part of the loss that is logged and compared
            loss = loss + auxiliary / micro_batches
            auxiliary_sum = auxiliary.detach() / micro_batches + (0 if auxiliary_sum is None else auxiliary_sum)
        if isinstance(model, DistributedDataParallel):
            loss = loss + guarded.zero()
        guarded.scaler.scale(loss).backward()
    loss = mean_over_processes(loss_sum)
    auxiliary = None if auxiliary_sum is None else mean_over_processes(auxiliary_sum)
    whole = loss if auxiliary is None else loss + auxiliary
    norm = guarded.step(whole, config.grad_clip or math.inf)
    guarded.model.regulate_events(guarded.skipped[1] > 0, mean_over_processes)
    return Step(loss, norm, auxiliary)


def step_figures(run: Run, taken: Step) -> dict:
    """Wait for the step, and raise Diverged where the run is stuck -> what metrics.jsonl keeps of the step itself."""
    one_sequence = send_windows(run.data.batch(run.step, 1), run.machine.device)[0]
    layers = {"event_rate": event_rates(run.model, one_sequence), "beta": sharpness(run.model)}
    loss, norm, (skipped, _) = taken.loss.item(), taken.norm.item(), run.guarded.skipped.tolist()
    run.guarded.raise_if_stuck(run.step, loss, norm)
    layers = {key: v if v is None else [round(x, 4) for x in v.tolist()] for key, v in layers.items()}
    added = {} if taken.auxiliary is None else {"auxiliary_loss": taken.auxiliary.item()}
    return {"loss": loss} | added | {"grad_norm": norm, "skipped": skipped} | layers


def log_step(run: Run, lr: float, figures: dict, step_seconds: float) -> None:
    """Record a step's figures, and print them."""
    config = run.resolved
    tokens_per_step = config.sequences_per_step * config.block_size
    speed, ms, peak = tokens_per_step / step_seconds, 1000 * step_seconds, peak_flops(run.machine.device)
    speeds = {"ms": round(ms, 2), "tokens_per_second": round(speed), "peak_mb": round(peak_memory(run.machine.device))}
    run.log.record(progress(run, lr) | figures | speeds)
    added = f"  auxiliary {figures['auxiliary_loss']:.4f}" if "auxiliary_loss" in figures else ""
    line = f"loss {figures['loss']:.4f}{added}  lr {lr:.2e}  {ms:.0f} ms  {speed / 1000:.1f}k tok/s"
    if peak:
        mfu = run.model.estimate_mfu(config.sequences_per_step, step_seconds, peak * run.processes.world)
        line += f"  mfu {100 * mfu:.1f} %"
    if rates := figures["event_rate"]:
        line += f"  events {100 * sum(rates) / len(rates):.0f} %"
    if betas := figures["beta"]:
        line += f"  beta {sum(betas) / len(betas):.2f}"
    if figures["skipped"]:
        line += f"  {figures['skipped']} skipped"
    left = duration(step_seconds * (config.max_iters - run.step))
    run.say(f"{run.step:>7}/{config.max_iters} {line}  {left} left")


def progress(run: Run, lr: float) -> dict:
    """How far the run has come, as each line of metrics.jsonl begins."""
    tokens = run.step * run.resolved.sequences_per_step * run.resolved.block_size
    return {"step": run.step, "tokens": tokens, "lr": lr, "seconds": round(run.seconds, 3)}


def windows_of(config: TrainConfig) -> int:
    """Windows that an evaluation reads, whatever the batch size: what is measured must not depend on the layout."""
    return 12 * config.eval_iters


def evaluate_splits(run: Run) -> dict:
    """The losses on both splits -> {val_loss, val_stderr, train_loss}, and val_bpb where the text's bytes are known."""
    count, where = windows_of(run.config), (run.machine.device, run.machine.dtype)
    val_loss, val_stderr = evaluate(run.model, run.data, "val", count, *where)
    train_loss, _ = evaluate(run.model, run.data, "train", count or len(run.data.fixed_windows("val", 0)), *where)
    found = {"val_loss": val_loss, "val_stderr": val_stderr, "train_loss": train_loss}
    if run.data.text_bytes["val"]:
        found["val_bpb"] = bits_per_byte(val_loss, len(run.data.splits["val"]), run.data.text_bytes["val"])
    return found


def evaluate_and_save(run: Run, lr: float) -> None:
    """Evaluate, record and print it, and write the checkpoints that are due."""
    run.evaluated = found = evaluate_splits(run)
    better = found["val_loss"] <= run.best  # equal: a run that was killed after best.pt, before ckpt.pt
    run.best = min(run.best, found["val_loss"])
    run.log.record(progress(run, lr) | found)
    line = losses_line(found)
    if ruin := why_not_to_save(run):
        line += f"  not saved: {ruin}"
    elif better or run.config.always_save_checkpoint:
        save(run, best_too=better)
        saved = Path(run.config.out_dir, "best.pt" if better else "ckpt.pt")
        line += f"{'  (best)' if better else ''}  saved {saved}"
    run.say(f"{run.step:>7}/{run.config.max_iters} {line}")


def why_not_to_save(run: Run) -> str | None:
    """What is wrong with weights that must not replace those in ckpt.pt, or None."""
    if run.evaluated and not math.isfinite(run.evaluated["val_loss"]):
        return "the validation loss is not finite"
    if run.guarded.skipped[1] > 0:
        return "steps are being skipped"
    if any_process(not all(local(weight).isfinite().all() for weight in run.model.parameters())):
        return "weights are not finite"
    return None


def save_and_say(run: Run, signal_name: str) -> None:
    """Save the weights of the last whole step, unless they are saved or ruined, and print how to go on."""
    ruin = why_not_to_save(run)
    if run.saved_step != run.step and not ruin:
        save(run, best_too=False)
    step = f"after step {run.step}"
    if ruin:
        run.say(f"stopped   by {signal_name} {step}, not saved: {ruin}; {advice_after_divergence(run)}")
    else:
        run.say(f"stopped   by {signal_name} {step}, saved: --init_from=resume goes on from here")


def advice_after_divergence(run: Run) -> str:
    """Which file of the run is good, and how to go on from it."""
    out_dir = Path(run.config.out_dir)
    best, last = out_dir / "best.pt", out_dir / "ckpt.pt"
    if run.saved_step is None:
        return "nothing was saved: start anew with a lower learning_rate"
    resume = f"{last} holds step {run.saved_step}: resume it with a lower learning_rate"
    if not best.exists():
        return resume
    return f"{resume}, or start from the best weights with --init_from={best} and another --out_dir"


def losses_line(found: dict) -> str:
    """An evaluation, as it is printed."""
    spread = "" if math.isnan(found["val_stderr"]) else f" +- {found['val_stderr']:.4f}"
    bits = f"  {found['val_bpb']:.4f} bits a byte" if "val_bpb" in found else ""
    return f"val {found['val_loss']:.4f}{spread}  train {found['train_loss']:.4f}{bits}"


def save(run: Run, best_too: bool) -> None:
    """
    Write ckpt.pt, and best.pt before it where the weights are the best so far.

    All processes call it together, since each may hold a share of the weights; the first one writes.
    """
    weights, moments = whole_weights(run.model), run.guarded.state_dict()
    if run.writes:
        write(run, weights, moments, best_too)
    wait_for_all()  # however long the disk takes
    run.saved_step = run.step


def write(run: Run, weights: dict, moments: dict, best_too: bool) -> None:
    """Write the files of `save`. weights: the model's state dict. moments: the guarded optimizer's."""
    out_dir = Path(run.config.out_dir)
    content = {
        "model": weights,
        "model_args": model_args(run.model.config),
        "tokenizer": run.data.tokenizer,
        "config": asdict(run.config),  # with batch_size='auto' as it was asked: another card measures anew
        "iter_num": run.step,
        "best_val_loss": run.best,
        "eval_windows": len(run.data.fixed_windows("val", windows_of(run.config))),
        "neuron_sha256": getattr(run.neuron, "sha256", None),
        "neuron_parts": getattr(run.neuron, "parts", None),
    }
    if best_too:
        checkpoint.save(out_dir / "best.pt", content)
    state = {"dataset": run.data.identity, "seconds": run.seconds, "metrics_bytes": run.log.metrics.sync()}
    begun_from = (run.resumed or {}).get("begun_from", run.config.init_from if run.resumed is None else "scratch")
    state |= {"wandb_id": run.log.wandb_id, "begun_from": begun_from}
    checkpoint.save_last(out_dir, content | moments | state)


# --- finish ---


def finish(run: Run, interrupted: str | None) -> TrainResult:
    """Evaluate once more where the loop did not, sample, and close the run's files."""
    config = run.resolved
    if run.evaluated is None and not interrupted:  # eval_only, or a finished run resumed
        run.evaluated = evaluate_splits(run)
        run.say(f"eval      {losses_line(run.evaluated)}")
    if config.parallel == "fsdp" and run.processes.world > 1 and config.final_sample:
        run.say(f"sample    left out of a sharded run: sample_bio.py --out_dir={config.out_dir} draws it")
    elif run.writes and config.final_sample and not interrupted:
        print_sample(run.model, run.data.tokenizer, config.final_sample, config.seed)
    run.log.close()
    if run.connected:
        disconnect()
    tokens_per_step = config.sequences_per_step * config.block_size
    speed = run.timed_steps * tokens_per_step / run.timed_seconds if run.timed_seconds else math.nan
    found = run.evaluated or dict.fromkeys(("val_loss", "val_stderr", "train_loss"), math.nan)
    return TrainResult(
        **found,
        best_val_loss=run.best,
        steps=run.step,
        tokens=run.step * tokens_per_step,
        seconds=run.seconds,
        tokens_per_second=speed,
        first_losses=[loss.item() for loss in run.first_losses],
        history=run.log.history,
        out_dir=config.out_dir,
        interrupted=interrupted,
    )


@errors.script
def main(argv: list[str] | None = None) -> None:
    config = configurator.read_settings(TrainConfig, sys.argv[1:] if argv is None else argv, __doc__)
    result = train(config, custom_neuron.load_neuron(config.mlp))
    if result.interrupted:
        sys.exit(128 + getattr(signal, result.interrupted, signal.SIGINT))


if __name__ == "__main__":
    main()
