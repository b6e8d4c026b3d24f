"""Datasets as they are written: the same again, never in place of another's, and whole or not at all."""

import hashlib
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from wiggle import corpora, sources
from wiggle.corpora import prepare
from wiggle.errors import UserError
from wiggle.lock import folder_lock
from wiggle.tokenizer import from_identity

VERSE = "".join(f"{i}: the moon, a {i * i} times broken mirror\n" for i in range(100))


def read(folder):
    """Dataset folder -> (meta, text of train, text of val), decoded by what meta.json says."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    texts = []
    for part in ("train", "val"):
        data = (folder / f"{part}.bin").read_bytes()
        ids = np.frombuffer(data, meta["dtype"])
        assert (len(ids), hashlib.sha256(data).hexdigest()) == (meta[f"{part}_tokens"], meta[f"{part}_sha256"])
        texts.append(from_identity(meta["tokenizer"]).decode(ids))
    return meta, *texts


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def verse(tmp_path):
    path = tmp_path / "verse.txt"
    path.write_text(VERSE, encoding="utf-8", newline="")
    return path


@pytest.fixture
def other_verse(tmp_path):
    """Another text whose dataset would have the same name."""
    path = tmp_path / "elsewhere" / "verse.txt"
    path.parent.mkdir()
    path.write_text(VERSE.upper(), encoding="utf-8")
    return path


@pytest.fixture
def tiny_shakespeare(monkeypatch, verse):
    """nanoGPT's Shakespeare is VERSE here."""
    monkeypatch.setattr(sources, "TINY_SHA256", hashlib.sha256(VERSE.encode()).hexdigest())
    return str(verse)


# --- what is written ---


def test_characters_as_nanogpt_prepares_them(tmp_path, tiny_shakespeare):
    folder = prepare("shakespeare_char", tmp_path / "data", input=tiny_shakespeare)
    ids = {c: i for i, c in enumerate(sorted(set(VERSE)))}  # nanoGPT's rule, written out
    cut = int(len(VERSE) * 0.9)
    assert (folder / "train.bin").read_bytes() == np.array([ids[c] for c in VERSE[:cut]], np.uint16).tobytes()
    assert (folder / "val.bin").read_bytes() == np.array([ids[c] for c in VERSE[cut:]], np.uint16).tobytes()
    meta, train, val = read(folder)
    assert folder == tmp_path / "data" / "shakespeare_char" and train + val == VERSE
    assert meta["source_sha256"] == hashlib.sha256(VERSE.encode()).hexdigest()
    assert meta["vocab_size"] == len(ids) and meta["dtype"] == "uint16"


def test_shakespeare_in_gpt2_tokens(tmp_path, tiny_shakespeare, toy_gpt2):
    folder = prepare("shakespeare", tmp_path, input=tiny_shakespeare)
    cut = int(len(VERSE) * 0.9)
    for part, text in (("train", VERSE[:cut]), ("val", VERSE[cut:])):
        assert np.fromfile(folder / f"{part}.bin", np.uint16).tolist() == toy_gpt2.encode(text)


def test_the_same_text_gives_the_same_files(tmp_path, verse):
    first = files(prepare(str(verse), tmp_path / "a"))
    assert files(prepare(str(verse), tmp_path / "b")) == first


def test_several_texts_are_split_each_within_itself_at_a_line_end(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    a, b = "A\n" + VERSE, "B\n" + VERSE.upper() + "[Exeunt.]"
    for name, text in (("a.txt", a), ("b.txt", b), ("one.txt", "ü")):
        (folder / name).write_text(text, encoding="utf-8")
    _, train, val = read(prepare(str(folder), tmp_path))
    at = train.index("B\n0:")
    b += "\n"
    assert a.startswith(train[:at]) and b.startswith(train[at:])
    assert a[at:] + b[len(train) - at :] + "ü\n" == val
    assert 0.88 < at / len(a) <= 0.9 and 0.88 < (len(train) - at) / len(b) <= 0.9
    _, train, val = read(prepare(str(folder), tmp_path, val_fraction=0.2))
    assert 0.79 < len(train) / len(train + val) <= 0.8


def test_texts_of_a_folder_are_closed_in_gpt2_tokens(tmp_path, toy_gpt2):
    (tmp_path / "texts").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "texts" / name).write_text(VERSE, encoding="utf-8")
    folder = prepare(str(tmp_path / "texts"), tmp_path / "data", tokenizer="gpt2")
    for part in ("train", "val"):
        ids = np.fromfile(folder / f"{part}.bin", np.uint16)
        assert np.flatnonzero(ids == 50256).tolist() == [len(ids) // 2 - 1, len(ids) - 1]


def test_a_text_of_a_single_token_for_validation_is_refused(tmp_path, verse, toy_gpt2):
    verse.write_text("th" * 10)
    with pytest.raises(UserError, match=r"too short to fill val.bin \(1 tokens\)"):
        prepare(str(verse), tmp_path, tokenizer="gpt2")
    assert not (tmp_path / "verse").exists()


def test_end_of_text_in_a_text_is_noted_as_plain_text(tmp_path, verse, toy_gpt2, capsys):
    prepare(str(verse), tmp_path, tokenizer="gpt2")
    assert "endoftext" not in capsys.readouterr().out
    verse.write_text(VERSE + "<|endoftext|>\n" * 3 + VERSE, encoding="utf-8")
    folder = prepare(str(verse), tmp_path, tokenizer="gpt2")
    assert "note     the text holds <|endoftext|> 3 times: encoded as plain text" in capsys.readouterr().out
    assert 50256 not in np.fromfile(folder / "train.bin", np.uint16)
    prepare(str(verse), tmp_path)
    assert "endoftext" not in capsys.readouterr().out  # characters mean the same in a prompt


def test_pieces_change_nothing(tmp_path, monkeypatch, toy_gpt2):
    text = "".join(f"the moon {i}\n" + "\n  \n" * (i % 3) + "  the  \n" * (i % 2) for i in range(200))
    (tmp_path / "t.txt").write_text(text, encoding="utf-8", newline="")
    whole = files(prepare(str(tmp_path / "t.txt"), tmp_path / "a", tokenizer="gpt2"))
    monkeypatch.setattr(corpora, "PIECE", 50)
    assert len(list(corpora.encode_in_pieces([text], toy_gpt2))) > 20
    assert files(prepare(str(tmp_path / "t.txt"), tmp_path / "b", tokenizer="gpt2")) == whole


def test_uint32_past_65536_characters(tmp_path, capsys):
    characters = "".join(map(chr, [*range(0x20, 0xD800), *range(0xE000, 0x13000)]))
    for count, dtype in ((2**16, "uint16"), (2**16 + 1, "uint32")):
        (tmp_path / "all.txt").write_text(characters[:count], encoding="utf-8", newline="")
        meta, train, val = read(prepare(str(tmp_path / "all.txt"), tmp_path / "data"))
        assert (meta["dtype"], meta["vocab_size"], train + val) == (dtype, count, characters[:count])
    assert "65,536 different characters: --tokenizer=gpt2 or byte" in capsys.readouterr().out


# --- what was there before ---


def test_another_text_of_the_same_name_replaces_the_first_only_by_force(tmp_path, verse, other_verse):
    folder = prepare(str(verse), tmp_path)
    first = files(folder)
    with pytest.raises(UserError, match=rf"holds another text \({verse}\): --name=NAME keeps both, --force replaces"):
        prepare(str(other_verse), tmp_path)
    assert files(folder) == first
    prepare(str(other_verse), tmp_path, name="other")
    assert files(folder) == first
    prepare(str(other_verse), tmp_path, force=True)
    assert read(folder)[1:] == read(tmp_path / "other")[1:]


def test_the_same_source_may_be_prepared_again(tmp_path, verse, other_verse):
    folder = prepare(str(verse), tmp_path)
    verse.write_text(VERSE * 2, encoding="utf-8")  # the same place, edited
    assert "".join(read(prepare(str(verse), tmp_path))[1:]) == VERSE * 2
    other_verse.write_text(VERSE * 2, encoding="utf-8")  # the same text, moved
    prepare(str(other_verse), tmp_path, tokenizer="byte")
    assert read(folder)[0]["place"] == str(other_verse)


def test_texts_from_pipes_are_the_same_source_only_if_they_are_the_same(tmp_path, monkeypatch):
    for text, fits in ((VERSE, True), (VERSE, True), (VERSE.upper(), False)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        if fits:
            prepare("-", tmp_path)
        else:
            with pytest.raises(UserError, match=r"stdin holds another text \(standard input\)"):
                prepare("-", tmp_path)


@pytest.mark.parametrize("meta", [None, b"{", b"[]"])
def test_a_dataset_that_nothing_is_known_of_is_replaced_only_by_force(tmp_path, verse, meta):
    folder = tmp_path / "verse"
    folder.mkdir()
    (folder / "train.bin").write_bytes(b"of nanoGPT's prepare.py")
    if meta is not None:
        (folder / "meta.json").write_bytes(meta)
    with pytest.raises(UserError, match=r"meta.json is missing or damaged: .*--force replaces it"):
        prepare(str(verse), tmp_path)
    assert (folder / "train.bin").read_bytes() == b"of nanoGPT's prepare.py"
    assert "".join(read(prepare(str(verse), tmp_path, force=True))[1:]) == VERSE


def test_a_dataset_of_before_places_were_recorded_is_known_by_its_text(tmp_path, verse):
    folder = prepare(str(verse), tmp_path)
    meta = json.loads((folder / "meta.json").read_text())
    del meta["place"]
    (folder / "meta.json").write_text(json.dumps(meta))
    prepare(str(verse), tmp_path)
    (folder / "meta.json").write_text(json.dumps(meta))
    verse.write_text(VERSE * 2, encoding="utf-8")
    with pytest.raises(UserError, match=r"holds another text \(verse.txt\)"):
        prepare(str(verse), tmp_path)


def test_a_failure_loses_nothing(tmp_path, monkeypatch, verse):
    folder = prepare(str(verse), tmp_path)
    before = files(folder)
    verse.write_text(VERSE * 3, encoding="utf-8")
    encode = corpora.encode_in_pieces

    def full_disk(texts, tokenizer):
        yield from encode(texts, tokenizer)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(corpora, "encode_in_pieces", full_disk)
    for name in ("verse", "new"):
        with pytest.raises(UserError, match=rf"cannot write .*{name}.*: No space left on device"):
            prepare(str(verse), tmp_path, name=name)
    assert files(folder) == before and not (tmp_path / "new").exists()


# --- other preparations ---


def test_a_second_preparation_in_the_same_folder_is_refused(tmp_path, verse):
    with folder_lock(tmp_path / "verse", "a preparation"):
        with pytest.raises(UserError, match=r"verse is in use by a preparation, process \d+"):
            prepare(str(verse), tmp_path)
        prepare(str(verse), tmp_path, name="other")
    prepare(str(verse), tmp_path)


KILLED = """
import os, sys
from wiggle import corpora
def killed(texts, tokenizer):
    yield 9, [1, 2, 3]
    os.kill(os.getpid(), 9)
corpora.encode_in_pieces = killed
corpora.prepare(sys.argv[1], sys.argv[2])
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_what_a_killed_preparation_left_is_removed_by_the_next(tmp_path, verse, capsys):
    code = [sys.executable, "-c", KILLED, str(verse), str(tmp_path)]
    assert subprocess.run(code, cwd=os.path.dirname(os.path.dirname(corpora.__file__))).returncode == -9
    folder = tmp_path / "verse"
    assert len(list(folder.glob("*.tmp"))) == 3
    (folder / "my.tmp").touch()
    prepare(str(verse), tmp_path)
    assert sorted(files(folder)) == ["meta.json", "my.tmp", "train.bin", "val.bin"]
    assert capsys.readouterr().out.count("which a preparation left when it was killed") == 3
