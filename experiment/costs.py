"""What each arm costs: parameters, FLOPs and the time of a step; and the steps that an equal budget leaves each arm."""

import shutil
import statistics
from dataclasses import replace

import torch

from experiment.cluster import forget
from experiment.executor import on_machine, run_all
from experiment.ledger import Ledger, key_of, settings_of
from experiment.processes import Task
from experiment.study import Arm, ArmCost, Study
from experiment.workers import first_steps, planned_neuron
from kernels.activations import ACTIVATIONS
from model_bio import GPT, GPTConfig
from train import TrainConfig
from wiggle import blowup
from wiggle.dataset import Dataset
from wiggle.errors import UserError
from wiggle.run_log import print_line

ROUNDS = 5  # of timing the arms by turns


def count_costs(study: Study, datasets: dict[str, Dataset], ledger: Ledger) -> dict[str, ArmCost]:
    """Count parameters and FLOPs of each arm, sound the alarm of blow-ups, and time the steps -> costs by arm."""
    models = {}
    for arm in study.arms:
        vocabulary = arm.config.vocab_size or datasets[arm.config.dataset].model_vocab
        shape, limit = arm.config.gpt_config(vocabulary), arm.config.max_blowup
        with torch.device("meta"):
            model = GPT(shape, arm.neuron)
        models[arm.name] = model
        if limit is not None and shape.mlp != "gelu" and not study.options.report:
            on_machine(study)(sound_alarm, arm.config, shape, arm.neuron and arm.neuron.sha256)
    timed = time_arms(study, {name: data.identity for name, data in datasets.items()}, ledger)
    return {
        name: ArmCost(
            model.get_num_params(non_embedding=False),
            model.flops_per_token(),
            *timed[name],
            activation_flops_per_token(model),
        )
        for name, model in models.items()
    }


def sound_alarm(config: TrainConfig, shape: GPTConfig, neuron_sha256: str | None) -> None:
    """Print an arm beside its GELU control. Raises UserError for a blow-up. neuron_sha256: of a user's own file."""
    neuron = planned_neuron(config.mlp, neuron_sha256)
    device, dtype = torch.device(config.device), getattr(torch, config.dtype)
    blowup.alarm(shape, config.max_blowup, False, device, dtype, neuron, print_line)


def operations_of(config: GPTConfig) -> float:
    """Operations of one hidden unit of the MLP between its matrices, as Activation counts them; NaN of users' own."""
    if config.mlp == "bio":
        oscillation = 6  # sin(ω·x + φ)·tanh(x) + b
        if config.hard_events:
            return oscillation + 2  # |x| > threshold
        gate = 10 + 1 + (2 if config.bio_gate == "feature" else 0)  # two sigmoids with 5·(v - threshold), x·s, g·x + o
        return oscillation if config.bio_gate == "none" else 2 * oscillation + gate
    if config.mlp == "dendritic":
        return 6 * config.dendritic_branches - 2  # β·z, exp, /, ·z of each branch, and two sums over them
    return ACTIVATIONS[config.mlp].operations if config.mlp in ACTIVATIONS else float("nan")


def activation_flops_per_token(model: GPT) -> float:
    """
    Training FLOPs a token of the MLP's activations; NaN where a user's neuron stands there, which is not counted.

    The backward pass counts twice the forward one, as 6·N does for matrices (PaLM, appendix B).
    """
    operations = operations_of(model.config)
    if operations != operations:
        return operations
    hidden = model.transformer.h[0].mlp.c_proj.weight.shape[1]
    return 3 * operations * hidden * model.config.n_layer


def time_arms(study: Study, identities: dict[str, dict], ledger: Ledger) -> dict[str, tuple[float, float, float]]:
    """
    Milliseconds a step of each arm, timed by turns, their ratio to the control's and its standard error.

    NaN where timing failed, and for the error where the ledger is older than that.
    Times are kept in the ledger, so that --match=time gives the same steps when the command goes on.
    """
    keys = {}
    for arm in study.arms:
        for by_file in (True, False):  # a user's neuron may be known to an older ledger by its file
            settings = settings_of(replace(arm.config, seed=0), arm.neuron, identities[arm.config.dataset], by_file)
            keys[arm.name] = f"{key_of(settings)}-{study.threads}"
            if ledger.get("timing", keys[arm.name]):
                break
    missing = [arm for arm in study.arms if not ledger.get("timing", keys[arm.name])]
    if missing and not study.options.report:
        control = study.arms[0]
        base = (ledger.get("timing", keys[control.name]) or {}).get("ratio", 1.0)  # to the first control of the ledger
        arms = [control, *(arm for arm in missing if arm is not control)]
        print_line(f"timing    {', '.join(arm.name for arm in arms)}, by turns")
        found = first_steps_alone(study, [(arm.config, arm.neuron) for arm in arms], ROUNDS, "timing")
        rounds = {arm.name: ms for arm, (_, ms) in zip(arms, found, strict=True) if ms}
        for arm in missing:
            if {arm.name, control.name} <= set(rounds):
                ms = statistics.median(rounds[arm.name])
                ratio = base * ms / statistics.median(rounds[control.name])
                error = base * standard_error_of_ratio(rounds[arm.name], rounds[control.name])
                ledger.add("timing", keys[arm.name], arm=arm.name, ms=ms, ratio=ratio, ratio_error=error)
    records = {name: ledger.get("timing", key) or {} for name, key in keys.items()}
    return {
        name: tuple(record.get(key, float("nan")) for key in ("ms", "ratio", "ratio_error"))
        for name, record in records.items()
    }


def standard_error_of_ratio(arm: list[float], control: list[float]) -> float:
    """The standard error of the mean ratio of two arms' times over the rounds in which both were timed; of one, NaN."""
    ratios = [ours / theirs for ours, theirs in zip(arm, control, strict=False)]
    return statistics.stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else float("nan")


def first_steps_alone(study: Study, models: list[tuple], rounds: int, name: str) -> list[tuple[list, list]]:
    """What workers.first_steps gives for (config, neuron) pairs, in a process of its own while nothing else runs."""
    folder, ended = study.out_dir / "running" / name, []
    configs = [replace(config, out_dir=str(folder / "run")) for config, _ in models]
    hashes = [neuron and neuron.sha256 for _, neuron in models]
    if study.slurm:
        forget(folder)  # an earlier command's job may have timed other arms
    run_all(study, [Task(name, first_steps, (configs, hashes, rounds), folder)], lambda _, *found: ended.append(found))
    outcome, error = ended[0]
    if error:
        print_line(f"warning   {name} failed, {folder / 'log'} has more: {error}")
        return [([], [])] * len(models)
    shutil.rmtree(folder)
    return outcome


def share_budget(study: Study, costs: dict[str, ArmCost]) -> Study:
    """The study with each arm's steps, warm-up and decay scaled so that all get the control's FLOPs, or its seconds."""
    if study.options.match == "steps":
        return study
    arms, control = [], study.arms[0]
    for arm in study.arms:
        scale = price_of_step(study, control, costs) / price_of_step(study, arm, costs)
        if scale != scale:
            raise UserError(f"--match=time needs the time of a step of {arm.name}, which could not be measured")
        keys = ("max_iters", "warmup_iters", "lr_decay_iters")  # all alike in the arms, and 0 or None where not in use
        steps = {key: getattr(control.config, key) for key in keys}
        scaled = {key: given and max(1, round(given * scale)) for key, given in steps.items()}
        arms.append(replace(arm, config=replace(arm.config, **scaled)))
    return replace(study, arms=arms)


def price_of_step(study: Study, arm: Arm, costs: dict[str, ArmCost]) -> float:
    """What a step costs in the budget that --match names: in control's steps, or in FLOPs."""
    if study.options.match == "time":
        return costs[arm.name].ratio
    activation = costs[arm.name].activation_flops
    flops_per_token = costs[arm.name].flops_per_token + (0.0 if activation != activation else activation)
    return flops_per_token * arm.config.sequences_per_step * arm.config.block_size
