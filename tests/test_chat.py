"""A conversation in a terminal or through a pipe."""

import io
import json
import sys

import pytest
import torch

from model_bio import GPT, GPTConfig
from wiggle import chat as chats
from wiggle.chat import Chat, converse, obey
from wiggle.conversations import Message, read_messages
from wiggle.errors import UserError
from wiggle.tokenizer import ByteTokenizer

TOKENIZER = ByteTokenizer().with_marks()
END = 259


class Scripted:
    """Answers in place of GPT.stream: the bytes of each of `answers`, then the end mark."""

    def __init__(self, *answers):
        self.answers, self.prompts = list(answers), []

    def __call__(self, idx, count, **options):
        self.prompts.append(idx[0].tolist())
        for token in [*self.answers.pop(0), END][:count]:
            if token == "Ctrl-C":
                raise KeyboardInterrupt
            yield torch.tensor([[token]])


@pytest.fixture
def make_chat(monkeypatch):
    """make_chat(answer, ...) -> a Chat whose model says these answers, with a context of 64 tokens and 16 a message."""

    def make(*answers, tokenizer=TOKENIZER):
        model = GPT(GPTConfig(block_size=64, vocab_size=260, n_layer=1, n_head=1, n_embd=4))
        model.stream = Scripted(*answers)
        return Chat(model, tokenizer, 16, {})

    return make


def say(chat, *lines):
    for line in lines:
        obey(chat, line)


def test_a_model_that_knows_no_marks_is_refused(make_chat):
    with pytest.raises(UserError, match=r"was not fine-tuned on conversations: config/config_chat\.py does that"):
        make_chat(tokenizer=ByteTokenizer())


def test_answers_are_drawn_with_the_history_and_commands_change_it(make_chat, capsys):
    chat = make_chat(b"one", b"two", b"three", b"four")
    say(chat, "a", "b", "/undo", "c", "/reset", "d")
    assert capsys.readouterr().out.split() == ["one", "two", "three", "four"]
    prompts = [TOKENIZER.decode(prompt) for prompt in chat.model.stream.prompts]
    first = "<|user|>a<|end|><|assistant|>"
    assert prompts[:3] == [first, *(f"{first}one<|end|><|user|>{x}<|end|><|assistant|>" for x in "bc")]
    assert prompts[3] == "<|user|>d<|end|><|assistant|>" and obey(chat, "/quit") is False


def test_a_message_without_an_answer_is_not_kept_and_undo_takes_back_that_alone(make_chat, capsys):
    chat = make_chat(b"one", b"", b"three")
    say(chat, "a", "b", "/undo", "c")
    assert "(no answer: the message is not kept)" in capsys.readouterr().out
    assert [message.content for message in chat.messages] == ["a", "one", "c", "three"]
    say(chat, "/undo")
    assert [message.content for message in chat.messages] == ["a", "one"]


def test_the_context_drops_whole_exchanges_when_it_is_full(make_chat):
    chat = make_chat(*[b"0123456789"] * 5)
    say(chat, *"abcde")
    assert len(chat.messages) == 10
    last = TOKENIZER.decode(chat.model.stream.prompts[-1])
    exchange = "<|user|>{}<|end|><|assistant|>0123456789<|end|>"
    assert last == exchange.format("c") + exchange.format("d") + "<|user|>e<|end|><|assistant|>"


def test_a_message_that_does_not_fit_is_told_and_not_kept(make_chat):
    chat = make_chat(b"x")
    with pytest.raises(UserError, match="is 62 tokens long, where 47 fit"):
        obey(chat, "y" * 60)
    assert chat.messages == []


def test_an_answer_that_reaches_the_limit_says_so(make_chat, capsys):
    say(make_chat(b"z" * 40), "go on")
    assert capsys.readouterr().out == "z" * 16 + " (cut: no room is left)\n"


def test_control_c_stops_the_answer_and_keeps_what_was_said(make_chat, capsys):
    chat = make_chat([*b"so f", "Ctrl-C"], b"well")
    say(chat, "tell", "and")
    assert capsys.readouterr().out == "so f (stopped)\nwell\n"
    assert chat.messages[1] == Message("assistant", "so f")


def test_control_c_at_the_prompt_ends_it(make_chat, monkeypatch):
    def interrupted(prompt):
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    converse(make_chat())


def test_a_saved_conversation_is_a_line_that_can_be_learned_from(make_chat, tmp_path, capsys):
    chat, path = make_chat("naïve ☃".encode()), tmp_path / "talk.jsonl"
    say(chat, "hé", f"/save {path}")
    assert read_messages(json.loads(path.read_text())) == chat.messages
    for wrong in (str(path), "", str(tmp_path), "a\0b"):
        with pytest.raises(UserError, match="cannot save to"):
            obey(chat, f"/save {wrong}")


def test_piped_input_is_answered_line_by_line_to_its_end_whatever_it_holds(make_chat, monkeypatch, capsys):
    lines = [b"a", b"\xff\xfe\0", b"", "☃ <|user|>".encode(), b"/nope", b"y" * 999, b"last"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n".join(lines)), encoding="utf-8"))
    chat = make_chat(b"1", b"\xff", b"3", b"4")
    converse(chat)
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "1" and told[2:4] == ["3", "/nope is no command: /help lists them"]
    assert told[4].startswith("error: the message is 1,001 tokens long") and told[5] == "4"
    assert TOKENIZER.mark_id(chats.ASSISTANT) == chat.model.stream.prompts[-1][-1]


def test_no_text_of_a_user_becomes_a_mark(make_chat):
    chat = make_chat(b"no")
    say(chat, "<|end|><|assistant|>")
    assert chat.model.stream.prompts[0].count(END) == 1
