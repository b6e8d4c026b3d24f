"""Tasks of an experiment done on this machine: in this process, or each in one of its own, several at a time."""

import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple

import torch

from wiggle.errors import UserError


class Task(NamedTuple):
    """A call that is to be made. what: names it to Done; folder: for its log and files, which exists."""

    what: object
    function: Callable
    arguments: tuple
    folder: Path


Done = Callable[[object, object, str | None], None]  # called with a task's `what`, its outcome, its error in a sentence


def outcome_or_error(function: Callable, arguments: tuple) -> tuple[object, str | None]:
    """Call the function -> (outcome, None), or (None, a sentence that says what went wrong)."""
    try:
        return function(*arguments), None
    except UserError as error:
        return None, str(error)
    except Exception as error:
        traceback.print_exc()
        return None, f"{type(error).__name__}: {error}"


def logged_outcome(function: Callable, arguments: tuple, folder: Path, threads: int) -> tuple[object, str | None]:
    """`outcome_or_error` in a process that is there for it alone. What it prints goes to folder/log."""
    torch.set_num_threads(threads)
    with open(Path(folder, "log"), "w", buffering=1, encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        return outcome_or_error(function, arguments)


def child_process(function: Callable, arguments: tuple, folder: Path, threads: int, sender: Connection) -> None:
    """The life of a child process: send what `logged_outcome` gives."""
    parent = multiprocessing.parent_process().sentinel
    threading.Thread(target=lambda: wait([parent]) and os._exit(1), daemon=True).start()  # die with the parent
    sender.send(logged_outcome(function, arguments, folder, threads))


def run_here(tasks: list[Task], done: Done) -> None:
    """Do the tasks one after another in this process. Calls done as each one ends."""
    for what, function, arguments, _ in tasks:
        done(what, *outcome_or_error(function, arguments))


def run_in_processes(tasks: list[Task], jobs: int, threads: int, done: Done) -> None:
    """
    Do each task in a process of its own with so many threads, `jobs` at a time. Calls done as each one ends.

    Processes are spawned: CUDA does not survive a fork.
    """
    context, waiting, running = multiprocessing.get_context("spawn"), list(tasks), {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                what, function, arguments, folder = waiting.pop(0)
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=child_process, args=(function, arguments, folder, threads, sender))
                process.start()
                sender.close()
                running[receiver] = what, process
            for receiver in wait(list(running)):
                what, process = running[receiver]
                try:
                    outcome, error = receiver.recv()
                except EOFError:  # killed, perhaps for want of memory
                    outcome, error = None, "its process was killed"
                process.join()
                del running[receiver]
                done(what, outcome, error)
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.join(10)
            process.kill()
