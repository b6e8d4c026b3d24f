"""
The experiment: one declared difference, several seeds, paired statistics, an honest verdict.

    python compare.py config/compare_tiny.py --vary mlp=gelu,bio --seeds=3
    python compare.py config/quickstart.py --vary mlp=gelu,bio,dendritic --seeds=5 --sweep learning_rate=1e-3,3e-3,6e-3

The first arm is the control. Config files and --key=value are train.py's, and hold for all arms. Finished runs are kept
in OUT/runs.jsonl, so that the same command goes on where it was stopped; the report lies beside it.
"""

import argparse
import functools
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

from experiment.arms import at_point, parse_also, plan_arms, spell
from experiment.cluster import call_on_node, import_submitit, parse_slurm, submitted
from experiment.contrasts import control_of
from experiment.costs import count_costs, first_steps_alone, share_budget
from experiment.executor import run_all
from experiment.ledger import Ledger, Run, key_of, key_of_looks, make_run, record_look, settings_of, swept_value
from experiment.notes import find_notes
from experiment.own_neurons import notes_on_changed_neurons
from experiment.processes import Task
from experiment.study import ArmCost, ArmResult, CompareOptions, Comparison, Point, Study
from experiment.tuning import Tuning, final_runs, opening_runs, read_tuning, take_points
from experiment.workers import (
    FIRST_STEPS,
    VALIDATION_BLOCK,
    Progress,
    half_of_windows,
    one_run,
)
from train import TrainConfig, prepare_missing
from wiggle import errors
from wiggle.chat_dataset import open_dataset
from wiggle.dataset import Dataset
from wiggle.device import without_context
from wiggle.errors import UserError
from wiggle.evaluation import size_of_validation
from wiggle.lock import folder_lock
from wiggle.run_log import print_line

# By how much recomputed losses may differ, relative to them: on a CPU another thread count rounds differently; a card
# adds the gradients of an embedding in the order in which they come, which moves losses by 1e-4 in bfloat16.
CPU_TOLERANCE, CARD_TOLERANCES = 1e-5, {"float32": 1e-4, "bfloat16": 1e-3, "float16": 1e-3}
TUNING_SEEDS_FROM = 1000  # added to the seed: so far do tuning seeds lie from reporting seeds


# --- plan: the command line and the arms ---


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UserError(message)


def parse(argv: list[str]) -> tuple[CompareOptions, list[str]]:
    """-> (options, the words that are train.py's)."""
    form = argparse.RawDescriptionHelpFormatter
    more = "python train.py --help lists the keys that can be set, varied and swept."
    parser = Parser("compare.py", description=__doc__, formatter_class=form, allow_abbrev=False, epilog=more)
    add = parser.add_argument
    add(
        "--vary",
        action="append",
        required=True,
        metavar="KEY=A,B",
        help="the difference; given twice, the full grid; KEY+KEY=A+B,C+D varies keys together",
    )
    control_help = (
        "the arm that all others are judged against (default: the first, of two keys at each value of the second)"
    )
    add("--control", metavar="ARM", help=control_help)
    add("--seeds", type=int, default=3, help="reporting runs of each arm (default 3; fewer give no verdict)")
    sweep_help = "tune this key for each arm alike, on the tuning half; given again, the full grid of the keys"
    add("--sweep", action="append", default=[], metavar="KEY=X,Y,Z", help=sweep_help)
    also_help = "report too at each arm's best point with this value of a swept key"
    add("--also", action="append", default=[], metavar="KEY=X", help=also_help)
    add("--tuning_seeds", type=int, default=2, help="runs of each arm at each point of the sweep (default 2)")
    finalists_help = "tuning seeds after the first run the best K points of each arm alone (default: all points)"
    add("--finalists", type=int, metavar="K", help=finalists_help)
    add("--match", choices=("steps", "flops", "time"), default="steps", help="what arms get alike (default: steps)")
    power_help = "a difference in nats: the report says how many seeds detect it with a chance of 80 %% (default 0.01)"
    add("--power", type=float, default=0.01, metavar="NATS", help=power_help)
    margin_help = "a difference in nats that does not matter: adds the verdict 'equivalent'"
    add("--margin", type=float, metavar="NATS", help=margin_help)
    target_help = "the report says after how many tokens and seconds each run is down to this validation loss"
    add("--target_loss", type=float, metavar="NATS", help=target_help)
    add("--jobs", type=int, default=1, help="runs at a time, cores divided among them (default 1); 0: in this process")
    executor_help = "processes of this machine (default), or jobs of a Slurm cluster, --jobs of them queued at a time"
    add("--executor", choices=("processes", "slurm"), default="processes", help=executor_help)
    add("--slurm", metavar="KEY=X,…", help="what each job gets: time=MINUTES, and partition=NAME, cpus=N, gpus=N")
    add("--out_dir", help="folder of runs.jsonl and the report (default: out/compare/CONFIG-KEY)")
    add("--reuse", metavar="FILE", help="runs.jsonl of another comparison, whose matching runs are not repeated")
    add("--keep", action="store_true", help="keep best.pt and metrics.jsonl of each reporting run, in OUT/kept")
    add("--report", action="store_true", help="write the report of the finished runs, run nothing")
    flags, words = parser.parse_known_args(argv)
    options = CompareOptions(**vars(flags))
    most = TUNING_SEEDS_FROM
    if not (1 <= options.seeds <= most and 1 <= options.tuning_seeds <= most and options.jobs >= 0):
        raise UserError(f"seeds and tuning_seeds must lie in 1..{most}, jobs must be at least 0")
    if options.finalists is not None and (options.finalists < 1 or options.tuning_seeds < 2 or not options.sweep):
        raise UserError("--finalists=K takes a K of 1 or more, a --sweep to choose from and two --tuning_seeds or more")
    if not (0 < options.power < float("inf") and 0 < (options.margin or 1) < float("inf")) or options.margin == 0:
        raise UserError("power and margin are differences in nats above 0")
    if options.target_loss is not None and not 0 < options.target_loss < float("inf"):
        raise UserError("target_loss is a loss in nats a token, above 0")
    on_cluster = options.executor == "slurm"
    if on_cluster != (options.slurm is not None) or (on_cluster and options.jobs == 0):
        raise UserError("a cluster takes --executor=slurm, --slurm='time=60' and --jobs of 1 or more, all three")
    if options.reuse and not Path(options.reuse).is_file():
        raise UserError(f"--reuse: there is no file {options.reuse}")
    return options, words


def plan_study(argv: list[str]) -> Study:
    """The command line -> Study, its arms resolved and isolated."""
    options, words = parse(argv)
    config = next((Path(word).stem for word in words if word[:2] != "--" and word.endswith(".py")), "defaults")
    varied = [text.partition("=")[0] for text in options.vary]
    out_dir = Path(options.out_dir or Path("out/compare", "-".join([config, *varied])))
    slurm, on_machine = None, without_context
    if options.executor == "slurm":
        slurm = parse_slurm(options.slurm)
        import_submitit()  # raises where it is missing
        on_machine = functools.partial(call_on_node, slurm, out_dir / "running")
    arms, swept = plan_arms(options.vary, options.sweep, options.control, options.match, words, on_machine)
    also = [parse_also(text, swept, words) for text in options.also]
    seed = arms[0].config.seed
    tuning_seeds = range(seed + TUNING_SEEDS_FROM, seed + TUNING_SEEDS_FROM + options.tuning_seeds)
    seeds = {"tuning": tuning_seeds, "reporting": range(seed, seed + options.seeds)}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, cores // max(1, options.jobs)))
    if slurm:
        threads = slurm.cpus
    study = Study(options, words, arms, swept, also, out_dir, seeds, threads, slurm)
    check_arms(study)
    return study


def check_arms(study: Study) -> None:
    """Raise UserError where an arm has no control, two arms are one and the same run, or are judged on other texts."""
    known = {}
    for arm in study.arms:
        control_of(study, arm)
        key = key_of(settings_of(arm.config, arm.neuron, {"dataset": arm.config.dataset}))
        if (other := known.setdefault(key, arm)) is not arm:
            raise UserError(f"{other.name} and {arm.name} are the same run: neither reads what is varied between them")
    configs = [at_point(arm.config, study.swept, point) for arm in study.arms for point in study.points]
    sizes = {config.block_size for config in configs}
    if len(sizes) > 1 and any(VALIDATION_BLOCK % size for size in sizes):
        spelled = ", ".join(map(str, sorted(sizes)))
        raise UserError(
            f"block_size {spelled}: each must divide {VALIDATION_BLOCK}, the unit of the validation's halves"
        )


def prepare_data(study: Study) -> dict[str, Dataset]:
    """
    The data of all arms by their names, made where they are missing.

    Raises UserError where one is too short to be judged on.
    """
    datasets = {}
    for config in {arm.config.dataset: arm.config for arm in study.arms}.values():
        prepare_missing(config, print_line)
        data = open_dataset(Path(config.data_dir, config.dataset), config.block_size, config.seed)
        datasets[config.dataset] = data
        if not half_of_windows(len(data.fixed_windows("val", 0)), config.block_size).any():
            raise UserError(
                f"{config.dataset} has too few validation tokens: each half needs a block of {VALIDATION_BLOCK}"
            )
    return datasets


# --- run: what is not finished, each run kept as it ends ---


def make_runs(study: Study, datasets: dict[str, Dataset], stage: str, points: dict[str, list[Point]]) -> list[Run]:
    """The runs of a stage, seed by seed; points: by arm."""
    return [
        make_run(study, datasets[arm.config.dataset].identity, arm, stage, point, seed)
        for seed in study.seeds[stage]
        for arm in study.arms
        for point in points[arm.name]
    ]


def reuse(path: str, ledger: Ledger, runs: list[Run]) -> None:
    """Copy the records of these runs from another comparison's runs.jsonl, where this one lacks them."""
    other = Ledger(path)
    for run in runs:
        if other.finished(run) and not ledger.finished(run):
            ledger.add(**other.finished(run))


def tolerance(device: str, dtype: str) -> float:
    """How far the first losses of a run may be from what they were on the device, in relative terms."""
    return CPU_TOLERANCE if device == "cpu" else CARD_TOLERANCES[dtype]


def recheck_first_losses(study: Study, ledger: Ledger, runs: list[Run]) -> None:
    """Raise UserError unless the first losses of a finished run of each arm come out again as they were."""
    kept = [run for run in runs if (record := ledger.finished(run)) and record["first_losses"]]
    known = list({run.arm.name: run for run in reversed(kept)}.values())
    if not known:
        return
    found = first_steps_alone(study, [(run.config, run.arm.neuron) for run in known], 1, "check")
    for run, (losses, _) in zip(known, found, strict=True):
        if not losses:
            raise UserError(
                f"the first steps of {run}, which is finished, cannot be taken again to compare their losses"
            )
        before = ledger.finished(run)["first_losses"]
        apart = max(abs(a - b) / abs(b) for a, b in zip(losses, before, strict=False))
        if apart > tolerance(run.config.device, run.config.dtype):
            raise UserError(
                f"the first {FIRST_STEPS} losses of {run} are not what they were (off by {100 * apart:.2g} %): go on "
                f"with the code that wrote {ledger.path}, or start anew with another --out_dir"
            )
    print_line(f"check     the first {FIRST_STEPS} losses of {len(known)} finished runs came out again as they were")


def run_missing(study: Study, ledger: Ledger, runs: list[Run], progress: Progress) -> list[Run]:
    """Do the runs that are not finished, and keep each as it ends -> the runs that failed."""
    failed = []

    def done(run: Run, outcome: dict | None, error: str | None) -> None:
        folder = study.out_dir / "running" / run.key
        if error:
            failed.append(run)
            progress.end(run, f"FAILED, {folder / 'log'} has more: {error}")
            return
        names = {"arm": run.arm.name, "seed": run.seed, "value": swept_value(study, run.point)}
        names |= {"neuron_parts": run.arm.neuron.parts} if run.arm.neuron else {}
        ledger.add(run.stage, run.key, **names, **outcome, settings=run.settings)
        for log in Path(folder, "run", "wandb").glob("*run-*"):  # WANDB_MODE=offline keeps its logs here
            (study.out_dir / "wandb").mkdir(exist_ok=True)
            shutil.move(log, study.out_dir / "wandb")
        shutil.rmtree(folder)
        progress.end(run, "diverged" if outcome["loss"] is None else f"val {outcome['loss']:.4f}")

    tasks, too_late = {}, 0
    for run in runs:
        folder, kept = study.out_dir / "running" / run.key, folder_to_keep(study, run)
        if run.key in tasks or ledger.finished(run):
            progress.skip(run)
            too_late += run.key not in tasks and kept is not None and not kept.exists()
            continue
        if not (study.slurm and submitted(folder)):
            shutil.rmtree(folder, ignore_errors=True)
        config, neuron = config_to_train(study, run, folder / "run"), run.arm.neuron
        arguments = config, run.stage, kept, neuron and neuron.sha256
        tasks[run.key] = Task(run, one_run, arguments, folder)
    if too_late:
        print_line(f"note      {too_late} reporting runs were finished before: --keep has nothing of theirs")
    run_all(study, list(tasks.values()), done)
    return failed


def config_to_train(study: Study, run: Run, out_dir: Path) -> TrainConfig:
    """The config of a run in out_dir; at Weights & Biases the runs of a study are one group, named as its folder is."""
    group = {"wandb_group": study.out_dir.name, "wandb_arm": run.arm.name, "wandb_run_name": str(run)}
    return replace(run.config, out_dir=str(out_dir), **group)


def folder_to_keep(study: Study, run: Run) -> Path | None:
    """Where best.pt and metrics.jsonl of a run stay, if they are to."""
    if not study.options.keep or run.stage != "reporting":
        return None
    point = map(spell, run.point) if study.also else ()  # an arm may be reported at two points
    name = "-".join([run.arm.name.replace(os.sep, "_"), str(run.seed), *point])
    return study.out_dir / "kept" / f"{name}-{run.key[:8]}"  # the key: another setting's run is another folder


# --- report: what came of it, and what a reader must be warned of ---


def collect(
    study: Study,
    ledger: Ledger,
    datasets: dict[str, Dataset],
    costs: dict[str, ArmCost],
    runs: list[Run],
    points: dict[str, Point | None],
) -> list[ArmResult]:
    """The finished reporting runs of each arm at the point that was taken for it."""
    sizes = {name: size_of_validation(data) for name, data in datasets.items()}
    results = []
    for arm in study.arms:
        point = points[arm.name]
        mine = [run for run in runs if run.arm is arm and run.point == point and ledger.finished(run)]
        records = {run.seed: ledger.finished(run) for run in mine}
        results.append(ArmResult(arm, costs[arm.name], point, records, sizes[arm.config.dataset]))
    return results


def carry_out(
    study: Study, ledger: Ledger, datasets: dict[str, Dataset], costs: dict[str, ArmCost]
) -> tuple[list, dict, list]:
    """Do what is missing, unless --report asks for none -> (comparisons, tunings by arm, failed runs)."""
    options, everywhere = study.options, {arm.name: study.points for arm in study.arms}
    tuning = make_runs(study, datasets, "tuning", everywhere) if study.swept else []
    candidates = [*tuning, *make_runs(study, datasets, "reporting", everywhere)]
    if options.reuse:
        reuse(options.reuse, ledger, candidates)
    failed, places = [], [None, *study.also]
    if not options.report:
        recheck_first_losses(study, ledger, candidates)
        reported = candidates[len(tuning) :: len(study.points)] * len(places)  # as many as there will be
        opening = opening_runs(study, tuning)
        progress = Progress([*opening, *reported], {name: cost.ms_per_step for name, cost in costs.items()})
        failed += run_missing(study, ledger, opening, progress)
        later = final_runs(study, ledger, tuning)[len(opening) :]
        progress.plan(later)
        failed += run_missing(study, ledger, later, progress)
    tuning = final_runs(study, ledger, tuning)
    tunings = read_tuning(study, ledger, tuning)
    taken = [take_points(study, tunings, place) for place in places]
    points = {name: [at[name] for at in taken if at[name] is not None] for name in everywhere}
    reporting = make_runs(study, datasets, "reporting", points)
    if not options.report:
        failed += run_missing(study, ledger, reporting, progress)
    wheres = ["", *(f"{key}={spell(value)}" for key, value in study.also)]
    comparisons = [
        Comparison(where, collect(study, ledger, datasets, costs, reporting, at))
        for where, at in zip(wheres, taken, strict=True)
    ]
    return comparisons, tunings, failed


def nothing_to_report(study: Study, ledger: Ledger, tunings: dict[str, Tuning], failed: list[Run]) -> str:
    """The sentence that says why no report is written."""
    what = f"{len(failed)} runs failed, and no" if failed else "no"
    why = ""
    if study.swept and not all(tuning.losses for tuning in tunings.values()):
        tuned = sum(bool(tuning.losses) for tuning in tunings.values())
        why = f" ({tuned} of {len(tunings)} arms are tuned with --tuning_seeds={study.options.tuning_seeds})"
    return f"{what} reporting run of this command is finished in {ledger.path}{why}: no report is written"


def compare(study: Study, argv: list[str]) -> None:
    """Do what is missing of a study and write its report. Raises UserError where a run failed."""
    datasets = prepare_data(study)
    ledger = Ledger(study.out_dir / "runs.jsonl")
    for note in notes_on_changed_neurons(study, ledger):
        print_line(f"note      {note}")
    costs = count_costs(study, datasets, ledger)
    study = share_budget(study, costs)
    try:
        comparisons, tunings, failed = carry_out(study, ledger, datasets, costs)
    except KeyboardInterrupt:
        print_line(f"stopped   the finished runs are in {ledger.path}: the same command goes on from here")
        raise
    if not any(result.runs for result in comparisons[0].results):
        raise UserError(nothing_to_report(study, ledger, tunings, failed))
    from experiment import report  # after the runs: their processes import this file, and need no matplotlib

    identities = {name: data.identity for name, data in datasets.items()}
    looked_at = key_of_looks(study, identities)
    if ledger.get("looks", former := key_of_looks(study, identities, by_file=True)):
        looked_at = former
    notes = find_notes(study, ledger, comparisons, looked_at)
    for line in report.write(study, comparisons, tunings, notes, argv):
        print_line(line)
    record_look(study, ledger, looked_at)
    if failed:
        raise UserError(f"{len(failed)} runs failed, the others are kept: the same command tries them again")


@errors.script
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    study = plan_study(argv)
    if study.options.report:  # which may be asked for while the runs go on
        compare(study, argv)
        return
    with folder_lock(study.out_dir, "a comparison"):
        compare(study, argv)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave through run_all, which ends its processes
    main()
