"""The corpus python_packages: pinned wheels, read in memory, each fetched once."""

import hashlib
import io
import json
import re
import zipfile

import pytest

from wiggle import python_packages
from wiggle.bulk import prepare_bulk
from wiggle.bulk_sources import find_bulk_corpus
from wiggle.errors import UserError
from wiggle.python_packages import WHEELS, Wheel


@pytest.fixture
def index(monkeypatch):
    """Two small wheels in place of the real ones -> {requirement: bytes}, and the list of those that were fetched."""
    contents, fetched, wheels = {}, [], []
    for name in ("one", "two"):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as wheel:
            for number in range(40):
                wheel.writestr(f"{name}/{number:02}.py", f"{name} = {number}\n" * 20)
            wheel.writestr(f"{name}/common.py", "common = 1\n")
        data = buffer.getvalue()
        contents[f"{name}==1.0"] = data
        wheels.append(Wheel(name, "1.0", len(data), "MIT", hashlib.sha256(data).hexdigest()))

    def pip_download(requirement, sha256, kind):
        if requirement not in contents:
            raise UserError("pip: connection lost")
        fetched.append(requirement)
        return contents[requirement]

    monkeypatch.setattr(python_packages, "WHEELS", wheels)
    monkeypatch.setattr(python_packages, "pip_download", pip_download)
    return contents, fetched


def prepare(data_dir):
    return prepare_bulk(find_bulk_corpus("python_packages"), data_dir, tokenizer="byte", val_fraction=0.2)


def test_the_real_wheels_are_pinned_with_their_licences():
    assert len({wheel.package for wheel in WHEELS}) == len(WHEELS) >= 20
    for wheel in WHEELS:
        assert re.fullmatch(r"[0-9a-f]{64}", wheel.sha256) and re.fullmatch(r"[\d.]+", wheel.version)
        assert wheel.licence in ("Apache-2.0", "BSD-3-Clause", "MIT", "Unlicense") and wheel.size > 10**6


def test_it_holds_each_file_once_and_says_what_licence_it_is_under(tmp_path, index):
    folder = prepare(tmp_path)
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["train_documents"] + meta["val_documents"] == 81
    assert meta["licences"] == {"one 1.0": "MIT", "two 1.0": "MIT"}
    assert sorted(path.name for path in folder.iterdir()) == ["meta.json", "train.bin", "val.bin"]


def test_a_lost_connection_costs_no_wheel_that_was_fetched(tmp_path, index):
    contents, fetched = index
    whole = {path.name: path.read_bytes() for path in prepare(tmp_path / "whole").iterdir()}
    fetched.clear()
    kept = contents.pop("two==1.0")
    with pytest.raises(UserError, match="connection lost; run the same command again, which goes on"):
        prepare(tmp_path / "data")
    contents["two==1.0"] = kept
    folder = prepare(tmp_path / "data")
    assert fetched == ["one==1.0", "two==1.0"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
