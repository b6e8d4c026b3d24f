"""The whole of an experiment: tuning, budgets, divergence, and that nothing is lost or done twice."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import compare
from experiment import costs, processes, workers
from experiment.arms import plan_arms, resolve
from model_bio import GPT
from tests.conftest import TINY, FakeRun
from train import train
from wiggle import corpora
from wiggle.dataset import Dataset
from wiggle.guarded_step import Diverged
from wiggle.lock import folder_lock

RELU = """
from torch import nn

class ReLU(nn.ReLU):
    def __init__(self, features):
        super().__init__()
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(costs, "ROUNDS", 1)


@pytest.fixture
def relu(tmp_path):
    (tmp_path / "mine.py").write_text(RELU)
    return f"{tmp_path / 'mine.py'}:ReLU"


def experiment(words, out_dir, *more, vary="mlp=gelu,relu", seeds=2):
    """Run it in this process -> its table, a dict for each arm by name."""
    flags = [f"--vary={vary}", f"--seeds={seeds}", "--jobs=0", f"--out_dir={out_dir}", "--max_blowup=None"]
    compare.main([*words, *flags, *more])
    with open(out_dir / "table.csv") as file:
        return {line["arm"]: line for line in csv.DictReader(file)}


def refused(capsys, arguments):
    """The sentence with which compare.py leaves."""
    with pytest.raises(SystemExit) as left:
        compare.main(["--jobs=0", *arguments])
    assert left.value.code == 1
    return capsys.readouterr().err


@pytest.fixture
def calls(monkeypatch):
    """A list of the configs that runs were trained with; bursts of timing and checking are left out."""
    seen, real = [], workers.train

    def spy(config, neuron=None):
        if config.eval_iters > 1:
            seen.append(config)
        return real(config, neuron)

    monkeypatch.setattr(workers, "train", spy)
    return seen


# --- what is refused, and what is held alike ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vary=mlp=gelu,bio", "--seeds=0"], "seeds and tuning_seeds must lie in 1..1000"),
        (["--vary=mlp=gelu,bio", "--seeds=three"], "invalid int value: 'three'"),
        (["--vary=mlp=gelu,bio", "--also=c_fc_std=None"], "must name one value of a --sweep"),
        (["--vary=mlp=gelu,bio", "--margin=0"], "power and margin are differences in nats above 0"),
        (["--vary=mlp=gelu,bio", "--reuse=nowhere.jsonl"], "there is no file nowhere.jsonl"),
        (["--vary=n_embd=16,18", "--n_head=4"], "n_head=4 does not divide n_embd=18"),
        ([], "required: --vary"),
    ],
)
def test_what_is_no_experiment_is_refused_in_a_sentence(words, capsys, arguments, message):
    error = refused(capsys, [*words, *arguments])
    assert message in error and error.count("\n") == 1


def test_same_seed_means_same_weights_and_same_batches(words, tmp_path, monkeypatch):
    found, _ = plan_arms(["mlp=gelu,bio,dendritic"], [], None, "steps", [*words, "--max_blowup=None"])
    batches, models, real = [], [], Dataset.windows

    def noted(data, split, starts):
        windows = real(data, split, starts)
        batches[-1][split, tuple(starts)] = (
            windows  # by place: training batches are read ahead, in a thread of their own
        )
        return windows

    monkeypatch.setattr(Dataset, "windows", noted)
    for arm in found:
        batches.append({})
        train(replace(arm.config, out_dir=str(tmp_path / arm.name)))
        models.append(dict(GPT(arm.config.gpt_config(9), seed=arm.config.seed).named_parameters()))
    for other, model in zip(batches[1:], models[1:], strict=True):
        assert other.keys() == batches[0].keys() and len(other) > 10
        for place, ours in batches[0].items():
            assert all(torch.equal(a, b) for a, b in zip(ours, other[place], strict=True))
        for name, weight in models[0].items():
            if name in model and model[name].shape == weight.shape:
                assert torch.equal(model[name], weight), name


def test_validation_too_short_for_two_halves_is_refused(corpus, capsys):
    flags = [f"--{key}={value}" for key, value in (TINY | {"data_dir": corpus}).items()]
    assert "tiny has too few validation tokens" in refused(capsys, [*flags, "--vary=mlp=gelu,relu"])


# --- the whole of it ---


@pytest.mark.slow
def test_the_same_model_under_two_names_is_inconclusive(words, tmp_path, relu):
    out = tmp_path / "out"
    sweep = ["--sweep=learning_rate=1e-3,1e-2", "--tuning_seeds=1"]
    table = experiment(words, out, *sweep, vary=f"mlp=relu,{relu}", seeds=3)
    line = table["ReLU"]
    assert line["verdict"] == "inconclusive" and [float(line[k]) for k in ("difference", "low", "high")] == [0, 0, 0]
    assert float(line["parameters_ratio"]) == 1 and line["seeds"] == "3"

    records = [json.loads(text) for text in (out / "runs.jsonl").read_text().splitlines()]
    tuning = {(r["arm"], r["value"], r["seed"]) for r in records if r["kind"] == "tuning"}
    assert tuning == {(arm, value, 2337) for arm in ("relu", "ReLU") for value in (1e-3, 1e-2)}
    assert {r["seed"] for r in records if r["kind"] == "reporting"} == {1337, 1338, 1339}
    best = min((r for r in records if r["kind"] == "tuning"), key=lambda r: r["loss"])
    assert float(line["learning_rate"]) == best["value"]

    text = (out / "report.md").read_text()
    assert "**inconclusive**" in text and "edge of the sweep" in text and "nan" not in text
    assert f"--vary=mlp=relu,{relu}" in text and "--mlp=relu --learning_rate=" in text and "torch 2" in text
    for picture in ("curves.png", "forest.png"):
        assert (out / picture).read_bytes()[:4] == b"\x89PNG"
    assert (out / "runs.jsonl").stat().st_size < 50_000
    assert not list((out / "running").iterdir())


def test_the_reported_loss_is_of_the_last_weights_on_the_other_half(words, tmp_path):
    table = experiment(words, tmp_path / "out", "--keep", seeds=1)
    config = resolve(words, [], [])
    (kept,) = (tmp_path / "out" / "kept").glob("gelu-1337-*")
    model = workers.checkpoint.load_model(kept)[0]  # best, and so last here
    data = Dataset(config.data_dir + "/long", config.block_size, 0)
    data.check_ids(model.config.vocab_size)
    starts = [256 * 16 + 16 * i for i in range(256)]
    found = workers.window_losses(model, data, "val", np.array(starts), torch.device("cpu"), torch.float32).mean()
    assert float(table["gelu"]["val_loss"]) == pytest.approx(found.item(), abs=1e-6)


@pytest.mark.slow
def test_stopped_and_started_again_repeats_nothing(words, tmp_path, calls, monkeypatch, capsys):
    sweep = ["--sweep=learning_rate=1e-3,1e-2", "--tuning_seeds=1"]
    whole = experiment(words, tmp_path / "whole", *sweep)
    assert len(calls) == 8
    real = workers.train

    def stop(config, neuron=None):
        if len(calls) == 13:
            raise KeyboardInterrupt
        return real(config, neuron)

    monkeypatch.setattr(workers, "train", stop)
    with pytest.raises(SystemExit) as left:
        experiment(words, tmp_path / "cut", *sweep)
    assert left.value.code == 130 and "the same command goes on from here" in capsys.readouterr().out
    with open(tmp_path / "cut" / "runs.jsonl", "a") as file:
        file.write('{"kind": "reporting", "key": "torn')
    monkeypatch.setattr(workers, "train", real)
    again = experiment(words, tmp_path / "cut", *sweep)
    assert len(calls) == 16  # five before the stop, three after it
    assert len({(c.mlp, c.seed, c.learning_rate) for c in calls[8:]}) == 8
    for name, line in whole.items():
        same = ("learning_rate", "seeds", "val_loss", "val_sd", "difference", "low", "high", "p_holm", "verdict")
        assert [again[name][key] for key in same] == [line[key] for key in same]

    more = experiment(words, tmp_path / "cut", *sweep, seeds=3)  # one seed more: two runs
    assert len(calls) == 18 and more["gelu"]["seeds"] == "3"
    experiment(words, tmp_path / "other", f"--reuse={tmp_path / 'cut' / 'runs.jsonl'}", vary="mlp=relu,silu")
    assert [c.mlp for c in calls[18:]].count("relu") == (more["relu"]["learning_rate"] != "0.01") * 2


def test_code_that_computes_something_else_is_found_out(words, tmp_path, calls, capsys, monkeypatch):
    experiment(words, tmp_path / "out", seeds=1)
    begun, real = len(calls), workers.train
    monkeypatch.setattr(workers, "train", lambda config, neuron=None: real(replace(config, beta2=0.9), neuron))
    with pytest.raises(SystemExit) as left:
        experiment(words, tmp_path / "out", seeds=2)
    assert left.value.code == 1 and "seed 1337 are not what they were" in capsys.readouterr().err
    assert len(calls) == begun


def test_finished_runs_whose_first_steps_fail_now_are_not_gone_on_from(words, tmp_path, monkeypatch, capsys):
    experiment(words, tmp_path / "out", seeds=1)

    def fails(config, neuron=None):
        raise MemoryError("none left")

    monkeypatch.setattr(workers, "train", fails)
    with pytest.raises(SystemExit):
        experiment(words, tmp_path / "out", seeds=2)
    assert "cannot be taken again to compare their losses" in capsys.readouterr().err


def test_runs_are_one_group_at_wandb_with_arm_and_seed_and_bursts_are_not_logged(words, tmp_path, monkeypatch):
    wandb, begun = pytest.importorskip("wandb"), []

    def init(**options):
        folder = Path(options["dir"], "wandb", f"offline-run-{len(begun)}")
        folder.mkdir(parents=True)
        begun.append(options)
        return FakeRun()

    monkeypatch.setattr(wandb, "init", init)
    experiment(words, tmp_path / "mine", "--wandb_log=True")
    assert {options["group"] for options in begun} == {"mine"}
    found = [(options["config"]["wandb_arm"], options["config"]["seed"]) for options in begun]
    assert found == [("gelu", 1337), ("relu", 1337), ("gelu", 1338), ("relu", 1338)]
    assert begun[0]["name"] == "gelu, seed 1337"
    assert len(list((tmp_path / "mine" / "wandb").iterdir())) == 4  # offline logs outlive the folders of the runs
    experiment(words, tmp_path / "mine")
    assert len(begun) == 4  # whether a run is logged is no part of what it is known by


def test_one_failed_run_does_not_lose_the_others(words, tmp_path, monkeypatch, capsys):
    real = workers.train

    def fails(config, neuron=None):
        if config.mlp == "relu" and config.seed == 1338 and config.eval_iters > 1:
            raise MemoryError("none left")
        return real(config, neuron)

    monkeypatch.setattr(workers, "train", fails)
    with pytest.raises(SystemExit) as left:
        experiment(words, tmp_path / "out", seeds=3)
    out = capsys.readouterr()
    assert left.value.code == 1 and "1 runs failed" in out.err and "FAILED" in out.out and "none left" in out.out
    report_text = (tmp_path / "out" / "report.md").read_text()
    assert "relu has 2 of 3 reporting runs" in report_text and "no verdict" in report_text
    monkeypatch.setattr(workers, "train", real)
    assert experiment(words, tmp_path / "out", seeds=3)["relu"]["seeds"] == "3"


def test_a_diverged_run_is_an_outcome(words, tmp_path, monkeypatch):
    real = workers.train

    def diverges(config, neuron=None):
        if config.learning_rate > 1 and config.eval_iters > 1:
            raise Diverged("not finite")
        return real(config, neuron)

    monkeypatch.setattr(workers, "train", diverges)
    table = experiment(words, tmp_path / "out", "--sweep=learning_rate=1e-3,1e-2,5.0", seeds=1)
    assert {line["learning_rate"] for line in table.values()} <= {"0.001", "0.01"}
    assert "| diverged |" in (tmp_path / "out" / "report.md").read_text()
    experiment(words, tmp_path / "high", "--learning_rate=5.0", seeds=1)
    assert "diverged with seed 1337" in (tmp_path / "high" / "report.md").read_text()


def test_a_varied_key_that_no_arm_reads_is_refused(words, capsys):
    assert "none and feature are the same run" in refused(capsys, [*words, "--vary=bio_gate=none,feature"])


def test_block_sizes_that_part_the_validation_text_otherwise_are_refused(words, capsys):
    assert "block_size 12, 16: each must divide 4096" in refused(capsys, [*words, "--vary=block_size=12,16"])


def test_a_report_with_other_seeds_names_the_looks_before(words, tmp_path, calls):
    experiment(words, tmp_path / "out", seeds=2)
    experiment(words, tmp_path / "out", "--report", seeds=1)
    assert "were judged with 2 seeds before" in (tmp_path / "out" / "report.md").read_text()
    experiment(words, tmp_path / "out", seeds=2)
    assert "were judged with 1 seeds before" in (tmp_path / "out" / "report.md").read_text()


def test_report_alone_runs_nothing(words, tmp_path, calls):
    experiment(words, tmp_path / "out", seeds=1)
    (tmp_path / "out" / "report.md").unlink()
    experiment(words, tmp_path / "out", "--report", seeds=3)
    text = (tmp_path / "out" / "report.md").read_text()
    assert len(calls) == 2 and "has 1 of 3 reporting runs" in text
    command = text[text.index("python compare.py") :].split("\n")[0]
    assert "--report" not in command and "written anew from the ledger" in text


def test_report_that_would_be_empty_leaves_the_one_that_is_there(words, tmp_path, capsys):
    experiment(words, tmp_path / "out", seeds=1)
    before = (tmp_path / "out" / "report.md").read_bytes()
    other = ["--vary=mlp=gelu,silu", "--weight_decay=0.3", f"--out_dir={tmp_path / 'out'}", "--report"]
    assert "no reporting run of this command is finished" in refused(capsys, [*words, *other])
    assert (tmp_path / "out" / "report.md").read_bytes() == before
    swept = ["--vary=mlp=gelu,relu", "--sweep=learning_rate=1e-3,1e-2", f"--out_dir={tmp_path / 'out'}", "--report"]
    assert "(0 of 2 arms are tuned with --tuning_seeds=2)" in refused(capsys, [*words, *swept])


@pytest.mark.slow
def test_steps_that_vary_are_not_called_equal(words, tmp_path):
    table = experiment(words, tmp_path / "out", vary="max_iters=4,6", seeds=1)
    assert [line["steps"] for line in table.values()] == ["4", "6"]
    assert "equal steps" not in (tmp_path / "out" / "report.md").read_text()
    experiment(words, tmp_path / "out", seeds=1)
    assert "All arms had equal steps" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.slow
def test_steps_of_the_table_are_those_of_the_swept_point(words, tmp_path):
    table = experiment(words, tmp_path / "out", "--sweep=max_iters=4,6", "--tuning_seeds=1", seeds=1)
    assert all(line["steps"] == line["max_iters"] for line in table.values())


@pytest.mark.slow
def test_keeping_of_finished_runs_is_said_not_to_be_done(words, tmp_path, capsys):
    experiment(words, tmp_path / "out", seeds=1)
    experiment(words, tmp_path / "out", "--keep", seeds=2)
    assert "2 reporting runs were finished before: --keep has nothing of theirs" in capsys.readouterr().out
    kept = sorted(path.name.rpartition("-")[0] for path in (tmp_path / "out" / "kept").iterdir())
    assert kept == ["gelu-1338", "relu-1338"]
    experiment(words, tmp_path / "out", "--keep", seeds=2)
    assert "2 reporting runs were finished before" in capsys.readouterr().out


@pytest.mark.parametrize("match", ["flops", "time"])
def test_budgets_fix_each_arms_steps(words, tmp_path, calls, monkeypatch, match):
    monkeypatch.setattr(
        costs, "first_steps", lambda configs, hashes, rounds: [([], [9.0, 10.0, 11.0]), ([], [25.0] * 3)]
    )
    flags = ["--max_iters=20", "--lr_decay_iters=10", "--warmup_iters=5", "--eval_interval=20", f"--match={match}"]
    table = experiment(words, tmp_path / "out", *flags, vary="n_layer=1,4", seeds=1)
    flops = [float(line["flops_per_token"]) + float(line["activation_flops_per_token"]) for line in table.values()]
    ratio = 2.5 if match == "time" else flops[1] / flops[0]
    assert [int(table[name]["steps"]) for name in ("1", "4")] == [20, round(20 / ratio)]
    assert [c.lr_decay_iters for c in calls] == [10, round(10 / ratio)]
    assert [c.warmup_iters for c in calls] == [5, round(5 / ratio)]
    if match == "time":
        assert float(table["4"]["ms_per_step_ratio"]) == 2.5
        error = np.std([25 / 9, 25 / 10, 25 / 11], ddof=1) / 3**0.5
        assert float(table["4"]["ms_per_step_ratio_error"]) == pytest.approx(error)
        text = (tmp_path / "out" / "report.md").read_text()
        assert "the 8 steps of 4 rest on a step's time that was measured as 2.500 times the control's ± 0.146" in text


def diverging(monkeypatch, fails):
    """Make the runs diverge for whose config `fails` is true."""
    real = workers.train

    def train_or_diverge(config, neuron=None):
        if config.eval_iters > 1 and fails(config):
            raise Diverged("not finite")
        return real(config, neuron)

    monkeypatch.setattr(workers, "train", train_or_diverge)


def test_an_arm_that_diverged_with_one_seed_is_not_better_and_the_report_says_so(words, tmp_path, monkeypatch):
    diverging(monkeypatch, lambda config: config.mlp == "relu" and config.seed == 1338)
    table = experiment(words, tmp_path / "out", seeds=6)
    assert table["relu"]["verdict"] in ("inconclusive", "worse")
    assert (table["relu"]["seeds"], table["relu"]["diverged"]) == ("5", "1")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "5 of 6 seeds, 1 diverged" in text and "relu diverged with seed 1338, which counts against it" in text


def test_a_control_that_diverged_leaves_no_verdict_and_no_nan(words, tmp_path, monkeypatch, capsys):
    diverging(monkeypatch, lambda config: config.mlp == "gelu")
    table = experiment(words, tmp_path / "out", seeds=3)
    assert table["relu"]["verdict"] == "no verdict" and table["relu"]["difference"] == ""
    text = (tmp_path / "out" / "report.md").read_text()
    assert "gelu, the control, diverged with seed 1337, 1338, 1339: no arm gets a verdict" in text
    assert "nan" not in text + capsys.readouterr().out


# --- two varied keys ---


def test_each_level_of_the_second_key_has_its_own_control_and_the_interaction_a_line(words, tmp_path):
    grid = ["--vary=n_layer=1,2", "--max_iters=2", "--warmup_iters=1"]
    table = experiment(words, tmp_path / "out", *grid, seeds=3)
    assert [name for name, line in table.items() if line["verdict"] == "control"] == ["gelu 1", "gelu 2"]
    apart = {name: float(line["difference"]) for name, line in table.items() if line["difference"]}
    means = {name: float(line["val_loss"]) for name, line in table.items() if line["val_loss"]}
    assert apart["relu 2"] == pytest.approx(means["relu 2"] - means["gelu 2"], abs=1e-6)
    assert apart["interaction of relu 2"] == pytest.approx(apart["relu 2"] - apart["relu 1"], abs=1e-6)
    text = (tmp_path / "out" / "report.md").read_text()
    assert "relu 1 against gelu 1, relu 2 against gelu 2" in text and "- interaction of relu 2: **" in text


@pytest.fixture(scope="session")
def other_words(words):
    """`words` with a second dataset, 'bytes', beside it: the same text in bytes, so another vocabulary."""
    folder = Path(words[0]).parent
    if not (folder / "data" / "bytes").exists():
        corpora.prepare(str(folder / "long.txt"), data_dir=str(folder / "data"), tokenizer="byte", name="bytes")
    return words


def test_each_dataset_is_judged_by_itself_and_compared_in_bits_a_byte(other_words, tmp_path):
    short = ["--vary=dataset=long,bytes", "--max_iters=2", "--warmup_iters=1", "--target_loss=1.0"]
    table = experiment(other_words, tmp_path / "out", *short, seeds=3)
    verdicts = {name: line["verdict"] for name, line in table.items()}
    assert [name for name, verdict in verdicts.items() if verdict == "control"] == ["gelu long", "gelu bytes"]
    assert len(table) == 4 and {records["arm"] for records in records_of(tmp_path / "out", "reporting")} == set(table)
    for line in table.values():
        assert float(line["bits_per_byte"]) == pytest.approx(float(line["val_loss"]) / np.log(2), rel=1e-6)
        assert (line["seeds_at_target"], line["tokens_to_target"]) == ("0", "")
    assert int(table["gelu bytes"]["parameters"]) > int(table["gelu long"]["parameters"])  # 256 tokens, not 9
    text = (tmp_path / "out" / "report.md").read_text()
    assert "relu long against gelu long, relu bytes against gelu bytes" in text and "| bits a byte |" in text
    assert "losses on different texts are not comparable" in text and "interaction" not in text


def test_datasets_alone_get_no_verdict(other_words, tmp_path):
    flags = ["--seeds=3", "--jobs=0", f"--out_dir={tmp_path}", "--max_iters=2", "--warmup_iters=1"]
    compare.main([*other_words, "--vary=dataset=long,bytes", *flags])
    text = (tmp_path / "report.md").read_text()
    assert "so no dataset gets a verdict: vary another key too" in text and text.count("**no verdict**") == 2
    assert "](forest.png)" not in text and not (tmp_path / "forest.png").exists()


# --- a grid of swept keys ---

GRID = ["--sweep=learning_rate=1e-3,1e-2", "--sweep=c_fc_std=None,unit"]


def records_of(out_dir, stage):
    records = [json.loads(text) for text in (out_dir / "runs.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == stage]


def test_a_grid_is_tuned_for_each_arm_alike(words, tmp_path, calls):
    table = experiment(words, tmp_path / "out", *GRID, seeds=1)
    tuning = records_of(tmp_path / "out", "tuning")
    points = {(r["arm"], r["seed"], *r["value"].values()) for r in tuning}
    assert points == {(arm, seed, rate, std) for arm in ("gelu", "relu") for seed in (2337, 2338)
                      for rate in (1e-3, 1e-2) for std in (None, "unit")}  # fmt: skip
    assert {(c.mlp, c.learning_rate, c.c_fc_std) for c in calls} == {(p[0], p[2], p[3]) for p in points}
    for name, line in table.items():
        losses = {}
        for record in (r for r in tuning if r["arm"] == name):
            losses.setdefault(tuple(record["value"].values()), []).append(record["loss"])
        rate, std = min(losses, key=lambda point: sum(losses[point]))
        assert (line["learning_rate"], line["c_fc_std"]) == (f"{rate:g}", str(std))
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| arm | c_fc_std | learning_rate 0.001 | learning_rate 0.01 |" in text
    assert "| gelu | unit | " in text and "seed 2337, 2338" in text
    assert re.search(r"python train.py .*--mlp=gelu --learning_rate=0.01 --c_fc_std=\S+ --seed=1337", text)


def test_finalists_alone_go_on_to_the_second_tuning_seed(words, tmp_path, calls, capsys):
    flags = [*GRID, "--also=c_fc_std=None", "--finalists=1"]
    experiment(words, tmp_path / "out", *flags, seeds=1)
    for name in ("gelu", "relu"):
        tuning = [r for r in records_of(tmp_path / "out", "tuning") if r["arm"] == name]
        first = {tuple(r["value"].values()): r["loss"] for r in tuning if r["seed"] == 2337}
        second = {tuple(r["value"].values()) for r in tuning if r["seed"] == 2338}
        assert len(first) == 4  # the whole grid
        assert second == {min(first, key=first.get), min((p for p in first if p[1] is None), key=first.get)}
    begun, ended = len(calls), capsys.readouterr().out
    assert re.findall(r"(\d+)/(\d+) \S+ at", ended)[-1] == (str(begun), str(begun))
    experiment(words, tmp_path / "out", *flags, seeds=1)
    assert len(calls) == begun
    assert "from the first seed to the next" in (tmp_path / "out" / "report.md").read_text()


def test_finalists_take_a_sweep_and_a_second_seed(words, capsys):
    sentence = "--finalists=K takes a K of 1 or more, a --sweep to choose from and two --tuning_seeds or more"
    for flags in (["--finalists=1"], [GRID[0], "--finalists=0"], [GRID[0], "--finalists=1", "--tuning_seeds=1"]):
        assert sentence in refused(capsys, [*words, "--vary=mlp=gelu,relu", *flags])


@pytest.mark.slow
def test_also_reports_each_arm_at_the_best_point_of_another_value(words, tmp_path, calls):
    also = ["--also=c_fc_std=None", "--tuning_seeds=1"]
    best = experiment(words, tmp_path / "out", *GRID, *also, seeds=2)
    with open(tmp_path / "out" / "table-c_fc_std=None.csv") as file:
        second = {line["arm"]: line for line in csv.DictReader(file)}
    assert {line["c_fc_std"] for line in second.values()} == {"None"}
    assert {line["seeds"] for line in second.values()} == {"2"}
    reporting = records_of(tmp_path / "out", "reporting")
    wanted = {
        (name, line["learning_rate"], line["c_fc_std"]) for table in (best, second) for name, line in table.items()
    }
    assert len(reporting) == 2 * len(wanted) == len(calls) - 8  # a point that is the best and this one is run once
    text = (tmp_path / "out" / "report.md").read_text()
    assert "## At c_fc_std=None" in text and "forest-c_fc_std=None.png" in text
    begun = len(calls)
    experiment(words, tmp_path / "out", *GRID, *also, seeds=2)
    assert len(calls) == begun


@pytest.mark.slow
def test_a_second_sweep_goes_on_from_the_runs_of_the_first(words, tmp_path, calls):
    experiment(words, tmp_path / "out", GRID[0], "--tuning_seeds=1", seeds=1)
    begun = len(calls)
    experiment(words, tmp_path / "out", *GRID, "--tuning_seeds=1", seeds=1)
    assert {c.c_fc_std for c in calls[begun:] if c.seed == 2337} == {"unit"}


# --- what else was looked at ---


@pytest.mark.slow
def test_seeds_that_are_added_after_a_report_are_marked(words, tmp_path):
    looked = "these arms were judged with"
    experiment(words, tmp_path / "out", seeds=1)
    experiment(words, tmp_path / "out", seeds=1)
    assert looked not in (tmp_path / "out" / "report.md").read_text()
    experiment(words, tmp_path / "out", seeds=2)
    assert f"{looked} 1 seeds before" in (tmp_path / "out" / "report.md").read_text()
    experiment(words, tmp_path / "out", vary="mlp=gelu,silu", seeds=2)
    assert looked not in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.slow
def test_the_report_names_other_arms_of_its_folder(words, tmp_path):
    experiment(words, tmp_path / "out", vary="mlp=gelu,silu", seeds=1)
    assert "other arms" not in (tmp_path / "out" / "report.md").read_text()
    experiment(words, tmp_path / "out", seeds=1)
    assert "runs.jsonl holds reporting runs of other arms too: silu" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.slow
def test_reused_runs_of_another_name_are_not_another_arm(words, tmp_path):
    experiment(words, tmp_path / "first", seeds=1)
    grid = ["--vary=n_layer=1,2", f"--reuse={tmp_path / 'first' / 'runs.jsonl'}"]
    experiment(words, tmp_path / "out", *grid, seeds=1)
    assert '"arm": "gelu 1"' in (tmp_path / "out" / "runs.jsonl").read_text()  # of the timing; the run is called gelu
    assert "other arms" not in (tmp_path / "out" / "report.md").read_text()


# --- what may happen to a study from outside ---


@pytest.mark.slow
def test_a_second_comparison_in_the_same_folder_is_refused_and_a_report_is_not(words, tmp_path, capsys):
    experiment(words, tmp_path / "out", seeds=1)
    with folder_lock(tmp_path / "out", "a comparison"):
        out = f"--out_dir={tmp_path / 'out'}"
        message = refused(capsys, [*words, "--vary=mlp=gelu,relu", "--seeds=1", out])
        assert "is in use by a comparison" in message and message.count("\n") == 1
        experiment(words, tmp_path / "out", "--report", seeds=1)
    experiment(words, tmp_path / "out", seeds=1)


def test_a_neuron_that_is_edited_while_the_study_runs_ends_its_runs_with_a_sentence(
    words, tmp_path, relu, calls, monkeypatch, capsys
):
    real = workers.train

    def edit_after_the_first(config, neuron=None):
        result = real(config, neuron)
        if len(calls) == 2:
            (tmp_path / "mine.py").write_text(RELU.replace("__init__()", "__init__(inplace=False)"))
        return result

    monkeypatch.setattr(workers, "train", edit_after_the_first)
    with pytest.raises(SystemExit) as left:
        experiment(words, tmp_path / "out", vary=f"mlp={relu},gelu", seeds=3)
    out = capsys.readouterr()
    assert left.value.code == 1 and "2 runs failed" in out.err
    assert out.out.count("mine.py was edited while the comparison ran: undo that, or start the command again") == 2
    assert [r["seed"] for r in records_of(tmp_path / "out", "reporting") if r["arm"] == "ReLU"] == [1337]


HELPED = """
from torch import nn
from helping import bend

class Topk(nn.Module):
    def forward(self, x):
        return bend(x)
"""


def test_runs_count_while_what_the_neuron_uses_is_as_it_was_and_the_report_says_what_changed(
    words, tmp_path, calls, capsys
):
    helper, mine, out = tmp_path / "helping.py", tmp_path / "mine.py", tmp_path / "out"
    helper.write_text("def bend(x):\n    return x.relu()\n")
    mine.write_text(HELPED)
    compared = f"mlp={mine}:Topk,gelu"
    experiment(words, out, vary=compared, seeds=1)
    assert "SHA-256 of its source" in (out / "report.md").read_text() and len(calls) == 2

    mine.write_text(HELPED + "\nclass Unrelated(nn.ReLU):\n    pass\n")
    experiment(words, out, vary=compared, seeds=1)
    assert len(calls) == 2 and "changed since" not in capsys.readouterr().out

    helper.write_text("def bend(x):\n    return x.relu() ** 2\n")
    experiment(words, out, vary=compared, seeds=1)
    assert len(calls) == 3
    note = f"{mine}:Topk changed since: helping.py function bend; runs.jsonl has 1 of it as it was, which do not count"
    assert note in capsys.readouterr().out


def test_arguments_of_a_neuron_are_varied_and_label_its_arms(words, tmp_path):
    top = "studies/own_neurons.py:TopK"
    table = experiment(words, tmp_path / "out", vary=f"mlp=gelu,{top}(share=0.1),{top}(share=0.5)", seeds=1)
    assert list(table) == ["gelu", "TopK(share=0.1)", "TopK(share=0.5)"]
    assert len({line["val_loss"] for line in table.values()}) == 3
    kept = {record["settings"]["mlp"].partition(" ")[0] for record in records_of(tmp_path / "out", "reporting")}
    assert kept == set(table)


def test_a_sweep_of_what_an_arm_has_no_place_for_runs_it_once(words, tmp_path, calls):
    sweep = ["--sweep=c_fc_std=None,unit", "--tuning_seeds=1"]
    experiment(words, tmp_path / "out", *sweep, vary="mlp=gelu,studies/own_neurons.py:Yat", seeds=1)
    assert [config.mlp.rpartition(":")[2] for config in calls].count("Yat") == 2  # tuned once, reported once


def test_first_steps_are_not_taken_of_an_edited_neuron(words, tmp_path, relu):
    config = resolve([*words, f"--mlp={relu}"], [], [])
    found = processes.outcome_or_error(workers.first_steps, ([config], ["another hash"], 1))
    assert found[0] is None and "was edited while the comparison ran" in found[1]


@pytest.mark.parametrize("out_dir", ["file/out", "file"])
def test_a_folder_that_cannot_be_written_is_named_in_a_sentence(words, tmp_path, capsys, out_dir):
    (tmp_path / "file").write_text("no folder")
    message = refused(capsys, [*words, "--vary=mlp=gelu,relu", f"--out_dir={tmp_path / out_dir}"])
    assert f"cannot write {tmp_path / out_dir}" in message and message.count("\n") == 1


# --- processes ---


def command(words, out, *more):
    return [sys.executable, "compare.py", *words, "--vary", "mlp=gelu,relu", f"--out_dir={out}", *more]


@pytest.mark.slow
def test_processes_survive_a_kill(words, tmp_path, request):
    """Real processes, two at a time: killed hard in the middle, run again, compared with a study that was not."""
    here = {"cwd": request.config.rootpath, "env": os.environ | {"OMP_NUM_THREADS": "1"}, "text": True}
    flags = ["--seeds=3", "--max_iters=400", "--eval_interval=200", "--jobs=2"]
    subprocess.run(command(words, tmp_path / "whole", *flags), check=True, **here)
    study = subprocess.Popen(command(words, tmp_path / "cut", *flags), **here)
    ledger = tmp_path / "cut" / "runs.jsonl"
    while not ledger.exists() or ledger.read_text().count('"kind": "reporting"') < 2:
        assert study.poll() is None
        time.sleep(0.05)
    study.send_signal(signal.SIGKILL)
    study.wait()
    done = [line for line in ledger.read_text().splitlines() if '"kind": "reporting"' in line]
    assert 2 <= len(done) < 6
    again = subprocess.run(command(words, tmp_path / "cut", *flags), capture_output=True, **here)
    assert again.returncode == 0, again.stderr
    assert all(line in ledger.read_text() for line in done)
    assert sum('"kind": "reporting"' in line for line in ledger.read_text().splitlines()) == 6
    tables = []
    for name in ("whole", "cut"):
        with open(tmp_path / name / "table.csv") as file:
            lines = list(csv.DictReader(file))
        tables.append([[line[key] for key in ("val_loss", "val_sd", "difference", "verdict")] for line in lines])
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_a_process_that_dies_is_one_failed_run(words, tmp_path, request):
    (tmp_path / "dies.py").write_text(
        "import multiprocessing, os, torch\n\nclass Dies(torch.nn.Module):\n    def __init__(self, features):\n"
        "        super().__init__()\n\n    def forward(self, x):\n"
        "        if multiprocessing.parent_process():\n            os.kill(os.getpid(), 9)\n        return x\n"
    )
    out = tmp_path / "out"
    arguments = command(words, out, "--seeds=1", "--max_blowup=None")
    arguments[arguments.index("mlp=gelu,relu")] = f"mlp=gelu,{tmp_path / 'dies.py'}:Dies"
    study = subprocess.run(arguments, cwd=request.config.rootpath, capture_output=True, text=True)
    assert study.returncode == 1 and "1 runs failed, the others are kept" in study.stderr
    assert "Dies, seed 1337: FAILED" in study.stdout and "its process was killed" in study.stdout
    assert "| gelu |" in (out / "report.md").read_text()


@pytest.mark.parametrize(
    ("device", "dtype", "most"), [("cpu", "bfloat16", 1e-5), ("cuda:0", "bfloat16", 1e-3), ("cuda", "float32", 1e-4)]
)
def test_losses_may_differ_by_a_cards_own_noise_and_on_a_cpu_by_rounding_alone(device, dtype, most):
    """A card adds an embedding's gradients in any order: 1e-4 of a loss in bfloat16, by which no run was another."""
    assert compare.tolerance(device, dtype) == most
