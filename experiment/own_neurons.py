"""Users' own neurons in a comparison: which source an arm is of, and why runs of an earlier one no longer count."""

from experiment.ledger import Ledger
from experiment.study import Study
from wiggle.custom_neuron import Neuron, parse_spec
from wiggle.neuron_identity import changes


def identity_lines(study: Study) -> list[str]:
    """A line of report.md for each user's neuron: the hash of its source with all that this uses."""
    return [f"- {arm.neuron.mlp}: SHA-256 of its source {arm.neuron.sha256}" for arm in study.arms if arm.neuron]


def notes_on_changed_neurons(study: Study, ledger: Ledger) -> list[str]:
    """A sentence for each user's neuron of which a ledger has runs, but only of an earlier source."""
    notes = []
    for neuron in [arm.neuron for arm in study.arms if arm.neuron]:
        others = []
        for (kind, _), record in ledger.records.items():
            name, _, sha256 = str(record.get("settings", {}).get("mlp")).rpartition(" ")
            if kind in ("tuning", "reporting") and name == neuron.name:
                others.append(record | {"sha256": sha256})
        if others and not any(other["sha256"] in (neuron.sha256, neuron.file_sha256) for other in others):
            notes.append(
                f"{parse_spec(neuron.mlp).file}:{neuron.name} changed since: {what_changed(others[-1], neuron)}; "
                f"{ledger.path.name} has {len(others)} of it as it was, which do not count"
            )
    return notes


def what_changed(record: dict, neuron: Neuron) -> str:
    """The pieces of a neuron's source that differ from those that a run had."""
    if "neuron_parts" not in record:
        return "its file, by whose whole text these runs are known"
    return ", ".join(changes(record["neuron_parts"], neuron.parts))
