"""Through the scripts themselves: files that lie or would run code, resuming, and starting from old checkpoints."""

import os
import pickle
import re
from pathlib import Path

import pytest
import torch

import sample_bio
import train as train_module
from model_bio import GPT, GPTConfig, model_args
from sample_bio import SampleConfig, sample
from tests.test_train import ROOT, flags, losses
from train import train
from wiggle import checkpoint
from wiggle.errors import UserError


class Runs:
    """A pickle that would make a folder when it is loaded."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (str(self.marker),))


def nanogpt(folder, **changes):
    """A checkpoint as nanoGPT writes it, of a random model with 3 characters."""
    model = GPT(GPTConfig(block_size=16, vocab_size=3, n_layer=1, n_head=1, n_embd=4), seed=1)
    keys = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "dropout", "bias")
    content = {"model": model.state_dict(), "model_args": {key: getattr(model.config, key) for key in keys}}
    content |= {"optimizer": {}, "iter_num": 5, "best_val_loss": torch.tensor(1.0), "config": {"dataset": "old"}}
    folder.mkdir(exist_ok=True)
    torch.save(content | changes, folder / "ckpt.pt")
    return folder / "ckpt.pt"


def refused(capsys, script, argv):
    """The one line that a script leaves with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        script.main(argv)
    error = capsys.readouterr().err
    assert stop.value.code == 1 and error.startswith("error: ") and error.count("\n") == 1
    return error


SCRIPTS = {
    "resume": (train_module, lambda path: ["--init_from=resume", f"--out_dir={path.parent}"]),
    "start": (train_module, lambda path: [f"--init_from={path}", f"--out_dir={path.parent / 'new'}"]),
    "evaluate": (train_module, lambda path: [f"--init_from={path}", "--eval_only", f"--out_dir={path.parent / 'new'}"]),
    "evaluate a run": (train_module, lambda path: ["--init_from=resume", "--eval_only", f"--out_dir={path.parent}"]),
    "sample": (sample_bio, lambda path: [f"--out_dir={path.parent}", "--device=cpu"]),
    "sample a file": (sample_bio, lambda path: [f"--out_dir={path}", "--device=cpu"]),
}


@pytest.mark.parametrize("how", SCRIPTS)
@pytest.mark.parametrize("place", ["model", "model_args", "config", "optimizer", "tokenizer"])
def test_a_hostile_checkpoint_is_refused_by_every_script_and_runs_nothing(tiny, tmp_path, capsys, how, place):
    marker = tmp_path / "ran"
    path = nanogpt(tmp_path / "run", **{place: Runs(marker)})
    script, own = SCRIPTS[how]
    common = [] if script is sample_bio else [f for f in flags(tiny()) if not re.match("--(init_from|out_dir|eval)", f)]
    assert "holds more than tensors and plain values, and was not run" in refused(capsys, script, common + own(path))
    assert not marker.exists()


@pytest.mark.parametrize("how", ["train", "sample"])
def test_a_hostile_meta_pkl_is_refused_by_every_script_and_runs_nothing(tiny, tmp_path, capsys, how):
    marker, folder = tmp_path / "ran", tmp_path / "data" / "old"
    folder.mkdir(parents=True)
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 3, "itos": Runs(marker)}))
    for split in ("train", "val"):
        (folder / f"{split}.bin").write_bytes(bytes(100))
    argv = flags(tiny(data_dir=str(tmp_path / "data"), dataset="old"))
    if how == "sample":
        argv = [f"--out_dir={nanogpt(tmp_path / 'run')}", f"--data_dir={tmp_path / 'data'}", "--device=cpu"]
    assert "it would call" in refused(capsys, {"train": train_module, "sample": sample_bio}[how], argv)
    assert not marker.exists()
    pickle.loads((folder / "meta.pkl").read_bytes())
    assert marker.exists()  # it was hostile indeed


def test_one_place_loads_checkpoints_and_none_unpickles_freely():
    folders = (".", "kernels", "wiggle", "experiment", "studies")
    files = [path for folder in folders for path in ROOT.joinpath(folder).glob("*.py")]
    assert ROOT / "wiggle" / "checkpoint.py" in files
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert "torch.load(" not in text or path.name == "checkpoint.py", path
        assert not re.search(r"weights_only=False|pickle\.loads?\(", text), path


def test_a_checkpoint_never_names_code_to_run(tiny, tmp_path):
    (tmp_path / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\nclass Name: ...\n")
    path = nanogpt(tmp_path / "run")
    content = torch.load(path, weights_only=True)
    content["model_args"]["mlp"] = f"{tmp_path / 'evil.py'}:Name"
    torch.save(content, path)
    for call in (
        lambda: train(tiny(init_from=str(path))),
        lambda: train(tiny(init_from="resume", out_dir=str(path.parent))),
        lambda: sample(SampleConfig(out_dir=str(path), device="cpu")),
    ):
        with pytest.raises(UserError):
            call()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("depth", [3, 100_000])
def test_a_meta_json_that_lies_is_one_sentence(tiny, tmp_path, depth):
    folder = tmp_path / "data" / "tiny"
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text("[" * depth + "]" * depth)
    with pytest.raises(UserError, match=r"meta\.json is damaged"):
        train(tiny(data_dir=str(tmp_path / "data")))


# --- resuming ---


@pytest.mark.parametrize(
    "changes",
    [
        {"config": 5},
        {"config": {"n_layer": "two"}},
        {"optimizer": {"state": {0: 5}, "param_groups": 7}},
        {"optimizer": {}},
        {"scaler": [1]},
        {"metrics_bytes": "all"},
        {"skipped": [1]},
        {"skipped": "none"},
        {"iter_num": None},
        {"dataset": 3},
        {"seconds": "long"},
        {"model": {}},
    ],
)
def test_a_run_with_values_that_lie_is_one_sentence(tiny, changes):
    out = Path(train(tiny()).out_dir)
    checkpoint.save(out / "ckpt.pt", checkpoint.read(out / "ckpt.pt") | changes)
    with pytest.raises(UserError) as error:
        train(tiny(init_from="resume", max_iters=9))
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_resuming_a_nanogpt_run_says_how_to_go_on_from_it(tiny, tmp_path):
    nanogpt(tmp_path / "run")
    with pytest.raises(UserError, match=r"is not of this train\.py: --init_from=PATH starts from its weights"):
        train(tiny(init_from="resume", out_dir=str(tmp_path / "run")))


def test_what_may_change_at_a_resume_does_change(tiny, capsys):
    train(tiny())
    twins = []
    for decay in (0.0, 5.0):
        checkpoint_before = {p: p.read_bytes() for p in Path(tiny().out_dir).iterdir()}
        result = train(tiny(init_from="resume", max_iters=12, weight_decay=decay, gradient_checkpointing=True))
        assert f"weight_decay 0.1 -> {decay}" in capsys.readouterr().out
        twins.append(losses(result))
        for path, content in checkpoint_before.items():
            path.write_bytes(content)
    assert twins[0][0] == twins[1][0] and twins[0][1:] != twins[1][1:]


def test_a_run_killed_between_best_pt_and_ckpt_pt_never_spoils_the_better_one(tiny):
    run = {"max_iters": 12, "lr_decay_iters": 12, "init_from": "resume"}
    out = Path(train(tiny(max_iters=9, lr_decay_iters=12)).out_dir)
    ninth = (out / "ckpt.pt").read_bytes()
    expected = train(tiny(**run)).best_val_loss
    best = (out / "best.pt").read_bytes()
    assert checkpoint.read(out / "best.pt")["iter_num"] == 12
    (out / "ckpt.pt").write_bytes(ninth)  # as if killed in between
    worse = train(tiny(**run, learning_rate=0.1, lr_schedule="constant"))
    assert checkpoint.read(out / "ckpt.pt")["iter_num"] == 12
    assert worse.val_loss > worse.best_val_loss == expected
    assert (out / "best.pt").read_bytes() == best
    (out / "ckpt.pt").write_bytes(ninth)
    same = train(tiny(**run, always_save_checkpoint=False))
    assert same.val_loss == expected
    assert checkpoint.read(out / "ckpt.pt")["iter_num"] == 12  # an equal loss counts as the best, or it would be lost


# --- weights from elsewhere ---


@pytest.mark.parametrize("norm", ["LayerNorm", "RMSNorm"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_prefixed_foreign_checkpoint_starts_a_run(tiny, tmp_path, norm, bias):
    shape = {"block_size": 16, "vocab_size": 10, "n_layer": 2, "n_head": 2, "n_embd": 16, "dropout": 0.0, "bias": bias}
    rms = norm == "RMSNorm"
    model = GPT(GPTConfig(**shape, mlp="bio", bio_gate="none", position="none" if rms else "learned", use_rmsnorm=rms))
    args = shape | {"use_bio_mlp": True, "use_rmsnorm": rms, "use_rope": rms}
    state = {f"_orig_mod.{k.replace('.oscillating.', '.activation.')}": v for k, v in model.state_dict().items()}
    (tmp_path / "old").mkdir()
    torch.save({"model": state, "model_args": args}, tmp_path / "old" / "ckpt.pt")
    result = train(tiny(init_from=str(tmp_path / "old"), max_iters=1))
    assert result.steps == 1
    kept = checkpoint.read(Path(result.out_dir) / "ckpt.pt")["model_args"]
    assert kept == model_args(model.config)
