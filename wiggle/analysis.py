"""
What the MLPs of a GPT learned, measured on a text: oscillating neurons with their event gate, or dendritic units.

Shapes: N tokens of text, M of them distinct. An MLP has C inputs, F neurons or units, and K branches a unit.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.module import register_module_forward_pre_hook

from model_bio import GPT, MLP, BioMLP, DendriticMLP, OscillatingNeuron, OwnMLP
from wiggle.errors import UserError

LINEAR = 0.1  # |ω| below which a neuron counts as linearised: over usual inputs its sine does not bend
SHUFFLES = 10  # shuffles of the labels that estimate the bias of a mutual information
MIN_COUNT = 20  # only tokens that occur at least so often are named
NAMED = 6  # tokens in a list


class Text(NamedTuple):
    """The text that networks are measured on."""

    idx: Tensor  # (B, T) token ids, B·T = N
    tokens: list[str]  # (M,) the distinct tokens
    labels: dict[str, Tensor]  # "token" (an index of tokens), "class", "position": numbers from 0, (N,) each


class State(NamedTuple):
    """What was measured of one layer of one network."""

    figures: dict  # what analysis.json reports, with an array where that has a distribution
    neurons: dict[str, tuple[OscillatingNeuron, Tensor]]  # by name in the MLP, with some of its inputs, (some, F)


@torch.no_grad()
def measure_networks(before: GPT, now: GPT, text: Text) -> list[dict[str, State]]:
    """
    Measure two networks of one shape, each on the inputs of its own layers -> by layer {"before": ..., "now": ...}.

    Of dendritic networks also "mixed": the branches of `before` on the inputs that the layers of `now` get. Raises
    UserError where activations are not finite, or no oscillating neuron is used.
    """
    sources = {"before": (before, before), "now": (now, now)}  # state: (network that is measured, whose inputs it gets)
    measure = measure_oscillations
    if now.config.mlp == "dendritic":
        sources = {"before": (before, before), "mixed": (before, now), "now": (now, now)}
        measure = measure_dendrites
    layers = [{} for _ in now.transformer.h]
    for state, (network, source) in sources.items():
        inputs = mlp_inputs(source, text.idx)
        for layer, block, x in zip(layers, network.transformer.h, inputs, strict=True):
            layer[state] = measure(block.mlp, x, text)
    for layer in layers:
        for name in layer["now"].neurons:
            add_movement(layer["before"].figures["neurons"][name], layer["now"].figures["neurons"][name])
    return layers


def mlp_inputs(model: GPT, idx: Tensor) -> list[Tensor]:
    """idx: (B, T) -> what the MLP of each layer is given, (N, C). Reads some 4,096 tokens at a time."""
    with record_inputs(block.mlp for block in model.transformer.h) as inputs:
        for part in idx.split(max(1, 4096 // idx.size(1))):
            if not model.hidden(part.to(model.lm_head.weight.device)).isfinite().all():
                raise UserError("the model's activations are not finite on this text: its weights are too large")
    return [torch.cat(parts) for parts in inputs.values()]


@contextlib.contextmanager
def record_inputs(modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, list[Tensor]]]:
    """While this context lasts, each call of one of the modules appends its input, (N, features), to its list."""
    inputs = {module: [] for module in modules}

    def record(module, arguments):
        if module in inputs:
            inputs[module].append(arguments[0].flatten(0, -2))

    with register_module_forward_pre_hook(record):
        yield inputs


def measure_oscillations(mlp: BioMLP | MLP | OwnMLP, x: Tensor, text: Text) -> State:
    """x: (N, C), the inputs of an MLP that holds an OscillatingNeuron."""
    neurons = {name: module for name, module in mlp.named_modules() if isinstance(module, OscillatingNeuron)}
    gate = getattr(mlp, "sparse_gate", None)
    activation = mlp.oscillating if isinstance(mlp, BioMLP) else mlp.neuron
    given = x[None] if isinstance(mlp, OwnMLP) else mlp.c_fc(x)  # a module in the MLP's place takes (B, T, C)
    with record_inputs(neurons.values()) as inputs:  # part by part: BioMLP.forward fuses them into one kernel
        y = activation(given)  # (N, F)
        if gate is not None:
            gate(y)
    inputs = {name: torch.cat(inputs[neuron]).float() for name, neuron in neurons.items() if inputs[neuron]}
    if not inputs:
        raise UserError("the OscillatingNeuron in this model is never called, so there is nothing to analyse")
    figures = {"neurons": {name: oscillation_figures(neurons[name], x) for name, x in inputs.items()}}
    if gate is not None:
        rate = (gate.voltage(y) > gate.threshold).float().mean(-1).cpu()  # (N,), the share of features that fire
        figures |= {"event_rate": rate.numpy(), "events": events_by_token(rate, text)}
    return State(figures, {name: (neurons[name], sample_rows(x)) for name, x in inputs.items()})


def oscillation_figures(neuron: OscillatingNeuron, x: Tensor) -> dict[str, np.ndarray | float]:
    """x: (N, F), the neuron's inputs in float32."""
    phase = (neuron.omega * x + neuron.phi).abs()
    omega = to_array(neuron.omega)
    return {
        "omega": omega,  # (F,), radians a unit of x
        "phi": to_array(neuron.phi),  # (F,), radians
        "abs_x": to_array(sample_rows(x).abs()),
        "abs_phase": to_array(sample_rows(phase)),  # |ωx + φ|, radians
        "beyond_maximum": to_array((phase > math.pi / 2).float().mean(0)),  # (F,), share of a neuron's activations
        "linearised": np.mean(np.abs(omega) < LINEAR),  # share of the neurons
    }


def add_movement(before: dict, now: dict) -> None:
    """Add to a neuron's figures how far ω and φ moved from those before, and how well they still agree with them."""
    for key in ("omega", "phi"):
        correlation = np.corrcoef(before[key], now[key])[0, 1]
        now[f"{key}_moved"] = {"mean_abs": abs(now[key] - before[key]).mean(), "correlation": correlation}


def events_by_token(rate: Tensor, text: Text) -> list[dict]:
    """rate: (N,), the share of features that fire -> the mean rate of each token that occurs often, highest first."""
    token = text.labels["token"]
    count = token.bincount()
    mean = torch.zeros(len(text.tokens)).index_add_(0, token, rate) / count  # (M,)
    order = [i for i in mean.argsort(descending=True).tolist() if count[i] >= MIN_COUNT]
    return [{"token": text.tokens[i], "count": count[i].item(), "rate": round(mean[i].item(), 4)} for i in order]


def measure_dendrites(mlp: DendriticMLP, x: Tensor, text: Text) -> State:
    """x: (N, C), the inputs of the MLP."""
    winner = mlp.compete(x)[1].argmax(-2)  # (N, F)
    wins = functional.one_hot(winner, mlp.branches).permute(2, 0, 1).float().contiguous()  # (K, N, F)
    usage = wins.mean(1)  # (K, F)
    spent = entropy(usage, 0)  # (F,)
    generator = torch.Generator().manual_seed(0)
    told = {name: information_figures(wins, label, generator) for name, label in text.labels.items()}
    weights = functional.normalize(mlp.c_fc.weight.unflatten(0, (mlp.branches, mlp.hidden)), dim=-1)  # (K, F, C)
    pairs = [(weights[i] * weights[j]).sum(-1) for i in range(mlp.branches) for j in range(i)]
    figures = {
        "effective_branches": to_array((spent * math.log(2)).exp()),
        "winner_entropy": to_array(spent),  # (F,), bits
        "cosine": to_array(torch.cat(pairs)),  # of the weights of each two branches of a unit
        "usage": to_array(usage),  # (K·F,), share of tokens on which a branch wins
        "beta": to_array(mlp.log_beta.exp()),
        "usage_by_branch": usage.mean(1).tolist(),
        "dead": (usage < 0.001).float().mean().item(),  # share of the branches that win on under 0.1 % of tokens
        "information": told,
        "units": telling_units(wins, told["token"]["bits"], spent, text),
    }
    return State(figures, {})


def information_figures(wins: Tensor, label: Tensor, generator: torch.Generator) -> dict[str, np.ndarray | float]:
    """
    The mutual information of each unit's winner with a label, less what shuffled labels seem to tell.

    wins: (K, N, F), label: (N,). A finite sample biases the estimate upwards (Miller, 1955): by that much.
    """
    orders = [torch.randperm(len(label), generator=generator) for _ in range(SHUFFLES)]
    chance = torch.stack([information(wins, label[order])[0] for order in orders])  # (SHUFFLES, F)
    bits = information(wins, label)[0] - chance.mean(0)  # (F,)
    share = bits.mean() / entropy(wins.mean(1), 0).mean()
    return {"bits": to_array(bits), "shuffled": to_array(chance.mean(1)), "share_of_entropy": share.item()}


def telling_units(wins: Tensor, bits: np.ndarray, spent: Tensor, text: Text) -> list[dict]:
    """The three units with most bits about the token, and the tokens that each of their branches wins most often."""
    counts = information(wins, text.labels["token"])[1]  # (K, M, F)
    share = torch.where(counts.sum(0) >= MIN_COUNT, counts / counts.sum(0), 0.0).cpu()  # P(branch | token)
    units = []
    for i in bits.argsort()[::-1][:3].tolist():
        best = [branch.topk(min(NAMED, len(branch))) for branch in share[..., i]]
        tokens = [[(text.tokens[t], round(v.item(), 4)) for v, t in zip(*top, strict=True) if v > 0.01] for top in best]
        units.append({"unit": i, "bits": float(bits[i]), "entropy": spent[i].item(), "tokens": tokens})
    return units


def entropy(counts: Tensor, dim: int) -> Tensor:
    """Counts or shares -> their entropy over `dim` in bits."""
    return torch.special.entr(counts / counts.sum(dim, keepdim=True)).sum(dim) / math.log(2)


def information(wins: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """wins (K, N, F), 0 or 1; label (N,) -> I(winner; label) of each unit in bits (F,), and counts (K, labels, F)."""
    counts = wins.new_zeros(len(wins), int(label.max()) + 1, wins.size(2)).index_add_(1, label.to(wins.device), wins)
    return entropy(counts.sum(1), 0) + entropy(counts.sum(0), 0) - entropy(counts.flatten(0, 1), 0), counts


def sample_rows(x: Tensor) -> Tensor:
    """(N, F) -> some rows, always the same ones of N: 2**18 numbers or a little more, if there are so many."""
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[: 1 + 2**18 // x.size(1)]]


def to_array(x: Tensor) -> np.ndarray:
    """Any tensor -> its numbers in one dimension."""
    return x.detach().flatten().cpu().numpy()


def summarise(value: object) -> object:
    """Figures -> what JSON holds: the distribution of an array, 6 digits of a number."""
    if isinstance(value, dict):
        return {key: summarise(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        quantiles = {f"q{q:02}": np.percentile(value, q) for q in (5, 25, 50, 75, 95)}
        return summarise({"mean": value.mean(), "sd": value.std()} | quantiles)
    return float(f"{value:.6g}") if isinstance(value, (float, np.floating)) else value
