"""
How likely a model finds given text, and what it writes behind given prompts, in batches: what benchmarks ask of it.

Sequences are lists of token ids. A window is what the model reads at once, at most block_size tokens.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch.nn import functional as F

from kernels.decoding import pick_tokens
from model_bio import GPT
from wiggle.sampling import default_prompt
from wiggle.tokenizer import END_OF_TEXT, Tokenizer

TOKENS_AT_ONCE = 8192  # in a batch of windows
WINDOWS_AT_ONCE = 4096  # of a long text, held as lists of ids
LOGITS_AT_ONCE = 2**26  # numbers in a batch's logits: 256 MB in float32


class Window(NamedTuple):
    """A model reads `tokens` and is scored on the last `scored` of the tokens that follow each: `targets`."""

    tokens: list[int]
    targets: list[int]  # as many as tokens, each one on
    scored: int


class Score(NamedTuple):
    """The log-probability of a window's scored tokens, in nats, and whether each was the likeliest."""

    log_probability: float
    greedy: bool


def first_context(tokenizer: Tokenizer) -> int:
    """The id before a text's first token: end-of-text, or a line break where the tokenizer has no end-of-text."""
    return tokenizer.encode(END_OF_TEXT if tokenizer.kind == "gpt2" else default_prompt(tokenizer), special=True)[0]


def windows(context: list[int], tokens: list[int], size: int, overlap: int) -> Iterator[Window]:
    """
    Cut `tokens`, which follow `context`, into windows of at most `size` that score each token once.

    context: at least one token, from which as much is read as the first window has room for. overlap: tokens, 1 to
    size, that a later window reads before the first one that it scores.
    """
    text, end = context + tokens, len(context)
    while end < len(text):
        scored = min(size if end == len(context) else size - overlap + 1, len(text) - end)
        end += scored
        start = max(0, end - 1 - size)
        yield Window(text[start : end - 1], text[start + 1 : end], scored)


@torch.no_grad()
def score(model: GPT, items: list[Window], device: torch.device) -> list[Score]:
    """Score windows, whatever their lengths, in batches of like length. The model must be in eval mode."""
    order = sorted(range(len(items)), key=lambda i: -len(items[i].tokens))
    found: list[Score | None] = [None] * len(items)
    first = 0
    while first < len(order):
        length = len(items[order[first]].tokens)
        size = max(1, min(TOKENS_AT_ONCE // length, LOGITS_AT_ONCE // (length * model.config.vocab_size)))
        batch = order[first : first + size]
        for i, result in zip(batch, score_batch(model, [items[i] for i in batch], device), strict=True):
            found[i] = result
        first += size
    return found


def score_batch(model: GPT, items: list[Window], device: torch.device) -> list[Score]:
    """One pass over windows that are padded behind, which no token before can see."""
    length = max(len(item.tokens) for item in items)
    padded = [[part + [0] * (length - len(part)) for part in (item.tokens, item.targets)] for item in items]
    x, y = torch.tensor(padded, device=device).unbind(1)  # (B, T)
    place = torch.arange(length, device=device)
    ends = torch.tensor([len(item.tokens) for item in items], device=device)[:, None]
    starts = ends - torch.tensor([item.scored for item in items], device=device)[:, None]
    row, column = ((place >= starts) & (place < ends)).nonzero(as_tuple=True)  # the N scored places of all windows
    logits = model.lm_head(model.hidden(x)[row, column]).float()  # (N, V)
    targets = y[row, column]
    losses = F.cross_entropy(logits, targets, reduction="none").cpu().double()
    likeliest = (logits.argmax(-1) == targets).cpu()
    counts = [item.scored for item in items]
    pairs = zip(losses.split(counts), likeliest.split(counts), strict=True)
    return [Score(-part.sum().item(), bool(hits.all())) for part, hits in pairs]


def score_text(model: GPT, tokenizer: Tokenizer, tokens: list[int], device: torch.device) -> float:
    """The log-probability of a whole text, in nats; each window after the first has half of itself as context."""
    size, total = model.config.block_size, 0.0
    cut = windows([first_context(tokenizer)], tokens, size, overlap=max(1, size // 2))
    while some := list(itertools.islice(cut, WINDOWS_AT_ONCE)):
        total += sum(result.log_probability for result in score(model, some, device))
    return total


class Sampling(NamedTuple):
    """How the next token is picked: greedily at temperature 0; top_k and top_p as in GPT.stream."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None


@torch.no_grad()
def continue_texts(
    model: GPT,
    prompts: list[list[int]],
    count: int,
    sampling: Sampling,
    is_over: list[Callable[[int], bool]],
    device: torch.device,
) -> list[list[int]]:
    """
    Continue prompts of 1 to block_size tokens, each by up to `count`, together on one cache of keys and values.

    All texts are read up to the shortest prompt's end at once, and then grow by a token a step: a longer prompt's own,
    or the one that is picked. So no text needs padding. is_over: of each text, says whether it ends with a new token.
    When the context is full, its oldest half is dropped, as in GPT.stream. The model must be in eval mode.
    """
    lengths, size = [len(prompt) for prompt in prompts], model.config.block_size
    total = max(lengths) + count
    text = torch.tensor([prompt + [0] * (total - len(prompt)) for prompt in prompts], device=device)  # (B, total)
    cache = model.new_cache(len(prompts), total)
    new: list[list[int]] = [[] for _ in prompts]
    growing = set(range(len(prompts)))
    start = read = 0  # of the context, and of what the cache lacks
    for end in range(min(lengths), total):
        if end - start > size:
            start += (size + 1) // 2
            read = start
        x = model.hidden(text[:, read:end], cache, read - start)[:, -1]  # (B, C)
        read = end
        rows = [i for i in range(len(prompts)) if i in growing and lengths[i] <= end]
        if rows:
            logits = model.lm_head(x[rows]).float()[:, : model.sampled_vocab]
            text[rows, end] = picked = pick_tokens(logits, *sampling, generator=None)[:, 0]
            for i, token in zip(rows, picked.tolist(), strict=True):
                new[i].append(token)
                if is_over[i](token) or len(new[i]) == count:
                    growing.remove(i)
        if not growing:
            break
    return new
