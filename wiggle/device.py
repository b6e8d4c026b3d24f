"""What a script computes on: device, precision and compiler, the memory of a card, and how to wait for a device."""

import contextlib
import ctypes
import functools
import importlib.util
import multiprocessing
import os
import re
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from wiggle.errors import UserError

# Peak FLOP/s in bfloat16 with float32 accumulation, by a part of the card's name. Other cards get no MFU, the share of
# the peak that is used.
PEAK_FLOPS = {"RTX 3070": 40.6e12, "RTX 3090": 71.2e12, "A100": 312e12, "H100": 989e12, "H200": 989e12}

ATTENTION_ORDER = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as malloc.h numbers the options of mallopt


# --- the machine ---


class Machine(NamedTuple):
    """What a script computes on, resolved from the settings device, dtype and compile."""

    device: torch.device
    dtype: torch.dtype  # of matrix products; weights stay in float32
    compiled: bool
    how: str  # 'compiled', or 'eager' and the reason

    def __str__(self) -> str:
        """As a run prints it: the card's name or the CPU with its threads, the precision, and `how`."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(self.device)
        threads = f", {torch.get_num_threads()} threads" if self.device.type == "cpu" else ""
        return f"{name}{threads}, {str(self.dtype).removeprefix('torch.')}, {self.how}"


def pick_machine(device: str, dtype: str, compile: bool | str) -> Machine:
    """
    The settings device, dtype and compile, each of which may be 'auto' -> Machine.

    A card that is named by its number becomes this process's current one, on which kernels are tried and launched.
    """
    device = pick_device(device)
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)
    return Machine(device, pick_dtype(dtype, device), *pick_compile(compile, device))


def without_context(function: Callable, *arguments: object) -> object:
    """
    function(*arguments), in a process of its own where there is a card: this one then keeps no part of its memory.

    A CUDA context takes some hundred MB of a card for as long as its process lives. Function, arguments and result must
    be picklable.
    """
    if not torch.cuda.is_available():
        return function(*arguments)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def pick_device(name: str) -> torch.device:
    """The setting device; 'auto' takes cuda > mps > cpu. Raises UserError for a device that this machine lacks."""
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


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The setting dtype; 'auto' takes bfloat16 where a CUDA card has it, else float16 there, and float32 elsewhere."""
    if name == "auto":
        if device.type != "cuda":
            name = "float32"
        else:
            name = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if name == "float16" and device.type == "cpu":
        raise UserError("dtype='float16' needs a card: on the CPU use float32 or bfloat16")
    return getattr(torch, name)


def pick_compile(setting: bool | str, device: torch.device) -> tuple[bool, str]:
    """
    The setting compile: True, False or 'auto' -> (whether to compile, the words that say so).

    Raises UserError for True where torch.compile lacks something, or fails at two lines.
    """
    if setting is False:
        return False, "eager"
    if setting == "auto" and device.type != "cuda":
        return False, "eager (compile=auto is for CUDA)"
    lacking = lacking_to_compile(device)
    if lacking and setting is True:
        raise UserError(f"compile=True needs {lacking}, which is not found here: install it, or set compile=False")
    failure = f"{lacking} is not found" if lacking else compile_failure(device)
    if failure and setting is True:
        raise UserError(f"torch.compile does not work here ({failure}): set compile=False")
    return (False, f"eager (compile is off: {failure})") if failure else (True, "compiled")


def lacking_to_compile(device: torch.device) -> str | None:
    """What torch.compile needs for this device and does not find, in words."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "Triton"
    if os.name == "nt":  # Triton for Windows brings its own compiler
        return None
    language, variable, usual = ("C", "CC", "gcc clang cc") if device.type == "cuda" else ("C++", "CXX", "g++ clang++")
    compilers = [*os.environ.get(variable, "").split()[:1], *usual.split()]
    return None if any(map(shutil.which, compilers)) else f"a {language} compiler"


@functools.cache
def compile_failure(device: torch.device) -> str | None:
    """
    Compile two lines and run them -> None, or in a few words why that fails.

    What is installed need not work: a compiler without Python's headers builds no launcher for Triton's kernels.
    """
    try:
        torch.compile(_two_lines)(torch.ones(8, device=device)).sum().item()
    except Exception as error:  # of Dynamo, Inductor, Triton, or the compiler that they start
        words = (str(error).strip().splitlines() or [""])[0]
        return f"{type(error).__name__}: {words[:120]}"
    return None


def _two_lines(x: Tensor) -> Tensor:
    y = torch.sin(x) + 1
    return y * torch.tanh(x)


def peak_flops(device: torch.device) -> float | None:
    """Peak FLOP/s of a card that PEAK_FLOPS lists, else None."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((flops for card, flops in PEAK_FLOPS.items() if card in name), None)


# --- memory ---


def keep_freed_memory(device: torch.device) -> None:
    """
    Before training on the CPU: let glibc keep up to 2 GiB of freed memory, in pieces of up to 32 MiB.

    By default glibc gives freed tensors back to the system in each step and asks for them anew. The page faults of that
    are a fifth of a step's time at width 384.
    """
    if device.type == "cpu" and sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
        if mallopt is not None:
            mallopt(M_MMAP_THRESHOLD, 2**25)  # the highest value allowed; larger pieces are given back at once
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def peak_memory(device: torch.device) -> float:
    """The most memory so far in MiB: of tensors on a CUDA card, elsewhere of this process; 0 where nothing tells."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if (status := Path("/proc/self/status")).is_file():  # Linux, whose getrusage counts a parent's memory too
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1]) / 2**10
    try:
        import resource  # Windows has none
    except ImportError:
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


class Card:
    """A CUDA card's memory, in bytes, as torch's allocator holds it."""

    HEADROOM = 0.1  # share for what training steps do not show: the desktop, an evaluation's logits, fragmentation

    def __init__(self, device: torch.device):
        self.device = device

    def budget(self) -> float:
        """What this process may hold in all: what it holds and what is free now, within its own cap, less headroom."""
        free, total = torch.cuda.mem_get_info(self.device)
        index = torch.cuda.current_device() if self.device.index is None else self.device.index
        # The cap of set_per_process_memory_fraction. Before torch 2.8 it cannot be read, and a step past it fails.
        share = total * getattr(torch.cuda, "get_per_process_memory_fraction", lambda index: 1.0)(index)
        return min(free + torch.cuda.memory_reserved(self.device), share) - self.HEADROOM * share

    def reset(self) -> None:
        """Give cached memory back, and begin a new peak."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> float:
        """The most that the allocator held since `reset`: its tensors, and the gaps between them."""
        return torch.cuda.max_memory_reserved(self.device)


# --- computing ---


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """The context in which matrix products are computed in dtype; float32 means no autocast."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def attention_order(device: torch.device) -> contextlib.AbstractContextManager:
    """The context of training steps in which attention on CUDA tries cuDNN first, and then torch's other kernels."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    return sdpa_kernel(ATTENTION_ORDER, set_priority=True)


def drain(device: torch.device) -> None:
    """Wait for the work that is queued on a card, so that a clock sees it."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize(*[device] * (device.type == "cuda"))  # that card, not the current one


def send_windows(ids: Tensor, device: torch.device) -> tuple[Tensor, ...]:
    """
    Windows of a Dataset -> what GPT.forward is called with, (B, T) each on the device, views of one copy.

    Windows of text (B, T + 1) give x and y, y being x one token on; rows of conversations (B, 3, T) idx, targets and
    begins.

    To CUDA they go whole and from pinned memory: then one copy runs beside the computation. A part of each row would be
    gathered and copied while the program waits.
    """
    on_card = device.type == "cuda"
    ids = (ids.pin_memory() if on_card else ids).to(device, non_blocking=on_card)
    return ids.unbind(1) if ids.dim() == 3 else (ids[:, :-1], ids[:, 1:])
