"""What counts as a conversation, and how it is encoded."""

import pytest

from wiggle.conversations import FIRST, LEARNED, Message, NoConversation, encode_conversation, read_messages
from wiggle.errors import UserError
from wiggle.huggingface_tokenizer import fast_tokenizer
from wiggle.tokenizer import MARKS, ByteTokenizer, CharTokenizer, GPT2Tokenizer, from_identity

HELLO = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]


def test_the_two_forms_of_lines():
    assert read_messages({"messages": HELLO}) == [Message("user", "Hello"), Message("assistant", "Hi.")]
    item = {"instruction": "Translate.", "input": "two", "output": "deux"}
    assert read_messages(item) == [Message("user", "Translate.\n\ntwo"), Message("assistant", "deux")]
    assert read_messages(item | {"input": ""})[0].content == "Translate."


def test_what_nobody_answers_is_left_out():
    assert len(read_messages({"messages": [*HELLO, {"role": "user", "content": "And?"}]})) == 2


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (None, "without an object"),
        ([], "without an object"),
        ({}, "without messages"),
        ({"messages": []}, "without messages"),
        ({"messages": "hello"}, "without messages"),
        ({"messages": [HELLO[0]]}, "without a message of the assistant's"),
        ({"messages": ["hello"]}, "with the unknown role None"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "with the unknown role 'tool'"),
        ({"messages": [{"role": [], "content": "x"}]}, r"with the unknown role \[\]"),
        ({"messages": [HELLO[0], {"role": "assistant", "content": " "}]}, "with an empty message"),
        ({"messages": [HELLO[0], {"role": "assistant"}]}, "with an empty message"),
        ({"instruction": "Translate."}, "with an empty message"),
    ],
)
def test_what_is_no_conversation(item, reason):
    with pytest.raises(NoConversation, match=f"^{reason}$"):
        read_messages(item)


def test_the_assistants_words_and_their_end_mark_are_learned_and_nothing_else():
    ids, flags = encode_conversation(ByteTokenizer().with_marks(), [Message("user", "ab"), Message("assistant", "c")])
    assert ids == [257, 97, 98, 259, 258, 99, 259]
    assert flags == [FIRST, 0, 0, 0, 0, LEARNED, LEARNED]


@pytest.mark.parametrize("kind", ["byte", "char", "gpt2"])
def test_no_text_is_encoded_to_a_mark(kind, toy_gpt2):
    text = "".join(MARKS)
    plain = {"byte": ByteTokenizer(), "char": CharTokenizer.from_text(text), "gpt2": GPT2Tokenizer()}[kind]
    marked = plain.with_marks()
    for special in (False, True):
        assert marked.encode(text, special) == plain.encode(text, special)
        assert max(marked.encode(text, special)) < marked.text_size == plain.vocab_size
    ids = [marked.mark_id(mark) for mark in MARKS]
    assert ids == list(range(plain.vocab_size, plain.vocab_size + 4)) and marked.decode(ids) == text
    assert from_identity(marked.identity()).identity() == marked.identity()
    assert marked.with_marks(()).identity() == plain.identity()


def test_gpt2s_marks_lie_in_the_padding_of_its_vocabulary():
    marked = GPT2Tokenizer().with_marks()
    assert [marked.mark_id(mark) for mark in MARKS] == [50257, 50258, 50259, 50260]


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), CharTokenizer.from_text("ab")])
def test_an_exported_tokenizer_has_the_marks_at_their_ids(tokenizer):
    pytest.importorskip("tokenizers")
    marked = tokenizer.with_marks()
    fast = fast_tokenizer(marked)
    assert [fast.token_to_id(mark) for mark in MARKS] == [marked.mark_id(mark) for mark in MARKS]


def test_unknown_marks_in_a_damaged_file_are_refused():
    with pytest.raises(UserError, match="its marks are not"):
        from_identity({"kind": "byte", "vocab_size": 257, "marks": ["<|x|>"]})
