"""
What dendritic units learned: how their branches share the tokens, and what a unit's winner tells about the text.

Shapes: N tokens of text, M of them distinct. An MLP has C inputs, F units, and K branches a unit.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from model_bio import DendriticMLP
from wiggle.figures import MIN_COUNT, NAMED, Text, to_array

SHUFFLES = 10  # shuffles of the labels that estimate the bias of a mutual information


def measure_dendrites(mlp: DendriticMLP, x: Tensor, text: Text) -> dict:
    """x: (N, C), the inputs of the MLP -> figures for analysis.json."""
    winner = mlp.compete(x)[1].argmax(-2)  # (N, F)
    wins = functional.one_hot(winner, mlp.branches).permute(2, 0, 1).float().contiguous()  # (K, N, F)
    usage = wins.mean(1)  # (K, F)
    spent = entropy(usage, 0)  # (F,)
    generator = torch.Generator().manual_seed(0)
    told = {name: information_figures(wins, label, generator) for name, label in text.labels.items()}
    weights = functional.normalize(mlp.c_fc.weight.unflatten(0, (mlp.branches, mlp.hidden)), dim=-1)  # (K, F, C)
    pairs = [(weights[i] * weights[j]).sum(-1) for i in range(mlp.branches) for j in range(i)]
    return {
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
