"""Files are found whole, and hold what their format allows."""

import json

import pytest

from wiggle import files
from wiggle.errors import UserError


def test_atomic_write_leaves_the_old_file_where_writing_fails(tmp_path):
    path = tmp_path / "a" / "file"
    with files.atomic_write(path) as file:
        file.write(b"old")
    with pytest.raises(RuntimeError), files.atomic_write(path) as file:
        file.write(b"new")
        raise RuntimeError
    assert path.read_bytes() == b"old" and [p.name for p in path.parent.iterdir()] == ["file"]


def refuse_constant(name):
    raise AssertionError(f"{name} is no JSON")


def test_json_files_have_null_for_numbers_that_are_not_finite(tmp_path):
    nan, inf = float("nan"), float("inf")
    files.write_json(tmp_path / "x.json", {"a": nan, "b": [1.5, -inf, {"c": (inf, 2)}], "d": "NaN"})
    found = json.loads((tmp_path / "x.json").read_text(), parse_constant=refuse_constant)
    assert found == {"a": None, "b": [1.5, None, {"c": [None, 2]}], "d": "NaN"}


@pytest.mark.parametrize(
    ("content", "text"), [(b"\xef\xbb\xbfcab", "cab"), (b"a\r\nb\rc\n", "a\nb\nc\n"), ("é\ufeff".encode(), "é\ufeff")]
)
def test_a_text_is_read_without_its_byte_order_mark_and_with_plain_line_breaks(tmp_path, content, text):
    (tmp_path / "x.txt").write_bytes(content)
    assert files.read_text(tmp_path / "x.txt") == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("cab".encode("utf-16"), "is UTF-16: save it as UTF-8"),
        (b"caf\xe9", r"is not UTF-8 \(byte 3\): save it"),
        (None, "cannot read"),
    ],
)
def test_a_text_that_is_no_utf_8_is_one_sentence(tmp_path, content, message):
    if content is not None:
        (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        files.read_text(tmp_path / "x.txt")


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.txt").write_text("cab")
    assert files.read_text("~/x.txt") == "cab"
