"""Pieces of markdown: numbers and tables."""

import numpy as np


def number(value: float, form: str) -> str:
    """A formatted number, or a dash where it is NaN: too few seeds, or nothing to measure."""
    return "–" if np.isnan(value) else format(value, form)


def grid(header: list, rows: list[list]) -> list[str]:
    """The lines of a markdown table."""
    return [f"| {' | '.join(map(str, row))} |" for row in (header, ["---"] * len(header), *rows)]
