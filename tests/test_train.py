"""The training job: what it writes, what it repeats exactly, and what it refuses."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import train as train_module
from model_bio import GPT
from tests.conftest import FakeRun
from train import TrainConfig, train
from wiggle import checkpoint, corpora
from wiggle.custom_neuron import load_neuron
from wiggle.dataset import Dataset
from wiggle.errors import UserError
from wiggle.evaluation import evaluate
from wiggle.guarded_step import Diverged

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "config").glob("*.py"))


def losses(result):
    return [line["loss"] for line in result.history if "loss" in line]


def lines(out_dir):
    return [json.loads(line) for line in (Path(out_dir) / "metrics.jsonl").read_text().splitlines()]


def run(*argv, **options):
    command = [sys.executable, str(ROOT / "train.py"), *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, **options)


def stopped_after(steps, config, monkeypatch):
    """Train until so many steps are done, and send this process SIGTERM before the second micro-batch after them."""
    asked, before = [], train_module.StopSignal.agreed

    def agreed(self):
        asked.append(1)
        if len(asked) == steps * config.micro_batches + 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return before(self)

    monkeypatch.setattr(train_module.StopSignal, "agreed", agreed)
    result = train(config)
    monkeypatch.undo()
    return result


def flags(config, **changes):
    """A TrainConfig as the flags that make it."""
    values = {f: getattr(config, f) for f in TrainConfig.__dataclass_fields__} | changes
    return [f"--{key}={value}" for key, value in values.items() if value is not None]


def test_a_dendrites_sharpness_is_logged_by_layer(tiny):
    config = tiny(max_iters=20, mlp="dendritic", dendritic_beta="unit", dendritic_beta_init=3.0, learning_rate=1e-2)
    logged = [line["beta"] for line in train(config).history if "beta" in line]
    assert logged[0] == pytest.approx([3.0, 3.0], rel=0.02) and logged[-1] != logged[0]


def test_a_run_learns_and_writes_what_the_design_says(tiny, capsys):
    config = tiny(max_iters=60, eval_interval=30, mlp="bio", final_sample=20)
    result = train(config)
    out = Path(config.out_dir)
    assert losses(result)[-1] < losses(result)[0] - 0.1
    assert result.steps == 60 and result.tokens == 60 * 4 * 2 * 16 and result.seconds > 0
    assert result.val_loss == result.best_val_loss and result.val_stderr > 0 and result.tokens_per_second > 0
    assert {p.name for p in out.iterdir()} == {"ckpt.pt", "ckpt.prev.pt", "best.pt", "metrics.jsonl", "config.json"}
    assert lines(out) == result.history
    logged, evaluated = lines(out)[0], lines(out)[30]
    common, timed = {"step", "tokens", "seconds", "lr"}, {"ms", "tokens_per_second", "peak_mb"}
    assert set(logged) == common | timed | {"loss", "grad_norm", "skipped", "event_rate", "beta"}
    assert {"step", "tokens", "seconds", "lr", "val_loss", "val_stderr", "train_loss", "val_bpb"} == set(evaluated)
    assert len(logged["event_rate"]) == 2 and logged["tokens"] == 128
    assert logged["beta"] is None
    resolved = json.loads((out / "config.json").read_text())
    assert resolved["mlp"] == "bio" and resolved["vocab_size"] < 20 and resolved["device"] == "cpu"
    printed = capsys.readouterr().out
    for part in (
        "to train on",
        "bio, oscillation + feature gate",
        "tokens a step",
        "saved MiB",
        "events",
        "left",
        "sample",
    ):
        assert part in printed


def test_the_same_settings_give_the_same_run_in_one_process(tiny):
    a, b = train(tiny(dropout=0.2)), train(tiny(dropout=0.2))
    assert losses(a) == losses(b) and a.val_loss == b.val_loss
    assert losses(train(tiny(dropout=0.2, seed=2))) != losses(a)
    torch.manual_seed(5)
    torch.randn(100)  # what a caller does with the generator is its own affair
    assert losses(train(tiny(dropout=0.2))) == losses(a)


def test_how_a_step_is_cut_into_micro_batches_changes_rounding_only(tiny):
    whole = train(tiny(batch_size=8, gradient_accumulation_steps=1))
    parts = train(tiny(batch_size=2, gradient_accumulation_steps=4))
    assert losses(whole) == pytest.approx(losses(parts), rel=1e-5)
    assert whole.val_loss == pytest.approx(parts.val_loss, rel=1e-5)
    given = train(tiny(batch_size=2, gradient_accumulation_steps=None, tokens_per_step=128))
    assert losses(given) == losses(parts)


@pytest.mark.parametrize("eval_iters", [0, 1, 2])
def test_the_same_weights_are_evaluated_alike_at_any_batch_size(tiny, eval_iters):
    train(tiny())
    found = {
        size: train(tiny(init_from="resume", eval_only=True, eval_iters=eval_iters, batch_size=size,
                         gradient_accumulation_steps=8 // size))
        for size in (1, 4, 8)
    }  # fmt: skip
    assert len({(result.val_loss, result.val_stderr, result.train_loss) for result in found.values()}) == 1


def test_the_best_is_measured_again_where_other_windows_are_read(tiny, capsys):
    first = train(tiny(eval_iters=1))
    capsys.readouterr()
    again = train(tiny(init_from="resume", eval_iters=0, max_iters=7, learning_rate=1e-9, warmup_iters=0))
    assert "on other windows, is at" in capsys.readouterr().out
    assert again.best_val_loss == pytest.approx(again.val_loss, rel=1e-5) and again.best_val_loss != first.val_loss
    train(tiny(init_from="resume", eval_iters=0, max_iters=8))
    assert "on other windows" not in capsys.readouterr().out


def test_one_window_has_no_standard_error(tiny, capsys):
    data = Dataset(Path(tiny().data_dir, "tiny"), 400, seed=0)
    model = GPT(tiny(block_size=400).gpt_config(data.model_vocab), seed=0)
    device, dtype = torch.device("cpu"), torch.float32
    assert math.isnan(evaluate(model, data, "val", 1, device, dtype)[1])  # val.bin has no second window
    found = {"val_loss": 2.0, "val_stderr": math.nan, "train_loss": 2.0}
    assert train_module.losses_line(found) == "val 2.0000  train 2.0000"
    for weight in model.parameters():
        weight.data.fill_(math.nan)
    assert math.isnan(evaluate(model, data, "train", 3, device, dtype)[1])


def test_evaluation_touches_nothing(tiny):
    often, never = train(tiny(eval_interval=1, dropout=0.1)), train(tiny(eval_interval=100, dropout=0.1))
    assert losses(often) == losses(never)
    assert often.val_loss == never.val_loss
    assert train(tiny(init_from="resume", eval_interval=100, dropout=0.1)).val_loss == never.val_loss


@pytest.mark.parametrize(
    "changes", [{}, {"optimizer_type": "adafactor"}, {"mlp": "bio", "bio_event": "hard", "dropout": 0.2}]
)
def test_stopped_and_resumed_is_never_stopped(tiny, monkeypatch, changes):
    whole = train(tiny(max_iters=12, **changes))
    expected = lines(whole.out_dir), checkpoint.read(Path(whole.out_dir) / "ckpt.pt")["model"]

    cut = stopped_after(7, tiny(max_iters=12, **changes), monkeypatch)
    assert cut.interrupted == "SIGTERM" and cut.steps == 7
    with open(Path(cut.out_dir) / "metrics.jsonl", "a") as file:  # as if killed some steps after the checkpoint
        file.write('{"step": 8}\n')
    train(tiny(max_iters=12, init_from="resume", **changes))
    clocks = ("seconds", "ms", "tokens_per_second", "peak_mb")
    found = [
        [{k: v for k, v in line.items() if k not in clocks} for line in part]
        for part in (lines(cut.out_dir), expected[0])
    ]
    assert found[0] == found[1]
    weights = checkpoint.read(Path(cut.out_dir) / "ckpt.pt")["model"]
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected[1].items())


def test_resume_names_what_may_not_change_and_lists_what_did(tiny, capsys):
    train(tiny())
    for changes, words in (
        ({"n_layer": 3}, "n_layer=3 cannot resume a run with n_layer=2"),
        ({"seed": 3}, "seed=3 cannot resume"),
        ({"batch_size": 6}, "12 sequences a step cannot resume a run with 8"),
    ):
        with pytest.raises(UserError, match=words):
            train(tiny(init_from="resume", **changes))
    capsys.readouterr()
    result = train(
        tiny(init_from="resume", max_iters=9, batch_size=8, gradient_accumulation_steps=1, lr_schedule="constant")
    )
    assert result.steps == 9 and "max_iters 6 -> 9" in capsys.readouterr().out


def test_a_text_with_the_same_ids_and_other_characters_is_another_dataset(tiny, tmp_path):
    first = train(tiny())
    text = (Path(tiny().data_dir).parent / "tiny.txt").read_text()
    (tmp_path / "tiny.txt").write_text(text.translate(str.maketrans("abcdefgh", "ijklmnop")))
    corpora.prepare(str(tmp_path / "tiny.txt"), data_dir=str(tmp_path / "data"))
    with pytest.raises(UserError, match="is not the one that the run in"):
        train(tiny(init_from="resume", max_iters=9, data_dir=str(tmp_path / "data")))
    assert checkpoint.read(Path(first.out_dir) / "ckpt.pt")["iter_num"] == 6


def test_weights_of_another_vocabulary_are_no_start(tiny, tmp_path):
    first = train(tiny())
    (tmp_path / "tiny.txt").write_text("the same number of other letters\n" * 200)
    corpora.prepare(str(tmp_path / "tiny.txt"), data_dir=str(tmp_path / "data"))
    with pytest.raises(UserError, match="were trained on another vocabulary"):
        train(tiny(init_from=first.out_dir, data_dir=str(tmp_path / "data"), out_dir=str(tmp_path / "second")))
    assert not (tmp_path / "second").exists()


def test_a_run_in_a_used_folder_moves_the_old_one_aside(tiny):
    first = train(tiny())
    kept = (Path(first.out_dir) / "best.pt").read_bytes()
    train(tiny(seed=2))
    train(tiny(seed=3))
    assert (Path(first.out_dir) / "earlier-1" / "best.pt").read_bytes() == kept
    assert (Path(first.out_dir) / "earlier-2" / "metrics.jsonl").exists()


def test_best_is_never_overwritten_by_a_worse_one(tiny):
    train(tiny(max_iters=30))
    good = checkpoint.read(Path(tiny().out_dir) / "best.pt")
    worse = train(tiny(init_from="resume", max_iters=40, learning_rate=3.0, warmup_iters=0, lr_schedule="constant"))
    kept = checkpoint.read(Path(tiny().out_dir) / "best.pt")
    assert worse.val_loss > good["best_val_loss"] == kept["best_val_loss"] == worse.best_val_loss
    assert all(torch.equal(kept["model"][n], good["model"][n]) for n in good["model"])


def test_always_save_checkpoint_false_saves_the_best_only(tiny):
    rising = {"learning_rate": 30.0, "warmup_iters": 30, "max_iters": 10, "eval_interval": 1}
    result = train(tiny(always_save_checkpoint=False, **rising))
    evaluated = [(line["val_loss"], line["step"]) for line in result.history if "val_loss" in line]
    assert min(evaluated)[1] < 10  # the rate rises until the loss does
    saved = checkpoint.read(Path(result.out_dir) / "ckpt.pt")
    assert (saved["best_val_loss"], saved["iter_num"]) == min(evaluated)
    assert checkpoint.read(Path(result.out_dir) / "best.pt")["best_val_loss"] == min(evaluated)[0]


def test_eval_only_writes_nothing(tiny):
    trained = train(tiny())
    before = {p: p.read_bytes() for p in Path(trained.out_dir).iterdir()}
    found = train(tiny(init_from="resume", eval_only=True))
    assert found.val_loss == trained.val_loss
    assert {p: p.read_bytes() for p in Path(trained.out_dir).iterdir()} == before


def test_start_from_a_checkpoints_weights(tiny, tmp_path):
    first = train(tiny(max_iters=30, mlp="bio"))
    config = tiny(init_from=first.out_dir, out_dir=str(tmp_path / "second"), max_iters=1, learning_rate=1e-9)
    assert train(config).val_loss == pytest.approx(first.best_val_loss, rel=1e-4)
    shorter = replace(config, block_size=8, out_dir=str(tmp_path / "third"))
    assert train(shorter).steps == 1
    with pytest.raises(UserError, match="block_size=32 is longer than"):
        train(replace(config, block_size=32))
    assert train(replace(config, block_size=1024, eval_only=True)).val_loss > 0  # the default takes the checkpoint's
    with pytest.raises(UserError, match="has mlp=bio, which contradicts mlp=relu"):
        train(replace(config, mlp="relu"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds_and_takes_a_step(arguments, path):
    small = {"max_iters": 1, "init_from": "scratch", "final_sample": 0, "tokens_per_step": None}
    own = arguments(path, **small)
    assert train(own).steps == 1
    control = arguments(path, **small, use_bio_mlp=False)
    assert control.mlp == "gelu"
    assert [f for f in TrainConfig.__dataclass_fields__ if getattr(own, f) != getattr(control, f)] in ([], ["mlp"])


@pytest.mark.slow
def test_nanogpts_config_file_runs_unchanged(corpus, tmp_path):
    text = """
# nanoGPT's keys for its small model of characters, cut down
out_dir = 'out-shakespeare-char'
eval_interval = 2
eval_iters = 2
log_interval = 1
always_save_checkpoint = False  # it overfits: keep the best
wandb_log = False
wandb_project = 'shakespeare-char'
wandb_run_name = 'mini-gpt'
dataset = 'tiny'
gradient_accumulation_steps = 1
batch_size = 4
block_size = 16
n_layer = 2
n_head = 2
n_embd = 16
dropout = 0.2
learning_rate = 1e-3
max_iters = 4
lr_decay_iters = 4
min_lr = 1e-4
beta2 = 0.99
warmup_iters = 1
device = 'cuda'
compile = True
"""
    (tmp_path / "train_shakespeare_char.py").write_text(text)
    argv = ["train_shakespeare_char.py", "--device=cpu", "--compile=False", f"--data_dir={corpus}"]
    done = run(*argv, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(lines(tmp_path / "out-shakespeare-char")) == 4 + 2
    if not torch.cuda.is_available():
        refused = run(*argv[:1], *argv[2:], cwd=tmp_path)
        assert refused.returncode == 1 and refused.stderr.startswith("error: device='cuda', but this torch")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "nowhere"}, "train.bin is missing: python prepare_data.py TEXT --name=nowhere"),
        ({"block_size": 5000}, "too few for one window of block_size=5000"),
        ({"vocab_size": 3}, "past the vocabulary of 3"),
        ({"init_from": "resume"}, "holds no ckpt.pt to resume from"),
        ({"init_from": "nothing.pt"}, "init_from='nothing.pt' is no file"),
        ({"device": "quantum"}, "device='quantum' is unknown"),
        ({"dtype": "float16"}, "dtype='float16' needs a card"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_writes_nothing(tiny, changes, message):
    config = tiny(**changes)
    with pytest.raises(UserError) as error:
        train(config)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not Path(config.out_dir).exists()


def test_a_missing_library_is_an_error(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        train(tiny(wandb_log=True))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="pip install transformers"):
        train(tiny(init_from="gpt2"))


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.skipif(os.name == "nt", reason="signals are sent otherwise on Windows")
@pytest.mark.slow
def test_a_signal_saves_and_says_how_to_go_on(tiny, signal_number):
    config = tiny(max_iters=1_000_000, eval_interval=1_000_000, log_interval=10)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *flags(config)], stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if "loss" in line:
            process.send_signal(signal_number)
            break
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + signal_number
    assert "--init_from=resume goes on from here" in rest
    content = checkpoint.read(Path(config.out_dir) / "ckpt.pt")
    assert f"after step {content['iter_num']}" in rest


def test_a_second_run_in_a_folder_is_refused_while_the_first_one_trains(tiny):
    config = tiny(max_iters=1_000_000, eval_interval=1_000_000, log_interval=1)
    first = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *flags(config)], stdout=subprocess.PIPE, text=True
    )
    next(line for line in first.stdout if "loss" in line)
    with pytest.raises(UserError, match="is in use by a training run"):
        train(tiny(learning_rate=1e-3))
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=60)
    assert checkpoint.read(Path(config.out_dir) / "ckpt.pt")["config"]["max_iters"] == 1_000_000
    assert train(tiny()).steps == 6  # the lock has gone with its run


@pytest.mark.slow
def test_a_signal_stops_between_micro_batches_and_says_so_at_once(tiny):
    config = tiny(max_iters=10, batch_size=1, gradient_accumulation_steps=200_000)  # a step would take minutes
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *flags(config)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (Path(config.out_dir) / "config.json").exists():  # it is written just before the first step
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert "stopping  after this micro-batch" in err and "after step 0, saved" in out
    assert checkpoint.read(Path(config.out_dir) / "ckpt.pt")["iter_num"] == 0


@pytest.mark.parametrize("interval", [1, 1000])
def test_a_run_that_diverges_keeps_its_good_checkpoints(tiny, interval, capsys):
    train(tiny())
    good = {name: (Path(tiny().out_dir) / name).read_bytes() for name in ("ckpt.pt", "best.pt")}
    ruin = {"learning_rate": 1e30, "grad_clip": 0.0, "warmup_iters": 0, "lr_schedule": "constant", "max_skipped": 3}
    config = tiny(init_from="resume", max_iters=2000, eval_interval=interval, log_interval=1, **ruin)
    with pytest.raises(Diverged) as error:
        train(config)
    assert {name: (Path(config.out_dir) / name).read_bytes() for name in good} == good
    assert f"{Path(config.out_dir, 'ckpt.pt')} holds step 6" in str(error.value) and "best.pt" in str(error.value)
    if interval == 1:
        assert "not saved: the validation loss is not finite" in capsys.readouterr().out
    for line in (Path(config.out_dir) / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_wandb_without_a_key_is_one_sentence_and_touches_nothing(tiny, monkeypatch):
    wandb = pytest.importorskip("wandb")

    def refuse(**options):
        raise wandb.errors.UsageError("api_key not configured (no-tty).\nCall wandb.login()")

    train(tiny())
    before = {p: p.read_bytes() for p in Path(tiny().out_dir).iterdir()}
    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(UserError, match=r"wandb login.*WANDB_MODE=offline") as error:
        train(tiny(wandb_log=True, seed=2))
    assert "\n" not in str(error.value)
    assert {p: p.read_bytes() for p in Path(tiny().out_dir).iterdir()} == before


def test_a_run_that_diverges_is_closed_at_wandb(tiny, monkeypatch):
    wandb, closed = pytest.importorskip("wandb"), []
    monkeypatch.setattr(wandb, "init", lambda **options: FakeRun())
    monkeypatch.setattr(FakeRun, "finish", lambda run: closed.append(run))
    with pytest.raises(Diverged):
        train(tiny(wandb_log=True, learning_rate=1e30, grad_clip=0.0, warmup_iters=0, max_skipped=3, max_iters=2000))
    assert len(closed) == 1
    train(tiny(wandb_log=True))
    assert len(closed) == 2


def test_settings_that_contradict_the_shape_of_the_weights_are_one_sentence(tiny, tmp_path):
    first = train(tiny(block_size=12)).out_dir
    apart = {"block_size": 1024, "batch_size": 4, "tokens_per_step": 8192, "gradient_accumulation_steps": None}
    with pytest.raises(UserError, match=r"the shape of .* tokens_per_step=8192 is no multiple .* 4 x 12"):
        train(tiny(init_from=first, out_dir=str(tmp_path / "second"), **apart))


def test_a_resumed_run_goes_on_in_the_same_run_at_wandb(tiny, monkeypatch):
    wandb = pytest.importorskip("wandb")
    begun = []

    monkeypatch.setattr(wandb, "init", lambda **options: begun.append(options) or FakeRun())
    train(tiny(wandb_log=True))
    train(tiny(wandb_log=True, init_from="resume", max_iters=8))
    assert "id" not in begun[0] and (begun[1]["id"], begun[1]["resume"]) == ("abc", "allow")


@pytest.mark.slow
def test_two_processes_stop_together_however_rarely_they_log(tiny):
    config = tiny(max_iters=1_000_000, eval_interval=1_000_000, log_interval=100_000, mlp="relu")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [*command, str(ROOT / "train.py"), *flags(config)], stdout=subprocess.PIPE, text=True, env=environment
    )
    while not (Path(config.out_dir) / "config.json").exists():
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out = process.communicate(timeout=25)[0]
    assert "saved: --init_from=resume goes on from here" in out
    assert checkpoint.read(Path(config.out_dir) / "ckpt.pt")["iter_num"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("mlp", ["gelu", "studies/own_neurons.py:Quiet(price=5.0)"])
def test_two_processes_give_the_losses_of_one(tiny, tmp_path, mlp):
    changes = {"max_iters": 8, "mlp": mlp, "log_interval": 1, "max_blowup": None}
    one = train(tiny(**changes, out_dir=str(tmp_path / "one")), load_neuron(mlp))
    two = tiny(**changes, out_dir=str(tmp_path / "two"))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29511"]
    done = subprocess.run(
        [*command, str(ROOT / "train.py"), *flags(two)], capture_output=True, text=True, timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [line["loss"] for line in lines(two.out_dir) if "loss" in line] == pytest.approx(losses(one), rel=1e-5)
    extra = [
        [line["auxiliary_loss"] for line in lines(c) if "auxiliary_loss" in line] for c in (one.out_dir, two.out_dir)
    ]
    assert extra[0] == pytest.approx(extra[1], rel=1e-5) and len(extra[0]) == (8 if "Quiet" in mlp else 0)
    ends = [[line["val_loss"] for line in lines(c) if "val_loss" in line][-1] for c in (one.out_dir, two.out_dir)]
    assert ends[0] == pytest.approx(ends[1], rel=1e-5)


@pytest.mark.slow
def test_wandb_offline(tiny, tmp_path):
    pytest.importorskip("wandb")
    done = run(
        *flags(tiny(wandb_log=True)), env=os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert list(Path(tiny().out_dir).rglob("run-*.wandb"))
