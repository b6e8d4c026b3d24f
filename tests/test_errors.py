"""How scripts end: one line for what can be mended, and no traceback for a console that takes less than was printed."""

import errno
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from wiggle import errors
from wiggle.errors import UserError

ROOT = Path(__file__).parents[1]

# A script of this project, cut down: main() does what the first argument says.
SCRIPT = """
import subprocess
import sys
sys.path.insert(0, {root!r})
from wiggle import errors

@errors.script
def main(text):
    for _ in range(20000 if "many" in sys.argv else 1):
        print(text)
    if "mistake" in sys.argv:
        raise errors.UserError(text)
    child = "import sys; sys.exit(None in (sys.stdin, sys.stdout, sys.stderr))"
    child = subprocess.run([sys.executable, "-c", child]).returncode
    open(sys.argv[2], "w").write(f"{{child}}")

main(sys.argv[1])
"""


@pytest.fixture
def script(tmp_path):
    """script(text, *words, redirection='', **environment) -> the process at its end; it made `done` if it got there."""
    path, done = tmp_path / "script.py", tmp_path / "done"
    path.write_text(SCRIPT.format(root=str(ROOT)))

    def run(text, *words, redirection="", **environment):
        command = 'exec "$0" "$@" ' + redirection
        argv = ["sh", "-c", command, sys.executable, str(path), text, str(done), *words]
        done.unlink(missing_ok=True)
        run.done = done
        return subprocess.run(argv, capture_output=True, env=os.environ | environment, timeout=60)

    return run


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_characters_that_the_console_lacks_are_escaped(script, encoding):
    text = "café ω \udcff"  # the last is of a file name that is not UTF-8
    finished = script(text, "mistake", PYTHONIOENCODING=encoding, PYTHONUTF8="1")
    assert finished.returncode == 1 and b"Traceback" not in finished.stderr
    expected = text.encode(encoding, "backslashreplace")
    assert finished.stdout == expected + b"\n" and finished.stderr == b"error: " + expected + b"\n"


def test_an_encoding_that_the_user_chose_with_its_errors_stays(script):
    assert script("é", PYTHONIOENCODING="ascii:replace").stdout == b"?\n"


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "<&-"])
def test_streams_that_are_closed_from_the_start_are_no_hindrance(script, redirection):
    finished = script("hello", redirection=redirection)
    assert finished.returncode == 0 and b"Traceback" not in finished.stderr
    assert script.done.read_text() == "0"  # no child lacks one, and nothing that was printed went into the file
    assert script("hello", "mistake", redirection=redirection).returncode == 1


@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_reader_that_leaves_ends_the_script_quietly(script, buffered):
    finished = script("x" * 99, "many", redirection="| head -n 1", PYTHONUNBUFFERED=buffered)
    assert finished.stdout == b"x" * 99 + b"\n" and finished.stderr == b""
    assert not script.done.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("words", [[], ["many"]])
def test_a_full_disk_behind_standard_output_is_one_sentence(script, words):
    finished = script("x", *words, redirection="> /dev/full")
    assert finished.returncode == 1
    assert finished.stderr == b"error: cannot write to standard output: No space left on device\n"


def test_an_error_of_another_file_keeps_its_traceback(capsys):
    @errors.script
    def main():
        raise BrokenPipeError(errno.EPIPE, "not of stdout")

    with pytest.raises(BrokenPipeError, match="not of stdout"):
        main()


def test_the_exit_codes(capsys):
    @errors.script
    def main(error):
        raise error

    codes = {UserError("too bad"): 1, KeyboardInterrupt(): 128 + signal.SIGINT, SystemExit(7): 7}
    for error, code in codes.items():
        with pytest.raises(SystemExit) as stop:
            main(error)
        assert stop.value.code == code
    assert capsys.readouterr().err == "error: too bad\ninterrupted\n"


def test_standard_output_is_given_back(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    errors.script(lambda: print("hello"))()
    assert sys.stdout is stream and stream.getvalue() == "hello\n"


def test_a_file_that_cannot_be_read_is_told_from_one_with_wrong_content():
    with pytest.raises(UserError, match=r"^cannot read x\.bin: Permission denied$"), errors.plausible("folder"):
        raise PermissionError(errno.EACCES, "Permission denied", "x.bin")
    with pytest.raises(UserError, match=r"^folder does not fit a model here: KeyError$"), errors.plausible("folder"):
        raise KeyError
