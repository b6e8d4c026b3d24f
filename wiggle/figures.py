"""What wiggle/analysis*.py share: the text that networks are measured on, and arrays on their way into a report."""

import unicodedata
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

MIN_COUNT = 20  # only tokens that occur at least so often are named
NAMED = 6  # tokens in a list of a sentence


class Text(NamedTuple):
    """The text that networks are measured on: N tokens, M of them distinct."""

    idx: Tensor  # (B, T) token ids, B·T = N
    tokens: list[str]  # (M,) the distinct tokens, bytes that are not UTF-8 as \xe2
    labels: dict[str, Tensor]  # "token" (an index of tokens), "class", "position": numbers from 0, (N,) each


def sample_rows(x: Tensor) -> Tensor:
    """(N, F) -> some rows, always the same ones of N: 2**18 numbers or a little more, if there are so many."""
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[: 1 + 2**18 // x.size(1)]]


def to_array(x: Tensor) -> np.ndarray:
    """Any tensor -> its numbers in one dimension, in float32 where its dtype is one that numpy lacks."""
    x = x.detach().flatten().cpu()
    return (x.float() if x.is_floating_point() else x).numpy()


def summarise(value: object) -> object:
    """Figures -> what JSON holds: the distribution of an array, 6 digits of a number."""
    if isinstance(value, dict):
        return {key: summarise(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        quantiles = {f"q{q:02}": np.percentile(value, q) for q in (5, 25, 50, 75, 95)}
        return summarise({"mean": value.mean(), "sd": value.std()} | quantiles)
    return float(f"{value:.6g}") if isinstance(value, (float, np.floating)) else value


def readable(token: str) -> str:
    """A token as one sees it in a line: a space is ␣, and a character that has no shape of its own is escaped."""
    return "".join("␣" if character == " " else _escaped(character) for character in token)


def _escaped(character: str) -> str:
    combines = unicodedata.category(character)[0] == "M"  # it would be drawn upon its neighbour
    shown = character.isprintable() and not combines
    return character if shown else character.encode("unicode_escape").decode("ascii")
