"""Where the tasks of a study are done: in this process, in processes of this machine, or as jobs of a cluster."""

import functools
from collections.abc import Callable

from experiment import cluster
from experiment.processes import Done, Task, run_here, run_in_processes
from experiment.study import Study
from wiggle.device import without_context
from wiggle.files import writing


def on_machine(study: Study) -> Callable:
    """A function that calls another, given with its arguments, on the machine that the runs have."""
    if study.slurm:
        return functools.partial(cluster.call_on_node, study.slurm, study.out_dir / "running")
    return without_context


def run_all(study: Study, tasks: list[Task], done: Done) -> None:
    """Do the tasks as the study's --executor and --jobs say. Calls done(what, outcome, error) as each one ends."""
    jobs = study.options.jobs
    for task in tasks:
        with writing(task.folder):
            task.folder.mkdir(parents=True, exist_ok=True)
    if study.slurm:
        cluster.run_as_jobs(tasks, jobs, study.slurm, done)
    elif jobs == 0:
        run_here(tasks, done)
    else:
        run_in_processes(tasks, jobs, study.threads, done)
