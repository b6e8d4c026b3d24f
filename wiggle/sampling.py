"""What sampling needs around GPT.stream: a prompt where none is given, and text that is printed as it is drawn."""

from collections.abc import Iterable

import torch

from wiggle.tokenizer import Tokenizer, stream


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
