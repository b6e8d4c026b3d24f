"""
The blow-up alarm: a model beside its GELU control at the same shape, before a step is trained.

This project's predecessor grew tenfold in parameters unseen. Parameters and FLOPs are counted on the whole model; time
and the activations that are saved for backward are measured on one block of each.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from model_bio import GPT, Block, GPTConfig, stands_for_mlp
from wiggle.device import autocast, drain
from wiggle.errors import UserError

CPU = torch.device("cpu")
Build = Callable[..., nn.Module]  # a user's neuron, as GPT takes it
Pairs = dict[str, tuple[float, float]]  # what was counted or measured -> (of the model, of its GELU control)


def alarm(
    config: GPTConfig,
    max_blowup: float,
    only_warn: bool = False,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    neuron: Build | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """
    Print a table of the model beside its control.

    Raises UserError where parameters or FLOPs pass max_blowup times the control's; only_warn prints that instead. Time
    and memory only warn: they depend on the machine.
    """
    name = config.mlp.rpartition(".py:")[2]
    say(f"          {'':<22}{name if len(name) < 12 else name[:9] + '..':>12}{'gelu':>12}{'ratio':>9}")
    counted = parameters_and_flops(config, neuron)
    for name, (own, control) in counted.items():
        say(f"          {name:<22}{own / 1e6:>11.2f}M{control / 1e6:>11.2f}M{own / control:>8.2f}x")
    name, (own, control) = max(counted.items(), key=lambda item: item[1][0] / item[1][1])
    if own / control > max_blowup:
        part, added = largest_addition(config, neuron)
        sentence = (
            f"blow-up: {own / control:.2f}x the GELU control's {name}, past max_blowup={max_blowup}; "
            f"{part} adds {added / 1e6:.1f}M parameters"
        )
        if not only_warn:
            cure = " (bio_gate='feature' costs almost nothing)" if part == "mlp.sparse_gate" else ""
            raise UserError(f"{sentence}{cure}; --max_blowup={own / control + 0.1:.1f} lets it pass")
        say(f"warning   {sentence}")
    for name, (own, control) in time_and_saved_bytes(config, device, dtype, neuron).items():
        say(f"          {name:<22}{own:>12.1f}{control:>12.1f}{own / control:>8.2f}x")
        if own / control > max_blowup:
            say(f"warning   {own / control:.2f}x the GELU control's {name}, past max_blowup={max_blowup}")


# --- what is counted, on models without storage ---


def parameters_and_flops(config: GPTConfig, neuron: Build | None = None) -> Pairs:
    """Parameters, and training FLOPs a token, of the whole model and of its control."""
    with torch.device("meta"):
        own, control = GPT(config, neuron), GPT(replace(config, mlp="gelu"))
    return {
        "parameters": (own.get_num_params(non_embedding=False), control.get_num_params(non_embedding=False)),
        "FLOPs a token": (own.flops_per_token(), control.flops_per_token()),
    }


def largest_addition(config: GPTConfig, neuron: Build | None = None) -> tuple[str, int]:
    """The part of a block with the most parameters that the control lacks -> (its name, their number in all layers)."""
    added, depth = Counter(), 1 if stands_for_mlp(neuron) else 2
    with torch.device("meta"):
        for sign, block in ((1, Block(config, neuron)), (-1, Block(replace(config, mlp="gelu")))):
            for name, parameter in block.named_parameters():
                added[".".join(name.split(".")[:depth])] += sign * parameter.numel() * config.n_layer
    return added.most_common(1)[0]


# --- what is measured, on one block ---


def time_and_saved_bytes(
    config: GPTConfig,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    neuron: Build | None = None,
    repeats: int = 5,
) -> Pairs:
    """
    Milliseconds of a block's forward and backward, and MiB that it saves for backward, for the model and its control.

    Times are medians of `repeats`, the two blocks alternated, after one round that warms up.
    """
    blocks = [Block(config, neuron).to(device), Block(replace(config, mlp="gelu")).to(device)]
    flops = 1e12 if device.type == "cuda" else 2e9  # of one pass of the control's block: enough to time
    tokens = min(max(int(flops / (72 * config.n_embd**2)), 64), 16384)
    length = min(config.block_size, tokens)
    x = torch.randn(tokens // length, length, config.n_embd, device=device)  # (B, T, C)
    saved = [saved_bytes(block, x, dtype) / 2**20 for block in blocks]
    rounds = [[1000 * pass_seconds(block, x, dtype) for block in blocks] for _ in range(repeats + 1)]
    own, control = zip(*rounds[1:], strict=True)
    return {
        "block, ms": (statistics.median(own), statistics.median(control)),
        "block, saved MiB": (saved[0], saved[1]),
    }


def pass_seconds(block: nn.Module, x: Tensor, dtype: torch.dtype) -> float:
    """Seconds of one forward and backward pass of a block, the device drained before and after. x: (B, T, C)."""
    drain(x.device)
    start = time.perf_counter()
    with autocast(x.device, dtype):
        y = block(x)
    y.float().sum().backward()
    drain(x.device)
    return time.perf_counter() - start


def saved_bytes(block: nn.Module, x: Tensor, dtype: torch.dtype) -> int:
    """Bytes that a block saves for its backward pass: each storage once, parameters left out. x: (B, T, C)."""
    seen = {p.untyped_storage().data_ptr(): 0 for p in block.parameters()}
    kept = []  # holds the tensors: a freed storage's address could be given to another one

    def note(tensor):
        kept.append(tensor)
        seen.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), autocast(x.device, dtype):
        block(x)
    return sum(seen.values())
