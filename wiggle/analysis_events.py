"""
Who is active when: the events of a gate, or, where an activation gives exact zeros, the hidden units that are not 0.

Shapes: N tokens of text, S of them in the sentence that is shown. An MLP has C inputs and F hidden units.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernels import event_mlp
from kernels.neurons import HardEventGate, SparseEventGate
from model_bio import GPT, MLP, BioMLP
from wiggle.analysis_activation import hidden_units
from wiggle.figures import MIN_COUNT, Text, to_array

LONGEST = 64  # tokens of the sentence that is shown
STEPS = 256  # tokens, at most, whose generation is counted
SAME = 0.005  # difference of rates within which all tokens count as alike
ENDS = tuple(".!?。！？")  # what a sentence ends with


class Events(NamedTuple):
    """Which hidden units are active on one sentence."""

    tokens: list[str]  # the sentence, S tokens
    active: np.ndarray  # (F, S), in the order of the units' rates over the whole text, highest first


def has_gate(mlp: BioMLP | MLP) -> bool:
    """Whether events are those of a gate, and not outputs other than 0."""
    return getattr(mlp, "sparse_gate", None) is not None


def active_units(mlp: BioMLP | MLP, x: Tensor) -> Tensor:
    """x: (n, C), inputs of the MLP -> which hidden units fire, or give another output than 0, (n, F) bool."""
    return mlp.fires(x) if has_gate(mlp) else hidden_units(mlp, x)[1] != 0


def measure_events(mlp: BioMLP | MLP, x: Tensor, text: Text) -> tuple[dict, Events]:
    """x: (N, C), the inputs of the MLP -> figures for analysis.json, and a sentence to draw."""
    active = torch.cat([active_units(mlp, part).cpu() for part in x.split(4096)])  # (N, F)
    by_token, by_unit = active.float().mean(1), active.float().mean(0)
    sentence = find_sentence(text)
    tokens = [text.tokens[i] for i in text.labels["token"][sentence]]
    figures = {
        "silence": "gate" if has_gate(mlp) else "zeros",  # what a unit that is not active does: not fire, or give 0
        "event_rate": to_array(by_token),  # (N,), the share of the units that are active
        "unit_rate": to_array(by_unit),  # (F,), the share of the tokens on which a unit is active
        "silent": (by_unit == 0).float().mean().item(),  # share of the units that never are
        "always_on": (by_unit == 1).float().mean().item(),
        "events": events_by_token(by_token, text),
    }
    screened = screened_bytes(mlp, x)
    if screened is not None:
        figures["screened_bytes"] = screened  # of weights a token, in generation
    return figures, Events(tokens, active[sentence][:, by_unit.argsort(descending=True)].T.numpy())


def events_by_token(rate: Tensor, text: Text) -> list[dict]:
    """rate: (N,), the share of units that are active -> the mean of each token that occurs often, highest first."""
    token = text.labels["token"]
    count = token.bincount()
    mean = torch.zeros(len(text.tokens)).index_add_(0, token, rate) / count  # (M,)
    order = [i for i in mean.argsort(descending=True).tolist() if count[i] >= MIN_COUNT]
    return [{"token": text.tokens[i], "count": count[i].item(), "rate": round(mean[i].item(), 4)} for i in order]


def find_sentence(text: Text) -> slice:
    """
    The longest sentence of the text, of LONGEST tokens at most, that lies in one window -> its place in 0..N.

    Where none does, as in a text without full stops, the first tokens stand for it.
    """
    found, length = slice(0, min(LONGEST, text.idx.size(-1))), 0
    begin = None  # of the sentence that is being read; None where a window begins in the middle of one
    for place, i in enumerate(text.labels["token"].tolist()):
        token = text.tokens[i]
        if place % text.idx.size(-1) == 0:
            begin = None
        if begin == place and token.isspace():
            begin = place + 1
        if any(end in token for end in ENDS):
            if begin is not None and length < place + 1 - begin <= LONGEST:
                found, length = slice(begin, place + 1), place + 1 - begin
            begin = place + 1
    return found


def removable(mlp: BioMLP | MLP) -> bool:
    """Whether a silent unit adds but a constant to the output; a soft gate's, whose strength is never 0, adds more."""
    return not isinstance(getattr(mlp, "sparse_gate", None), SparseEventGate)


def screened_bytes(mlp: BioMLP | MLP, x: Tensor) -> float | None:
    """
    x: (n, C), inputs of the MLP -> the bytes of weights a token that generation reads, in the mean over some of them.

    With hard events it screens c_fc through an 8-bit copy, where a kernel does that (kernels/event_mlp.py); else None.
    """
    if not isinstance(getattr(mlp, "sparse_gate", None), HardEventGate):
        return None
    steps = event_mlp.prepare(mlp.c_fc, mlp.c_proj, mlp.oscillating, mlp.sparse_gate)
    if steps is None:
        return None
    for token in x[:: math.ceil(len(x) / STEPS)]:
        steps(token)
    return steps.bytes_read()


def mlp_work(model: GPT, layers: list[dict]) -> dict[str, float]:
    """
    What the MLPs' matrices cost a token, read one token at a time, and what is left of it by the events.

    layers: the summary of each layer's figures. Each weight that is read is one multiply-add. c_fc is read whole, for
    it tells which units are active; of c_proj the rows of silent units are left out where these are removable.
    bytes_screened: what generation reads with c_fc screened, where it does so.
    """
    mlps = [block.mlp for block in model.transformer.h]
    whole = sum(mlp.c_fc.weight.numel() + mlp.c_proj.weight.numel() for mlp in mlps)
    silent = [(1 - layer["event_rate"]["mean"]) if "event_rate" in layer else 0.0 for layer in layers]
    left_out = [share * removable(mlp) * mlp.c_proj.weight.numel() for share, mlp in zip(silent, mlps, strict=True)]
    left, size = whole - round(sum(left_out)), mlps[0].c_fc.weight.element_size()
    work = {"bytes": size * whole, "multiply_adds": whole, "bytes_left": size * left, "multiply_adds_left": left}
    if all("screened_bytes" in layer for layer in layers):
        work["bytes_screened"] = round(sum(layer["screened_bytes"] for layer in layers))
    return work
