"""What a process of an experiment does, and how its mistakes come back."""

from experiment import workers
from wiggle.errors import UserError


def test_halves_of_validation_are_alternating_blocks():
    assert workers.half_of_windows(200, 64).tolist() == [0] * 64 + [1] * 64 + [0] * 64 + [1] * 8
    assert workers.half_of_windows(6, 3000).tolist() == [0, 1, 0, 1, 0, 1]  # a window of 3,000 is not cut at 4,096
    assert workers.half_of_windows(4, 10_000).tolist() == [0, 1, 0, 1]


def test_errors_come_back_as_a_sentence():
    assert workers.outcome_or_error(lambda: 1 / 0, ()) == (None, "ZeroDivisionError: division by zero")

    def mistake():
        raise UserError("a sentence")

    assert workers.outcome_or_error(mistake, ()) == (None, "a sentence")
    assert workers.outcome_or_error(max, (1, 2)) == (2, None)


def test_tasks_of_one_process_are_done_in_their_order(tmp_path):
    ended = []
    tasks = [(name, max, (1, number), tmp_path / name) for name, number in (("a", 2), ("b", 3))]
    workers.run_all(tasks, 0, 1, lambda *outcome: ended.append(outcome))
    assert ended == [("a", 2, None), ("b", 3, None)]
    assert (tmp_path / "b").is_dir()
