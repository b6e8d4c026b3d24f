"""
Encoders of batches of documents, for corpora that do not fit in memory.

Each has `threads`, the number of calls of encode that may run at once, `encode` and `close`. All encoders of a kind of
tokenizer give the same ids. This module is what worker processes import: it must stay free of torch.
"""

import base64
import contextlib
import queue
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from wiggle.errors import UserError
from wiggle.tokenizer import END_OF_TEXT, gpt2_encoding

PIECE = 2**20  # characters that tiktoken encodes at a time
FIRST_CHECKED, CHECKED_EVERY = 20, 1000  # which documents tiktoken encodes as well, to check gigatoken


class Encoded(NamedTuple):
    """The ids of a batch of documents, without any end-of-text token."""

    ids: np.ndarray  # (total,), of all documents one after another
    counts: np.ndarray  # (N,), the tokens of each document


class ByteEncoder:
    """Each byte is a token. Byte 0, which no text holds, ends a document."""

    threads, end_of_text = 1, 0

    def encode(self, documents: list[bytes], first: int) -> Encoded:
        """UTF-8 documents -> Encoded. first: the number of the first one within the corpus."""
        return Encoded(np.frombuffer(b"".join(documents), np.uint8), np.array([*map(len, documents)], np.int64))

    def close(self) -> None:
        pass


class GigatokenEncoder:
    """
    GPT-2's tokens by the library gigatoken, which uses all cores.

    tiktoken encodes the first documents and one in a thousand as well; where their ids differ, UserError is raised.
    """

    threads, end_of_text = 2, 50256  # two threads: one batch is hashed while the other one is encoded

    def __init__(self):
        import gigatoken

        ranks = gpt2_encoding()._mergeable_ranks
        lines = [b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in ranks.items()]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "gpt2.tiktoken")
            path.write_bytes(b"".join(lines))
            # A registered "<|endoftext|>" could not be encoded as plain text, so there are no special tokens.
            self.tokenizer = gigatoken.Tokenizer.from_tiktoken(path, pretokenizer="gpt2", special_tokens={})

    def encode(self, documents: list[bytes], first: int) -> Encoded:
        """UTF-8 documents -> Encoded. first: the number of the first one within the corpus."""
        if not documents:
            return Encoded(np.zeros(0, np.uint16), np.zeros(0, np.int64))
        layout = self.tokenizer.encode_batch(documents).layout
        offsets = np.asarray(layout.offsets.data)
        ids = np.asarray(layout.content.data)[: offsets[-1]].astype(np.uint16)
        for i in range(len(documents)):
            if first + i < FIRST_CHECKED or (first + i) % CHECKED_EVERY == 0:
                self.check(documents[i], ids[offsets[i] : offsets[i + 1]], first + i)
        return Encoded(ids, np.diff(offsets))

    def check(self, document: bytes, ids: np.ndarray, number: int) -> None:
        """Raise UserError where tiktoken gives a document other ids."""
        if not np.array_equal(ids, tiktoken_ids(document)):
            raise UserError(
                f"gigatoken encodes document {number:,} otherwise than tiktoken: go on without it, with "
                "--encoder=tiktoken, and report the document to gigatoken's authors"
            )

    def close(self) -> None:
        pass


class TiktokenWorkers:
    """
    GPT-2's tokens by tiktoken, in worker processes.

    Workers are spoken to through pipes. A worker ends when its standard input does, so none outlives this process,
    however that ends.
    """

    end_of_text = 50256

    def __init__(self, workers: int):
        gpt2_encoding()  # puts the tables into the cache that the workers read; where that fails, nothing was started
        self.threads = workers
        self.processes = [start_worker() for _ in range(workers)]
        self.idle = queue.SimpleQueue()
        for process in self.processes:
            self.idle.put(process)

    def encode(self, documents: list[bytes], first: int) -> Encoded:
        """UTF-8 documents -> Encoded. first: the number of the first one within the corpus."""
        process = self.idle.get()
        try:
            write_arrays(process.stdin, np.array([*map(len, documents)], np.int64), b"".join(documents))
            counts, ids = read_arrays(process.stdout, np.int64, np.uint16)
        except (OSError, EOFError):
            code = process.wait()
            raise UserError(
                f"a worker process of tiktoken ended early (exit code {code}), perhaps for want of memory: run "
                "the same command again with a smaller --workers"
            ) from None
        finally:
            self.idle.put(process)
        return Encoded(ids, counts)

    def close(self) -> None:
        """End the workers."""
        for process in self.processes:
            with contextlib.suppress(OSError):
                process.stdin.close()
        for process in self.processes:
            process.stdout.close()
            process.wait()


def make_encoder(kind: str, encoder: str | None, workers: int) -> ByteEncoder | GigatokenEncoder | TiktokenWorkers:
    """
    The encoder for a kind of tokenizer, 'byte' or 'gpt2'.

    encoder: 'gigatoken', 'tiktoken', or None for gigatoken where it is installed. workers: processes of tiktoken's.
    """
    if kind == "byte":
        return ByteEncoder()
    if encoder != "tiktoken":
        try:
            return GigatokenEncoder()
        except ImportError:
            if encoder == "gigatoken":
                raise UserError("--encoder=gigatoken needs the package gigatoken: pip install gigatoken") from None
    return TiktokenWorkers(workers)


def text_pieces(text: str, size: int) -> Iterator[str]:
    """
    Cut a text into pieces of at least `size` characters, the last one excepted, that GPT-2's tokenizer encodes alike.

    A piece ends with the line end of a line that is followed by text at once: no token of GPT-2's reaches across.
    """
    seam, start = re.compile(r"(?<=\S)\n(?=\S)"), 0
    while start < len(text):
        found = seam.search(text, start + size)
        end = found.end() if found else len(text)
        yield text[start:end]
        start = end


# --- a worker process of TiktokenWorkers ---


def start_worker() -> subprocess.Popen:
    """A process that runs `serve`."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); "
    code += "from wiggle.encoders import serve; serve()"
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def serve() -> None:
    """Encode the batches that come through standard input until it ends. Ctrl-C is left to the parent process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    source, target = sys.stdin.buffer, sys.stdout.buffer
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            lengths, text = read_arrays(source, np.int64, np.uint8)
            ends = np.cumsum(lengths)
            documents = [text[end - length : end].tobytes() for length, end in zip(lengths, ends, strict=True)]
            found = [tiktoken_ids(document) for document in documents]
            ids = np.concatenate([np.zeros(0, np.uint16), *found])
            write_arrays(target, np.array([*map(len, found)], np.int64), ids.tobytes())


def tiktoken_ids(document: bytes) -> np.ndarray:
    """A UTF-8 document -> its ids by tiktoken (N,) uint16; '<|endoftext|>' in it is plain text."""
    encoding = gpt2_encoding()
    found = [
        encoding.encode_to_numpy(piece, disallowed_special=())
        if END_OF_TEXT not in piece
        else np.array(encoding.encode_ordinary(piece))
        for piece in text_pieces(document.decode("utf-8"), PIECE)
    ]
    return np.concatenate([np.zeros(0, np.uint16), *(ids.astype(np.uint16) for ids in found)])


def write_arrays(pipe: BinaryIO, first: np.ndarray, second: bytes) -> None:
    """Send an array of int64 and some bytes."""
    pipe.write(np.array([first.nbytes, len(second)], np.int64).tobytes() + first.tobytes())
    pipe.write(second)
    pipe.flush()


def read_arrays(pipe: BinaryIO, *dtypes: type) -> list[np.ndarray]:
    """Receive what write_arrays sent. Raises EOFError where the pipe ends."""
    sizes = np.frombuffer(read_exactly(pipe, 16), np.int64)
    return [np.frombuffer(read_exactly(pipe, int(n)), dtype) for n, dtype in zip(sizes, dtypes, strict=True)]


def read_exactly(pipe: BinaryIO, size: int) -> bytes:
    data = pipe.read(size)
    if len(data) != size:
        raise EOFError
    return data
