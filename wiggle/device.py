"""What a script runs on: device, precision, compiler, and how to wait for the device."""

import ctypes
import importlib.util
import re
import sys
from pathlib import Path
from typing import NamedTuple

import torch

from wiggle.errors import UserError

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


class Machine(NamedTuple):
    """What a script computes on, resolved from the settings device, dtype and compile."""

    device: torch.device
    dtype: torch.dtype  # of matrix products; weights stay in float32
    compiled: bool
    how: str  # 'compiled', or 'eager' and the reason

    def __str__(self):
        return describe(self.device, self.dtype, self.how)


def pick_machine(device: str, dtype: str, compile: bool | str) -> Machine:
    """The settings device, dtype and compile, each of which may be 'auto' -> Machine."""
    device = pick_device(device)
    return Machine(device, pick_dtype(dtype, device), *pick_compile(compile, device))


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
