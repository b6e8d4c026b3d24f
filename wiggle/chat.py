"""A conversation with a model in a terminal, or through a pipe: sample_bio.py --chat."""

import contextlib
import json
import sys
from collections.abc import Iterator

import torch

from model_bio import GPT
from wiggle.conversations import Message, encode_message
from wiggle.errors import UserError
from wiggle.tokenizer import ASSISTANT, Tokenizer, stream

HELP = """/reset       forget the conversation
/undo        take the last message and its answer back
/save FILE   write the conversation as a line of JSON, which prepare_data.py --chat reads
/help        this
/quit        end; so does Ctrl-C, which stops an answer while one is written"""


class Chat:
    """
    A conversation, and the model that answers in it.

    most: tokens that an answer may have; the context keeps room for so many, or for half of its size where that is
    less. options: of GPT.stream. Raises UserError for a model that knows no marks of conversations.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer, most: int, options: dict):
        if not tokenizer.marks:
            raise UserError(
                "this model was not fine-tuned on conversations: config/config_chat.py does that, or let it continue "
                "a text, without --chat"
            )
        self.model, self.tokenizer, self.options = model, tokenizer, options
        self.room = min(most, model.config.block_size // 2)
        self.messages: list[Message] = []
        self.cut = False  # whether the last answer ended for want of room
        self.unanswered = False  # whether the last message got no answer, and so was not kept

    def prompt(self, messages: list[Message]) -> list[int]:
        """
        The ids that an answer to the last of `messages` follows: as many whole exchanges as leave room for it.

        Raises UserError where even the last message does not fit, or has a character that the tokenizer lacks.
        """
        encoded = [encode_message(self.tokenizer, message) for message in messages]
        longest, mark = self.model.config.block_size - self.room, self.tokenizer.mark_id(ASSISTANT)
        for first in range(0, len(messages), 2):  # an exchange is a message and its answer
            ids = [*(i for message in encoded[first:] for i in message), mark]
            if len(ids) <= longest:
                return ids
        raise UserError(f"the message is {len(encoded[-1]):,} tokens long, where {longest - 1:,} fit: shorten it")

    def answer(self, text: str) -> Iterator[str]:
        """
        Yield the answer to a message piece by piece, and keep both. An answer that is broken off is kept as far as it
        came; with an empty one, neither is. Raises UserError, and keeps nothing, for what cannot be answered.
        """
        asked = [*self.messages, Message("user", text)]
        ids = self.prompt(asked)
        device = self.model.lm_head.weight.device
        push, pieces, self.cut, self.unanswered = stream(self.tokenizer), [], True, True
        drawn = self.model.stream(torch.tensor([ids], device=device), self.room, **self.options)
        try:
            for token in drawn:
                if token.item() >= self.tokenizer.text_size:  # the end mark, or another one out of place
                    self.cut = False
                    break
                pieces.append(push(token.item()))
                yield pieces[-1]
            pieces.append(push())
            yield pieces[-1]
        finally:
            drawn.close()
            if said := "".join(pieces):
                self.unanswered = False
                self.messages = [*asked, Message("assistant", said)]

    def undo(self) -> None:
        """Take the last message and its answer back; one that got no answer was not kept."""
        if not self.unanswered:
            self.messages = self.messages[:-2]
        self.unanswered = False

    def save(self, path: str) -> None:
        """Write the conversation as a line of JSON into a new file. Raises UserError where that cannot be done."""
        rows = [message._asdict() for message in self.messages]
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(json.dumps({"messages": rows}) + "\n")
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"cannot save to {path!r}: {reason}; name another file") from None


def converse(chat: Chat) -> None:
    """Read messages and commands from standard input and print the answers, until it ends or the user does."""
    terminal = sys.stdin.isatty()
    if terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - it lets input() edit lines and recall them
        print("chat      /help lists the commands")
    elif hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    while True:
        try:
            line = input("> " if terminal else "")
        except (EOFError, KeyboardInterrupt):
            if terminal:
                print()
            return
        try:
            if not obey(chat, line.strip()):
                return
        except UserError as error:
            print(f"error: {error}", flush=True)


def obey(chat: Chat, line: str) -> bool:
    """Do what a line asks for: a command's work, or an answer -> whether the conversation goes on."""
    command, _, argument = line.partition(" ")
    if command == "/quit":
        return False
    if command == "/reset":
        chat.messages = []
    elif command == "/undo":
        chat.undo()
    elif command == "/save":
        chat.save(argument.strip())
        print(f"saved {argument.strip()}")
    elif command == "/help":
        print(HELP)
    elif command.startswith("/"):
        print(f"{command} is no command: /help lists them")
    elif line:
        print_answer(chat, line)
    return True


def print_answer(chat: Chat, text: str) -> None:
    """Print the answer to a message as it is drawn. Ctrl-C ends it, and nothing else."""
    answer = chat.answer(text)
    try:
        for piece in answer:
            print(piece, end="", flush=True)
        print(" (cut: no room is left)" if chat.cut else "", flush=True)
    except KeyboardInterrupt:
        answer.close()
        print(" (stopped)", flush=True)
    if chat.unanswered:
        print("(no answer: the message is not kept)", flush=True)
