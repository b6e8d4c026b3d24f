"""What a run is known by, and that runs.jsonl loses nothing."""

import json

from torch import nn

from experiment.arms import Neuron, resolve
from experiment.ledger import Ledger, key_of, make_run, settings_of, swept_value
from experiment.study import Arm, Study
from train import TrainConfig

WORDS = ["config/compare_tiny.py", "--device=cpu"]


def key(*flags, neuron=None, data="a"):
    return key_of(settings_of(resolve([*WORDS, *flags], [], []), neuron, {"train": data}))


def test_a_runs_key_is_of_what_changes_its_outcome():
    assert key() == key("--log_interval=7", "--wandb_project=x", "--mlp=gelu", "--bio_threshold=0.5")
    others = [
        key("--seed=2"),
        key("--mlp=bio"),
        key("--mlp=bio", "--bio_threshold=0.5"),
        key("--weight_decay=0.2"),
        key("--c_fc_std=0.04"),
        key("--c_fc_std=unit"),
        key(data="b"),
        key(neuron=Neuron("a.py:A", "1", nn.Identity)),
        key(neuron=Neuron("a.py:A", "2", nn.Identity)),
    ]
    assert len({key(), *others}) == 1 + len(others)


def test_a_key_that_came_later_changes_no_hash_while_it_is_at_its_default():
    settings = settings_of(TrainConfig(), None, {})
    assert key_of(settings) == key_of({k: v for k, v in settings.items() if k not in ("beta1", "c_fc_std")})


def study(swept):
    return Study(None, [], [Arm("gelu", {}, TrainConfig())], swept, [], None, {}, 1)


def test_a_point_is_kept_as_a_number_or_by_key():
    assert swept_value(study({}), ()) is None
    assert swept_value(study({"learning_rate": [1.0]}), (1.0,)) == 1.0
    assert swept_value(study({"c_fc_std": [None]}), (None,)) == {"c_fc_std": None}
    grid = {"learning_rate": [1.0], "c_fc_std": ["unit"]}
    assert swept_value(study(grid), (1.0, "unit")) == {"learning_rate": 1.0, "c_fc_std": "unit"}


def test_a_run_says_its_arm_its_point_and_its_seed():
    grid = study({"learning_rate": [1e-3], "c_fc_std": ["unit"]})
    run = make_run(grid, {}, grid.arms[0], "tuning", (1e-3, "unit"), 7)
    assert str(run) == "gelu at learning_rate=0.001, c_fc_std=unit, seed 7"
    assert (run.config.learning_rate, run.config.c_fc_std, run.config.seed) == (1e-3, "unit", 7)


def test_a_line_that_a_crash_cut_is_passed_over_and_the_next_one_stands_alone(tmp_path, capsys):
    path = tmp_path / "runs.jsonl"
    Ledger(path).add("timing", "a", ms=1.0)
    with open(path, "a") as file:
        file.write('{"kind": "reporting", "key": "torn')
    ledger = Ledger(path)
    ledger.add("timing", "b", ms=2.0)
    assert "a damaged line" in capsys.readouterr().out
    assert json.loads(path.read_text().splitlines()[-1])["key"] == "b"
    assert Ledger(path).get("timing", "a")["ms"] == 1.0 and Ledger(path).get("timing", "b")["ms"] == 2.0


def test_a_record_counts_only_where_its_settings_are_the_runs(tmp_path):
    plain = study({})
    run = make_run(plain, {"train": "a"}, plain.arms[0], "reporting", (), 7)
    ledger = Ledger(tmp_path / "runs.jsonl")
    ledger.add("reporting", run.key, settings=run.settings | {"beta2": 0.5})
    assert ledger.finished(run) is None
    ledger.add("reporting", run.key, settings={k: v for k, v in run.settings.items() if k != "beta2"})
    assert ledger.finished(run)


class Branchy(nn.Module):
    def __init__(self, features, config):
        super().__init__()


def test_a_neuron_that_is_given_the_config_may_read_any_key_of_it():
    plain, branchy = (Neuron("a.py:A", "1", build) for build in (nn.Identity, Branchy))
    two, four = (TrainConfig(mlp="a.py:A", dendritic_branches=branches) for branches in (2, 4))
    assert key_of(settings_of(two, plain, {})) == key_of(settings_of(four, plain, {}))
    assert key_of(settings_of(two, branchy, {})) != key_of(settings_of(four, branchy, {}))
