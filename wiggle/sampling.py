"""What sampling needs around GPT.stream: a prompt where none is given, and text that is printed as it is drawn."""

import contextlib
from collections.abc import Iterable

import torch

from model_bio import GPT
from wiggle.tokenizer import Tokenizer, from_identity, stream


def default_prompt(tokenizer: Tokenizer) -> str:
    """A line break; the first character that the tokenizer knows where its text had no line break."""
    if tokenizer.kind == "char" and "\n" not in tokenizer.characters:
        return tokenizer.characters[0]
    return "\n"


def print_as_drawn(steps: Iterable[torch.Tensor], count: int, tokenizer: Tokenizer, every: int = 1) -> torch.Tensor:
    """
    Print the first of B texts as it is drawn -> ids of all texts, (B, count).

    steps: `count` times the texts' next ids, (B, 1). every: steps from one reading of the ids to the next, since each
    waits for the device.
    """
    push, tokens, shown = stream(tokenizer), [], 0
    for token in steps:
        tokens.append(token)
        if len(tokens) % every == 0 or len(tokens) == count:
            first = torch.cat(tokens[shown:], dim=1)[0].tolist()
            print("".join(map(push, first)), end="", flush=True)
            shown = len(tokens)
    print(push())
    return torch.cat(tokens, dim=1)


def print_sample(model: GPT, identity: dict, tokens: int, seed: int) -> None:
    """Print `tokens` tokens of text as they are drawn, as far as anybody reads. identity: the tokenizer's."""
    tokenizer = from_identity(identity)
    device = next(model.parameters()).device
    start = torch.tensor([tokenizer.encode(default_prompt(tokenizer))], device=device)
    generator = torch.Generator(device).manual_seed(seed)
    with contextlib.suppress(OSError):  # a closed pipe ends no run
        print("sample\n")
        print_as_drawn(model.stream(start, tokens, temperature=0.8, generator=generator), tokens, tokenizer)
