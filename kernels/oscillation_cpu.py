"""oscillation.c: compiled at first use by the system's compiler, kept in a private cache folder, called by ctypes."""

import ctypes
import hashlib
import itertools
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("oscillation.c")
FLAGS = ("-O3", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
MAC = sys.platform == "darwin"
OPENMP = ("-Xpreprocessor", "-fopenmp") if MAC else ("-fopenmp",)


def load():
    """Build or find the library. Returns (its function `run` or None, what serves the CPU and why)."""
    compiler = next(filter(None, map(shutil.which, ("gcc", "cc", "clang"))), None)
    if os.name != "posix" or compiler is None:
        return None, "plain torch: no C compiler found"
    folder = cache_folder()
    if folder is None:
        return None, "plain torch: no cache folder that only this user can write to"
    for arch, openmp in itertools.product((("-march=native",), ()), (OPENMP, ())):
        if not openmp and torch.get_num_threads() > 5:
            continue  # one thread of C is as fast as six of plain torch
        try:
            library = ctypes.CDLL(str(build(compiler, (*FLAGS, *arch, *openmp), folder)))
        except (OSError, subprocess.SubprocessError):
            continue
        return bind(library), f"C ({Path(compiler).name}, {'OpenMP' if openmp else 'one thread'})"
    return None, f"plain torch: {compiler} could not build {SOURCE.name}"


def cache_folder():
    """A folder that this user owns and no other can write to, or None: what lies in it gets run."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folders = Path(home, "wigglegpt"), Path(tempfile.gettempdir(), f"wigglegpt-{os.getuid()}")
    for folder in filter(Path.is_absolute, folders):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = os.lstat(folder)
        except OSError:
            continue
        private = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022
        if private and os.access(folder, os.W_OK):
            return folder
    return None


def build(compiler, flags, folder):
    """The library's path in `folder`, compiled unless it is there. Its name holds all that its content depends on."""
    # The macros tell the compiler's version and this CPU's instruction sets: machines of different kinds share homes.
    macros = call(compiler, *flags, "-dM", "-E", "-x", "c", os.devnull)
    key = hashlib.sha256(SOURCE.read_bytes() + repr((compiler, flags)).encode() + macros).hexdigest()[:20]
    path = folder / f"oscillation-{key}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:  # renamed out of it: parallel builds do not meet
            call(compiler, *flags, "-c", str(SOURCE), "-o", f"{scratch}/o.o")
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


def bind(library):
    """The loaded library's function, called as `_plain` in oscillation.py is."""
    long, int_, pointer = ctypes.c_int64, ctypes.c_int, ctypes.c_void_p
    library.oscillation.argtypes = (long, long, long, int_, int_, ctypes.c_float, *[pointer] * 5)
    library.oscillation.restype = None

    def run(x, vectors, threshold, grad):
        dtype, features, rows = x.dtype, x.shape[-1], x.numel() // max(x.shape[-1], 1)
        blocks = min(-(-rows // 32), 64)  # of rows; by x's shape alone, so that no sum depends on the threads
        threads = min(torch.get_num_threads(), 1 + x.numel() // 32768)
        x, *vectors = (t.float().contiguous() for t in (x, *vectors))
        y, sums = torch.empty_like(x), None
        if grad is not None:
            grad, sums = grad.float().contiguous(), torch.empty(1 + blocks, len(vectors), features)
        w = (pointer * len(vectors))(*[v.data_ptr() for v in vectors])
        x_, g_, y_, s_ = (None if t is None else t.data_ptr() for t in (x, grad, y, sums))
        library.oscillation(rows, features, blocks, len(vectors), threads, threshold, x_, w, g_, y_, s_)
        return y.to(dtype), None if sums is None else sums[0].clone()

    return run
