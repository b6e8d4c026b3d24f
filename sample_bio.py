"""
Generate text from a checkpoint, which is all that it takes: the tokenizer is in it.

    python sample_bio.py --out_dir=out/quickstart --start="ROMEO:"
    python sample_bio.py --out_dir=path/to/ckpt.pt --start=FILE:prompt.txt --temperature=0
    python sample_bio.py --init_from=gpt2 --start="The meaning of life is"
"""

import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from kernels.decoding import cast_matrices
from wiggle import checkpoint, configurator, custom_neuron, errors
from wiggle.device import autocast, describe, pick_compile, pick_device, pick_dtype
from wiggle.errors import UserError
from wiggle.telemetry import event_rates
from wiggle.tokenizer import stream

CACHE_BYTES = 2**30  # what the keys and values of the samples that are drawn together may take
GLANCE = 16  # steps between two looks at what a card has made: each waits for it, and leaves it idle for a moment


@dataclass
class SampleConfig:
    """nanoGPT's keys, and top_p and repetition_penalty. Raises ValueError for impossible values."""

    # model
    init_from: str = "resume"  # resume: the checkpoint in out_dir; or gpt2, gpt2-medium, ..., or such a folder
    out_dir: str = "out"  # a run's folder (best.pt, else ckpt.pt), or a checkpoint file
    neuron: str | None = None  # file.py:Name, for a checkpoint with your own neuron; its hash must be the recorded one
    data_dir: str = "data"  # where a nanoGPT checkpoint's meta.pkl is looked for

    # text
    start: str = "\n"  # the prompt, or FILE:path to read it from a file
    num_samples: int = 10  # samples to draw, together: what each becomes depends on their number, too
    max_new_tokens: int = 500  # tokens of each

    # drawing
    temperature: float = 0.8  # 0 = the likeliest token always; 1 = the model's own distribution
    top_k: int | None = 200  # draw from the k likeliest; None = from all
    top_p: float | None = None  # draw from the fewest that hold this much probability
    repetition_penalty: float = 1.0  # above 1: tokens that were seen become less likely
    seed: int = 1337  # of the draws

    # machine
    device: str = "auto"  # auto (cuda > mps > cpu), cpu, cuda, cuda:1, mps
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: bfloat16 where the card has it
    compile: bool | Literal["auto"] = "auto"  # torch.compile for the steps; auto: on a GPU with a working Triton

    def __post_init__(self):
        for key, low in (("num_samples", 1), ("max_new_tokens", 1), ("temperature", 0), ("seed", 0)):
            if not low <= getattr(self, key) < float("inf"):
                raise ValueError(f"{key}={getattr(self, key)} must be at least {low}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} must be at least 1, or None")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must lie above 0 and up to 1")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(f"repetition_penalty={self.repetition_penalty} must be above 0 (1 = none)")


def load(config, device):
    """-> (model, tokenizer); prints where they come from."""
    neuron = custom_neuron.load_neuron(config.neuron) if config.neuron else None
    path = config.out_dir if config.init_from == "resume" else config.init_from
    model, meta = checkpoint.load_model(path, device, neuron)
    print(f"from      {meta['path']} ({meta['origin']}, step {meta['iter_num']}, val loss {meta['best_val_loss']:.4f})")
    return model, checkpoint.find_tokenizer(model, meta, config.data_dir)


def read_prompt(start):
    if not start.startswith("FILE:"):
        return start
    try:
        return Path(start[5:]).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the prompt {start[5:]}: {getattr(error, 'strerror', None) or error}") from None


def batches(model, count, tokens, dtype):
    """Split `count` samples of so many tokens as evenly as their keys and values allow -> sizes of the batches."""
    c = model.config
    sample_bytes = 2 * c.n_layer * c.n_embd * min(tokens, c.block_size) * dtype.itemsize
    parts = math.ceil(count / max(1, CACHE_BYTES // sample_bytes))
    return [count // parts + (part < count % parts) for part in range(parts)]


def warm_up(model, prompts, count, options):
    """Compile the step and record its CUDA graph, in up to `count` tokens, so that the samples' speed is their own."""
    print("compile   ", end="", flush=True)
    start = time.perf_counter()
    try:
        model.generate(prompts, min(count, 4), **options)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # no compiler, or a neuron that cannot be traced
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"torch.compile does not work here ({reason}): go without it, by --compile=False") from None
    print(f"{time.perf_counter() - start:.0f} s")


def decode(steps, count, tokenizer, every):
    """Print the first text as it comes, looking every few steps. steps: `count` times (B, 1) ids -> (B, count)."""
    push, tokens, shown = stream(tokenizer), [], 0
    for token in steps:
        tokens.append(token)
        if len(tokens) % every == 0 or len(tokens) == count:
            first = torch.cat(tokens[shown:], dim=1)[0].tolist()
            print("".join(map(push, first)), end="", flush=True)
            shown = len(tokens)
    print(push())
    return torch.cat(tokens, dim=1)


def sample(config):
    """Print num_samples continuations of the prompt, then what they cost and how many neurons fired."""
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    compiled, how = pick_compile(config.compile, device)
    model, tokenizer = load(config, device)
    text = read_prompt(config.start)
    ids = tokenizer.encode(text, special=True)
    if not ids:
        raise UserError("the prompt is empty: give --start at least one character")
    if max(ids) >= model.config.vocab_size:
        raise UserError(f"token id {max(ids)} is past the model's vocabulary of {model.config.vocab_size}")
    model.limit_sampling(tokenizer.vocab_size)
    print(f"model     {model.describe()}, context {model.config.block_size}")
    print(f"device    {describe(device, dtype, how)}")
    cast_matrices(model, dtype)
    options = {"temperature": config.temperature, "top_k": config.top_k, "top_p": config.top_p}
    options |= {"repetition_penalty": config.repetition_penalty, "compiled": compiled}
    generator = torch.Generator(device).manual_seed(config.seed)
    sizes = batches(model, config.num_samples, len(ids) + config.max_new_tokens, dtype)
    seconds, fired = 0.0, []
    with autocast(device, dtype):
        for size, before in zip(sizes, [0, *sizes], strict=False):
            prompts = torch.tensor([ids] * size, device=device)
            if size != before:
                options["cache"] = model.new_cache(size, len(ids) + config.max_new_tokens)
                if compiled:
                    warm_up(model, prompts, config.max_new_tokens, options)
            print("-" * 80)
            print(text, end="", flush=True)
            start = time.perf_counter()
            steps = model.stream(prompts, config.max_new_tokens, generator=generator, **options)
            new = decode(steps, config.max_new_tokens, tokenizer, 1 if device.type == "cpu" else GLANCE)
            seconds += time.perf_counter() - start
            for row in new[1:].tolist():
                print("-" * 80)
                print(text + tokenizer.decode(row))
            rates = event_rates(model, torch.cat([prompts, new], dim=1)[:, -model.config.block_size :])
            fired += [] if rates is None else [rates * size / config.num_samples]
    print("-" * 80)
    together = f", {sizes[0]} samples at a time" if sizes[0] > 1 else ""
    print(f"speed     {config.num_samples * config.max_new_tokens / seconds:.0f} tokens/s{together}")
    if fired:
        rates = torch.stack(fired).sum(0)
        layers = ", ".join(f"{100 * rate:.0f}" for rate in rates.tolist())
        print(f"events    {100 * rates.mean():.0f} % of hidden features fired on the samples (by layer: {layers} %)")


@errors.script
def main(argv=None):
    sample(configurator.read_settings(SampleConfig, sys.argv[1:] if argv is None else argv, __doc__))


if __name__ == "__main__":
    main()
