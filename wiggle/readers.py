"""
Files of documents, read in order and in bounded memory: parquet, JSON, JSON Lines, CSV, plain text, wheels.

A place in a sequence of files is (file, row group, row): reading may begin at any place that was given before, and then
gives exactly the documents that follow. Rows are what the kind of file makes of them: rows of parquet and CSV, lines of
JSON Lines, items of a JSON list, pieces of a text, Python files of a wheel.
"""

import bz2
import codecs
import contextlib
import csv
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from wiggle.errors import UserError

CHUNK = 4 * 2**20  # bytes of text that are read, encoded and written at a time, about
TEXT_PIECE = 2**20  # characters; a longer text file is cut at line ends into documents of about so many
LONGEST_BLANK = 500_000  # characters; a longer run of blanks overflows tiktoken's stack
AGAIN = "give the same text, or begin anew with --force"
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")

Place = tuple[int, int, int]  # (file, row group, row)
Rows = tuple[list[bytes | None], int, int, float]  # documents, row group and row of what follows, share of the file


class Chunk(NamedTuple):
    """Consecutive documents of a corpus."""

    documents: list[bytes]  # UTF-8
    left_out: Counter  # why documents were left out -> how many
    place: Place  # of what follows
    done: float  # bytes of the corpus's files read so far
    crc: int = 0  # CRC-32 of all documents up to here, of a FileSequence that replays


class WrongFile(Exception):
    """A file, or the rest of it, cannot be read as documents. The text says what is wrong with it."""


# What the readers raise for a file that is wrong.
DAMAGED = (WrongFile, OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)


class FileSequence:
    """
    Files that hold the documents of a corpus.

    names, sizes (bytes): of each file, in order. fetch: gives the path of file number n for the time of a with block;
    `names` are paths where it is None. column: where rows have names, which one is the text; None: 'text'. replays:
    whether reading has to begin at the first file each time, as where it must know all documents before a place.
    """

    def __init__(
        self,
        names: list[str],
        sizes: list[int],
        column: str | None = None,
        fetch: Callable[[int], contextlib.AbstractContextManager[Path | str]] | None = None,
        replays: bool = False,
    ):
        self.names, self.sizes, self.column, self.replays = names, sizes, column, replays
        self.fetches = fetch is not None
        self.fetch = fetch or (lambda number: contextlib.nullcontext(names[number]))
        self.wrong_files: dict[str, list[str]] = {}  # why files were left out -> their names
        self.seen: set[bytes] = set()  # hashes of documents, of those kinds of files that leave out duplicates

    def chunks(self, place: Place = (0, 0, 0), crc: int = 0) -> Iterator[Chunk]:
        """
        The documents from a place on, as Chunks of about CHUNK bytes.

        crc: what the Chunk that ended at the place said. Raises UserError where replayed documents are other ones.
        """
        chunk = Chunk([], Counter(), place, 0.0, 0 if self.replays else crc)
        size = 0
        for file in range(0 if self.replays else place[0], len(self.names)):
            replayed = file < place[0]
            start = place if file == place[0] and not self.replays else (file, 0, 0)
            for rows, group, row, share in self._read(file, start, Counter() if replayed else chunk.left_out):
                after = (file, group, row)
                if after <= place:
                    chunk = chunk._replace(crc=crc_of(keep_text(rows, Counter()), chunk.crc))
                    continue
                if chunk.place == place and self.replays and chunk.crc != crc:
                    raise UserError(f"{self.names[0]} does not begin as it did before: {AGAIN}")
                kept = keep_text(rows, chunk.left_out)
                chunk.documents.extend(kept)
                size += sum(map(len, kept))
                new_crc = crc_of(kept, chunk.crc) if self.replays else 0
                chunk = chunk._replace(place=after, done=sum(self.sizes[:file]) + share * self.sizes[file], crc=new_crc)
                if size >= CHUNK:
                    yield chunk
                    chunk, size = chunk._replace(documents=[], left_out=Counter()), 0
            chunk = chunk._replace(place=max(chunk.place, (file + 1, 0, 0)))
            if self.fetches and chunk.documents:  # the next file may be out of reach: let nothing wait for it
                yield chunk
                chunk, size = chunk._replace(documents=[], left_out=Counter()), 0
        yield chunk

    def _read(self, file: int, place: Place, left_out: Counter) -> Iterator[Rows]:
        """The rows of a file from a place on. A file that is wrong is counted, and ends there."""
        name = self.names[file]
        try:
            with self.fetch(file) as path:
                kind = kind_of(name)
                if kind is read_wheel:
                    yield from read_wheel(path, self.seen)
                else:
                    yield from kind(path, self.column, *place[1:])
        except DAMAGED as error:
            reason = str(error) if isinstance(error, WrongFile) else getattr(error, "strerror", None) or "damaged"
            self.wrong_files.setdefault(reason, []).append(name)
            left_out[f"files: {reason}"] += 1


def crc_of(documents: list[bytes], crc: int) -> int:
    """The CRC-32 of documents that follow others of the CRC-32 `crc`."""
    for document in documents:
        crc = zlib.crc32(document, crc)
    return crc


def keep_text(rows: list[bytes | None], left_out: Counter) -> list[bytes]:
    """Those rows that are documents; the others are counted by what is wrong with them."""
    kept = []
    for row in rows:
        if row is None:
            left_out["no text"] += 1
        elif not row:
            left_out["empty"] += 1
        elif not is_utf8(row):
            left_out["not UTF-8"] += 1
        elif len(row) > LONGEST_BLANK and re.search(rb"\s{%d}" % (LONGEST_BLANK + 1), row):
            left_out[f"over {LONGEST_BLANK:,} blanks in a row"] += 1
        else:
            kept.append(row)
    return kept


def is_utf8(data: bytes) -> bool:
    if data.isascii():
        return True
    try:
        data.decode("utf-8")
        return True
    except UnicodeDecodeError:
        return False


# --- kinds of files ---


def kind_of(name: str) -> Callable[..., Iterator[Rows]]:
    """The reader of a file, by the end of its name."""
    path = Path(name)
    suffix = Path(path.stem).suffix if path.suffix.lower() in COMPRESSED else path.suffix
    return KINDS.get(suffix.lower(), read_text_file)


def read_parquet(path: str | Path, column: str | None, group: int, row: int) -> Iterator[Rows]:
    """The rows of a parquet file, from a row of a row group on."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError("parquet files need the package pyarrow: pip install pyarrow") from None
    try:
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as file:
            name = text_column(file.schema_arrow.names, column, path)
            kind = file.schema_arrow.field(name).type
            if not is_text_type(kind):
                raise UserError(f"column {name} of {path} holds {kind}, no text: give another one, --text_column=NAME")
            total, before = max(1, file.metadata.num_rows), 0
            for number in range(file.num_row_groups):
                rows = file.metadata.row_group(number).num_rows
                if number >= group:
                    start = row if number == group else 0
                    for values, at in row_group_values(file, number, name, start):
                        yield values, number, at, (before + at) / total
                before += rows
    except pyarrow.ArrowException as error:
        raise WrongFile(f"damaged parquet files ({str(error).splitlines()[0]:.80})") from None


def is_text_type(kind: object) -> bool:
    """Whether a pyarrow type is one of text."""
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def row_group_values(file, number: int, name: str, start: int) -> Iterator[tuple[list[bytes | None], int]]:
    """The values of a column of a row group from row `start` on -> (some values, the row after them)."""
    import pyarrow

    group = file.metadata.row_group(number)
    batch = max(1, min(65536, group.num_rows * CHUNK // max(1, group.total_byte_size)))
    at = 0
    for record in file.iter_batches(batch, row_groups=[number], columns=[name]):
        at += record.num_rows
        if at > start:
            values = record.column(0).slice(max(0, record.num_rows - (at - start)))
            yield values.cast(pyarrow.large_string()).cast(pyarrow.large_binary()).to_pylist(), at


def text_column(names: list[str], column: str | None, path: str | Path) -> str:
    """The name of the column that holds the text. Raises UserError where there is none."""
    wanted = column or "text"
    if wanted not in names:
        raise UserError(f"{path} has no column {wanted!r}, but {', '.join(names):.300}: give one, --text_column=NAME")
    return wanted


def read_json(path: str | Path, column: str | None, group: int, row: int) -> Iterator[Rows]:
    """The rows of JSON Lines, or of a file that is one JSON list of objects or one object, which is read as a whole."""
    with opened(path) as (_, stream):
        first = next((line for line in stream if not line.isspace()), b"")
    if not first or (first.lstrip().startswith(b"{") and is_json(first)):
        yield from read_json_lines(path, column, group, row)
        return
    with opened(path) as (_, stream):
        try:
            content = json.loads(stream.read())
        except (ValueError, RecursionError):
            raise WrongFile("damaged JSON") from None
    rows = content if isinstance(content, list) else [content]
    for start in range(row, len(rows), 1000):
        values = [json_text(item, column) for item in rows[start : start + 1000]]
        yield values, 0, start + len(values), (start + len(values)) / len(rows)


def is_json(line: bytes) -> bool:
    """Whether a line is JSON by itself, broken UTF-8 aside."""
    try:
        json.loads(line.decode("utf-8", "replace"))
        return True
    except (ValueError, RecursionError):
        return False


def read_json_lines(path: str | Path, column: str | None, group: int, row: int) -> Iterator[Rows]:
    """The rows of JSON Lines: a JSON object a line."""
    with opened(path) as (raw, stream):
        total = max(1, os.fstat(raw.fileno()).st_size)
        values, size, at = [], 0, 0
        for at, line in enumerate(stream, 1):
            if at > row and not line.isspace():
                values.append(json_line_text(line, column))
                size += len(line)
            if size >= CHUNK:
                yield values, 0, at, raw_position(raw) / total
                values, size = [], 0
        yield values, 0, at, 1.0


def raw_position(file: io.BufferedReader) -> int:
    """How far a file has been read from the disk, in bytes, whatever iterates over it; 0 for a pipe."""
    try:
        return os.lseek(file.fileno(), 0, os.SEEK_CUR)
    except OSError:
        return 0


def json_line_text(line: bytes, column: str | None) -> bytes | None:
    """The text of a line of JSON; bytes that are not UTF-8 where the line is not; None where it holds no text."""
    try:
        return json_text(json.loads(line), column)
    except UnicodeDecodeError:
        return b"\xff"
    except (ValueError, RecursionError):
        return None


def json_text(item: object, column: str | None) -> bytes | None:
    text = item.get(column or "text") if isinstance(item, dict) else None
    return text.encode("utf-8", "surrogatepass") if isinstance(text, str) else None  # lone surrogates: not UTF-8


def read_csv(path: str | Path, column: str | None, group: int, row: int) -> Iterator[Rows]:
    """The rows of a CSV file with a header, or of a TSV file."""
    csv.field_size_limit(2**31 - 1)
    with opened(path) as (raw, stream):
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(text, delimiter="\t" if ".tsv" in Path(path).suffixes else ",")
        total = max(1, os.fstat(raw.fileno()).st_size)
        values, size, at = [], 0, 0
        try:
            place = (header := next(reader, [])).index(text_column(header, column, path))
            for fields in reader:
                at += 1
                if at > row and fields:
                    value = fields[place].encode("utf-8", "surrogateescape") if place < len(fields) else None
                    values.append(value)
                    size += len(value or b"")
                if size >= CHUNK:
                    yield values, 0, at, raw_position(raw) / total
                    values, size = [], 0
        except csv.Error as error:
            raise WrongFile(f"damaged CSV ({error})") from None
        yield values, 0, at, 1.0


def read_text_file(path: str | Path, column: str | None, group: int, row: int) -> Iterator[Rows]:
    """A text file: one document, or if it is long several ones, cut at line ends. Line ends become '\\n'."""
    with opened(path) as (raw, stream):
        start = stream.peek(4)[:4]
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise WrongFile("text in UTF-16 or UTF-32, not UTF-8")
        total, at = max(1, os.fstat(raw.fileno()).st_size), 0
        text = io.TextIOWrapper(stream, encoding="utf-8-sig")
        with contextlib.closing(text):
            while piece := read_piece(text):
                if "\0" in piece:
                    raise WrongFile("not text: they hold zero bytes, as binary files do")
                at += 1
                if at > row:
                    yield [piece.encode("utf-8")], 0, at, raw_position(raw) / total
            if at == 0:
                yield [b""], 0, 1, 1.0


def read_piece(text: io.TextIOWrapper) -> str:
    """The next TEXT_PIECE characters of a text, and what they leave of a line that is no longer than that."""
    try:
        return text.read(TEXT_PIECE) + text.readline(TEXT_PIECE)
    except UnicodeDecodeError:
        raise WrongFile("not UTF-8 text") from None


GENERATED = re.compile(rb"(?i)auto-?generated|automatically generated|generated by|code generated|do not edit")


def read_wheel(path: str | Path, seen: set[bytes]) -> Iterator[Rows]:
    """The Python files of a wheel, sorted by name, without generated ones and those whose hash is in `seen`."""
    with zipfile.ZipFile(path) as wheel:
        names = sorted(name for name in wheel.namelist() if name.endswith(".py"))
        for at, name in enumerate(names):
            data = wheel.read(name).replace(b"\r\n", b"\n").strip() + b"\n"
            digest = hashlib.sha256(data).digest()
            wanted = data != b"\n" and digest not in seen and not GENERATED.search(data[:2000])
            seen.add(digest)
            yield [data] if wanted else [], 0, at + 1, (at + 1) / len(names)


KINDS = {
    ".parquet": read_parquet,
    ".json": read_json,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".whl": read_wheel,
}


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[tuple[BinaryIO, io.BufferedReader]]:
    """Open a file for reading bytes -> (the file itself, its decompressed content). '-' is standard input."""
    if str(path) == "-":
        yield sys.stdin.buffer, sys.stdin.buffer
        return
    with open(path, "rb") as raw:
        suffix = Path(path).suffix.lower()
        if suffix == ".gz":
            yield raw, io.BufferedReader(gzip.GzipFile(fileobj=raw))
        elif suffix == ".bz2":
            with bz2.open(raw) as stream:
                yield raw, io.BufferedReader(stream)
        elif suffix == ".xz":
            with lzma.open(raw) as stream:
                yield raw, io.BufferedReader(stream)
        elif suffix == ".zst":
            yield raw, io.BufferedReader(open_zstandard(raw))
        else:
            yield raw, raw


def open_zstandard(raw: BinaryIO) -> BinaryIO:
    """The content of a file that is compressed by Zstandard. pyarrow's reader, unlike others, notices a cut file."""
    try:
        import pyarrow
    except ImportError:
        raise UserError("files that end in .zst need the package pyarrow: pip install pyarrow") from None
    return pyarrow.CompressedInputStream(raw, "zstd")
