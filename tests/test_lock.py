"""A folder's lock: one holder at a time, named to whoever comes second, and gone with its process."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from wiggle.errors import UserError
from wiggle.lock import folder_lock

ROOT = Path(__file__).parents[1]
HOLD = """
import sys, time
from wiggle.lock import folder_lock
with folder_lock(sys.argv[1], "a test"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process of its own that holds tmp_path / 'run'."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_and_told_who_holds_the_folder(tmp_path, holder):
    said = rf"run is in use by a test, process {holder.pid} on .*, since 20\d\d-.*: wait until it ends"
    with pytest.raises(UserError, match=said), folder_lock(tmp_path / "run", "another"):
        pass
    assert holder.poll() is None


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, holder):
    holder.kill()
    holder.wait()
    assert (tmp_path / "run" / ".lock").exists()
    with folder_lock(tmp_path / "run", "another"):
        pass


def test_a_second_run_in_the_same_process_is_refused(tmp_path):
    with folder_lock(tmp_path, "a test"):
        with pytest.raises(UserError, match=f"process {os.getpid()} on"), folder_lock(tmp_path, "a test"):
            pass
        assert (tmp_path / ".lock").exists()


def test_nothing_stays_behind_but_what_was_put_there(tmp_path):
    with pytest.raises(KeyError), folder_lock(tmp_path / "a" / "b", "a test"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with folder_lock(tmp_path / "a" / "b", "a test"):
        (tmp_path / "a" / "b" / "model").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["model"]
    (tmp_path / "empty").mkdir()
    with folder_lock(tmp_path / "empty", "a test"):
        pass
    assert (tmp_path / "empty").is_dir()


def test_threads_that_come_and_go_never_share_the_folder(tmp_path):
    inside, most, taken = [], [], []

    def come_and_go():
        while len(taken) < 200:
            try:
                with folder_lock(tmp_path / "run", "a test"):
                    inside.append(1)
                    most.append(len(inside))
                    time.sleep(0)
                    inside.pop()
                    taken.append(1)
            except UserError:
                continue

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_that_outlives_its_parent_does_not_hold_the_lock(tmp_path):
    code = HOLD.replace('print("held"', "import os; os.fork() or print(os.getpid()")
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE) as process:
        child = int(process.stdout.readline())
        process.kill()
        process.wait()
        try:
            with folder_lock(tmp_path, "another"):
                os.kill(child, 0)
        finally:
            os.kill(child, signal.SIGKILL)


@pytest.mark.skipif(os.name != "posix" or not os.getuid(), reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(UserError, match=r"cannot write .*: Permission denied"), folder_lock(tmp_path, "a test"):
        pass
