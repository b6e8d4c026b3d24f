"""Files of documents: the same documents as `datasets` reads, from any place on, and what is said of hostile ones."""

import bz2
import gzip
import json
import lzma
import os
import zipfile
from collections import Counter

import pytest

from wiggle import readers
from wiggle.errors import UserError
from wiggle.readers import FileSequence

DOCUMENTS = [f'Document {i}: ü 中,\n"quoted"\t{"x" * (i % 50)}\nand its end.' for i in range(300)]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(readers, "CHUNK", 2000)


def read(*paths, column=None, place=(0, 0, 0)):
    """-> (documents, what was left out, the sequence)."""
    files = FileSequence([*map(str, paths)], [os.path.getsize(path) for path in paths], column)
    documents, left_out = [], Counter()
    for chunk in files.chunks(place):
        documents += [document.decode() for document in chunk.documents]
        left_out += chunk.left_out
    return documents, left_out, files


def rows(column="text"):
    return [{"number": i, column: document} for i, document in enumerate(DOCUMENTS)]


def write_parquet(path, column="text", **settings):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows(column)), path, row_group_size=70, **settings)


def write_json_lines(path, column="text"):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(column)), encoding="utf-8")


def write_json(path, column="text"):
    path.write_text(json.dumps(rows(column), indent=1), encoding="utf-8")


def write_csv(path, column="text", separator=","):
    lines = [separator.join(["number", column])]
    lines += [separator.join([str(i), '"' + d.replace('"', '""') + '"']) for i, d in enumerate(DOCUMENTS)]
    path.write_bytes("".join(line + "\r\n" for line in lines).encode())


def compress(path):
    """Write the content of a file beside it, compressed in each way -> the paths."""
    zstandard = pytest.importorskip("zstandard")
    data = path.read_bytes()
    ways = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard.compress}
    for suffix, way in ways.items():
        path.with_name(path.name + suffix).write_bytes(
            way(data[:5000]) + way(data[5000:])
        )  # two streams, as tools make
    return [path.with_name(path.name + suffix) for suffix in ways]


KINDS = {
    "a.parquet": write_parquet,
    "a.jsonl": write_json_lines,
    "lines.json": write_json_lines,
    "list.json": write_json,
    "a.csv": write_csv,
}


@pytest.mark.parametrize("column", ["text", "story"])
@pytest.mark.parametrize("name", KINDS)
def test_rows_are_those_that_datasets_reads(tmp_path, name, column):
    datasets = pytest.importorskip("datasets")
    KINDS[name](tmp_path / name, column)
    builder = {"jsonl": "json"}.get(kind := name.partition(".")[2], kind)
    path = str(tmp_path / name)
    theirs = datasets.load_dataset(builder, data_files=path, split="train", cache_dir=str(tmp_path / "cache"))
    assert read(path, column=None if column == "text" else column)[0] == list(theirs[column]) == DOCUMENTS


def test_a_text_file_is_the_document_that_datasets_reads(tmp_path):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "a.txt").write_bytes("\r\n".join(DOCUMENTS).encode())
    path, cache = str(tmp_path / "a.txt"), str(tmp_path / "cache")
    theirs = datasets.load_dataset("text", data_files=path, sample_by="document", split="train", cache_dir=cache)
    assert read(path)[0] == theirs["text"][:] == ["\n".join(DOCUMENTS)]


@pytest.mark.parametrize("name", ["a.jsonl", "lines.json", "list.json", "a.csv"])
def test_compressed_files_hold_the_same_rows(tmp_path, name):
    KINDS[name](tmp_path / name)
    for path in compress(tmp_path / name):
        assert read(path)[0] == DOCUMENTS


def test_tab_separated_values(tmp_path):
    write_csv(tmp_path / "a.tsv", separator="\t")
    assert read(tmp_path / "a.tsv")[0] == DOCUMENTS


@pytest.mark.parametrize("kind", ["large_string", "string_view", "dictionary"])
def test_parquet_columns_of_every_kind_of_text(tmp_path, kind):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    text = pyarrow.array([*DOCUMENTS, None])
    text = text.dictionary_encode() if kind == "dictionary" else text.cast(getattr(pyarrow, kind)())
    parquet.write_table(pyarrow.table({"text": text}), tmp_path / "a.parquet")
    documents, left_out, _ = read(tmp_path / "a.parquet")
    assert documents == DOCUMENTS and left_out == {"no text": 1}


def test_reading_begins_at_any_place_that_was_given(tmp_path):
    for name, write in KINDS.items():
        write(tmp_path / name)
    (tmp_path / "z.txt").write_text("the end")
    (tmp_path / "zz.txt").write_text("of all")
    paths = sorted(map(str, tmp_path.iterdir()))
    whole, *_ = read(*paths)
    files = FileSequence(paths, [os.path.getsize(path) for path in paths])
    before = []
    for chunk in files.chunks():
        before += [document.decode() for document in chunk.documents]
        assert before + read(*paths, place=chunk.place)[0] == whole
    assert before == whole and len(whole) == 5 * len(DOCUMENTS) + 2


def test_progress_grows_to_the_size_of_the_files(tmp_path):
    for name, write in KINDS.items():
        write(tmp_path / name)
    paths = sorted(map(str, tmp_path.iterdir()))
    sizes = [os.path.getsize(path) for path in paths]
    done = [chunk.done for chunk in FileSequence(paths, sizes).chunks()]
    assert done == sorted(done) and done[-1] == pytest.approx(sum(sizes)) and len(set(done)) > len(paths)


def test_long_texts_are_cut_at_line_ends_and_nothing_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "TEXT_PIECE", 1000)
    text = "".join(f"line {i} of a text\n" for i in range(1000)) + "x" * 12_345
    (tmp_path / "a.txt").write_text(text)
    documents, *_ = read(tmp_path / "a.txt")
    assert "".join(documents) == text and max(map(len, documents)) <= 2000
    assert all(document.endswith("\n") for document in documents[:15])


# --- columns ---


def test_a_missing_column_is_told_with_those_that_are_there(tmp_path):
    write_parquet(tmp_path / "a.parquet", "story")
    write_csv(tmp_path / "a.csv", "story")
    for name in ("a.parquet", "a.csv"):
        with pytest.raises(UserError, match=f"{name} has no column 'text', but number, story: give one, --text_column"):
            read(tmp_path / name)
    with pytest.raises(UserError, match=r"column number of .* holds int64, no text: give another one"):
        read(tmp_path / "a.parquet", column="number")


# --- hostile files ---


def test_a_hostile_folder_is_reported_and_does_no_harm(tmp_path):
    good = tmp_path / "good.txt"
    good.write_text("good")
    contents = {
        "binary.txt": bytes(range(256)),
        "zeros.txt": b"a\0b",
        "nothing.txt": b"",
        "latin.txt": "café".encode("latin-1"),
        "utf16.txt": "wide".encode("utf-16"),
        "cut.txt.gz": gzip.compress(os.urandom(5000))[:-900],
        "cut.txt.zst": pytest.importorskip("zstandard").compress(os.urandom(500_000))[:-900],
        "no.txt.gz": b"not compressed",
        "no.zst": b"not compressed",
        "no.parquet": b"PAR1 no parquet PAR1",
        "no.json": b"[1, 2",
        "no.whl": b"PK no wheel",
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    documents, left_out, files = read(*sorted(map(str, tmp_path.iterdir())))
    assert documents == ["good"]
    assert left_out["empty"] == 1 and sum(left_out.values()) == len(contents)
    blamed = {os.path.basename(path): why for why, paths in files.wrong_files.items() for path in paths}
    assert set(blamed) == set(contents) - {"nothing.txt"}
    assert (
        "UTF-16" in blamed["utf16.txt"] and "not UTF-8" in blamed["latin.txt"] and "zero bytes" in blamed["zeros.txt"]
    )
    assert "parquet" in blamed["no.parquet"] and "JSON" in blamed["no.json"]


def test_a_file_that_may_not_be_read_is_reported(strict_folder):
    (strict_folder / "a.txt").write_text("secret")
    (strict_folder / "b.txt").write_text("open")
    (strict_folder / "a.txt").chmod(0)
    documents, left_out, _ = read(strict_folder / "a.txt", strict_folder / "b.txt")
    assert documents == ["open"] and left_out == {"files: Permission denied": 1}


@pytest.mark.slow
def test_a_line_of_100_mb_is_read_in_bounded_pieces(tmp_path, monkeypatch):
    monkeypatch.undo()
    (tmp_path / "a.txt").write_bytes(b"one word after another " * (100 * 2**20 // 23))
    sizes = [len(document) for chunk in FileSequence([str(tmp_path / "a.txt")], [1]).chunks() for document in chunk[0]]
    assert sum(sizes) == 100 * 2**20 // 23 * 23 and max(sizes) <= 2 * readers.TEXT_PIECE


# --- wheels ---


def test_a_wheels_python_files_come_without_generated_ones_and_duplicates(tmp_path):
    contents = {
        "a/b.py": "b = 1\r\n",
        "a/a.py": "a = 1\n",
        "a/again.py": "a = 1\n\n",
        "a/made.py": "# This file was automatically generated by a script.\nx = 1\n",
        "a/__init__.py": "",
        "a/data.txt": "no code",
    }
    for name in ("one.whl", "two.whl"):
        with zipfile.ZipFile(tmp_path / name, "w") as wheel:
            for path, text in contents.items():
                wheel.writestr(path, text)
            wheel.writestr(f"{name}.py", f"# {name}")
    assert read(tmp_path / "one.whl", tmp_path / "two.whl")[0] == ["a = 1\n", "b = 1\n", "# one.whl\n", "# two.whl\n"]
