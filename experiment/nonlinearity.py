"""
How non-linear the arms' MLPs are, at the start and at the end of training.

GPT-2's initial scale leaves GELU at a small width nearly linear, and an even neuron not: arms that start so far apart
are compared in their scale, too. A report states it, and notes where arms differ by more than a factor of two.
"""

import numpy as np

from experiment.study import ArmResult
from model_bio import stands_for_mlp

FACTOR = 2.0  # between the starts of two arms, past which a reader is warned
FIGURES = ("standard deviation of c_fc's output", "non-linear share of the MLP's hidden output")


def by_layer(result: ArmResult, moment: str) -> np.ndarray | None:
    """
    moment: 'start' or 'end' -> (layers, 2), each layer's two FIGURES, the mean over seeds.

    None where the ledger is older than these figures, no run ended, or the arm has none (see telemetry.nonlinearities).
    """
    found = [run["nonlinearity"][moment] for run in result.runs.values() if run.get("nonlinearity")]
    found = [layers for layers in found if layers]
    return np.mean(found, axis=0) if found else None


def nonlinearity_section(results: list[ArmResult]) -> list[str]:
    """Lines of report.md: a table of both figures by layer; none where no arm has them."""
    rows = []
    for result in results:
        start, end = by_layer(result, "start"), by_layer(result, "end")
        if start is not None:
            cells = [" ".join(f"{value:.2f}" for value in layers[:, i]) for layers in (start, end) for i in (0, 1)]
            rows.append(f"| {result.arm.name} | {' | '.join(cells)} |")
    if not rows:
        return []
    whole = [result.arm.name for result in results if stands_for_mlp(result.arm.neuron)]
    left_out = [f"Left out, for a module in the MLP's place has no c_fc: {', '.join(whole)}.", ""] if whole else []
    return [
        "## How non-linear the arms are",
        "",
        "By layer, on validation text, the mean over seeds: the standard deviation of c_fc's output (the "
        "pre-activations), and the share of the variance of c_proj's input that no affine map of each unit's own "
        "pre-activations explains (0: the MLP is linear).",
        "",
        "| arm | std at the start | non-linear at the start | std at the end | non-linear at the end |",
        "| --- | --- | --- | --- | --- |",
        *rows,
        "",
        *left_out,
    ]


def notes_on_starts(pairs: list[tuple[ArmResult, ArmResult]]) -> list[str]:
    """A sentence for each (arm, its control) that start more than FACTOR apart, in the mean over layers."""
    notes = []
    for result, base in pairs:
        arm, control = by_layer(result, "start"), by_layer(base, "start")
        if control is None or arm is None:
            continue
        for figure, ours, theirs in zip(FIGURES, arm.mean(axis=0), control.mean(axis=0), strict=True):
            if max(ours, theirs) > FACTOR * min(ours, theirs):
                notes.append(
                    f"{result.arm.name} and {base.arm.name} start apart: the {figure} is {ours:.2f} against "
                    f"{theirs:.2f}, so their difference is also one of initial scale (c_fc_std; sweep it)"
                )
    return notes
