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


def load(name, flags=(), alone=math.inf):
    """
    Build or find the library of the file `name`. Returns (it, as ctypes has it, or None; what serves and why).

    flags: of the compiler, besides FLAGS. alone: how many threads of plain torch one thread of this C is worth; where
    torch has more, the library is not used without OpenMP.
    """
    compiler = next(filter(None, map(shutil.which, ("gcc", "cc", "clang"))), None)
    if os.name != "posix" or compiler is None:
        return None, "plain torch: no C compiler found"
    folder = private_folder()
    if folder is None:
        return None, "plain torch: no cache folder that only this user can write to"
    for arch, openmp in itertools.product((("-march=native",), ()), (OPENMP, ())):
        if not openmp and torch.get_num_threads() > alone:
            continue
        try:
            library = ctypes.CDLL(str(build(name, compiler, (*FLAGS, *flags, *arch, *openmp), folder)))
        except (OSError, subprocess.SubprocessError):
            continue
        return library, f"C ({Path(compiler).name}, {'OpenMP' if openmp else 'one thread'})"
    return None, f"plain torch: {compiler} could not build {name}"


def build(name, compiler, flags, folder):
    """The library's path in `folder`, compiled unless it is there. Its name holds all that its content depends on."""
    source = Path(__file__).with_name(name)
    # The macros tell the compiler's version and this CPU's instruction sets: machines of different kinds share homes.
    macros = call(compiler, *flags, "-dM", "-E", "-x", "c", os.devnull)
    key = hashlib.sha256(source.read_bytes() + repr((compiler, flags)).encode() + macros).hexdigest()[:20]
    path = folder / f"{source.stem}-{key}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:  # renamed out of it: parallel builds do not meet
            call(compiler, *flags, "-c", str(source), "-o", f"{scratch}/o.o")
            # Linked without OpenMP: its symbols resolve to the runtime that torch has loaded, so one pool of threads
            # serves both. The threads of two would fight, since each spins for a while after its work.
            late = ("-Wl,-undefined,dynamic_lookup",) if MAC else ()
            call(compiler, "-shared", f"{scratch}/o.o", "-o", f"{scratch}/o.so", "-lm", *late)
            with open(f"{scratch}/o.so", "rb") as file:
                os.fsync(file.fileno())
            os.replace(f"{scratch}/o.so", path)
    return path


def call(*command):
    return subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=60).stdout
