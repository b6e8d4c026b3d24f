"""What an experiment consists of: what was asked for, its arms, what they cost, and what came of their runs."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiment.cluster import SlurmRequest
from train import TrainConfig
from wiggle.custom_neuron import Neuron

Point = tuple  # one value for each swept key, in the order of the sweeps; () where nothing is swept


@dataclass(frozen=True)
class CompareOptions:
    """The flags of compare.py, as its --help explains them."""

    vary: list[str]
    control: str | None
    seeds: int
    sweep: list[str]
    also: list[str]
    tuning_seeds: int
    finalists: int | None
    match: Literal["steps", "flops", "time"]
    power: float
    margin: float | None
    target_loss: float | None
    jobs: int
    executor: Literal["processes", "slurm"]
    slurm: str | None
    out_dir: str | None
    reuse: str | None
    keep: bool
    report: bool


@dataclass(frozen=True)
class Arm:
    """One side of the comparison. settings: the values of the varied keys, as far as the arm's model reads them."""

    name: str
    settings: dict
    config: TrainConfig
    neuron: Neuron | None = None


@dataclass(frozen=True)
class ArmCost:
    """
    What an arm takes.

    flops_per_token: of matrices and attention; activation_flops: of its activation, a token. ratio: of its step's time
    to the first control's, timed by turns; ratio_error: standard error of that over the rounds. NaN: not known.
    """

    parameters: int
    flops_per_token: float
    ms_per_step: float
    ratio: float
    ratio_error: float = float("nan")
    activation_flops: float = float("nan")


@dataclass(frozen=True)
class ArmResult:
    """
    The reporting runs of an arm at the point taken for it (None: none could be), by seed, as runs.jsonl has them.

    val_size: tokens and bytes of the validation split, which make bits a byte of a loss; None where not known.
    """

    arm: Arm
    cost: ArmCost
    point: Point | None
    runs: dict[int, dict]
    val_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Comparison:
    """All arms at their best points, the control first. where: a condition on these points, as 'c_fc_std=None'."""

    where: str
    results: list[ArmResult]


@dataclass(frozen=True)
class Study:
    """What compare.py was asked for."""

    options: CompareOptions
    words: list[str]  # the part of the command line that is train.py's
    arms: list[Arm]  # the control first
    swept: dict[str, list]  # tuned key -> its values, in their order
    also: list[tuple[str, object]]  # (tuned key, value) that are reported beside the best
    out_dir: Path
    seeds: dict[str, range]  # of each stage, "tuning" and "reporting"
    threads: int  # of each process
    slurm: SlurmRequest | None = None  # what each job asks for; None: runs are processes of this machine

    @property
    def points(self) -> list[Point]:
        """The grid of the swept values; one empty point where nothing is swept."""
        return list(itertools.product(*self.swept.values()))
