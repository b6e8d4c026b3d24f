"""Encoders of batches: the same ids by every way, checked against tiktoken, and no worker outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from wiggle import encoders
from wiggle.encoders import ByteEncoder, GigatokenEncoder, TiktokenWorkers, make_encoder, text_pieces, tiktoken_ids
from wiggle.errors import UserError
from wiggle.tokenizer import gpt2_encoding

ROOT = Path(__file__).parents[1]
NASTY = ["", " ", "\n\n \t x", "<|endoftext|>", "a<|endoftext|>b", "é中😀\u200d👩\u200d🚀", "it's I'LL 12345 x²"]
NASTY += ["\r\n\x0b\x85\u2028x", "a" * 5000, " " * 3000 + "x", "\ufeffx", "ﬁ" * 9, "\x00\x01"]


@pytest.fixture
def real_gpt2():
    try:
        return gpt2_encoding()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture
def documents():
    files = [path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("wiggle/*.py"))]
    return [text.encode() for text in (*NASTY, *files)]


def split_up(encoded):
    return np.split(encoded.ids, np.cumsum(encoded.counts)[:-1])


def test_bytes_are_their_own_ids():
    encoded = ByteEncoder().encode([b"ab", b"", "ü".encode()], 0)
    assert encoded.ids.tolist() == list("abü".encode()) and encoded.counts.tolist() == [2, 0, 2]


def test_the_special_token_of_a_text_is_plain_text(real_gpt2):
    assert tiktoken_ids(b"a<|endoftext|>").tolist() == real_gpt2.encode_ordinary("a<|endoftext|>")
    assert tiktoken_ids(b"").tolist() == []


@pytest.mark.parametrize("way", ["gigatoken", "tiktoken"])
def test_ids_are_those_of_encode_ordinary(real_gpt2, documents, way):
    if way == "gigatoken":
        pytest.importorskip("gigatoken")
    encoder = make_encoder("gpt2", way, workers=2)
    try:
        for first in (0, 5000):
            found = split_up(encoder.encode(documents, first))
            assert all(f.dtype == np.uint16 for f in found)
            assert [f.tolist() for f in found] == [real_gpt2.encode_ordinary(d.decode()) for d in documents]
        assert encoder.encode([], 7).counts.tolist() == []
    finally:
        encoder.close()


def test_a_difference_to_tiktoken_stops_the_run_with_the_way_on(real_gpt2, monkeypatch):
    pytest.importorskip("gigatoken")
    encoder = GigatokenEncoder()
    monkeypatch.setattr(encoders, "tiktoken_ids", lambda document: np.array([1, 2], np.uint16))
    for first, number in ((0, 0), (950, 1000), (19, 19)):
        with pytest.raises(UserError, match=f"gigatoken encodes document {number:,} otherwise.*--encoder=tiktoken"):
            encoder.encode([b"one two three"] * 60, first)
    encoder.encode([b"one two three"] * 60, 20)  # none of these is checked


def test_gigatoken_is_taken_where_it_is_installed_and_not_needed(monkeypatch):
    class Missing:
        def __init__(self, *args):
            raise ImportError

    monkeypatch.setattr(encoders, "GigatokenEncoder", Missing)
    monkeypatch.setattr(encoders, "TiktokenWorkers", lambda workers: f"{workers} workers")
    assert make_encoder("gpt2", None, 3) == make_encoder("gpt2", "tiktoken", 3) == "3 workers"
    with pytest.raises(UserError, match="pip install gigatoken"):
        make_encoder("gpt2", "gigatoken", 3)
    assert isinstance(make_encoder("byte", None, 3), ByteEncoder)


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_worker_that_dies_is_one_sentence(real_gpt2):
    encoder = TiktokenWorkers(1)
    encoder.processes[0].send_signal(signal.SIGKILL)
    with pytest.raises(UserError, match=r"worker process of tiktoken ended early \(exit code -9\).*--workers"):
        encoder.encode([b"x"], 0)
    encoder.close()


PARENT = """
from wiggle.encoders import TiktokenWorkers
encoder = TiktokenWorkers(2)
encoder.encode([b"x"], 0)
print(*(process.pid for process in encoder.processes), flush=True)
import time; time.sleep(60)
"""


@pytest.mark.skipif(not os.path.exists("/proc"), reason="needs /proc")
def test_no_worker_outlives_a_killed_parent(real_gpt2):
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    workers = [Path("/proc", pid) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2 and all(worker.exists() for worker in workers)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(alive, workers))


def alive(process):
    """Whether a process runs; one that ended may wait for its parent as a zombie."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_workers_load_no_torch():
    code = "import sys; from wiggle import encoders; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_pieces_of_a_text_join_to_it_and_end_between_two_lines_of_text():
    text = "".join(f"the moon {i}\n" + "\n  \n" * (i % 3) + "  the  \n" * (i % 2) for i in range(200))
    pieces = list(text_pieces(text, 50))
    assert "".join(pieces) == text and len(pieces) > 20
    assert all(len(piece) >= 50 and piece[-2:].strip() and piece[-1] == "\n" for piece in pieces[:-1])
