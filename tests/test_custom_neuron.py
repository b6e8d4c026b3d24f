"""A neuron of the user's own: what is accepted, what a checkpoint knows of it, and that no checkpoint runs code."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import sample_bio
from model_bio import GPT, GPTConfig
from train import train
from wiggle import checkpoint, custom_neuron
from wiggle.errors import UserError

WAVE = """
from pathlib import Path
import torch
from torch import nn

(Path(__file__).parent / "ran").touch()

class Wave(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(features))

    def forward(self, x):
        return x + self.scale * torch.sin(x) ** 2

class Other(Wave):
    pass

function = torch.sin
"""


@pytest.fixture
def wave(tmp_path):
    """The path of a file of neurons, in a folder whose name holds a colon."""
    path = tmp_path / "my: neurons" / "mine.py"
    path.parent.mkdir()
    path.write_text(WAVE)
    return path


def test_a_neuron_is_loaded_with_its_hash(wave):
    before = torch.get_rng_state()
    neuron = custom_neuron.load_neuron(f"{wave}:Wave")
    assert torch.equal(before, torch.get_rng_state())
    assert (neuron.name, neuron.sha256) == ("Wave", hashlib.sha256(wave.read_bytes()).hexdigest())
    assert neuron(12)(torch.ones(3, 12)).shape == (3, 12)
    assert custom_neuron.load_neuron("gelu") is None and custom_neuron.load_neuron("dendritic") is None


@pytest.mark.parametrize("name", ["Missing", "function"])
def test_a_name_that_is_no_class_of_modules_is_refused(wave, name):
    with pytest.raises(UserError, match=f"has no class {name} that is an nn.Module"):
        custom_neuron.load_neuron(f"{wave}:{name}")


def test_files_that_cannot_be_run_are_refused_in_a_sentence(tmp_path):
    (tmp_path / "bad.py").write_text("class Wave(:\n")
    with pytest.raises(UserError, match=r"bad\.py does not run: SyntaxError"):
        custom_neuron.load_neuron(f"{tmp_path / 'bad.py'}:Wave")
    with pytest.raises(UserError, match=r"cannot read .*none\.py: No such file"):
        custom_neuron.load_neuron(f"{tmp_path / 'none.py'}:Wave")
    with pytest.raises(UserError, match=r"'mine\.txt:Wave' names no neuron: write file\.py:ClassName"):
        custom_neuron.load_neuron("mine.txt:Wave")


def test_own_neurons_start_by_seed_and_name_and_share_the_rest(wave):
    spec = f"{wave}:Wave"
    shape = {"block_size": 8, "vocab_size": 20, "n_layer": 2, "n_head": 1, "n_embd": 8}
    neuron, gelu = custom_neuron.load_neuron(spec), dict(GPT(GPTConfig(**shape), seed=3).named_parameters())
    torch.manual_seed(11)
    own = dict(GPT(GPTConfig(**shape, mlp=spec), neuron, seed=3).named_parameters())
    again = dict(GPT(GPTConfig(**shape, mlp=spec), neuron, seed=3).named_parameters())
    other = dict(GPT(GPTConfig(**shape, mlp=spec), neuron, seed=4).named_parameters())
    assert all(torch.equal(gelu[name], own[name]) for name in gelu)
    assert all(torch.equal(again[name], own[name]) for name in own)
    first, second = (f"transformer.h.{i}.mlp.neuron.scale" for i in (0, 1))
    assert not torch.equal(own[first], own[second]) and not torch.equal(own[first], other[first])


def test_a_checkpoint_names_its_neuron_and_never_runs_it(wave, tiny, capsys):
    spec = f"{wave}:Wave"
    result = train(tiny(mlp=spec, max_blowup=None), custom_neuron.load_neuron(spec))
    content = checkpoint.read(checkpoint.find_file(result.out_dir))
    assert content["model_args"]["mlp"] == spec
    assert content["neuron_sha256"] == hashlib.sha256(wave.read_bytes()).hexdigest()

    (wave.parent / "ran").unlink()
    with pytest.raises(UserError, match=r"has a neuron of your own, .*:Wave, which no checkpoint holds: name it"):
        checkpoint.load_model(result.out_dir)
    with pytest.raises(SystemExit):
        sample_bio.main([f"--out_dir={result.out_dir}"])
    assert not (wave.parent / "ran").exists()

    moved = wave.rename(wave.with_name("moved.py"))
    model, _ = checkpoint.load_model(result.out_dir, neuron=custom_neuron.load_neuron(f"{moved}:Wave"))
    assert model.config.mlp == spec
    sample_bio.main([f"--out_dir={result.out_dir}", f"--neuron={moved}:Wave", "--num_samples=1", "--max_new_tokens=4"])
    with pytest.raises(UserError, match=r"was trained with .*:Wave, not with Other"):
        checkpoint.load_model(result.out_dir, neuron=custom_neuron.load_neuron(f"{moved}:Other"))
    moved.write_text(WAVE + "# edited\n")
    with pytest.raises(UserError, match=r"was trained with .* of SHA-256 \w{12}\.\.\., but the file given has"):
        checkpoint.load_model(result.out_dir, neuron=custom_neuron.load_neuron(f"{moved}:Wave"))


def test_a_resumed_run_needs_the_same_text(wave, tiny):
    spec = f"{wave}:Wave"
    whole = train(tiny(mlp=spec, max_blowup=None, out_dir=str(wave.parent / "whole")), custom_neuron.load_neuron(spec))
    train(tiny(mlp=spec, max_blowup=None, max_iters=3, lr_decay_iters=6), custom_neuron.load_neuron(spec))
    resumed = train(tiny(mlp=spec, max_blowup=None, init_from="resume"), custom_neuron.load_neuron(spec))
    assert resumed.val_loss == whole.val_loss
    wave.write_text(WAVE + "# edited\n")
    with pytest.raises(UserError, match="restore the file as it was"):
        train(tiny(mlp=spec, max_blowup=None, init_from="resume", max_iters=9), custom_neuron.load_neuron(spec))


# --- the trial ---

UNFIT = """
import random
import numpy
import torch
from torch import nn
from torch.nn import functional as F

class Neuron(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.features = features

class Shrinks(Neuron):
    def forward(self, x):
        return x[..., :7]

class Doubles(Neuron):
    def forward(self, x):
        return x.double()

class Halves(Neuron):
    def forward(self, x):
        return x.bfloat16()

class Pair(Neuron):
    def forward(self, x):
        return x, x

class Fails(Neuron):
    def forward(self, x):
        raise RuntimeError("of itself")

class FailsAtItsWidth(Neuron):
    def forward(self, x):
        return x.view(*x.shape[:-1], -1, 64).flatten(-2)

class FailsInTraining(Neuron):
    def forward(self, x):
        return x.sin() if not self.training else x.sin(1)

class FailsBackward(Neuron):
    def forward(self, x):
        y = x.exp()
        z = y * 2
        y.add_(1)
        return z + y

class FailsInEval(Neuron):
    def forward(self, x):
        return x.sin() if self.training else x.sin(1)

class CannotBeBuilt(Neuron):
    def __init__(self, features):
        super().__init__(features)
        self.groups = nn.GroupNorm(7, features)

class Lazy(Neuron):
    def __init__(self, features):
        super().__init__(features)
        self.linear = nn.LazyLinear(features)
    def forward(self, x):
        return self.linear(x)

class GrowsInForward(Neuron):
    def forward(self, x):
        if not hasattr(self, "scale"):
            self.scale = nn.Parameter(torch.ones(self.features))
        return self.scale * x

class Mixes(Neuron):
    def forward(self, x):
        return x.cumsum(-2)

class LooksAhead(Neuron):
    def forward(self, x):
        return x + x.flip(-2)

class LooksAheadInTraining(Neuron):
    def forward(self, x):
        return x + x.flip(-2) if self.training else x

class LooksAheadOnceItHasLearned(Neuron):
    def __init__(self, features):
        super().__init__(features)
        self.share = nn.Parameter(torch.zeros(()))
    def forward(self, x):
        return x + self.share * x.roll(-1, -2)

class LooksAheadALittle(Neuron):
    def forward(self, x):
        return x + 1e-9 * x.roll(-1, -2)

class LooksAheadWithoutGradient(Neuron):
    def forward(self, x):
        return x + x.roll(-1, -2).sign()

class LooksAtTheOtherSequence(Neuron):
    def forward(self, x):
        return x * x.flip(0)

class BatchNorm(Neuron):
    def __init__(self, features):
        super().__init__(features)
        self.norm = nn.BatchNorm1d(features)
    def forward(self, x):
        return self.norm(x.flatten(0, -2)).view_as(x)

class ScaledByTheBatch(Neuron):
    def forward(self, x):
        return x / x.detach().abs().max()

class SeesItsPlace(Neuron):
    def forward(self, x):
        return x * torch.arange(1, 1 + x.size(-2)).unsqueeze(-1)

class LosesAPlace(Neuron):
    def forward(self, x):
        return x.squeeze().sin()

class NeedsTwoTokens(Neuron):
    def forward(self, x):
        if x.size(-2) < 2:
            raise RuntimeError("two")
        return x

class Draws(Neuron):
    def forward(self, x):
        return x + torch.rand_like(x)

class DropsAlways(Neuron):
    def forward(self, x):
        return F.dropout(x, 0.1)

class Remembers(Neuron):
    last = 0
    def forward(self, x):
        x, self.last = x + self.last, x.detach().mean()
        return x

class DrawnPlainTensor(Neuron):
    def __init__(self, features):
        super().__init__(features)
        self.mask = torch.rand(features)
    def forward(self, x):
        return self.mask * x

class DrawnBuffer(Neuron):
    def __init__(self, features):
        super().__init__(features)
        self.register_buffer("mask", torch.rand(features), persistent=False)
    def forward(self, x):
        return self.mask * x

class DrawnOrder(Neuron):
    def __init__(self, features):
        super().__init__(features)
        self.order = torch.randperm(features).tolist()
    def forward(self, x):
        return x + x[..., self.order]

class DrawnByPython(Neuron):
    def __init__(self, features):
        super().__init__(features)
        self.slope = random.random()
    def forward(self, x):
        return self.slope * x

class DrawnByNumpy(Neuron):
    def __init__(self, features):
        super().__init__(features)
        self.a = nn.Parameter(torch.from_numpy(numpy.random.rand(features)).float())
    def forward(self, x):
        return self.a * x

class CountsItsCopies(Neuron):
    copies = 0
    def __init__(self, features):
        super().__init__(features)
        CountsItsCopies.copies += 1
        self.frequency = float(self.copies)
    def forward(self, x):
        return torch.sin(self.frequency * x)

class CountsItsSteps(Neuron):
    steps = 0
    def forward(self, x):
        self.steps += self.training
        return x * (1 + self.steps)

class KeepsAnOldParameter(Neuron):
    def __init__(self, features):
        super().__init__(features)
        self.a, self.cached = nn.Parameter(torch.ones(features)), None
    def forward(self, x):
        self.cached = self.a.exp().detach() if self.cached is None else self.cached
        return self.cached * x + self.a

class SharesAParameter(Neuron):
    a = nn.Parameter(torch.ones(1))
    def __init__(self, features):
        super().__init__(features)
        self.own = SharesAParameter.a
    def forward(self, x):
        return self.own * x
"""
MIXES = "mixes tokens in {} mode, as statistics over a batch and shifts along the text do"
KEEPS = "keeps what no checkpoint holds .* make it a parameter or a persistent buffer"
TWO_OUTPUTS = "gives two outputs for one input in eval mode: it draws at random, or remembers what it saw"


@pytest.fixture(scope="session")
def unfit(tmp_path_factory):
    path = tmp_path_factory.mktemp("neurons") / "unfit.py"
    path.write_text(UNFIT)
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Shrinks", r"must map \(2, 4, 96\) to the same shape, \(..., features\), but gives \(2, 4, 7\)"),
        ("Pair", r"must map \(2, 4, 96\) to the same shape, \(..., features\), but gives tuple"),
        ("Doubles", r"must give numbers of its input's type, torch.float32, but gives torch.float64: y.to\(x.dtype\)"),
        ("Halves", "must give numbers of its input's type, torch.float32, but gives torch.bfloat16"),
        ("Fails", r"96 features fails in training mode on a tensor of shape \(2, 4, 96\): RuntimeError: of itself"),
        ("FailsAtItsWidth", "with 96 features fails in training mode .*: RuntimeError: shape '"),
        ("FailsInTraining", "with 96 features fails in training mode .*: TypeError"),
        ("FailsBackward", "with 96 features fails in training mode .*: RuntimeError: one of the variables needed"),
        ("FailsInEval", "with 96 features fails in eval mode .*: TypeError"),
        ("CannotBeBuilt", "cannot be built with 96 features: ValueError: num_channels"),
        ("Lazy", "cannot be built with 96 features: ValueError: .*uninitialized"),
        ("GrowsInForward", "makes or reshapes parameters or buffers in forward: make them in __init__"),
        ("Mixes", MIXES.format("training")),
        ("LooksAhead", MIXES.format("training")),
        ("LooksAheadInTraining", MIXES.format("training")),
        ("LooksAheadOnceItHasLearned", MIXES.format("training")),
        ("LooksAheadALittle", MIXES.format("training")),
        ("LooksAheadWithoutGradient", MIXES.format("training")),
        ("LooksAtTheOtherSequence", MIXES.format("training")),
        ("BatchNorm", MIXES.format("training")),
        ("ScaledByTheBatch", MIXES.format("training")),
        ("SeesItsPlace", "gives a token another output at another place: it must see the token alone"),
        ("LosesAPlace", r"must map \(1, 1, 96\) to the same shape, \(..., features\), but gives \(96,\)"),
        ("NeedsTwoTokens", r"with 96 features fails in eval mode on a tensor of shape \(1, 1, 96\): RuntimeError: two"),
        ("Draws", TWO_OUTPUTS),
        ("DropsAlways", TWO_OUTPUTS),
        ("Remembers", TWO_OUTPUTS),
        ("DrawnPlainTensor", KEEPS),
        ("DrawnBuffer", KEEPS),
        ("DrawnOrder", KEEPS),
        ("DrawnByPython", KEEPS),
        ("CountsItsCopies", KEEPS),
        ("CountsItsSteps", KEEPS),
        ("KeepsAnOldParameter", KEEPS),
        ("DrawnByNumpy", "starts otherwise each time, whatever the seed: draw with torch's own generator alone"),
        ("SharesAParameter", "shares a tensor among all its copies, layers and models: make it in __init__"),
    ],
)
def test_what_would_spoil_a_run_is_refused_in_a_sentence(unfit, name, message):
    with pytest.raises(UserError, match=message) as error:
        custom_neuron.load_neuron(f"{unfit}:{name}", features=96)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500 + len(str(unfit))


def test_a_neuron_is_refused_before_anything_is_written(unfit, tiny):
    config = tiny(mlp=f"{unfit}:LooksAheadInTraining")
    with pytest.raises(UserError, match="mixes tokens"):
        train(config, custom_neuron.load_neuron(config.mlp))
    assert not Path(config.out_dir).exists()


FIT = """
import numpy
import torch
from torch import nn

class WinnersTakeAll(nn.Module):
    "Keeps the 128 largest features: at 64 features it would fail."
    def __init__(self, features):
        super().__init__()
    def forward(self, x):
        return x * (x >= x.topk(128).values[..., -1:])

class Wide(nn.Module):
    "Features that are mixed by a large matrix, with outputs in the thousands."
    def __init__(self, features):
        super().__init__()
        self.mix = nn.Linear(features, features)
        self.gain = 3000
    def forward(self, x):
        return self.gain * self.mix(x)

class Noisy(nn.Module):
    "Draws in training alone: dropout, noise and a layer that is left out now and then."
    def __init__(self, features):
        super().__init__()
        self.drop = nn.Dropout(0.3)
        self.linear = nn.Linear(features, features)
    def forward(self, x):
        if self.training:
            x = x + 0.1 * torch.randn_like(x)
            if torch.rand(()) < 0.5:
                return x
        return self.drop(self.linear(x).relu())

class ReadsNumbers(nn.Module):
    "Its constructor reads numbers, which the meta device does not have."
    def __init__(self, features):
        super().__init__()
        self.slope = torch.linspace(0.5, 1.5, features).mean().item()
        self.a = nn.Parameter(torch.from_numpy(torch.rand(features).numpy()))
    def forward(self, x):
        return self.slope * self.a * x

class InPlace(nn.Module):
    "Works in place, which a leaf of the graph would not allow."
    def __init__(self, features):
        super().__init__()
    def forward(self, x):
        return x.mul_(2).sin_()

class Step(nn.Module):
    "Has no gradient at all."
    def __init__(self, features):
        super().__init__()
    def forward(self, x):
        return (x > 0).to(x.dtype)

class Fixed(nn.Module):
    "A parameter of whole numbers that is not trained."
    def __init__(self, features):
        super().__init__()
        self.order = nn.Parameter(torch.arange(features).flip(0), requires_grad=False)
    def forward(self, x):
        return torch.relu(x)[..., self.order]

class Root(nn.Module):
    "NaN for half of its inputs, and so is its gradient there."
    def __init__(self, features):
        super().__init__()
    def forward(self, x):
        return x.sqrt()

class Habituates(nn.Module):
    "A running mean of earlier batches, kept in a persistent buffer."
    def __init__(self, features):
        super().__init__()
        self.register_buffer("usual", torch.zeros(features))
    def forward(self, x):
        y = torch.relu(x - self.usual)
        if self.training:
            self.usual = 0.9 * self.usual + 0.1 * x.detach().flatten(0, -2).mean(0)
        return y

class Recomputed(nn.Module):
    "Recomputes its inside in backward, by torch's older way."
    def __init__(self, features):
        super().__init__()
        self.a = nn.Parameter(torch.ones(features))
    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(lambda x: torch.sin(self.a * x), x, use_reentrant=True)

class Normed(nn.Module):
    "A matrix of spectral norm 1, estimated in training."
    def __init__(self, features):
        super().__init__()
        self.mix = nn.utils.parametrizations.spectral_norm(nn.Linear(features, features))
    def forward(self, x):
        return self.mix(x)

class ByNumpy(nn.Module):
    "Computed by a library that has no bfloat16."
    def __init__(self, features):
        super().__init__()
    def forward(self, x):
        return x * torch.from_numpy(numpy.sin(x.detach().numpy()))

class DrawnAlike(nn.Module):
    "A plain tensor that is drawn, but the same in each copy."
    def __init__(self, features):
        super().__init__()
        self.mask = torch.rand(features, generator=torch.Generator().manual_seed(5))
    def forward(self, x):
        return self.mask * x
"""


@pytest.fixture(scope="session")
def fit(tmp_path_factory):
    path = tmp_path_factory.mktemp("neurons") / "fit.py"
    path.write_text(FIT)
    return path


@pytest.mark.parametrize("name", [line[6:].split("(")[0] for line in FIT.split("\n") if line.startswith("class ")])
def test_what_spoils_nothing_is_accepted_and_leaves_no_trace(fit, name):
    before = torch.get_rng_state()
    custom_neuron.load_neuron(f"{fit}:{name}", features=256)
    assert torch.equal(before, torch.get_rng_state())


def test_a_class_is_tried_once_at_each_width_and_not_before(fit):
    neuron = custom_neuron.load_neuron(f"{fit}:WinnersTakeAll")
    shape = GPTConfig(mlp=neuron.mlp, block_size=8, vocab_size=20, n_layer=2, n_head=1, n_embd=32)
    GPT(shape, neuron)
    GPT(replace(shape, n_embd=64), neuron)
    assert neuron.tried == {128, 256}
    with pytest.raises(UserError, match=r"with 64 features fails in training mode .* out of range"):
        GPT(replace(shape, n_embd=16), neuron)


def test_a_constructor_may_read_numbers_wherever_models_are_only_counted(fit, tiny):
    config = tiny(mlp=f"{fit}:ReadsNumbers")
    neuron = custom_neuron.load_neuron(config.mlp)
    with torch.device("meta"):
        model = GPT(config.gpt_config(20), neuron)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert train(config, neuron).steps == 6
    assert checkpoint.load_model(config.out_dir, neuron=neuron)[0].config.mlp == config.mlp


def test_a_neuron_is_tried_on_the_device_and_in_the_precision_of_the_run(fit, tiny):
    config = tiny(mlp=f"{fit}:ByNumpy", n_embd=16)
    neuron = custom_neuron.load_neuron(config.mlp)
    assert train(config, neuron).steps == 6
    with pytest.raises(UserError, match=r"fit\.py:ByNumpy fails on cpu in torch.bfloat16: TypeError: Got unsupported"):
        train(replace(config, dtype="bfloat16"), neuron)


def test_a_neuron_that_changes_its_buffers_is_not_recomputed(fit, tiny):
    config = tiny(mlp=f"{fit}:Habituates", max_blowup=None)
    neuron = custom_neuron.load_neuron(config.mlp)
    assert train(config, neuron).steps == 6
    with pytest.raises(UserError, match="changes its buffers in training, which gradient_checkpointing=True would do"):
        train(replace(config, gradient_checkpointing=True), neuron)
