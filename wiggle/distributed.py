"""The processes of a run under torchrun, and numbers that all of them share. Without torchrun there is one process."""

import contextlib
import os
import re
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist

from wiggle.errors import UserError

# A second process group, of the CPUs by gloo: what it carries neither waits for a card nor mixes with gradients.
_host_group = None

# How long a process waits for another one that is silent while all compute, and while the first one prepares or writes.
SILENCE = timedelta(seconds=50)
PATIENCE = timedelta(hours=2)
_LOST = r"gloo|nccl|monitoredBarrier|connection (closed|reset|refused)|broken pipe|timed out|timeout"


class Processes(NamedTuple):
    """This process's place among all processes of the run."""

    rank: int  # of this process, from 0
    world: int  # number of processes
    local_rank: int  # of this process on its machine, which picks its card

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes files."""
        return self.rank == 0


def processes() -> Processes:
    """The place that torchrun gives this process in its environment; without torchrun (0, 1, 0)."""
    return Processes(*(int(os.environ.get(key, default)) for key, default in
                       (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))))  # fmt: skip


def connect(backend: str, device: torch.device) -> bool:
    """
    Join the process group of a run under torchrun -> whether this call made it, and `disconnect` must end it.

    backend: of torch.distributed; 'auto' is nccl on CUDA where torch has it, and gloo elsewhere. Waits until all
    processes are there.
    """
    if processes().world == 1 or dist.is_initialized():
        return False
    usual = "nccl" if device.type == "cuda" and dist.is_nccl_available() else "gloo"  # Windows has none
    try:
        dist.init_process_group(usual if backend == "auto" else backend, timeout=SILENCE)
    except ValueError as error:
        raise UserError(f"backend={backend!r}: {error}") from None
    global _host_group
    _host_group = dist.new_group(backend="gloo", timeout=SILENCE)
    return True


def wait_for_all() -> None:
    """Return once every process has called this, however long the first one works; without a process group at once."""
    if dist.is_initialized():
        dist.monitored_barrier(_host_group, timeout=PATIENCE)


@contextlib.contextmanager
def lost_process_in_words(out_dir: str) -> Iterator[None]:
    """Turn what torch raises where another process of the run is gone into a UserError that says how to go on."""
    try:
        yield
    except RuntimeError as error:
        here = processes()
        if here.world == 1 or not re.search(_LOST, str(error), re.IGNORECASE):
            raise
        last = Path(out_dir, "ckpt.pt")
        go_on = f"--init_from=resume goes on from {last}" if last.exists() else f"no checkpoint is in {out_dir}"
        raise UserError(
            f"process {here.rank + 1} of {here.world} lost another one, which ended or was silent for "
            f"{SILENCE.seconds} s (what that one printed says why): start all of them again; {go_on}"
        ) from None


def disconnect() -> None:
    """End the process group that `connect` made."""
    global _host_group
    _host_group = None
    # destroy_process_group holds the GIL while it joins gloo's threads, which may need it to drop their last tensors:
    # release it once first, or both wait for ever.
    time.sleep(0.1)
    dist.destroy_process_group()


def any_process(flag: bool) -> bool:
    """Whether `flag` is True in any process. All must call it together. It never waits for a card."""
    if not dist.is_initialized():
        return flag
    told = torch.tensor(float(flag))
    dist.all_reduce(told, dist.ReduceOp.MAX, group=_host_group)
    return told.item() > 0


def rank_and_world() -> tuple[int, int]:
    """(rank of this process, number of processes) in the process group; without one (0, 1)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def mean_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """The mean of every process's `tensor`, float32 on its card with nccl; without a process group the tensor."""
    if not dist.is_initialized():
        return tensor
    tensor = tensor.to("cuda", torch.float32) if dist.get_backend() == "nccl" else tensor
    dist.all_reduce(tensor)
    return tensor / dist.get_world_size()


def sum_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of every process's `tensor`, on the CPU; without a process group the tensor itself."""
    if not dist.is_initialized():
        return tensor
    tensor = tensor.to("cuda", torch.float32) if dist.get_backend() == "nccl" else tensor
    dist.all_reduce(tensor)
    return tensor.cpu()


def smallest_over_processes(number: float) -> float:
    """The smallest of every process's number; without a process group the number itself."""
    return _reduce(number, dist.ReduceOp.MIN)


def largest_over_processes(number: float) -> float:
    """The largest of every process's number; without a process group the number itself."""
    return _reduce(number, dist.ReduceOp.MAX)


def _reduce(number, operation):
    if not dist.is_initialized():
        return number
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    tensor = torch.tensor(number, dtype=torch.float64, device=device)
    dist.all_reduce(tensor, operation)
    return tensor.item()
