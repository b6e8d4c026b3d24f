"""
How fast and in what memory datasets are prepared and read, beside nanoGPT's way: what `bench.py --only=data` prints.

nanoGPT's way to prepare is `datasets.map` with tiktoken's encode_ordinary, a document at a time, then a copy into one
memory map; its way to read is a row at a time, astype(int64) and torch.stack. The streaming loop is what many scripts
do instead: one process that encodes row by row and appends to a file.
"""

import contextlib
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from wiggle.bulk import prepare_bulk
from wiggle.bulk_sources import find_bulk_corpus
from wiggle.bulk_writer import split_hash
from wiggle.dataset import Dataset
from wiggle.encoders import make_encoder
from wiggle.errors import UserError
from wiggle.tokenizer import gpt2_encoding

END_OF_TEXT = 50256


class Texts(NamedTuple):
    """Python sources of this machine, as parquet files."""

    folder: Path
    megabytes: float  # of UTF-8

    @property
    def pattern(self) -> str:
        return str(self.folder / "*.parquet")


def write_texts(folder: Path, megabytes: float) -> Texts:
    """Write up to so many MB of the Python files of the standard library and of the installed packages as parquet."""
    import pyarrow
    from pyarrow import parquet

    rows, size, total, seen = [], 0, 0, set()
    paths = sysconfig.get_paths()
    files = sorted({*Path(paths["purelib"]).rglob("*.py"), *Path(paths["stdlib"]).rglob("*.py")})
    for number, path in enumerate(files):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            text = path.read_bytes()
            if total < megabytes * 1e6 and text and split_hash(text) not in seen:
                rows.append(text.decode("utf-8"))
                seen.add(split_hash(text))
                size, total = size + len(text), total + len(text)
        if rows and (size > 25e6 or number == len(files) - 1):
            parquet.write_table(pyarrow.table({"text": rows}), folder / f"{number:06}.parquet", row_group_size=1000)
            rows, size = [], 0
    return Texts(folder, total / 1e6)


# --- ways to prepare ---


def prepare_here(texts: Texts, encoder: str, folder: Path) -> None:
    """Prepare texts by wiggle/bulk.py."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        corpus = find_bulk_corpus("", files=texts.pattern)
        prepare_bulk(corpus, folder, "ours", val_fraction=0.1, encoder=encoder, force=True)


def encode_row(row: dict) -> dict:
    """nanoGPT's `process`: a document's ids and their number."""
    ids = gpt2_encoding().encode_ordinary(row["text"])
    ids.append(END_OF_TEXT)
    return {"ids": ids, "len": len(ids)}


def prepare_as_nanogpt(texts: Texts, workers: int, folder: Path) -> None:
    """nanoGPT's data/openwebtext/prepare.py from `datasets.map` on; loading the parquet files is not counted."""
    rows = load_rows(texts, folder)
    tokenized = rows.map(encode_row, remove_columns=["text"], num_proc=workers, load_from_cache_file=False)
    length = int(np.sum(tokenized["len"], dtype=np.uint64))
    tokens = np.memmap(folder / "nanogpt.bin", dtype=np.uint16, mode="w+", shape=(length,))
    start, batches = 0, min(1024, len(tokenized))
    for number in range(batches):
        shard = tokenized.shard(num_shards=batches, index=number, contiguous=True).with_format("numpy")
        ids = np.concatenate(shard["ids"][:])
        tokens[start : start + len(ids)] = ids
        start += len(ids)
    tokens.flush()


def prepare_by_streaming_loop(texts: Texts, folder: Path) -> None:
    """One process that encodes a document at a time and appends it."""
    import datasets

    rows = datasets.load_dataset("parquet", data_files=texts.pattern, split="train", streaming=True)
    with open(folder / "loop.bin", "wb") as file:
        for row in rows:
            file.write(np.array(encode_row(row)["ids"], np.uint16).tobytes())


def load_rows(texts: Texts, folder: Path):
    """The texts as a datasets.Dataset, without progress bars."""
    import datasets

    datasets.disable_progress_bars()
    cache = str(folder / "cache")
    return datasets.load_dataset("parquet", data_files=texts.pattern, split="train", cache_dir=cache)


def ways_to_prepare(texts: Texts, folder: Path) -> dict[str, Callable[[], None]]:
    """The ways to prepare the texts, by name; nanoGPT's with the better of one worker and one a core."""
    load_rows(texts, folder)  # converts the parquet files once
    seconds = {}
    for workers in {1, os.cpu_count() or 1}:
        start = time.perf_counter()
        prepare_as_nanogpt(texts, workers, folder)
        seconds[workers] = time.perf_counter() - start
    best = min(seconds, key=seconds.get)
    ways = {f"nanoGPT, {best} workers": lambda: prepare_as_nanogpt(texts, best, folder)}
    ways["streaming loop"] = lambda: prepare_by_streaming_loop(texts, folder)
    ways["ours, tiktoken"] = lambda: prepare_here(texts, "tiktoken", folder)
    with contextlib.suppress(ImportError):
        import gigatoken  # noqa: F401

        ways["ours, gigatoken"] = lambda: prepare_here(texts, "gigatoken", folder)
    return ways


def stage_seconds(texts: Texts, encoder: str) -> dict[str, float]:
    """Seconds that each stage of a preparation takes by itself, one after another."""
    source = find_bulk_corpus("", files=texts.pattern).open(None, Path())
    made = make_encoder("gpt2", encoder, 1)
    seconds, chunks, first = dict.fromkeys(("reading", "hashing", "encoding", "writing"), 0.0), source.files.chunks(), 0
    with contextlib.closing(made), tempfile.TemporaryFile() as file:
        clock = time.perf_counter()
        for chunk in chunks:
            clock = lap(seconds, "reading", clock)
            for document in chunk.documents:
                split_hash(document)
            clock = lap(seconds, "hashing", clock)
            ids, _ = made.encode(chunk.documents, first)
            clock = lap(seconds, "encoding", clock)
            file.write(ids.data)
            first += len(chunk.documents)
            clock = lap(seconds, "writing", clock)
        os.fsync(file.fileno())
        lap(seconds, "writing", clock)
    return seconds


def lap(seconds: dict[str, float], stage: str, clock: float) -> float:
    """Add the time since `clock` to a stage -> the time now."""
    now = time.perf_counter()
    seconds[stage] += now - clock
    return now


# --- memory ---


def peak_of_preparation(texts: Texts, encoder: str) -> float:
    """The largest sum, in MB, of the proportional set sizes of prepare_data.py and its workers; Linux alone."""
    script = Path(__file__).parents[1] / "prepare_data.py"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(script), f"--files={texts.pattern}", f"--data_dir={folder}", "--name=x"]
        with subprocess.Popen([*command, f"--encoder={encoder}"], stdout=subprocess.DEVNULL) as process:
            largest = 0.0
            while process.poll() is None:
                largest = max(largest, sum(map(proportional_set_size, family(process.pid))))
                time.sleep(0.05)
    if process.returncode:
        raise UserError(f"the preparation whose memory is measured ended with exit code {process.returncode}")
    return largest


def family(process: int) -> Iterator[int]:
    """A process and all that it started, by their ids."""
    yield process
    with contextlib.suppress(OSError):
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            for child in children.read_text().split():
                yield from family(int(child))


def proportional_set_size(process: int) -> float:
    """MB of memory of a process, shared pages divided among those who share them; 0 where it has ended."""
    with contextlib.suppress(OSError, StopIteration), open(f"/proc/{process}/smaps_rollup") as lines:
        return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("Pss:"))
    return 0.0


def resident_memory() -> float:
    """MB of memory that this process holds; 0 where the system does not say."""
    with contextlib.suppress(OSError), open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6
    return 0.0


# --- reading batches ---


def write_random_dataset(folder: Path, tokens: int) -> Dataset:
    """A dataset of random ids in GPT-2's tokens, in windows of 1,024."""
    generator = np.random.default_rng(0)
    for split, count in (("train", tokens), ("val", 10_000)):
        with open(folder / f"{split}.bin", "wb") as file:
            for start in range(0, count, 2**22):
                file.write(generator.integers(0, 50257, min(2**22, count - start), np.uint16).data)
    return Dataset(folder, 1024, 1)


def read_batches(data: Dataset, count: int, start: int = 0) -> float:
    """Read batches of 12 windows -> the resident memory's growth after the first 100 batches, in MB."""
    base = largest = 0.0
    for number in range(start, start + count):
        data.batch(12 * number, 12)
        if number % 50 == 0:
            now = resident_memory()
            base, largest = (now, now) if number <= start + 100 else (base, max(largest, now))
    return largest - base


def read_batches_as_nanogpt(path: Path, block_size: int, count: int) -> None:
    """nanoGPT's get_batch."""
    for _ in range(count):
        data = np.memmap(path, dtype=np.uint16, mode="r")
        places = torch.randint(len(data) - block_size, (12,))
        torch.stack([torch.from_numpy(data[i : i + block_size].astype(np.int64)) for i in places])
        torch.stack([torch.from_numpy(data[i + 1 : i + 1 + block_size].astype(np.int64)) for i in places])


class TimedBatches:
    """Batches of another object, and the seconds that were spent waiting for them."""

    def __init__(self, batches: object):
        self.batches, self.seconds = batches, 0.0

    def loss_divisor(self, first: int, count: int, per_step: int) -> float:
        return self.batches.loss_divisor(first, count, per_step)

    def batch(self, first: int, count: int) -> torch.Tensor:
        start = time.perf_counter()
        try:
            return self.batches.batch(first, count)
        finally:
            self.seconds += time.perf_counter() - start
