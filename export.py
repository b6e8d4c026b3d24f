"""
Turn a trained GELU model into a standard GPT-2 folder, which transformers and what builds on it open as it is.

    python export.py --out_dir=out/control --to=gelu-gpt2

    from transformers import AutoModelForCausalLM, AutoTokenizer
    model, tokenizer = (auto.from_pretrained("gelu-gpt2") for auto in (AutoModelForCausalLM, AutoTokenizer))
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from wiggle import checkpoint, configurator, errors
from wiggle.errors import UserError
from wiggle.files import atomic_write, reading, write_json
from wiggle.huggingface import check_exportable, gpt2_config, gpt2_weights
from wiggle.huggingface_tokenizer import fast_tokenizer
from wiggle.tokenizer import END_OF_TEXT


@dataclass
class ExportConfig:
    """What to export, and where to."""

    out_dir: str = "out"  # a run's folder (best.pt, else ckpt.pt), or a checkpoint file
    to: str = "export"  # the folder to make
    data_dir: str = "data"  # where a nanoGPT checkpoint's meta.pkl is looked for


def export(config: ExportConfig) -> None:
    """Write the folder, and say so. Raises UserError, before anything is written, for what GPT-2 cannot express."""
    folder = Path(config.to)
    with reading(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} is there already, and not empty: name a new folder with --to")
    model, meta = checkpoint.load_model(config.out_dir)
    check_exportable(model.config)
    tokenizer = checkpoint.find_tokenizer(model, meta, config.data_dir)
    if tokenizer.vocab_size > model.config.vocab_size:
        size = f"{tokenizer.vocab_size:,} tokens, the model ids for {model.config.vocab_size:,}"
        raise UserError(
            f"{meta['path']} cannot be exported: its tokenizer has {size}, and transformers takes no such pair"
        )
    try:
        from safetensors.torch import save

        weights, fast = save(gpt2_weights(model, tokenizer.vocab_size), {"format": "pt"}), fast_tokenizer(tokenizer)
    except ImportError:
        raise UserError("the export needs a library: pip install transformers") from None
    tokenizer_config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if tokenizer.kind == "gpt2":
        tokenizer_config |= {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
    for name, content in (("model.safetensors", weights), ("tokenizer.json", fast.to_str().encode())):
        with atomic_write(folder / name) as file:
            file.write(content)
    write_json(folder / "tokenizer_config.json", tokenizer_config)
    write_json(folder / "config.json", gpt2_config(model.config, tokenizer))
    print(f"exported  {meta['path']} to {folder}: {model.describe()}, {tokenizer.vocab_size:,} {tokenizer.kind} tokens")


@errors.script
def main(argv=None):
    export(configurator.read_settings(ExportConfig, sys.argv[1:] if argv is None else argv, __doc__))


if __name__ == "__main__":
    main()
