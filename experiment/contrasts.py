"""
Which differences an experiment tests: each arm's to its control, and how they vary with the second varied key.

Where two keys are varied as a full grid, every value of the second key (a level) has its own control, so that relu2
with 2 layers is judged against gelu with 2 layers. An interaction is then a difference of two such differences.
"""

from dataclasses import dataclass

from experiment.arms import parse_together
from experiment.statistics import Difference, interaction, judge, paired
from experiment.study import Arm, ArmResult, Study
from wiggle.errors import UserError

INTERACTION_VERDICTS = {"better": "gains more", "worse": "gains less"}  # of the arm at this level than at the first


@dataclass(frozen=True)
class Contrast:
    """A judged difference. name: of the arm, or 'interaction of ARM'; control: what it is judged against."""

    name: str
    control: str
    difference: Difference
    is_interaction: bool = False

    @property
    def verdict(self) -> str:
        """The verdict in words that fit what was tested."""
        verdict = self.difference.verdict
        return INTERACTION_VERDICTS.get(verdict, verdict) if self.is_interaction else verdict


def level_key(study: Study) -> str | None:
    """
    The varied key each of whose values has a control of its own; None where one control serves all arms.

    That is the dataset where it is varied, since losses on two texts are not comparable, and else the key of the second
    --vary, unless that names several, --control names one arm for all, or some arm's model does not read that key.
    """
    if "dataset" in study.arms[0].settings:
        return "dataset"
    if len(study.options.vary) < 2 or study.options.control is not None:
        return None
    keys, _ = parse_together(study.options.vary[1])
    return keys[0] if len(keys) == 1 and all(keys[0] in arm.settings for arm in study.arms) else None


def control_of(study: Study, arm: Arm) -> Arm:
    """The arm that this one is judged against: itself where it is a control. Raises UserError where there is none."""
    key = level_key(study)
    level = {key: arm.settings[key]} if key else {}
    wanted = study.arms[0].settings | level
    control = next((other for other in study.arms if other.settings == wanted), None)
    if control is None:
        missing = f"{study.arms[0].name} with {key}={arm.settings[key]}"
        raise UserError(f"{arm.name} has no control, which would be {missing}: vary a full grid, or name a --control")
    return control


def pair_with_controls(study: Study, results: list[ArmResult]) -> list[tuple[ArmResult, ArmResult]]:
    """(an arm's result, its control's) for each arm that is no control."""
    by_name = {result.arm.name: result for result in results}
    pairs = [(result, by_name[control_of(study, result.arm).name]) for result in results]
    return [(arm, control) for arm, control in pairs if arm is not control]


def make_contrasts(study: Study, results: list[ArmResult]) -> list[Contrast]:
    """All differences that are tested, with verdicts that are corrected for their number."""
    seeds, pairs = study.seeds["reporting"], pair_with_controls(study, results)
    found = [
        Contrast(arm.arm.name, control.arm.name, paired(losses_of(arm), losses_of(control), seeds))
        for arm, control in pairs
    ]
    for pair in pairs:
        base = pair_at_first_level(study, pairs, pair[0].arm)
        if base and base[0] is not pair[0]:
            sides = [losses_of(result) for result in (*pair, *base)]
            name, against = f"interaction of {pair[0].arm.name}", base[0].arm.name
            found.append(Contrast(name, against, interaction(*sides, seeds), is_interaction=True))
    judge([contrast.difference for contrast in found], study.options.margin)
    return found


def losses_of(result: ArmResult) -> dict[int, float | None]:
    """The losses of an arm's reporting runs by seed, None where one diverged."""
    return {seed: run["loss"] for seed, run in result.runs.items()}


def pair_at_first_level(study: Study, pairs: list[tuple], arm: Arm) -> tuple[ArmResult, ArmResult] | None:
    """The pair of the same arm at the first control's level; None where no level can be compared with another."""
    key = level_key(study)
    if key in (None, "dataset"):
        return None
    wanted = arm.settings | {key: study.arms[0].settings[key]}
    return next((pair for pair in pairs if pair[0].arm.settings == wanted), None)
