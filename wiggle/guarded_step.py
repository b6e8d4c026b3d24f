"""Optimizer steps that are skipped, without waiting for the device, where the loss or a gradient is not finite."""

import math

import torch
from torch import Tensor, nn

from wiggle.errors import UserError
from wiggle.sharded import gather, norms_of, scatter_state


class Diverged(UserError):
    """Training cannot go on: its loss or gradients stay infinite or NaN."""


class GuardedOptimizer:
    """
    An optimizer and float16's GradScaler, which never step on a loss or a gradient norm that is not finite.

    The device decides whether to step, so that the host does not wait for it (torch's Adafactor cannot be told on the
    device, and waits). Once `limit` steps in a row were skipped all further ones are, so that the weights do not depend
    on how often a run calls `raise_if_stuck`.

    model: as it is saved, neither compiled nor wrapped. skipped: (2,) int64 on the device, steps skipped in all and in
    a row.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        dtype: torch.dtype,
        limit: int = 10,
    ):
        self.model, self.optimizer = model, optimizer
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.names, self.parameters = list(trained), list(trained.values())
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        # GradScaler starts at 2^16 and halves at each overflow: up to 16 skipped steps are its normal work.
        self.limit = limit + 16 * self.scaler.is_enabled()
        self.skipped = torch.zeros(2, dtype=torch.int64, device=device)
        self.norms = None  # (number of parameters,) norms of their gradients at the last step that was skipped

    def step(self, loss: Tensor, max_norm: float) -> Tensor:
        """
        Clip the gradients to max_norm and step, unless their norm or the loss is not finite -> their norm, a scalar.

        loss: a scalar, the same in all processes, or they would not step alike.
        """
        self.scaler.unscale_(self.optimizer)
        for parameter in self.parameters:
            if parameter.grad is None:  # the loss did not depend on it, as where a layer is dropped at random
                parameter.grad = torch.zeros_like(parameter)
        norms = norms_of([p.grad for p in self.parameters])
        norm = torch.linalg.vector_norm(norms)
        if max_norm < math.inf:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, max_norm, norm)
        total, in_a_row = self.skipped
        skip = ~(loss.isfinite() & norm.isfinite()) | (in_a_row >= self.limit)
        self.skipped = torch.stack((total + skip, (in_a_row + 1) * skip))
        self.norms = norms if self.norms is None else torch.where(skip, norms, self.norms)
        if getattr(self.optimizer, "_step_supports_amp_scaling", False):  # fused: reads found_inf on the device
            self.optimizer.grad_scale, self.optimizer.found_inf = None, skip.float()
            self.optimizer.step()
        elif not skip:
            self.optimizer.step()
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def zero(self) -> Tensor:
        """
        0 as a function of the parameters of all neurons, one of which may leave them out of the loss.

        DistributedDataParallel waits for a gradient of each parameter: added to the loss this gives it one.
        """
        neurons = [p for name, p in zip(self.names, self.parameters, strict=True) if ".mlp.neuron." in name]
        return sum((0.0 * p.flatten()[:1].sum() for p in neurons), torch.zeros((), device=self.skipped.device))

    def raise_if_stuck(self, step: int, loss: float, norm: float) -> None:
        """Raise Diverged where `limit` steps in a row, up to number `step`, were skipped. Waits for the device."""
        in_a_row = int(self.skipped[1])
        if in_a_row < self.limit:
            return
        groups = {}  # a layer's attention, MLP or norm, or another part of the model -> norm of its gradient
        for name, value in zip(self.names, self.norms.tolist(), strict=True):
            parts = name.split(".")
            group = ".".join(parts[: 4 if "h" in parts else 2])
            groups[group] = math.hypot(groups.get(group, 0.0), value)
        # Of several gradients that are not finite the one nearest to the output came first in the backward pass.
        group = max(reversed(groups), key=lambda group: groups[group] if math.isfinite(groups[group]) else math.inf)
        raise Diverged(
            f"stopped after step {step}: since step {step - in_a_row + 1} loss or gradient norm was not finite, and no "
            f"step was taken (loss {loss:.4g}, norm {norm:.4g}, the largest gradient in {group}: {groups[group]:.4g})"
        )

    def state_dict(self) -> dict:
        """
        The state of optimizer and GradScaler, and the counts of skipped steps, as plain values and tensors.

        Of a sharded model all processes must ask together, and only the first one gets the moments.
        """
        parts = {"optimizer": gather(self.optimizer.state_dict()), "scaler": self.scaler.state_dict()}
        return parts | {"skipped": self.skipped.tolist()}

    def load_state_dict(self, state: dict) -> None:
        """Take the moments and counts of a checkpoint; rates, betas and decay stay those that are set now."""
        groups = self.optimizer.state_dict()["param_groups"]
        moments = scatter_state(state["optimizer"]["state"], self.optimizer)
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        if state["scaler"]:  # empty where the run was not in float16
            self.scaler.load_state_dict(state["scaler"])
        self.skipped = self.skipped.new_tensor(state["skipped"]).reshape(2)
