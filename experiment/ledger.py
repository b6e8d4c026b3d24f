"""The runs of an experiment, what each is known by, and runs.jsonl, the file that keeps what came of them."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from experiment.arms import BYSTANDERS, at_point, spell, unread
from experiment.study import Arm, Point, Study
from train import TrainConfig
from wiggle.custom_neuron import Neuron
from wiggle.files import read_bytes, writing


@dataclass(frozen=True)
class Run:
    """One training run of a study. stage: 'tuning' or 'reporting'; settings: all that its outcome depends on."""

    arm: Arm
    stage: str
    point: Point
    seed: int
    config: TrainConfig
    settings: dict
    key: str
    spelled: str  # the point, as " at learning_rate=0.003"
    former: dict | None = (
        None  # settings by which a run of a user's neuron was known, its file's whole text one of them
    )

    def __str__(self) -> str:
        return f"{self.arm.name}{self.spelled}, seed {self.seed}"


def make_run(study: Study, identity: dict, arm: Arm, stage: str, point: Point, seed: int) -> Run:
    """identity: of the data, as Dataset gives it."""
    config = replace(at_point(arm.config, study.swept, point), seed=seed)
    settings = settings_of(config, arm.neuron, identity)
    pairs = [f"{key}={spell(value)}" for key, value in zip(study.swept, point, strict=True)]
    spelled = f" at {', '.join(pairs)}" if pairs else ""
    former = settings_of(config, arm.neuron, identity, by_file=True) if arm.neuron else None
    return Run(arm, stage, point, seed, config, settings, key_of(settings), spelled, former)


def settings_of(config: TrainConfig, neuron: Neuron | None, identity: dict, by_file: bool = False) -> dict:
    """
    What a run's outcome depends on, as plain values by key.

    A user's neuron is known by its name, its arguments and its source with what that uses; by_file: by its file's whole
    text, as older ledgers know it.
    """
    settings = {key: value for key, value in asdict(config).items() if key not in BYSTANDERS | unread(config, neuron)}
    if neuron:
        settings["mlp"] = f"{neuron.name} {neuron.file_sha256 if by_file else neuron.sha256}"
    return settings | {"data": identity}


def key_of(settings: dict) -> str:
    """A hash of what is not at its default, so that a new key which changes nothing by default changes no hash."""
    defaults = {key: f.default for key, f in TrainConfig.__dataclass_fields__.items()}
    changed = {key: value for key, value in settings.items() if key not in defaults or value != defaults[key]}
    return hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:16]


def swept_value(study: Study, point: Point) -> float | dict | None:
    """A point as runs.jsonl shows it: the number of a single swept key, else {key: value}; None without a sweep."""
    if len(point) == 1 and type(point[0]) in (int, float):
        return point[0]
    return dict(zip(study.swept, point, strict=True)) or None


class Ledger:
    """runs.jsonl: one JSON object a line, by kind and key. A line that a crash cut short is passed over."""

    def __init__(self, path: str | Path):
        self.path, self.records = Path(path), {}
        text = read_bytes(self.path) if self.path.exists() else b""
        for line in text.splitlines():
            try:
                record = json.loads(line)
                self.records[record["kind"], record["key"]] = record
            except (ValueError, TypeError, KeyError):
                print(f"warning   a damaged line of {self.path} is passed over: {line[:40]!r}")
        if text and not text.endswith(b"\n"):
            self._append(b"\n")

    def get(self, kind: str, key: str) -> dict | None:
        return self.records.get((kind, key))

    def finished(self, run: Run) -> dict | None:
        """The record of a run that is done, or None. Keys that came later are at their defaults: see key_of."""
        for settings in filter(None, (run.settings, run.former)):
            record = self.get(run.stage, key_of(settings))
            if record and all(record["settings"].get(key, value) == value for key, value in settings.items()):
                return record
        return None

    def add(self, kind: str, key: str, **content) -> None:
        record = self.records[kind, key] = {"kind": kind, "key": key, **content}
        self._append(json.dumps(record).encode() + b"\n")

    def _append(self, line: bytes) -> None:
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())


def key_of_looks(study: Study, identities: dict[str, dict], by_file: bool = False) -> str:
    """
    What the reports on these arms are known by, whatever the number of their seeds.

    identities: by dataset. by_file: as in settings_of.
    """
    arms = [
        key_of(settings_of(replace(arm.config, seed=0), arm.neuron, identities[arm.config.dataset], by_file))
        for arm in study.arms
    ]
    return key_of({"arms": arms, "swept": {key: list(map(spell, values)) for key, values in study.swept.items()}})


def record_look(study: Study, ledger: Ledger, looked_at: str) -> None:
    """Keep how many seeds a report of these arms had, so that a later one can tell."""
    written = Ledger(ledger.path)  # to which --report may have added while runs went on
    seeds, looks = len(study.seeds["reporting"]), written.get("looks", looked_at) or {"seeds": []}
    if seeds not in looks["seeds"]:
        ledger.add("looks", looked_at, seeds=[*looks["seeds"], seeds])
