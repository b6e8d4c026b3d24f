"""The optimizers: AdamW, Adafactor, and Muon for the matrices of the blocks with AdamW for the rest."""

import math
from collections import defaultdict

import torch
from torch import Tensor

from model_bio import GPT
from wiggle.neuron_offers import Treatment, treatments


def configure_optimizer(
    model: GPT,
    weight_decay: float,
    learning_rate: float,
    betas: tuple[float, float],
    device_type: str,
    optimizer_type: str = "adamw",
) -> torch.optim.Optimizer:
    """
    The optimizer of a model: 'adamw', 'adafactor' or 'muon'.

    Matrices and embeddings are decayed; biases, norms, and what neurons learn of each feature (ω, φ, b, g, o, a, β) are
    not, unless a user's neuron says otherwise (`parameter_options`). device_type: 'cuda', 'cpu' or 'mps'. Raises
    ValueError for an unknown optimizer_type.
    """
    if optimizer_type not in ("adamw", "adafactor", "muon"):
        raise ValueError(f"optimizer_type={optimizer_type!r} is unknown: choose one of adamw, adafactor, muon")
    matrices, rest = parameter_groups(model, weight_decay, muon=optimizer_type == "muon")
    if optimizer_type == "adafactor":  # Shazeer and Stern, 2018: a row and a column for each matrix's two moments
        return torch.optim.Adafactor(rest, lr=learning_rate)
    fused = device_type in ("cuda", "cpu", "mps")
    if optimizer_type == "muon":
        return Muon(matrices, rest, learning_rate, betas, fused)
    return torch.optim.AdamW(rest, lr=learning_rate, betas=betas, fused=fused)


def parameter_groups(model: GPT, weight_decay: float, muon: bool) -> tuple[list[dict], list[dict]]:
    """
    The parameter groups of a model -> (those that Muon orthogonalises, the others).

    The usual groups come first: Muon's matrices; what is decayed, what is not. Further ones follow from what users'
    neurons say of their parameters. A group's learning rate is the run's times its learning_rate_scale: see
    set_learning_rate.
    """
    sorted_out = {Treatment(True, 1.0, True): [], Treatment(True, 1.0, False): [], Treatment(False, 1.0, False): []}
    parameters = dict(model.named_parameters())
    for name, treatment in treatments(model).items():
        treatment = treatment._replace(orthogonalise=treatment.orthogonalise and muon)
        sorted_out.setdefault(treatment, []).append(parameters[name])
    groups = {True: [], False: []}
    for treatment, members in sorted_out.items():
        group = {"params": members, "weight_decay": weight_decay * treatment.decay}
        scale = {"learning_rate_scale": treatment.learning_rate_scale}
        groups[treatment.orthogonalise].append(group | scale)
    return groups[True], groups[False]


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give each parameter group the run's learning rate, times its own scale where a user's neuron asks for one."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("learning_rate_scale", 1.0)


@torch.no_grad()
def orthogonalise(g: Tensor, steps: int = 5) -> Tensor:
    """
    Matrices near g whose singular values are all near 1, by a quintic Newton-Schulz iteration (Jordan et al., 2024):
    X <- P X with P = 3.4445 - 4.7750 G + 2.0315 G², G = X Xᵀ.

    g: (n, rows, columns) -> same shape and dtype. On CUDA the iteration runs in bfloat16, which suffices; on a CPU in
    float32, since most CPUs only emulate bfloat16: torch.optim.Muon, which always takes it, is many times slower there.

    In float32 the small matrix G can be iterated alone: G <- P G P and Q <- P Q, then X <- Q X once. That is the same
    iteration in half the work for X of 1:4. In bfloat16 the rounding errors of G would grow from step to step.
    """
    x = g.bfloat16() if g.is_cuda else g.float()
    tall = x.size(-2) > x.size(-1)
    x = x.mT if tall else x  # so that X Xᵀ is the smaller one of its two Gram matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    if g.is_cuda or x.size(-2) == x.size(-1):
        for _ in range(steps):
            gram = x @ x.mT
            x = torch.baddbmm(x, quadratic(gram), x, beta=3.4445)
    else:
        gram, product = x @ x.mT, None
        for step in range(steps):
            factor = quadratic(gram)
            factor.diagonal(dim1=-2, dim2=-1).add_(3.4445)
            product = factor if product is None else factor @ product
            if step < steps - 1:
                gram = factor @ gram @ factor
        x = product @ x
    return (x.mT if tall else x).to(g.dtype)


def quadratic(gram: Tensor) -> Tensor:
    """-4.7750·G + 2.0315·G² of each matrix G, (n, rows, rows) -> same."""
    return torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)


class Muon(torch.optim.Optimizer):
    """
    Momentum whose update is orthogonalised: W <- (1 - lr·decay)·W - lr·0.2·sqrt(max(rows, columns))·O(momentum).

    The factor makes updates as large as AdamW's, so that one learning rate and decay serve both (Liu et al., 2025). A
    matrix keeps one moment where AdamW keeps two. betas[0] is the momentum, in Nesterov's form, and AdamW's first beta.

    matrices: groups of parameters with two dimensions. rest: groups for torch's AdamW. On a card the attribute
    `found_inf` says whether to skip a step, as for torch's fused optimizers, so that the host need not wait to know.
    """

    def __init__(self, matrices: list[dict], rest: list[dict], lr: float, betas: tuple[float, float], fused: bool):
        self.adamw = torch.optim.AdamW(rest, lr=lr, betas=betas, fused=fused)
        super().__init__([group | {"momentum": betas[0]} for group in matrices], {"lr": lr})
        self.matrix_groups = len(matrices)
        self.param_groups += self.adamw.param_groups
        self.adamw.state = self.state  # one state for both, so that a checkpoint holds both
        self._step_supports_amp_scaling = any(
            p.is_cuda for group in matrices for p in group["params"]
        )  # for GradScaler

    def load_state_dict(self, state_dict: dict) -> None:
        """Take the momentum of matrices, and AdamW's state of the rest."""
        super().load_state_dict(state_dict)
        self.adamw.param_groups, self.adamw.state = self.param_groups[self.matrix_groups :], self.state

    @torch.no_grad()
    def step(self) -> None:
        """Move the matrices against their orthogonalised momentum, and the rest as AdamW does."""
        skip = self.found_inf > 0 if self._step_supports_amp_scaling else None
        if skip is not None:
            self.adamw.grad_scale, self.adamw.found_inf = None, self.found_inf
        for group in self.param_groups[: self.matrix_groups]:
            self._step_matrices(group, skip)
        self.adamw.step()

    def _step_matrices(self, group: dict, skip: Tensor | None) -> None:
        """Move the matrices of a group. skip: on a card, whether not to."""
        rate = group["lr"]
        if skip is not None:
            rate = rate * ~skip  # a step of length 0 along the momentum, which stays what it is
        alike = defaultdict(list)  # by shape: matrices of one shape are orthogonalised together
        for parameter in group["params"]:
            if parameter.grad is not None:
                alike[parameter.shape].append(parameter)
        for shape, parameters in alike.items():
            gradients = [p.grad for p in parameters]
            for p in parameters:
                if "momentum" not in self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            moments = [self.state[p]["momentum"] for p in parameters]
            if skip is not None:
                gradients = [torch.where(skip, m, g) for g, m in zip(gradients, moments, strict=True)]
            torch._foreach_lerp_(moments, gradients, 1 - group["momentum"])
            ahead = torch._foreach_lerp(gradients, moments, group["momentum"])
            updates = orthogonalise(torch.stack(ahead)).unbind()
            torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
            torch._foreach_add_(parameters, torch._foreach_mul(updates, -rate * 0.2 * math.sqrt(max(shape))))
