"""The C files beside this one: compiled at first use by the system's compiler and kept in a private cache folder."""

import ctypes
import hashlib
import itertools
import math
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from kernels.cache import private_folder

FLAGS = ("-O3", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
MAC = sys.platform == "darwin"
OPENMP = ("-Xpreprocessor", "-fopenmp") if MAC else ("-fopenmp",)


def load_library(
    name: str, flags: tuple[str, ...] = (), max_threads_without_openmp: float = math.inf
) -> tuple[ctypes.CDLL | None, str]:
    """
    Load the library of the C file `name`, compiled anew unless the cache folder has it.

    flags: for the compiler, besides FLAGS. max_threads_without_openmp: without OpenMP, use the library, which then has
    one thread, only up to that many torch threads: with more, plain torch is faster.
    Returns (the library or None, 'C (gcc, OpenMP)' or 'plain torch: ' and the reason).
    """
    compiler = find_compiler()
    if compiler is None:
        return None, "plain torch: no C compiler found"
    folder = private_folder()
    if folder is None:
        return None, "plain torch: no cache folder that only this user can write to"
    for arch, openmp in itertools.product((("-march=native",), ()), (OPENMP, ())):
        if not openmp and torch.get_num_threads() > max_threads_without_openmp:
            continue
        try:
            library = ctypes.CDLL(str(build_library(name, compiler, (*FLAGS, *flags, *arch, *openmp), folder)))
        except (OSError, subprocess.SubprocessError):
            continue
        return library, f"C ({Path(compiler).name}, {'OpenMP' if openmp else 'one thread'})"
    return None, f"plain torch: {compiler} could not build {name}"


def find_compiler() -> str | None:
    """The path of the system's C compiler; None without one, and on Windows, whose compilers take other flags."""
    return next(filter(None, map(shutil.which, ("gcc", "cc", "clang"))), None) if os.name == "posix" else None


def build_library(name: str, compiler: str, flags: tuple[str, ...], folder: Path) -> Path:
    """
    Compile the C file `name` into `folder` unless its library is there, and return the library's path.

    The file name holds a hash of all that the library depends on. Raises OSError or subprocess.SubprocessError.
    """
    source = Path(__file__).with_name(name)
    # The preprocessed text holds what the file includes, and the predefined macros (-dD), which tell the compiler's
    # version and this CPU's instruction sets: machines of different kinds may share one home folder.
    text = run_compiler(compiler, *flags, "-dD", "-P", "-E", str(source))
    key = hashlib.sha256(text + repr((compiler, flags)).encode()).hexdigest()[:20]
    path = folder / f"{source.stem}-{key}.so"
    if not path.exists():
        # The library is renamed out of a folder of its own, so that two processes that build it at once do not meet.
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            run_compiler(compiler, *flags, "-c", str(source), "-o", f"{scratch}/o.o")
            # Linked without OpenMP: its symbols resolve to the runtime that torch has loaded, so one pool of threads
            # serves both. The threads of two pools would compete for the cores: they spin for a while after their work.
            late = ("-Wl,-undefined,dynamic_lookup",) if MAC else ()
            run_compiler(compiler, "-shared", f"{scratch}/o.o", "-o", f"{scratch}/o.so", "-lm", *late)
            with open(f"{scratch}/o.so", "rb") as file:
                os.fsync(file.fileno())
            os.replace(f"{scratch}/o.so", path)
    return path


def run_compiler(*command: str) -> bytes:
    """Run a compiler's command for at most a minute and return its standard output; a failure raises."""
    return subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=60).stdout
