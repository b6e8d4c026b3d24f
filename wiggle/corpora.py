"""A text as a dataset: train.bin, val.bin and meta.json, which wiggle/dataset.py opens."""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from wiggle.encoders import text_pieces
from wiggle.errors import UserError
from wiggle.files import atomic_write, read_bytes, writing
from wiggle.lock import folder_lock
from wiggle.sources import find_source
from wiggle.tokenizer import END_OF_TEXT, ByteTokenizer, CharTokenizer, GPT2Tokenizer, Tokenizer

JOURNAL = "unfinished.jsonl"  # which lies in the folder of a large corpus until that is finished (wiggle/bulk.py)
PIECE = 2**20  # characters that are encoded at a time


def prepare(
    corpus: str,
    data_dir: str | Path = "data",
    input: str | None = None,
    tokenizer: str | None = None,
    name: str | None = None,
    val_fraction: float = 0.1,
    force: bool = False,
) -> Path:
    """
    Make the dataset that the keys of prepare_data.py's PrepareConfig describe -> its folder.

    Raises UserError for whatever is wrong; a dataset that had the same name then stays as it was.
    """
    source = find_source(corpus, input, data_dir)
    if tokenizer not in (None, *source.tokenizers) or (len(source.tokenizers) == 1 and val_fraction != 0.1):
        kind = source.tokenizers[0]
        raise UserError(f"{corpus} has tokenizer={kind} and val_fraction=0.1: for others give its text by path")
    if not 0 < val_fraction < 1:
        raise UserError(f"val_fraction = {val_fraction}: expected a share between 0 and 1")
    folder = dataset_folder(data_dir, source.name if name is None else name)
    with folder_lock(folder, "a preparation"):
        remove_half_written(folder)
        found = source.read()
        if not force:
            refuse_to_replace(folder, source.place, found.sha256)
        parts = split_texts(found.texts, val_fraction, corpus)
        built = build_tokenizer(tokenizer or source.tokenizers[0], parts)
        origin = {"source": found.source, "source_sha256": found.sha256, "place": source.place}
        meta = write_dataset(folder, built, parts, origin)
    print(f"data     {folder}: {found.source}")
    print(f"tokens   {meta['train_tokens']:,} to train on, {meta['val_tokens']:,} to validate")
    print(f"vocab    {built.vocab_size:,} ({built.kind})")
    return folder


def dataset_folder(data_dir: str | Path, name: str) -> Path:
    """The folder of the dataset `name`. Raises UserError for a name that would put it anywhere else."""
    if not re.fullmatch(r"[^/\\:\0-\x1f\x7f]+", name) or name in (".", ".."):
        raise UserError(f"{name!r} is no name for a dataset's folder: give a plain one, --name=NAME")
    return Path(data_dir, name)


def remove_half_written(folder: Path) -> None:
    """Remove the temporary files of preparations that were killed. The caller holds the folder's lock."""
    for path in folder.glob("*.tmp"):
        if re.fullmatch(r"((train|val)(_mask)?\.bin|meta\.json)\.\d+\.tmp", path.name):
            with writing(path):
                path.unlink()
            print(f"note     removed {path}, which a preparation left when it was killed")


def refuse_to_replace(folder: Path, place: str | None, sha256: str) -> None:
    """
    Raise UserError where `folder` holds the dataset of another source.

    The same place with a new text, and the same text from a new place, count as the same source.
    """
    if not any((folder / part).exists() for part in ("train.bin", "val.bin")):
        return
    try:
        meta = json.loads(read_bytes(folder / "meta.json"))
    except (UserError, ValueError, RecursionError):
        meta = None
    if not isinstance(meta, dict):
        raise UserError(
            f"{folder} holds a dataset whose meta.json is missing or damaged: --name=NAME leaves it alone, "
            "--force replaces it"
        )
    if meta.get("source_sha256") != sha256 and (place is None or meta.get("place") != place):
        origin = meta.get("place") or meta.get("source")
        raise UserError(f"{folder} holds another text ({origin}): --name=NAME keeps both, --force replaces it")


def split_texts(texts: list[str], val_fraction: float, corpus: str) -> dict[str, list[str]]:
    """Cut each text in two -> {"train": [text, ...], "val": [text, ...]}."""
    pairs = [split_text(text, val_fraction, several=len(texts) > 1) for text in texts]
    parts = {"train": [train for train, _ in pairs], "val": [val for _, val in pairs]}
    for part, pieces in parts.items():
        if sum(map(len, pieces)) < 2:
            raise UserError(f"{corpus} is too short to fill {part}.bin ({sum(map(len, texts))} characters)")
    return parts


def split_text(text: str, val_fraction: float, several: bool) -> tuple[str, str]:
    """Cut a text into (train, val): where nanoGPT cuts its one text, or, of several, each at the line end before."""
    cut = int(len(text) * (1 - val_fraction))
    if not several:
        return text[:cut], text[cut:]
    cut = text.rfind("\n", max(0, cut - 200), cut) + 1 or cut  # a line end further away would change the shares
    return tuple(part + "\n" if part and not part.endswith("\n") else part for part in (text[:cut], text[cut:]))


def build_tokenizer(kind: str, parts: dict[str, list[str]]) -> Tokenizer:
    """The tokenizer of a kind for these texts, ready to encode. Prints what in the texts may not suit it."""
    texts = parts["train"] + parts["val"]
    if kind == "char":
        tokenizer = CharTokenizer.from_text(*texts)
        if tokenizer.vocab_size > 1000:
            print(f"note     {tokenizer.vocab_size:,} different characters: --tokenizer=gpt2 or byte may suit better")
        return tokenizer
    tokenizer = ByteTokenizer() if kind == "byte" else GPT2Tokenizer()
    tokenizer.encode("")  # fetches GPT-2's tables where they are missing: if that fails, nothing has been written
    count = sum(text.count(END_OF_TEXT) for text in texts)
    if kind == "gpt2" and count:
        print(f"note     the text holds {END_OF_TEXT} {count:,} times: encoded as plain text, seven tokens, where a "
              "prompt takes it as GPT-2's own single token")  # fmt: skip
    return tokenizer


def write_dataset(folder: Path, tokenizer: Tokenizer, parts: dict[str, list[str]], origin: dict) -> dict:
    """
    Encode the texts and write train.bin, val.bin and meta.json -> the content of meta.json.

    The three files are renamed into place together at the end, meta.json last. origin: meta.json's keys on the source.
    """
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
    meta = {"tokenizer": tokenizer.identity(), "vocab_size": tokenizer.vocab_size, "dtype": dtype.name} | origin
    total = sum(map(len, parts["train"] + parts["val"]))
    with (
        atomic_write(folder / "meta.json") as meta_file,
        atomic_write(folder / "val.bin") as val_file,
        atomic_write(folder / "train.bin") as train_file,
        tqdm(total=total, unit="char", unit_scale=True, disable=None, leave=False) as bar,
    ):
        for part, file in (("train", train_file), ("val", val_file)):
            found = write_tokens(file, parts[part], tokenizer, dtype, bar)
            if found["tokens"] < 2:  # none to predict
                raise UserError(f"the text is too short to fill {part}.bin ({found['tokens']} tokens)")
            meta |= {f"{part}_{key}": value for key, value in found.items()}
            meta[f"{part}_bytes"] = sum(len(text.encode("utf-8")) for text in parts[part])
        meta_file.write((json.dumps(meta, indent=1) + "\n").encode("ascii"))
    return meta


def write_tokens(file: BinaryIO, texts: list[str], tokenizer: Tokenizer, dtype: np.dtype, bar: tqdm) -> dict:
    """Encode texts into an open file -> {"tokens": count, "sha256": ..., "fingerprint": ...} of the file."""
    count, digest, told = 0, hashlib.sha256(), time.monotonic()
    for size, ids in encode_in_pieces(texts, tokenizer):
        data = np.array(ids, dtype).tobytes()
        file.write(data)
        digest.update(data)
        count += len(ids)
        bar.n += size
        bar.refresh()
        if bar.disable and time.monotonic() > told + 10:  # no terminal for a bar: print a line every ten seconds
            print(f"encoded  {bar.n / bar.total:.0%}", flush=True)
            told = time.monotonic()
    file.flush()
    return {"tokens": count, "sha256": digest.hexdigest(), "fingerprint": fingerprint(file.name)}


def encode_in_pieces(texts: list[str], tokenizer: Tokenizer) -> Iterator[tuple[int, list[int]]]:
    """
    Texts -> pairs (characters read, their ids), a piece at a time.

    Several texts in GPT-2's tokens are each closed with <|endoftext|>, as in its training data.
    """
    for text in texts:
        for piece in text_pieces(text, PIECE):
            yield len(piece), tokenizer.encode(piece)
        if text and len(texts) > 1 and tokenizer.kind == "gpt2":
            yield 0, tokenizer.encode(END_OF_TEXT, special=True)


def fingerprint(path: str | Path) -> str:
    """SHA-256 of a file's size and its first and last MiB: tells large files apart without reading all of them."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest = hashlib.sha256(str(size).encode())
        for start in (0, max(0, size - 2**20)):
            file.seek(start)
            digest.update(file.read(2**20))
    return digest.hexdigest()
