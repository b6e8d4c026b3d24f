"""Users' neurons of every kind, as studies/own_neurons.py writes them: what each is, and that each can be compared."""

import csv
import json
from pathlib import Path

import pytest
import torch

import compare
from model_bio import GPT, GPTConfig, OwnMLP
from tests.conftest import TINY
from train import train
from wiggle import blowup, checkpoint, corpora
from wiggle.analysis import Text, measure_networks
from wiggle.custom_neuron import load_neuron
from wiggle.dataset import Dataset
from wiggle.errors import UserError
from wiggle.evaluation import evaluate
from wiggle.optimizers import configure_optimizer, set_learning_rate
from wiggle.out_of_memory import out_of_memory_advice
from wiggle.telemetry import nonlinearities

FILE = str(Path(__file__).parent.parent / "studies" / "own_neurons.py")
KINDS = ("GEGLU", "DReLU", "TopK(share=0.3)", "Yat", "Quiet", "ByDepth", "Polynomial")
SHAPE = {"block_size": 8, "vocab_size": 20, "n_layer": 3, "n_head": 2, "n_embd": 16, "bias": False}


def own(name, **changes):
    """A small GPT with a neuron of studies/own_neurons.py."""
    neuron = load_neuron(f"{FILE}:{name}")
    return GPT(GPTConfig(**SHAPE | changes, mlp=neuron.mlp), neuron, seed=1)


def parameters(model):
    return model.get_num_params()


# --- what each is ---


def test_two_halves_give_what_the_built_in_gives():
    model, other = own("GEGLU"), GPT(GPTConfig(**SHAPE, mlp="geglu"), seed=1)
    idx = torch.arange(16).view(2, 8)
    assert torch.equal(model(idx, idx)[0], other(idx, idx)[0])
    assert parameters(model) == parameters(other)


def test_drelu_silences_a_unit_by_either_half():
    x, z = torch.tensor([2.0, 2.0, -2.0]), torch.tensor([3.0, -3.0, 3.0])
    assert load_neuron(f"{FILE}:DReLU")(6)(torch.cat([x, z])).tolist() == [6, 0, 0]


def test_a_share_of_the_features_is_kept():
    x = torch.tensor([[0.1, -3.0, 0.5, 2.0, -1.0, 0.2, 0.3, 0.4, 1.0, -2.0]])
    assert load_neuron(f"{FILE}:TopK(share=0.2)")(10)(x).nonzero()[:, 1].tolist() == [3, 8]
    assert load_neuron(f"{FILE}:TopK(share=0.5)")(10)(x).count_nonzero() == 5


def test_a_module_in_the_mlps_place_computes_its_equation_and_has_the_controls_parameters():
    model = own("Yat")
    mlp, x = model.transformer.h[0].mlp, torch.randn(2, 3, 16)
    assert isinstance(mlp, OwnMLP)
    w = mlp.neuron.w
    hidden = (x @ w.T) ** 2 / ((x[..., None, :] - w).square().sum(-1) + 1e-3)
    torch.testing.assert_close(mlp(x), mlp.neuron.down(hidden), atol=1e-5, rtol=1e-4)
    assert parameters(model) == parameters(GPT(GPTConfig(**SHAPE), seed=1))
    assert nonlinearities(model, torch.arange(8)[None]) is None


def test_a_layer_reads_its_number():
    assert [block.mlp.neuron.leak for block in own("ByDepth").transformer.h] == [1.0, 0.5, 0.0]


def test_a_neurons_own_start_of_c_fc_yields_to_the_configs():
    weights = {std: own("Polynomial", c_fc_std=std).transformer.h[0].mlp.c_fc.weight for std in (None, "unit", 0.02)}
    assert torch.equal(weights[None], weights["unit"])
    torch.testing.assert_close(weights[0.02] * 12.5, weights["unit"])  # 0.25/0.02, of the same draw
    gelu = GPT(GPTConfig(**SHAPE), seed=1)
    assert torch.equal(gelu.transformer.h[0].mlp.c_fc.weight, weights[0.02])


@pytest.mark.parametrize("optimizer_type", ["adamw", "muon", "adafactor"])
def test_options_by_parameter_reach_the_optimizer(optimizer_type):
    model = own("Polynomial")
    optimizer = configure_optimizer(model, 0.1, 1e-2, (0.9, 0.95), "cpu", optimizer_type)
    set_learning_rate(optimizer, 4e-3)
    coefficients = {id(block.mlp.neuron.a) for block in model.transformer.h}
    (group,) = [g for g in optimizer.param_groups if coefficients & set(map(id, g["params"]))]
    assert set(map(id, group["params"])) == coefficients
    assert (group["weight_decay"], group["lr"], "momentum" in group) == (0.0, 2e-3, False)
    assert {g["lr"] for g in optimizer.param_groups if g is not group} == {4e-3}
    if optimizer_type == "muon":
        assert sum(len(g["params"]) for g in optimizer.param_groups if "momentum" in g) == 4 * 3


def test_a_scaled_parameter_moves_by_its_scale(tmp_path):
    text = "parameter_options = {'a': {'learning_rate_scale': 0.25}}"
    moved = {}
    for scale, options in ((1.0, ""), (0.25, text)):
        path = tmp_path / f"mine{scale}.py"
        path.write_text(SCALED.format(options=options))
        neuron = load_neuron(f"{path}:Scaled")
        model = GPT(GPTConfig(**SHAPE, mlp=neuron.mlp), neuron, seed=1)
        optimizer = configure_optimizer(model, 0.0, 1e-2, (0.9, 0.95), "cpu")
        model(torch.arange(8)[None], torch.arange(8)[None])[1].backward()
        set_learning_rate(optimizer, 1e-2)
        optimizer.step()
        moved[scale] = (model.transformer.h[0].mlp.neuron.a - 1).abs().mean().item()
    assert moved[0.25] == pytest.approx(0.25 * moved[1.0], rel=1e-3)


SCALED = """
import torch
from torch import nn

class Scaled(nn.Module):
    {options}

    def __init__(self, features):
        super().__init__()
        self.a = nn.Parameter(torch.ones(features))

    def forward(self, x):
        return torch.relu(self.a * x)
"""


def test_what_a_module_in_the_mlps_place_keeps_is_counted_as_gelus_and_said(tiny):
    config = tiny(mlp=f"{FILE}:Yat")
    advice = out_of_memory_advice(config, own("Yat"), torch.device("cpu"), torch.float32)
    assert "out of memory on cpu" in advice and "Yat counted as GELU's MLP" in advice


WAVES = """
from torch import nn
from model_bio import OscillatingNeuron

class Waves(nn.Module):
    stands_for = "mlp"

    def __init__(self, features):
        super().__init__()
        self.mix, self.wave = nn.Linear(features, features), OscillatingNeuron(features)

    def forward(self, x):
        batch, tokens, features = x.shape
        return self.wave(self.mix(x))
"""


def test_an_oscillation_inside_a_module_in_the_mlps_place_is_analysed(tmp_path):
    (tmp_path / "waves.py").write_text(WAVES)
    neuron = load_neuron(f"{tmp_path / 'waves.py'}:Waves")
    model = GPT(GPTConfig(**SHAPE, mlp=neuron.mlp), neuron, seed=1).eval()
    idx = torch.arange(16).view(2, 8)
    labels = {"token": idx.flatten(), "class": idx.flatten() % 2, "position": torch.arange(8).repeat(2)}
    layers = measure_networks(model, model, Text(idx, [str(i) for i in range(16)], labels))
    assert [list(layer["now"].figures["neurons"]) for layer in layers] == [["neuron.wave"]] * 3


# --- the auxiliary loss ---


def logged(out_dir):
    return [json.loads(line) for line in Path(out_dir, "metrics.jsonl").read_text().splitlines()]


def test_an_auxiliary_loss_trains_the_model_and_is_no_part_of_any_other_loss(tiny, capsys):
    neurons = [load_neuron(f"{FILE}:Quiet(price={price})") for price in (0.0, 50.0)]
    free, dear = (train(tiny(mlp=neuron.mlp, log_interval=1, max_blowup=None), neuron) for neuron in neurons)
    assert "auxiliary" in capsys.readouterr().out
    assert free.first_losses[0] == dear.first_losses[0]  # the first step's loss is before any training
    first, *_, last = [line["auxiliary_loss"] for line in logged(dear.out_dir) if "auxiliary_loss" in line]
    assert 0 < last < first
    assert free.val_loss != dear.val_loss
    model, _ = checkpoint.load_model(Path(dear.out_dir, "ckpt.pt"), neuron=load_neuron(f"{FILE}:Quiet(price=50.0)"))
    data = Dataset(Path(tiny().data_dir, "tiny"), 16, 1337)
    judged = evaluate(model, data, "val", 24, torch.device("cpu"), torch.float32)[0]
    assert judged == pytest.approx(dear.val_loss, rel=1e-6)  # validation is the cross entropy alone


def test_an_auxiliary_loss_is_the_mean_over_micro_batches(tiny):
    cuts = [{"batch_size": 8, "gradient_accumulation_steps": 1}, {"batch_size": 2, "gradient_accumulation_steps": 4}]
    neuron = load_neuron(f"{FILE}:Quiet(price=5.0)")
    found = [train(tiny(mlp=neuron.mlp, log_interval=1, max_blowup=None, **cut), neuron).history for cut in cuts]
    whole, parts = ([line["auxiliary_loss"] for line in lines if "auxiliary_loss" in line] for lines in found)
    assert whole == pytest.approx(parts, rel=1e-4) and len(whole) == 6


def test_gradient_checkpointing_changes_no_auxiliary_loss(tiny):
    neuron = load_neuron(f"{FILE}:Quiet(price=5.0)")
    plain, less = (
        train(tiny(mlp=neuron.mlp, max_blowup=None, gradient_checkpointing=recompute), neuron)
        for recompute in (False, True)
    )
    assert less.first_losses == pytest.approx(plain.first_losses, rel=1e-6)
    assert less.history[-2]["auxiliary_loss"] == pytest.approx(plain.history[-2]["auxiliary_loss"], rel=1e-5)


# --- every kind, trained ---


@pytest.mark.parametrize("optimizer_type", ["adamw", "muon", "adafactor"])
@pytest.mark.parametrize("name", ["Yat", "Quiet", "Polynomial", "GEGLU"])
def test_a_stopped_run_goes_on_bit_for_bit(tiny, name, optimizer_type):
    neuron = load_neuron(f"{FILE}:{name}")
    options = {"mlp": neuron.mlp, "max_blowup": None, "optimizer_type": optimizer_type}
    whole = train(tiny(**options), neuron)
    train(tiny(**options, max_iters=3, lr_decay_iters=6), neuron)
    resumed = train(tiny(**options, init_from="resume"), neuron)
    assert resumed.val_loss == whole.val_loss


def test_a_checkpoint_keeps_the_arguments(tiny):
    neuron = load_neuron(f"{FILE}:TopK(share=0.3)")
    result = train(tiny(mlp=neuron.mlp, max_blowup=None), neuron)
    model, _ = checkpoint.load_model(result.out_dir, neuron=load_neuron(f"{FILE}:TopK( share = 0.3 )"))
    assert model.transformer.h[0].mlp.neuron.kept == round(0.3 * 64)
    with pytest.raises(UserError, match=r"was trained with .*TopK\(share=0.3\), not with TopK\(share=0.4\)"):
        checkpoint.load_model(result.out_dir, neuron=load_neuron(f"{FILE}:TopK(share=0.4)"))


def test_a_module_with_too_many_parameters_is_stopped_and_named():
    neuron = load_neuron(f"{FILE}:Bloated")
    with pytest.raises(
        UserError, match=r"blow-up: 2\.97x the GELU control's parameters, .*; mlp adds 0\.3M parameters"
    ):
        blowup.alarm(GPTConfig(**SHAPE | {"n_embd": 64}, mlp=neuron.mlp), 1.5, neuron=neuron)


@pytest.mark.slow
def test_every_kind_is_compared_in_one_command(tmp_path, corpus_of_two_halves):
    spelled = ",".join(f"{FILE}:{name}" for name in ("TopK(share=0.1)", *KINDS))
    flags = [f"--{key}={value}" for key, value in (TINY | corpus_of_two_halves).items()]
    compare.main([*flags, f"--vary=mlp=gelu,{spelled}", "--seeds=2", "--jobs=0", f"--out_dir={tmp_path / 'out'}"])
    with open(tmp_path / "out" / "table.csv") as file:
        table = {line["arm"]: line for line in csv.DictReader(file)}
    assert list(table) == ["gelu", "TopK(share=0.1)", *KINDS]
    assert all(float(line["val_loss"]) < 3 for line in table.values())
    assert table["TopK(share=0.1)"]["val_loss"] != table["TopK(share=0.3)"]["val_loss"]
    report = (tmp_path / "out" / "report.md").read_text()
    assert "Left out, for a module in the MLP's place has no c_fc: Yat." in report
    assert f"{FILE}:Yat: SHA-256 of its source {load_neuron(f'{FILE}:Yat').sha256}" in report


@pytest.fixture
def corpus_of_two_halves(tmp_path):
    """Settings of a corpus whose validation split has two blocks of 4,096 tokens, as compare.py needs."""
    (tmp_path / "long.txt").write_text("\n".join("abcde fghij klmno"[i % 7 :] + str(i % 13) for i in range(9000)))
    corpora.prepare(str(tmp_path / "long.txt"), data_dir=str(tmp_path / "data"))
    return {"dataset": "long", "data_dir": str(tmp_path / "data")}
