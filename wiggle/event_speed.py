"""
What event-driven decoding gains beside the dense way, and what it reads: what `bench.py --only=events` prints.

Both ways are steps of one token with the cache. What is dense: the MLPs' two products with all their weights, and
lm_head's. A rate is set by the thresholds, on random weights; a trained model has its own.
"""

import statistics
from collections.abc import Callable
from functools import partial
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.attention import attend_step, serves_step
from kernels.decoding import Past, pick_tokens
from kernels.event_mlp import EventMLP
from kernels.likeliest import LikeliestRows
from model_bio import GPT
from wiggle.timing import alternate, median_and_spread

RATES = (0.5, 0.25, 0.15, 0.08, 0.04)
TOP_K = 200  # of a draw, as in sample_bio.py


class Way(NamedTuple):
    """What a step computes its parts by: None for the dense way."""

    mlps: list[EventMLP | None]
    head: LikeliestRows | None


def set_rate(model: GPT, rate: float) -> None:
    """Set the thresholds so that features fire at this rate where c_fc's outputs are normal, as of random weights."""
    for block in model.transformer.h:
        std = block.mlp.c_fc.weight.norm(dim=1)  # of the product with a normalised vector
        block.mlp.sparse_gate.threshold.copy_(-std * NormalDist().inv_cdf(rate / 2))


def ways_of(model: GPT) -> dict[str, Way]:
    """The dense way, the one with event-driven MLPs, and the one that screens the head as well."""
    start = torch.zeros(1, 2, dtype=torch.long, device=model.lm_head.weight.device)
    model.generate(start, 2, top_k=TOP_K)  # lays the weights out
    dense, events = [None] * model.config.n_layer, [block.mlp.steps for block in model.transformer.h]
    return {"dense": Way(dense, None), "events": Way(events, None), "events and head": Way(events, model.likeliest)}


def take(model: GPT, way: Way) -> None:
    """Let the model's MLPs compute single tokens this way."""
    for block, steps in zip(model.transformer.h, way.mlps, strict=True):
        block.mlp.steps = steps


def mlp_inputs(model: GPT, text: Tensor) -> list[Tensor]:
    """What each layer's MLP reads of a text (1, T): (T, C) for each."""
    found = []
    hooks = [block.mlp.register_forward_pre_hook(lambda _, x: found.append(x[0][0])) for block in model.transformer.h]
    model(text)
    for hook in hooks:
        hook.remove()
    return found


def run_mlps(model: GPT, way: Way, inputs: list[Tensor], places: range) -> None:
    """The MLPs of all layers on the tokens at these places, one after the other."""
    take(model, way)
    for place in places:
        for block, x in zip(model.transformer.h, inputs, strict=True):
            block.mlp(x[None, place : place + 1])


def pick(model: GPT, way: Way, x: Tensor) -> Tensor:
    """Draw an id (1, 1) for x, the input of lm_head."""
    rows, found = model.sampled_vocab, None
    if way.head is not None and way.head.serves(x, TOP_K, model.lm_head, rows):
        found = way.head(x, TOP_K)
    logits, ids = found or (model.lm_head(x)[:, -1, : model.sampled_vocab], None)
    return pick_tokens(logits, 1.0, TOP_K, None, None, ids)


def draw(model: GPT, way: Way, text: Tensor, count: int) -> None:
    """Read a text (1, T), then take `count` steps of one token."""
    take(model, way)
    cache = model.new_cache(1, text.size(1) + count)
    model.hidden(text, cache)
    token = text[:, -1:]
    for place in range(text.size(1), text.size(1) + count):
        token = pick(model, way, model.hidden(token, cache, place))


def parts_of_a_step(model: GPT, way: Way, inputs: list[Tensor], place: int) -> dict[str, Callable[[], object]]:
    """What a step at `place` consists of, each for all layers."""
    blocks, cache, x = model.transformer.h, model.new_cache(1, place + 1), inputs[0][None, :1]
    rope = None
    if model.config.position == "rope":
        rope = model.rope_cos[place : place + 1], model.rope_sin[place : place + 1]
    qkv = blocks[0].attn.c_attn(x)
    pasts = [Past(cache, layer, slice(place, place + 1)) for layer in range(len(blocks))]

    def attend() -> None:
        for block, past in zip(blocks, pasts, strict=True):
            if serves_step(qkv, past.keys):
                attend_step(qkv, block.attn.n_head, block.attn.qk_norm, rope, past.keys, past.values, place)

    return {
        "MLPs": lambda: run_mlps(model, way, inputs, range(1)),
        "attention's products": lambda: [
            block.attn.c_proj(block.attn.c_attn(x)[..., : x.size(-1)]) for block in blocks
        ],
        "attention": attend,
        "norms": lambda: [norm(x) for block in blocks for norm in (block.ln_1, block.ln_2)],
        "head and draw": lambda: pick(model, way, x),
    }


class Speed(NamedTuple):
    """What was measured of a model: seconds of each round, in turns, for each way."""

    mlps: dict[str, list[float]]  # of one token's MLPs
    whole: dict[str, list[float]]  # of one token


def captured(action: Callable) -> Callable:
    """An action on a card as one CUDA graph, whose time is the card's own, without that of the launches."""
    action()  # compiles its kernels
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        action()
    return graph.replay


@torch.no_grad()
def measure(model: GPT, text: Tensor, count: int, repeats: int) -> Speed:
    """Time the MLPs on `count` tokens of a text (1, T), and as many steps after it."""
    ways, inputs, device = ways_of(model), mlp_inputs(model, text), text.device
    places = range(min(count, text.size(1)))
    run = {n: partial(run_mlps, model, ways[n], inputs, places) for n in ("dense", "events")}
    if device.type == "cuda":
        run = {name: captured(action) for name, action in run.items()}
    mlps = alternate(run, repeats, device)
    steps = {n: partial(draw, model, way, text[:, : min(16, count)], count) for n, way in ways.items()}
    whole = alternate(steps, repeats, device)
    take(model, ways["events"])
    per_token = [
        {n: [s / k for s in v] for n, v in rounds.items()} for rounds, k in ((mlps, len(places)), (whole, count))
    ]
    return Speed(*per_token)


def gain(rounds: dict[str, list[float]], way: str) -> float:
    """How many times as fast as the dense way another is: the median over rounds."""
    return statistics.median(dense / other for dense, other in zip(rounds["dense"], rounds[way], strict=True))


HEADER = """\
        % of features   ms of MLPs, a token               MB read, a token      gain to   tokens/s
  rate  fire looked at  dense          events        gain dense  here  ceiling  ceiling   dense  events     and head"""


def row(model: GPT, speed: Speed, rate: str) -> str:
    """A line below HEADER: MLPs alone, then whole steps."""
    steps = [block.mlp.steps for block in model.transformer.h]
    candidates, firing = (100 * statistics.mean(shares) for shares in zip(*(s.shares() for s in steps), strict=True))
    here, dense = sum(own.bytes_read() for own in steps), sum(own.bytes_dense() for own in steps)
    times = ["{:>6.2f} +- {:<5.2f}".format(*median_and_spread([1000 * s for s in v])) for v in speed.mlps.values()]
    gained, ceiling = gain(speed.mlps, "events"), dense / here
    whole = {way: 1 / statistics.median(seconds) for way, seconds in speed.whole.items()}
    gains = {way: f"{whole[way]:>8.1f} {gain(speed.whole, way):.2f}x" for way in whole}
    return (
        f"  {rate:<5}{firing:>5.1f}{candidates:>10.1f} {times[0]} {times[1]}{gained:>5.2f}x{dense / 1e6:>6.1f}"
        f"{here / 1e6:>6.1f}{ceiling:>8.2f}x{100 * gained / ceiling:>7.0f} %{whole['dense']:>8.1f}{gains['events']}"
        f"{gains['events and head']}"
    )


@torch.no_grad()
def rest_of_a_step(model: GPT, text: Tensor, repeats: int) -> str:
    """Where the time of an event-driven step on the CPU goes: each part by itself, and what is left."""
    way, inputs = ways_of(model)["events and head"], mlp_inputs(model, text)
    place = text.size(1) - 1
    parts = parts_of_a_step(model, way, inputs, place)
    cache, token = model.new_cache(1, place + 1), text[:, -1:]
    parts["step"] = lambda: pick(model, way, model.hidden(token, cache, place))
    seconds = {name: statistics.median(spent) for name, spent in alternate(parts, 4 * repeats, text.device).items()}
    whole = seconds.pop("step")
    shares = [f"{name} {1000 * s:.2f}" for name, s in seconds.items()]
    left = 1000 * (whole - sum(seconds.values()))
    return f"a step at place {place} takes {1000 * whole:.2f} ms: {', '.join(shares)}, Python and the rest {left:.2f}"


@torch.no_grad()
def print_rates(model: GPT, untrained: bool, count: int, repeats: int) -> None:
    """A table for a model with hard events: a row for each of RATES where it is untrained, else one at its own rate."""
    print(HEADER)
    count, device = min(count, model.config.block_size // 2), model.lm_head.weight.device
    for rate in RATES if untrained else (None,):
        if rate is not None:
            set_rate(model, rate)
        generator, start = torch.Generator(device).manual_seed(0), torch.zeros(1, 1, dtype=torch.long, device=device)
        text = model.generate(start, count, top_k=TOP_K, generator=generator)
        print(row(model, measure(model, text, count, repeats), "own" if rate is None else f"{rate:g}"))
        if rate in (None, 0.15) and device.type == "cpu":
            print(f"        {rest_of_a_step(model, text, repeats)}")
