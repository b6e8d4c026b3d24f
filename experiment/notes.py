"""What a reader of a report must be warned of, a sentence each."""

from dataclasses import asdict

from experiment.arms import PRICED, at_edge, spell
from experiment.contrasts import control_of, level_key, pair_with_controls
from experiment.ledger import Ledger, settings_of
from experiment.nonlinearity import notes_on_starts
from experiment.own_neurons import notes_on_changed_neurons
from experiment.study import Arm, Comparison, Study
from train import TrainConfig


def find_notes(study: Study, ledger: Ledger, comparisons: list[Comparison], looked_at: str) -> list[str]:
    """All sentences, in the order of the report. looked_at: see ledger.key_of_looks."""
    notes = [note for comparison in comparisons for note in notes_on_edges(study, comparison)]
    notes += [note for comparison in comparisons for note in notes_on_seeds(study, comparison)]
    if level_key(study) == "dataset" and not pair_with_controls(study, comparisons[0].results):
        notes.append("losses on different texts are not comparable, so no dataset gets a verdict: vary another key too")
    notes += notes_on_budget(study, comparisons[0])
    if priced := " and ".join(sorted(PRICED & set(study.swept))):
        notes.append(f"parameters, FLOPs and times are at the command's own {priced}, and not at what was swept")
    notes += notes_on_folder(study, ledger, looked_at)
    notes += notes_on_changed_neurons(study, ledger)
    return notes + [
        note for comparison in comparisons for note in notes_on_starts(pair_with_controls(study, comparison.results))
    ]


def notes_on_edges(study: Study, comparison: Comparison) -> list[str]:
    """A sentence for each arm's best value that is the smallest or the largest of a sweep."""
    notes = []
    where = f" at {comparison.where}" if comparison.where else ""
    for result in comparison.results:
        for key in at_edge(study, result.arm, result.point) if result.point else []:
            value = spell(dict(zip(study.swept, result.point, strict=True))[key])
            if f"{key}={value}" != comparison.where:
                notes.append(f"{key} {value}, {result.arm.name}'s best{where}, is at the edge of the sweep: widen it")
    return notes


def notes_on_seeds(study: Study, comparison: Comparison) -> list[str]:
    """A sentence for each arm of which reporting seeds are missing or diverged."""
    notes, planned = [], len(study.seeds["reporting"])
    where = f" at {comparison.where}" if comparison.where else ""
    for result in comparison.results:
        name = result.arm.name + where
        diverged = [str(seed) for seed, record in result.runs.items() if record["loss"] is None]
        if diverged and control_of(study, result.arm) is result.arm:
            notes.append(f"{name}, the control, diverged with seed {', '.join(diverged)}: no arm gets a verdict by it")
        elif diverged:
            notes.append(f"{name} diverged with seed {', '.join(diverged)}, which counts against it")
        if len(result.runs) < planned:
            notes.append(f"{name} has {len(result.runs)} of {planned} reporting runs")
    return notes


def notes_on_budget(study: Study, comparison: Comparison) -> list[str]:
    """A sentence for each arm whose number of steps rests on a measured time."""
    notes = []
    for result in comparison.results[1:] if study.options.match == "time" else []:
        cost, steps = result.cost, result.arm.config.max_iters
        share = 100 * cost.ratio_error / cost.ratio
        sure = f" ± {cost.ratio_error:.3f}: they may be {share:.1f} % too many or too few" if share == share else ""
        measured = f"that was measured as {cost.ratio:.3f} times the control's{sure}"
        notes.append(f"the {steps:,} steps of {result.arm.name} rest on a step's time {measured}")
    return notes


def is_of(record: dict, arm: Arm) -> bool:
    """Whether a record of runs.jsonl is of an arm, whatever it was called where it was run first."""
    default = asdict(TrainConfig())
    for by_file in (False, True):
        settings = settings_of(arm.config, arm.neuron, {}, by_file)
        keys = set(arm.settings) & set(default | settings)  # a dataset is no setting: its identity is in the run's key
        if all((default | record["settings"])[key] == (default | settings)[key] for key in keys):
            return True
    return False


def notes_on_folder(study: Study, ledger: Ledger, looked_at: str) -> list[str]:
    """Sentences on what else was run in this folder, and on earlier reports with fewer seeds."""
    reporting = [record for (kind, _), record in ledger.records.items() if kind == "reporting"]
    others = sorted({record["arm"] for record in reporting if not any(is_of(record, arm) for arm in study.arms)})
    notes = [f"{ledger.path.name} holds reporting runs of other arms too: {', '.join(others)}"] if others else []
    looks = ledger.get("looks", looked_at) or {"seeds": []}
    others = [str(seeds) for seeds in looks["seeds"] if seeds != len(study.seeds["reporting"])]
    if others:
        notes.append(
            f"these arms were judged with {' and '.join(others)} seeds before: a number of seeds that is changed after "
            "a look makes false verdicts more frequent than 5 % (five looks make them about 15 %)"
        )
    return notes
