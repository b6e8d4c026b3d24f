"""Finished runs of the committed studies are recognised, whatever rule a user's neuron was known by when they ran."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from experiment.arms import resolve
from experiment.ledger import key_of, settings_of
from train import TrainConfig
from wiggle import custom_neuron

ROOT = Path(__file__).parent.parent
FILES = {"ablations": "studies/ablations.py", "initial_scale": "studies/shapes.py"}


def records(study):
    """The records of a committed study's runs of users' neurons."""
    lines = map(json.loads, (ROOT / "results" / study / "runs.jsonl").read_text().splitlines())
    runs = [line for line in lines if line["kind"] in ("tuning", "reporting")]
    return [run for run in runs if " " in str(run["settings"].get("mlp"))]


@pytest.mark.parametrize("study", FILES)
def test_a_run_has_the_key_that_its_settings_give_now(study, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = records(study)
    if not found:
        pytest.skip("no run of a user's neuron is committed yet")
    for record in found:
        name = record["settings"]["mlp"].partition(" ")[0]
        neuron = custom_neuron.load_neuron(f"{FILES[study]}:{name}")
        base = resolve(["studies/base.py", "--device=cpu", f"--mlp={neuron.mlp}"], [], [])
        known = {k: v for k, v in record["settings"].items() if k in TrainConfig.__dataclass_fields__ and k != "mlp"}
        config = replace(base, **known)
        by_file = settings_of(config, neuron, record["settings"]["data"], by_file=True)
        by_source = settings_of(config, neuron, record["settings"]["data"])
        assert record["key"] in (key_of(by_file), key_of(by_source))
