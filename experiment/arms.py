"""The arms of an experiment: settings that are resolved as train.py would, and proved to differ in one key alone."""

import functools
import inspect
import itertools
from collections.abc import Callable
from dataclasses import replace

from experiment.study import Arm, Point, Study
from model_bio import HISTORIC, stands_for_mlp
from train import TrainConfig
from wiggle import configurator, custom_neuron
from wiggle.custom_neuron import Neuron
from wiggle.device import pick_machine, without_context
from wiggle.errors import UserError

# Keys that change nothing about what a run computes, and keys that say on what it is judged
BYSTANDERS = {"out_dir", "data_dir", "dataset", "init_from", "eval_only", "log_interval", "always_save_checkpoint"}
BYSTANDERS |= {"wandb_log", "wandb_project", "wandb_run_name", "wandb_group", "wandb_arm"}
BYSTANDERS |= {"final_sample", "max_blowup", "backend", "parallel"}
BYSTANDERS |= {*HISTORIC, "bio_compartments"}
JUDGES = {"seed", "eval_iters", "eval_interval"}
# Keys by which a step's parameters, FLOPs or tokens change
PRICED = {"batch_size", "tokens_per_step", "gradient_accumulation_steps", "block_size", "n_layer", "n_embd", "n_head"}
PRICED |= {"dendritic_branches"}


def spell(value: object) -> str:
    """A setting's value as a flag spells it."""
    return f"{value:g}" if type(value) is float and float(f"{value:g}") == value else str(value)


def parse_varied(text: str) -> tuple[str, list[str]]:
    """'key=a,b' -> (key in today's spelling, ['--key=a', '--key=b'])."""
    key, _, values = text.partition("=")
    if not all(split_values(values)):
        raise UserError(f"{text!r} is not of the form KEY=A,B")
    if key not in TrainConfig.__dataclass_fields__:
        configurator.read_settings(TrainConfig, [f"--{text}"])  # raises, and names the nearest known key
    return HISTORIC.get(key, (key,))[0], [f"--{key}={value}" for value in split_values(values)]


def parse_together(text: str) -> tuple[list[str], list[list[str]]]:
    """
    'key+other=a,b+c' -> (['key', 'other'], [['--key=a'], ['--key=b', '--other=c']]), of one key or several.

    A value that names fewer parts than there are keys leaves the last keys as they are.
    """
    joined, _, values = text.partition("=")
    keys = joined.split("+")
    if len(keys) == 1:
        key, flags = parse_varied(text)
        return [key], [[flag] for flag in flags]
    together = []
    for value in split_values(values):
        parts = value.split("+")
        if len(parts) > len(keys):
            raise UserError(f"{value!r} names {len(parts)} values for the {len(keys)} keys {joined}")
        together.append([parse_varied(f"{key}={part}")[1][0] for key, part in zip(keys, parts, strict=False)])
    return [parse_varied(f"{key}=?")[0] for key in keys], together


def split_values(text: str) -> list[str]:
    """'a.py:TopK(share=0.1, k=2),gelu' -> its values, split at the commas outside of brackets and of quoted words."""
    values, closing = [""], []  # closing: what ends each bracket or quotation that is open
    for letter in text:
        if letter == "," and not closing:
            values.append("")
            continue
        values[-1] += letter
        quoted = closing and closing[-1] in "'\""
        if closing and letter == closing[-1]:
            closing.pop()
        elif letter in "([{" and not quoted:
            closing.append({"(": ")", "[": "]", "{": "}"}[letter])
        elif letter in "'\"" and closing and not quoted:  # outside of brackets it is an apostrophe in a path
            closing.append(letter)
    return values


def resolve(
    words: list[str], flags: list[str], varied: list[str], on_machine: Callable = without_context
) -> TrainConfig:
    """
    The TrainConfig of one arm, as train.py resolves these words. on_machine: as in plan_arms.

    Config files run a second time with the varied keys at the arm's values from the start: a file that sets another key
    by them does so then, and `isolate` names it.
    """
    first = configurator.read_settings(TrainConfig, [*words, *flags])
    preset = {key: getattr(first, key) for key in varied}
    config = configurator.read_settings(TrainConfig, [*words, *flags], preset=preset)
    if config.init_from != "scratch" or config.eval_only or config.batch_size == "auto":
        raise UserError("arms train from scratch with a batch_size given as a number: no init_from, eval_only or auto")
    picked = resolve_machine(config.device, config.dtype, config.compile, on_machine)
    return replace(config, **picked, final_sample=0, always_save_checkpoint=True)


@functools.cache
def resolve_machine(device: str, dtype: str, compile: bool | str, on_machine: Callable) -> dict[str, str | bool]:
    """The settings device, dtype and compile, each of which may be 'auto', as all runs will have them."""
    machine = on_machine(pick_machine, device, dtype, compile)
    name = str(machine.dtype).removeprefix("torch.")
    return {"device": str(machine.device), "dtype": name, "compile": machine.compiled}


def unread(config: TrainConfig, neuron: Neuron | None) -> set[str]:
    """Keys that a model of this config, with this neuron of a user's, never looks at."""
    if config.mlp != "bio":
        keys = {"bio_gate", "bio_threshold", "bio_event", "bio_target_rate"}
    elif config.bio_gate == "none":
        keys = {"bio_event", "bio_target_rate"}
    else:
        keys = {"bio_threshold" if config.bio_event == "hard" else "bio_target_rate"}
    keys |= set() if config.mlp == "dendritic" else {"dendritic_branches", "dendritic_beta", "dendritic_beta_init"}
    if neuron is not None and "config" in inspect.signature(neuron.build).parameters:
        keys = set()  # it may look at any of them
    return keys | ({"c_fc_std"} if stands_for_mlp(neuron) else set())


def plan_arms(
    vary: list[str],
    sweep: list[str],
    control: str | None,
    match: str,
    words: list[str],
    on_machine: Callable = without_context,
) -> tuple[list[Arm], dict[str, list]]:
    """
    vary: 'key=a,b', one or two, each of one key or of several together, as parse_together has it; sweep: 'key=x,y', any
    number; control: an arm's name or None; words: train.py's;
    on_machine(function, *arguments) calls the function on the machine that the runs will have.

    -> (arms, the control first; the values of each swept key in their order). Raises UserError where the arms are not
    isolated.
    """
    together = [parse_together(text) for text in vary]
    swept_flags = [parse_varied(text) for text in sweep]
    varied, swept = [key for keys, _ in together for key in keys], [key for key, _ in swept_flags]
    if len(together) > 2 or len({*varied, *swept}) < len(varied) + len(swept):
        raise UserError("vary one key, or two as a full grid, and sweep other ones, each given once")
    may_differ = {"dataset"} & set(varied)  # each value is then judged by itself: see contrasts.level_key
    if unfit := {*varied, *swept} & (JUDGES | BYSTANDERS) - may_differ:
        raise UserError(f"{min(unfit)} is no property of the model or of its training: it cannot be varied or swept")
    if "mlp" in swept:
        raise UserError("mlp makes an arm of its own: vary it")
    if {"max_iters", "lr_decay_iters", "warmup_iters"} & {*varied, *swept} and match != "steps":
        raise UserError(f"--match={match} sets the number of steps: it cannot be varied or swept")
    if match != "steps" and (priced := PRICED & set(swept)):
        raise UserError(f"{min(priced)} changes what a step costs: with --match={match} it cannot be swept")
    if any("dataset" in keys and len(keys) > 1 for keys, _ in together):
        raise UserError("vary dataset by itself, for losses on two texts are not comparable")
    arms = build_arms(together, words, on_machine)
    if len(arms) < 2 or (control or arms[0].name) not in [arm.name for arm in arms]:
        names = ", ".join(arm.name for arm in arms)
        raise UserError(f"a comparison takes two arms or more, one of them the control; there are: {names}")
    arms.sort(key=lambda arm: control not in (None, arm.name))
    isolate(arms, {*varied, *swept})
    values = {key: swept_values(key, flags, arms[0].config, words) for key, flags in swept_flags}
    for arm, point in itertools.product(arms, itertools.product(*values.values())):
        at_point(arm.config, values, point)  # raises where the arm cannot have these values
    return arms, values


def build_arms(together: list[tuple[list[str], list[list[str]]]], words: list[str], on_machine: Callable) -> list[Arm]:
    """An arm for each cell of the grid of what is varied, as parse_together gives it, whose model is one of its own."""
    varied, arms = [key for keys, _ in together for key in keys], []
    for cell in itertools.product(*(values for _, values in together)):
        flags = [flag for value in cell for flag in value]
        config = resolve(words, flags, varied, on_machine)
        neuron = custom_neuron.load_neuron(config.mlp)
        settings = {key: getattr(config, key) for key in varied}
        settings = {key: value for key, value in settings.items() if key not in unread(config, neuron)} or settings
        if all(settings != arm.settings for arm in arms):
            name = " ".join(str(value).rpartition(".py:")[2] for value in settings.values())
            arms.append(Arm(name, settings, config, neuron))
        elif len(together) == 1:
            raise UserError(f"--vary names one arm twice: {' '.join(flag.removeprefix('--') for flag in flags)}")
    if len({arm.name for arm in arms}) < len(arms):  # classes of one name in several files
        arms = [replace(arm, name=" ".join(map(str, arm.settings.values()))) for arm in arms]
    return arms


def isolate(arms: list[Arm], allowed: set[str]) -> None:
    """Raise UserError where an arm differs from the control in a key that is not allowed to, and name it."""
    for arm in arms[1:]:
        for key in TrainConfig.__dataclass_fields__:
            ours, theirs = getattr(arms[0].config, key), getattr(arm.config, key)
            if key not in allowed and ours != theirs:
                raise UserError(
                    f"{key} differs too: {ours!r} in {arms[0].name}, {theirs!r} in {arm.name}; "
                    f"arms may differ in {', '.join(sorted(allowed))} alone"
                )


def swept_values(key: str, flags: list[str], config: TrainConfig, words: list[str]) -> list:
    """The values that flags --key=x, --key=y give, each once: from small to large, or as given where unordered."""
    values = [getattr(configurator.read_settings(TrainConfig, [*words, flag]), key) for flag in flags]
    values = [value for i, value in enumerate(values) if value not in values[:i]]
    sizes = [size_of(key, value, config) for value in values]
    return values if None in sizes else sorted(values, key=lambda value: size_of(key, value, config))


def size_of(key: str, value: object, config: TrainConfig) -> float | None:
    """The number by which the values of a swept key are ordered; None for a word that has no place among numbers."""
    if key == "c_fc_std":
        return replace(config, c_fc_std=value).initial_c_fc_std()
    return value if type(value) in (int, float) else None


def at_edge(study: Study, arm: Arm, point: Point) -> list[str]:
    """The swept keys whose value at this point is the smallest or the largest of the sweep."""
    keys, passed_over = [], unread(arm.config, arm.neuron)
    for (key, values), value in zip(study.swept.items(), point, strict=True):
        if key in passed_over:
            continue
        sizes = [size_of(key, v, arm.config) for v in values]
        if None not in sizes and len(sizes) > 1 and size_of(key, value, arm.config) in (min(sizes), max(sizes)):
            keys.append(key)
    return keys


def at_point(config: TrainConfig, swept: dict[str, list], point: Point) -> TrainConfig:
    """The config with the swept keys at this point's values. Raises UserError where they contradict its others."""
    try:
        return replace(config, **dict(zip(swept, point, strict=True)))
    except ValueError as error:
        raise UserError(str(error)) from None


def parse_also(text: str, swept: dict[str, list], words: list[str]) -> tuple[str, object]:
    """'key=value' -> (key, value), where the value is one of those that are swept."""
    key, flags = parse_varied(text)
    value = getattr(configurator.read_settings(TrainConfig, [*words, flags[0]]), key)
    if len(flags) > 1 or value not in swept.get(key, []):
        raise UserError(f"--also {text} must name one value of a --sweep, at which the arms are reported too")
    return key, value
