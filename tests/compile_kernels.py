"""
The Triton kernels, compiled ahead for cards that are not there: registers, spilled bytes and instructions of each.

    python -m tests.compile_kernels            (needs Triton, and no card)
"""

import itertools
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from kernels.cross_entropy_triton import _cross_entropy_kernel
from kernels.event_mlp_triton import ROWS, WIDEST, _events_kernel
from kernels.oscillation_triton import _oscillation_kernel

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
ARCHITECTURES = (75, 80, 86, 89, 90)  # RTX 20, A100, RTX 30, RTX 40, H100
DTYPES = ("fp32", "bf16", "fp16")
FORMS = {"oscillation": 3, "events": 4, "gated": 8}  # form -> number of vectors


class Usage(NamedTuple):
    """What a kernel takes of a card."""

    registers: int  # of a thread
    spilled: int  # bytes a thread writes to memory for want of registers
    instructions: int  # in the program


def source_of(name: str, dtype: str) -> tuple[ASTSource, int]:
    """A kernel by its name in the table -> (its source for this type of x or logits, its number of warps)."""
    if name == "cross entropy":
        types = (f"*{dtype}", "*i64", "*fp32", "i32")
        return ASTSource(_cross_entropy_kernel, dict(zip(_cross_entropy_kernel.arg_names, types, strict=True))), 8
    if name == "event MLP":
        types = ["*fp32", "*i8", f"*{dtype}", f"*{dtype}", "*fp32", "*fp32", "*i64"]
        types += ["i32", "i32", "fp32", "constexpr", "constexpr", "constexpr"]
        constants = {"FAST": dtype != "fp32", "R": ROWS, "K": WIDEST}
        return ASTSource(_events_kernel, dict(zip(_events_kernel.arg_names, types, strict=True)), constants), 8
    form, direction = name.split(", ")
    constants = {"NV": FORMS[form], "BACK": direction == "backward", "FAST": dtype != "fp32", "R": 4}
    types = [f"*{dtype}", "*fp32", f"*{dtype}", f"*{dtype}", "*fp32", "i32", "i32", "i32", "fp32"]
    types += ["constexpr"] * len(constants)
    return ASTSource(_oscillation_kernel, dict(zip(_oscillation_kernel.arg_names, types, strict=True)), constants), 4


NAMES = (
    *(f"{form}, {direction}" for form in FORMS for direction in ("forward", "backward")),
    "event MLP",
    "cross entropy",
)


def usage_of(name: str, dtype: str, architecture: int) -> Usage:
    """Compile a kernel for sm_<architecture>. Raises what Triton and ptxas raise."""
    source, warps = source_of(name, dtype)
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": warps})
    with tempfile.TemporaryDirectory() as folder:
        ptx, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        ptx.write_text(compiled.asm["ptx"])
        cubin.write_bytes(compiled.asm["cubin"])
        target = re.search(r"\.target (\S+)", compiled.asm["ptx"])[1].rstrip(",")
        assembler = get_ptxas(architecture).path  # which differs by card: the older one knows no newer PTX
        said = run(assembler, "-v", f"--gpu-name={target}", str(ptx), "-o", str(Path(folder, "again.cubin")))
        code = run(str(TOOLS / "nvdisasm"), "-c", str(cubin))
    registers, spilled = re.search(r"Used (\d+) registers", said)[1], re.search(r"(\d+) bytes spill stores", said)[1]
    return Usage(int(registers), int(spilled), len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", code, re.MULTILINE)))


def run(tool: str, *arguments: str) -> str:
    """All that one of Triton's copies of CUDA's tools says."""
    done = subprocess.run([tool, *arguments], check=True, capture_output=True, text=True)
    return done.stdout + done.stderr


def main() -> None:
    """Print a row for each kernel and type."""
    print(f"triton {triton.__version__}: registers a thread / bytes spilled / instructions")
    print(" " * 32 + "".join(f"sm_{architecture}".rjust(16) for architecture in ARCHITECTURES))
    for name, dtype in itertools.product(NAMES, DTYPES):
        row = [usage_of(name, dtype, architecture) for architecture in ARCHITECTURES]
        print(f"{name}, {dtype}".ljust(32) + "".join(" / ".join(map(str, usage)).rjust(16) for usage in row))


if __name__ == "__main__":
    main()
