"""Tasks of an experiment as jobs of a Slurm cluster, through submitit; the folders lie where all nodes see them."""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from experiment.processes import Done, Task, logged_outcome
from wiggle.errors import UserError
from wiggle.files import writing
from wiggle.run_log import print_line

if TYPE_CHECKING:
    from submitit import AutoExecutor, Job

CLUSTER = "slurm"  # submitit's name of what runs the jobs; its "local" starts them on this machine
POLL_SECONDS = 0.5  # between looks at the files of results; submitit asks Slurm itself far less often
SUBMITTED = "_submitted.pkl"  # submitit's file FOLDER/ID_submitted.pkl holds the call that a job is to make


@dataclass(frozen=True)
class SlurmRequest:
    """What each job asks Slurm for."""

    time: int  # minutes, after which Slurm ends the job
    partition: str | None = None  # None: the cluster's default
    cpus: int = 1  # also the number of threads of a run
    gpus: int = 0


def parse_slurm(text: str) -> SlurmRequest:
    """'partition=gpu,time=60,cpus=8,gpus=1' -> SlurmRequest. Raises UserError for anything else, or without a time."""
    values = {}
    for pair in filter(None, text.split(",")):
        key, _, value = pair.partition("=")
        if key not in SlurmRequest.__dataclass_fields__ or key in values or not value:
            raise UserError(f"--slurm: {pair!r} is none of partition=NAME, time=MINUTES, cpus=N and gpus=N, each once")
        if key != "partition" and not (value.isdecimal() and int(value) >= (key != "gpus")):
            raise UserError(f"--slurm: {key}={value} must be a whole number{', in minutes' if key == 'time' else ''}")
        values[key] = value if key == "partition" else int(value)
    if "time" not in values:
        raise UserError("--slurm needs the minutes that a run may take, as in --slurm='partition=gpu,time=60'")
    return SlurmRequest(**values)


def import_submitit() -> ModuleType:
    """Raises UserError where submitit is not installed, or this machine submits no Slurm jobs."""
    try:
        import submitit
    except ImportError:
        raise UserError("--executor=slurm needs a library: pip install submitit") from None
    if CLUSTER == "slurm" and not (shutil.which("srun") and shutil.which("sbatch")):
        raise UserError("--executor=slurm finds no srun and sbatch here: start it on a login node of the cluster")
    return submitit


def submit(task: Task, request: SlurmRequest) -> "Job":
    """Submit a task as a job. Raises UserError where Slurm refuses it."""
    executor: AutoExecutor = import_submitit().AutoExecutor(folder=task.folder, cluster=CLUSTER)
    executor.update_parameters(
        name="wigglegpt",
        timeout_min=request.time,
        cpus_per_task=request.cpus,
        gpus_per_node=request.gpus or None,
        slurm_partition=request.partition,
    )
    try:
        return executor.submit(logged_outcome, task.function, task.arguments, task.folder, request.cpus)
    except (RuntimeError, OSError) as error:  # submitit's own errors are RuntimeErrors
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"Slurm did not take a job ({reason}): change --slurm") from None


def submitted(folder: Path) -> "Job | None":
    """The job that an earlier command submitted from this folder, whose outcome it did not collect."""
    file = next(Path(folder).glob(f"*{SUBMITTED}"), None)
    if file is None:
        return None
    submitit = import_submitit()
    kinds = {"slurm": submitit.SlurmJob, "local": submitit.LocalJob}
    return kinds[CLUSTER](folder, file.name.removesuffix(SUBMITTED))


def forget(folder: Path) -> None:
    """Cancel the job that was submitted from this folder, if any, and remove the folder."""
    if job := submitted(folder):
        job.cancel(check=False)
    shutil.rmtree(folder, ignore_errors=True)


def collect(job: "Job", folder: Path) -> tuple[object, str | None]:
    """What a job that ended gives: (outcome, None), or (None, a sentence). Then it does not count as submitted."""
    from submitit.core.utils import UncompletedJobError

    try:
        outcome, error = job.result()
    except UncompletedJobError:  # ended by Slurm: its time was over, its node failed, it was cancelled
        outcome, error = None, f"its job {job.job_id} ended without an outcome ({job.state})"
    if error:
        job.paths.submitted_pickle.unlink(missing_ok=True)
    return outcome, error


def run_as_jobs(tasks: list[Task], jobs: int, request: SlurmRequest, done: Done) -> None:
    """
    Do each task as a job, `jobs` of them in Slurm's queue at a time. Calls done as each one ends.

    A job that an earlier command submitted from a task's folder is waited for, not submitted again: when this command
    is stopped or killed, its jobs go on, and the next one collects their outcomes.
    """
    import_project_from_anywhere()
    waiting, running = list(tasks), []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                task = waiting.pop(0)
                running.append((task, submitted(task.folder) or submit(task, request)))
            for task, job in list(running):
                if job.done():
                    running.remove((task, job))
                    done(task.what, *collect(job, task.folder))
            if running:
                time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        ids = " ".join(job.job_id for _, job in running)
        print_line(f"jobs      {len(running)} go on in Slurm, for the same command to collect; scancel {ids} ends them")
        raise


def call_on_node(request: SlurmRequest, parent: Path, function: Callable, *arguments: object) -> object:
    """
    function(*arguments), in a job: where the cards are. Raises UserError with what went wrong there.

    parent: the folder in which one is made for the job, which no other command uses.
    """
    folder = Path(parent, f"node-{os.getpid()}")
    shutil.rmtree(folder, ignore_errors=True)
    with writing(folder):
        folder.mkdir(parents=True)
    ended = []
    run_as_jobs([Task(folder.name, function, arguments, folder)], 1, request, lambda _, *found: ended.append(found))
    outcome, error = ended[0]
    if error:
        raise UserError(error)
    shutil.rmtree(folder)
    return outcome


def import_project_from_anywhere() -> None:
    """Let the jobs, which inherit this environment, import the project whatever the working directory is."""
    root, paths = str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if root not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, paths)])
