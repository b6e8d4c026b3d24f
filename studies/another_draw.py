"""
An A/A arm: the control's own function with another draw, so that every verdict on it is a false one.

    A=studies/ablations.py:Full,studies/another_draw.py:FullAgain
    python compare.py config/quickstart.py --vary mlp=$A --seeds=3

What stands between Full and FullAgain is what the draws of ω and φ, and the noise of tuning, do to a comparison.
"""

import torch

from studies.ablations import Full


class FullAgain(Full):
    """y = sin(ω·x + φ)·tanh(x) + b, as Full, but with ω and φ from the numbers that follow those of Full."""

    def __init__(self, features):
        torch.randn(2 * features)
        super().__init__(features)
