"""The optimizers: AdamW, Adafactor, and Muon for the matrices of the blocks with AdamW for the rest."""

import math
from collections import defaultdict

import torch
from torch import Tensor

from model_bio import GPT


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

    Matrices and embeddings are decayed; biases, norms, ω, φ, b, g, o, a and β are not.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    if optimizer_type == "adafactor":  # Shazeer and Stern, 2018: a row and a column for each matrix's two moments
        return torch.optim.Adafactor(groups, lr=learning_rate)
    fused = device_type in ("cuda", "cpu", "mps")
    if optimizer_type == "muon":
        matrices = [p for p in model.transformer.h.parameters() if p.requires_grad and p.dim() == 2]
        taken = set(map(id, matrices))
        groups[0]["params"] = [p for p in groups[0]["params"] if id(p) not in taken]
        return Muon(matrices, groups, learning_rate, betas, weight_decay, fused)
    if optimizer_type != "adamw":
        raise ValueError(f"optimizer_type={optimizer_type!r} is unknown: choose one of adamw, adafactor, muon")
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=fused)


@torch.no_grad()
def orthogonalise(g: Tensor, steps: int = 5) -> Tensor:
    """
    Matrices near g whose singular values are all near 1, by a quintic Newton-Schulz iteration (Jordan et al., 2024):
    X <- P X with P = 3.4445 - 4.7750 G + 2.0315 G², G = X Xᵀ.

    g: (n, rows, columns) -> same shape and dtype. On CUDA it runs in bfloat16, which suffices; on a CPU in float32,
    since most CPUs only emulate bfloat16: torch.optim.Muon, which always takes it, is many times slower there.

    Float32 also allows to iterate on G, the small matrix, alone: G <- P G P and Q <- P Q, then X <- Q X once. That is
    the same iteration in half the work for X of 1:4. In bfloat16 G's rounding errors would grow with it.
    """
    x = g.bfloat16() if g.is_cuda else g.float()
    tall = x.size(-2) > x.size(-1)
    x = x.mT if tall else x  # the smaller Gram matrix
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
    """-4.7750·G + 2.0315·G² of each matrix G."""
    return torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)


class Muon(torch.optim.Optimizer):
    """
    Momentum whose update is orthogonalised: W <- (1 - lr·decay)·W - lr·0.2·sqrt(max(rows, columns))·O(momentum).

    The factor makes updates as large as AdamW's, so that one learning rate and decay serve both (Liu et al., 2025). Of
    AdamW's two moments a matrix keeps one. betas[0] is the momentum, in Nesterov's form, of both.

    matrices: parameters with two dimensions. rest: parameter groups for torch's AdamW. On a card a step that must not
    be taken is told by `found_inf`, as torch's fused optimizers are, so that the host need not wait to know.
    """

    def __init__(self, matrices, rest, lr, betas, weight_decay, fused):
        self.adamw = torch.optim.AdamW(rest, lr=lr, betas=betas, fused=fused)
        super().__init__([{"params": matrices, "weight_decay": weight_decay, "momentum": betas[0]}], {"lr": lr})
        self.param_groups += self.adamw.param_groups
        self.adamw.state = self.state  # one state, so that a checkpoint holds both
        self._step_supports_amp_scaling = any(p.is_cuda for p in matrices)  # the name that GradScaler looks for

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self.adamw.param_groups, self.adamw.state = self.param_groups[1:], self.state

    @torch.no_grad()
    def step(self):
        group, rate = self.param_groups[0], self.param_groups[0]["lr"]
        skip = self.found_inf > 0 if self._step_supports_amp_scaling else None
        if skip is not None:
            rate = rate * ~skip  # a step of length 0 along the momentum, which stays what it is
            self.adamw.grad_scale, self.adamw.found_inf = None, self.found_inf
        alike = defaultdict(list)  # matrices of one shape are orthogonalised together
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
        self.adamw.step()
