"""
The blow-up alarm: a model beside its GELU control at the same shape, before a step is trained.

This project's predecessor grew tenfold in parameters unseen. Parameters and FLOPs are counted on the whole model; time
and saved activation bytes are measured on one block of each.
"""

import statistics
import time
from collections import Counter
from dataclasses import replace

import torch

from model_bio import GPT, Block
from wiggle.device import autocast, drain
from wiggle.errors import UserError

CPU = torch.device("cpu")


def alarm(config, max_blowup, only_warn=False, device=CPU, dtype=torch.float32, neuron=None, say=print):
    """
    Print a table of the model `config` (a GPTConfig) beside its control.

    Raises UserError where parameters or FLOPs pass max_blowup times the control's; with only_warn it says so and goes
    on. Time and memory only warn: they depend on the machine.
    """
    say(f"          {'':<22}{config.mlp.rpartition(':')[2][:11]:>12}{'gelu':>12}{'ratio':>9}")
    counted = count(config, neuron)
    for name, (own, control) in counted.items():
        say(f"          {name:<22}{own / 1e6:>11.2f}M{control / 1e6:>11.2f}M{own / control:>8.2f}x")
    name, (own, control) = max(counted.items(), key=lambda item: item[1][0] / item[1][1])
    if own / control > max_blowup:
        part, added = culprit(config, neuron)
        sentence = (
            f"blow-up: {own / control:.2f}x the GELU control's {name}, past max_blowup={max_blowup}; "
            f"{part} adds {added / 1e6:.1f}M parameters"
        )
        if not only_warn:
            cure = " (bio_gate='feature' costs almost nothing)" if part == "mlp.sparse_gate" else ""
            raise UserError(f"{sentence}{cure}; --max_blowup={own / control + 0.1:.1f} lets it pass")
        say(f"warning   {sentence}")
    measured = measure(config, device, dtype, neuron)
    for name, (own, control) in measured.items():
        say(f"          {name:<22}{own:>12.1f}{control:>12.1f}{own / control:>8.2f}x")
        if own / control > max_blowup:
            say(f"warning   {own / control:.2f}x the GELU control's {name}, past max_blowup={max_blowup}")


def count(config, neuron=None):
    """-> {what: (of this model, of its GELU control)}, counted on models without storage."""
    with torch.device("meta"):
        own, control = GPT(config, neuron), GPT(replace(config, mlp="gelu"))
    return {
        "parameters": (own.get_num_params(non_embedding=False), control.get_num_params(non_embedding=False)),
        "FLOPs a token": (own.flops_per_token(), control.flops_per_token()),
    }


def culprit(config, neuron=None):
    """The part of a block that adds most over the control -> (its name, parameters added in all layers)."""
    added = Counter()
    with torch.device("meta"):
        for sign, block in ((1, Block(config, neuron)), (-1, Block(replace(config, mlp="gelu")))):
            for name, parameter in block.named_parameters():
                added[".".join(name.split(".")[:2])] += sign * parameter.numel() * config.n_layer
    return added.most_common(1)[0]


def measure(config, device=CPU, dtype=torch.float32, neuron=None, repeats=5):
    """
    -> {what: (one block of this model, one of its control)}: time in ms and saved activations in MiB.

    Time is a forward and backward, the median of `repeats`, the two blocks alternated after a warm-up.
    """
    blocks = [Block(config, neuron).to(device), Block(replace(config, mlp="gelu")).to(device)]
    flops = 1e12 if device.type == "cuda" else 2e9  # a step of the control block: enough to time
    tokens = min(max(int(flops / (72 * config.n_embd**2)), 64), 16384)
    length = min(config.block_size, tokens)
    x = torch.randn(tokens // length, length, config.n_embd, device=device)
    saved = [saved_bytes(block, x, dtype) / 2**20 for block in blocks]
    times = [[1000 * step_seconds(block, x, dtype) for block in blocks] for _ in range(repeats + 1)][1:]
    return {
        "block, ms": tuple(statistics.median(pair[i] for pair in times) for i in (0, 1)),
        "block, saved MiB": tuple(saved),
    }


def step_seconds(block, x, dtype):
    """Seconds of one forward and backward of a block, the device drained before and after."""
    drain(x.device)
    start = time.perf_counter()
    with autocast(x.device, dtype):
        y = block(x)
    y.float().sum().backward()
    drain(x.device)
    return time.perf_counter() - start


def saved_bytes(block, x, dtype):
    """Bytes of activations that a block keeps for its backward: each storage once, parameters left out."""
    seen = {p.untyped_storage().data_ptr(): 0 for p in block.parameters()}
    kept = []  # holds the tensors, or a freed storage's address could be given out again

    def note(tensor):
        kept.append(tensor)
        seen.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), autocast(x.device, dtype):
        block(x)
    return sum(seen.values())
