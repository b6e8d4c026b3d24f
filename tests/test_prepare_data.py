"""prepare_data.py: what it prints, the command that it suggests, and that a mistake is one sentence."""

import io
import shlex
import sys

import pytest

import prepare_data
from wiggle.configurator import read_settings
from wiggle.dataset import Dataset
from wiggle.train_config import TrainConfig

VERSE = "".join(f"{i}: the moon, a {i * i} times broken mirror\n" for i in range(100))


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """run(argument, ...) -> (exit code, standard output, standard error) of prepare_data.py in a folder with a text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "verse.txt").write_text(VERSE, encoding="utf-8", newline="")

    def main(*arguments):
        monkeypatch.setattr(sys, "argv", ["prepare_data.py", *map(str, arguments)])
        code = 0
        try:
            prepare_data.main()
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return main


def test_it_says_what_it_made(tmp_path, run):
    code, said, _ = run("verse.txt", f"--data_dir={tmp_path / 'd'}", "--name=n", "--tokenizer=byte")
    cut = int(len(VERSE) * 0.9)
    assert code == 0 and f"{cut:,} to train on, {len(VERSE) - cut:,} to validate" in said and "256 (byte)" in said
    assert sorted(path.name for path in (tmp_path / "d" / "n").iterdir()) == ["meta.json", "train.bin", "val.bin"]


def test_files_are_streamed_whatever_their_size(tmp_path, run):
    (tmp_path / "verses").mkdir()
    for number in range(60):
        (tmp_path / "verses" / f"{number}.txt").write_text(f"{number}: {VERSE}")
    code, said, _ = run("--files=verses", "--tokenizer=byte", "--val_fraction=0.3", "--data_dir=d")
    assert code == 0 and "data     d/verses: 60 files of verses" in said
    code, said, _ = run("--files=verses", "--tokenizer=byte", "--val_fraction=0.3", "--data_dir=d")
    assert code == 0 and "d/verses is finished already" in said and "next     python train.py" in said


@pytest.mark.parametrize("has_card", [False, True])
@pytest.mark.parametrize("tokens", [2, 3, 40, 65, 2000, 100_000_000])
@pytest.mark.parametrize("kind", ["char", "gpt2"])
def test_the_suggested_command_fits_the_data_and_the_machine(tmp_path, kind, tokens, has_card):
    folder = tmp_path / "my data" / "it's"
    folder.mkdir(parents=True)
    identity = {"char": {"kind": "char", "characters": "ab"}, "gpt2": {"kind": "gpt2", "vocab_size": 50257}}[kind]
    for part in ("train", "val"):
        (folder / f"{part}.bin").write_bytes(bytes(2 * min(tokens, 2000)))
    meta = {"tokenizer": identity, "dtype": "uint16", "train_tokens": tokens, "val_tokens": min(tokens, 2000)}
    python, script, *words = shlex.split(prepare_data.training_command(folder, meta, has_card))
    config = read_settings(TrainConfig, words)
    assert (python, script) == ("python", "train.py") and config.out_dir == "out/it's"
    assert (config.dataset, config.data_dir) == ("it's", str(tmp_path / "my data"))
    assert config.block_size < min(tokens, 2000) and (config.max_iters < 10_000 or tokens > 2000)
    assert has_card or (config.n_layer <= 4 and config.batch_size != "auto")  # a CPU's size
    assert (config.init_from == "gpt2") == (has_card and kind == "gpt2" and tokens < 100_000_000)
    Dataset(folder, config.block_size, 1)


def test_python_packages_have_a_config_of_their_own_on_a_cpu(tmp_path):
    meta = {"tokenizer": {"kind": "gpt2"}, "train_tokens": 10**8, "val_tokens": 10**6, "place": "python_packages"}
    command = prepare_data.training_command(tmp_path.relative_to(tmp_path) / "data" / "python_packages", meta, False)
    assert command == "python train.py config/config_python_cpu.py"


def test_the_suggested_command_repeats_no_default(run):
    _, said, _ = run("verse.txt", "--name=shakespeare_works")
    assert said.splitlines()[-1] in (
        "next     python train.py config/quickstart.py",
        "next     python train.py config/config_shakespeare_bio_3070.py",
    )


def test_a_vocabulary_that_is_slow_without_a_card_is_noted(run, monkeypatch, toy_gpt2):
    monkeypatch.setattr(prepare_data, "pick_device", lambda name: type("Device", (), {"type": "cpu"}))
    assert "8 times the computation" in run("verse.txt", "--tokenizer=gpt2")[1]
    assert "8 times the computation" not in run("verse.txt", "--tokenizer=char")[1]


def test_force_replaces_another_text(tmp_path, run):
    (tmp_path / "verse.md").write_text(VERSE.upper(), encoding="utf-8")
    assert run("verse.txt")[0] == 0
    code, _, said = run("verse.md")
    assert code == 1 and said.startswith("error: data/verse holds another text") and said.count("\n") == 1
    assert run("verse.md", "--force")[0] == 0


def test_standard_input_goes_by_a_dash(run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(VERSE.encode())))
    code, said, _ = run("-")
    assert code == 0 and "data/stdin: standard input" in said


def test_paths_may_begin_with_the_home_folder(tmp_path, run, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert run("~/verse.txt", "--data_dir=~/my data")[0] == 0
    assert (tmp_path / "my data" / "verse" / "train.bin").exists() and not (tmp_path / "~").exists()


def test_names_that_the_console_cannot_print_do_not_stop_it(tmp_path, run, monkeypatch):
    (tmp_path / "größe 中.txt").write_text(VERSE, encoding="utf-8")
    console = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", console)
    assert run("größe 中.txt")[0] == 0
    console.flush()
    assert rb"gr\xf6\xdfe \u4e2d" in console.buffer.getvalue()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "'' is no corpus"),
        (["shakespear_works"], "did you mean 'shakespeare_works'?"),
        (["no/such.txt"], "no file or folder; give one of them"),
        (["verse.txt/x"], "no file or folder; give one of them"),
        (["x" * 5000], "is no corpus"),
        (["shakespeare_char", "--tokenizer=gpt2"], "shakespeare_char has tokenizer=char"),
        (["shakespeare", "--tokenizer=char"], "shakespeare has tokenizer=gpt2"),
        (["shakespeare", "--val_fraction=0.2"], "val_fraction=0.1: for others"),
        (["shakespeare_char", "--input=no.txt"], "cannot read no.txt"),
        (["shakespeare_char", "--input=."], "cannot read ."),
        (["verse.txt", "--input=verse.txt"], "--input goes with the name of a corpus"),
        (["verse.txt", "--tokenizer=word"], "expected 'char' or 'byte' or 'gpt2'"),
        (["verse.txt", "--val_fraction=1"], "expected a share between 0 and 1"),
        (["verse.txt", "--val_fraction=nan"], "val_fraction"),
        (["verse.txt", "--val_fraction=0.0001"], "too short to fill val.bin"),
        (["verse.txt", "--name=../up"], "no name for a dataset's folder"),
        (["verse.txt", "--name="], "name = '' names nothing"),
        (["verse.txt", "--name=a\nb"], "no name for a dataset's folder"),
        (["verse.txt", "--name=.."], "no name for a dataset's folder"),
        (["verse.txt", "--data_dir=verse.txt"], "cannot write"),
        (["verse.txt", "--data_dir="], "data_dir = '' names nothing"),
        (["empty.txt"], "empty.txt is too short to fill train.bin (0 characters)"),
        (["a.txt"], "a.txt is too short to fill train.bin (1 characters)"),
        (["latin.txt"], "latin.txt is not text in UTF-8: byte 3 does not fit"),
        (["nothing"], "holds no text in UTF-8"),
        (["openwebtex"], "did you mean 'openwebtext'?"),
        (["verse.txt", "--max_docs=5"], "--max_docs goes with large corpora: give your text as --files=verse.txt"),
        (["verse.txt", "--hf=a/b"], "corpus and hf name a corpus each"),
        (["--files=verse.txt", "--input=verse.txt"], "--input goes with a Shakespeare corpus"),
        (["--files=verse.txt", "--tokenizer=char"], "char needs the whole text in memory"),
        (["--files=verse.txt", "--val_fraction=0"], "expected a share between 0 and 1"),
        (["--files=*.tex"], "matches no file"),
    ],
)
def test_mistakes_are_one_sentence_and_write_nothing(tmp_path, run, arguments, message):
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "a.txt").write_bytes(b"a")
    (tmp_path / "latin.txt").write_bytes("café, crème".encode("latin-1"))
    (tmp_path / "nothing").mkdir()
    before = sorted(tmp_path.rglob("*"))
    code, _, said = run(*arguments)
    assert code == 1 and said.startswith("error: ") and said.count("\n") == 1 and message in said
    assert sorted(tmp_path.rglob("*")) == before
