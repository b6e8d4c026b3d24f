"""Where a report comes from: the commands, the code, the packages and the machine."""

import os
import platform
import shlex
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

from experiment.arms import spell
from experiment.own_neurons import identity_lines
from experiment.study import ArmResult, Study


def command(study: Study, result: ArmResult) -> str:
    """train.py's command for one reporting run of an arm."""
    config, tuned = result.arm.config, zip(study.swept, result.point or [], strict=False)
    flags = [f"--{key}={getattr(config, key)}" for key in result.arm.settings]
    flags += [f"--{key}={spell(value)}" for key, value in tuned]
    if study.options.match != "steps":
        flags += [f"--{key}={getattr(config, key)}" for key in ("max_iters", "warmup_iters", "lr_decay_iters")]
    return shlex.join(["python", "train.py", *study.words, *flags, f"--seed={study.seeds['reporting'][0]}"])


def machine(study: Study) -> list[str]:
    """Versions and machine, as lines of a list."""
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).is_file():
        cpu = next((line.partition(": ")[2] for line in info.read_text().splitlines() if "model name" in line), cpu)
    config = study.arms[0].config
    device = torch.device(config.device)
    card = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "scipy"))
    return [
        f"- {platform.platform()}, {cpu}, {os.cpu_count()} cores{card}",
        f"- {study.threads} threads a process, {max(1, study.options.jobs)} at a time, {config.dtype}",
        f"- Python {platform.python_version()}, {packages}; code at commit {commit()}",
        *identity_lines(study),
    ]


def commit() -> str:
    """The commit of this code, and whether files differ from it."""

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
        return run.stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + (" with changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
