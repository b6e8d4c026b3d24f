"""Runs as jobs of a cluster, which submitit's local executor stands for here."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

import compare
from experiment import cluster
from experiment.cluster import SlurmRequest, parse_slurm
from experiment.processes import Task
from wiggle.errors import UserError

# compare.py whose cluster is this machine. It appends the folder of each job that it submits to the file JOBS names.
LOCAL = """
import os
import compare
from experiment import cluster

def submit_noted(task, request):
    with open(os.environ["JOBS"], "a") as file:
        print(task.folder.name, file=file)
    return submit(task, request)

submit, cluster.submit, cluster.CLUSTER = cluster.submit, submit_noted, "local"
compare.main()
"""
MEASURED = ("seconds", "peak_mb")  # of a run; whatever 'timing' holds is measured too


@pytest.fixture
def local(monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setattr(cluster, "CLUSTER", "local")
    monkeypatch.setattr(cluster, "POLL_SECONDS", 0.1)


def test_what_a_job_asks_for_is_read_from_one_string():
    assert parse_slurm("time=60") == SlurmRequest(60, None, 1, 0)
    assert parse_slurm("partition=gpu,time=60,cpus=8,gpus=1") == SlurmRequest(60, "gpu", 8, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partition=gpu", "--slurm needs the minutes that a run may take"),
        ("time=60,memory=4", "'memory=4' is none of partition=NAME, time=MINUTES, cpus=N and gpus=N"),
        ("time=60,time=70", "each once"),
        ("time=1:00:00", "time=1:00:00 must be a whole number, in minutes"),
        ("time=60,cpus=0", "cpus=0 must be a whole number"),
    ],
)
def test_other_requests_are_refused_in_a_sentence(text, message):
    with pytest.raises(UserError) as error:
        parse_slurm(text)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "flags", [["--executor=slurm"], ["--slurm=time=1"], ["--executor=slurm", "--slurm=time=1", "--jobs=0"]]
)
def test_flags_of_a_cluster_go_together(flags):
    with pytest.raises(UserError, match="all three"):
        compare.parse(["--vary=mlp=gelu,relu", *flags])


def test_missing_submitit_is_one_sentence_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match="pip install submitit"):
        cluster.import_submitit()


def test_a_machine_without_slurm_is_one_sentence(monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="login node"):
        cluster.import_submitit()


def mistake():
    raise UserError("a sentence")


def leave():
    os._exit(1)


@pytest.mark.slow
def test_outcomes_errors_and_dead_jobs_come_back_and_failed_ones_are_submitted_again(local, tmp_path, monkeypatch):
    from submitit import LocalJob

    monkeypatch.setattr(LocalJob, "_results_timeout_s", 1)
    ended, functions = {}, {"good": os.getcwd, "bad": mistake, "dead": leave}
    tasks = [Task(name, function, (), tmp_path / name) for name, function in functions.items()]
    for task in tasks:
        task.folder.mkdir()
    cluster.run_as_jobs(tasks, 3, SlurmRequest(1), lambda what, *found: ended.update({what: found}))
    assert ended["good"] == (os.getcwd(), None) and ended["bad"] == (None, "a sentence")
    assert "ended without an outcome" in ended["dead"][1]
    assert [bool(cluster.submitted(tmp_path / name)) for name in functions] == [True, False, False]


def command(words, out, *more):
    flags = ["--vary=mlp=gelu,relu", "--seeds=2", "--max_blowup=None", "--max_iters=20", "--eval_interval=10"]
    return [*words, *flags, "--jobs=2", f"--out_dir={out}", *more]


def on_cluster(words, out):
    return [sys.executable, "-c", LOCAL, *command(words, out, "--executor=slurm", "--slurm=time=5")]


def computed(out):
    """{(kind, key): what a ledger holds besides what was measured}, and the number of its lines."""
    lines = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    kept = {}
    for line in lines:
        measured = ("ms", "ratio", "ratio_error") if line["kind"] == "timing" else MEASURED
        kept[line["kind"], line["key"]] = {key: value for key, value in line.items() if key not in measured}
    return kept, len(lines)


@pytest.mark.slow
def test_killed_and_started_again_jobs_give_the_ledger_of_processes_and_repeat_nothing(words, tmp_path, request):
    pytest.importorskip("submitit")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "JOBS": str(tmp_path / "jobs")}
    here = {"cwd": request.config.rootpath, "env": environment, "text": True}
    subprocess.run([sys.executable, "compare.py", *command(words, tmp_path / "whole")], check=True, **here)
    study = subprocess.Popen(on_cluster(words, tmp_path / "cut"), **here)
    ledger = tmp_path / "cut" / "runs.jsonl"
    while not ledger.exists() or '"kind": "reporting"' not in ledger.read_text():
        assert study.poll() is None
        time.sleep(0.05)
    study.send_signal(signal.SIGKILL)
    study.wait()
    running = tmp_path / "cut" / "running"
    jobs = {file.name for file in running.rglob("*_submitted.pkl")}
    while len(list(running.rglob("*_result.pkl"))) < len(jobs):  # they go on without it
        time.sleep(0.05)
    assert jobs
    again = subprocess.run(on_cluster(words, tmp_path / "cut"), capture_output=True, **here)
    assert again.returncode == 0, again.stderr
    assert computed(tmp_path / "cut") == computed(tmp_path / "whole")
    runs = {key for kind, key in computed(tmp_path / "cut")[0] if kind == "reporting"}
    submitted = [folder for folder in (tmp_path / "jobs").read_text().split() if folder in runs]
    assert len(submitted) == len(runs) == len(set(submitted))  # each once, by the first command or by the second
    assert not list(running.iterdir())
