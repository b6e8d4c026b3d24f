"""A folder of Hugging Face's is the same model here, or it is refused with the reason."""

import json
import re
import shutil

import pytest
import torch

from model_bio import GPT
from sample_bio import SampleConfig, sample
from train import train
from wiggle import checkpoint
from wiggle.errors import UserError

transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")
huggingface_hub = pytest.importorskip("huggingface_hub")


def write_folder(folder, seed=0, **changes):
    """A tiny random GPT-2 as transformers writes it, whose weights are no zeros anywhere -> transformers' model."""
    shape = {"vocab_size": 10, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    config = transformers.GPT2Config(**shape | {"bos_token_id": 0, "eos_token_id": 0} | changes)
    torch.manual_seed(seed)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return model


@pytest.fixture
def folder(tmp_path):
    """A folder with the characters that our tiny corpus has, but no tokenizer."""
    write_folder(tmp_path / "hf")
    return tmp_path / "hf"


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(path):
    """The sentence that load_model refuses a path with."""
    with pytest.raises(UserError) as error:
        checkpoint.load_model(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def same_logits(folder, theirs):
    x = torch.arange(10)[None]
    model, _ = checkpoint.load_model(folder)
    with torch.no_grad():
        return torch.allclose(model(x, x)[0], theirs(x).logits, atol=1e-5)


def test_weights_from_a_folder_train_evaluate_and_sample(folder, tiny, capsys):
    model, meta = checkpoint.load_model(folder)
    assert same_logits(folder, transformers.GPT2LMHeadModel.from_pretrained(folder).eval())
    assert (meta["origin"], meta["tokenizer"], model.config.mlp) == ("GPT-2", None, "gelu_tanh")
    result = train(tiny(init_from=str(folder), max_iters=2))
    assert result.steps == 2 and f"weights of {folder} (GPT-2), a fresh optimizer" in capsys.readouterr().out
    assert train(tiny(init_from=str(folder), eval_only=True)).val_loss > 0
    with pytest.raises(UserError, match="holds no tokenizer, and its vocabulary of 10 is not GPT-2's"):
        sample(SampleConfig(init_from=str(folder), device="cpu"))
    change_json(folder / "config.json", wigglegpt_tokenizer={"kind": "char", "characters": "\n abcdefgh"})
    sample(SampleConfig(init_from=str(folder), device="cpu", num_samples=1, max_new_tokens=20, start="ab"))
    assert re.search(r"^ab[\n a-h]{20}$", capsys.readouterr().out, re.MULTILINE)


# --- what transformers would compute otherwise ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "its config.json says model_type='llama', only 'gpt2'"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon=1e-06, only 1e-05"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True, only False"),
        ({"scale_attn_weights": False}, "scale_attn_weights=False, only True"),
        ({"add_cross_attention": True}, "add_cross_attention=True, only False"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder=True, only False"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False, only True"),
        ({"quantization_config": {"load_in_8bit": True}}, "quantization_config={'load_in_8bit': True}, only None"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map="),
        ({"pruned_heads": {"0": [1]}}, "heads of attention were pruned"),
        ({"activation_function": "gelu_fast"}, "activation_function='gelu_fast' has no mlp here"),
        ({"n_inner": 7}, "n_inner=7, only 64"),
        ({"n_layer": 1}, "it has the weights of 2 layers, and n_layer=1"),
        ({"n_layer": 3}, "it has the weights of 2 layers, and n_layer=3"),
        ({"n_positions": 8}, r"transformer.wpe.weight has the shape \(16, 16\), expected \(8, 16\)"),
        ({"vocab_size": 11}, r"transformer.wte.weight has the shape \(10, 16\), expected \(11, 16\)"),
        ({"n_embd": "wide"}, "n_embd"),
        ({"wigglegpt_tokenizer": "char"}, "tokenizer's description is damaged"),
    ],
)
def test_a_config_that_means_another_computation_is_refused(folder, changes, message):
    change_json(folder / "config.json", **changes)
    assert re.search(message, refused(folder))


@pytest.mark.parametrize(
    "changes",
    [
        {"reorder_and_upcast_attn": True},
        {"is_decoder": True},
        {"n_inner": 64},
        {"activation_function": "gelu_pytorch_tanh"},
        {"activation_function": "relu"},
        {"summary_type": "mean"},
        {"use_cache": False},
        {"resid_pdrop": 0.5},
    ],
)
def test_a_config_that_means_the_same_computation_is_taken(tmp_path, changes):
    theirs = write_folder(tmp_path, **changes)
    assert same_logits(tmp_path, theirs)


def test_each_switch_that_is_refused_does_change_what_transformers_computes(tmp_path):
    x = torch.arange(10)[None]
    plain = write_folder(tmp_path / "plain")(x).logits
    for key, value in {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False}.items():
        assert not torch.allclose(write_folder(tmp_path / key, **{key: value})(x).logits, plain, atol=1e-3)


# --- every weight is accounted for ---


def change_weights(folder, change):
    path = folder / "model.safetensors"
    weights = safetensors_torch.load_file(path)
    safetensors_torch.save_file(change(weights), path, {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {k: v for k, v in w.items() if ".h.1." not in k}, "has the weights of 1 layers, and n_layer=2"),
        (lambda w: {k: v for k, v in w.items() if "h.1.mlp.c_fc.bias" not in k}, "lacks transformer.h.1.mlp.c_fc.bias"),
        (lambda w: {k: v for k, v in w.items() if "wte" not in k}, "it lacks transformer.wte.weight"),
        (lambda w: w | {"score.weight": torch.ones(2, 16)}, "holds score.weight, for which a gelu_tanh model has no"),
        (lambda w: w | {"transformer.h.0.ln_cross_attn.bias": torch.ones(16)}, "holds transformer.h.0.ln_cross_attn"),
        (lambda w: w | {"lm_head.weight": torch.ones(10, 16)}, "lm_head is not tied to the token embedding"),
        (lambda w: w | {"transformer.ln_f.bias": torch.full((16,), torch.nan)}, "ln_f.bias is not finite: .*diverged"),
        (lambda w: w | {"transformer.ln_f.bias": torch.ones(16, dtype=torch.int8)}, "torch.int8, no floating-point"),
    ],
)
def test_a_weight_that_is_missing_surplus_or_no_number_is_refused(folder, change, message):
    change_weights(folder, change)
    assert re.search(message, refused(folder))


@pytest.mark.parametrize(
    "change",
    [
        lambda w: {name.removeprefix("transformer."): tensor for name, tensor in w.items()},  # as OpenAI's gpt2 is
        lambda w: w | {"transformer.h.0.attn.bias": torch.ones(1, 1, 16, 16)},  # a causal mask
        lambda w: w | {"lm_head.weight": w["transformer.wte.weight"].clone()},
    ],
)
def test_other_spellings_of_the_same_weights_are_taken(folder, change):
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    change_weights(folder, change)
    assert same_logits(folder, theirs)


def test_a_model_in_several_files_is_read_whole_or_refused(tmp_path):
    theirs = write_folder(tmp_path / "one")
    theirs.save_pretrained(tmp_path / "parts", max_shard_size="4KB")
    parts = sorted((tmp_path / "parts").glob("model-*.safetensors"))
    assert len(parts) > 1 and same_logits(tmp_path / "parts", theirs)
    parts[1].unlink()
    assert refused(tmp_path / "parts") == f"cannot read {parts[1]}: No such file or directory"


# --- files that are damaged, missing, or of another format ---


def test_a_damaged_folder_is_one_sentence(folder):
    weights, config = folder / "model.safetensors", folder / "config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:999])
    assert "model.safetensors is damaged" in refused(folder)
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "model.safetensors is a pointer of Git LFS" in refused(folder)
    weights.write_bytes(whole)
    for content in ("", "{", "[]", "[" * 100_000):
        config.write_text(content)
        assert "its config.json is damaged" in refused(folder)
    config.unlink()
    assert "it holds no config.json" in refused(folder)


def test_an_adapter_beside_the_weights_is_refused(folder):
    (folder / "adapter_config.json").write_text("{}")
    assert "adapter_config.json adds an adapter to the weights" in refused(folder)


def test_a_folder_with_a_pickle_alone_says_how_to_make_safetensors(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "holds pytorch_model.bin, but no model.safetensors: let transformers write it" in refused(folder)


def test_weights_without_their_config_say_to_name_the_folder(folder):
    assert f"holds weights alone: name its folder, {folder}," in refused(folder / "model.safetensors")


# --- names at Hugging Face ---


class Unreachable:
    """HfApi where there is no connection."""

    def model_info(self, name, timeout):
        assert timeout <= 5
        raise OSError("[Errno -2] Name or service not known\nand much more")


@pytest.fixture
def offline(monkeypatch):
    """No connection, and nothing in the cache, whatever this machine has."""

    def missing(name, local_files_only=False, **options):
        assert local_files_only, "a download that has no limit of time"
        raise FileNotFoundError(name)

    monkeypatch.setattr(huggingface_hub, "HfApi", Unreachable)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", missing)


def test_a_name_that_cannot_be_fetched_is_one_sentence_at_once(offline, tiny):
    for call in (
        lambda: checkpoint.load_model("gpt2"),
        lambda: GPT.from_pretrained("gpt2-medium"),
        lambda: train(tiny(init_from="gpt2")),
    ):
        with pytest.raises(UserError) as error:
            call()
        sentence = str(error.value)
        assert "could not be fetched from https://" in sentence and "connect once, or name a folder" in sentence
        assert "Name or service not known" in sentence and "does not fit" not in sentence and "\n" not in sentence


def test_a_name_that_is_in_the_cache_needs_no_connection(offline, monkeypatch, folder):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: str(folder))
    model, meta = checkpoint.load_model("gpt2")
    assert (model.config.n_embd, meta["path"]) == (16, "gpt2")


def test_only_openais_names_are_looked_for_at_hugging_face(offline):
    assert refused("gpt2-of-mine") == "checkpoint gpt2-of-mine does not exist, or is no file"


def test_a_tilde_is_the_home_folder(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert checkpoint.load_model("~/hf")[0].config.n_embd == 16
    shutil.rmtree(folder)
    assert "hf does not exist" in refused("~/hf")
