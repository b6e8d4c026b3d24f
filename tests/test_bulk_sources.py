"""Where large corpora come from: local files and folders, and a hub that loses connections and sends half a file."""

import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake_hub import REVISION, Hub
from wiggle.bulk import prepare_bulk
from wiggle.bulk_sources import HUB, find_bulk_corpus
from wiggle.errors import UserError
from wiggle.sources import LARGE_CORPORA

ROOT = Path(__file__).parents[1]
DOCUMENTS = [f"document {number} " * 20 for number in range(300)]


def parquet_of(documents):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": documents}), buffer, row_group_size=40)
    return buffer.getvalue()


@pytest.fixture
def hub():
    pytest.importorskip("datasets")
    files = {"README.md": b"---\nlicense: mit\n---\n"}
    files |= {f"data/train-{i:05}-of-00003.parquet": parquet_of(DOCUMENTS[i::3]) for i in range(3)}
    files["data/test-00000-of-00001.parquet"] = parquet_of(["held out"] * 5)
    with Hub(files).running() as server:
        yield server


PREPARE = """
import json, sys
from wiggle import bulk, bulk_sources, bulk_writer
bulk_writer.COMMIT_SECONDS = 0
bulk_sources.WAIT = 0
if sys.argv[2]:
    bulk_sources.TRIES = int(sys.argv[2])
from wiggle.errors import UserError
try:
    corpus = bulk_sources.find_bulk_corpus("", **json.loads(sys.argv[1]))
    bulk.prepare_bulk(corpus, "data", tokenizer="byte", val_fraction=0.2)
except UserError as error:
    sys.exit(f"error: {error}")
"""


def prepare(hub, folder, tries="", **settings):
    """Run a preparation from the fake hub in a process of its own, in a folder -> the finished process."""
    settings = {"hf": "me/texts"} | settings
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_TELEMETRY": "1"}
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", PREPARE, json.dumps(settings), str(tries)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)


def files(folder):
    return {path.name: path.read_bytes() for path in (folder / "data" / "texts").iterdir()}


def documents(folder):
    found = b"".join((folder / "data" / "texts" / f"{split}.bin").read_bytes()[::2] for split in ("train", "val"))
    return sorted(found.decode().split("\0")[:-1])


def test_a_dataset_of_the_hub_is_made_and_no_download_is_kept(hub, tmp_path):
    done = prepare(hub, tmp_path / "a")
    assert done.returncode == 0, done.stderr
    assert documents(tmp_path / "a") == sorted(DOCUMENTS)
    assert sorted(files(tmp_path / "a")) == ["meta.json", "train.bin", "val.bin"]
    meta = json.loads(files(tmp_path / "a")["meta.json"])
    assert meta["source"] == f"me/texts, split train, revision {REVISION}" and meta["place"] == "hf:me/texts:train"


def test_lost_connections_truncated_files_and_429_are_tried_again(hub, tmp_path):
    assert prepare(hub, tmp_path / "whole").returncode == 0
    names = [name for name in hub.files if "train" in name]
    hub.faults = {names[0]: ["lost", 429], names[1]: ["short", "lost"], names[2]: [503, "short"]}
    done = prepare(hub, tmp_path / "a")
    assert done.returncode == 0, done.stderr
    assert not any(hub.faults.values()) and files(tmp_path / "a") == files(tmp_path / "whole")


def test_a_connection_that_stays_lost_is_one_sentence_and_the_next_run_goes_on(hub, tmp_path):
    assert prepare(hub, tmp_path / "whole").returncode == 0
    names = [name for name in hub.files if "train" in name]
    hub.faults = {names[1]: ["short"] * 50}
    done = prepare(hub, tmp_path / "a", tries=2)
    assert done.returncode == 1 and done.stderr.strip().rpartition("\n")[2].startswith(f"error: {names[1]} of me/texts")
    assert "run the same command again, which goes on where this stopped" in done.stderr
    hub.faults, hub.downloads[:] = {}, []
    assert prepare(hub, tmp_path / "a").returncode == 0
    assert names[0] not in hub.downloads and files(tmp_path / "a") == files(tmp_path / "whole")


def test_a_missing_split_or_dataset_is_one_sentence(hub, tmp_path):
    done = prepare(hub, tmp_path / "a", split="dev")
    assert done.stderr.strip().endswith("error: me/texts has no split 'dev', but train, test")
    done = prepare(hub, tmp_path / "a", hf="me/nothing")
    assert done.returncode == 1 and "error: dataset me/nothing cannot be opened:" in done.stderr
    assert not (tmp_path / "a" / "data").exists() or not any((tmp_path / "a" / "data").iterdir())


def test_a_local_folder_that_is_laid_out_like_a_dataset(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "texts" / "data").mkdir(parents=True)
    for i in range(3):
        (tmp_path / "texts" / "data" / f"train-{i:05}-of-00003.parquet").write_bytes(parquet_of(DOCUMENTS[i::3]))
    (tmp_path / "texts" / "data" / "test-00000-of-00001.parquet").write_bytes(parquet_of(["held out"] * 5))
    prepare_bulk(
        find_bulk_corpus("", hf=str(tmp_path / "texts")), tmp_path / "data", tokenizer="byte", val_fraction=0.2
    )
    assert documents(tmp_path) == sorted(DOCUMENTS)


# --- local files ---


def test_a_hostile_folder_is_reported_and_does_no_harm(tmp_path, capsys):
    folder = tmp_path / "texts"
    (folder / "x.txt").mkdir(parents=True)
    (folder / "x.txt" / "inside.txt").write_text("inside a folder that is called x.txt")
    draw = random.Random(0)
    for number in range(60):
        (folder / f"good{number}.txt").write_text(f"good {draw.random()}\n")
    for name, data in {"empty.txt": b"", "latin.txt": b"caf\xe9", "wide.txt": "wide".encode("utf-16")}.items():
        (folder / name).write_bytes(data)
    (folder / "picture.png").write_bytes(bytes(range(256)))
    (folder / "zeros.bin").write_bytes(b"a\0b")
    (folder / "loop").symlink_to(folder)
    (folder / "self.txt").symlink_to(folder / "self.txt")
    (folder / "nowhere.txt").symlink_to(tmp_path / "nothing")
    prepare_bulk(find_bulk_corpus("", files=str(folder)), tmp_path / "data", tokenizer="byte", val_fraction=0.2)
    assert len(documents(tmp_path)) == 61
    said = capsys.readouterr().out
    for part in ("not UTF-8 text", "text in UTF-16", "zero bytes", "links to folders", "cannot be read", "1 empty"):
        assert part in said, said


def test_a_pattern_takes_files_alone(tmp_path, capsys):
    (tmp_path / "texts" / "b.txt").mkdir(parents=True)
    for number in range(40):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"text {number}")
    (tmp_path / "texts" / "other.md").write_text("another kind of file")
    pattern = str(tmp_path / "texts" / "*.txt")
    prepare_bulk(find_bulk_corpus("", files=pattern), tmp_path / "data", tokenizer="byte", val_fraction=0.3)
    assert documents(tmp_path) == sorted(f"text {number}" for number in range(40))
    assert "skipped  1 files, no files" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"matches no file: give a folder, or a pattern"):
        prepare_bulk(find_bulk_corpus("", files=pattern + "x"), tmp_path / "data", name="none")


# --- what the user may say ---


def test_named_corpora_have_their_ids_and_counts():
    assert {*HUB, "python_packages"} == set(LARGE_CORPORA)
    for name in LARGE_CORPORA:
        corpus = find_bulk_corpus(name)
        assert corpus.name == corpus.place == name and 0 < corpus.val_fraction < 0.1
    assert find_bulk_corpus("openwebtext").expected == 8_013_769


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"corpus": "novel.txt", "files": "*.txt"}, "corpus and files name a corpus each"),
        ({"corpus": "", "hf": "a/b", "files": "*.txt"}, "hf and files name a corpus each"),
        ({"corpus": "openwebtext", "split": "test"}, "--subset and --split go with --hf=ID"),
        ({"corpus": "novel.txt", "text_column": "story"}, "--text_column goes with --hf=ID or --files"),
    ],
)
def test_contradictions_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        find_bulk_corpus(**settings)


def test_small_corpora_are_left_to_the_way_in_memory():
    assert find_bulk_corpus("shakespeare_works") is None and find_bulk_corpus("novel.txt") is None
