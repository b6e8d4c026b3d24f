"""A run that ran out of memory: what the sentence says, and how well it estimates what training takes."""

import weakref
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import model_bio
import train as train_module
from experiment import processes, workers
from kernels import cross_entropy
from model_bio import GPT, GPTConfig
from tests.test_train_config import AUTO
from train import TrainConfig, train
from wiggle import checkpoint, device, out_of_memory
from wiggle.errors import UserError
from wiggle.optimizers import configure_optimizer
from wiggle.out_of_memory import GIB, estimated_bytes, optimizer_state_bytes

KEYS = ("batch_size", "gradient_checkpointing=True", "block_size")
# --- the estimate ---

SHAPE = {"block_size": 64, "vocab_size": 31, "n_layer": 3, "n_head": 4, "n_embd": 96, "bias": False}


def saved_bytes(model, idx):
    """Bytes that autograd keeps for backward: each storage once, parameters and buffers left out."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept = []

    def note(tensor):
        kept.append(tensor)  # or a freed storage's address could be given out again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(idx, idx)
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    return sum(size for place, size in sizes.items() if place not in own)


@pytest.mark.parametrize("changes", [{}, {"mlp": "bio"}, {"mlp": "bio", "bio_gate": "none"}, {"position": "rope"}])
def test_the_estimate_counts_what_autograd_keeps(changes, monkeypatch):
    monkeypatch.setattr("kernels.attention.serves", lambda qkv: False)  # the estimate is for a card
    model, B = GPT(GPTConfig(**SHAPE | {"n_layer": 12} | changes), seed=1), 3
    idx = torch.randint(31, (B, 64), generator=torch.Generator().manual_seed(0))
    _, each, _ = estimated_bytes(model, "adamw", torch.float32, B)
    assert B * each == pytest.approx(saved_bytes(model, idx), rel=0.15)


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that operations made and that are alive."""

    def __init__(self):
        super().__init__()
        self.alive, self.now, self.peak = set(), 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage._cdata not in self.alive:
                self.add(storage._cdata, storage.nbytes())
                weakref.finalize(storage, self.add, storage._cdata, -storage.nbytes())
        return out

    def add(self, place, size):
        (self.alive.add if size > 0 else self.alive.discard)(place)
        self.now += size
        self.peak = max(self.peak, self.now)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("changes", "off"),
    [
        ({"block_size": 256, "n_layer": 6}, 0.15),
        ({"block_size": 256, "n_layer": 6, "gradient_checkpointing": True}, 0.2),
        ({"vocab_size": 3000}, 0.2),  # logits outweigh the rest, in one piece
        ({"vocab_size": 5000}, 0.15),  # and in chunks
    ],
)
def test_the_estimate_foresees_the_peak_of_a_step(monkeypatch, changes, off, dtype):
    monkeypatch.setattr("kernels.matmul._one_dnn", lambda: None)  # a card's products take torch's way
    for module in (model_bio, out_of_memory):
        monkeypatch.setattr(module, "LARGE_LOGITS", 2**20)
    monkeypatch.setattr(cross_entropy, "CHUNK", 128)
    opaque = cross_entropy._loss_and_gradients
    monkeypatch.setattr(cross_entropy, "_loss_and_gradients", opaque._init_fn)  # what it allocates is to be counted
    model, B = GPT(GPTConfig(**SHAPE | changes), seed=1), 4
    weights = model.get_num_params(non_embedding=False)
    idx = torch.randint(31, (B, model.config.block_size), generator=torch.Generator().manual_seed(0))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with Live() as live:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = model(idx, idx)[1]
        loss.backward()
    fixed, each, _ = estimated_bytes(model, "adamw", dtype, B)
    standing = 8 * weights + optimizer_state_bytes(model, "adamw")  # weights, gradients, moments: made outside
    assert fixed - standing + B * each == pytest.approx(live.peak, rel=off)


def test_the_estimate_for_gpt2_is_342_mb_a_sequence():
    with torch.device("meta"):
        model = GPT(GPTConfig(bias=False))
    fixed, each, spared = estimated_bytes(model, "adamw", torch.bfloat16, 1)
    assert 342e6 < each < 1.1 * 342e6 and 0.6 * each < spared < each  # which leave out the gradients of a block
    with torch.device("meta"):
        less = estimated_bytes(GPT(GPTConfig(bias=False, gradient_checkpointing=True)), "adamw", torch.bfloat16, 1)
    assert less[0] < fixed and less[1] == each - spared


@pytest.mark.parametrize("optimizer_type", ["adamw", "adafactor", "muon"])
def test_the_optimizers_state_is_counted_as_it_is_kept(optimizer_type):
    model = GPT(GPTConfig(**SHAPE), seed=1)
    optimizer = configure_optimizer(model, 0.1, 1e-3, (0.9, 0.99), "cpu", optimizer_type)
    idx = torch.randint(31, (1, 64))
    model(idx, idx)[1].backward()
    optimizer.step()
    kept = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
    assert optimizer_state_bytes(model, optimizer_type) == pytest.approx(sum(t.nbytes for t in kept), rel=0.02)


# --- out of memory ---


@pytest.fixture
def fails(monkeypatch):
    """fails(number, error): the number-th forward pass of training raises the error, until fails() mends it."""
    forward = GPT.forward

    def make(number=None, error=None):
        left = [number]

        def failing(self, idx, targets=None):
            if self.training and left[0] is not None:
                left[0] -= 1
                if left[0] == 0:
                    raise error
            return forward(self, idx, targets)

        monkeypatch.setattr(GPT, "forward", failing)

    return make


CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of ...")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you ...")


@pytest.mark.parametrize("error", [CUDA, CPU, MemoryError()])
def test_out_of_memory_is_one_sentence_and_what_was_saved_goes_on(tiny, fails, capsys, error):
    settings = {"max_iters": 8, "eval_interval": 2, "dropout": 0.1}
    whole = train(tiny(**settings))
    fails(2 * 2 + 1, error)  # in step 3
    with pytest.raises(UserError) as caught:
        train(tiny(**settings))
    sentence = str(caught.value)
    assert sentence.startswith("out of memory on cpu: batch_size=4 x block_size=16 takes about")
    assert "\n" not in sentence and all(key in sentence for key in KEYS)
    assert "lower batch_size to 2 (gradient_accumulation_steps=4 keeps the step)" in sentence
    out = Path(tiny().out_dir)
    assert checkpoint.read(out / "ckpt.pt")["iter_num"] == checkpoint.read(out / "best.pt")["iter_num"] == 2
    fails()
    again = train(tiny(**settings, init_from="resume"))
    assert again.steps == 8 and again.val_loss == whole.val_loss


def test_a_script_ends_with_code_1_and_a_comparisons_child_says_the_same(tiny, fails, capsys):
    values = {f: getattr(tiny(), f) for f in TrainConfig.__dataclass_fields__}
    fails(3, CUDA)
    with pytest.raises(SystemExit) as left:
        train_module.main([f"--{key}={value}" for key, value in values.items() if value is not None])
    assert left.value.code == 1 and capsys.readouterr().err.startswith("error: out of memory on cpu: batch_size=4")
    fails(3, CUDA)
    outcome, sentence = processes.outcome_or_error(workers.one_run, (tiny(dtype="float32"), "reporting", None))
    assert outcome is None and all(key in sentence for key in KEYS)


def test_an_evaluation_that_takes_too_much_is_explained_too(tiny, monkeypatch):
    def fail(*args):
        raise CUDA

    monkeypatch.setattr("wiggle.evaluation.window_losses", fail)
    for changes in ({}, {"eval_only": True}):
        with pytest.raises(UserError, match="out of memory on cpu"):
            train(tiny(**changes))


def test_other_errors_stay_what_they_are(tiny, fails, monkeypatch):
    fails(3, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        train(tiny())

    def fail(*args):
        raise MemoryError

    monkeypatch.setattr(train_module, "GPT", fail)
    with pytest.raises(MemoryError):  # no model yet, so none of the keys is known to help
        train(tiny())


def test_the_sentence_is_about_the_model_and_the_micro_batch_that_ran(tiny, fails, monkeypatch, tmp_path):
    first = train(tiny(block_size=8, max_iters=1))
    fails(1, CUDA)
    with pytest.raises(UserError, match="batch_size=4 x block_size=8 takes"):  # of the checkpoint, not of the settings
        train(tiny(init_from=first.out_dir, block_size=8, n_embd=32, out_dir=str(tmp_path / "second")))
    fails()

    def fail(*args):
        raise CUDA

    monkeypatch.setattr(train_module, "train_step", fail)
    with pytest.raises(UserError, match="batch_size=8 x block_size=16 takes"):  # what auto chose
        train(tiny(**AUTO))
    monkeypatch.setattr(device, "lacking_to_compile", lambda device: None)
    monkeypatch.setattr(torch, "compile", lambda model: lambda *ids: model(*ids))  # as opaque as DDP's wrapper
    with pytest.raises(UserError, match="batch_size=4 x block_size=16 takes"):
        train(tiny(compile=True))


def sentence(monkeypatch, room, **changes):
    """What would be said on a card with `room` GiB to be had, for GPT-2's shape."""
    monkeypatch.setattr(out_of_memory.Card, "budget", lambda self: room * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA GeForce RTX 3070")
    config = TrainConfig(**changes)
    with torch.device("meta"):
        model = GPT(config.gpt_config(50304))
    return out_of_memory.out_of_memory_advice(config, model, torch.device("cuda"), torch.bfloat16)


def test_on_a_card_the_sentence_says_how_much_would_fit(monkeypatch):
    assert sentence(monkeypatch, 6.5, batch_size=12) == (
        "out of memory on NVIDIA GeForce RTX 3070, where 6.5 GiB are to be had: batch_size=12 x block_size=1024 takes "
        "about 7.11 GiB (0.339 a sequence, 3.04 fixed); lower batch_size to 10 (gradient_accumulation_steps=48 keeps "
        "the step; train.py measures it by batch_size='auto' and tokens_per_step=491520), set "
        "gradient_checkpointing=True (about 3.12 GiB less), or lower block_size"
    )
    for room, size in ((5, 5), (2, 1), (20, 6)):  # with 20 the estimate says that 12 fit, but they did not
        assert f"lower batch_size to {size} " in sentence(monkeypatch, room, batch_size=12)
    alone = sentence(monkeypatch, 2, batch_size=1)
    assert "lower batch_size" not in alone and "; set gradient_checkpointing=True (" in alone
    least = sentence(monkeypatch, 2, batch_size=1, gradient_checkpointing=True)
    assert least.endswith("; lower block_size, for gradient_checkpointing=True is set already")
    assert all(key in text for key in KEYS for text in (alone, least))
