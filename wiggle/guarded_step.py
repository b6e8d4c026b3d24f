"""What ends a run early and loses nothing: a signal, or numbers that are not finite."""

import math

import torch

from wiggle.errors import UserError


class Diverged(UserError):
    """Training cannot go on: its numbers are not finite."""


class GuardedOptimizer:
    """
    An optimizer, and float16's GradScaler, that never step on a loss or a gradient that is not finite.

    Whether to step is decided on the device, so that no step waits for it (Adafactor, which waits anyway, does not
    know how). Once `limit` steps in a row were skipped all further ones are: a run that asks `raise_if_stuck` only now
    and then ends with the same weights as one that asks at each step. skipped: steps skipped in all, and in a row.
    """

    def __init__(self, model, optimizer, device, dtype, limit=10):
        self.optimizer, self.named = optimizer, list(model.named_parameters())
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        # float16's scale starts at 2^16 and is halved at each overflow: up to 16 skipped steps are its normal work
        self.limit = limit + 16 * self.scaler.is_enabled()
        self.skipped = torch.zeros(2, dtype=torch.int64, device=device)
        self.norms = None  # of the gradients of `used`, the parameters' names, at the last step that was skipped

    def step(self, loss, max_norm):
        """Clip the gradient's norm and step, unless it or the loss, the same in all processes, is not finite -> norm"""
        self.scaler.unscale_(self.optimizer)
        self.used, parameters = zip(*((name, p) for name, p in self.named if p.grad is not None), strict=True)
        norms = torch.stack(torch._foreach_norm([p.grad for p in parameters]))  # (number of parameters,)
        norm = torch.linalg.vector_norm(norms)
        if max_norm < math.inf:
            torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        total, row = self.skipped
        skip = ~(loss.isfinite() & norm.isfinite()) | (row >= self.limit)
        self.skipped = torch.stack((total + skip, (row + 1) * skip))
        self.norms = norms if self.norms is None else torch.where(skip, norms, self.norms)
        if getattr(self.optimizer, "_step_supports_amp_scaling", False):  # torch's fused kernels, as GradScaler asks
            self.optimizer.grad_scale, self.optimizer.found_inf = None, skip.float()
            self.optimizer.step()
        elif not skip:
            self.optimizer.step()
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def raise_if_stuck(self, step, loss, norm):
        """Raise Diverged, behind step number `step`, where too many in a row were skipped. Waits for the device."""
        row = int(self.skipped[1])
        if row < self.limit:
            return
        groups = {}  # norm of each layer group's gradient
        for name, value in zip(self.used, self.norms.tolist(), strict=True):
            parts = name.split(".")
            group = ".".join(parts[: 4 if "h" in parts else 2])
            groups[group] = math.hypot(groups.get(group, 0.0), value)
        # of several that are not finite the one nearest the output: backward met it first
        group = max(reversed(groups), key=lambda group: groups[group] if math.isfinite(groups[group]) else math.inf)
        raise Diverged(
            f"stopped after step {step}: since step {step - row + 1} loss or gradient norm was not finite, and no step "
            f"was taken (loss {loss:.4g}, norm {norm:.4g}, the largest gradient in {group}: {groups[group]:.4g}); "
            "what was saved before stands: resume it with a lower learning_rate"
        )

    def state_dict(self):
        parts = {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        return parts | {"skipped": self.skipped.tolist()}

    def load_state_dict(self, state):
        """Take the moments and counts of a checkpoint; rates, betas and decay stay those that are set now."""
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        if state["scaler"]:  # empty where the run was not in float16
            self.scaler.load_state_dict(state["scaler"])
        self.skipped = self.skipped.new_tensor(state["skipped"]).reshape(2)
