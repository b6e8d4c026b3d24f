"""The build of the C files: once for all processes, and a reason wherever plain torch has to serve."""

import multiprocessing
import os
import sys

import pytest
import torch

from kernels import c_library, cache
from kernels.c_library import load_library

NAME = "oscillation.c"
needs_compiler = pytest.mark.skipif(c_library.find_compiler() is None, reason="no C compiler")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="the C kernels are for POSIX systems")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """-> the cache folder, one of the test's own, empty at the start."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(cache.tempfile, "tempdir", str(tmp_path))
    return tmp_path / "home" / "wigglegpt"


def fake_compiler(folder, monkeypatch, script):
    """Make `gcc` a shell script of that text; whatever else is on the PATH stays."""
    (folder / "gcc").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "gcc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def exit_with_1_without_library():
    sys.exit(load_library(NAME)[0] is None)


@needs_compiler
@pytest.mark.slow
def test_two_processes_build_at_once_and_leave_one_library(folder):
    fork = multiprocessing.get_context("fork")
    pair = [fork.Process(target=exit_with_1_without_library) for _ in range(2)]
    for process in pair:
        process.start()
    for process in pair:
        process.join(60)
    assert [process.exitcode for process in pair] == [0, 0]
    assert [path.suffix for path in folder.iterdir()] == [".so"]


@needs_compiler
def test_a_library_is_built_once(folder):
    assert load_library(NAME)[1].startswith("C (")
    (built,) = folder.iterdir()
    first = built.stat()
    assert load_library(NAME)[1].startswith("C (") and built.stat() == first


def test_without_a_compiler_the_reason_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert load_library(NAME) == (None, "plain torch: no C compiler found")


def test_a_broken_compiler_is_the_reason(tmp_path, monkeypatch):
    fake_compiler(tmp_path, monkeypatch, "exit 1")
    assert load_library(NAME) == (None, f"plain torch: {tmp_path}/gcc could not build {NAME}")


@needs_compiler
def test_without_a_private_folder_nothing_is_built(tmp_path, folder):
    folder.parent.mkdir()
    folder.symlink_to(tmp_path)
    (tmp_path / f"wigglegpt-{os.getuid()}").symlink_to(tmp_path)
    assert load_library(NAME) == (None, "plain torch: no cache folder that only this user can write to")


@needs_compiler
@pytest.mark.slow
def test_without_openmp_a_library_serves_up_to_its_limit_of_threads(tmp_path, monkeypatch):
    """As with Apple's compiler: one thread of C serves where torch has few, and plain torch where it has many."""
    real = c_library.find_compiler()
    fake_compiler(tmp_path, monkeypatch, f'case "$*" in *-fopenmp*) exit 1;; esac\nexec {real} "$@"')
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    assert load_library(NAME, max_threads_without_openmp=5)[1] == "C (gcc, one thread)"
    library, description = load_library(NAME, max_threads_without_openmp=4)
    assert library is None and description == f"plain torch: {tmp_path}/gcc could not build {NAME}"
