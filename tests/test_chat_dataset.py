"""Conversations in rows: each has the loss and the gradients that it has alone, and nothing else is learned from."""

import json

import numpy as np
import pytest
import torch

from model_bio import GPT, GPTConfig
from tests.conftest import TINY
from train import TrainConfig, train
from wiggle.bulk_sources import find_bulk_corpus
from wiggle.chat_corpus import prepare_chat
from wiggle.chat_dataset import ChatDataset, cut_at_turns, open_dataset, pack
from wiggle.conversations import FIRST, LEARNED
from wiggle.device import send_windows
from wiggle.errors import UserError

CPU = torch.device("cpu")


def lines(count=60):
    for i in range(count):
        turns = [("user", f"say {i}"), ("assistant", f"{i}!" * (1 + i % 3)), ("user", "again"), ("assistant", f"{i}")]
        yield {"messages": [{"role": role, "content": text} for role, text in turns[: 2 + 2 * (i % 2)]]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("talks")
    (place / "talks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines()))
    corpus = find_bulk_corpus("", files=str(place / "talks.jsonl"))
    return prepare_chat(corpus, place / "data", name="talks", tokenizer="byte", val_fraction=0.2)


def model_of(data, seed=1, **changes):
    settings = {"block_size": data.block_size, "n_layer": 2, "n_head": 2, "n_embd": 16, "mlp": "bio"} | changes
    return GPT(GPTConfig(vocab_size=data.model_vocab, **settings), seed=seed)


def conversations_of(row):
    """A row (3, T) -> the idx and targets of each conversation in it, alone, (1, t) each."""
    idx, targets, begins = row
    for begin in begins.unique().tolist():
        here = begins == begin
        if (targets[here] != -1).any():
            yield idx[here][None], targets[here][None]


@pytest.mark.parametrize("position", ["learned", "rope", "none"])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_the_loss_of_a_packed_batch_is_the_mean_over_its_conversations_run_alone(folder, position, qk_norm):
    data = open_dataset(folder, 64, 1)
    windows = data.batch(0, 6)
    model = model_of(data, position=position, qk_norm=qk_norm)
    packed = model(*send_windows(windows, CPU))[1].item()
    total, count, alone = 0.0, 0, 0
    for row in windows:
        for idx, targets in conversations_of(row):
            learned = int((targets != -1).sum())
            total += model(idx, targets)[1].item() * learned
            count, alone = count + learned, alone + 1
    assert alone > 12 and packed == pytest.approx(total / count, abs=1e-5)


def embedded(model, idx, targets, begins):
    """The gradient of the loss with respect to each token's embedding, (B, T, C)."""
    kept = []
    handle = model.transformer.wte.register_forward_hook(lambda m, i, out: kept.append(out) or out.retain_grad())
    model(idx, targets, begins)[1].backward()
    handle.remove()
    return kept[0].grad


def test_a_changed_word_of_a_user_changes_no_gradient_of_an_earlier_conversation_and_of_no_later_one(folder):
    data = open_dataset(folder, 64, 1)
    idx, targets, begins = send_windows(data.batch(0, 1), CPU)
    second = begins.unique()[1].item()
    before = embedded(model_of(data), idx, targets, begins)
    changed = idx.clone()
    changed[0, second + 1] = ord("X")  # the first character of the second conversation's user
    after = embedded(model_of(data), changed, targets, begins)
    own = begins == second
    assert torch.equal(before[~own], after[~own]) and not torch.equal(before[own], after[own])


def test_masked_tokens_are_no_targets_and_get_no_gradient(folder):
    data = open_dataset(folder, 64, 1)
    idx, targets, begins = send_windows(data.batch(0, 3), CPU)
    logits = model_of(data)(idx, targets, begins)[0].detach().requires_grad_()
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1).backward()
    masked = targets == -1
    assert masked.any() and torch.count_nonzero(logits.grad[masked]) == 0
    assert (logits.grad[~masked].abs().sum(-1) > 0).all()
    end, assistant = data.model_vocab - 1, data.model_vocab - 2
    learned = targets[~masked].tolist()
    assert end in learned and assistant not in learned
    said = bytes(token for token in learned if token < 256).decode()
    assert "say" not in said and "again" not in said and "!" in said


def test_a_changed_masked_target_changes_no_gradient(folder):
    data = open_dataset(folder, 64, 1)
    idx, _, begins = send_windows(data.batch(0, 1), CPU)
    last = int((begins[0] == begins[0, 0]).sum()) - 1
    targets = torch.full_like(idx, -1)
    targets[0, last - 1] = 7
    gradient = embedded(model_of(data), idx, targets, begins)
    assert torch.count_nonzero(gradient[0, last:]) == 0 and torch.count_nonzero(gradient[0, :last]) > 0


def test_gradients_do_not_depend_on_how_a_step_is_divided(folder):
    data = open_dataset(folder, 64, 1)
    gradients = []
    for size in (6, 3, 2, 1):
        model = model_of(data)
        for first in range(12, 18, size):
            loss = model(*send_windows(data.batch(first, size), CPU))[1] / data.loss_divisor(first, size, 6)
            loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-4, atol=1e-6)


def test_batches_are_a_function_of_seed_and_number_and_an_epoch_visits_each_row_once(folder):
    data, rows = open_dataset(folder, 64, 1), len(open_dataset(folder, 64, 1).rows["train"])
    assert sorted(data.train_starts(np.arange(rows, 2 * rows)).tolist()) == list(range(rows))
    assert torch.equal(data.batch(5, 4), torch.cat([open_dataset(folder, 64, 1).batch(5 + i, 1) for i in range(4)]))
    assert not torch.equal(data.batch(0, rows), open_dataset(folder, 64, 2).batch(0, rows))


def test_every_learned_token_is_a_target_once(folder):
    data = open_dataset(folder, 64, 1)
    targets = data.windows("train", data.fixed_windows("train", 0))[:, 1]
    assert (targets != -1).sum() == np.count_nonzero(data.flags["train"] & LEARNED)
    assert (targets != -1).sum(1).tolist() == data.targets("train", data.fixed_windows("train", 0)).tolist()


def flags_of(*conversations):
    """Flags of conversations, each a list of exchanges (tokens of the user, of the assistant)."""
    flags = []
    for exchanges in conversations:
        begin = len(flags)
        for user, assistant in exchanges:
            flags += [0] * user + [LEARNED] * assistant
        flags[begin] |= FIRST
    return np.array(flags, np.uint8)


def test_a_long_conversation_is_cut_at_a_turn():
    pieces, left_out = cut_at_turns(flags_of([(3, 2), (3, 2), (3, 2)], [(4, 1)]), 10)
    assert pieces.tolist() == [[0, 10], [10, 15], [15, 20]] and left_out == 0


def test_an_exchange_that_is_longer_than_a_row_is_left_out():
    pieces, left_out = cut_at_turns(flags_of([(3, 2), (30, 2), (3, 2)]), 10)
    assert pieces.tolist() == [[0, 5], [37, 42]] and left_out == 1


def test_rows_are_filled_and_never_overfull():
    lengths = np.array([5, 3, 7, 2, 8, 5])
    rows = pack(lengths, 10)
    assert rows.max() + 1 == 3 and np.bincount(rows, lengths).max() <= 10


def test_a_mask_that_is_missing_or_of_other_tokens_is_refused(folder, tmp_path):
    for name in ("train.bin", "val.bin", "meta.json", "train_mask.bin"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(UserError, match=r"val_mask\.bin is missing"):
        open_dataset(tmp_path, 64, 1)
    (tmp_path / "val_mask.bin").write_bytes(b"\1" * 7)
    with pytest.raises(UserError, match=r"is not the mask of val\.bin"):
        open_dataset(tmp_path, 64, 1)
    with pytest.raises(UserError, match=r"no exchange in .* fits in block_size=4"):
        open_dataset(folder, 4, 1)


def test_a_model_is_fine_tuned_and_its_vocabulary_grows(folder, tmp_path, capsys):
    text = tmp_path / "data" / "text"
    text.mkdir(parents=True)
    for split in ("train", "val"):
        np.frombuffer(b"a plain text, of bytes. " * 40, np.uint8).astype("<u2").tofile(text / f"{split}.bin")
    (text / "meta.json").write_text('{"tokenizer": {"kind": "byte"}, "dtype": "uint16"}')
    common = TINY | {"block_size": 64, "mlp": "bio"}
    train(TrainConfig(**common | {"dataset": "text", "data_dir": str(text.parent), "out_dir": str(tmp_path / "base")}))
    chat = {"dataset": "talks", "data_dir": str(folder.parent), "out_dir": str(tmp_path / "chat"), "max_iters": 40}
    result = train(TrainConfig(**common | chat | {"init_from": str(tmp_path / "base")}))
    said = capsys.readouterr().out
    assert "grown     the vocabulary by 4 ids" in said and "conversations to train on" in said
    assert result.history[-1]["val_loss"] < result.history[0]["loss"] - 1
    assert isinstance(open_dataset(folder, 64, 1), ChatDataset)
    named = ("n_layer", "n_head", "n_embd", "block_size", "mlp")  # which the weights had set
    short = {key: value for key, value in common.items() if key not in named}
    for steps in (41, 42):  # and a resumed run is resumed again
        again = train(TrainConfig(**short | chat | {"init_from": "resume", "max_iters": steps}))
        assert again.steps == steps and again.val_loss < result.val_loss + 0.1
