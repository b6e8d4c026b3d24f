"""
Write losses.json anew: python -m tests.golden.record

Only for a change that is meant to change training; its commit message says which losses moved, and why.
"""

import json
import tempfile
from pathlib import Path

import torch

from tests.conftest import write_tiny_corpus
from tests.golden.cases import CASES, LOSSES, losses_of


def main():
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data_dir = write_tiny_corpus(Path(folder))
        found = {case: losses_of(case, data_dir, Path(folder, case)) for case in CASES}
    LOSSES.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
