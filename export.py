"""
Turn a trained model into a folder that transformers, and what builds on it, opens: weights, tokenizer and model card.

    python export.py --out_dir=out/quickstart --to=shared

    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained("shared", trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained("shared", trust_remote_code=True)

A GELU model with learned positions and LayerNorm becomes a plain GPT-2, which needs no trust_remote_code; any other
brings its code, wiggle/modeling_wigglegpt.py. `train.py --init_from=shared` takes both back.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from wiggle import checkpoint, configurator, errors
from wiggle.errors import UserError
from wiggle.files import atomic_write, reading
from wiggle.model_card import model_card
from wiggle.sharing import folder_files, is_plain_gpt2


@dataclass
class ExportConfig:
    """What to export, and where to."""

    out_dir: str = "out"  # a run's folder (best.pt, else ckpt.pt), or a checkpoint file
    to: str = "export"  # the folder to make
    data_dir: str = "data"  # where a nanoGPT checkpoint's meta.pkl is looked for


def export(config: ExportConfig) -> None:
    """Write the folder, and say so. Raises UserError, before anything is written, for a model that cannot go there."""
    folder = Path(config.to)
    with reading(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} is there already, and not empty: name a new folder with --to")
    model, meta = checkpoint.load_model(config.out_dir)
    tokenizer = checkpoint.find_tokenizer(model, meta, config.data_dir)
    if tokenizer.vocab_size > model.config.vocab_size:
        size = f"{tokenizer.vocab_size:,} tokens, the model ids for {model.config.vocab_size:,}"
        raise UserError(
            f"{meta['path']} cannot be exported: its tokenizer has {size}, and transformers takes no such pair"
        )
    try:
        files = folder_files(model, tokenizer)
    except ImportError:
        raise UserError("the export needs a library: pip install transformers") from None
    files["README.md"] = model_card(model, tokenizer, meta).encode()
    for name, content in files.items():
        with atomic_write(folder / name) as file:
            file.write(content)
    kind = "a plain GPT-2" if is_plain_gpt2(model.config) else "with its own code"
    print(
        f"exported  {meta['path']} to {folder}, {kind}: {model.describe()}, {tokenizer.vocab_size:,} "
        f"{tokenizer.kind} tokens"
    )


@errors.script
def main(argv=None):
    export(configurator.read_settings(ExportConfig, sys.argv[1:] if argv is None else argv, __doc__))


if __name__ == "__main__":
    main()
