"""An exported folder is the same model to transformers, which opens it without this project, and to init_from."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import export
from model_bio import GPT, GPTConfig, model_args
from tests.test_modeling_wigglegpt import AROUND, LETTERS, UNITS, label, noisy
from tests.test_tokenizer import STRANGE
from train import train
from wiggle import checkpoint, huggingface_tokenizer, sharing
from wiggle import tokenizer as tokenizer_module
from wiggle.tokenizer import ByteTokenizer, CharTokenizer, GPT2Tokenizer

pytest.importorskip("transformers")
ROOT = Path(__file__).parents[1]

# Opens plain GPT-2 folders as anybody would, in a process that knows nothing of this project.
OPEN = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder in sys.argv[2:]:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(sys.argv[1], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = model(ids).logits
    new = model.generate(ids, max_new_tokens=50, do_sample=False, attention_mask=torch.ones_like(ids))
    torch.save({"ids": ids, "logits": logits, "new": new, "text": tokenizer.decode(new[0])}, folder + ".pt")
assert "model_bio" not in sys.modules
"""
# Opens folders that bring their own code. Started with -I elsewhere, so that this project cannot be imported.
OPEN_OWN = """
import importlib.util, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
from transformers.utils import logging
logging.set_verbosity_error()
assert importlib.util.find_spec("model_bio") is None and importlib.util.find_spec("wiggle") is None

found = {}
for folder in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    ids = tokenizer(sys.argv[1], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = model(ids).logits
    greedy = {"max_new_tokens": 50, "do_sample": False}
    cached, plain = (model.generate(ids, use_cache=use, **greedy) for use in (True, False))
    alone = torch.stack((cached[0, -50:], model.generate(torch.tensor([[3]]), **greedy)[0, -50:]))
    padded, mask = torch.zeros(2, ids.size(1), dtype=int), torch.ones(2, ids.size(1), dtype=int)
    padded[0], padded[1, -1], mask[1, :-1] = ids[0], 3, 0  # the second prompt, one token, is padded on the left
    together = model.generate(padded, attention_mask=mask, pad_token_id=0, **greedy)[:, -50:]
    found[folder] = {"ids": ids, "logits": logits, "cached": cached, "plain": plain}
    found[folder] |= {"together": together, "alone": alone}

model.save_pretrained(folder + "-again")
tokenizer.save_pretrained(folder + "-again")
with torch.no_grad():
    again = AutoModelForCausalLM.from_pretrained(folder + "-again", trust_remote_code=True)
    assert torch.equal(again(ids).logits, logits)
    half = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.bfloat16)
    found["half"] = half(ids).logits.float()
    dynamic = {"input_ids": {1: torch.export.Dim("tokens", min=2, max=64)}, "use_cache": None}
    exported = torch.export.export(model, (), {"input_ids": ids, "use_cache": False}, dynamic_shapes=dynamic)
    found["exported"] = exported.module()(input_ids=ids[:, :5], use_cache=False).logits
generate = pipeline("text-generation", model=folder, trust_remote_code=True)
found["pipeline"] = generate(sys.argv[1], max_new_tokens=50, do_sample=False)[0]["generated_text"]
torch.save(found, "found.pt")
"""


@pytest.fixture
def toy(toy_gpt2, monkeypatch):
    """GPT-2's tokenizer with the toy's few tokens."""
    monkeypatch.setattr(huggingface_tokenizer, "gpt2_encoding", tokenizer_module.gpt2_encoding)
    return toy_gpt2


def trained(path, tokenizer=None, **changes):
    """A checkpoint of a tiny model with life in it, and the model."""
    model = noisy(**changes)
    identity = (tokenizer or CharTokenizer(LETTERS)).identity()
    checkpoint.save(path, {"model": model.state_dict(), "model_args": model_args(model.config), "tokenizer": identity})
    return model


def run(folder, path):
    export.main([f"--out_dir={path}", f"--to={folder}"])


def refused(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        export.main(list(argv))
    error = capsys.readouterr().err
    assert stop.value.code == 1 and error.count("\n") == 1
    return error


@pytest.mark.slow
def test_a_fresh_process_gets_the_same_logits_and_text(tmp_path):
    prompt, models = "abc dig\nha", {}
    for mlp in ("gelu", "gelu_tanh"):
        for bias in (True, False):
            folder = tmp_path / f"{mlp}-{bias}"
            models[folder] = trained(tmp_path / f"{mlp}-{bias}.ckpt", mlp=mlp, bias=bias)
            run(folder, tmp_path / f"{mlp}-{bias}.ckpt")
            settings = json.loads((folder / "config.json").read_text())
            assert settings["activation_function"] == {"gelu": "gelu", "gelu_tanh": "gelu_new"}[mlp]
    done = subprocess.run([sys.executable, "-c", OPEN, prompt, *models], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ids = torch.tensor([CharTokenizer(LETTERS).encode(prompt)])
    for folder, model in models.items():
        found = torch.load(f"{folder}.pt", weights_only=True)
        assert torch.equal(found["ids"], ids)
        torch.testing.assert_close(found["logits"], model(ids, ids)[0], atol=1e-4, rtol=0)
        continued = model.generate(ids, 50, temperature=0)
        assert torch.equal(found["new"], continued) and len(set(continued[0, 10:].tolist())) > 2
        assert found["text"] == CharTokenizer(LETTERS).decode(continued[0].tolist())


def test_rows_that_stand_for_no_text_are_left_out(tmp_path, toy):
    model = trained(tmp_path / "best.pt", toy, vocab_size=50304, n_embd=4)
    run(tmp_path / "folder", tmp_path)
    again, meta = checkpoint.load_model(tmp_path / "folder")
    x = torch.tensor([[1, 2, 256, 50256]])
    torch.testing.assert_close(again(x, x)[0], model(x, x)[0][..., :50257], atol=1e-4, rtol=0)
    assert again.config.vocab_size == 50257 and meta["tokenizer"]["kind"] == "gpt2"


@pytest.mark.parametrize("kind", ["char", "byte", "toy"])
def test_tokenizers_agree(tmp_path, kind, toy):
    from transformers import AutoTokenizer

    text = STRANGE + " Hello , don't .  x"
    ours = {"char": CharTokenizer.from_text(text), "byte": ByteTokenizer(), "toy": toy}[kind]
    trained(tmp_path / "best.pt", ours, vocab_size=ours.vocab_size, n_embd=4)
    run(tmp_path / "folder", tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "folder")
    if kind == "toy":  # a gap in the toy's ids, which the file closes
        end = len(tokenizer_module.gpt2_encoding()._mergeable_ranks)
        expected = [min(i, end) for i in ours.encode(text + "<|endoftext|>", special=True)]
        assert theirs(text + "<|endoftext|>")["input_ids"] == expected
    else:
        assert theirs(text)["input_ids"] == ours.encode(text)
    assert theirs.decode(theirs(text)["input_ids"]) == text


@pytest.mark.parametrize("kind", ["char", "byte", "gpt2"])
def test_the_marks_of_conversations_keep_their_ids_and_come_back(tmp_path, kind):
    from transformers import PreTrainedTokenizerFast

    ours = {"char": CharTokenizer(LETTERS), "byte": ByteTokenizer(), "gpt2": GPT2Tokenizer()}[kind].with_marks()
    try:
        text_ids = ours.encode("abc")
    except tokenizer_module.UserError as error:
        pytest.skip(str(error))
    trained(tmp_path / "best.pt", ours, vocab_size=ours.vocab_size, n_embd=4, mlp="bio")
    run(tmp_path / "folder", tmp_path)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path / "folder")
    for mark in ours.marks:
        assert theirs(f"{mark}abc")["input_ids"] == [ours.mark_id(mark), *text_ids]
    assert checkpoint.load_model(tmp_path / "folder")[1]["tokenizer"] == ours.identity()


@pytest.mark.slow
def test_gpt2s_own_tokenizer_agrees():
    try:
        ours = GPT2Tokenizer()
        ours.encode("")
    except tokenizer_module.UserError as error:
        pytest.skip(str(error))
    fast = huggingface_tokenizer.fast_tokenizer(ours)
    text = "\n".join([STRANGE, *(path.read_text(encoding="utf-8") for path in ROOT.glob("*.py"))]) + "<|endoftext|>"
    assert fast.get_vocab_size() == 50257 and fast.token_to_id("<|endoftext|>") == 50256
    assert fast.encode(text).ids == ours.encode(text, special=True)
    assert fast.decode(fast.encode(text).ids, skip_special_tokens=False) == text
    assert huggingface_tokenizer.is_gpt2s(json.loads(fast.to_str()))


# --- folders that bring their own code ---


@pytest.mark.slow
def test_a_process_without_this_project_gets_the_same_logits_and_text_of_every_model(tmp_path):
    prompt, models = "abc dig\nha", {}
    cases = [unit | around for unit in UNITS for around in AROUND if around["bias"]]
    cases += [{"mlp": "gelu"} | around for around in AROUND if not around["bias"]]
    for number, case in enumerate(cases):
        if sharing.is_plain_gpt2(GPTConfig(**case)):
            continue
        models[str(tmp_path / str(number))] = trained(tmp_path / f"{number}.ckpt", **case)
        run(tmp_path / str(number), tmp_path / f"{number}.ckpt")
    command = [sys.executable, "-I", "-c", OPEN_OWN, prompt, *models]
    modules = {"HF_MODULES_CACHE": str(tmp_path / "modules")}  # where transformers copies the folders' code to
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | modules)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    ids = torch.tensor([CharTokenizer(LETTERS).encode(prompt)])
    for folder, model in models.items():
        theirs = found[folder]
        assert torch.equal(theirs["ids"], ids)
        torch.testing.assert_close(theirs["logits"], model(ids, ids)[0], atol=1e-4, rtol=0)
        assert torch.equal(theirs["cached"], theirs["plain"]), model.config
        assert torch.equal(theirs["cached"], model.generate(ids, 50, temperature=0)), model.config
        assert torch.equal(theirs["together"], theirs["alone"]), model.config
    torch.testing.assert_close(found["half"], theirs["logits"], atol=0.1, rtol=0)
    torch.testing.assert_close(found["exported"], theirs["logits"][:, :5], atol=1e-5, rtol=0)
    assert found["pipeline"] == CharTokenizer(LETTERS).decode(theirs["cached"][0].tolist())
    again, _ = checkpoint.load_model(f"{folder}-again")  # as transformers saved it
    assert all(map(torch.equal, again.state_dict().values(), model.state_dict().values()))


@pytest.mark.parametrize("unit", UNITS, ids=label)
def test_a_folder_comes_back_bit_for_bit(tmp_path, unit):
    for number, around in enumerate(AROUND[::5]):  # each position, both norms, with and without QK norm
        model = trained(tmp_path / "best.pt", **unit, **around, c_fc_std="unit", dropout=0.1)
        if sharing.is_plain_gpt2(model.config):
            continue
        run(tmp_path / str(number), tmp_path / "best.pt")
        again, meta = checkpoint.load_model(tmp_path / str(number))
        assert model_args(again.config) == model_args(model.config)
        assert list(again.state_dict()) == list(model.state_dict())
        assert all(map(torch.equal, again.state_dict().values(), model.state_dict().values()))
        assert meta["tokenizer"] == CharTokenizer(LETTERS).identity() and meta["origin"] == "WiggleGPT"


def test_training_goes_on_from_a_folder_as_from_its_checkpoint(tmp_path, tiny):
    train(tiny(mlp="bio", position="rope", max_iters=3))
    run(tmp_path / "folder", tmp_path / "out")
    losses = [
        train(tiny(init_from=str(path), out_dir=str(tmp_path / f"from-{path.name}"), max_iters=3)).first_losses
        for path in (tmp_path / "out" / "best.pt", tmp_path / "folder")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 3


@pytest.mark.parametrize("mlp", ["gelu", "bio"])
def test_training_from_a_folder_keeps_the_settings_that_no_weight_depends_on(tmp_path, tiny, mlp):
    train(tiny(mlp=mlp, max_iters=1))
    run(tmp_path / "folder", tmp_path / "out")
    free = {"gradient_checkpointing": True, "dropout": 0.1}
    train(tiny(init_from=str(tmp_path / "folder"), out_dir=str(tmp_path / "next"), max_iters=1, **free))
    config = checkpoint.load_model(tmp_path / "next")[0].config
    assert {key: getattr(config, key) for key in free} == free


# --- refused, with the reason ---


@pytest.mark.parametrize("kind", ["char", "byte", "toy"])
def test_a_model_with_fewer_ids_than_its_tokenizer_is_refused(tmp_path, capsys, kind, toy):
    tokenizer = {"char": CharTokenizer(LETTERS), "byte": ByteTokenizer(), "toy": toy}[kind]
    trained(tmp_path / "best.pt", tokenizer, vocab_size=tokenizer.vocab_size - 1, n_embd=4)
    error = refused(capsys, f"--out_dir={tmp_path}", f"--to={tmp_path / 'folder'}")
    assert f"cannot be exported: its tokenizer has {tokenizer.vocab_size:,} tokens, the model ids for" in error
    assert not (tmp_path / "folder").exists()


def test_a_nanogpt_model_and_a_meta_pkl_of_another_vocabulary_are_refused(tmp_path, capsys):
    model = GPT(GPTConfig(block_size=8, vocab_size=4, n_layer=1, n_head=1, n_embd=4))
    args = {key: getattr(model.config, key) for key in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")}
    torch.save({"model": model.state_dict(), "model_args": args, "config": {"dataset": "old"}}, tmp_path / "ckpt.pt")
    (tmp_path / "old").mkdir()
    for characters in ("abc", "abcde"):
        meta = {"vocab_size": len(characters), "itos": dict(enumerate(characters))}
        (tmp_path / "old" / "meta.pkl").write_bytes(pickle.dumps(meta))
        error = refused(capsys, f"--out_dir={tmp_path}", f"--data_dir={tmp_path}", f"--to={tmp_path / 'folder'}")
        assert (
            f"old has {len(characters)} char tokens, and the model" in error and "another dataset of that name" in error
        )


def test_a_model_of_your_own_neuron_is_refused_with_the_reason(tmp_path, capsys):
    config = GPTConfig(block_size=8, vocab_size=4, n_layer=1, n_head=1, n_embd=4, mlp="file.py:Identity")
    model = GPT(config, torch.nn.Identity)
    checkpoint.save(tmp_path / "best.pt", {"model": model.state_dict(), "model_args": model_args(config)})
    assert "export.py has no place for it" in refused(capsys, f"--out_dir={tmp_path}", f"--to={tmp_path / 'folder'}")


def test_settings_that_a_gelu_model_does_not_use_are_no_hindrance(tmp_path):
    trained(tmp_path / "best.pt", bio_gate="none", bio_threshold=0.1, gradient_checkpointing=True, dropout=0.1)
    run(tmp_path / "folder", tmp_path)
    assert json.loads((tmp_path / "folder" / "config.json").read_text())["resid_pdrop"] == 0.1


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    trained(tmp_path / "best.pt")
    run("~/folder", "~/best.pt")
    assert (tmp_path / "folder" / "config.json").exists()


def test_nothing_is_overwritten(tmp_path, capsys):
    trained(tmp_path / "best.pt")
    before = (tmp_path / "best.pt").read_bytes()
    for folder in (tmp_path, tmp_path / "best.pt"):
        assert "is there already" in refused(capsys, f"--out_dir={tmp_path}", f"--to={folder}")
    assert (tmp_path / "best.pt").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
