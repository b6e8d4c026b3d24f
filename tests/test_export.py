"""An exported folder is an ordinary GPT-2 to transformers: the same logits, the same text."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import export
from model_bio import GPT, GPTConfig, model_args
from tests.test_tokenizer import STRANGE
from wiggle import checkpoint, huggingface_tokenizer
from wiggle import tokenizer as tokenizer_module
from wiggle.tokenizer import ByteTokenizer, CharTokenizer, GPT2Tokenizer

pytest.importorskip("transformers")
ROOT = Path(__file__).parents[1]
LETTERS = "\n abcdefghijkl"

# Opens folders as anybody would, in a process that knows nothing of this project.
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


@pytest.fixture
def toy(toy_gpt2, monkeypatch):
    """GPT-2's tokenizer with the toy's few tokens."""
    monkeypatch.setattr(huggingface_tokenizer, "gpt2_encoding", tokenizer_module.gpt2_encoding)
    return toy_gpt2


def trained(path, tokenizer=None, **changes):
    """A checkpoint whose weights are large enough for a greedy continuation with some life in it."""
    shape = {"block_size": 64, "vocab_size": len(LETTERS), "n_layer": 2, "n_head": 2, "n_embd": 16} | changes
    model = GPT(GPTConfig(**shape), seed=3).eval()
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
            parameter.add_(0.3 * noise)  # biases and norms too, which start at 0 and 1
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mlp": "bio"}, "mlp=bio cannot be exported: GPT-2's format knows gelu and gelu_tanh"),
        ({"mlp": "relu"}, "mlp=relu cannot be exported"),
        ({"use_rmsnorm": True}, "use_rmsnorm=True cannot be exported: GPT-2's format has no place for it"),
        (
            {"position": "rope"},
            "position='rope' cannot be exported: GPT-2's format has no place for it, a GPT-2 has",
        ),
        ({"position": "rope", "qk_norm": True}, "a GPT-2 has position='learned', qk_norm=False"),
        ({"position": "none"}, "position='none' cannot be exported"),
    ],
)
def test_what_gpt2_cannot_express_is_refused_with_the_reason(tmp_path, capsys, changes, message):
    trained(tmp_path / "best.pt", **changes)
    assert message in refused(capsys, f"--out_dir={tmp_path}", f"--to={tmp_path / 'folder'}")
    assert not (tmp_path / "folder").exists()


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
