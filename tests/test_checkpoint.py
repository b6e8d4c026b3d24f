"""Checkpoints: whole or absent, checked when read, opened whoever wrote them, and nothing in them is run."""

import errno
import os
import random
import re
import zipfile
from pathlib import Path

import pytest
import torch

from model_bio import GPT, GPTConfig, model_args
from train import train
from wiggle import checkpoint
from wiggle.errors import UserError
from wiggle.seal import SEAL


def save(path, model, **more):
    checkpoint.save(path, {"model": model.state_dict(), "model_args": model_args(model.config)} | more)
    return path


def small(**changes):
    return GPT(
        GPTConfig(**{"block_size": 8, "vocab_size": 11, "n_layer": 2, "n_head": 2, "n_embd": 8} | changes), seed=1
    ).eval()


def logits(model):
    x = torch.arange(8)[None]
    return model(x, x)[0]


def test_a_saved_model_comes_back(tmp_path):
    model = small(mlp="bio")
    save(tmp_path / "best.pt", model, tokenizer={"kind": "byte", "vocab_size": 256}, iter_num=3, best_val_loss=1.5)
    for path in (tmp_path, tmp_path / "best.pt", str(tmp_path)):
        loaded, meta = checkpoint.load_model(path)
        assert torch.equal(logits(loaded), logits(model)) and not loaded.training
        assert (meta["origin"], meta["iter_num"], meta["best_val_loss"]) == ("WiggleGPT", 3, 1.5)


def test_a_folder_opens_its_best_then_its_last(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint"):
        checkpoint.find_file(tmp_path)
    for name in ("ckpt.prev.pt", "ckpt.pt", "best.pt"):
        (tmp_path / name).touch()
        assert checkpoint.find_file(tmp_path).name == name


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_damage_is_always_detected_and_the_previous_checkpoint_used(tiny, damage, capsys):
    config = tiny()
    whole = train(config)
    path = Path(whole.out_dir) / "ckpt.pt"
    intact, draw = path.read_bytes(), random.Random(1)
    for _ in range(20 if damage == "truncate" else 40):
        content = bytearray(intact)
        if damage == "truncate":
            del content[draw.randrange(len(content)) :]
        else:
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"ckpt\.pt is (truncated|damaged)"):
            checkpoint.read(path)
        restored, source = checkpoint.read_last(whole.out_dir)
        assert (source.name, restored["iter_num"]) == ("ckpt.prev.pt", 3)
        assert re.search(r"ckpt\.pt is (truncated|damaged).*; going on from .*ckpt\.prev\.pt", capsys.readouterr().out)


def test_a_flip_in_any_part_is_detected_and_our_seal_is_an_ordinary_zip_comment(tmp_path):
    path = tmp_path / "x.pt"
    checkpoint.save(path, {"model": {"a": torch.ones(2)}, "model_args": {}})
    intact, draw = path.read_bytes(), random.Random(1)
    assert zipfile.ZipFile(path).comment == SEAL[2:] + intact[-64:]
    assert torch.equal(torch.load(path, weights_only=True)["model"]["a"], torch.ones(2))
    assert torch.equal(torch.load(path, weights_only=True, mmap=True)["model"]["a"], torch.ones(2))
    for place in range(0, len(intact), 3):  # headers, padding and the seal itself too
        content = bytearray(intact)
        content[place] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        with pytest.raises(UserError):
            checkpoint.read(path)
    for content in (intact + b"x", intact[:-1], intact[: -len(SEAL) - 64] + b"\0\0"):
        path.write_bytes(content)
        with pytest.raises(UserError):
            checkpoint.read(path)


def test_damage_to_what_a_foreign_checkpoint_holds_is_detected(tmp_path):
    path = tmp_path / "ckpt.pt"
    torch.save({"model": {"a": torch.ones(999)}, "model_args": {}}, path)
    content = path.read_bytes()
    path.write_bytes(content.replace(torch.ones(9).numpy().tobytes(), b"x" * 36, 1))
    with pytest.raises(UserError, match=r"is damaged: the checksum of .*data/0 is wrong"):
        checkpoint.read(path)


def test_a_checkpoint_takes_the_place_of_another_only_when_it_reads_back_right(tiny, monkeypatch):
    train(tiny())
    before = {path: path.read_bytes() for path in Path(tiny().out_dir).glob("*.pt")}
    write = checkpoint.Hashing.write

    def flipped(self, data):  # the disk keeps something else than it was given
        write(self, data)
        self.file.seek(-1, 1)
        self.file.write(bytes([bytes(data)[-1] ^ 1]))

    monkeypatch.setattr(checkpoint.Hashing, "write", flipped)
    with pytest.raises(UserError, match=r"cannot write .*: the disk gives back other bytes than were written"):
        train(tiny(init_from="resume", max_iters=9))
    assert {path: path.read_bytes() for path in Path(tiny().out_dir).glob("*.pt")} == before


def test_a_damaged_checkpoint_never_becomes_the_previous_one(tiny, capsys):
    out = Path(train(tiny()).out_dir)
    content = bytearray((out / "ckpt.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (out / "ckpt.pt").write_bytes(content)
    assert train(tiny(init_from="resume", eval_only=True)).steps == 3
    assert (out / "ckpt.pt").read_bytes() == content  # evaluating moves nothing
    train(tiny(init_from="resume", max_iters=6))
    assert (out / "ckpt.damaged.pt").read_bytes() == content
    assert [checkpoint.read(out / name)["iter_num"] for name in ("ckpt.pt", "ckpt.prev.pt")] == [6, 3]
    assert "ckpt.pt is damaged" in capsys.readouterr().out


def test_what_a_killed_run_left_is_cleared_and_nothing_else(tiny, capsys):
    out = Path(train(tiny()).out_dir)
    for name in ("ckpt.pt.123.tmp", "best.pt.9.tmp", "config.json.7.tmp", "notes.tmp", "ckpt.pt.tmp", "x.pt.1.tmp"):
        (out / name).touch()
    train(tiny(init_from="resume", max_iters=7))
    assert {path.name for path in out.glob("*.tmp")} == {"notes.tmp", "ckpt.pt.tmp", "x.pt.1.tmp"}
    assert capsys.readouterr().out.count("which was being written when the run ended") == 3


class Runs:
    """A pickle that would create a file when it is loaded."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (str(self.marker),))


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    model = small()
    torch.save({"model": model.state_dict(), "model_args": Runs(tmp_path / "ran")}, tmp_path / "ckpt.pt")
    for call in (checkpoint.load_model, checkpoint.read_last):
        with pytest.raises(UserError, match="holds more than tensors and plain values, and was not run"):
            call(tmp_path)
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "ckpt.pt", weights_only=False)
    assert (tmp_path / "ran").exists()  # it was hostile indeed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated or no checkpoint"),
        (b"hello world", "truncated or no checkpoint"),
        ({"weights": 3}, "not a checkpoint of a GPT"),
        ([1, 2], "not a checkpoint of a GPT"),
        ({"model": {}, "model_args": {"n_head": 5}}, "does not fit a model here: n_head=5"),
        ({"model": {"x": torch.ones(2)}, "model_args": {"n_layer": 1, "n_embd": 12}}, "does not fit a model here"),
        ({"model": [1], "model_args": {}}, "does not fit a model here"),
        ({"model": {1: 2}, "model_args": {}}, "does not fit a model here"),
        ({"model": {}, "model_args": "big"}, "does not fit a model here"),
        ({"model": {}, "model_args": {"n_layer": "three"}}, "does not fit a model here"),
        ({"model": {}, "model_args": {"use_bio_mlp": "x"}}, "does not fit a model here"),
        ({"model": {}, "model_args": {"mlp": ["gelu"]}}, "does not fit a model here"),
        ({"model": {}, "model_args": {"n_layer": 10**12}}, "has the weights of 0 layers, and n_layer=1000000000000"),
    ],
)
def test_what_is_no_checkpoint_is_one_sentence(tmp_path, content, message):
    path = tmp_path / "ckpt.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UserError) as error:
        checkpoint.load_model(path)
    assert message in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="does not exist"):
        checkpoint.load_model(tmp_path / "other.pt")


def zipped(tmp_path):
    """A ZIP archive of something else."""
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("hello.txt", "hello")
    return (tmp_path / "x.zip").read_bytes()


def in_the_old_format(tmp_path):
    """What torch.save wrote before 1.6."""
    torch.save({"model": {}, "model_args": {}}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    return (tmp_path / "old.pt").read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (in_the_old_format, r"is in the format of torch before 1\.6, .*: in Python, torch\.load it with"),
        (lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a pointer of Git LFS"),
        (lambda _: b"<!DOCTYPE html><html>Sign in</html>", "is a web page in place of the file"),
        (lambda _: b"GGUF\3\0\0\0", "is in llama.cpp's format GGUF"),
        (zipped, "is not a checkpoint of torch"),
    ],
)
def test_files_that_are_taken_for_checkpoints_are_each_told_what_they_are(tmp_path, content, message):
    (tmp_path / "ckpt.pt").write_bytes(content(tmp_path))
    with pytest.raises(UserError, match=message) as error:
        checkpoint.load_model(tmp_path / "ckpt.pt")
    assert "truncated" not in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_not_called_truncated(tmp_path, monkeypatch):
    (tmp_path / "ckpt.pt").touch()

    def denied(path, mode):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", denied)
    with pytest.raises(UserError, match=r"^cannot read checkpoint .*ckpt\.pt: Permission denied$"):
        checkpoint.load_model(tmp_path)


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b", "~nobody-of-this-name/x"])
def test_a_path_that_the_system_does_not_take_is_one_sentence(path):
    with pytest.raises(UserError):
        checkpoint.load_model(path)


def test_weights_of_a_run_that_diverged_are_called_so(tmp_path):
    model = small()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    save(tmp_path / "best.pt", model)
    with pytest.raises(UserError, match=r"transformer\.wte\.weight is not finite: the run that wrote it diverged"):
        checkpoint.load_model(tmp_path)


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save(tmp_path / "best.pt", small())
    assert checkpoint.load_model("~")[1]["path"] == tmp_path / "best.pt"


# --- a user's own neuron ---


class Stiff(torch.nn.Module):
    """A neuron that computes with numbers while it is built, which no meta device has, and holds an infinity."""

    def __init__(self, features):
        super().__init__()
        self.a = torch.nn.Parameter(torch.full((features,), torch.linspace(0, 1, features).sum().item()))
        self.register_buffer("limit", torch.tensor(torch.inf))

    def forward(self, x):
        return torch.minimum(self.a * x, self.limit)


def own(tmp_path):
    config = GPTConfig(block_size=8, vocab_size=11, n_layer=2, n_head=2, n_embd=8, mlp="file.py:Stiff")
    model = GPT(config, Stiff, seed=1).eval()
    save(tmp_path / "best.pt", model)
    return model


def test_a_neuron_that_is_built_from_numbers_comes_back(tmp_path):
    model = own(tmp_path)
    assert torch.equal(logits(checkpoint.load_model(tmp_path, neuron=Stiff)[0]), logits(model))


def test_a_neuron_with_other_weights_is_one_sentence(tmp_path):
    own(tmp_path)
    with pytest.raises(UserError, match=r"does not fit a model here: .*mlp\.neuron\.a") as error:
        checkpoint.load_model(tmp_path, neuron=torch.nn.Identity)
    assert "\n" not in str(error.value)


def test_a_neuron_is_named_by_each_scripts_own_flag_and_only_where_there_is_one(tmp_path):
    own(tmp_path)
    advice = "file.py:Stiff, .*by --mlp in train.py, by --neuron in sample_bio.py and analyze_bio.py; export.py has no"
    with pytest.raises(UserError, match=advice):
        checkpoint.load_model(tmp_path)
    save(tmp_path / "best.pt", small())
    with pytest.raises(UserError, match="was trained without a neuron of your own: name none"):
        checkpoint.load_model(tmp_path, neuron=Stiff)


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 10**15},
        {"block_size": 10**15},
        {"n_embd": 10**9},
        {"position": "rope", "block_size": 10**15},
        {"tokenizer": [3]},
        {"tokenizer": {"kind": "char", "characters": 5}},
        {"config": 7},
        {"iter_num": "many"},
        {"best_val_loss": torch.ones(3)},
        {"model": {"lm_head.weight": torch.zeros(11, 8)}},  # not tied
        {"model": {"more": torch.zeros(1)}},
        {"model": {"transformer.wte.weight": 5}},
        {"model": {"transformer.ln_f.weight": torch.ones(8, dtype=torch.int64)}},
    ],
)
def test_plain_values_that_lie_are_one_sentence(tmp_path, changes):
    model = small(**{key: "rope" for key in changes if key == "position"})
    content = {"model": model.state_dict(), "model_args": model_args(model.config)}
    for key, value in changes.items():
        if key == "model":
            content["model"] |= value
        elif key in content["model_args"]:
            content["model_args"][key] = value
        else:
            content[key] = value
    torch.save(content, tmp_path / "ckpt.pt")
    with pytest.raises(UserError) as error:
        checkpoint.load_model(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


# --- foreign checkpoints, built here under the names that exist in the wild ---


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."])
def test_nanogpts_checkpoint(tmp_path, bias, prefix):
    model = small(bias=bias)
    args = {
        k: getattr(model.config, k)
        for k in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "dropout", "bias")
    }
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    state[prefix + "transformer.h.0.attn.bias"] = torch.ones(1, 1, 8, 8)  # the causal mask of older files
    extra = {"optimizer": {}, "iter_num": 4, "best_val_loss": torch.tensor(2.5), "config": {"dataset": "x"}}
    torch.save({"model": state, "model_args": args} | extra, tmp_path / "ckpt.pt")
    loaded, meta = checkpoint.load_model(tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert (meta["origin"], meta["best_val_loss"], loaded.config.mlp) == ("nanoGPT", 2.5, "gelu")


@pytest.mark.parametrize("bias", [True, False])
def test_wigglegpt_2s_checkpoint(tmp_path, bias):
    model = small(mlp="bio", bio_gate="dense", bias=bias, bio_threshold=0.4)
    args = {
        k: getattr(model.config, k)
        for k in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "dropout", "bias", "bio_threshold")
    }
    torch.save(
        {"model": model.state_dict(), "model_args": args | {"use_bio_mlp": True, "bio_compartments": 4}},
        tmp_path / "ckpt.pt",
    )
    loaded, meta = checkpoint.load_model(tmp_path)
    assert torch.equal(logits(loaded), logits(model)) and meta["origin"] == "WiggleGPT 2"


@pytest.mark.parametrize(("rope", "rmsnorm"), [(True, True), (False, False), (True, False)])
def test_wigglegpt_3s_checkpoint_and_its_rope_that_did_nothing(tmp_path, rope, rmsnorm):
    model = small(mlp="bio", bio_gate="none", position="none" if rope else "learned", use_rmsnorm=rmsnorm, bias=False)
    args = {
        k: getattr(model.config, k)
        for k in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "dropout", "bias", "use_rmsnorm")
    }
    state = {name.replace(".oscillating.", ".activation."): tensor for name, tensor in model.state_dict().items()}
    torch.save({"model": state, "model_args": args | {"use_bio_mlp": True, "use_rope": rope}}, tmp_path / "ckpt.pt")
    loaded, meta = checkpoint.load_model(tmp_path)
    assert torch.equal(logits(loaded), logits(model)) and meta["origin"] == "WiggleGPT 3"


def test_wigglegpt_1s_dendritic_checkpoint_is_refused_with_the_reason(tmp_path):
    state = small().state_dict() | {"transformer.h.0.mlp.dendritic.weight": torch.ones(2)}
    torch.save({"model": state, "model_args": {}}, tmp_path / "ckpt.pt")
    with pytest.raises(UserError, match="its dendritic compartments were removed"):
        checkpoint.load_model(tmp_path)
