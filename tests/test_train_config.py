"""The settings of a training run: the batch, the learning rate's schedule, and what contradicts itself."""

from dataclasses import replace
from pathlib import Path

import pytest

from train import TrainConfig, train
from wiggle.configurator import read_settings
from wiggle.errors import UserError

ROOT = Path(__file__).parents[1]
AUTO = {"batch_size": "auto", "gradient_accumulation_steps": None, "tokens_per_step": 128}  # 8 sequences of 16


def settings(*flags):
    return read_settings(TrainConfig, flags)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("--decay_lr=False", "--lr_schedule=wsd"),
        ("--tokens_per_step=24576", "--gradient_accumulation_steps=3"),
        ("--min_lr=1e-3", "--learning_rate=6e-4"),
    ],
)
def test_settings_that_contradict_each_other_are_both_named(first, second):
    with pytest.raises(UserError) as error:
        settings(first, second)
    assert all(flag[2:].split("=")[0] in str(error.value) for flag in (first, second))


# --- the batch ---


def test_a_step_is_counted_in_micro_batches_or_in_tokens():
    assert settings("--tokens_per_step=24576").micro_batches == 2
    assert settings().micro_batches == 40  # nanoGPT's 5 * 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens_per_step": None}, "batch_size='auto' needs tokens_per_step"),
        ({"gradient_accumulation_steps": 2}, "no gradient_accumulation_steps beside it"),
        ({"tokens_per_step": 100}, "tokens_per_step=100 is no multiple of batch_size x block_size = 1 x 16 = 16"),
        ({"tokens_per_step": 0}, "tokens_per_step=0 must be above 0"),
    ],
)
def test_auto_says_what_it_needs(tiny, changes, message):
    with pytest.raises(ValueError, match=message):
        tiny(**AUTO | changes)


def test_auto_counts_sequences_before_it_is_measured(tiny):
    config = tiny(**AUTO)
    assert (config.sequences_per_step, config.micro_batches) == (8, 8)
    assert replace(config, batch_size=2).micro_batches == 4
    assert settings("--batch_size=auto", "--tokens_per_step=2048").batch_size == "auto"


@pytest.mark.parametrize("name", ["config_small_bio_3070", "config_gpt2_bio_3070"])
def test_the_3070s_configs_keep_historys_step(name):
    config = settings(str(ROOT / "config" / f"{name}.py"))
    assert config.batch_size == "auto" and config.sequences_per_step * config.block_size == 2 * 16 * 1024
    assert settings(str(ROOT / "config" / f"{name}.py"), "--batch_size=2").micro_batches == 16


# --- the learning rate ---


def test_the_rate_rises_linearly_then_falls_as_a_cosine():
    config = settings("--learning_rate=1.0", "--min_lr=0.1", "--warmup_iters=10", "--max_iters=110")
    assert config.learning_rate_at(0) == pytest.approx(1 / 11) and config.learning_rate_at(9) == pytest.approx(10 / 11)
    assert config.learning_rate_at(10) == 1.0 and config.learning_rate_at(60) == pytest.approx(0.55)
    assert config.learning_rate_at(110) == config.learning_rate_at(500) == 0.1


def test_wsd_stays_at_the_top_then_falls_linearly():
    flags = ("--lr_schedule=wsd", "--warmup_iters=10", "--max_iters=100", "--decay_fraction=0.2")
    wsd = settings("--learning_rate=1.0", *flags)
    assert [wsd.learning_rate_at(s) for s in (10, 50, 80)] == [1.0] * 3
    assert wsd.learning_rate_at(90) == pytest.approx(0.55) and wsd.learning_rate_at(100) == pytest.approx(0.1)


@pytest.mark.parametrize("flag", ["--lr_schedule=constant", "--decay_lr=False"])
def test_a_constant_rate_stays_and_reads_no_min_lr(flag):
    constant = settings(flag, "--learning_rate=3e-5", "--min_lr=6e-5")  # as nanoGPT's finetuning leaves its default
    assert constant.learning_rate_at(2000) == constant.learning_rate_at(10**6) == 3e-5


@pytest.mark.parametrize("flag", ["--lr_schedule=cosine", "--lr_schedule=wsd"])
def test_a_min_lr_above_the_learning_rate_is_refused(flag):
    sentence = "min_lr=6e-05 is above learning_rate=3e-05, so the rate would rise where it is to decay: lower min_lr"
    with pytest.raises(UserError, match=sentence):
        settings(flag, "--learning_rate=3e-5", "--min_lr=6e-5")
    assert settings(flag, "--learning_rate=3e-5", "--min_lr=3e-5").learning_rate_at(10**9) == 3e-5


@pytest.mark.parametrize(
    ("flags", "note"),
    [
        (["--max_iters=20"], "warmup_iters=2000 is not below max_iters=20: the rise ends at 1 % of learning_rate; "
                             "--warmup_iters=1 would reach it in a twentieth of the steps"),
        (["--max_iters=2000"], "warmup_iters=2000 is not below max_iters=2000: the rise ends at 100 %"),
        (["--max_iters=9000", "--lr_decay_iters=400"], "warmup_iters=2000 is not below lr_decay_iters=400"),
        (["--max_iters=2001"], None),
        (["--max_iters=20", "--warmup_iters=0"], None),
        (["--max_iters=9000", "--lr_decay_iters=400", "--decay_lr=False"], None),
    ],
)  # fmt: skip
def test_a_warm_up_that_never_ends_is_noted(flags, note):
    found = settings(*flags).notes()
    assert len(found) == (note is not None) and all(sentence.startswith(note) for sentence in found)


def test_a_run_prints_the_notes_on_its_settings(tiny, capsys):
    train(tiny(warmup_iters=200))
    assert "note      warmup_iters=200 is not below max_iters=6" in capsys.readouterr().out
