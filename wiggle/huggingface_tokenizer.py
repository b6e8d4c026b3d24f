"""
Tokenizers in Hugging Face's files: a folder's one is recognised, by its every id, and one of ours becomes such a file.

A tokenizer that is neither GPT-2's nor one of ours is refused: its ids stand for other text, and would be read as ours.
"""

import hashlib
import json
import math
from pathlib import Path

from wiggle.tokenizer import (
    ENCODER_JSON,
    END_OF_TEXT,
    VOCAB_BPE,
    GPT2Tokenizer,
    Tokenizer,
    from_identity,
    gpt2_encoding,
)

# Files of other libraries' tokenizers, whose ids are never GPT-2's
FOREIGN_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.txt")


# --- a folder's tokenizer -> one of ours ---


def folder_tokenizer(folder: Path, vocab_size: int) -> Tokenizer | None:
    """
    The tokenizer of a folder whose model has `vocab_size` ids; None where nothing tells which it is.

    Raises ValueError for a tokenizer that is not known here.
    """
    exported = read_json(folder / "config.json").get("wigglegpt_tokenizer")  # what export.py wrote
    tokenizer = None if exported is None else from_identity(exported)
    settings = tokenizer_settings(folder)
    if settings is None:
        if tokenizer is None and GPT2Tokenizer.vocab_size <= vocab_size <= 50304:  # rounded up to 64 x 786, or less
            tokenizer = GPT2Tokenizer()
    elif is_gpt2s(settings):
        tokenizer = GPT2Tokenizer()
    elif tokenizer is None or ids_of(settings) != ids_of(json.loads(fast_tokenizer(tokenizer).to_str())):
        own = [repr(token["content"]) for token in settings["added_tokens"] if token["content"] != END_OF_TEXT]
        adds = f" (it adds {', '.join(own[:5])})" if own else ""
        raise ValueError(f"its tokenizer is not GPT-2's{adds}, nor as export.py wrote it: its ids stand for other text")
    if tokenizer and tokenizer.vocab_size > vocab_size:
        raise ValueError(f"its tokenizer has {tokenizer.vocab_size:,} tokens, its model {vocab_size:,}")
    return tokenizer


def tokenizer_settings(folder: Path) -> dict | None:
    """The content of tokenizer.json, or what older files say in its words; None where a folder has no tokenizer."""
    if (folder / "tokenizer.json").exists():
        settings = read_json(folder / "tokenizer.json")
    elif (folder / "vocab.json").exists():
        merges = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
        model = {"vocab": read_json(folder / "vocab.json"), "merges": merges[1:-1]}  # without its first, "#version"
        settings = {"model": model, "pre_tokenizer": {"type": "ByteLevel"}}
    else:
        for name in FOREIGN_FILES:
            if (folder / name).exists():
                raise ValueError(f"its tokenizer, {name}, is not GPT-2's: its ids stand for other text")
        return None
    options = read_json(folder / "tokenizer_config.json", {})  # where transformers notes what was added and changed
    ids = read_json(folder / "added_tokens.json", {})
    ids |= {token["content"]: int(i) for i, token in options.get("added_tokens_decoder", {}).items()}
    added = [{"content": text, "id": i} for text, i in ids.items()]
    settings["added_tokens"] = settings.get("added_tokens", []) + added
    if options.get("add_prefix_space"):
        settings["pre_tokenizer"]["add_prefix_space"] = True
    return settings


def is_gpt2s(settings: dict) -> bool:
    """Whether tokenizer.json's content is OpenAI's vocabulary and merges, applied to the text as it is."""
    split = settings.get("pre_tokenizer") or {}
    if settings.get("normalizer") or split.get("type") != "ByteLevel":
        return False
    if split.get("add_prefix_space") or not split.get("use_regex", True):
        return False
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in settings["model"].get("merges", [])]
    encoder_json = json.dumps(ids_of(settings))
    vocab_bpe = "\n".join(["#version: 0.2", *merges, ""])
    hashes = [hashlib.sha256(text.encode()).hexdigest() for text in (encoder_json, vocab_bpe)]
    return hashes == [ENCODER_JSON, VOCAB_BPE]


def ids_of(settings: dict) -> dict[str, int]:
    """tokenizer.json's content -> the id of each token, added ones too, in the order of ids."""
    ids = settings["model"]["vocab"]
    if isinstance(ids, list):  # Unigram's: [[token, score], ...]
        ids = {token: i for i, (token, _) in enumerate(ids)}
    ids = ids | {token["content"]: token["id"] for token in settings["added_tokens"]}
    return dict(sorted(ids.items(), key=lambda item: item[1]))


def read_json(path: Path, default: dict | None = None) -> dict:
    """The object in a JSON file, or `default` where it is missing. Raises ValueError for a damaged file."""
    if not path.exists():
        if default is None:
            raise ValueError(f"it holds no {path.name}")
        return default
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
        return content
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its {path.name} is damaged: {error}") from None


# --- one of our tokenizers -> tokenizer.json ---


def fast_tokenizer(tokenizer: Tokenizer):
    """One of our tokenizers -> the same as a tokenizers.Tokenizer, whose to_str() is what tokenizer.json holds."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    if tokenizer.kind == "char":
        ids = {character: i for i, character in enumerate(tokenizer.characters)}
        fast = tokenizers.Tokenizer(models.WordLevel(ids))
        fast.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
        fast.decoder = decoders.Fuse()
        fast.add_special_tokens([*tokenizer.marks])
        return fast
    gpt2 = tokenizer.kind == "gpt2"
    ranks = gpt2_encoding()._mergeable_ranks if gpt2 else {bytes([byte]): byte for byte in range(256)}
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2 spells each byte as a visible character
    letters = {byte: chr(256 + i) for i, byte in enumerate(sorted(set(range(256)) - set(shown)))}
    letters |= {byte: chr(byte) for byte in shown}
    spelled = {token: "".join(letters[byte] for byte in token) for token in sorted(ranks, key=ranks.get)}
    merges = [tuple(spelled[part] for part in merged_pair(token, ranks)) for token in spelled if len(token) > 1]
    fast = tokenizers.Tokenizer(models.BPE({spelled[token]: ranks[token] for token in spelled}, merges))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=gpt2)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([*([END_OF_TEXT] if gpt2 else []), *tokenizer.marks])  # they get the next ids, from 50256
    return fast


def merged_pair(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two tokens that a token is merged from: what its bytes come to when the lowest rank is merged first."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        i = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], math.inf))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts
