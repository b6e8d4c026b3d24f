"""What fits into a card's memory: batch_size='auto' measures it, and a run that takes too much says what would help."""

import math

import torch

from kernels.cross_entropy import ChunkedCrossEntropy
from model_bio import LARGE_LOGITS
from wiggle.device import autocast, send
from wiggle.distributed import largest_over_processes, rank_and_world, smallest_over_processes
from wiggle.errors import UserError

GIB = 2**30
# what errors say that are no torch.OutOfMemoryError: the CPU's allocator, that of Apple's cards, cuBLAS
FAILURES = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


# --- batch_size='auto' ---


class Card:
    """A CUDA card's memory, in bytes, as torch's allocator holds it. Raises UserError for any other device."""

    HEADROOM = 0.1  # for what no step shows: the desktop, an evaluation's logits, gaps between tensors

    def __init__(self, device):
        if device.type != "cuda":
            raise UserError(f"batch_size='auto' measures a CUDA card's memory, and device is {device}: give a number")
        self.device = device

    def budget(self):
        """What this process may hold in all: what it holds and what is free now, within its own cap, less headroom."""
        free, total = torch.cuda.mem_get_info(self.device)
        index = torch.cuda.current_device() if self.device.index is None else self.device.index
        # set_per_process_memory_fraction's; before torch 2.8 it cannot be read, and a step past it fails
        share = total * getattr(torch.cuda, "get_per_process_memory_fraction", lambda index: 1.0)(index)
        return min(free + torch.cuda.memory_reserved(self.device), share) - self.HEADROOM * share

    def reset(self):
        """Give back what is cached, and begin a new peak."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self):
        """Most that the allocator held since: more than its tensors, by what lies idle between them."""
        return torch.cuda.max_memory_reserved(self.device)


def largest_micro_batch(sequences, peak_at, budget):
    """
    The largest divisor of `sequences` whose training step is measured to stay within `budget` bytes.

    peak_at: size -> the bytes that a step of so many sequences takes at most, infinite where it fails. A size is tried
    only where the line through the two largest that fit says that it fits too, and at most twice as large a one where
    there is a divisor: too large a step need not fail, under Windows it spills into main memory and crawls. Where a
    cost begins past some size, as that of the loss in chunks, the next measurement mends the line. Raises UserError
    where not even one sequence fits.
    """
    sizes = divisors(sequences)
    peaks = {size: peak_at(size) for size in (1, 2)[:sequences]}  # two make a line; 2 need not be a divisor
    if peaks[1] > budget:
        taken = f"takes {peaks[1] / GIB:.2f} GiB" if peaks[1] < math.inf else "takes more"
        raise UserError(
            f"batch_size='auto' finds {budget / GIB:.2f} GiB to be had, and one sequence {taken}: set "
            "gradient_checkpointing=True if it is not, lower block_size, or build a smaller model"
        )
    while True:
        known = sorted((size, peak) for size, peak in peaks.items() if peak <= budget)[-2:]
        (a, low), (b, high) = known[0], known[-1]
        each = (high - low) / max(1, b - a)
        best = max(size for size in sizes if peaks.get(size, math.inf) <= budget)
        over = min((size for size, peak in peaks.items() if peak > budget), default=math.inf)
        hopes = [size for size in sizes if best < size < over and high + each * (size - b) <= budget]
        if not hopes:
            return best
        size = max((size for size in hopes if size <= 2 * max(peaks)), default=hopes[0])
        peaks[size] = peak_at(size)


def measure_batch_size(config, card, model, data, dtype, say):
    """
    What a TrainConfig's batch_size='auto' is for this model on this Card -> sequences, which it says in a line.

    Steps are measured eagerly even where training is compiled: a compiled step takes no more as a rule, and each size
    would be compiled anew. They leave no trace: no weight moves, and generators and buffers are put back.
    """
    sequences, later, peaks = (
        config.sequences_per_step // rank_and_world()[1],
        moments(model, config.optimizer_type),
        {},
    )
    if rank_and_world()[1] > 1:
        later += 4 * model.get_num_params(non_embedding=False)  # DistributedDataParallel's copy of the gradients
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]  # a user's neuron may count what it sees

    def peak_at(size):  # the largest of all processes', which then decide alike
        peaks[size] = largest_over_processes(step_peak(card, model, data.batch(0, size), dtype)) + later
        return peaks[size]

    with torch.random.fork_rng([card.device] if card.device.type == "cuda" else []):
        peak_at(1)  # loads kernels and libraries, which take of what is free
        budget = smallest_over_processes(card.budget())
        size = largest_micro_batch(sequences, peak_at, budget)
    for buffer, before in kept:
        buffer.copy_(before)
    card.reset()
    each = (peaks[size] - peaks[1]) / max(1, size - 1)
    parts = f"{each / GIB:.2f} GiB a sequence, {(peaks[1] - each) / GIB:.2f} GiB fixed"
    parts = parts if size > 1 else f"one takes {peaks[1] / GIB:.2f} GiB"
    say(f"batch     auto: {size} of {sequences} sequences fit in {budget / GIB:.2f} GiB ({parts})")
    return size


def step_peak(card, model, batch, dtype):
    """Bytes that the card holds at most in a micro-batch; infinite where they are not to be had."""
    x, y = (send(ids, card.device) for ids in batch)  # (B, T) each
    card.reset()
    try:
        for _ in range(2):  # the second finds gradients there, as all of a step's but the first do
            with autocast(card.device, dtype):
                loss = model(x, y)[1]
            loss.backward()
        return card.peak()
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return math.inf
    finally:
        model.zero_grad(set_to_none=True)


def moments(model, optimizer_type):
    """Bytes of the optimizer's state: two numbers a weight; of a matrix Muon has one, Adafactor a row and a column."""
    numbers = 0
    for name, p in model.named_parameters():
        if optimizer_type == "adafactor":
            numbers += sum(p.shape) if p.dim() > 1 else p.numel()
        else:
            numbers += p.numel() * (1 if optimizer_type == "muon" and p.dim() == 2 and ".h." in name else 2)
    return 4 * numbers


def divisors(number):
    return [size for size in range(1, number + 1) if number % size == 0]


# --- out of memory ---


def out_of_memory(error):
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(words in str(error) for words in FAILURES)


def out_of_memory_advice(config, model, device, dtype):
    """The sentence for a run that ran out of memory: what it takes by the book, and what would take less."""
    batch = 1 if config.batch_size == "auto" else config.batch_size
    fixed, each, spared = estimate(model, config.optimizer_type, dtype, batch)
    where, fits, measured, cures = str(device), batch, "", []
    if device.type == "cuda":
        room = Card(device).budget()
        where = f"{torch.cuda.get_device_name(device)}, where {room / GIB:.1f} GiB are to be had"
        fits = max(1, int((room - fixed) // each))
        measured = f"; batch_size='auto' with tokens_per_step={config.sequences_per_step * config.block_size} measures"
    if batch > 1:
        most = fits if fits < batch else batch // 2  # where the book says that all fits, it is wrong
        size = max(size for size in divisors(config.sequences_per_step // rank_and_world()[1]) if size <= most)
        steps = config.sequences_per_step // size
        cures.append(f"lower batch_size to {size} (gradient_accumulation_steps={steps} keeps the step{measured})")
    if not model.config.gradient_checkpointing:
        cures.append(f"set gradient_checkpointing=True (about {batch * spared / GIB:.3g} GiB less)")
    cures.append("or lower block_size" if cures else "lower block_size, for gradient_checkpointing=True is set already")
    return (
        f"out of memory on {where}: batch_size={batch} x block_size={model.config.block_size} takes about "
        f"{(fixed + batch * each) / GIB:.3g} GiB ({each / GIB:.3g} a sequence, {fixed / GIB:.3g} fixed); "
        f"{', '.join(cures)}"
    )


def estimate(model, optimizer_type, dtype, batch):
    """
    Bytes of training by the book -> (fixed, of a sequence, what gradient_checkpointing would spare of a sequence).

    Of a sequence: what autograd keeps of its tokens, with b bytes a number, 2 under autocast and else 4. In a block of
    width C and H heads: both norms' inputs in float32, with mean and deviation (8C + 16), the inputs of c_attn, of
    attention's c_proj and of c_fc (3bC), q, k and v (3bC), 4H of attention's own, c_fc's output and the input of the
    MLP's c_proj (8bC for GELU and the fused oscillation; a neuron in plain torch keeps more), dropout's masks (2C).
    After the blocks, the last norm's input and lm_head's; and in backward one block's gradients. gradient_checkpointing
    keeps each block's input, and one block. Fixed: weights, gradients, moments, autocast's copies of weights, logits.
    """
    c, mlp = model.config, model.transformer.h[0].mlp
    weights, b = model.get_num_params(non_embedding=False), 4 if dtype == torch.float32 else 2
    copies = b if b < 4 else 0
    turned = 2 if c.qk_norm or c.position == "rope" else 0  # q and k once more
    block = 8 * c.n_embd + 16 + (6 + turned) * b * c.n_embd + 4 * c.n_head + 2 * c.n_embd * (c.dropout > 0)
    hidden = b * (mlp.c_fc.out_features + mlp.c_proj.in_features)
    working = hidden + 8 * c.n_embd
    kept = c.n_layer * (block + hidden) + working + (4 + b) * c.n_embd + 8
    recomputed = c.n_layer * 4 * c.n_embd + working + block + hidden
    rows = batch * c.block_size
    logits = 12 * rows * c.vocab_size
    if rows * c.vocab_size > LARGE_LOGITS:
        logits = (12 + copies) * min(rows, ChunkedCrossEntropy.CHUNK) * c.vocab_size
    logits += (4 + b) * c.vocab_size * c.n_embd  # their weight's gradient
    copied = weights // c.n_layer if c.gradient_checkpointing else weights  # a block's are dropped with it
    fixed = 8 * weights + copies * copied + moments(model, optimizer_type) + logits
    each = recomputed if c.gradient_checkpointing else kept
    return fixed, each * c.block_size, max(0, kept - recomputed) * c.block_size
