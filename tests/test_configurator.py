"""Settings: precedence, types, and one clear sentence for each mistake."""

import subprocess
import sys
from pathlib import Path

import pytest

from train import TrainConfig
from wiggle import configurator
from wiggle.errors import UserError

ROOT = Path(__file__).parents[1]


def load(*argv):
    return configurator.read_settings(TrainConfig, list(argv))


@pytest.fixture
def file(tmp_path):
    def write(text, name="config.py"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def test_precedence_is_defaults_then_files_then_flags_in_order(file):
    first = file("n_layer = 3\nbatch_size = 5\nmax_iters = 7\n", "a.py")
    second = file("batch_size = 6\nmax_iters = 8\n", "b.py")
    config = load("--max_iters=9", first, second, "--max_iters=10")
    assert (config.n_layer, config.batch_size, config.max_iters, config.n_head) == (3, 6, 10, 12)


def test_flags_are_typed():
    config = load(
        "--learning_rate=1", "--eval_only", "--compile=false", "--dataset=12", "--device", "cpu", "--min_lr=None"
    )
    assert config.learning_rate == 1.0 and type(config.learning_rate) is float
    assert config.eval_only is True and config.compile is False and config.dataset == "12" and config.device == "cpu"
    assert load("--compile=auto").compile == "auto" and load("--tokens_per_step=12288").tokens_per_step == 12288
    assert load("--wandb_run_name=a=b").wandb_run_name == "a=b"


def test_a_config_file_may_compute(file):
    config = load(
        file(
            "import time\n_n = 3\ndef twice(x):\n    return 2 * x\nmax_iters = twice(_n)\nlr_decay_iters = max_iters\n"
        )
    )
    assert config.max_iters == config.lr_decay_iters == 6


def test_historic_spellings_the_last_assignment_wins(file):
    path = file("use_bio_mlp = True\n")
    assert load(path).mlp == "bio"
    assert load(path, "--use_bio_mlp=False").mlp == "gelu"
    assert load(path, "--mlp=relu").mlp == "relu"
    assert load("--mlp=relu", "--use_bio_mlp=True").mlp == "bio"
    assert load(file("mlp = 'relu'\nuse_bio_mlp = True\nmlp = 'silu'\n")).mlp == "silu"
    assert load("--use_rope=True").position == "rope"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--learning_rat=1", "unknown key 'learning_rat'; did you mean 'learning_rate'?"),
        ("--batch_size=two", "batch_size = 'two': expected an int or 'auto', got str"),
        ("--batch_size=1.0", "batch_size = 1.0: expected an int or 'auto', got float"),
        ("--batch_size=True", "batch_size = True: expected an int or 'auto', got bool"),
        ("--eval_only=1", "eval_only = 1: expected True or False, got int"),
        ("--lr_schedule=linear", "lr_schedule = 'linear': expected 'cosine' or 'wsd' or 'constant', got str"),
        ("--compile=perhaps", "compile = 'perhaps': expected True or False or 'auto', got str"),
        ("--batch_size", "--batch_size needs a value"),
        ("--learning_rate=nan", "learning_rate = 'nan': expected a float"),
        ("--learning_rate=1e999", "learning_rate=inf must be above 0"),
        ("--n_head=5", "n_head=5 does not divide n_embd=768"),
        ("--batch_size=-1", "batch_size=-1 must be above 0"),
        (
            "--tokens_per_step=1000",
            "tokens_per_step=1000 is no multiple of batch_size x block_size = 12 x 1024 = 12288",
        ),
        ("nowhere.py", "config file 'nowhere.py' does not exist"),
        ("--" + "9" * 5000 + "=1", "unknown key"),
        ("--batch_size=" + "9" * 5000, "batch_size"),
        ("--batch_size=" + "(" * 5000, "batch_size"),
    ],
)
def test_a_wrong_argument_is_one_sentence(argument, message):
    with pytest.raises(UserError) as error:
        load(argument)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat = 1\n", "unknown key 'learning_rat'; did you mean 'learning_rate'?"),
        ("n_layer = '3'\n", "n_layer = '3': expected an int, got str"),
        ("n_layer = True\n", "n_layer = True: expected an int, got bool"),
        ("n_layer = \n", "line 1: SyntaxError"),
        ("x_y = 1\n\nn_layer = nothing\n", "line 3: NameError: name 'nothing' is not defined"),
        ("import sys\nsys.exit(3)\n", "line 2: SystemExit"),
        (b"\xff\xfe", "is not text in UTF-8"),
        (b"n_layer = 1\x00", "config file"),
    ],
)
def test_a_wrong_config_file_is_one_sentence(file, text, message):
    with pytest.raises(UserError) as error:
        load(file(text))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_contradictory_settings_are_refused_by_name():
    for argv, words in (
        (["--decay_lr=False", "--lr_schedule=wsd"], ("decay_lr", "lr_schedule")),
        (
            ["--tokens_per_step=24576", "--gradient_accumulation_steps=3"],
            ("gradient_accumulation_steps", "tokens_per_step"),
        ),
    ):
        with pytest.raises(UserError) as error:
            load(*argv)
        assert all(word in str(error.value) for word in words)
    assert load("--tokens_per_step=24576").micro_batches == 2
    assert load().micro_batches == 40  # nanoGPT's 5 * 8


def test_help_lists_every_key_with_its_default_and_reason():
    text = configurator.help_text(TrainConfig)
    for field in TrainConfig.__dataclass_fields__.values():
        line = next(line for line in text.splitlines() if line.startswith(f"  {field.name} = "))
        assert len(line.split("=", 1)[1].split(None, 1)) == 2, f"{field.name} has no reason"
    assert "bias = False" in text and "bias = True" not in text  # TrainConfig's own default


def test_an_error_is_one_line_and_exit_code_1():
    done = subprocess.run([sys.executable, ROOT / "train.py", "--nonsense=1"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")


def test_learning_rates():
    config = load("--learning_rate=1.0", "--min_lr=0.1", "--warmup_iters=10", "--max_iters=110")
    assert config.learning_rate_at(0) == pytest.approx(1 / 11) and config.learning_rate_at(9) == pytest.approx(10 / 11)
    assert config.learning_rate_at(10) == 1.0 and config.learning_rate_at(60) == pytest.approx(0.55)
    assert config.learning_rate_at(110) == config.learning_rate_at(500) == 0.1
    wsd = load(
        "--learning_rate=1.0", "--lr_schedule=wsd", "--warmup_iters=10", "--max_iters=100", "--decay_fraction=0.2"
    )
    assert [wsd.learning_rate_at(s) for s in (10, 50, 80)] == [1.0] * 3
    assert wsd.learning_rate_at(90) == pytest.approx(0.55) and wsd.learning_rate_at(100) == pytest.approx(0.1)
    for constant in (load("--lr_schedule=constant"), load("--decay_lr=False")):
        assert constant.learning_rate_at(2000) == constant.learning_rate_at(10**6) == constant.learning_rate
