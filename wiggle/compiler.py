"""Whether torch.compile differentiates the model as eager mode does, which not every version of torch does."""

import copy
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from model_bio import GPT, Block
from wiggle.device import Machine, autocast

LARGEST_GAP = 0.1  # relative, of a gradient's norm: rounding in bfloat16 makes some 0.01, a lost gradient 1
TOKENS = 64  # of each of the two sequences that are compared


def compiled_or_eager(model: GPT, machine: Machine, say: Callable[[str], None]) -> Machine:
    """
    The machine, made eager where the compiled gradients of one of the model's blocks are not those of eager mode.

    torch 2.11 compiled some functions to zero gradients in float32: such a run goes on, and learns nothing. Says in a
    line what was found. A model that cannot be compiled at all is trained eagerly, too. Forgets what was compiled in
    this process before: Dynamo keeps the code of few models, and runs further ones eagerly.
    """
    torch.compiler.reset()
    start = time.perf_counter()
    try:
        name, gap = largest_gradient_gap(model, machine)
        trouble = (
            f"the compiled gradient of {name} is off by {100 * gap:.0f} % of its norm" if gap > LARGEST_GAP else None
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a neuron that cannot be traced, or anything of Dynamo, Inductor and Triton
        words = (str(error).strip().splitlines() or [""])[0]
        trouble = f"{type(error).__name__}: {words[:120]}"
    finally:
        torch.compiler.reset()  # the block's code would count against the number of functions that Dynamo keeps
    if trouble is None:
        say(f"compile   a block's gradients are those of eager mode ({time.perf_counter() - start:.0f} s)")
        return machine
    say(f"warning   torch {torch.__version__} does not compile this model rightly ({trouble}): going on in eager mode")
    return machine._replace(compiled=False, how="eager (torch does not compile this model rightly)")


def largest_gradient_gap(model: GPT, machine: Machine) -> tuple[str, float]:
    """
    The gradient of the first block that differs most between eager mode and torch.compile -> (its name, the gap).

    The gap is the norm of the difference, relative to the gradient's own norm, or to a thousandth of the largest one
    where that is more: rounding is all that a vanishing gradient consists of.
    """
    block = copy.deepcopy(model.transformer.h[0]).to(machine.device).eval()  # a copy, and without dropout's draws
    eager = block_gradients(block, block, model, machine)
    compiled = block_gradients(block, torch.compile(block), model, machine)
    least = 1e-3 * max(gradient.norm().item() for gradient in eager.values())
    gaps = {
        name: (compiled[name] - gradient).norm().item() / max(gradient.norm().item(), least, 1e-30)
        for name, gradient in eager.items()
    }
    name = max(gaps, key=lambda name: gaps[name] if gaps[name] == gaps[name] else float("inf"))  # NaN is the worst
    return name, gaps[name] if gaps[name] == gaps[name] else float("inf")


def block_gradients(block: Block, called: nn.Module, model: GPT, machine: Machine) -> dict[str, Tensor]:
    """The gradients of a block's input and parameters on fixed tokens, by name; called: the block, compiled or not."""
    config = model.config
    T = min(config.block_size, TOKENS)
    draw = torch.Generator().manual_seed(0)
    x, grad = torch.randn(2, 2, T, config.n_embd, generator=draw).to(machine.device)  # (B, T, C) each
    rope = (model.rope_cos[:T], model.rope_sin[:T]) if config.position == "rope" else None
    block.zero_grad(set_to_none=True)
    x.requires_grad_()
    with autocast(machine.device, machine.dtype):
        y = called(x, rope)
    y.backward(grad.to(y.dtype))
    named = {name: parameter for name, parameter in block.named_parameters() if parameter.requires_grad}
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad.float() for name, p in named.items()}
    return found | {"the input": x.grad.float()}
