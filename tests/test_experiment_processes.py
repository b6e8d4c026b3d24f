"""Tasks on this machine, and how their mistakes come back."""

from experiment import processes
from experiment.processes import Task
from wiggle.errors import UserError


def test_errors_come_back_as_a_sentence():
    assert processes.outcome_or_error(lambda: 1 / 0, ()) == (None, "ZeroDivisionError: division by zero")

    def mistake():
        raise UserError("a sentence")

    assert processes.outcome_or_error(mistake, ()) == (None, "a sentence")
    assert processes.outcome_or_error(max, (1, 2)) == (2, None)


def test_tasks_of_one_process_are_done_in_their_order(tmp_path):
    ended = []
    tasks = [Task(name, max, (1, number), tmp_path / name) for name, number in (("a", 2), ("b", 3))]
    processes.run_here(tasks, lambda *outcome: ended.append(outcome))
    assert ended == [("a", 2, None), ("b", 3, None)]
