"""analyze_bio.py as one calls it: what it writes and says, what it compares with, what it refuses and leaves alone."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

import analyze_bio
from analyze_bio import beta_history
from model_bio import GPT, GPTConfig, model_args
from tests.conftest import TINY
from train import TrainConfig, train
from wiggle import checkpoint
from wiggle.analysis import State
from wiggle.custom_neuron import load_neuron
from wiggle.errors import UserError

KINDS = {
    "feature": {"mlp": "bio"},
    "none": {"mlp": "bio", "bio_gate": "none"},
    "dendritic": {"mlp": "dendritic", "dendritic_beta": "channel"},
    "gelu": {"mlp": "gelu"},
    "relu2": {"mlp": "relu2"},
}
NEURONS = """
import torch
from torch import nn
from model_bio import OscillatingNeuron

class Enveloped(OscillatingNeuron):
    def forward(self, x):
        return torch.sin(self.omega * x + self.phi) * torch.sigmoid(x)

class Plain(nn.Module):
    def __init__(self, features):
        super().__init__()

    def forward(self, x):
        return x.relu()
"""


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory):
    """runs[kind]: the folder of a run of a few steps."""
    folder = tmp_path_factory.mktemp("runs")
    same = TINY | {"data_dir": str(corpus), "max_blowup": None, "log_interval": 1}
    return {
        kind: train(TrainConfig(**same | {"out_dir": str(folder / kind)} | changes)).out_dir
        for kind, changes in KINDS.items()
    }


class NoPicture:
    """In place of a page, which takes a second to draw."""

    def savefig(self, file, format):
        file.write(b"no picture")


@pytest.fixture
def analyse(corpus, tmp_path, monkeypatch):
    """analyse(path, key=value, ...) -> analysis.json; without the picture, unless draw=True."""

    def run(path, draw=False, **flags):
        flags = {"out_dir": path, "to": tmp_path / "to", "data_dir": corpus, "device": "cpu"} | flags
        with monkeypatch.context() as patched:
            if not draw:
                patched.setattr(analyze_bio, "draw_page", lambda *arguments: NoPicture())
            analyze_bio.main([f"--{key}={value}" for key, value in flags.items()])
        return json.loads(Path(flags["to"], "analysis.json").read_text())

    return run


@pytest.fixture
def refused(analyse, capsys):
    """refused(path, key=value, ...) -> the one line that analyze_bio.py ends with."""

    def run(path, **flags):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            analyse(path, **flags)
        error = capsys.readouterr().err
        assert stop.value.code == 1 and error.startswith("error: ") and error.count("\n") == 1
        return error

    return run


def rewritten(run, path, change=lambda weights: None, **entries):
    """A copy of a run's checkpoint whose weights went through `change`, with other entries."""
    content = checkpoint.read(Path(run, "best.pt"))
    change(content["model"])
    checkpoint.save(path, content | entries)
    return path


@pytest.mark.parametrize("kind", ["feature", "relu2", "dendritic"])
@pytest.mark.slow
def test_a_run_gives_a_page_and_figures_and_stays_as_it_is(runs, analyse, capsys, kind):
    before = {path: hashlib.sha256(path.read_bytes()).digest() for path in Path(runs[kind]).iterdir()}
    figures = analyse(runs[kind], draw=True, to=runs[kind])
    page = Path(runs[kind], "analysis.png")
    assert page.read_bytes().startswith(b"\x89PNG\r\n\x1a\n") and page.stat().st_size > 30_000
    now = {path: hashlib.sha256(path.read_bytes()).digest() for path in Path(runs[kind]).iterdir()}
    assert before.items() <= now.items() and len(now) == len(before) + 2
    assert (figures["step"], figures["before"], len(figures["layers"])) == (6, "untrained, seed 1337", 2)
    printed = capsys.readouterr().out
    assert all(line in printed for line in figures["findings"]) and "note" not in printed
    for path in (page, page.with_suffix(".json")):
        path.unlink()


def test_the_untrained_network_is_the_one_that_training_began_with(runs, analyse):
    """And the figures are those of the weights in the checkpoint."""
    figures = analyse(runs["none"], tokens=320)
    assert figures["tokens"] == 320
    trained, _ = checkpoint.load_model(runs["none"])
    for name, model in (("before", GPT(trained.config, seed=1337)), ("now", trained)):
        for block, layer in zip(model.transformer.h, figures["layers"], strict=True):
            omega = block.mlp.oscillating.omega.detach().numpy()
            assert layer[name]["neurons"]["oscillating"]["omega"]["q50"] == pytest.approx(np.median(omega), rel=1e-4)


def test_any_activation_is_analysed_and_the_work_is_told_where_units_are_silent(runs, analyse, capsys):
    gelu, relu2, gated = (analyse(runs[kind]) for kind in ("gelu", "relu2", "feature"))
    printed = capsys.readouterr().out
    for figures in (gelu, relu2, gated):
        for layer in figures["layers"]:
            assert 0.05 < layer["before"]["preactivation_std"] < 0.11  # 0.02·√16
            assert 0 < layer["now"]["nonlinear_share"] < 1
    assert gelu["work_a_token"] is None
    work, matrices = relu2["work_a_token"], 2 * 2 * 16 * 64
    rate = np.mean([layer["now"]["event_rate"]["mean"] for layer in relu2["layers"]])
    assert work["multiply_adds"] == matrices and work["bytes"] == 4 * matrices
    assert work["multiply_adds_left"] == pytest.approx(matrices * (1 + rate) / 2, abs=1)
    assert "without c_proj's rows of silent units" in printed
    assert gated["work_a_token"]["bytes_left"] == gated["work_a_token"]["bytes"]
    assert "silent features of a soft gate still add to the output" in printed


def test_a_model_by_its_name_wants_a_folder_for_the_page(tmp_path):
    assert analyze_bio.folder_of(analyze_bio.AnalyzeConfig(to="there"), Path("gpt2")) == Path("there")
    assert analyze_bio.folder_of(analyze_bio.AnalyzeConfig(), tmp_path) == tmp_path
    with pytest.raises(UserError, match="name one for the page with --to"):
        analyze_bio.folder_of(analyze_bio.AnalyzeConfig(), Path("gpt2"))


def test_before_may_be_a_checkpoint(runs, analyse):
    figures = analyse(runs["none"], before=runs["none"])
    assert figures["before"].endswith("best.pt, step 6")
    for layer in figures["layers"]:
        assert layer["before"]["neurons"]["oscillating"]["omega"] == layer["now"]["neurons"]["oscillating"]["omega"]
        moved = layer["now"]["neurons"]["oscillating"]["omega_moved"]
        assert moved["mean_abs"] == 0 and moved["correlation"] == pytest.approx(1)


def test_beta_is_read_from_the_lines_of_metrics_that_are_whole(tmp_path):
    layers = [{state: State({"beta": np.full(3, beta)}, {}) for state, beta in (("before", 1.0), ("now", 1.5))}] * 2
    ends = [(0, [1.0, 1.0]), (6, [1.5, 1.5])]
    path = tmp_path / "best.pt"
    assert beta_history(path, layers, 0, 6) == ends
    lines = ['{"step": 1, "beta": [1.1, 1.2]}', '{"step": 2, "loss": 3}', '{"step": 3, "beta": [1.3]}', "7", "null"]
    lines += ['{"step": 4, "beta": [1.3, 1.4]}', '{"step": 8, "beta": [9, 9]}', '{"step": 5, "be']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert beta_history(path, layers, 0, 6) == [ends[0], (1, [1.1, 1.2]), (4, [1.3, 1.4]), ends[1]]


def test_a_start_that_cannot_be_drawn_again_is_told(runs, analyse, tmp_path, capsys):
    path = rewritten(runs["none"], tmp_path / "seedless.pt", config={"dataset": "tiny"})
    assert analyse(path)["before"] == "untrained, seed 0"
    assert "note      seed 0 draws an untrained network, but not the one" in capsys.readouterr().out
    assert analyse(runs["none"], seed=7)["before"] == "untrained, seed 7"
    assert "note      seed 7 draws" in capsys.readouterr().out


def test_a_neuron_of_ones_own_is_shown(analyse, tmp_path):
    (tmp_path / "mine.py").write_text(NEURONS)
    found = {}
    for name in ("Enveloped", "Plain"):
        mlp = f"{tmp_path / 'mine.py'}:{name}"
        neuron = load_neuron(mlp)
        model = GPT(GPTConfig(block_size=16, vocab_size=10, n_layer=2, n_head=2, n_embd=16, mlp=mlp), neuron, seed=3)
        content = {"model": model.state_dict(), "model_args": model_args(model.config), "config": {"dataset": "tiny"}}
        checkpoint.save(tmp_path / f"{name}.pt", content | {"neuron_sha256": neuron.sha256})
        found[name] = analyse(tmp_path / f"{name}.pt", neuron=mlp, seed=3)
    oscillates, plain = (found[name]["layers"][0]["now"] for name in ("Enveloped", "Plain"))
    assert set(oscillates["neurons"]) == {"neuron"} and found["Enveloped"]["val_loss"] is None
    assert "neurons" not in plain and plain["silence"] == "zeros" and plain["learned"] == {}


def test_a_loss_that_no_checkpoint_holds_is_not_in_the_title(runs, analyse, tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(analyze_bio, "draw_page", lambda title, *rest: titles.append(title) or NoPicture())
    for path in (runs["none"], rewritten(runs["none"], tmp_path / "lossless.pt", best_val_loss=float("nan"))):
        analyse(path, draw=True)
    assert titles[0].startswith("none, step 6, validation loss 2.") and titles[1] == f"{tmp_path.name}, step 6"


def test_what_cannot_be_analysed_is_one_sentence_and_leaves_nothing_behind(runs, refused, tmp_path):
    def overflow(weights):
        weights["transformer.h.0.mlp.c_proj.weight"].mul_(1e38)

    other = rewritten(runs["none"], tmp_path / "other.pt", tokenizer={"kind": "byte", "vocab_size": 256})
    diverged = rewritten(runs["none"], tmp_path / "inf.pt", lambda weights: weights["lm_head.weight"].div_(0))
    homeless = rewritten(runs["none"], tmp_path / "homeless.pt", config={})
    (tmp_path / "file").write_text("mine")
    for path, flags, message in (
        (runs["none"], {"before": runs["feature"]}, "is another network (bio, oscillation + feature gate"),
        (runs["relu2"], {"before": runs["gelu"]}, "is another network (gelu: 2 layers"),
        (runs["none"], {"dataset": "nowhere"}, "nowhere/train.bin is missing: python prepare_data.py"),
        (other, {}, "tiny has another vocabulary than"),
        (diverged, {}, "is not finite: the run that wrote it diverged"),
        (homeless, {}, "does not say what it was trained on: name it with --dataset"),
        (tmp_path, {}, "holds no checkpoint"),
        (tmp_path / "missing.pt", {}, "missing.pt does not exist"),
        (runs["none"], {"tokns": 3}, "unknown key 'tokns'; did you mean 'tokens'?"),
        (runs["none"], {"to": tmp_path / "file"}, "cannot write"),
        (runs["none"], {"to": tmp_path / "file" / "folder"}, "cannot write"),
    ):
        assert message in refused(path, **flags)
    assert not (tmp_path / "to").exists() and (tmp_path / "file").read_text() == "mine"
    overflowing = rewritten(runs["none"], tmp_path / "overflow.pt", overflow)
    assert "activations are not finite" in refused(overflowing)
    assert list((tmp_path / "to").iterdir()) == []


def test_picture_and_figures_are_replaced_together_or_not_at_all(runs, analyse, tmp_path, monkeypatch):
    analyse(runs["none"])
    before = {path.name: path.read_bytes() for path in (tmp_path / "to").iterdir()}

    def fails(*arguments, **options):
        raise RuntimeError("cannot be written")

    for place, name in ((NoPicture, "savefig"), (analyze_bio, "to_json")):
        with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="cannot be written"):
            patched.setattr(place, name, fails)
            analyse(runs["none"], seed=7)
        assert {path.name: path.read_bytes() for path in (tmp_path / "to").iterdir()} == before
    assert before.keys() == {"analysis.png", "analysis.json"}
