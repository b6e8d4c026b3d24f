"""batch_size='auto': the planner, what it measures, and what it leaves. There is no card here: its memory is played."""

import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import train as train_module
from model_bio import GPT
from tests.test_train_config import AUTO
from train import TrainConfig, train
from wiggle import batch_size, checkpoint, device
from wiggle.batch_size import largest_at_most, largest_fitting_divisor
from wiggle.device import Machine
from wiggle.errors import UserError
from wiggle.out_of_memory import GIB, divisors

ROOT = Path(__file__).parents[1]
KEYS = ("batch_size", "gradient_checkpointing=True", "block_size")
EAGER = Machine(torch.device("cpu"), torch.float32, False, "eager")


# --- the planner ---


def plan(sequences, peak, budget):
    """-> (what is taken, the sizes that were tried, in order)."""
    tried = []
    return largest_fitting_divisor(sequences, lambda size: tried.append(size) or peak(size), budget), tried


@pytest.mark.parametrize("sequences", [1, 2, 7, 12, 32, 33, 480])
@pytest.mark.parametrize("budget", [2.5, 3.0, 5.1, 7.0, 40.0, 1000.0])
def test_linear_memory_gives_the_largest_divisor_and_tries_nothing_past_the_budget(sequences, budget):
    def peak(size):
        return 2.0 + 0.4 * size

    size, tried = plan(sequences, peak, budget)
    assert size == max(d for d in divisors(sequences) if peak(d) <= budget)
    assert all(peak(n) <= budget for n in tried if n > 2) and len(set(tried)) == len(tried) < 12


@pytest.mark.parametrize("past", [1, 2, 3, 5, 8, 20])
@pytest.mark.parametrize("chunks", [1.5, -1.0])  # chunks need their logits, but spare those of the other rows
def test_a_cost_that_begins_past_some_size_is_found(past, chunks):
    def peak(size):
        return 2.0 + 0.4 * size + chunks * (size > past)

    for budget in (4.5, 6.3, 9.0, 12.5, 100.0):
        size, tried = plan(480, peak, budget)
        assert peak(size) <= budget and size in tried
        if chunks > 0:  # a cost that ends may hide larger sizes behind one that does not fit
            assert size == max(d for d in divisors(480) if peak(d) <= budget)


def test_noise_costs_at_most_a_little_and_never_passes_the_budget():
    for seed in range(200):
        draw = random.Random(seed)
        seen, fixed, each = {}, draw.uniform(0.1, 3), draw.uniform(0.05, 1)

        def peak(size, seen=seen, draw=draw, fixed=fixed, each=each):
            return seen.setdefault(size, (fixed + each * size) * draw.uniform(0.97, 1.03))

        sequences, budget = draw.choice([24, 32, 60, 480]), draw.uniform(4.5, 8)
        size, tried = plan(sequences, peak, budget)
        assert seen[size] <= budget and size in tried
        certain = [d for d in divisors(sequences) if fixed + each * d <= 0.85 * budget]
        assert size >= max(certain)
        assert all(seen[n] <= 1.2 * budget for n in tried if n > 2)


def test_a_step_that_fails_is_a_step_too_large():
    def until(fits):
        return lambda size: 1.0 * size if size <= fits else math.inf

    for fits, expected in ((1, 1), (2, 2), (3, 3), (5, 4), (6, 6), (11, 6), (12, 12)):
        assert plan(12, until(fits), 100.0)[0] == expected
    assert plan(480, until(3), 100.0) == (3, [1, 2, 4, 3])  # past a failure smaller sizes are tried, larger ones never


@pytest.mark.parametrize("first", [9 * GIB, math.inf])
def test_where_nothing_fits_one_sentence_names_the_three_keys(first):
    with pytest.raises(UserError) as error:
        plan(32, lambda size: size * first, 7.1 * GIB)
    sentence = str(error.value)
    assert all(key in sentence for key in KEYS) and "7.10 GiB" in sentence and "inf" not in sentence
    assert ("9.00 GiB" in sentence) == (first < math.inf)


# --- measuring, and training with what was found ---


@pytest.fixture
def played(monkeypatch):
    """played(room): give the CPU a card's memory of `room` bytes, of which a step takes 1 GiB, and 1 a sequence."""
    sizes, forward = [], GPT.forward

    def noting(self, idx, targets=None):
        sizes.append(len(idx))
        return forward(self, idx, targets)

    def play(room):
        class Played:
            def __init__(self, device):
                self.device = device

            def budget(self):
                return room

            def reset(self):
                sizes.clear()

            def peak(self):
                assert len(sizes) == 2 and len(set(sizes)) == 1  # without gradients at hand, and with them
                return (1 + sizes[-1]) * GIB

        monkeypatch.setattr(GPT, "forward", noting)
        monkeypatch.setattr(batch_size, "find_card", Played)

    return play


class Counting(nn.Module):
    """A neuron with a memory: measuring must not count."""

    def __init__(self, features):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.seen += 1
        return torch.relu(x) + 0.01 * torch.tanh(self.seen)


class Replacing(Counting):
    """The same, with a new tensor for each count."""

    def forward(self, x):
        if self.training:
            self.seen = self.seen + 1
        return torch.relu(x) + 0.01 * torch.tanh(self.seen)


NEURONS = {"own.py:Counting": Counting, "own.py:Replacing": Replacing}


@pytest.mark.parametrize("changes", [{"dropout": 0.2}, *({"mlp": mlp} for mlp in NEURONS), {"optimizer_type": "muon"}])
def test_auto_trains_as_the_number_that_it_finds(tiny, played, capsys, changes):
    neuron = NEURONS.get(changes.get("mlp"))
    changes = changes | {"max_blowup": None, "eval_iters": 0}
    given = train(tiny(batch_size=4, gradient_accumulation_steps=2, **changes), neuron)
    expected = checkpoint.read(Path(given.out_dir) / "ckpt.pt")
    played(6.2 * GIB)  # five fit, of which four are a divisor of eight
    capsys.readouterr()
    found = train(tiny(**AUTO | changes), neuron)
    printed = capsys.readouterr().out
    assert "batch     auto: 4 of 8 sequences fit in 6.20 GiB (1.00 GiB a sequence, 1.00 GiB fixed)\n" in printed
    assert "batch     4 x 16 x 2 = 128 tokens a step" in printed
    assert found.first_losses == given.first_losses and found.val_loss == given.val_loss
    content = checkpoint.read(Path(found.out_dir) / "ckpt.pt")
    assert all(torch.equal(content["model"][name], tensor) for name, tensor in expected["model"].items())
    kept = json.loads((Path(found.out_dir) / "config.json").read_text())
    assert (kept["batch_size"], kept["gradient_accumulation_steps"], kept["tokens_per_step"]) == (4, 2, 128)
    assert content["config"]["batch_size"] == "auto"


@pytest.mark.parametrize(("more", "size"), [(0.0, 4), (2.0, 2), (4.0, 1)])
def test_the_step_that_will_run_is_measured_compiled(tiny, played, monkeypatch, capsys, more, size):
    """By eager steps four sequences fit in 6.2 GiB; the compiled ones here take `more` GiB."""
    played(6.2 * GIB)
    calls = []

    class Compiled(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, idx, targets):
            calls.append(len(idx))
            return self.model(idx, targets)

    eager_peak = batch_size.find_card.peak

    def peak(card):
        return (1 + calls[-1] + more) * GIB if calls else eager_peak(card)

    monkeypatch.setattr(batch_size.find_card, "peak", peak)
    monkeypatch.setattr(train_module, "compiled_or_eager", lambda model, machine, say: machine)
    monkeypatch.setattr(device, "lacking_to_compile", lambda device: None)
    monkeypatch.setattr(device, "compile_failure", lambda device: None)
    monkeypatch.setattr(torch, "compile", Compiled)
    train(tiny(**AUTO, compile=True, max_iters=1, eval_iters=1))
    assert f"batch     auto: {size} of 8 sequences" in capsys.readouterr().out
    assert calls[:3] == [4, 4, 4] and set(calls[3:]) <= {4, 2, 1}  # one to compile, two to measure


def test_one_sequence_that_does_not_fit_compiled_names_the_three_keys():
    assert largest_at_most(8, 24, lambda size: 1.0 * size, 5.0) == 4
    with pytest.raises(UserError) as error:
        largest_at_most(4, 8, lambda size: 3.0 * GIB, 2.0 * GIB)
    assert all(key in str(error.value) for key in KEYS) and "3.00 GiB" in str(error.value)


def test_measuring_leaves_no_trace(tiny, played):
    played(6.2 * GIB)
    config = tiny(**AUTO, dropout=0.5)
    model = GPT(config.gpt_config(31), seed=3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    data = train_module.Dataset(Path(config.data_dir, config.dataset), config.block_size, config.seed)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    data.check_ids(31)
    arguments = config, model, model, data, EAGER, lambda line: None
    assert batch_size.choose_batch_size(*arguments) == 4
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    played(5 * GIB)  # four would fit to the byte, were there no optimizer to come
    assert batch_size.choose_batch_size(*arguments) == 2


def test_evaluation_does_not_depend_on_the_card(tiny, played):
    results = []
    for room in (2.5, 6.2, 100.0):
        played(room * GIB)
        results.append(train(tiny(**AUTO, eval_iters=1, max_iters=1, learning_rate=1e-9, warmup_iters=0)))
    assert results[0].val_loss == pytest.approx(results[1].val_loss, rel=1e-6)
    assert results[0].val_loss == pytest.approx(results[2].val_loss, rel=1e-6)
    number = train(tiny(batch_size=12, gradient_accumulation_steps=1, eval_iters=1, max_iters=1, learning_rate=1e-9))
    assert number.val_stderr == pytest.approx(results[0].val_stderr, rel=1e-4)


def test_a_run_is_resumed_with_auto_and_with_a_number(tiny, played, capsys):
    played(6.2 * GIB)
    settings = {"eval_iters": 0, "lr_schedule": "constant"}
    whole = train(tiny(**AUTO, **settings, max_iters=9))
    train(tiny(**AUTO, **settings))
    capsys.readouterr()
    again = train(tiny(**AUTO, **settings, max_iters=9, init_from="resume"))
    assert again.val_loss == whole.val_loss and "batch_size" not in capsys.readouterr().out
    played(100 * GIB)  # another card, another micro-batch: rounding
    train(tiny(**AUTO, **settings))
    number = tiny(**AUTO | settings | {"batch_size": 2, "max_iters": 9, "init_from": "resume"})
    assert train(number).val_loss == pytest.approx(whole.val_loss, rel=1e-4)
    assert "batch_size auto -> 2" in capsys.readouterr().out


@pytest.mark.slow
def test_processes_take_what_fits_the_smallest_card(tiny, tmp_path):
    script = tmp_path / "played.py"
    script.write_text(f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
import train
from model_bio import GPT
from wiggle import batch_size
forward = GPT.forward
def noting(self, idx, targets=None):
    Card.size = len(idx)
    return forward(self, idx, targets)
GPT.forward = noting
class Card:
    def __init__(self, device):
        self.device = device
    def budget(self):
        return (100, 3.5)[int(os.environ["RANK"])] * 2**30
    def reset(self):
        pass
    def peak(self):
        return (1 + Card.size) * 2**30
batch_size.find_card = Card
train.main(sys.argv[1:])
""")
    config = tiny(**AUTO | {"tokens_per_step": 256})
    values = {f: getattr(config, f) for f in TrainConfig.__dataclass_fields__}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29513", str(script)]
    done = subprocess.run(
        [*command, *(f"--{key}={value}" for key, value in values.items() if value is not None)],
        capture_output=True, text=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "auto: 2 of 8 sequences fit in 3.50 GiB" in done.stdout
    assert json.loads((Path(config.out_dir) / "config.json").read_text())["batch_size"] == 2


# --- without a card ---


@pytest.mark.parametrize(
    ("sequences", "block_size", "size"),
    [(32, 1024, 8), (480, 1024, 8), (30, 1024, 6), (31, 1024, 1), (4, 64, 4), (512, 64, 128), (6, 100_000, 1)],
)
def test_without_a_card_the_largest_divisor_of_at_most_8192_tokens_is_taken(tiny, sequences, block_size, size):
    config = tiny(**AUTO | {"block_size": block_size, "tokens_per_step": sequences * block_size})
    said = []
    assert batch_size.choose_batch_size(config, None, None, None, EAGER, said.append) == size
    assert said == [
        f"batch     auto: {size} of {sequences} sequences, {size * block_size:,} tokens "
        "(memory is measured on CUDA alone, not on cpu)"
    ]


def test_auto_trains_on_a_cpu(tiny, capsys):
    given = train(tiny(batch_size=8, gradient_accumulation_steps=1))
    capsys.readouterr()
    found = train(tiny(**AUTO))
    assert "batch     auto: 8 of 8 sequences, 128 tokens" in capsys.readouterr().out
    assert found.first_losses == given.first_losses


def test_processes_that_do_not_divide_the_sequences_are_refused(tiny, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="8 micro-batches a step do not divide among 3 processes"):
        train(tiny(**AUTO))
