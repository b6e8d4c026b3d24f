"""What a script runs on: device, precision, compiler, and how to wait for the device."""

import ctypes
import importlib.util
import re
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from configurator import UserError

# FLOP/s in bfloat16 with float32 accumulation, which MFU is a share of; a card that is not listed gets no MFU
PEAK_FLOPS = {"RTX 3070": 40.6e12, "RTX 3090": 71.2e12, "A100": 312e12, "H100": 989e12}

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def pick_device(name):
    """'auto' takes cuda > mps > cpu -> torch.device. Raises UserError for a device that this machine lacks."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device={name!r} is unknown: choose auto, cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        built = "finds none" if torch.version.cuda else "was built without CUDA"
        raise UserError(f"device={name!r}, but this torch {built}: use --device=cpu, or install a CUDA build of torch")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device={name!r}, but this machine has {torch.cuda.device_count()} CUDA device(s)")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device='mps', but there is none here: use --device=cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"device={name!r} is not supported: choose auto, cpu, cuda, cuda:N or mps")
    return device


def keep_freed_memory(device):
    """
    Before training on the CPU: let glibc keep up to 2 GiB that tensors have freed, in pieces of up to 32 MiB.

    Given back to the system and asked for anew in each step, they would cost a fault a page: a fifth of a step at width
    384.
    """
    if device.type == "cpu" and sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
        if mallopt is not None:
            mallopt(M_MMAP_THRESHOLD, 2**25)  # its highest value; larger pieces are given back at once
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def pick_dtype(name, device):
    """'auto' takes bfloat16 where the card has it, else float16 on a card, else float32 -> torch.dtype."""
    if name == "auto":
        if device.type != "cuda":
            name = "float32"
        else:
            name = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if name == "float16" and device.type == "cpu":
        raise UserError("dtype='float16' needs a card: on the CPU use float32 or bfloat16")
    return getattr(torch, name)


def pick_compile(setting, device):
    """True, False or 'auto' -> (whether to compile, the line that says so)."""
    if setting != "auto":
        return setting, "compiled" if setting else "eager"
    if device.type != "cuda":
        return False, "eager (compile=auto is for CUDA)"
    if importlib.util.find_spec("triton") is None:
        return False, "eager (compile is off: no Triton here)"
    return True, "compiled"


def describe(device, dtype, how):
    """The line's end behind 'device' at a run's start."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return f"{name}{threads}, {str(dtype).removeprefix('torch.')}, {how}"


def peak_flops(device):
    """FLOP/s of a card whose peak is known, else None."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((flops for card, flops in PEAK_FLOPS.items() if card in name), None)


def peak_memory(device):
    """Highest memory so far in MiB: allocated on a card, else resident in this process, 0 where nothing tells."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if (status := Path("/proc/self/status")).is_file():  # Linux, whose getrusage counts what the parent held, too
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1]) / 2**10
    try:
        import resource  # Windows has none
    except ImportError:
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


class Card:
    """A CUDA card's memory, in bytes, as torch's allocator holds it. Raises UserError for any other device."""

    HEADROOM = 0.1  # for what no step shows: the desktop, an evaluation's logits, gaps between tensors

    def __init__(self, device):
        if device.type != "cuda":
            raise UserError(f"batch_size='auto' measures a CUDA card's memory, and device is {device}: give a number")
        self.device = device

    def budget(self):
        """What this process may hold in all: what it holds and what is free now, within its own cap, less headroom."""
        free, total = torch.cuda.mem_get_info(self.device)
        index = torch.cuda.current_device() if self.device.index is None else self.device.index
        # set_per_process_memory_fraction's; before torch 2.8 it cannot be read, and a step past it fails
        share = total * getattr(torch.cuda, "get_per_process_memory_fraction", lambda index: 1.0)(index)
        return min(free + torch.cuda.memory_reserved(self.device), share) - self.HEADROOM * share

    def reset(self):
        """Give back what is cached, and begin a new peak."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self):
        """Most that the allocator held since: more than its tensors, by what lies idle between them."""
        return torch.cuda.max_memory_reserved(self.device)


def autocast(device, dtype):
    """Run matrix products in dtype; float32 means no autocast."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def drain(device):
    """Wait for queued work, so that a clock sees it."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()


def send(tensor, device):
    """Copy to the device; to CUDA from pinned memory, so that the copy runs beside the computation."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def mean_over_processes(tensor, sum_only=False):
    """The mean, or the sum, of every process's tensor; without torchrun the tensor itself."""
    if dist.is_initialized():
        on_card = tensor.to("cuda", torch.float32) if dist.get_backend() == "nccl" else tensor
        dist.all_reduce(on_card)
        tensor = on_card.cpu() if sum_only else on_card / dist.get_world_size()
    return tensor


def over_processes(number, operation):
    """The least ('MIN') or the largest ('MAX') of every process's number; without torchrun the number itself."""
    if dist.is_initialized():
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        tensor = torch.tensor(number, dtype=torch.float64, device=device)
        dist.all_reduce(tensor, getattr(dist.ReduceOp, operation))
        return tensor.item()
    return number
