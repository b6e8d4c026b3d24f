"""The benchmark's parts, from end to end on models of a few thousand parameters."""

import re
import subprocess

import pytest
import torch

import bench
from kernels import c_library
from model_bio import GPT, GPTConfig, model_args
from wiggle import device
from wiggle.device import Machine
from wiggle.errors import UserError

TINY = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 16, "batch_size": 2, "vocab_size": 65}
MEASURE_CEILINGS = bench.measure_ceilings  # which the fixture below leaves out
CPU = Machine(torch.device("cpu"), torch.float32, False, "eager")
NUMBER = r"[\d.,]+"


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(bench, "GPT2", TINY)
    monkeypatch.setattr(bench, "SHAPES", {"cpu": (TINY,)})
    monkeypatch.setattr(bench, "measure_ceilings", lambda *args: bench.Ceilings(1e9, 1e9))


def printed(capsys, *flags):
    bench.main(["--device=cpu", "--repeats=1", "--steps=1", "--sample_tokens=20", *flags])
    return capsys.readouterr().out


def test_training_has_a_row_for_each_variant(capsys):
    out = printed(capsys, "--only=train")
    assert "ceilings  matrix-vector 1.0 GB/s" in out and "training, n_layer=1" in out
    for variant in bench.VARIANTS:
        assert re.search(rf"  {variant} +{NUMBER} \+- {NUMBER} +{NUMBER} +{NUMBER}x .* %", out), variant
    assert re.search(r"  gelu .* 1\.000x", out)


def test_memory_of_one_variant_is_a_number(capsys):
    assert float(printed(capsys, "--variant=gelu")) > 2**20


def test_memory_has_a_row_for_each_variant_measured_in_the_settings_of_the_run(capsys, monkeypatch):
    peaks, asked = {"reference": 3.0, "gelu": 2.0, "bio/none": 2.0, "bio/feature": 4.0, "bio/hard": 2.0}, []

    def run(command, **options):
        asked.append(command)
        variant = command[2].removeprefix("--variant=")
        return subprocess.CompletedProcess(command, 0, f"{peaks[variant] * 2**30}\n", "")

    monkeypatch.setattr(subprocess, "run", run)
    out = printed(capsys, "--only=memory", "--dtype=bfloat16", "--compile=False")
    assert re.findall(r"  (\S+) +(\S+) GiB(?: +(\S+)x gelu's)?", out) == [
        ("reference", "3.00", ""), ("gelu", "2.00", "1.000"), ("bio/none", "2.00", "1.000"),
        ("bio/feature", "4.00", "2.000"), ("bio/hard", "2.00", "1.000"),
    ]  # fmt: skip
    assert all(command[3:] == ["--device=cpu", "--dtype=bfloat16", "--compile=False"] for command in asked)


@pytest.mark.parametrize(
    ("code", "errors", "reason"),
    [(-9, "", "exit code -9, perhaps for want of memory"), (1, "a\nerror: b\n", "error: b")],
)
def test_a_process_that_measures_memory_and_dies_is_one_sentence(monkeypatch, code, errors, reason):
    done = subprocess.CompletedProcess([], code, "", errors)
    monkeypatch.setattr(subprocess, "run", lambda command, **options: done)
    with pytest.raises(UserError, match=f"the process that measures gelu ended early: {reason}"):
        bench.peak_in_another_process("gelu", bench.BenchConfig())


@pytest.mark.parametrize("flag", ["--variant=relu", "--steps=0", "--budget_gb=-1"])
def test_an_impossible_value_is_refused(capsys, flag):
    with pytest.raises(SystemExit):
        bench.main([flag])
    assert flag[2:].split("=")[0] in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--compile=False"], ["--compile=True"], ["--compile=False", "--dtype=bfloat16"]])
def test_sampling_has_a_row_for_each_way(capsys, monkeypatch, flags):
    monkeypatch.setattr(device, "lacking_to_compile", lambda device: None)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    out = printed(capsys, "--only=sample", *flags)
    ways = re.findall(rf"  (\S.*\S) +{NUMBER} \+- {NUMBER} +tokens/s +{NUMBER}x uncached +{NUMBER} GB/s +\d+ %", out)
    compiled = ["compiled"] if flags == ["--compile=True"] else []
    assert ways == ["uncached", "cached", *compiled, "batch of 8"]
    assert re.search(r"uncached .* 1\.00x uncached", out) and "sampling 20 tokens, n_layer=1" in out


@pytest.mark.skipif(c_library.find_compiler() is None, reason="no C compiler")
def test_events_have_a_row_for_each_rate(capsys):
    out = printed(capsys, "--only=events")
    row = rf"^  (\S+) +{NUMBER} +{NUMBER} +{NUMBER} \+- {NUMBER} +{NUMBER} \+- {NUMBER} +{NUMBER}x .* {NUMBER}x$"
    assert re.findall(row, out, re.MULTILINE) == ["0.5", "0.25", "0.15", "0.08", "0.04"]
    assert re.search(r"a step at place 8 takes \S+ ms: MLPs .*, Python and the rest", out)


def test_events_of_a_run_without_any_are_refused(capsys, tmp_path):
    model = GPT(GPTConfig(**{key: TINY[key] for key in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")}))
    torch.save({"model": model.state_dict(), "model_args": model_args(model.config)}, tmp_path / "ckpt.pt")
    with pytest.raises(SystemExit):
        bench.main(["--device=cpu", "--only=events", f"--checkpoint={tmp_path / 'ckpt.pt'}"])
    assert "has no hard events" in "".join(capsys.readouterr())


def test_the_ceilings_are_plausible():
    vector, matrix = MEASURE_CEILINGS(CPU, 1, 256)
    assert 1e8 < vector < 1e13 and 1e8 < matrix < 1e14  # bytes/s, FLOP/s


@pytest.mark.parametrize("most", [0, 1, 2, 3, 7, 8, 13, 64])
@pytest.mark.slow
def test_the_largest_micro_batch_that_fits(monkeypatch, most):
    tried = []

    def step_peak(variant, shape, machine):
        tried.append(shape["batch_size"])
        assert shape | {"batch_size": 2} == TINY and variant == "gelu"
        if shape["batch_size"] > most:
            raise torch.OutOfMemoryError("out of memory")
        return 2.0**30

    monkeypatch.setattr(bench, "step_peak", step_peak)
    assert bench.largest_batch("gelu", CPU) == most
    assert len(tried) == len(set(tried)) <= 14  # doubling and bisection: none is tried twice


@pytest.mark.parametrize(("eager", "compiled", "tried"), [(6, 6, [7, 6]), (6, 8, [7, 8, 9]), (6, 4, [7, 6, 5, 4])])
def test_few_sizes_are_compiled_to_find_the_largest_micro_batch(monkeypatch, eager, compiled, tried):
    """Each takes a minute; Inductor makes an error of its own of one that memory is not enough to compile."""
    sizes = []

    def step_peak(variant, shape, machine):
        size, most = shape["batch_size"], compiled if machine.compiled else eager
        if machine.compiled:
            sizes.append(size)
        if size > most:
            raise RuntimeError("backend='inductor' raised: OutOfMemoryError: CUDA out of memory. Tried to allocate ...")

    monkeypatch.setattr(bench, "step_peak", step_peak)
    assert bench.largest_batch("gelu", CPU._replace(compiled=True)) == compiled and sizes == tried


def test_other_errors_of_a_step_are_no_want_of_memory(monkeypatch):
    def fail(*arguments):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(bench, "step_peak", fail)
    with pytest.raises(RuntimeError, match="mat1"):
        bench.batch_fits("gelu", 1, CPU)


def test_the_budget_has_a_row_for_each_variant(capsys, monkeypatch):
    monkeypatch.setattr(bench, "largest_batch", lambda variant, *rest: {"gelu": 3, "reference": 0}.get(variant, 2))
    config = bench.BenchConfig(repeats=1, steps=1, budget_gb=7.0)
    bench.bench_budget(config, CPU)
    out = capsys.readouterr().out
    assert "under 7 GB, n_layer=1" in out and "reference   not even a micro-batch of 1 fits" in out
    for variant, size in (("gelu", 3), ("bio/none", 2), ("bio/hard", 2)):
        assert re.search(rf"  {variant} +micro-batch +{size} +{NUMBER} \+- {NUMBER} +tokens/s", out), variant


def test_a_budget_is_cudas(capsys):
    with pytest.raises(SystemExit):
        bench.main(["--device=cpu", "--budget_gb=7"])
    assert "needs --device=cuda" in "".join(capsys.readouterr())
