"""The switch that every kernel obeys."""

import os
import subprocess
import sys
from pathlib import Path

CODE = """
from kernels import attention, matmul, oscillation
for module in (oscillation, attention, matmul):
    print(module.backend("cpu"))
"""


def test_wiggle_kernel_plain_makes_plain_torch_compute_everything():
    result = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "WIGGLE_KERNEL": "plain"},
        capture_output=True,
        text=True,
    )
    by_plain_torch = "plain torch: WIGGLE_KERNEL=plain"
    assert result.stdout.splitlines() == [by_plain_torch, by_plain_torch, "torch's own choice"], result.stderr
