"""
Speed and memory: each variant beside its control, alternated in one run.

    python bench.py --device=cpu
    python bench.py --device=cuda --budget_gb=7        (what an 8 GB card leaves)
    python bench.py --device=cpu --only=data           (preparing and reading datasets, beside nanoGPT's way)
    python bench.py --device=cpu --only=events         (decoding what fires alone, beside the dense way)

Training steps are train.py's own, on random tokens. `reference` is a plain loop and model in nanoGPT's manner:
LayerNorm, nn.GELU, SDPA, batches assembled row by row, AdamW not fused, eager. Times are medians of alternated repeats,
with half the interquartile range behind them.
"""

import functools
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernels import attention, event_mlp, matmul, oscillation
from kernels.decoding import cast_matrices
from model_bio import GPT
from train import TrainConfig, train_step
from wiggle import checkpoint, configurator, data_speed, errors, event_speed
from wiggle.dataset import BatchesAhead, Dataset
from wiggle.device import Machine, autocast, drain, keep_freed_memory, peak_flops, peak_memory, pick_machine
from wiggle.errors import UserError
from wiggle.guarded_step import GuardedOptimizer
from wiggle.optimizers import configure_optimizer
from wiggle.out_of_memory import out_of_memory
from wiggle.reference_gpt import Reference
from wiggle.timing import Ceilings, alternate, measure_ceilings, median_and_spread

VARIANTS = {
    "reference": {},
    "gelu": {"mlp": "gelu"},
    "bio/none": {"mlp": "bio", "bio_gate": "none"},
    "bio/feature": {"mlp": "bio", "bio_gate": "feature"},
    "bio/hard": {"mlp": "bio", "bio_event": "hard"},
}
GPT2 = {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024, "batch_size": 12, "vocab_size": 50304}
SHAPES = {
    "cpu": (
        {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "batch_size": 12, "vocab_size": 65},
        {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256, "batch_size": 16, "vocab_size": 65},
    ),
    "cuda": (GPT2,),
}
Step = Callable[[int], object]  # takes training step number n


@dataclass
class BenchConfig:
    """What to measure. Raises ValueError for impossible values."""

    # what
    only: Literal["all", "train", "memory", "sample", "data", "events"] = (
        "all"  # one part of the table; all: the first three
    )
    repeats: int = 7  # alternated rounds behind each median, after one that warms up
    steps: int = 10  # training steps a round
    sample_tokens: int = 500  # tokens to sample
    data_mb: float = 200.0  # MB of text to prepare
    batches: int = 10_000  # batches to read
    checkpoint: str | None = None  # a run with hard events, for --only=events; None: random weights at GPT-2's shape
    budget_gb: float | None = None  # cap CUDA's allocator here, and measure the largest micro-batch that fits, no more
    variant: str | None = None  # print the bytes that steps of this variant alone take, measured in this process

    # machine
    device: str = "auto"  # auto (cuda > mps > cpu), cpu, cuda, mps
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: bfloat16 where the card has it
    compile: bool | Literal["auto"] = "auto"  # torch.compile; auto: on a GPU with a working Triton

    def __post_init__(self):
        for key in ("repeats", "steps", "sample_tokens", "budget_gb", "data_mb", "batches"):
            if getattr(self, key) is not None and not getattr(self, key) > 0:
                raise ValueError(f"{key}={getattr(self, key)} must be above 0")
        if self.variant not in (None, *VARIANTS):
            raise ValueError(f"variant={self.variant!r} is unknown: choose one of {', '.join(VARIANTS)}")


# --- the reference: a plain GPT, and its training step ---


class ReferenceStep:
    """Training steps of the reference, on batches that are put together row by row."""

    def __init__(self, config: TrainConfig, folder: Path, machine: Machine):
        self.config, self.path, self.machine = config, folder / "train.bin", machine
        self.model = Reference(config).to(machine.device)
        matrices = [p for p in self.model.parameters() if p.dim() >= 2]
        vectors = [p for p in self.model.parameters() if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))

    def __call__(self, number: int) -> None:
        T, device = self.config.block_size, self.machine.device
        data = np.memmap(self.path, dtype=np.uint16, mode="r")
        places = torch.randint(len(data) - T, (self.config.batch_size,))
        x = torch.stack([torch.from_numpy(data[i : i + T].astype(np.int64)) for i in places])
        y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + T].astype(np.int64)) for i in places])
        with autocast(device, self.machine.dtype):
            loss = self.model(x.to(device), y.to(device))[1]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


# --- a training step of each variant ---


def training_step(variant: str, shape: dict, folder: Path, machine: Machine) -> Step:
    """The training step of a variant, with a model of this shape and the tokens in `folder`."""
    config = TrainConfig(**shape | VARIANTS[variant], gradient_accumulation_steps=1)
    if variant == "reference":
        return ReferenceStep(config, folder, machine)
    data = Dataset(folder, config.block_size, 1)
    data.check_ids(config.vocab_size)
    raw = model = GPT(config.gpt_config(config.vocab_size), seed=1).to(machine.device)
    optimizer = configure_optimizer(raw, 0.1, 1e-3, (0.9, 0.99), machine.device.type)
    guarded = GuardedOptimizer(raw, optimizer, machine.device, machine.dtype)
    if machine.compiled:
        model = torch.compile(model)
    return lambda number: train_step(model, guarded, data, config, number, 1e-3, machine.device, machine.dtype)


def take_steps(step: Step, count: int) -> None:
    """Take training steps number 0 .. count - 1."""
    for number in range(count):
        step(number)


def temporary_folder() -> tempfile.TemporaryDirectory:
    """A folder for a dataset, removed at last: Windows refuses that as long as a file in it is mapped into memory."""
    return tempfile.TemporaryDirectory(ignore_cleanup_errors=True)


def write_random_tokens(folder: Path, vocab_size: int) -> None:
    """Make a dataset of 2^20 random bytes in `folder`, as train.py reads it."""
    tokens = np.random.default_rng(0).integers(0, min(vocab_size, 65), 2**20).astype(np.uint16)
    for split in ("train", "val"):
        tokens.tofile(folder / f"{split}.bin")
    meta = {"dtype": "uint16", "tokenizer": {"kind": "byte", "vocab_size": 256}}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


# --- what is printed: training ---


def bench_train(config: BenchConfig, machine: Machine, ceilings: Ceilings) -> None:
    """A table for each shape: time, tokens a second, and share of the ceiling of each variant's training step."""
    for shape in SHAPES.get(machine.device.type, SHAPES["cpu"]):
        print(f"\ntraining, {spelled(shape)}")
        torch.compiler.reset()  # Dynamo keeps the code of few models, and runs the others eagerly
        print("  variant             ms a step    tokens/s   time to gelu's   GFLOP/s   of ceiling     MFU")
        with temporary_folder() as name:
            write_random_tokens(Path(name), shape["vocab_size"])
            steps = {variant: training_step(variant, shape, Path(name), machine) for variant in VARIANTS}
            actions = {v: functools.partial(take_steps, step, config.steps) for v, step in steps.items()}
            rounds = alternate(actions, config.repeats, machine.device)
        for variant, seconds in rounds.items():
            milliseconds = [1000 * s / config.steps for s in seconds]
            to_gelu = statistics.median(s / g for s, g in zip(seconds, rounds["gelu"], strict=True))
            print(training_row(variant, shape, milliseconds, to_gelu, machine, ceilings))


def training_row(
    variant: str, shape: dict, milliseconds: list[float], to_gelu: float, machine: Machine, ceilings: Ceilings
) -> str:
    """A line of the table. milliseconds: of a step, in each round; to_gelu: the median of its ratio to gelu's."""
    middle, half = median_and_spread(milliseconds)
    tokens_per_second = 1000 * shape["batch_size"] * shape["block_size"] / middle
    config = TrainConfig(**shape | VARIANTS[variant])
    with torch.device("meta"):
        flops = GPT(config.gpt_config(config.vocab_size)).flops_per_token() * tokens_per_second
    peak = peak_flops(machine.device)
    mfu = f"{100 * flops / peak:.1f} %" if peak else "-"
    return (
        f"  {variant:<12}{middle:>10.2f} +- {half:<5.2f}{tokens_per_second:>10,.0f}{to_gelu:>16.3f}x"
        f"{flops / 1e9:>10.1f}{100 * flops / ceilings.flops:>11.0f} %{mfu:>9}"
    )


def spelled(shape: dict, *left_out: str) -> str:
    """A shape's keys and values, as flags would give them."""
    return " ".join(f"{key}={value}" for key, value in shape.items() if key not in left_out)


# --- what is printed: memory ---


def bench_memory(config: BenchConfig, machine: Machine) -> None:
    """Peak memory of training steps at GPT-2's shape: CUDA's allocator, or on the CPU a process of its own for each."""
    print(f"\npeak memory of a training step, {spelled(GPT2)}")
    peaks = {}
    for variant in VARIANTS:
        if machine.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.compiler.reset()
            peaks[variant] = step_peak(variant, GPT2, machine)
        else:
            peaks[variant] = peak_in_another_process(variant, config)
        print(f"  {variant:<14}{peaks[variant] / 2**30:>7.2f} GiB", end="")
        print(f"{peaks[variant] / peaks['gelu']:>9.3f}x gelu's" if "gelu" in peaks else "")


def step_peak(variant: str, shape: dict, machine: Machine) -> float:
    """Bytes that a few training steps take at most; on the CPU those of the whole process."""
    with temporary_folder() as name:
        write_random_tokens(Path(name), shape["vocab_size"])
        step = training_step(variant, shape, Path(name), machine)
        if machine.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        take_steps(step, 3 if machine.device.type == "cuda" else 2)
    return peak_memory(machine.device) * 2**20


def peak_in_another_process(variant: str, config: BenchConfig) -> float:
    """What `step_peak` gives in a fresh process on the same device, in the same precision."""
    flags = (f"--{key}={getattr(config, key)}" for key in ("device", "dtype", "compile"))
    done = subprocess.run([sys.executable, __file__, f"--variant={variant}", *flags], capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}, perhaps for want of memory"
        raise UserError(f"the process that measures {variant} ended early: {reason}")
    return float(done.stdout.split()[-1])


# --- what is printed: the largest micro-batch under a cap ---


def bench_budget(config: BenchConfig, machine: Machine) -> None:
    """Each variant's largest micro-batch under the cap, and its speed. One after another: two would not fit."""
    print(f"\nunder {config.budget_gb:g} GB, {spelled(GPT2, 'batch_size')}")
    for variant in VARIANTS:
        size = largest_batch(variant, machine)
        if size == 0:
            print(f"  {variant:<12}not even a micro-batch of 1 fits")
            continue
        torch.compiler.reset()
        with temporary_folder() as name:
            write_random_tokens(Path(name), GPT2["vocab_size"])
            step = training_step(variant, GPT2 | {"batch_size": size}, Path(name), machine)
            action = functools.partial(take_steps, step, config.steps)
            seconds = alternate({variant: action}, config.repeats, machine.device)[variant]
        middle, half = median_and_spread([size * GPT2["block_size"] * config.steps / s for s in seconds])
        print(f"  {variant:<12}micro-batch {size:>3}{middle:>12,.0f} +- {half:<8,.0f} tokens/s")


def largest_batch(variant: str, machine: Machine) -> int:
    """
    The largest micro-batch of 1,024 tokens whose step fits under the allocator's cap.

    Doubling and bisection find it for eager steps; from there compiled ones, each size of which takes a minute to
    compile, are tried one by one, upwards while they fit or else downwards.
    """
    low, high, eager = 0, 1, machine._replace(compiled=False)
    while batch_fits(variant, high, eager):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if batch_fits(variant, middle, eager) else (low, middle)
    return low if not machine.compiled else largest_compiled_batch(variant, low, machine)


def largest_compiled_batch(variant: str, near: int, machine: Machine) -> int:
    """What largest_batch gives for compiled steps, by trying the sizes one by one from `near`."""
    size = near
    while batch_fits(variant, size + 1, machine):
        size += 1
    while size and size == near and not batch_fits(variant, size, machine):
        size = near = size - 1
    return size


def batch_fits(variant: str, size: int, machine: Machine) -> bool:
    """Whether training steps with so many sequences fit under the allocator's cap."""
    gc.collect()  # a compiled model lies in a reference cycle
    torch.cuda.empty_cache()
    torch.compiler.reset()  # else the second size would be compiled for all sizes
    try:
        step_peak(variant, GPT2 | {"batch_size": size}, machine)
    except RuntimeError as error:  # torch.OutOfMemoryError, or what Inductor makes of it
        if not out_of_memory(error):
            raise
        return False
    return True


# --- what is printed: sampling ---


class Way(NamedTuple):
    """A way to sample."""

    action: Callable[[], object]
    tokens: int  # that the action makes
    batch: int = 1  # sequences at a time


def bench_sample(config: BenchConfig, machine: Machine, ceilings: Ceilings) -> None:
    """
    Tokens a second at GPT-2's shape, and the share of the memory's bandwidth that reading the weights takes.

    Ways: one text with the cache, compiled where that is on; eight texts at once; and, as in nanoGPT, one without a
    cache, each token a forward pass over all before it.
    """
    torch.compiler.reset()
    print(f"\nsampling {config.sample_tokens} tokens, {spelled(GPT2, 'batch_size')}")
    model = GPT(TrainConfig(**GPT2).gpt_config(GPT2["vocab_size"]), seed=1).to(machine.device).eval()
    cast_matrices(model, machine.dtype)
    with autocast(machine.device, machine.dtype):
        ways = ways_to_sample(model, config.sample_tokens, machine)
        rounds = alternate({name: way.action for name, way in ways.items()}, config.repeats, machine.device)
    rates = {name: [way.tokens / seconds for seconds in rounds[name]] for name, way in ways.items()}
    weights = model.get_num_params() * machine.dtype.itemsize  # bytes read in a step, whatever the batch
    for name, way in ways.items():
        middle, half = median_and_spread(rates[name])
        gain = statistics.median(rate / u for rate, u in zip(rates[name], rates["uncached"], strict=True))
        read = weights * middle / way.batch
        print(
            f"  {name:<11}{middle:>9.1f} +- {half:<6.1f} tokens/s{gain:>8.2f}x uncached"
            f"{read / 1e9:>9.1f} GB/s{100 * read / ceilings.bytes_per_second:>6.0f} % of the ceiling"
        )


def ways_to_sample(model: GPT, count: int, machine: Machine) -> dict[str, Way]:
    """The ways to draw `count` tokens, by their names in the table."""
    parts = min(10, count)  # without a cache one token is drawn at the middle of each of up to ten parts of the text
    lengths = [(2 * part + 1) * count // (2 * parts) + 1 for part in range(parts)]
    ways = {"uncached": Way(functools.partial(draw_uncached, model, lengths), parts)}
    ways["cached"] = Way(cached_drawing(model, 1, count, compiled=False), count)
    if machine.compiled:
        ways["compiled"] = Way(cached_drawing(model, 1, count, compiled=True), count)
    ways["batch of 8"] = Way(cached_drawing(model, 8, count, machine.compiled), 8 * count, 8)
    return ways


def draw_uncached(model: GPT, lengths: list[int]) -> None:
    """Draw one token after a text of each length, without a cache."""
    for length in lengths:
        prompt = torch.zeros(1, length, dtype=torch.long, device=model.lm_head.weight.device)
        model.generate(prompt, 1, top_k=200, use_cache=False)


def cached_drawing(model: GPT, batch: int, count: int, compiled: bool) -> Callable[[], Tensor]:
    """A function that draws `count` tokens of `batch` texts, with one cache for all its calls."""
    cache = model.new_cache(batch, 1 + count)
    prompts = torch.zeros(batch, 1, dtype=torch.long, device=model.lm_head.weight.device)
    return functools.partial(model.generate, prompts, count, top_k=200, cache=cache, compiled=compiled)


# --- what is printed: events ---


def bench_events(config: BenchConfig, machine: Machine) -> None:
    """A row for each event rate, or for a run's own: MLPs and whole steps, dense and event-driven."""
    served = event_mlp.backend(machine.device)
    if served.startswith("plain"):
        raise UserError(f"no kernel serves event-driven steps on {machine.device}: {served}")
    if machine.device.type == "cpu" and machine.dtype != torch.float32:
        raise UserError(f"steps on the CPU are event-driven in float32 alone: leave --dtype={config.dtype} out")
    if config.checkpoint is None:
        shape = TrainConfig(**GPT2, mlp="bio", bio_event="hard", position="rope", qk_norm=True, bias=False)
        model = GPT(shape.gpt_config(GPT2["vocab_size"]), seed=1).eval()
    else:
        model = checkpoint.load_model(config.checkpoint, machine.device)[0].eval()
        if not model.config.hard_events:
            raise UserError(f"{config.checkpoint} has no hard events: give a run of --mlp=bio --bio_event=hard")
    cast_matrices(model.to(machine.device), machine.dtype)
    print(f"\nevents in steps of one token, {config.sample_tokens} of them, by {served}: {model.describe()}")
    with autocast(machine.device, machine.dtype):
        event_speed.print_rates(model, config.checkpoint is None, config.sample_tokens, config.repeats)


# --- what is printed: data ---


def bench_data(config: BenchConfig, machine: Machine) -> None:
    """Preparing text and reading batches beside nanoGPT's way, their memory, and what a training step waits for."""
    with tempfile.TemporaryDirectory() as name:
        (folder := Path(name, "texts")).mkdir()
        texts = data_speed.write_texts(folder, config.data_mb)
        print(f"\npreparing {texts.megabytes:.0f} MB of Python sources in parquet, GPT-2's tokens")
        ways = data_speed.ways_to_prepare(texts, Path(name))
        rounds = alternate(ways, config.repeats, torch.device("cpu"))
        better = min(("streaming loop", next(iter(ways))), key=lambda way: statistics.median(rounds[way]))
        for way, seconds in rounds.items():
            middle, half = median_and_spread([texts.megabytes / s for s in seconds])
            gain = statistics.median(b / s for s, b in zip(seconds, rounds[better], strict=True))
            print(f"  {way:<20}{middle:>8.1f} +- {half:<6.1f} MB/s{gain:>8.2f}x {better}'s")
        for encoder in (way.removeprefix("ours, ") for way in ways if way.startswith("ours")):
            seconds = data_speed.stage_seconds(texts, encoder)
            shares = (f"{stage} {100 * s / sum(seconds.values()):.0f} %" for stage, s in seconds.items())
            print(f"  {encoder}: {', '.join(shares)}, peak {data_speed.peak_of_preparation(texts, encoder):.0f} MB")
    with temporary_folder() as name:
        data = data_speed.write_random_dataset(Path(name), 2**29)
        print(f"reading batches of 12 x 1,024 tokens from {2**30 / 1e9:.2f} GB")
        growth = data_speed.read_batches(data, config.batches)
        ways = {"ours": functools.partial(data_speed.read_batches, data, 500)}
        ways["nanoGPT"] = functools.partial(data_speed.read_batches_as_nanogpt, Path(name, "train.bin"), 1024, 500)
        rounds = alternate(ways, config.repeats, torch.device("cpu"))
        for way, seconds in rounds.items():
            print("  {:<20}{:>8.0f} +- {:<6.0f} batches/s".format(way, *median_and_spread([500 / s for s in seconds])))
        print(f"  resident memory grew by {growth:.0f} MB over {config.batches:,} batches")
    print(f"  a training step waits for data {100 * waiting_share(machine):.2f} % of its time ({spelled(SMALL)})")


SMALL = {**SHAPES["cpu"][0], "mlp": "bio", "bio_gate": "none"}  # config_shakespeare_cpu.py's


def waiting_share(machine: Machine, steps: int = 300) -> float:
    """The share of the time of training steps of the small shape in which they wait for their batch."""
    with temporary_folder() as name:
        write_random_tokens(Path(name), SMALL["vocab_size"])
        config = TrainConfig(**SMALL, gradient_accumulation_steps=1)
        data = Dataset(Path(name), config.block_size, 1)
        model = GPT(config.gpt_config(config.vocab_size), seed=1).to(machine.device)
        optimizer = configure_optimizer(model, 0.1, 1e-3, (0.9, 0.99), machine.device.type)
        guarded = GuardedOptimizer(model, optimizer, machine.device, machine.dtype)
        with BatchesAhead(data, config.sequences_per_step, config.batch_size) as ahead:
            timed = data_speed.TimedBatches(ahead)
            start = time.perf_counter()
            for number in range(steps):
                train_step(model, guarded, timed, config, number, 1e-3, machine.device, machine.dtype)
            drain(machine.device)
            return timed.seconds / (time.perf_counter() - start)


# --- the script ---


@errors.script
def main(argv=None):
    config = configurator.read_settings(BenchConfig, sys.argv[1:] if argv is None else argv, __doc__)
    machine = pick_machine(config.device, config.dtype, config.compile)
    keep_freed_memory(machine.device)
    if config.variant is not None:
        print(step_peak(config.variant, GPT2, machine))
        return
    if config.budget_gb is not None:
        if machine.device.type != "cuda":
            raise UserError("budget_gb caps CUDA's allocator: it needs --device=cuda")
        total = torch.cuda.get_device_properties(machine.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, config.budget_gb * 1e9 / total))
        bench_budget(config, machine)
        return
    print(f"device    {machine}, torch {torch.__version__}")
    if config.only == "data":
        bench_data(config, machine)
        return
    if config.only == "events":
        bench_events(config, machine)
        return
    print(f"kernels   oscillation by {oscillation.backend(machine.device)}, ", end="")
    print(f"attention by {attention.backend(machine.device)}")
    print(f"          large products by {matmul.backend(machine.device)}")
    ceilings = measure_ceilings(machine, config.repeats, 2048 if machine.device.type == "cpu" else 8192)
    print(f"ceilings  matrix-vector {ceilings[0] / 1e9:.1f} GB/s, matrix product {ceilings[1] / 1e9:.0f} GFLOP/s")
    if config.only in ("all", "train"):
        bench_train(config, machine, ceilings)
    if config.only in ("all", "memory"):
        bench_memory(config, machine)
    if config.only in ("all", "sample"):
        bench_sample(config, machine, ceilings)


if __name__ == "__main__":
    main()
