"""
Conversations: a line of JSON -> messages -> token ids, and which of them a model is taught.

A message is encoded as the mark of its role, its text, and the end mark: <|user|>Hello<|end|>. Marks are ids of their
own (tokenizer.MARKS): the same characters within a text are plain text.
"""

from typing import NamedTuple

from wiggle.tokenizer import ASSISTANT, END, SYSTEM, USER, Tokenizer

ROLES = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}
# What a token's flags say, a byte each in train_mask.bin and val_mask.bin.
LEARNED = 1  # it is a word of the assistant's, or the end mark behind one: the loss is of these alone
FIRST = 2  # a conversation begins with it


class Message(NamedTuple):
    """What somebody says at a time. role: a key of ROLES."""

    role: str
    content: str


class NoConversation(Exception):
    """An item cannot be learned from as a conversation. The text says why, as the end of '7 lines ...'."""


def read_messages(item: object) -> list[Message]:
    """
    {"messages": [{"role", "content"}, ...]} or {"instruction", "input", "output"}, as JSON gives it -> messages.

    What follows the assistant's last message is left out, since nobody answers it. Raises NoConversation.
    """
    if not isinstance(item, dict):
        raise NoConversation("without an object")
    if "messages" not in item and "instruction" in item:
        item = {"messages": instruction_messages(item)}
    rows = item.get("messages")
    if not isinstance(rows, list) or not rows:
        raise NoConversation("without messages")
    messages = [read_message(row) for row in rows]
    while messages and messages[-1].role != "assistant":
        messages.pop()
    if not messages:
        raise NoConversation("without a message of the assistant's")
    return messages


def read_message(row: object) -> Message:
    """{"role", "content"} -> Message. Raises NoConversation."""
    role, content = (row.get("role"), row.get("content")) if isinstance(row, dict) else (None, None)
    if not isinstance(role, str) or role not in ROLES:
        raise NoConversation(f"with the unknown role {role!r:.30}")
    if not isinstance(content, str) or not content.strip():
        raise NoConversation("with an empty message")
    return Message(role, content)


def instruction_messages(item: dict) -> list[dict]:
    """{"instruction", "input", "output"}, of which the input may be missing or empty -> the rows of "messages"."""
    asked = "\n\n".join(str(item[key]) for key in ("instruction", "input") if item.get(key))
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": item.get("output")}]


def encode_message(tokenizer: Tokenizer, message: Message) -> list[int]:
    """A message -> ids, its two marks included. Raises UserError for text that the tokenizer has no ids for."""
    return [tokenizer.mark_id(ROLES[message.role]), *tokenizer.encode(message.content), tokenizer.mark_id(END)]


def encode_conversation(tokenizer: Tokenizer, messages: list[Message]) -> tuple[list[int], list[int]]:
    """Messages -> (ids, the flags of each). Raises UserError for text that the tokenizer has no ids for."""
    ids, flags = [], []
    for message in messages:
        encoded = encode_message(tokenizer, message)
        learned = LEARNED if message.role == "assistant" else 0
        ids += encoded
        flags += [0] + [learned] * (len(encoded) - 1)
    flags[0] |= FIRST
    return ids, flags
