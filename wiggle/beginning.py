"""What a training run begins from: its own checkpoint, which it goes on from, or the weights of another model."""

from dataclasses import asdict, replace
from pathlib import Path

from model_bio import GPT, GPTConfig
from wiggle import checkpoint, errors
from wiggle.custom_neuron import BuildNeuron
from wiggle.dataset import Dataset
from wiggle.errors import UserError
from wiggle.huggingface import is_pretrained
from wiggle.run_log import Say
from wiggle.tokenizer import from_identity
from wiggle.train_config import TrainConfig

# What a resumed run may not change: the others may, and are listed where they do.
FIXED = (*(set(GPTConfig.__dataclass_fields__) - {"dropout", "gradient_checkpointing"}), "seed", "optimizer_type")


def load_start(config: TrainConfig, neuron: BuildNeuron | None, say: Say) -> tuple[GPT, dict | None]:
    """
    The model that init_from names, GPT-2 of Hugging Face or any checkpoint that checkpoint.load_model opens, and the
    identity of its tokenizer, or None where the file names none.
    """
    if not (is_pretrained(config.init_from) or Path(config.init_from).exists()):
        raise UserError(
            f"init_from={config.init_from!r} is no file: choose scratch, resume, gpt2, or a checkpoint's path"
        )
    free = {"dropout": config.dropout, "gradient_checkpointing": config.gradient_checkpointing}
    model, meta = checkpoint.load_model(config.init_from, neuron=neuron, **free)
    if config.mlp not in ("gelu", model.config.mlp):
        raise UserError(f"init_from={config.init_from} has mlp={model.config.mlp}, which contradicts mlp={config.mlp}")
    length = model.config.block_size
    if config.block_size > length and config.block_size != TrainConfig.block_size:  # the default asks for nothing
        raise UserError(f"block_size={config.block_size} is longer than {config.init_from}'s {length}")
    model.crop_block_size(min(config.block_size, length))
    say(f"start     weights of {meta['path']} ({meta['origin']}), a fresh optimizer")
    return model.train(), meta["tokenizer"] and from_identity(meta["tokenizer"]).identity()


def with_shape_of_weights(config: TrainConfig, resumed: dict) -> TrainConfig:
    """
    The settings of a resumed run, with the model's keys taken from its checkpoint where they are left at their
    defaults, if the run began from weights that set them (init_from=PATH or gpt2).
    """
    if resumed.get("begun_from", "scratch") == "scratch":
        return config
    fields = TrainConfig.__dataclass_fields__
    keys = {*GPTConfig.__dataclass_fields__, *resumed["model_args"]} & set(FIXED)
    left = {key: resumed["model_args"].get(key) for key in keys if getattr(config, key) == fields[key].default}
    with errors.plausible(f"the model_args in {config.out_dir}/ckpt.pt"):
        return replace(config, **{key: value for key, value in left.items() if value is not None})


def check_resumable(config: TrainConfig, resumed: dict, data: Dataset, say: Say) -> None:
    """Raise UserError where the settings are not those of the run that is to go on."""
    kinds = {"config": dict, "optimizer": dict, "scaler": dict, "dataset": dict, "skipped": list, "iter_num": int}
    kinds |= {"seconds": float, "metrics_bytes": int}
    if not all(isinstance(resumed.get(key), kind) for key, kind in kinds.items()):
        raise UserError(
            f"ckpt.pt in {config.out_dir} is not of this train.py: --init_from=PATH starts from its weights"
        )
    with errors.plausible(f"the config in {config.out_dir}/ckpt.pt"):
        known = {key: value for key, value in resumed["config"].items() if key in TrainConfig.__dataclass_fields__}
        old, new = TrainConfig(**known), config
    for key in FIXED:
        if getattr(old, key) != getattr(new, key):
            raise UserError(
                f"{key}={getattr(new, key)!r} cannot resume a run with {key}={getattr(old, key)!r}: "
                "give it as it was, or start anew with another --out_dir"
            )
    if old.sequences_per_step != new.sequences_per_step:
        raise UserError(f"{new.sequences_per_step} sequences a step cannot resume a run with {old.sequences_per_step}")
    if data.identity != resumed["dataset"] or data.tokenizer != resumed.get("tokenizer", data.tokenizer):
        raise UserError(f"dataset {config.dataset} is not the one that the run in {config.out_dir} was trained on")
    before, after = asdict(old) | {"init_from": ""}, asdict(new) | {"init_from": ""}
    changed = [f"{key} {before[key]} -> {after[key]}" for key in after if before[key] != after[key]]
    if changed:
        say(f"changed   {', '.join(changed)}")
