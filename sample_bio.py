"""
Generate text from a checkpoint, which is all that it takes: the tokenizer is in it.

    python sample_bio.py --out_dir=out/quickstart --start="ROMEO:"
    python sample_bio.py --out_dir=path/to/ckpt.pt --start=FILE:prompt.txt --temperature=0
    python sample_bio.py --init_from=gpt2 --start="The meaning of life is"
    python sample_bio.py --out_dir=out/chat --chat          (a conversation with a model of config/config_chat.py)
"""

import math
import sys
import time
from dataclasses import dataclass
from typing import Literal

import torch

from kernels.decoding import cast_matrices
from model_bio import GPT
from wiggle import checkpoint, configurator, custom_neuron, errors
from wiggle.chat import Chat, converse
from wiggle.device import Machine, autocast, pick_compile, pick_machine
from wiggle.errors import UserError
from wiggle.files import read_text
from wiggle.sampling import default_prompt, print_as_drawn
from wiggle.telemetry import event_rates
from wiggle.tokenizer import Tokenizer

COMPILE_FROM = 8192  # steps of generation from which compile=auto compiles, which takes up to a minute
CACHE_BYTES = 2**30  # memory for the keys and values of samples that are drawn together
READ_EVERY = 16  # steps on a card between two readings of its ids: each waits for the card, and leaves it idle


@dataclass
class SampleConfig:
    """nanoGPT's keys, and top_p and repetition_penalty. Raises ValueError for impossible values."""

    # model
    init_from: str = "resume"  # resume: the checkpoint in out_dir; or gpt2, gpt2-medium, ..., or such a folder
    out_dir: str = "out"  # a run's folder (best.pt, else ckpt.pt), or a checkpoint file
    neuron: str | None = None  # file.py:Name, for a checkpoint with your own neuron; its hash must be the recorded one
    data_dir: str = "data"  # where a nanoGPT checkpoint's meta.pkl is looked for

    # text
    chat: bool = False  # talk with a model that was fine-tuned on conversations; /help lists the commands
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
    compile: bool | Literal["auto"] = "auto"  # torch.compile for the steps; auto: for long jobs on a GPU with Triton

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


def load_model_and_tokenizer(config: SampleConfig, device: torch.device) -> tuple[GPT, Tokenizer]:
    """What init_from or out_dir names, on the device. Prints where it comes from."""
    neuron = custom_neuron.load_neuron(config.neuron) if config.neuron else None
    path = config.out_dir if config.init_from == "resume" else config.init_from
    model, meta = checkpoint.load_model(path, device, neuron)
    loss = meta["best_val_loss"]
    trained = f", step {meta['iter_num']}, val loss {loss:.4f}" if math.isfinite(loss) else ""
    print(f"from      {meta['path']} ({meta['origin']}{trained})")
    tokenizer = checkpoint.find_tokenizer(model, meta, config.data_dir)
    model.limit_sampling(tokenizer.vocab_size)
    return model, tokenizer


def read_prompt(start: str, model: GPT, tokenizer: Tokenizer) -> tuple[str, list[int]]:
    """The prompt that `start` is or names -> (text, ids). Raises UserError for one that the model cannot continue."""
    text = read_text(start[5:]) if start.startswith("FILE:") else start
    if text == SampleConfig.start:
        text = default_prompt(tokenizer)
    ids = tokenizer.encode(text, special=True)
    if not ids:
        raise UserError("the prompt is empty: give --start at least one character")
    if max(ids) >= model.config.vocab_size:
        raise UserError(f"token id {max(ids)} is past the model's vocabulary of {model.config.vocab_size}")
    return text, ids


def batch_sizes(model: GPT, count: int, tokens: int, dtype: torch.dtype) -> list[int]:
    """Split `count` samples of `tokens` tokens each as evenly as the memory for their keys and values allows."""
    c = model.config
    sample_bytes = 2 * c.n_layer * c.n_embd * min(tokens, c.block_size) * dtype.itemsize
    parts = math.ceil(count / max(1, CACHE_BYTES // sample_bytes))
    return [count // parts + (part < count % parts) for part in range(parts)]


def with_compiler(machine: Machine, setting: bool | str, steps: int) -> Machine:
    """The machine, which compiles as the setting says; 'auto' not where so few steps save less than compiling takes."""
    if setting == "auto" and machine.device.type == "cuda" and steps < COMPILE_FROM:
        return machine._replace(how=f"eager (compile=auto is for jobs of {COMPILE_FROM:,} steps and more)")
    compiled, how = pick_compile(setting, machine.device)
    return machine._replace(compiled=compiled, how=how)


def warm_up(model: GPT, prompts: torch.Tensor, count: int, options: dict) -> None:
    """Compile the step and record its CUDA graph, by drawing up to 4 of `count` tokens, before the clock starts."""
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


def draw_batch(
    model: GPT, prompts: torch.Tensor, text: str, tokenizer: Tokenizer, count: int, options: dict
) -> tuple[torch.Tensor, float]:
    """Print one continuation for each row of prompts (B, T), the first as it is drawn -> (ids (B, count), seconds)."""
    print("-" * 80)
    print(text, end="", flush=True)
    start = time.perf_counter()
    every = 1 if prompts.device.type == "cpu" else READ_EVERY
    new = print_as_drawn(model.stream(prompts, count, **options), count, tokenizer, every)
    seconds = time.perf_counter() - start
    for row in new[1:].tolist():
        print("-" * 80)
        print(text + tokenizer.decode(row))
    return new, seconds


def drawing_options(config: SampleConfig, device: torch.device) -> dict:
    """How the settings draw tokens, as options of GPT.stream."""
    keys = ("temperature", "top_k", "top_p", "repetition_penalty")
    return {key: getattr(config, key) for key in keys} | {"generator": torch.Generator(device).manual_seed(config.seed)}


def what_was_read(model: GPT) -> str:
    """Of the MLPs' weights, a token, where steps read what fires alone; else nothing."""
    steps = [getattr(block.mlp, "steps", None) for block in model.transformer.h]
    if None in steps or not all(own.tokens for own in steps):
        return ""
    read, dense = sum(own.bytes_read() for own in steps), sum(own.bytes_dense() for own in steps)
    return f", {read / 1e6:.1f} of the MLPs' {dense / 1e6:.1f} MB read a token"


def draw_samples(
    config: SampleConfig, machine: Machine, model: GPT, tokenizer: Tokenizer, text: str, ids: list[int]
) -> None:
    """Print num_samples continuations of the prompt, then what they cost and how many neurons fired."""
    options = drawing_options(config, machine.device) | {"compiled": machine.compiled}
    generator = options.pop("generator")
    count, length = config.max_new_tokens, len(ids) + config.max_new_tokens
    sizes = batch_sizes(model, config.num_samples, length, machine.dtype)
    seconds, rates = 0.0, 0.0
    for size, before in zip(sizes, [0, *sizes], strict=False):
        prompts = torch.tensor([ids] * size, device=machine.device)
        if size != before:
            options["cache"] = model.new_cache(size, length)
            if machine.compiled:
                warm_up(model, prompts, count, options)
        new, spent = draw_batch(model, prompts, text, tokenizer, count, options | {"generator": generator})
        seconds += spent
        found = event_rates(model, torch.cat([prompts, new], dim=1)[:, -model.config.block_size :])
        rates = None if found is None else rates + found * size / config.num_samples
    print("-" * 80)
    together = f", {sizes[0]} samples at a time" if sizes[0] > 1 else ""
    print(f"speed     {config.num_samples * count / seconds:.0f} tokens/s{together}{what_was_read(model)}")
    if rates is not None:
        layers = ", ".join(f"{100 * rate:.0f}" for rate in rates.tolist())
        print(f"events    {100 * rates.mean():.0f} % of hidden features fired on the samples (by layer: {layers} %)")


def sample(config: SampleConfig) -> None:
    """Print what a checkpoint makes of a prompt. Raises UserError for what can be mended."""
    machine = pick_machine(config.device, config.dtype, False)
    model, tokenizer = load_model_and_tokenizer(config, machine.device)
    if config.chat:
        chat = Chat(model, tokenizer, config.max_new_tokens, drawing_options(config, machine.device))
        cast_matrices(model, machine.dtype)
        with autocast(machine.device, machine.dtype):
            converse(chat)
        return
    text, ids = read_prompt(config.start, model, tokenizer)
    parts = batch_sizes(model, config.num_samples, len(ids) + config.max_new_tokens, machine.dtype)
    machine = with_compiler(machine, config.compile, len(parts) * config.max_new_tokens)
    print(f"model     {model.describe()}, context {model.config.block_size}")
    print(f"device    {machine}")
    cast_matrices(model, machine.dtype)
    with autocast(machine.device, machine.dtype):
        draw_samples(config, machine, model, tokenizer, text, ids)


@errors.script
def main(argv=None):
    sample(configurator.read_settings(SampleConfig, sys.argv[1:] if argv is None else argv, __doc__))


if __name__ == "__main__":
    main()
