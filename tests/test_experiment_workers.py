"""What a process of an experiment does."""

from experiment import workers


def test_halves_of_validation_are_alternating_blocks():
    assert workers.half_of_windows(200, 64).tolist() == [0] * 64 + [1] * 64 + [0] * 64 + [1] * 8
    assert workers.half_of_windows(6, 3000).tolist() == [0, 1, 0, 1, 0, 1]  # a window of 3,000 is not cut at 4,096
    assert workers.half_of_windows(4, 10_000).tolist() == [0, 1, 0, 1]


def test_the_event_rate_of_a_run_is_the_mean_of_its_last_half_by_layer():
    lines = [{"step": step, "event_rate": [step / 10, 0.5]} for step in (2, 5, 6, 10)] + [{"step": 10, "val_loss": 2.0}]
    assert workers.late_event_rate(lines, 10) == [0.8, 0.5]
    assert workers.late_event_rate([{"step": 10, "event_rate": None}], 10) is None
