"""Settings: precedence, types, paths, --help, and one clear sentence for each mistake."""

import ast
import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from prepare_data import PrepareConfig
from sample_bio import SampleConfig
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
    text = "import time\n_n = 3\ndef twice(x):\n    return 2 * x\nmax_iters = twice(_n)\nlr_decay_iters = max_iters\n"
    config = load(file(text))
    assert config.max_iters == config.lr_decay_iters == 6


def test_a_config_file_knows_its_own_place_and_that_it_is_the_one_that_runs(file, tmp_path):
    text = """
from pathlib import Path
data_dir = Path(__file__).parent / "texts"
if __name__ == "__main__":
    max_iters = 3
"""
    config = load(file(text))
    assert config.data_dir == str(tmp_path / "texts") and config.max_iters == 3


def test_a_byte_order_mark_in_a_config_file_is_no_content(file):
    assert load(file("\ufeffn_layer = 3\n")).n_layer == 3


def test_a_config_file_may_come_from_a_pipe():
    code = "from wiggle.configurator import read_settings; from train import TrainConfig; import sys; "
    code += "print(read_settings(TrainConfig, sys.argv[1:]).n_layer)"
    command = [sys.executable, "-c", code, "/dev/stdin"]
    done = subprocess.run(command, input="n_layer = 5\n", capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "5\n", done.stderr


# --- paths ---


def test_a_tilde_in_a_path_is_the_home_folder_wherever_it_stands(file, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    file("data_dir = '~/texts'\n", "mine.py")
    config = load("~/mine.py", "--out_dir=~/run", "--mlp=~/n.py:A", "--init_from=~/ckpt.pt", "--wandb_run_name=~/run")
    assert (config.data_dir, config.out_dir) == (f"{tmp_path}/texts", f"{tmp_path}/run")
    assert (config.mlp, config.init_from) == (f"{tmp_path}/n.py:A", f"{tmp_path}/ckpt.pt")
    assert config.wandb_run_name == "~/run"  # no path
    assert configurator.read_settings(SampleConfig, ["--neuron=~/n.py:A"]).neuron == f"{tmp_path}/n.py:A"
    assert configurator.read_settings(PrepareConfig, ["~/a.txt"], positional="corpus").corpus == f"{tmp_path}/a.txt"


@pytest.mark.parametrize("argument", ["--out_dir=", "--data_dir= ", "--dataset=", "--init_from=", "--mlp="])
def test_an_empty_path_is_refused(file, argument):
    key, value = argument[2:].split("=")
    for words in ([argument], [file(f"{key} = {value!r}\n")]):
        with pytest.raises(UserError, match=rf"{key} = '{value}' names nothing: give a name or a path"):
            load(*words)


def test_a_folder_or_a_checkpoint_given_bare_is_told_its_flag(tmp_path):
    run = tmp_path / "my run"
    run.mkdir()
    (run / "ckpt.pt").touch()
    with pytest.raises(UserError, match=rf"is a folder, no config file: a run's folder is given as --out_dir='{run}'"):
        load(str(run))
    with pytest.raises(UserError, match=rf"is a checkpoint, no config file: give it as --init_from='{run}/ckpt.pt'"):
        load(str(run / "ckpt.pt"))


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
        ("xyzzy = 1\n", "unknown key 'xyzzy'; --help lists the keys, and names of a config file's own begin with _"),
        ("n_layer = '3'\n", "n_layer = '3': expected an int, got str"),
        ("n_layer = True\n", "n_layer = True: expected an int, got bool"),
        ("n_layer = \n", "line 1: SyntaxError"),
        ("x_y = 1\n\nn_layer = nothing\n", "line 3: NameError: name 'nothing' is not defined"),
        ("import sys\nsys.exit(3)\n", "line 2: SystemExit"),
        (b"\xe9", "config.py is not UTF-8 (byte 0): save it as UTF-8"),
        ("n_layer = 1\n".encode("utf-16"), "config.py is UTF-16: save it as UTF-8"),
        (b"n_layer = 1\x00", "config file"),
    ],
)
def test_a_wrong_config_file_is_one_sentence(file, text, message):
    with pytest.raises(UserError) as error:
        load(file(text))
    assert message in str(error.value) and "\n" not in str(error.value)


# --- help ---


@pytest.mark.parametrize("cls", [TrainConfig, SampleConfig, PrepareConfig])
def test_help_lists_every_key_once_with_its_default_and_reason(cls):
    lines = configurator.help_text(cls).splitlines()
    for field in cls.__dataclass_fields__.values():
        (line,) = (line for line in lines if line.startswith(f"  {field.name} = "))
        assert len(line.split("=", 1)[1].split(None, 1)) == 2, f"{field.name} has no reason"
        assert ast.literal_eval(re.search(r" = (.+?)  ", line)[1]) == field.default


@dataclasses.dataclass
class Base:
    # of what Choosy sets itself
    size: int = 3  # how large

    # of the base
    depth: int = 4  # how deep

    # a comment that heads no field
    SHARED = 5  # and one behind what is none


KINDS = ("a", "b")


@dataclasses.dataclass
class Choosy(Base):
    kind: Literal["a", "b"] = "a"  # which of {KINDS}
    long: str = (
        "b"  # what a formatter wraps
    )  # fmt: skip
    size: int | Literal["auto"] | None = None  # how large here
    # no field follows this comment


def test_help_says_what_a_choice_takes_and_heads_nothing_but_fields():
    lines = configurator.help_text(Choosy, "What it is.").splitlines()
    assert lines[:3] == ["What it is.", "", "keys (--key=value, or key = value in a config file):"]
    assert [" ".join(line.split()) for line in lines[3:]] == [
        "kind = \"a\" which of a, b ['a' or 'b']",
        'long = "b" what a formatter wraps',
        "size = None how large here [an int or 'auto' or None]",
        "",
        "of the base",
        "depth = 4 how deep",
    ]


def test_an_error_is_one_line_and_exit_code_1():
    done = subprocess.run([sys.executable, ROOT / "train.py", "--nonsense=1"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")
