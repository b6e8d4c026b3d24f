"""Files of conversations -> tokens and their mask."""

import json

import numpy as np
import pytest

import prepare_data
from wiggle.configurator import read_settings
from wiggle.dataset import read_meta
from wiggle.errors import UserError


def line(i, answer="Yes."):
    return {"messages": [{"role": "user", "content": f"Is {i} so?"}, {"role": "assistant", "content": answer}]}


def prepare(*arguments):
    keys = [*arguments, "--chat", "--data_dir=data"]
    return prepare_data.prepare_corpus(read_settings(prepare_data.PrepareConfig, keys, positional="corpus"))


@pytest.fixture
def talks(tmp_path, monkeypatch):
    """The path of a file with 40 conversations, in a working directory of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(line(i)) + "\n" for i in range(40)))
    return tmp_path / "talks.jsonl"


def test_a_file_becomes_tokens_and_a_mask_of_as_many_bytes(talks):
    folder = prepare("talks.jsonl", "--tokenizer=byte", "--val_fraction=0.2")
    meta = read_meta(folder)
    assert meta["train_conversations"] + meta["val_conversations"] == 40 and meta["val_conversations"] > 2
    for split in ("train", "val"):
        ids, flags = np.fromfile(folder / f"{split}.bin", "<u2"), np.fromfile(folder / f"{split}_mask.bin", np.uint8)
        assert len(ids) == len(flags) == meta[f"{split}_tokens"]
        assert bytes(ids[flags & 1 == 1][:4].tolist()) == b"Yes." and ids.max() == 259
    assert meta["tokenizer"] == {"kind": "byte", "vocab_size": 260, "marks": meta["tokenizer"]["marks"]}
    assert prepare_data.training_command(folder, meta, False, "out/base").endswith("--out_dir=out/talks")


def test_equal_conversations_fall_into_the_same_split(talks):
    talks.write_text(talks.read_text() * 2)
    folder = prepare("talks.jsonl", "--tokenizer=byte", "--val_fraction=0.2")
    splits = []
    for split in ("train", "val"):
        ids = np.fromfile(folder / f"{split}.bin", "<u2")
        splits.append({tuple(part) for part in np.split(ids, np.flatnonzero(ids == 257)) if len(part)})
    assert splits[0] and splits[1] and not splits[0] & splits[1]


def test_bad_lines_are_counted_by_what_is_wrong_with_them(talks, capsys):
    bad = [b"{", b"\xff", b"[" * 100_000, b"7", b'{"messages": []}']
    bad.append(b'{"messages": [{"role": "tool", "content": "x"}]}')
    talks.write_bytes(talks.read_bytes() + b"\n".join(bad) + b"\n\n")
    prepare("talks.jsonl", "--tokenizer=byte", "--val_fraction=0.2")
    said = capsys.readouterr().out
    assert "left out 3 lines of broken JSON" in said and "left out 1 line without messages" in said
    assert "left out 1 line without an object" in said and "left out 1 line with the unknown role 'tool'" in said


def test_a_json_list_and_instructions_are_read_as_well(talks):
    rows = [{"instruction": f"Say {i}", "input": "", "output": str(i)} for i in range(40)]
    talks.with_name("rows.json").write_text(json.dumps(rows))
    meta = read_meta(prepare("rows.json", "--tokenizer=char", "--val_fraction=0.3"))
    assert meta["train_conversations"] + meta["val_conversations"] == 40
    assert meta["vocab_size"] == len(meta["tokenizer"]["characters"]) + 4


def test_parquet_is_read_as_well(talks):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist([line(i) for i in range(40)]), talks.with_name("rows.parquet"))
    meta = read_meta(prepare("--files=rows.parquet", "--name=n", "--tokenizer=byte", "--val_fraction=0.3"))
    assert meta["train_conversations"] + meta["val_conversations"] == 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--chat takes one source"),
        (("talks.jsonl", "--files=x"), "--chat takes one source|name a corpus each"),
        (("talks.jsonl", "--max_tokens=5"), "--max_tokens does not go with --chat"),
        (("talks.jsonl", "--val_fraction=2"), "expected a share between 0 and 1"),
        (("talks.jsonl", "--tokenizer=byte", "--init_from=x"), "leave --tokenizer out"),
        (("empty.jsonl", "--tokenizer=byte"), r"no conversation is left for train\.bin"),
        (("nowhere.jsonl", "--tokenizer=byte"), "matches no file"),
    ],
)
def test_mistakes_are_one_sentence(talks, arguments, message):
    talks.with_name("empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match=message):
        prepare(*arguments)
