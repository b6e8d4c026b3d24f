"""What a run tells: lines on the terminal, metrics.jsonl, and Weights & Biases."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from wiggle.errors import UserError, discard_output, forgiving_output
from wiggle.files import to_json, writing

Say = Callable[[str], None]  # prints a line, or in all processes but the first does nothing


def print_line(line: str) -> None:
    """Print a line above the progress bar, if there is one. A console that is closed or lacks a letter ends no run."""
    try:
        forgiving_output()  # train() may be called by no script of ours
        tqdm.write(line)
        sys.stdout.flush()
    except OSError:
        discard_output()


def duration(seconds: float) -> str:
    """Seconds -> '1:02:03', or '2:03' below an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Metrics:
    """
    metrics.jsonl: one JSON object a line, appended as the run goes on.

    kept: bytes of an existing file that stay; the rest is cut off. A resumed run writes again what the run before it
    had written after its last checkpoint, so no line is missing or doubled.
    """

    def __init__(self, path: Path, kept: int = 0):
        self.path = path
        with writing(path):
            self.file = open(path, "ab")  # noqa: SIM115 - open as long as the run
            self.file.truncate(min(kept, self.file.tell()))

    def write(self, line: dict) -> None:
        with writing(self.path):
            self.file.write(to_json(line))
            self.file.flush()

    def sync(self) -> int:
        """Flush the file to disk -> its length in bytes, which a checkpoint keeps."""
        with writing(self.path):
            os.fsync(self.file.fileno())
        return self.file.seek(0, os.SEEK_END)

    def close(self) -> None:
        self.file.close()


def start_wandb(project: str, name: str, config: dict, out_dir: str | Path, run_id: str | None = None):
    """
    Begin a run at Weights & Biases, or go on with run_id -> the wandb Run, whose log() and finish() are called.

    config: TrainConfig as a dict, which is shown there.
    Raises UserError without the library, without a key, or where the service cannot be reached.
    """
    try:
        import wandb
    except ImportError:
        raise UserError("wandb_log=True needs a library: pip install wandb") from None
    again = {"id": run_id, "resume": "allow"} if run_id else {}
    try:
        return wandb.init(project=project, name=name, group=config["wandb_group"], config=config, dir=out_dir, **again)
    except wandb.errors.Error as error:
        reason = " ".join(str(error).split())[:200]
        advice = "run `wandb login` once, or set WANDB_MODE=offline to keep the log on this machine"
        raise UserError(f"Weights & Biases did not start ({reason}): {advice}") from None


class RunLog:
    """
    The lines of a run: kept in `history`, and written to metrics.jsonl and Weights & Biases where those are open.

    metrics, wandb: None in processes that write nothing.
    """

    def __init__(self, metrics: Metrics | None = None, wandb=None):
        self.metrics, self.wandb, self.history = metrics, wandb, []

    def record(self, line: dict) -> None:
        self.history.append(line)
        if self.metrics:
            self.metrics.write(line)
        if self.wandb:
            numbers = {key: value for key, value in line.items() if not isinstance(value, list)}
            self.wandb.log(numbers, step=line["step"])

    @property
    def wandb_id(self) -> str | None:
        """What a resumed run needs to go on in the same run at Weights & Biases."""
        return self.wandb and self.wandb.id

    def close(self) -> None:
        if self.metrics:
            self.metrics.close()
        if self.wandb:
            self.wandb.finish()
            self.wandb = None
