"""Timing things in turns, as bench.py does, and the best that a machine gives."""

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from kernels.matmul import Linear
from wiggle.device import Machine, drain


def alternate(actions: dict[str, Callable], repeats: int, device: torch.device) -> dict[str, list[float]]:
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


def median_and_spread(values: list[float]) -> tuple[float, float]:
    """The median, and half the interquartile range."""
    low, middle, high = (np.percentile(values, q) for q in (25, 50, 75))
    return middle, (high - low) / 2


def launch(action: Callable, count: int) -> None:
    """Call an action `count` times."""
    for _ in range(count):
        action()


class Ceilings(NamedTuple):
    """The best that a machine gives, which the rates of training and sampling are shares of."""

    bytes_per_second: float  # of a matrix-vector product, which reads a matrix from memory
    flops: float  # a second, of a product of two matrices


@torch.no_grad()
def measure_ceilings(machine: Machine, repeats: int, n: int) -> Ceilings:
    """
    By plain torch and by kernels/matmul.py's Linear, whichever is faster, on n x n matrices.

    A card gets many products between two readings of the clock, which would else time the launch and the wait.
    """
    launches = 1 if machine.device.type == "cpu" else 20
    options = {"device": machine.device, "dtype": machine.dtype}
    square = Linear(n, n, bias=False, **options)
    wide = Linear(n, 2**26 // n, bias=False, **options)  # past every cache
    vector, matrix = torch.randn(n, **options), torch.randn(n, n, **options)
    actions = {"vector": lambda: wide.weight @ vector, "our vector": lambda: wide(vector)}
    actions |= {"matrix": lambda: matrix @ square.weight, "our matrix": lambda: square(matrix)}
    actions = {name: functools.partial(launch, action, launches) for name, action in actions.items()}
    rounds = alternate(actions, max(10, repeats), machine.device)
    best = {name: min(seconds) / launches for name, seconds in rounds.items()}
    bandwidth = wide.weight.numel() * machine.dtype.itemsize / min(best["vector"], best["our vector"])
    return Ceilings(bandwidth, 2 * n**3 / min(best["matrix"], best["our matrix"]))
