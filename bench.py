"""
Speed and memory: each variant beside its control, alternated in one run.

    python bench.py --device=cpu
    python bench.py --device=cuda --budget_gb=7        (what an 8 GB card leaves)

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
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn as nn
from torch.nn import functional as F

from kernels import attention, matmul, oscillation
from kernels.decoding import cast_matrices
from kernels.matmul import Linear
from model_bio import GPT
from train import TrainConfig, train_step
from wiggle import configurator, errors
from wiggle.dataset import Dataset
from wiggle.device import (
    autocast,
    describe,
    drain,
    keep_freed_memory,
    peak_flops,
    peak_memory,
    pick_compile,
    pick_device,
    pick_dtype,
)
from wiggle.errors import UserError
from wiggle.guarded_step import GuardedOptimizer
from wiggle.optimizers import configure_optimizer


@dataclass
class BenchConfig:
    """What to measure. Raises ValueError for impossible values."""

    # what
    only: Literal["all", "train", "memory", "sample"] = "all"  # one part of the table
    repeats: int = 7  # alternated rounds behind each median, after one that warms up
    steps: int = 10  # training steps a round
    sample_tokens: int = 500  # tokens to sample
    budget_gb: float | None = None  # cap CUDA's allocator here, and measure the largest micro-batch that fits, no more
    variant: str | None = None  # with only=memory: measure this variant alone, in this process

    # machine
    device: str = "auto"  # auto (cuda > mps > cpu), cpu, cuda, mps
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: bfloat16 where the card has it
    compile: bool | Literal["auto"] = "auto"  # torch.compile; auto: on a GPU with a working Triton

    def __post_init__(self):
        for key in ("repeats", "steps", "sample_tokens"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)} must be at least 1")


VARIANTS = {
    "reference": {},
    "gelu": {"mlp": "gelu"},
    "bio/none": {"mlp": "bio", "bio_gate": "none"},
    "bio/feature": {"mlp": "bio", "bio_gate": "feature"},
}
GPT2 = {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024, "batch_size": 12, "vocab_size": 50304}
SHAPES = {
    "cpu": (
        {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "batch_size": 12, "vocab_size": 65},
        {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256, "batch_size": 16, "vocab_size": 65},
    ),
    "cuda": (GPT2,),
}


class ReferenceBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.gelu = nn.Linear(width, 4 * width, bias=False), nn.GELU()
        self.down, self.dropout = nn.Linear(4 * width, width, bias=False), nn.Dropout(0.0)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.qkv(self.norm_1(x)).split(C, dim=2)
        q, k, v = (part.view(B, T, self.heads, C // self.heads).transpose(1, 2) for part in (q, k, v))  # (B, H, T, D)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).contiguous().view(B, T, C)
        x = x + self.dropout(self.out(y))
        return x + self.dropout(self.down(self.gelu(self.up(self.norm_2(x)))))


class Reference(nn.Module):
    """The plain GPT that speed is judged against."""

    def __init__(self, c):
        super().__init__()
        self.tokens, self.places = nn.Embedding(c.vocab_size, c.n_embd), nn.Embedding(c.block_size, c.n_embd)
        self.blocks = nn.Sequential(*(ReferenceBlock(c.n_embd, c.n_head) for _ in range(c.n_layer)))
        self.norm = nn.LayerNorm(c.n_embd, bias=False)
        self.head = nn.Linear(c.n_embd, c.vocab_size, bias=False)
        self.tokens.weight = self.head.weight

    def forward(self, x, y):
        h = self.tokens(x) + self.places(torch.arange(x.size(1), device=x.device))
        logits = self.head(self.norm(self.blocks(h)))
        return logits, F.cross_entropy(logits.view(-1, logits.size(-1)), y.view(-1), ignore_index=-1)


def reference_stepper(config, folder, device, dtype):
    model = Reference(config).to(device)
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))
    T = config.block_size

    def step(number):
        data = np.memmap(folder / "train.bin", dtype=np.uint16, mode="r")
        places = torch.randint(len(data) - T, (config.batch_size,))
        x = torch.stack([torch.from_numpy(data[i : i + T].astype(np.int64)) for i in places])
        y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + T].astype(np.int64)) for i in places])
        with autocast(device, dtype):
            loss = model(x.to(device), y.to(device))[1]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def stepper(config, folder, device, dtype, compiled):
    """-> a function that takes one of train.py's steps with a model of this TrainConfig."""
    data = Dataset(folder, config.block_size, 1)
    data.check_ids(config.vocab_size)
    raw = model = GPT(config.gpt_config(config.vocab_size), seed=1).to(device)
    optimizer = configure_optimizer(raw, 0.1, 1e-3, (0.9, 0.99), device.type)
    guarded = GuardedOptimizer(raw, optimizer, device, dtype)
    if compiled:
        model = torch.compile(model)
    return lambda number: train_step(model, guarded, data, config, number, 1e-3, device, dtype)


def make_stepper(variant, shape, folder, device, dtype, compiled):
    config = TrainConfig(**shape | VARIANTS[variant], gradient_accumulation_steps=1)
    if variant == "reference":
        return reference_stepper(config, folder, device, dtype)
    return stepper(config, folder, device, dtype, compiled)


def alternate(actions, repeats, device):
    """{name: function} -> {name: seconds of each round}, the functions taking turns; the first round warms up."""
    seconds = {name: [] for name in actions}
    for _ in range(repeats + 1):
        for name, action in actions.items():
            drain(device)
            start = time.perf_counter()
            action()
            drain(device)
            seconds[name].append(time.perf_counter() - start)
    return {name: spent[1:] for name, spent in seconds.items()}


def spread(values):
    low, middle, high = (np.percentile(values, q) for q in (25, 50, 75))
    return middle, (high - low) / 2


@torch.no_grad()
def ceilings(device, dtype, repeats, n):
    """What the machine gives at best -> (bytes/s of a matrix-vector product, FLOP/s of an n x n matrix product)."""
    square = Linear(n, n, bias=False, device=device, dtype=dtype)
    wide = Linear(n, 2**26 // n, bias=False, device=device, dtype=dtype)  # past every cache
    vector, matrix = (torch.randn(*shape, device=device, dtype=dtype) for shape in ((n,), (n, n)))
    actions = {"vector": lambda: wide.weight @ vector, "our vector": lambda: wide(vector)}
    actions |= {"matrix": lambda: matrix @ square.weight, "our matrix": lambda: square(matrix)}
    best = {name: min(seconds) for name, seconds in alternate(actions, max(10, repeats), device).items()}
    bandwidth = wide.weight.numel() * dtype.itemsize / min(best["vector"], best["our vector"])
    return bandwidth, 2 * n**3 / min(best["matrix"], best["our matrix"])


def random_corpus(folder, vocab_size):
    for split in ("train", "val"):
        np.random.default_rng(0).integers(0, min(vocab_size, 65), 2**20).astype(np.uint16).tofile(
            folder / f"{split}.bin"
        )
    meta = {"dtype": "uint16", "tokenizer": {"kind": "byte", "vocab_size": 256}}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


def bench_train(config, device, dtype, compiled, limits):
    for shape in SHAPES.get(device.type, SHAPES["cpu"]):
        print(f"\ntraining, {' '.join(f'{k}={v}' for k, v in shape.items())}")
        print("  variant             ms a step    tokens/s   time to gelu's   GFLOP/s   of ceiling     MFU")
        tokens = shape["batch_size"] * shape["block_size"]
        with tempfile.TemporaryDirectory() as name:
            random_corpus(Path(name), shape["vocab_size"])
            steppers = {v: make_stepper(v, shape, Path(name), device, dtype, compiled) for v in VARIANTS}
            actions = {v: functools.partial(several, step, config.steps) for v, step in steppers.items()}
            rounds = alternate(actions, config.repeats, device)
        for variant, seconds in rounds.items():
            middle, half = spread([1000 * s / config.steps for s in seconds])
            ratio = statistics.median(s / g for s, g in zip(seconds, rounds["gelu"], strict=True))
            c = TrainConfig(**shape | VARIANTS[variant])
            with torch.device("meta"):
                flops = GPT(c.gpt_config(c.vocab_size)).flops_per_token() * tokens / middle * 1000
            mfu = f"{100 * flops / peak_flops(device):.1f} %" if peak_flops(device) else "-"
            print(
                f"  {variant:<12}{middle:>10.2f} +- {half:<5.2f}{1000 * tokens / middle:>10,.0f}{ratio:>16.3f}x"
                f"{flops / 1e9:>10.1f}{100 * flops / limits[1]:>11.0f} %{mfu:>9}"
            )


def several(step, count):
    for number in range(count):
        step(number)


def bench_memory(config, device, dtype, compiled):
    """Peak memory of training steps at GPT-2's shape: CUDA's allocator, or on the CPU a process of its own for each."""
    print(f"\npeak memory of a training step, {' '.join(f'{k}={v}' for k, v in GPT2.items())}")
    peaks = {}
    for variant in VARIANTS:
        if device.type == "cuda":
            torch.cuda.empty_cache()
            peaks[variant] = step_peak(variant, GPT2, device, dtype, compiled)
        else:
            command = [sys.executable, __file__, "--only=memory", f"--variant={variant}", f"--device={device}"]
            peaks[variant] = float(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]
            )
        print(f"  {variant:<14}{peaks[variant] / 2**30:>7.2f} GiB", end="")
        print(f"{peaks[variant] / peaks['gelu']:>9.3f}x gelu's" if "gelu" in peaks else "")


def step_peak(variant, shape, device, dtype, compiled):
    """Bytes that three training steps take at most; on the CPU those of the whole process."""
    with tempfile.TemporaryDirectory() as name:
        random_corpus(Path(name), shape["vocab_size"])
        step = make_stepper(variant, shape, Path(name), device, dtype, compiled)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for number in range(3 if device.type == "cuda" else 2):
            step(number)
    return peak_memory(device) * 2**20


def largest_batch(variant, device, dtype, compiled):
    """The largest micro-batch of 1,024 tokens whose step fits under the allocator's cap: doubling, then bisection."""

    def fits(size):
        gc.collect()  # a compiled model lies in a cycle
        torch.cuda.empty_cache()
        torch.compiler.reset()  # else the second size would be compiled for all sizes
        try:
            return step_peak(variant, GPT2 | {"batch_size": size}, device, dtype, compiled) > 0
        except torch.OutOfMemoryError:
            return False

    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def bench_budget(config, device, dtype, compiled):
    """Under the cap: each variant's largest micro-batch and its tokens/s. One after another: two would not fit."""
    print(f"\nunder {config.budget_gb:g} GB, {' '.join(f'{k}={v}' for k, v in GPT2.items() if k != 'batch_size')}")
    for variant in VARIANTS:
        size = largest_batch(variant, device, dtype, compiled)
        if size == 0:
            print(f"  {variant:<12}not even a micro-batch of 1 fits")
            continue
        torch.compiler.reset()
        with tempfile.TemporaryDirectory() as name:
            random_corpus(Path(name), GPT2["vocab_size"])
            step = make_stepper(variant, GPT2 | {"batch_size": size}, Path(name), device, dtype, compiled)
            several_steps = functools.partial(several, step, config.steps)
            rounds = alternate({variant: several_steps}, config.repeats, device)[variant]
        middle, half = spread([size * GPT2["block_size"] * config.steps / s for s in rounds])
        print(f"  {variant:<12}micro-batch {size:>3}{middle:>12,.0f} +- {half:<8,.0f} tokens/s")


def bench_sample(config, device, dtype, compiled, limits):
    """
    Tokens a second at GPT-2's shape: one text with the cache, compiled where that is on, eight texts at once, and, as
    in nanoGPT, one without a cache, each token a forward pass over all before it. Of those passes every tenth or so is
    run: at the middle of each of up to ten equal parts of the text.
    """
    count = config.sample_tokens
    print(f"\nsampling {count} tokens, {' '.join(f'{k}={v}' for k, v in GPT2.items() if k != 'batch_size')}")
    model = GPT(TrainConfig(**GPT2).gpt_config(GPT2["vocab_size"]), seed=1).to(device).eval()
    cast_matrices(model, dtype)
    parts = min(10, count)
    lengths = [(2 * part + 1) * count // (2 * parts) + 1 for part in range(parts)]

    def cached(batch, compiled):
        cache = model.new_cache(batch, 1 + count)
        prompts = torch.zeros(batch, 1, dtype=torch.long, device=device)
        return lambda: model.generate(prompts, count, top_k=200, cache=cache, compiled=compiled)

    def uncached():
        for length in lengths:
            model.generate(torch.zeros(1, length, dtype=torch.long, device=device), 1, top_k=200, use_cache=False)

    # name -> (the action, tokens that it makes, sequences in a batch)
    with autocast(device, dtype):
        rows = {"uncached": (uncached, parts, 1), "cached": (cached(1, False), count, 1)}
        if compiled:
            rows["compiled"] = cached(1, True), count, 1
        rows["batch of 8"] = cached(8, compiled), 8 * count, 8
        rounds = alternate({name: action for name, (action, _, _) in rows.items()}, config.repeats, device)
    rates = {name: [tokens / s for s in rounds[name]] for name, (_, tokens, _) in rows.items()}
    # a step reads every weight once, but of the positions a row
    moved = model.get_num_params() * dtype.itemsize
    for name, (_, _, batch) in rows.items():
        middle, half = spread(rates[name])
        ratio = statistics.median(rate / u for rate, u in zip(rates[name], rates["uncached"], strict=True))
        read = moved * middle / batch
        print(
            f"  {name:<11}{middle:>9.1f} +- {half:<6.1f} tokens/s{ratio:>8.2f}x uncached"
            f"{read / 1e9:>9.1f} GB/s{100 * read / limits[0]:>6.0f} % of the ceiling"
        )


@errors.script
def main(argv=None):
    config = configurator.read_settings(BenchConfig, sys.argv[1:] if argv is None else argv, __doc__)
    device = pick_device(config.device)
    keep_freed_memory(device)
    dtype = pick_dtype(config.dtype, device)
    compiled, how = pick_compile(config.compile, device)
    if config.variant is not None:
        if config.variant not in VARIANTS:
            raise UserError(f"variant={config.variant!r} is unknown: choose one of {', '.join(VARIANTS)}")
        print(step_peak(config.variant, GPT2, device, dtype, compiled))
        return
    if config.budget_gb is not None:
        if device.type != "cuda":
            raise UserError("budget_gb caps CUDA's allocator: it needs --device=cuda")
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, config.budget_gb * 1e9 / total))
        bench_budget(config, device, dtype, compiled)
        return
    print(f"device    {describe(device, dtype, how)}, torch {torch.__version__}")
    print(f"kernels   oscillation by {oscillation.backend(device)}, attention by {attention.backend(device)}")
    print(f"          large products by {matmul.backend(device)}")
    limits = ceilings(device, dtype, config.repeats, 2048 if device.type == "cpu" else 8192)
    print(f"ceilings  matrix-vector {limits[0] / 1e9:.1f} GB/s, matrix product {limits[1] / 1e9:.0f} GFLOP/s")
    if config.only in ("all", "train"):
        bench_train(config, device, dtype, compiled, limits)
    if config.only in ("all", "memory"):
        bench_memory(config, device, dtype, compiled)
    if config.only in ("all", "sample"):
        bench_sample(config, device, dtype, compiled, limits)


if __name__ == "__main__":
    main()
