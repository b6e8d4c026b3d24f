"""What each arm costs: parameters, FLOPs and the time of a step; and the steps that an equal budget leaves each arm."""

import shutil
import statistics
from dataclasses import replace

import torch

from experiment.arms import Arm, ArmCost, Study
from experiment.ledger import Ledger, key_of, settings_of
from experiment.workers import first_steps, run_all
from model_bio import GPT
from wiggle import blowup
from wiggle.dataset import Dataset
from wiggle.errors import UserError
from wiggle.run_log import print_line

ROUNDS = 5  # of timing the arms by turns


def count_costs(study: Study, data: Dataset, ledger: Ledger) -> dict[str, ArmCost]:
    """Count parameters and FLOPs of each arm, sound the alarm of blow-ups, and time the steps -> costs by arm."""
    counted = {}
    for arm in study.arms:
        shape, limit = arm.config.gpt_config(arm.config.vocab_size or data.model_vocab), arm.config.max_blowup
        with torch.device("meta"):
            model = GPT(shape, arm.neuron)
        counted[arm.name] = model.get_num_params(non_embedding=False), model.flops_per_token()
        if limit is not None and shape.mlp != "gelu" and not study.options.report:
            device, dtype = torch.device(arm.config.device), getattr(torch, arm.config.dtype)
            blowup.alarm(shape, limit, False, device, dtype, arm.neuron, print_line)
    timed = time_arms(study, data.identity, ledger)
    return {name: ArmCost(*counted[name], *timed[name]) for name in counted}


def time_arms(study: Study, identity: dict, ledger: Ledger) -> dict[str, tuple[float, float]]:
    """
    Milliseconds a step of each arm, and their ratio to the control's, timed by turns; NaN where that failed.

    Times are kept in the ledger, so that --match=time gives the same steps when the command goes on.
    """
    keys = {}
    for arm in study.arms:
        settings = settings_of(replace(arm.config, seed=0), arm.neuron, identity)
        keys[arm.name] = f"{key_of(settings)}-{study.threads}"
    missing = [arm for arm in study.arms if not ledger.get("timing", keys[arm.name])]
    if missing and not study.options.report:
        control = study.arms[0]
        arms = [control, *(arm for arm in missing if arm is not control)]
        print_line(f"timing    {', '.join(arm.name for arm in arms)}, by turns")
        found = first_steps_alone(study, [(arm.config, arm.neuron) for arm in arms], ROUNDS, "timing")
        medians = {arm.name: statistics.median(ms) for arm, (_, ms) in zip(arms, found, strict=True) if ms}
        for arm in missing:
            if {arm.name, control.name} <= set(medians):
                ms, ratio = medians[arm.name], medians[arm.name] / medians[control.name]
                ledger.add("timing", keys[arm.name], arm=arm.name, ms=ms, ratio=ratio)
    records = {name: ledger.get("timing", key) or {} for name, key in keys.items()}
    return {
        name: (record.get("ms", float("nan")), record.get("ratio", float("nan"))) for name, record in records.items()
    }


def first_steps_alone(study: Study, models: list[tuple], rounds: int, name: str) -> list[tuple[list, list]]:
    """What workers.first_steps gives for (config, neuron) pairs, in a process of its own while nothing else runs."""
    folder, ended = study.out_dir / "running" / name, []
    configs = [replace(config, out_dir=str(folder / "run")) for config, _ in models]
    hashes = [neuron and neuron.sha256 for _, neuron in models]
    task = (name, first_steps, (configs, hashes, rounds), folder)
    run_all([task], study.options.jobs and 1, study.threads, lambda _, *outcome: ended.append(outcome))
    outcome, error = ended[0]
    if error:
        print_line(f"warning   {name} failed, {folder / 'log'} has more: {error}")
        return [([], [])] * len(models)
    shutil.rmtree(folder)
    return outcome


def share_budget(study: Study, costs: dict[str, ArmCost]) -> Study:
    """The study with each arm's number of steps set so that all get the control's FLOPs, or its seconds."""
    if study.options.match == "steps":
        return study
    arms, control = [], study.arms[0]
    for arm in study.arms:
        scale = price_of_step(study, control, costs) / price_of_step(study, arm, costs)
        if scale != scale:
            raise UserError(f"--match=time needs the time of a step of {arm.name}, which could not be measured")
        last, steps = arm.config.lr_decay_iters, max(1, round(control.config.max_iters * scale))
        config = replace(arm.config, max_iters=steps, lr_decay_iters=last and max(1, round(last * scale)))
        arms.append(replace(arm, config=config))
    return replace(study, arms=arms)


def price_of_step(study: Study, arm: Arm, costs: dict[str, ArmCost]) -> float:
    """What a step costs in the budget that --match names: in control's steps, or in FLOPs."""
    if study.options.match == "time":
        return costs[arm.name].ratio
    return costs[arm.name].flops_per_token * arm.config.sequences_per_step * arm.config.block_size
