"""A user's neuron is tried before a run: what would spoil it is refused in a sentence, and nothing else is."""

import inspect
from pathlib import Path

import pytest
import torch

from tests.neurons import fit
from wiggle import custom_neuron
from wiggle.errors import UserError

NEURONS = Path(__file__).parent / "neurons"
MIXES = "mixes tokens in {} mode, as statistics over a batch and shifts along the text do"
KEEPS = "keeps what no checkpoint holds .* make it a parameter or a persistent buffer"
TWO_OUTPUTS = "gives two outputs for one input in eval mode: it draws at random, or remembers what it saw"


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
def test_what_would_spoil_a_run_is_refused_in_a_sentence(name, message):
    with pytest.raises(UserError, match=message) as error:
        custom_neuron.load_neuron(f"{NEURONS}/unfit.py:{name}").try_at(96)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500 + len(str(NEURONS))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("name", [name for name, _ in inspect.getmembers(fit, inspect.isclass)])
def test_what_spoils_nothing_is_accepted_and_leaves_no_trace(name):
    before = torch.get_rng_state()
    custom_neuron.load_neuron(f"{NEURONS}/fit.py:{name}").try_at(256)
    assert torch.equal(before, torch.get_rng_state())
