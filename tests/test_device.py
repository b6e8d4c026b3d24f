"""Device, precision and compiler as the settings pick them, and the memory of a card and of a process."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends

from wiggle.device import (
    Card,
    Machine,
    attention_order,
    compile_failure,
    drain,
    peak_flops,
    peak_memory,
    pick_compile,
    pick_device,
    pick_dtype,
    pick_machine,
    send_windows,
    without_context,
)
from wiggle.errors import UserError
from wiggle.out_of_memory import GIB

ROOT = Path(__file__).parents[1]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("quantum", "device='quantum' is unknown: choose auto, cpu, cuda, cuda:N or mps"),
        ("cuda:x", "device='cuda:x' is unknown"),
        ("", "device='' is unknown"),
        ("meta", "device='meta' is not supported: choose auto, cpu, cuda, cuda:N or mps"),
        ("cuda:1", r"device='cuda:1', but this machine has 1 CUDA device\(s\)"),
        ("mps", "device='mps', but there is none here: use --device=cpu"),
    ],
)
def test_a_device_that_is_not_there_is_one_sentence(monkeypatch, name, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=message):
        pick_device(name)
    assert pick_device("auto") == CUDA and pick_device("cuda:0").index == 0


def test_auto_takes_the_cpu_eagerly_in_float32_where_there_is_nothing_else(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    machine = pick_machine("auto", "auto", "auto")
    assert machine == Machine(CPU, torch.float32, False, "eager (compile=auto is for CUDA)")
    assert str(machine) == f"cpu, {torch.get_num_threads()} threads, float32, eager (compile=auto is for CUDA)"
    with pytest.raises(UserError, match="dtype='float16' needs a card"):
        pick_machine("cpu", "float16", False)


@pytest.mark.parametrize(("has_it", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_takes_bfloat16_on_a_card_that_has_it(monkeypatch, has_it, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_it)
    assert pick_dtype("auto", CUDA) == dtype and pick_dtype("float32", CUDA) == torch.float32


def test_auto_compiles_on_cuda_where_there_is_triton(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: name if name in ("gcc", "g++") else None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert pick_compile("auto", CUDA) == (False, "eager (compile is off: Triton is not found)")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("wiggle.device.compile_failure", lambda device: None)
    assert pick_compile("auto", CUDA) == (True, "compiled") and pick_compile(True, CPU) == (True, "compiled")


def test_two_lines_are_compiled_before_torch_compile_is_relied_on(monkeypatch):
    def compile_to_error(function):
        def fail(x):
            raise RuntimeError("Failed to find Python.h\nand much more")

        return fail

    monkeypatch.setattr("wiggle.device.lacking_to_compile", lambda device: None)
    monkeypatch.setattr("wiggle.device.compile_failure", compile_failure.__wrapped__)  # not what was found before
    monkeypatch.setattr(torch, "compile", compile_to_error)
    monkeypatch.setattr(torch, "ones", lambda *size, device: torch.zeros(*size))
    reason = "RuntimeError: Failed to find Python.h"
    assert pick_compile("auto", CUDA) == (False, f"eager (compile is off: {reason})")
    with pytest.raises(UserError, match=rf"torch.compile does not work here \({reason}\): set compile=False"):
        pick_compile(True, CPU)
    monkeypatch.setattr(torch, "compile", lambda function: function)
    assert pick_compile("auto", CUDA) == pick_compile(True, CPU) == (True, "compiled")


@pytest.mark.skipif(os.name == "nt", reason="Windows' compiler is found otherwise")
def test_what_torch_compile_lacks_is_named_before_a_step_is_taken(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert pick_compile("auto", CUDA) == (False, "eager (compile is off: a C compiler is not found)")
    with pytest.raises(UserError, match=r"compile=True needs a C\+\+ compiler, which is not found here: install it"):
        pick_compile(True, CPU)
    monkeypatch.setenv("CXX", "mine -O3")
    monkeypatch.setattr("shutil.which", lambda name: name if name == "mine" else None)
    monkeypatch.setattr("wiggle.device.compile_failure", lambda device: None)
    assert pick_compile(True, CPU) == (True, "compiled")


def test_a_card_named_by_its_number_is_the_one_that_kernels_are_tried_on(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for name in ("cuda:1", "cuda"):
        pick_machine(name, "float32", False)
    assert chosen == [torch.device("cuda", 1)]


def test_what_needs_a_context_leaves_none_in_this_process_where_there_is_a_card(monkeypatch):
    assert without_context(os.getpid) == os.getpid()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert without_context(os.getpid) != os.getpid()
    with pytest.raises(UserError, match="a sentence"):
        without_context(raise_user_error, "a sentence")


def raise_user_error(sentence):
    raise UserError(sentence)


@pytest.mark.parametrize(("name", "peak"), [("NVIDIA H200", 989e12), ("NVIDIA GeForce RTX 3070", 40.6e12), ("?", None)])
def test_the_peak_is_of_cards_that_are_known(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(CUDA) == peak and peak_flops(CPU) is None


# --- computing ---


def test_windows_go_to_a_card_whole_pinned_and_contiguous(monkeypatch):
    """A part of each row would be gathered into pageable memory first, and its copy would wait."""
    sent = []

    def to(tensor, device, non_blocking=False):
        sent.append((tensor.pinned, tensor.is_contiguous(), non_blocking))
        return tensor

    def pin_memory(tensor):
        tensor.pinned = True
        return tensor

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    ids = torch.arange(12).view(3, 4)
    x, y = send_windows(ids, CUDA)
    assert sent == [(True, True, True)] and torch.equal(x, ids[:, :-1]) and torch.equal(y, ids[:, 1:])
    assert x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()


def test_attention_on_a_card_tries_cudnn_first():
    with attention_order(CUDA):
        found = _cur_sdpa_kernel_backends(with_priority=True)
    assert found[0] == SDPBackend.CUDNN_ATTENTION and len(found) == 4
    with attention_order(CPU):
        assert _cur_sdpa_kernel_backends(with_priority=True) != found


def test_a_clock_waits_for_its_own_card_and_not_for_the_current_one(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    drain(torch.device("cuda", 1))
    drain(CPU)
    assert waited == [torch.device("cuda", 1)]


# --- memory ---


def test_the_peak_of_a_process_is_what_it_held_at_most_in_mib():
    torch.ones(2**26)  # 256 MiB, freed at once
    assert 256 < peak_memory(CPU) < 2**17


def test_the_budget_is_what_is_free_or_ours_within_a_cap_less_headroom(monkeypatch):
    card = Card(torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (6 * GIB, 8 * GIB))  # the desktop has 1.5
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: GIB // 2)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda index: fraction)
    fraction = 1.0
    assert card.budget() == pytest.approx((6.5 - 0.8) * GIB)
    fraction = 0.5
    assert card.budget() == pytest.approx((4 - 0.4) * GIB)
    monkeypatch.delattr(torch.cuda, "get_per_process_memory_fraction")  # torch 2.6
    assert card.budget() == pytest.approx((6.5 - 0.8) * GIB)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep memory")
@pytest.mark.slow
def test_freed_memory_is_kept():
    code = """
import resource, torch
from wiggle.device import keep_freed_memory

keep_freed_memory(torch.device("cpu"))
for turn in range(11):
    held = [torch.ones(6_000_000) for _ in range(6)]  # 24 MB each
    if turn == 2:  # it has all that it needs
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    del held
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 100  # pages; by itself glibc gives back and takes anew a third of a million
