"""What an evaluation reports."""

import math

import pytest

from train import train
from wiggle.evaluation import bits_per_byte


def test_bits_per_byte_of_a_model_that_guesses_bytes_at_random_is_eight():
    assert bits_per_byte(math.log(256), tokens=1000, text_bytes=1000) == pytest.approx(8)


def test_bits_per_byte_do_not_depend_on_how_a_text_is_cut_into_tokens():
    nats = 5000.0  # that a model needs for a text of 2,000 bytes, whatever its tokens
    assert bits_per_byte(nats / 400, 400, 2000) == pytest.approx(bits_per_byte(nats / 1000, 1000, 2000))


def test_a_run_reports_bits_per_byte_where_the_bytes_are_known(tiny, capsys):
    result = train(tiny())
    assert result.val_bpb == pytest.approx(result.val_loss / math.log(2))  # a byte a character
    assert f"{result.val_bpb:.4f} bits a byte" in capsys.readouterr().out
    assert result.history[-1]["val_bpb"] == result.val_bpb
