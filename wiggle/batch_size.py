"""batch_size='auto': as many sequences in a micro-batch as a card is measured to hold."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from model_bio import GPT
from wiggle.dataset import Dataset
from wiggle.device import Card, Machine, attention_order, autocast, send_windows
from wiggle.distributed import largest_over_processes, rank_and_world, smallest_over_processes
from wiggle.errors import UserError
from wiggle.out_of_memory import GIB, divisors, optimizer_state_bytes, out_of_memory
from wiggle.train_config import TrainConfig

UNMEASURED_TOKENS = 8192  # of a micro-batch where memory is not measured; larger ones gain no speed on a CPU


def find_card(device: torch.device) -> Card | None:
    """The device's memory where it can be measured, as on CUDA alone."""
    return Card(device) if device.type == "cuda" else None


def choose_batch_size(
    config: TrainConfig,
    model: GPT,
    trained: nn.Module,
    data: Dataset,
    machine: Machine,
    say: Callable[[str], None],
) -> int:
    """
    The number of sequences that batch_size='auto' stands for here, which it says in a line.

    On CUDA the largest divisor of a process's share of a step whose steps are measured to fit; elsewhere the largest
    one of at most UNMEASURED_TOKENS tokens. trained: the model as its steps will run it, compiled or not.
    """
    device = machine.device
    sequences, card = config.sequences_per_step // rank_and_world()[1], find_card(device)
    if card is not None:
        later = bytes_to_come(model, config.optimizer_type)
        return measure_batch_size(sequences, later, card, model, trained, data, machine.dtype, say)
    most = max(1, UNMEASURED_TOKENS // config.block_size)
    size = max(size for size in divisors(sequences) if size <= most)
    why = f"{size * config.block_size:,} tokens (memory is measured on CUDA alone, not on {device})"
    say(f"batch     auto: {size} of {sequences} sequences, {why}")
    return size


def bytes_to_come(model: GPT, optimizer_type: str) -> int:
    """Bytes that training holds besides what a step without an optimizer takes."""
    copies = 4 * model.get_num_params(non_embedding=False)  # DistributedDataParallel's, of the gradients
    return optimizer_state_bytes(model, optimizer_type) + (copies if rank_and_world()[1] > 1 else 0)


def measure_batch_size(
    sequences: int,
    later: int,
    card: Card,
    model: GPT,
    trained: nn.Module,
    data: Dataset,
    dtype: torch.dtype,
    say: Callable[[str], None],
) -> int:
    """
    The largest divisor of `sequences` whose training steps fit the card, in each process.

    Compiled steps take a minute to compile for each size, so the size is found by eager ones, which take as much as a
    rule. Then the compiled step of that size is measured, and of smaller ones until one fits; training runs what was
    compiled. Measuring leaves no trace: no weight moves, and generators and buffers are put back. later: bytes that
    training will hold besides.
    """
    peaks = StepPeaks(card, model, model, data, dtype, later)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}  # a user's neuron may count what it sees
    with torch.random.fork_rng([card.device] if card.device.type == "cuda" else []):
        peaks.at(1)  # loads kernels and libraries, which take some of the memory that is free
        budget = smallest_over_processes(card.budget())
        size = largest_fitting_divisor(sequences, peaks.at, budget)
        if trained is not model:
            compiled = StepPeaks(card, model, trained, data, dtype, later)
            size = largest_at_most(size, sequences, compiled.at, budget)
            peaks.measured |= compiled.measured
    for name, buffer in model.named_buffers():  # asked for anew: a neuron may have put another tensor in its place
        buffer.copy_(buffers[name])
    card.reset()
    one, taken = peaks.measured[1], peaks.measured[size]
    each = (taken - one) / max(1, size - 1)
    parts = f"{each / GIB:.2f} GiB a sequence, {(one - each) / GIB:.2f} GiB fixed"
    parts = parts if size > 1 else f"one takes {one / GIB:.2f} GiB"
    say(f"batch     auto: {size} of {sequences} sequences fit in {budget / GIB:.2f} GiB ({parts})")
    return size


class StepPeaks:
    """
    Peak memory of training steps, in bytes, by the number of sequences in a micro-batch.

    called: the model as the steps run it, compiled or not. later: bytes that training will hold besides, the
    optimizer's state above all.
    """

    def __init__(self, card: Card, model: GPT, called: nn.Module, data: Dataset, dtype: torch.dtype, later: int):
        self.card, self.model, self.called = card, model, called
        self.data, self.dtype, self.later = data, dtype, later
        self.measured = {}  # size -> bytes

    def at(self, size: int) -> float:
        """Measure a size: the largest of all processes' peaks, so that they decide alike."""
        if self.called is not self.model:
            torch.compiler.reset()  # a second size would be compiled for all sizes
        peak = step_peak(self.card, self.model, self.called, self.data.batch(0, size), self.dtype)
        self.measured[size] = largest_over_processes(peak) + self.later
        return self.measured[size]


def step_peak(card: Card, model: GPT, called: nn.Module, windows: Tensor, dtype: torch.dtype) -> float:
    """Bytes that the card holds at most during a micro-batch of windows; infinite where it has not so many."""
    batch = send_windows(windows, card.device)
    try:
        if called is not model:
            forward_and_backward(model, called, batch, dtype)  # what compiling takes is not a step's
        card.reset()
        for _ in range(2):  # the second adds to gradients that are there, as every micro-batch but a step's first does
            forward_and_backward(model, called, batch, dtype)
        return card.peak()
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return math.inf
    finally:
        model.zero_grad(set_to_none=True)


def forward_and_backward(model: GPT, called: nn.Module, batch: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    """Add a micro-batch's gradients to those that are there. batch: what the model is called with."""
    with autocast(batch[0].device, dtype), attention_order(batch[0].device):
        loss, auxiliary = called(*batch)[1], model.auxiliary_loss()
    (loss if auxiliary is None else loss + auxiliary).backward()


def largest_at_most(size: int, sequences: int, peak_at: Callable[[int], float], budget: float) -> int:
    """The largest divisor of `sequences` up to `size` with peak_at(divisor) <= budget. Raises UserError for none."""
    for smaller in reversed([divisor for divisor in divisors(sequences) if divisor <= size]):
        taken = peak_at(smaller)
        if taken <= budget:
            return smaller
    raise too_large(taken, budget)


def too_large(taken: float, budget: float) -> UserError:
    """The error where not even one sequence fits. taken: bytes that it takes, infinite where that is not known."""
    takes = f"takes {taken / GIB:.2f} GiB" if taken < math.inf else "takes more"
    return UserError(
        f"batch_size='auto' finds {budget / GIB:.2f} GiB to be had, and one sequence {takes}: set "
        "gradient_checkpointing=True if it is not, lower block_size, or build a smaller model"
    )


def largest_fitting_divisor(sequences: int, peak_at: Callable[[int], float], budget: float) -> int:
    """
    The largest divisor of `sequences` whose training step is measured to take at most `budget` bytes.

    peak_at: size -> bytes that a step with so many sequences takes, infinite where it fails. A step that is too large
    need not fail: under Windows it spills into main memory and crawls. So a size is tried only where the last two
    measurements foretell that it fits, and is at most twice the largest tried before where a divisor allows that. A
    cost that begins past some size, as that of the loss in chunks, shows in the next measurement. Raises UserError
    where not even one sequence fits.
    """
    sizes = divisors(sequences)
    peaks = {size: peak_at(size) for size in (1, 2)[:sequences]}  # two make a line; 2 need not be a divisor
    if peaks[1] > budget:
        raise too_large(peaks[1], budget)
    while untried := foretold_to_fit(sizes, peaks, budget):
        size = max((size for size in untried if size <= 2 * max(peaks)), default=untried[0])
        peaks[size] = peak_at(size)
    return max(size for size in sizes if peaks.get(size, math.inf) <= budget)


def foretold_to_fit(sizes: list[int], peaks: dict[int, float], budget: float) -> list[int]:
    """Of `sizes`, those above all that fit, below all that failed, and within the line through the largest two."""
    fitting = sorted(size for size, peak in peaks.items() if peak <= budget)
    a, b = [fitting[0], *fitting][-2:]
    slope = (peaks[b] - peaks[a]) / max(1, b - a)
    low = max(size for size in fitting if size in sizes)
    high = min((size for size, peak in peaks.items() if peak > budget), default=math.inf)
    return [size for size in sizes if low < size < high and peaks[b] + slope * (size - b) <= budget]
