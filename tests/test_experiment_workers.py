"""What a process of an experiment does."""

from experiment import workers


def test_halves_of_validation_are_alternating_blocks():
    assert workers.half_of_windows(200, 64).tolist() == [0] * 64 + [1] * 64 + [0] * 64 + [1] * 8
    assert workers.half_of_windows(6, 3000).tolist() == [0, 1, 0, 1, 0, 1]  # a window of 3,000 is not cut at 4,096
    assert workers.half_of_windows(4, 10_000).tolist() == [0, 1, 0, 1]
