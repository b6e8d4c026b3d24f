"""
The experiment: one declared difference, several seeds, paired statistics, an honest verdict.

    python compare.py config/compare_tiny.py --vary mlp=gelu,bio --seeds=3
    python compare.py config/quickstart.py --vary mlp=gelu,bio,dendritic --seeds=5 --sweep learning_rate=1e-3,3e-3,6e-3

The first arm is the control. Config files and --key=value are train.py's, and hold for all arms. Finished runs are kept
in OUT/runs.jsonl, so that the same command goes on where it was stopped; the report lies beside it.
"""

import argparse
import os
import shutil
import signal
import statistics
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from experiment.arms import key_of, plan, settings_of
from experiment.ledger import Ledger
from experiment.workers import BLOCK, FIRST, Progress, bursts, halves, one_run, run_all
from model_bio import GPT
from train import prepare_missing
from wiggle import blowup, errors
from wiggle.dataset import Dataset
from wiggle.errors import UserError
from wiggle.run_log import print_line

ROUNDS = 5  # of alternated timing
TOLERANCE = 1e-5  # of recomputed losses, relative: another number of threads rounds otherwise
TUNING_SEEDS = 1000  # this far from the reporting seeds


@dataclass
class Study:
    """What was asked for, and what came of it."""

    options: argparse.Namespace
    words: list  # of the command line, for train.py
    arms: list  # the control first
    tuned: str | None  # key
    values: list  # of the tuned key
    out_dir: Path
    seeds: dict  # stage -> its seeds
    threads: int  # of each process
    identity: dict = field(default_factory=dict)  # of the data
    failed: list = field(default_factory=list)  # runs
    notes: list = field(default_factory=list)  # of what a reader must be warned


class Run:
    def __init__(self, study, arm, stage, value, seed):
        changes = {"seed": seed} if value is None else {"seed": seed, study.tuned: value}
        self.arm, self.stage, self.value, self.seed = arm, stage, value, seed
        self.config = replace(arm.config, **changes)
        self.settings = settings_of(self.config, arm.neuron, study.identity)
        self.key = key_of(self.settings)

    def __str__(self):
        tuned = "" if self.value is None else f" at {self.value:g}"
        return f"{self.arm.name}{tuned}, seed {self.seed}"


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(message)


def parse(argv):
    """-> (options, the words that are train.py's)."""
    form = argparse.RawDescriptionHelpFormatter
    more = "python train.py --help lists the keys that can be set, varied and swept."
    parser = Parser("compare.py", description=__doc__, formatter_class=form, allow_abbrev=False, epilog=more)
    add = parser.add_argument
    add("--vary", action="append", required=True, metavar="KEY=A,B", help="the difference; given twice, the full grid")
    add("--control", metavar="ARM", help="the arm that the others are judged against (default: the first)")
    add("--seeds", type=int, default=3, help="reporting runs of each arm (default 3; fewer give no verdict)")
    add("--sweep", metavar="KEY=X,Y,Z", help="tune this key for each arm alike, on the tuning half of validation")
    add("--tuning_seeds", type=int, default=1, help="runs of each arm at each value of the sweep (default 1)")
    add("--match", choices=("steps", "flops", "time"), default="steps", help="what arms get alike (default: steps)")
    add("--jobs", type=int, default=1, help="runs at a time, cores divided among them (default 1); 0: in this process")
    add("--out_dir", help="folder of runs.jsonl and the report (default: out/compare/CONFIG-KEY)")
    add("--reuse", metavar="FILE", help="runs.jsonl of another comparison, whose matching runs are not repeated")
    add("--keep", action="store_true", help="keep best.pt and metrics.jsonl of each reporting run, in OUT/kept")
    add("--report", action="store_true", help="write the report of the finished runs, run nothing")
    options, words = parser.parse_known_args(argv)
    if not (1 <= options.seeds <= TUNING_SEEDS and 1 <= options.tuning_seeds <= TUNING_SEEDS and options.jobs >= 0):
        raise UserError(f"seeds and tuning_seeds must lie in 1..{TUNING_SEEDS}, jobs must be at least 0")
    return options, words


def begin(argv):
    """The command line -> Study, its arms resolved, counted and isolated."""
    options, words = parse(argv)
    arms, tuned, values = plan(options.vary, options.sweep, options.control, options.match, words)
    config = next((Path(word).stem for word in words if word[:2] != "--" and word.endswith(".py")), "defaults")
    varied = [text.partition("=")[0] for text in options.vary]
    seed = arms[0].config.seed
    seeds = {"tuning": range(seed + TUNING_SEEDS, seed + TUNING_SEEDS + options.tuning_seeds)}
    seeds["reporting"] = range(seed, seed + options.seeds)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, cores // max(1, options.jobs)))
    out_dir = Path(options.out_dir or Path("out/compare", "-".join([config, *varied])))
    study = Study(options, words, arms, tuned, values, out_dir, seeds, threads)
    prepare(study)
    return study


def prepare(study):
    """Count each arm's parameters and FLOPs, sound the alarm, and see that the data can be judged on."""
    config = study.arms[0].config
    prepare_missing(config, print_line)
    data = Dataset(Path(config.data_dir, config.dataset), config.block_size, config.seed)
    if not halves(len(data.fixed_windows("val", 0)), config.block_size).any():
        raise UserError(f"{config.dataset} has too few validation tokens: each half needs a block of {BLOCK}")
    study.identity = data.identity
    for arm in study.arms:
        shape, limit = arm.config.gpt_config(arm.config.vocab_size or data.model_vocab), arm.config.max_blowup
        with torch.device("meta"):
            model = GPT(shape, arm.neuron)
        arm.parameters, arm.flops = model.get_num_params(non_embedding=False), model.flops_per_token()
        if limit is not None and shape.mlp != "gelu" and not study.options.report:
            device, dtype = torch.device(arm.config.device), getattr(torch, arm.config.dtype)
            blowup.alarm(shape, limit, False, device, dtype, arm.neuron, print_line)


def alone(study, function, arguments, what):
    """Do one thing in a process of its own, while nothing else runs -> its outcome, or None."""
    found, folder = {}, study.out_dir / "running" / what
    task = (what, function, arguments, folder)
    run_all([task], study.options.jobs and 1, study.threads, lambda what, *ended: found.update({what: ended}))
    outcome, error = found[what]
    if error:
        print_line(f"warning   {what} failed, {folder / 'log'} has more: {error}")
    else:
        shutil.rmtree(folder)
    return outcome


def measure(study, ledger):
    """Milliseconds a step of each arm beside the control, alternated; kept, so that --match=time stays what it was."""

    def key(arm):
        return f"{key_of(settings_of(replace(arm.config, seed=0), arm.neuron, study.identity))}-{study.threads}"

    missing = [arm for arm in study.arms if not ledger.get("timing", key(arm))]
    if missing and not study.options.report:
        arms = [study.arms[0], *(arm for arm in missing if arm is not study.arms[0])]
        print_line(f"timing    {', '.join(arm.name for arm in arms)}, by turns")
        folder = str(study.out_dir / "running" / "timing" / "run")
        found = alone(study, bursts, ([replace(arm.config, out_dir=folder) for arm in arms], ROUNDS), "timing") or []
        medians = {arm.name: statistics.median(ms) for arm, (_, ms) in zip(arms, found, strict=False) if ms}
        for arm in missing:
            if {arm.name, arms[0].name} <= set(medians):
                ms, ratio = medians[arm.name], medians[arm.name] / medians[arms[0].name]
                ledger.add("timing", key(arm), arm=arm.name, ms=ms, ratio=ratio)
    for arm in study.arms:
        if record := ledger.get("timing", key(arm)):
            arm.ms, arm.ratio = record["ms"], record["ratio"]


def share_budget(study):
    """Set each arm's number of steps so that all get the control's FLOPs, or its seconds."""
    if study.options.match == "steps":
        return

    def price(arm):  # of a step
        tokens = arm.config.sequences_per_step * arm.config.block_size
        return arm.ratio if study.options.match == "time" else arm.flops * tokens

    control = study.arms[0]
    for arm in study.arms:
        scale = price(control) / price(arm)
        if scale != scale:
            raise UserError(f"--match=time needs the time of a step of {arm.name}, which could not be measured")
        last = arm.config.lr_decay_iters
        changes = {"max_iters": max(1, round(control.config.max_iters * scale))}
        arm.config = replace(arm.config, **changes, lr_decay_iters=last and max(1, round(last * scale)))


def check(study, ledger, runs):
    """Raise UserError unless the first losses of a finished run of each arm come out again as they were."""
    kept = [run for run in runs if (record := ledger.finished(run)) and record["first_losses"]]
    known = list({run.arm.name: run for run in reversed(kept)}.values())
    if not known:
        return
    folder = str(study.out_dir / "running" / "check" / "run")
    found = alone(study, bursts, ([replace(run.config, out_dir=folder) for run in known], 1), "check")
    found = found or [([], [])] * len(known)
    for run, (losses, _) in zip(known, found, strict=True):
        before = ledger.finished(run)["first_losses"]
        apart = max((abs(a - b) / abs(b) for a, b in zip(losses, before, strict=False)), default=float("inf"))
        if apart > TOLERANCE:
            raise UserError(
                f"the first {FIRST} losses of {run} are not what they were (off by {100 * apart:.2g} %): go on with "
                f"the code that wrote {ledger.path}, or start anew with another --out_dir"
            )
    print_line(f"check     the first {FIRST} losses of {len(known)} finished runs came out again as they were")


def do(study, ledger, runs, progress):
    """Do the runs that are not finished, and keep each as it ends."""

    def done(run, outcome, error):
        folder = study.out_dir / "running" / run.key
        if error:
            study.failed.append(run)
            progress.end(run, f"FAILED, {folder / 'log'} has more: {error}")
            return
        shutil.rmtree(folder)
        names = {"arm": run.arm.name, "seed": run.seed, "value": run.value}
        ledger.add(run.stage, run.key, **names, **outcome, settings=run.settings)
        progress.end(run, "diverged" if outcome["loss"] is None else f"val {outcome['loss']:.4f}")

    tasks = {}
    for run in runs:
        folder = study.out_dir / "running" / run.key
        if run.key in tasks or ledger.finished(run):
            progress.skip(run)
            continue
        shutil.rmtree(folder, ignore_errors=True)
        keep = study.options.keep and run.stage == "reporting"
        kept = study.out_dir / "kept" / f"{run.arm.name}-{run.seed}" if keep else None
        tasks[run.key] = run, one_run, (replace(run.config, out_dir=str(folder / "run")), run.stage, kept), folder
    run_all(list(tasks.values()), study.options.jobs, study.threads, done)


def tune(study, ledger, runs):
    """Take, for each arm, the value of the tuned key with the lowest mean loss on the tuning half."""
    for arm in study.arms:
        for value in study.values:
            records = [ledger.finished(run) for run in runs if run.arm is arm and run.value == value]
            losses = [record["loss"] for record in records if record]
            if losses and len(losses) == len(records):
                arm.tuning[value] = statistics.mean(float("inf") if loss is None else loss for loss in losses)
        if not arm.tuning:
            continue
        best = min(arm.tuning, key=arm.tuning.get)
        arm.value = best if arm.tuning[best] < float("inf") else None
        if arm.value in (study.values[0], study.values[-1]):
            study.notes.append(f"{study.tuned} {arm.value:g}, {arm.name}'s best, is at the edge of the sweep: widen it")


def collect(study, ledger, runs):
    """Give each arm its finished reporting runs, and note what is missing or diverged."""
    for arm in study.arms:
        found = {run.seed: ledger.finished(run) for run in runs if run.arm is arm}
        arm.runs = {seed: record for seed, record in found.items() if record}
        diverged = [str(seed) for seed, record in arm.runs.items() if record["loss"] is None]
        if diverged:
            study.notes.append(f"{arm.name} diverged with seed {', '.join(diverged)}, which its numbers leave out")
        if len(arm.runs) < len(study.seeds["reporting"]):
            study.notes.append(f"{arm.name} has {len(arm.runs)} of {len(study.seeds['reporting'])} reporting runs")


@errors.script
def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    study = begin(argv)
    ledger = Ledger(study.out_dir / "runs.jsonl")
    measure(study, ledger)
    share_budget(study)
    values, seeds = study.values or [None], study.seeds
    tuning = [Run(study, a, "tuning", v, seed) for seed in seeds["tuning"] for v in study.values for a in study.arms]
    reporting = [Run(study, a, "reporting", v, seed) for v in values for seed in seeds["reporting"] for a in study.arms]
    if study.options.reuse:
        other = Ledger(study.options.reuse)
        for run in [*tuning, *reporting]:
            if other.finished(run) and not ledger.finished(run):
                ledger.add(**other.finished(run))
    running = not study.options.report
    if running:
        check(study, ledger, [*tuning, *reporting])
        progress = Progress([*tuning, *reporting[: len(reporting) // len(values)]])
    try:
        if running:
            do(study, ledger, tuning, progress)
        tune(study, ledger, tuning)
        reporting = [run for run in reporting if run.value == run.arm.value]
        if running:
            do(study, ledger, reporting, progress)
    except KeyboardInterrupt:
        print_line(f"stopped   the finished runs are in {ledger.path}: the same command goes on from here")
        raise
    collect(study, ledger, reporting)
    from experiment import report

    for line in report.write(study, argv):
        print_line(line)
    if study.failed:
        raise UserError(f"{len(study.failed)} runs failed, the others are kept: the same command tries them again")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave through run_all, which ends its processes
    main()
