"""Large corpora: split by document, limited, resumed from any moment to the same bytes, and whole or not there."""

import errno
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from wiggle import bulk, bulk_writer, encoders, readers
from wiggle.bulk import JOURNAL, prepare_bulk
from wiggle.bulk_journal import Journal
from wiggle.bulk_sources import find_bulk_corpus
from wiggle.bulk_writer import split_hash
from wiggle.dataset import Dataset
from wiggle.errors import UserError
from wiggle.lock import folder_lock
from wiggle.tokenizer import gpt2_encoding

ROOT = Path(__file__).parents[1]
DRAW = random.Random(0)
WORDS = ["".join(DRAW.choices("abcdefgh ü中\n", k=DRAW.randint(1, 9))) for _ in range(500)]
DOCUMENTS = [" ".join(DRAW.choices(WORDS, k=DRAW.randint(1, 120))) + f" {number}" for number in range(600)]


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    """Chunks of a few documents, each of which is recorded at once."""
    monkeypatch.setattr(readers, "CHUNK", 5000)
    monkeypatch.setattr(bulk_writer, "COMMIT_SECONDS", 0)


@pytest.fixture
def texts(tmp_path):
    """A folder with three files of documents -> its path."""
    return write_corpus(tmp_path / "texts", DOCUMENTS)


def write_corpus(folder, documents):
    folder.mkdir()
    for number in range(3):
        lines = [json.dumps({"text": document}) for document in documents[number::3]]
        (folder / f"{number}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def prepare(texts, data_dir, tokenizer="byte", **settings):
    return prepare_bulk(find_bulk_corpus("", files=str(texts)), data_dir, tokenizer=tokenizer, **settings)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def documents_of(folder, split):
    """The documents of a split that is encoded in bytes."""
    *documents, rest = (folder / f"{split}.bin").read_bytes()[::2].split(b"\0")
    assert rest == b"" and set((folder / f"{split}.bin").read_bytes()[1::2]) <= {0}
    return [document.decode() for document in documents]


def meta_of(folder):
    return json.loads((folder / "meta.json").read_text())


# --- what is written ---


def test_every_document_is_in_one_split_in_the_sources_order_and_closed(tmp_path, texts):
    folder = prepare(texts, tmp_path / "data", val_fraction=0.2)
    train, val = (documents_of(folder, split) for split in ("train", "val"))
    order = [document for number in range(3) for document in DOCUMENTS[number::3]]
    assert train == [d for d in order if split_hash(d.encode()) >= 0.2 * 2**64]
    assert val == [d for d in order if split_hash(d.encode()) < 0.2 * 2**64]
    assert 80 < len(val) < 160 and sorted(path.name for path in folder.iterdir()) == [
        "meta.json",
        "train.bin",
        "val.bin",
    ]


def test_equal_documents_land_in_the_same_split_whatever_their_place(tmp_path):
    folder = prepare(write_corpus(tmp_path / "twice", DOCUMENTS + DOCUMENTS[::-1]), tmp_path, val_fraction=0.3)
    assert not set(documents_of(folder, "train")) & set(documents_of(folder, "val"))


def test_meta_counts_what_is_behind_each_split(tmp_path, texts):
    folder = prepare(texts, tmp_path, val_fraction=0.2, name="d")
    meta = meta_of(folder)
    for split in ("train", "val"):
        documents = documents_of(folder, split)
        size = sum(len(document.encode()) for document in documents)
        counts = meta[f"{split}_documents"], meta[f"{split}_bytes"], meta[f"{split}_tokens"]
        assert counts == (len(documents), size, size + len(documents))
    data = Dataset(folder, 16, 1)
    assert data.identity == {split: meta[f"{split}_sha256"] for split in ("train", "val")}


def test_wrong_documents_are_counted_and_left_out(tmp_path, capsys):
    (tmp_path / "x").mkdir()
    lines = [json.dumps({"text": text}).encode() for text in ("good", "", "\ud800", "more", 5, None)]
    lines += [b'{"text": "\xff"}', b"{broken", b"{}", b"[1]", b"", json.dumps({"text": " " * 500_001}).encode()]
    lines += [json.dumps({"text": f"good {i}"}).encode() for i in range(40)]
    (tmp_path / "x" / "a.jsonl").write_bytes(b"\n".join(lines))
    folder = prepare(tmp_path / "x", tmp_path / "data", val_fraction=0.5)
    left_out = {"empty": 1, "not UTF-8": 2, "no text": 5, "over 500,000 blanks in a row": 1}
    assert meta_of(folder)["left_out"] == left_out
    assert len(documents_of(folder, "train") + documents_of(folder, "val")) == 42
    said = capsys.readouterr().out
    assert all(f"left out {count} {reason}" in said for reason, count in left_out.items())


def test_a_large_vocabulary_is_stored_in_uint32(tmp_path, texts, monkeypatch):
    class Large(encoders.ByteEncoder):
        end_of_text = 70_000

    class LargeTokenizer:
        vocab_size = 70_001

        def identity(self):
            return {"kind": "byte", "vocab_size": 256}

    monkeypatch.setitem(bulk_writer.TOKENIZERS, "byte", LargeTokenizer)
    monkeypatch.setattr(bulk, "make_encoder", lambda *args: Large())
    folder = prepare(texts, tmp_path)
    data = Dataset(folder, 16, 1)
    assert data.splits["train"].dtype == np.uint32 and int(data.splits["train"].max()) == 70_000
    assert np.count_nonzero(data.splits["train"] == 70_000) == meta_of(folder)["train_documents"]


@pytest.mark.parametrize("limit", [1, 2, 77, 250])
def test_max_docs_takes_the_first_documents(tmp_path, texts, limit):
    try:
        folder = prepare(texts, tmp_path, max_docs=limit, val_fraction=0.3)
    except UserError as error:
        assert limit < 10 and "too short to fill" in str(error) and not (tmp_path / "texts" / JOURNAL).exists()
        return
    first = [document for number in range(3) for document in DOCUMENTS[number::3]][:limit]
    assert sorted(documents_of(folder, "train") + documents_of(folder, "val")) == sorted(first)


def test_max_tokens_ends_with_the_document_that_reaches_it(tmp_path, texts):
    folder = prepare(texts, tmp_path, max_tokens=20_000, val_fraction=0.3)
    meta = meta_of(folder)
    total, documents = meta["train_tokens"] + meta["val_tokens"], meta["train_documents"] + meta["val_documents"]
    assert total >= 20_000
    order = [document for number in range(3) for document in DOCUMENTS[number::3]]
    assert total - len(order[documents - 1].encode()) - 1 < 20_000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokenizer": "char"}, "char needs the whole text in memory"),
        ({"val_fraction": 1.0}, "expected a share between 0 and 1"),
        ({"max_tokens": 0}, "max_tokens = 0: expected a number above 0"),
        ({"workers": 0}, "workers = 0"),
        ({"name": "../up"}, "no name for a dataset's folder"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, texts, settings, message):
    with pytest.raises(UserError, match=message):
        prepare(texts, tmp_path / "data", **settings)
    assert not (tmp_path / "data").exists()


def test_a_corpus_without_documents_says_why(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(UserError, match=r"too short to fill train.bin \(0 documents, 1 left out: 1 files: not UTF-8"):
        prepare(tmp_path / "x", tmp_path / "data")
    assert not (tmp_path / "data" / "x").exists() or not files(tmp_path / "data" / "x")


# --- what was there before ---


def test_a_finished_corpus_is_left_alone_and_made_anew_by_force(tmp_path, texts, capsys):
    folder = prepare(texts, tmp_path / "data")
    before, moment = files(folder), (folder / "train.bin").stat().st_mtime_ns
    prepare(texts, tmp_path / "data")
    assert "is finished already; --force makes it anew" in capsys.readouterr().out
    assert (folder / "train.bin").stat().st_mtime_ns == moment
    prepare(texts, tmp_path / "data", force=True)
    assert files(folder) == before and (folder / "train.bin").stat().st_mtime_ns > moment


def test_another_corpus_of_the_same_name_is_kept(tmp_path, texts):
    folder = prepare(texts, tmp_path / "data", name="d")
    before = files(folder)
    other = write_corpus(tmp_path / "others", DOCUMENTS[:300])
    with pytest.raises(UserError, match=r"holds another text .*--name=NAME keeps both, --force replaces"):
        prepare(other, tmp_path / "data", name="d")
    assert files(folder) == before
    prepare(other, tmp_path / "data", name="d", force=True)
    assert meta_of(folder)["place"] == str(other)


def test_a_second_preparation_in_the_same_folder_is_refused(tmp_path, texts):
    with folder_lock(tmp_path / "texts", "a preparation"), pytest.raises(UserError, match="is in use by a preparation"):
        prepare(texts, tmp_path)


# --- stopped and resumed ---


class Stopped(BaseException):
    """Stands in for whatever ends a process at a moment."""


def stop_after(monkeypatch, batches, error=Stopped):
    """Let the next preparation end after so many batches are written."""
    write, left = bulk_writer.Preparation._write, [batches]

    def limited(self, batch):
        if not left[0]:
            raise error
        left[0] -= 1
        write(self, batch)

    monkeypatch.setattr(bulk_writer.Preparation, "_write", limited)


def half_done(texts, data_dir, monkeypatch, batches=7, **settings):
    with monkeypatch.context() as patch:
        stop_after(patch, batches)
        with pytest.raises(Stopped):
            prepare(texts, data_dir, **settings)


def test_training_on_an_unfinished_corpus_is_refused_by_name(tmp_path, texts, monkeypatch):
    half_done(texts, tmp_path / "data", monkeypatch)
    with pytest.raises(UserError, match=r"data.texts is an unfinished corpus: run the command that began it again"):
        Dataset(tmp_path / "data" / "texts", 16, 1)


@pytest.mark.parametrize("batches", [0, 1, 9, 30])
def test_a_stopped_preparation_goes_on_where_it_was(tmp_path, texts, monkeypatch, capsys, batches):
    whole = files(prepare(texts, tmp_path / "whole"))
    half_done(texts, tmp_path / "data", monkeypatch, batches)
    assert sorted(files(tmp_path / "data" / "texts")) == ["train.bin.part", JOURNAL, "val.bin.part"]
    with (tmp_path / "data" / "texts" / "train.bin.part").open("ab") as part:
        part.write(b"what was not recorded any more")
    with (tmp_path / "data" / "texts" / JOURNAL).open("ab") as journal:
        journal.write(b'{"place": [1, 2')
    capsys.readouterr()
    assert files(prepare(texts, tmp_path / "data")) == whole
    assert "documents are done" in capsys.readouterr().out


def test_other_settings_cannot_go_on_but_force_begins_anew(tmp_path, texts, monkeypatch):
    half_done(texts, tmp_path / "data", monkeypatch)
    with pytest.raises(UserError, match=r"unfinished corpus with another limits \(val_fraction was 0.01\).*--force"):
        prepare(texts, tmp_path / "data", val_fraction=0.3)
    with (texts / "0.jsonl").open("a") as file:
        file.write('{"text": "new"}\n')
    with pytest.raises(UserError, match="unfinished corpus with another source"):
        prepare(texts, tmp_path / "data")
    whole = files(prepare(texts, tmp_path / "whole", val_fraction=0.3))
    assert files(prepare(texts, tmp_path / "data", val_fraction=0.3, force=True)) == whole


def test_parts_that_lost_bytes_are_refused(tmp_path, texts, monkeypatch):
    half_done(texts, tmp_path / "data", monkeypatch)
    os.truncate(tmp_path / "data" / "texts" / "train.bin.part", 10)
    with pytest.raises(UserError, match=r"train.bin.part is shorter than its journal says: begin anew with --force"):
        prepare(texts, tmp_path / "data")


@pytest.mark.parametrize("step", range(8))
def test_a_crash_while_the_files_get_their_names_is_mended(tmp_path, texts, monkeypatch, step):
    whole = files(prepare(texts, tmp_path / "whole"))
    prepare(texts, tmp_path / "data", val_fraction=0.3)  # whose files stand where the new ones will
    count = [0]

    def crash_at(real):
        def wrapped(*args, **kwargs):
            count[0] += 1
            if count[0] == step + 1:
                raise Stopped
            return real(*args, **kwargs)

        return wrapped

    with monkeypatch.context() as patch:
        finish = bulk.finish

        def fragile(*args):
            for module, name in ((os, "replace"), (Path, "unlink"), (bulk, "sync_folder"), (bulk, "sha256_of")):
                patch.setattr(module, name, crash_at(getattr(module, name)))
            return finish(*args)

        patch.setattr(bulk, "finish", fragile)
        with pytest.raises(Stopped):
            prepare(texts, tmp_path / "data", force=True)
    assert files(prepare(texts, tmp_path / "data")) == whole


def test_a_full_disk_is_one_sentence_and_costs_nothing(tmp_path, texts, monkeypatch):
    whole = files(prepare(texts, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        stop_after(patch, 9, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        with pytest.raises(UserError, match=r"cannot write .*texts: No space left on device; .*run the same command"):
            prepare(texts, tmp_path / "data")
    assert files(prepare(texts, tmp_path / "data")) == whole


def test_an_interrupted_preparation_says_how_to_go_on(tmp_path, texts, monkeypatch, capsys):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 3, KeyboardInterrupt)
        prepare(texts, tmp_path / "data")
    done = Journal(tmp_path / "data" / "texts" / JOURNAL).state.total_documents
    assert f"stopped  after {done:,} documents: the same command goes on from here" in capsys.readouterr().out and done


def test_standard_input_goes_on_if_the_same_text_is_piped_again(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "TEXT_PIECE", 500)
    text = "".join(f"line {number} of a text\n" for number in range(3000))
    whole = files(piped(text, tmp_path / "whole", monkeypatch))
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, 4)
        piped(text, tmp_path / "data", monkeypatch)
    with pytest.raises(UserError, match=r"does not begin as it did before"):
        piped("X" + text[1:], tmp_path / "data", monkeypatch)
    assert files(piped(text, tmp_path / "data", monkeypatch)) == whole


def piped(text, data_dir, monkeypatch):
    data_dir.mkdir(exist_ok=True)
    (data_dir / "input").write_text(text)
    with (data_dir / "input").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        return prepare("-", data_dir, val_fraction=0.2)


PREPARE = """
import json, sys
from wiggle import bulk, bulk_writer, readers
from wiggle.bulk_sources import find_bulk_corpus
readers.CHUNK, bulk_writer.COMMIT_SECONDS = 5000, 0
settings = json.loads(sys.argv[1])
bulk.prepare_bulk(find_bulk_corpus("", files=settings.pop("files")), **settings)
"""


def start(texts, data_dir, **settings):
    settings |= {"files": str(texts), "data_dir": str(data_dir)}
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE, json.dumps(settings)], cwd=ROOT, stdout=subprocess.DEVNULL, text=True
    )


def killed_until_it_is_through(texts, data_dir, lives, draw):
    """
    Start a preparation with the settings of each of `lives` in turn and kill it at a random moment; let the last one
    run -> the number of kills that came before the end.
    """
    journal, kills = data_dir / "texts" / JOURNAL, 0
    for settings in lives[:-1]:
        process = start(texts, data_dir, **settings)
        grown = (journal.stat().st_size if journal.exists() else 0) + draw.choice([0, 0, 300, 1000, 3000])
        while process.poll() is None and not (journal.exists() and journal.stat().st_size > grown):
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.01))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert start(texts, data_dir, **lives[-1]).wait() == 0
    return kills


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_gives_the_same_files(tmp_path, kills):
    texts = write_corpus(tmp_path / "texts", DOCUMENTS * 3)
    whole = files(prepare(texts, tmp_path / "whole"))
    lives = [{"tokenizer": "byte"}] * (kills + 1)
    assert killed_until_it_is_through(texts, tmp_path / "data", lives, random.Random(kills)) >= kills // 2
    assert files(tmp_path / "data" / "texts") == whole


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_other_workers_and_encoders_after_a_kill_give_the_same_files(tmp_path, real_gpt2):
    pytest.importorskip("gigatoken")
    texts = write_corpus(tmp_path / "texts", DOCUMENTS * 10)
    whole = files(prepare(texts, tmp_path / "whole", tokenizer="gpt2", encoder="tiktoken", workers=1))
    lives = [{"encoder": "gigatoken"}, {"encoder": "tiktoken", "workers": 2}, {"encoder": "tiktoken", "workers": 1}]
    lives += [{"encoder": "gigatoken"}, {"encoder": "tiktoken", "workers": 3}]
    killed_until_it_is_through(texts, tmp_path / "data", lives, random.Random(5))
    assert files(tmp_path / "data" / "texts") == whole


@pytest.fixture
def real_gpt2():
    try:
        return gpt2_encoding()
    except UserError as error:
        pytest.skip(str(error))


def test_compressed_and_plain_files_give_the_same_corpus(tmp_path, texts):
    whole = prepare(texts, tmp_path / "whole")
    (tmp_path / "gz").mkdir()
    for path in texts.iterdir():
        (tmp_path / "gz" / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    folder = prepare(tmp_path / "gz" / "*.gz", tmp_path / "data")
    for split in ("train", "val"):
        assert documents_of(folder, split) == documents_of(whole, split)
