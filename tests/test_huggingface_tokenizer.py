"""A folder's own tokenizer is used where it is GPT-2's or one of ours, and refused where its ids mean other text."""

import json
import shutil

import pytest

from tests.test_huggingface import refused, write_folder
from wiggle import checkpoint
from wiggle.errors import UserError
from wiggle.huggingface_tokenizer import fast_tokenizer
from wiggle.tokenizer import ByteTokenizer, CharTokenizer, GPT2Tokenizer

tokenizers = pytest.importorskip("tokenizers")
LETTERS = "\n abcdefgh"


@pytest.fixture(scope="module")
def gpt2_json():
    """GPT-2's tokenizer.json, as a dict."""
    try:
        return json.loads(fast_tokenizer(GPT2Tokenizer()).to_str())
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture
def folder(tmp_path):
    """folder(vocab_size, tokenizer_json, **files) -> a folder of a model with this vocabulary, and these JSON files."""

    def make(vocab_size, settings=None, identity=None, **files):
        shutil.rmtree(tmp_path)
        write_folder(tmp_path, vocab_size=vocab_size, n_embd=2, n_layer=1, n_positions=2)
        if settings:
            files["tokenizer"] = settings
        if identity:
            config = json.loads((tmp_path / "config.json").read_text())
            files["config"] = config | {"wigglegpt_tokenizer": identity}
        for name, content in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return tmp_path

    return make


def loaded(path):
    """(kind of the tokenizer or None, number of ids that are ever sampled)."""
    model, meta = checkpoint.load_model(path)
    return meta["tokenizer"] and meta["tokenizer"]["kind"], model.sampled_vocab


def test_gpt2s_own_is_known_by_every_id(folder, gpt2_json):
    assert loaded(folder(50257, gpt2_json)) == ("gpt2", 50257)
    assert loaded(folder(50304, gpt2_json)) == ("gpt2", 50257)


def test_gpt2s_own_in_the_older_files_is_known(folder, gpt2_json):
    merges = [
        "#version: 0.2",
        *(pair if isinstance(pair, str) else " ".join(pair) for pair in gpt2_json["model"]["merges"]),
    ]
    vocabulary = gpt2_json["model"]["vocab"] | {"<|endoftext|>": 50256}
    path = folder(50257, vocab=vocabulary)
    (path / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")
    assert loaded(path) == ("gpt2", 50257)
    (path / "added_tokens.json").write_text('{"[PAD]": 50257}')
    assert "it adds '[PAD]'" in refused(path)


def swapped(settings):
    """The same number of ids, two of which have changed places."""
    vocabulary = settings["model"]["vocab"] | {"!": 1, '"': 0}
    return settings | {"model": settings["model"] | {"vocab": vocabulary}}


@pytest.mark.parametrize(
    "change",
    [
        swapped,
        lambda s: s | {"model": s["model"] | {"merges": s["model"]["merges"][::-1]}},
        lambda s: s | {"normalizer": {"type": "Lowercase"}},
        lambda s: s | {"pre_tokenizer": {"type": "Whitespace"}},
        lambda s: s | {"pre_tokenizer": s["pre_tokenizer"] | {"add_prefix_space": True}},
        lambda s: s | {"model": {"type": "Unigram", "vocab": [["a", -1.0], ["b", -2.0]]}},
    ],
)
def test_one_of_gpt2s_size_that_reads_text_otherwise_is_refused(folder, gpt2_json, change):
    assert "its tokenizer is not GPT-2's, nor as export.py wrote it" in refused(folder(50257, change(gpt2_json)))


def test_added_tokens_are_refused_by_name(folder, gpt2_json):
    own = {"id": 50257, "content": "<|im_start|>", "special": True}
    added = gpt2_json | {"added_tokens": [*gpt2_json["added_tokens"], own]}
    assert "is not GPT-2's (it adds '<|im_start|>')" in refused(folder(50258, added))
    options = {"added_tokens_decoder": {"50257": {"content": "[PAD]"}}}
    assert "(it adds '[PAD]')" in refused(folder(50304, gpt2_json, tokenizer_config=options))


def test_one_that_is_larger_than_the_model_is_refused(folder, gpt2_json):
    assert "its tokenizer has 50,257 tokens, its model 300" in refused(folder(300, gpt2_json))
    assert "its tokenizer has 256 tokens, its model 100" in refused(folder(100, identity=ByteTokenizer().identity()))


def test_where_a_folder_has_none_only_gpt2s_size_tells_which(folder):
    assert loaded(folder(50257)) == ("gpt2", 50257)
    assert loaded(folder(50304)) == ("gpt2", 50257)
    assert loaded(folder(50400)) == (None, 50400)
    assert loaded(folder(300)) == (None, 300)


def test_another_librarys_is_refused(folder):
    path = folder(50257)
    (path / "spiece.model").touch()
    assert "its tokenizer, spiece.model, is not GPT-2's" in refused(path)


def test_one_of_ours_is_used_as_long_as_it_is_as_we_wrote_it(folder):
    ours = CharTokenizer(LETTERS)
    settings = json.loads(fast_tokenizer(ours).to_str())
    assert loaded(folder(10, settings, ours.identity())) == ("char", 10)
    changed = json.loads(fast_tokenizer(CharTokenizer(LETTERS[::-1])).to_str())
    assert "nor as export.py wrote it" in refused(folder(10, changed, ours.identity()))
    own = settings | {"added_tokens": [{"id": 10, "content": "<user>"}]}
    assert "(it adds '<user>')" in refused(folder(11, own, ours.identity()))
