"""The experiment: isolation, statistics, tuning, budgets, and that nothing is lost or done twice."""

import csv
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch
from scipy import stats

import compare
from experiment import arms, report, workers
from model_bio import GPT
from tests.conftest import TINY
from train import TrainConfig, train
from wiggle import corpora
from wiggle.dataset import Dataset
from wiggle.errors import UserError
from wiggle.guarded_step import Diverged

RELU = """
from torch import nn

class ReLU(nn.ReLU):
    def __init__(self, features):
        super().__init__()
"""


@pytest.fixture(scope="session")
def words(tmp_path_factory):
    """The command line of a tiny experiment, on a corpus whose validation split has two blocks of 4,096 and more."""
    folder, draw = tmp_path_factory.mktemp("long"), random.Random(0)
    vocabulary = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 5))) for _ in range(40)]
    (folder / "long.txt").write_text("\n".join(" ".join(draw.choices(vocabulary, k=8)) for _ in range(3000)))
    corpora.prepare(str(folder / "long.txt"), data_dir=str(folder / "data"))
    tiny = TINY | {"dataset": "long", "data_dir": str(folder / "data"), "n_layer": 1, "eval_interval": 2}
    (folder / "tiny.py").write_text("".join(f"{key} = {value!r}\n" for key, value in tiny.items()))
    return [str(folder / "tiny.py")]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(compare, "ROUNDS", 1)


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


# --- isolation ---


def test_a_second_key_is_refused_by_name(words, tmp_path, capsys):
    (tmp_path / "two.py").write_text('if mlp == "bio":\n    weight_decay = 0.2\n')
    message = refused(capsys, [*words, str(tmp_path / "two.py"), "--vary=mlp=gelu,bio"])
    assert "weight_decay differs too: 0.1 in gelu, 0.2 in bio; arms may differ in mlp alone" in message
    (tmp_path / "two.py").write_text('learning_rate = 1e-2 if mlp == "bio" else 1e-3\n')
    message = refused(capsys, [*words, str(tmp_path / "two.py"), "--vary=mlp=gelu,bio"])
    assert "learning_rate differs too" in message
    found, tuned, values = arms.plan(  # the tuned key is set by the sweep, whatever the file says
        ["mlp=gelu,bio"], "learning_rate=1e-3,1e-2", None, "steps", [*words, str(tmp_path / "two.py")]
    )
    assert [arm.name for arm in found] == ["gelu", "bio"] and tuned == "learning_rate" and values == [1e-3, 1e-2]


def test_a_file_that_is_not_the_same_twice_is_refused(words, tmp_path, capsys):
    (tmp_path / "dice.py").write_text("import itertools, sys\nsys.dice = getattr(sys, 'dice', itertools.count(1))\n"
                                      "warmup_iters = next(sys.dice)\n")  # fmt: skip
    assert "warmup_iters differs too" in refused(capsys, [*words, str(tmp_path / "dice.py"), "--vary=mlp=gelu,bio"])


def test_same_seed_means_same_weights_and_same_batches(words, tmp_path, monkeypatch):
    found, _, _ = arms.plan(["mlp=gelu,bio,dendritic"], None, None, "steps", [*words, "--max_blowup=None"])
    batches, models, real = [], [], Dataset.windows
    monkeypatch.setattr(Dataset, "windows", lambda *a: batches[-1].append(out := real(*a)) or out)
    for arm in found:
        batches.append([])
        train(arms.replace(arm.config, out_dir=str(tmp_path / arm.name)))
        models.append(dict(GPT(arm.config.gpt_config(9), seed=arm.config.seed).named_parameters()))
    for other, model in zip(batches[1:], models[1:], strict=True):
        assert len(other) == len(batches[0]) > 10
        assert all(torch.equal(a, b) for ours, theirs in zip(batches[0], other, strict=True)
                   for a, b in zip(ours, theirs, strict=True))  # fmt: skip
        for name, weight in models[0].items():
            if name in model and model[name].shape == weight.shape:
                assert torch.equal(model[name], weight), name


def test_a_grid_has_every_cell_that_is_a_model_of_its_own(words):
    found, _, _ = arms.plan(["mlp=gelu,bio", "bio_gate=none,feature"], None, None, "steps", words)
    assert [arm.name for arm in found] == ["gelu", "bio none", "bio feature"]
    found, _, _ = arms.plan(["mlp=gelu,bio", "n_layer=1,2"], None, "bio 2", "steps", words)
    assert [arm.name for arm in found] == ["bio 2", "gelu 1", "gelu 2", "bio 1"]
    found, _, _ = arms.plan(["use_bio_mlp=False,True"], None, None, "steps", words)
    assert [(arm.name, arm.config.mlp) for arm in found] == [("gelu", "gelu"), ("bio", "bio")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vary=seed=1,2"], "seed is no property of the model"),
        (["--vary=mlp=gelu,bio", "--sweep=out_dir=1,2"], "out_dir is no property"),
        (["--vary=lerning_rate=1,2"], "did you mean 'learning_rate'?"),
        (["--vary=mlp=gelu,gelu"], "names one arm twice"),
        (["--vary=mlp=gelu"], "two arms or more"),
        (["--vary=mlp=gelu,bio", "--control=relu"], "one of them the control; there are: gelu, bio"),
        (["--vary=mlp=gelu,bio", "--sweep=mlp=gelu,bio"], "sweep another one"),
        (["--vary=mlp=gelu,bio", "--vary=bias=True,False", "--vary=dropout=0,0.1"], "two as a full grid"),
        (["--vary=mlp=gelu,bio", "--sweep=lr_schedule=wsd,cosine"], "takes numbers, which lr_schedule is not"),
        (["--vary=mlp=gelu,bio", "--match=time", "--sweep=max_iters=5,6"], "--match=time sets the number of steps"),
        (["--vary=mlp=gelu,", "--seeds=3"], "not of the form KEY=A,B"),
        (["--vary=mlp=gelu,bio", "--seeds=0"], "seeds and tuning_seeds must lie in 1..1000"),
        (["--vary=mlp=gelu,bio", "--seeds=three"], "invalid int value: 'three'"),
        (["--vary=mlp=gelu,bio", "--init_from=resume"], "from scratch"),
        (["--vary=mlp=gelu,bio", "--batch_size=auto"], "batch_size"),
        (["--vary=n_embd=16,18", "--n_head=4"], "n_head=4 does not divide n_embd=18"),
        ([], "required: --vary"),
    ],
)
def test_what_is_no_experiment_is_refused_in_a_sentence(words, capsys, arguments, message):
    error = refused(capsys, [*words, *arguments])
    assert message in error and error.count("\n") == 1


def test_validation_too_short_for_two_halves_is_refused(corpus, capsys):
    flags = [f"--{key}={value}" for key, value in (TINY | {"data_dir": corpus}).items()]
    assert "tiny has too few validation tokens" in refused(capsys, [*flags, "--vary=mlp=gelu,relu"])


def test_halves_are_alternating_blocks():
    assert workers.halves(200, 64).tolist() == [0] * 64 + [1] * 64 + [0] * 64 + [1] * 8
    assert workers.halves(6, 3000).tolist() == [0, 1, 0, 1, 0, 1]  # no window is cut, even where 4,096 is no multiple
    assert workers.halves(4, 10_000).tolist() == [0, 1, 0, 1]


# --- what a run is known by ---


def test_a_runs_key_is_of_what_changes_its_outcome(words):
    def key(*flags, neuron=None, data="a"):
        config = arms.resolve([*words, *flags], [], [])
        return arms.key_of(arms.settings_of(config, neuron, {"train": data}))

    assert key() == key("--log_interval=7", "--wandb_project=x", "--mlp=gelu", "--bio_threshold=0.5")
    assert len({key(), key("--seed=2"), key("--mlp=bio"), key("--mlp=bio", "--bio_threshold=0.5"), key(data="b"),
                key("--weight_decay=0.2"), key(neuron=arms.Neuron("A", "1", None)),
                key(neuron=arms.Neuron("A", "2", None))}) == 8  # fmt: skip
    settings = arms.settings_of(TrainConfig(), None, {})
    assert arms.key_of(settings) == arms.key_of({k: v for k, v in settings.items() if k != "beta1"})  # a key to come


# --- statistics ---


def by_seed(values):
    return dict(enumerate(values))


def test_paired_is_the_t_test_of_scipy():
    draw = np.random.default_rng(0)
    control, arm = draw.normal(1.7, 0.01, 6), draw.normal(1.69, 0.01, 6)
    found = report.paired(by_seed(arm), by_seed(control) | {99: 5.0})  # a seed that only one has is left out
    expected = stats.ttest_rel(arm, control)
    half = stats.t.ppf(0.975, 5) * np.std(arm - control, ddof=1) / math.sqrt(6)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert found.mean == pytest.approx((arm - control).mean())
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half))


def test_verdicts_take_holms_p_and_three_seeds():
    def difference(mean, p, n=5):
        return report.Difference(np.full(n, mean), mean, p=p)

    first, second, third, few = report.judge(
        [difference(-0.1, 0.03), difference(0.2, 0.001), difference(-0.3, 0.04), difference(-1, 1e-9, n=2)]
    )
    assert [d.p_holm for d in (second, first, third)] == pytest.approx([0.003, 0.06, 0.06])
    verdicts = ["inconclusive", "worse", "inconclusive", "no verdict"]
    assert [d.verdict for d in (first, second, third, few)] == verdicts
    assert report.judge([difference(-0.1, 0.03)])[0].verdict == "better"


@pytest.mark.parametrize("seeds", [0, 1, 2, 3, 5])
def test_arms_without_any_difference_are_inconclusive(seeds):
    same = by_seed([1.5 + 0.1 * i for i in range(seeds)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (found,) = report.judge([report.paired(same, dict(same))])
    assert found.verdict == ("inconclusive" if seeds >= 3 else "no verdict")
    if seeds >= 2:
        assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_one_arm_against_itself_gets_no_verdict(tiny, tmp_path, monkeypatch):
    """Real runs of one arm, split at random into two "arms": of 2,000 splits at most 6 % may end in a verdict."""
    small = {"n_layer": 1, "n_embd": 8, "n_head": 1, "max_iters": 4, "eval_interval": 4}
    pool = np.array([train(tiny(seed=seed, out_dir=str(tmp_path / str(seed)), **small)).val_loss for seed in range(24)])
    assert len(set(pool)) == 24
    monkeypatch.setattr("gc.collect", lambda: 0)  # statsmodels collects at each call, which takes longer than all else
    draw, false = np.random.default_rng(0), 0
    for _ in range(2000):
        chosen = draw.permutation(pool)[:10]
        (found,) = report.judge([report.paired(by_seed(chosen[:5]), by_seed(chosen[5:]))])
        false += found.verdict in ("better", "worse")
    assert 20 <= false <= 0.06 * 2000  # more than a few, too: a test that never speaks would be none


# --- the whole of it ---


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
    config = arms.resolve(words, [], [])
    model = workers.checkpoint.load_model(tmp_path / "out" / "kept" / "gelu-1337")[0]  # best, and so last here
    data = Dataset(config.data_dir + "/long", config.block_size, 0)
    data.check_ids(model.config.vocab_size)
    starts = [256 * 16 + 16 * i for i in range(256)]
    found = workers.window_losses(model, data, "val", np.array(starts), torch.device("cpu"), torch.float32).mean()
    assert float(table["gelu"]["val_loss"]) == pytest.approx(found.item(), abs=1e-6)


def test_stopped_and_started_again_repeats_nothing(words, tmp_path, calls, monkeypatch, capsys):
    whole = experiment(words, tmp_path / "whole", "--sweep=learning_rate=1e-3,1e-2")
    assert len(calls) == 8
    real = workers.train

    def stop(config, neuron=None):
        if len(calls) == 13:
            raise KeyboardInterrupt
        return real(config, neuron)

    monkeypatch.setattr(workers, "train", stop)
    with pytest.raises(SystemExit) as left:
        experiment(words, tmp_path / "cut", "--sweep=learning_rate=1e-3,1e-2")
    assert left.value.code == 130 and "the same command goes on from here" in capsys.readouterr().out
    with open(tmp_path / "cut" / "runs.jsonl", "a") as file:
        file.write('{"kind": "reporting", "key": "torn')
    monkeypatch.setattr(workers, "train", real)
    again = experiment(words, tmp_path / "cut", "--sweep=learning_rate=1e-3,1e-2")
    assert len(calls) == 16  # five before the stop, three after it
    assert len({(c.mlp, c.seed, c.learning_rate) for c in calls[8:]}) == 8
    for name, line in whole.items():
        same = ("learning_rate", "seeds", "val_loss", "val_sd", "difference", "low", "high", "p_holm", "verdict")
        assert [again[name][key] for key in same] == [line[key] for key in same]

    more = experiment(words, tmp_path / "cut", "--sweep=learning_rate=1e-3,1e-2", seeds=3)  # one seed more: two runs
    assert len(calls) == 18 and more["gelu"]["seeds"] == "3"
    experiment(words, tmp_path / "other", f"--reuse={tmp_path / 'cut' / 'runs.jsonl'}", vary="mlp=relu,silu")
    assert [c.mlp for c in calls[18:]].count("relu") == (more["relu"]["learning_rate"] != "0.01") * 2


def test_code_that_computes_something_else_is_found_out(words, tmp_path, calls, capsys, monkeypatch):
    experiment(words, tmp_path / "out", seeds=1)
    begun, real = len(calls), workers.train
    monkeypatch.setattr(workers, "train", lambda config, neuron=None: real(arms.replace(config, beta2=0.9), neuron))
    with pytest.raises(SystemExit) as left:
        experiment(words, tmp_path / "out", seeds=2)
    assert left.value.code == 1 and "seed 1337 are not what they were" in capsys.readouterr().err
    assert len(calls) == begun


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
    assert "| inf |" in (tmp_path / "out" / "report.md").read_text()
    experiment(words, tmp_path / "high", "--learning_rate=5.0", seeds=1)
    assert "diverged with seed 1337" in (tmp_path / "high" / "report.md").read_text()


def test_report_alone_runs_nothing(words, tmp_path, calls):
    experiment(words, tmp_path / "out", seeds=1)
    (tmp_path / "out" / "report.md").unlink()
    experiment(words, tmp_path / "out", "--report", seeds=3)
    assert len(calls) == 2 and "has 1 of 3 reporting runs" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize("match", ["flops", "time"])
def test_budgets_fix_each_arms_steps(words, tmp_path, calls, monkeypatch, match):
    monkeypatch.setattr(compare, "bursts", lambda configs, rounds: [([], [10.0]), ([], [25.0])][: len(configs)])
    flags = ["--max_iters=20", "--lr_decay_iters=10", "--eval_interval=20", f"--match={match}"]
    table = experiment(words, tmp_path / "out", *flags, vary="n_layer=1,4", seeds=1)
    ratio = 2.5 if match == "time" else float(table["4"]["flops_per_token_ratio"])
    assert [int(table[name]["steps"]) for name in ("1", "4")] == [20, round(20 / ratio)]
    assert [c.lr_decay_iters for c in calls] == [10, round(10 / ratio)]
    if match == "time":
        assert float(table["4"]["ms_per_step_ratio"]) == 2.5


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
        "import os, torch\n\nclass Dies(torch.nn.Module):\n    def __init__(self, features):\n"
        "        super().__init__()\n\n    def forward(self, x):\n"
        "        if self.training and torch.is_grad_enabled():\n            os.kill(os.getpid(), 9)\n        return x\n"
    )
    out = tmp_path / "out"
    arguments = command(words, out, "--seeds=1", "--max_blowup=None")
    arguments[arguments.index("mlp=gelu,relu")] = f"mlp=gelu,{tmp_path / 'dies.py'}:Dies"
    study = subprocess.run(arguments, cwd=request.config.rootpath, capture_output=True, text=True)
    assert study.returncode == 1 and "1 runs failed, the others are kept" in study.stderr
    assert "Dies, seed 1337: FAILED" in study.stdout and "its process was killed" in study.stdout
    assert "| gelu |" in (out / "report.md").read_text()


def test_config_for_the_quick_form_is_tiny():
    config = arms.resolve(["config/compare_tiny.py"], [], [])
    assert config.n_layer == 2 and config.dataset == "shakespeare_works"


def test_unknown_errors_keep_their_sentence():
    assert workers.attempt(lambda: 1 / 0, ()) == (None, "ZeroDivisionError: division by zero")

    def mistake():
        raise UserError("a sentence")

    assert workers.attempt(mistake, ()) == (None, "a sentence")
    assert workers.attempt(max, (1, 2)) == (2, None)
