"""The arms of an experiment: settings that are resolved as train.py would, and proved to differ in one key alone."""

import hashlib
import itertools
import json
from dataclasses import asdict, dataclass, field, replace

from model_bio import HISTORIC
from train import TrainConfig
from wiggle import configurator, custom_neuron
from wiggle.custom_neuron import Neuron
from wiggle.device import pick_compile, pick_device, pick_dtype
from wiggle.errors import UserError

# Keys that change nothing about what a run computes, and keys that say on what it is judged
BYSTANDERS = {"out_dir", "data_dir", "dataset", "init_from", "eval_only", "log_interval", "always_save_checkpoint"}
BYSTANDERS |= {"final_sample", "wandb_log", "wandb_project", "wandb_run_name", "max_blowup", "backend"}
BYSTANDERS |= {*HISTORIC, "bio_compartments"}
JUDGES = {"seed", "eval_iters", "eval_interval"}


@dataclass
class Arm:
    """One side of the comparison."""

    name: str
    settings: dict  # of the varied keys, as far as its model reads them
    config: TrainConfig
    neuron: Neuron | None = None
    parameters: int = 0
    flops: float = 0.0  # a token
    ms: float = float("nan")  # a step
    ratio: float = float("nan")  # of ms to the control's, measured side by side
    tuning: dict = field(default_factory=dict)  # value of the tuned key -> loss on the tuning half
    value: float | None = None  # the one taken
    runs: dict = field(default_factory=dict)  # reporting seed -> what runs.jsonl keeps


def split(text):
    """'key=a,b' -> (key in today's spelling, ['--key=a', '--key=b'])."""
    key, _, values = text.partition("=")
    if not all(values.split(",")):
        raise UserError(f"{text!r} is not of the form KEY=A,B")
    if key not in TrainConfig.__dataclass_fields__:
        configurator.read_settings(TrainConfig, [f"--{text}"])  # raises, and names the nearest known key
    return HISTORIC.get(key, (key,))[0], [f"--{key}={value}" for value in values.split(",")]


def resolve(words, flags, varied):
    """
    The TrainConfig of one arm, as train.py resolves these words.

    Config files run a second time with the varied keys at the arm's values from the start: a file that sets another key
    by them does so then, and `isolate` names it.
    """
    first = configurator.read_settings(TrainConfig, [*words, *flags])
    config = configurator.read_settings(
        TrainConfig, [*words, *flags], preset={key: getattr(first, key) for key in varied}
    )
    if config.init_from != "scratch" or config.eval_only or config.batch_size == "auto":
        raise UserError("arms train from scratch with a batch_size given as a number: no init_from, eval_only or auto")
    device = pick_device(config.device)
    picked = {"device": str(device), "dtype": str(pick_dtype(config.dtype, device)).removeprefix("torch.")}
    picked["compile"] = pick_compile(config.compile, device)[0]
    return replace(config, **picked, wandb_log=False, final_sample=0, always_save_checkpoint=True)


def unread(config):
    """Keys that a model of this config never looks at."""
    keys = set() if config.mlp == "bio" else {"bio_gate", "bio_threshold"}
    dendritic = {"dendritic_branches", "dendritic_beta", "dendritic_beta_init"}
    return keys if config.mlp == "dendritic" else keys | dendritic


def plan(vary, sweep, control, match, words):
    """
    vary: ['key=a,b'], one or two; sweep: 'key=x,y' or None; control: an arm's name or None; words: train.py's.

    -> (arms, the control first; tuned key or None; its values). Raises UserError where the arms are not isolated.
    """
    wanted = [split(text) for text in vary]
    tuned, sweep = split(sweep) if sweep else (None, [])
    varied = [key for key, _ in wanted]
    if len(varied) > 2 or len(set(varied) | {tuned}) <= len(varied):
        raise UserError("vary one key, or two as a full grid, and sweep another one")
    if unfit := {*varied, tuned} & (JUDGES | BYSTANDERS):
        raise UserError(f"{min(unfit)} is no property of the model or of its training: it cannot be varied or swept")
    if {"max_iters", "lr_decay_iters"} & {*varied, tuned} and match != "steps":
        raise UserError(f"--match={match} sets the number of steps: it cannot be varied or swept")
    arms = []
    for flags in itertools.product(*(flags for _, flags in wanted)):
        config = resolve(words, flags, varied)
        settings = {key: getattr(config, key) for key in varied}
        settings = {key: value for key, value in settings.items() if key not in unread(config)} or settings
        if all(settings != arm.settings for arm in arms):
            name = " ".join(str(value).rpartition(".py:")[2] for value in settings.values())
            arms.append(Arm(name, settings, config, custom_neuron.load_neuron(config.mlp)))
        elif len(varied) == 1:
            raise UserError(f"--vary {vary[0]} names one arm twice")
    if len({arm.name for arm in arms}) < len(arms):
        for arm in arms:
            arm.name = " ".join(map(str, arm.settings.values()))
    if len(arms) < 2 or (control or arms[0].name) not in [arm.name for arm in arms]:
        names = ", ".join(arm.name for arm in arms)
        raise UserError(f"a comparison takes two arms or more, one of them the control; there are: {names}")
    arms.sort(key=lambda arm: control not in (None, arm.name))
    isolate(arms, {*varied, tuned})
    values = [getattr(configurator.read_settings(TrainConfig, [flag]), tuned) for flag in sweep]
    if any(type(value) not in (int, float) for value in values):
        raise UserError(f"--sweep takes numbers, which {tuned} is not")
    return arms, tuned, sorted(set(values))


def isolate(arms, allowed):
    """Raise UserError where an arm differs from the control in a key that is not allowed to, and name it."""
    for arm in arms[1:]:
        for key in TrainConfig.__dataclass_fields__:
            ours, theirs = getattr(arms[0].config, key), getattr(arm.config, key)
            if key not in allowed and ours != theirs:
                raise UserError(
                    f"{key} differs too: {ours!r} in {arms[0].name}, {theirs!r} in {arm.name}; "
                    f"arms may differ in {', '.join(sorted(filter(None, allowed)))} alone"
                )


def settings_of(config, neuron, identity):
    """What a run's outcome depends on, as plain values by key."""
    settings = {key: value for key, value in asdict(config).items() if key not in BYSTANDERS | unread(config)}
    settings |= {"mlp": f"{neuron.name} {neuron.sha256}"} if neuron else {}
    return settings | {"data": identity}


def key_of(settings):
    """A hash of what is not at its default, so that a new key which changes nothing by default changes no hash."""
    defaults = {key: f.default for key, f in TrainConfig.__dataclass_fields__.items()}
    changed = {key: value for key, value in settings.items() if key not in defaults or value != defaults[key]}
    return hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:16]
