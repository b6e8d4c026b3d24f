"""A run that ran out of memory: how one knows, what it takes by estimate, and what would take less."""

from typing import NamedTuple

import torch

from kernels.cross_entropy import chunk_bytes
from model_bio import GPT, LARGE_LOGITS, OwnMLP
from wiggle.device import Card
from wiggle.distributed import rank_and_world
from wiggle.neuron_offers import treatments
from wiggle.train_config import TrainConfig

GIB = 2**30
CPU = torch.device("cpu")
# What RuntimeErrors for want of memory say, besides torch.OutOfMemoryError: the CPU's and Apple's allocators, cuBLAS.
FAILURES = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on the CPU or on a card."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(words in str(error) for words in FAILURES)


def out_of_memory_advice(config: TrainConfig, model: GPT, device: torch.device, dtype: torch.dtype) -> str:
    """The sentence for a run that ran out of memory: what it takes by estimate, and what would take less."""
    batch = 1 if config.batch_size == "auto" else config.batch_size
    takes = estimated_bytes(model, config.optimizer_type, dtype, batch, device)
    where, fits, measured, cures = str(device), batch, "", []
    if device.type == "cuda":
        room = Card(device).budget()
        where = f"{torch.cuda.get_device_name(device)}, where {room / GIB:.1f} GiB are to be had"
        fits = max(1, int((room - takes.fixed) // takes.sequence))
        tokens = config.sequences_per_step * config.block_size
        measured = f"; train.py measures it by batch_size='auto' and tokens_per_step={tokens}"
    if batch > 1:
        most = fits if fits < batch else batch // 2  # an estimate by which all fits is wrong
        size = max(size for size in divisors(config.sequences_per_step // rank_and_world()[1]) if size <= most)
        steps = config.sequences_per_step // size
        cures.append(f"lower batch_size to {size} (gradient_accumulation_steps={steps} keeps the step{measured})")
    if not model.config.gradient_checkpointing:
        cures.append(f"set gradient_checkpointing=True (about {batch * takes.spared / GIB:.3g} GiB less)")
    own = isinstance(model.transformer.h[0].mlp, OwnMLP)
    counted = f", {model.config.mlp} counted as GELU's MLP" if own else ""
    cures.append("or lower block_size" if cures else "lower block_size, for gradient_checkpointing=True is set already")
    return (
        f"out of memory on {where}: batch_size={batch} x block_size={model.config.block_size} takes about "
        f"{(takes.fixed + batch * takes.sequence) / GIB:.3g} GiB ({takes.sequence / GIB:.3g} a sequence, "
        f"{takes.fixed / GIB:.3g} fixed{counted}); {', '.join(cures)}"
    )


class Estimate(NamedTuple):
    """Bytes that training takes."""

    fixed: float  # whatever the batch: weights, gradients, moments, autocast's copies of weights, logits
    sequence: float  # for each sequence of a micro-batch: what autograd keeps
    spared: float  # of `sequence`, what gradient_checkpointing would spare


def estimated_bytes(
    model: GPT, optimizer_type: str, dtype: torch.dtype, batch: int, device: torch.device = CPU
) -> Estimate:
    """
    What training takes, added up from the model's shape.

    For each token autograd keeps, with b bytes a number (2 under autocast, else 4), in a block of width C and H heads:
    both norms' inputs in float32, with mean and deviation (8C + 16), the inputs of c_attn, of attention's c_proj and of
    c_fc (3bC), q, k and v (3bC), 4H of attention's own, c_fc's output and the input of the MLP's c_proj (8bC for GELU
    and the fused oscillation; a neuron in plain torch keeps more), and dropout's masks (2C). After the blocks come the
    last norm's input and lm_head's, and in the backward pass one block's gradients. gradient_checkpointing keeps each
    block's input, and all of one block.
    """
    c, mlp = model.config, model.transformer.h[0].mlp
    weights, b = model.get_num_params(non_embedding=False), 4 if dtype == torch.float32 else 2
    copies = b if b < 4 else 0
    turned = 2 if c.qk_norm or c.position == "rope" else 0  # q and k once more
    block = 8 * c.n_embd + 16 + (6 + turned) * b * c.n_embd + 4 * c.n_head + 2 * c.n_embd * (c.dropout > 0)
    hidden = 8 * b * c.n_embd  # GELU's, where a user's module stands for the MLP: what that keeps is not known
    if not isinstance(mlp, OwnMLP):
        hidden = b * (mlp.c_fc.out_features + mlp.c_proj.in_features)
    working = hidden + 8 * c.n_embd
    kept = c.n_layer * (block + hidden) + working + (4 + b) * c.n_embd + 8
    recomputed = c.n_layer * 4 * c.n_embd + working + block + hidden
    rows = batch * c.block_size
    logits = 12 * rows * c.vocab_size + (4 + b) * c.vocab_size * c.n_embd  # and the gradient of lm_head's weight
    if rows * c.vocab_size > LARGE_LOGITS:  # a chunk's, its part of that gradient, and the sum of the parts
        logits = chunk_bytes(device, rows, c.vocab_size, dtype) + 8 * c.vocab_size * c.n_embd
    copied = weights // c.n_layer if c.gradient_checkpointing else weights  # copies of a block go with the block
    fixed = 8 * weights + copies * copied + optimizer_state_bytes(model, optimizer_type) + logits
    each = recomputed if c.gradient_checkpointing else kept
    return Estimate(fixed, each * c.block_size, max(0, kept - recomputed) * c.block_size)


def optimizer_state_bytes(model: GPT, optimizer_type: str) -> int:
    """
    Bytes of an optimizer's moments in float32.

    AdamW keeps two numbers a weight; Muon one for each weight of a block's matrices; Adafactor a row and a column for
    a matrix.
    """
    numbers, parameters = 0, dict(model.named_parameters())
    for name, treatment in treatments(model).items():
        p = parameters[name]
        if optimizer_type == "adafactor":
            numbers += sum(p.shape) if p.dim() > 1 else p.numel()
        else:
            numbers += p.numel() * (1 if optimizer_type == "muon" and treatment.orthogonalise else 2)
    return 4 * numbers


def divisors(number: int) -> list[int]:
    """The divisors of a number, the smallest first."""
    return [size for size in range(1, number + 1) if number % size == 0]
