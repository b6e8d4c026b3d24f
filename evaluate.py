"""
Judge a model by what others use: tasks of lm-eval, EleutherAI's evaluation harness, or bits a byte of any text.

    python evaluate.py --out_dir=out/quickstart --file=novel.txt
    python evaluate.py --out_dir=out/gpt2 --tasks=hellaswag,lambada_openai,arc_easy       (pip install lm-eval)
    python evaluate.py --out_dir=gpt2 --tasks=my_task --include_path=my_tasks --limit=100

The results are printed, and kept by the names of tasks and files in evaluation.json beside the checkpoint (gpt2: here).

A text is read in windows of block_size tokens. For --file each window after the first begins half a window before the
tokens that it is scored on, so these have at least half a window of context; training's validation loss gives its
windows none, and is higher. A text's first token follows end-of-text, or a line break where the tokenizer has none.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from kernels.decoding import cast_matrices
from model_bio import GPT
from wiggle import checkpoint, configurator, custom_neuron, errors
from wiggle.device import autocast, pick_machine
from wiggle.errors import UserError
from wiggle.evaluation import bits_per_byte
from wiggle.files import read_text, write_json
from wiggle.judgements import RESULTS, metrics_of, read_results
from wiggle.scoring import score_text
from wiggle.tokenizer import Tokenizer


@dataclass
class EvaluateConfig:
    """What to judge, and by what. Raises ValueError for impossible values."""

    # model
    out_dir: str = "out"  # a run's folder (best.pt, else ckpt.pt), a checkpoint file, a folder of export.py, or gpt2
    neuron: str | None = None  # file.py:Name, for a checkpoint with your own neuron; its hash must be the recorded one
    data_dir: str = "data"  # where a nanoGPT checkpoint's meta.pkl is looked for

    # by what
    tasks: str | None = None  # of lm-eval, with commas between: hellaswag,lambada_openai,arc_easy
    include_path: str | None = None  # a folder with .yaml files of your own tasks, as lm-eval takes it
    num_fewshot: int | None = None  # examples shown before each question; None = as many as the task says
    limit: int | None = None  # questions a task, for a try-out; None = all
    file: str | None = None  # a text, whose bits a byte and nats a token are found without lm-eval

    # machine
    device: str = "auto"  # auto (cuda > mps > cpu), cpu, cuda, cuda:1, mps
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: bfloat16 where the card has it

    def __post_init__(self):
        if self.tasks is None and self.file is None:
            raise ValueError("nothing to judge by: name --tasks of lm-eval, or a text by --file")
        for key, low in (("num_fewshot", 0), ("limit", 1)):
            if getattr(self, key) is not None and getattr(self, key) < low:
                raise ValueError(f"{key}={getattr(self, key)} must be at least {low}")


def judge_by_file(config: EvaluateConfig, model: GPT, tokenizer: Tokenizer, device: torch.device) -> dict:
    """How well the model predicts a text -> its nats a token, bits a byte, sizes, and the speed. Prints them."""
    text = read_text(config.file)
    tokens = tokenizer.encode(text)
    if not tokens:
        raise UserError(f"{config.file} is empty: name a text with at least one character")
    start = time.perf_counter()
    nats = -score_text(model, tokenizer, tokens, device) / len(tokens)
    speed = len(tokens) / (time.perf_counter() - start)
    size = len(text.encode())
    bits = bits_per_byte(nats, len(tokens), size)
    print(f"file      {config.file}: {len(tokens):,} tokens, {size:,} bytes")
    print(f"          {nats:.4f} nats a token, {bits:.4f} bits a byte, {speed:,.0f} tokens/s")
    return {
        "nats_per_token": nats,
        "bits_per_byte": bits,
        "tokens": len(tokens),
        "bytes": size,
        "context": model.config.block_size,
        "tokens_per_second": round(speed),
    }


def judge_by_tasks(config: EvaluateConfig, model: GPT, tokenizer: Tokenizer, device: torch.device) -> dict[str, dict]:
    """The metrics of each task by its name. Prints them as a table."""
    try:
        from wiggle.harness import HarnessLM, run_tasks
    except ImportError as error:
        raise UserError(f"--tasks needs lm-eval ({error}): pip install lm-eval") from None
    names = [name.strip() for name in config.tasks.split(",") if name.strip()]
    lm = HarnessLM(model, tokenizer, device)
    found = run_tasks(lm, names, config.include_path, num_fewshot=config.num_fewshot, limit=config.limit)
    print(table(found))
    speed = lm.tokens / max(lm.seconds, 1e-9)
    print(f"speed     {lm.tokens:,} tokens in {lm.seconds:.1f} s, {speed:,.0f} tokens/s")
    return {name: metrics | {"tokens_per_second": round(speed)} for name, metrics in found.items()}


def table(found: dict[str, dict]) -> str:
    """A line for each metric of each task: its value, and its standard error where there is one."""
    rows = [("task", "examples", "shots", "metric", "value")]
    for name, metrics in found.items():
        for _, metric, value, error in metrics_of(name, metrics):
            shown = f"{value:.4f}" + (f" +- {error:.4f}" if error is not None else "")
            rows.append((name, str(metrics["examples"]), str(metrics["num_fewshot"]), metric, shown))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def evaluate(config: EvaluateConfig) -> None:
    """Judge a model, print what was found, and keep it beside the checkpoint. Raises UserError where it cannot."""
    machine = pick_machine(config.device, config.dtype, compile=False)
    neuron = custom_neuron.load_neuron(config.neuron) if config.neuron else None
    model, meta = checkpoint.load_model(config.out_dir, machine.device, neuron)
    source, step = Path(meta["path"]), meta["iter_num"]
    path = (source if source.is_dir() else source.parent) / RESULTS
    results = read_results(path)
    tokenizer = checkpoint.find_tokenizer(model, meta, config.data_dir)
    model.limit_sampling(tokenizer.vocab_size)
    print(f"from      {source} ({meta['origin']}{f', step {step:,}' if step else ''})")
    print(f"model     {model.describe()}, context {model.config.block_size}")
    print(f"device    {machine}")
    cast_matrices(model, machine.dtype)
    of = {"checkpoint": source.name, "iter_num": step, "dtype": str(machine.dtype).removeprefix("torch.")}
    with autocast(machine.device, machine.dtype):
        if config.file is not None:
            results["files"][config.file] = judge_by_file(config, model, tokenizer, machine.device) | of
            write_json(path, results)
        if config.tasks is not None:
            for name, found in judge_by_tasks(config, model, tokenizer, machine.device).items():
                results["tasks"][name] = found | of
            write_json(path, results)
    print(f"saved     {path}")


@errors.script
def main(argv=None):
    evaluate(configurator.read_settings(EvaluateConfig, sys.argv[1:] if argv is None else argv, __doc__))


if __name__ == "__main__":
    main()
