"""evaluation.json, in which evaluate.py keeps what it found: by 'tasks' and 'files', and then by name."""

import json
import math
from pathlib import Path
from typing import NamedTuple

from wiggle.errors import UserError
from wiggle.files import read_bytes

RESULTS = "evaluation.json"  # its name, beside the checkpoint


class Judgement(NamedTuple):
    """A number that was found. name: of the task or the file; error: its standard error, None where there is none."""

    name: str
    metric: str
    value: float
    error: float | None


def read_results(path: Path) -> dict[str, dict[str, dict]]:
    """The file's content; two empty dicts where there is none. Raises UserError for another file of that name."""
    results = {"tasks": {}, "files": {}}
    if path.exists():
        try:
            results |= json.loads(read_bytes(path))
        except (ValueError, TypeError):
            raise UserError(f"{path} is damaged: move it away") from None
    return results


def metrics_of(name: str, found: dict) -> list[Judgement]:
    """What lm-eval found by a task, from keys as 'acc,none' and 'acc_stderr,none'."""
    judgements = []
    for key, value in found.items():
        metric, _, variant = key.partition(",")
        if not variant or metric.endswith("_stderr"):
            continue
        error = found.get(f"{metric}_stderr,{variant}")
        error = error if error is not None and math.isfinite(error) else None
        judgements.append(Judgement(name, metric if variant == "none" else f"{metric} ({variant})", value, error))
    return judgements


def judgements_of(checkpoint: Path, step: int) -> list[Judgement]:
    """All that evaluation.json beside a checkpoint's file says of it at this step; files go by their last names."""
    results, of = read_results(checkpoint.with_name(RESULTS)), (checkpoint.name, step)
    judgements = []
    for name, found in results["files"].items():
        if (found.get("checkpoint"), found.get("iter_num")) == of:
            judgements.append(Judgement(Path(name).name, "bits per byte", found["bits_per_byte"], None))
    for name, found in results["tasks"].items():
        if (found.get("checkpoint"), found.get("iter_num")) == of:
            judgements += metrics_of(name, found)
    return judgements
