"""The settings of a training run: each key with its type, its default and the reason for it, in one place."""

import math
from dataclasses import dataclass
from typing import Literal

from model_bio import GPTConfig


@dataclass
class TrainConfig(GPTConfig):
    """nanoGPT's keys with nanoGPT's defaults, and this project's. Raises ValueError for contradictory settings."""

    # run
    out_dir: str = "out"  # checkpoints, metrics.jsonl and config.json go here
    init_from: str = "scratch"  # scratch, resume, gpt2 / gpt2-medium / ..., or the path of a checkpoint to start from
    eval_only: bool = False  # evaluate once, write nothing, leave
    eval_interval: int = 2000  # steps between evaluations, after which checkpoints are written
    eval_iters: int = 200  # an evaluation reads 12 x eval_iters windows, spread evenly over the split; 0 = all of it
    log_interval: int = 1  # steps between logged lines
    always_save_checkpoint: bool = True  # False: write ckpt.pt only when the validation loss improves
    final_sample: int = 0  # tokens to sample and print when training ends
    seed: int = 1337  # of the initial weights, the order of the data and dropout

    # wandb (WANDB_MODE=offline keeps it on this machine)
    wandb_log: bool = False  # log to Weights & Biases too
    wandb_project: str = "wigglegpt"  # project there
    wandb_run_name: str = "run"  # name there
    wandb_group: str | None = None  # runs of one group are shown together; compare.py groups those of a comparison
    wandb_arm: str | None = None  # name of the arm that the run belongs to, set by compare.py

    # data
    dataset: str = "openwebtext"  # folder under data_dir, made by prepare_data.py
    data_dir: str = "data"  # where datasets lie
    batch_size: int | Literal["auto"] = 12  # sequences a micro-batch; auto: as many as a CUDA card is measured to hold
    gradient_accumulation_steps: int | None = None  # micro-batches a step over all processes; None = 40, nanoGPT's
    tokens_per_step: int | None = None  # instead of gradient_accumulation_steps, which then follows from it

    # model, where the default is not GPTConfig's
    vocab_size: int | None = None  # None = the dataset's own, 50304 for GPT-2's BPE
    bias: bool = False  # biases in Linear and LayerNorm; False is a bit better and faster
    max_blowup: float | None = 1.5  # stop where parameters or FLOPs pass this many times the GELU's; None = do not look

    # optimizer
    optimizer_type: Literal["adamw", "adafactor", "muon"] = "adamw"  # the last two keep fewer moments: less memory
    learning_rate: float = 6e-4  # the highest
    max_iters: int = 600000  # steps
    weight_decay: float = 1e-1  # of matrices and embeddings
    beta1: float = 0.9  # AdamW's, and Muon's momentum
    beta2: float = 0.95  # AdamW's; nearer to 1 where a step holds few tokens
    grad_clip: float = 1.0  # clip the gradient's norm here; 0 = never
    max_skipped: int = 10  # stop after so many steps in a row whose loss or gradient is not finite; none is taken

    # learning rate
    lr_schedule: Literal["cosine", "wsd", "constant"] = "cosine"  # wsd: warm-up, stable, linear decay at the end
    decay_lr: bool = True  # nanoGPT's spelling: False = constant
    warmup_iters: int = 2000  # steps of linear warm-up, for all schedules
    lr_decay_iters: int | None = None  # step at which min_lr is reached; None = max_iters
    min_lr: float | None = None  # the lowest; None = learning_rate / 10 (Hoffmann et al., 2022)
    decay_fraction: float = 0.2  # share of lr_decay_iters that wsd decays over

    # machine
    device: str = "auto"  # auto (cuda > mps > cpu), cpu, cuda, cuda:1, mps
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: bfloat16 where the card has it
    compile: bool | Literal["auto"] = "auto"  # torch.compile; auto: on a GPU with a working Triton
    parallel: Literal["ddp", "fsdp"] = (
        "ddp"  # of several processes: each holds the model, or a share of it (AdamW only)
    )
    backend: str = "auto"  # of torch.distributed; auto: nccl on cuda, else gloo

    def __post_init__(self):
        super().__post_init__()  # checks the model's keys, and resolves historic spellings
        positive = ("eval_interval", "log_interval", "batch_size", "gradient_accumulation_steps", "tokens_per_step")
        positive += ("max_iters", "lr_decay_iters", "learning_rate", "max_blowup", "max_skipped")
        for key in positive:
            if getattr(self, key) not in (None, "auto") and not 0 < getattr(self, key) < math.inf:
                raise ValueError(f"{key}={getattr(self, key)} must be above 0")
        for key in ("eval_iters", "final_sample", "warmup_iters", "weight_decay", "grad_clip", "min_lr", "seed"):
            if getattr(self, key) is not None and not 0 <= getattr(self, key) < math.inf:
                raise ValueError(f"{key}={getattr(self, key)} must be at least 0")
        for key in ("beta1", "beta2", "decay_fraction"):
            if not 0 <= getattr(self, key) <= (1 if key == "decay_fraction" else 0.999999):
                raise ValueError(f"{key}={getattr(self, key)} must lie in 0..1")
        if self.decays and self.min_lr is not None and self.min_lr > self.learning_rate:
            raise ValueError(
                f"min_lr={self.min_lr:g} is above learning_rate={self.learning_rate:g}, so the rate would rise where "
                "it is to decay: lower min_lr, or leave it out"
            )
        if not self.decay_lr and self.lr_schedule == "wsd":
            raise ValueError("decay_lr=False contradicts lr_schedule='wsd': give one of the two")
        given, auto = self.gradient_accumulation_steps, self.batch_size == "auto"
        if auto and (self.tokens_per_step is None or given is not None):
            raise ValueError("batch_size='auto' needs tokens_per_step, and no gradient_accumulation_steps beside it")
        if self.parallel == "fsdp":
            self._check_sharded()
        size = 1 if auto else self.batch_size
        micro_batch = size * self.block_size
        if self.tokens_per_step is not None and self.tokens_per_step % micro_batch:
            raise ValueError(
                f"tokens_per_step={self.tokens_per_step} is no multiple of batch_size x block_size = "
                f"{size} x {self.block_size} = {micro_batch}"
            )
        if given is not None and self.tokens_per_step not in (None, given * micro_batch):
            raise ValueError(
                f"gradient_accumulation_steps={given} makes {given * micro_batch} tokens a step, which contradicts "
                f"tokens_per_step={self.tokens_per_step}: give one of the two"
            )

    def _check_sharded(self):
        """Raise ValueError for what needs the whole model, or whole gradients, in one process."""
        if self.optimizer_type != "adamw":
            raise ValueError(
                f"optimizer_type={self.optimizer_type!r} needs whole matrices, which parallel='fsdp' cuts into shards: "
                "take optimizer_type='adamw' or parallel='ddp'"
            )
        if self.batch_size == "auto":
            raise ValueError("batch_size='auto' measures a whole model, not parallel='fsdp': give batch_size a number")
        if self.dtype == "float16":
            raise ValueError("dtype='float16' scales each process's loss apart: take bfloat16 with parallel='fsdp'")

    def notes(self) -> list[str]:
        """Sentences for the user about settings that are allowed and yet rarely meant."""
        key = "lr_decay_iters" if self.decays and (self.lr_decay_iters or math.inf) < self.max_iters else "max_iters"
        end = getattr(self, key)
        if self.warmup_iters < end or self.eval_only:
            return []
        share = self.learning_rate_at(end - 1) / self.learning_rate
        return [
            f"warmup_iters={self.warmup_iters} is not below {key}={end}: the rise ends at {100 * share:.3g} % of "
            f"learning_rate; --warmup_iters={end // 20} would reach it in a twentieth of the steps"
        ]

    def gpt_config(self, vocab_size: int) -> GPTConfig:
        """The model's part of the settings, with the vocabulary that is known once the dataset is."""
        fields = {key: getattr(self, key) for key in GPTConfig.__dataclass_fields__}
        return GPTConfig(**fields | {"vocab_size": vocab_size})

    @property
    def decays(self) -> bool:
        """Whether the learning rate falls to min_lr at the end."""
        return self.decay_lr and self.lr_schedule != "constant"

    @property
    def micro_batches(self) -> int:
        """Micro-batches a step, over all processes; of one sequence each while batch_size is still 'auto'."""
        if self.tokens_per_step is not None:
            return self.sequences_per_step // (1 if self.batch_size == "auto" else self.batch_size)
        return 40 if self.gradient_accumulation_steps is None else self.gradient_accumulation_steps

    @property
    def sequences_per_step(self) -> int:
        """Sequences a step, over all processes and micro-batches."""
        if self.tokens_per_step is not None:
            return self.tokens_per_step // self.block_size
        return self.micro_batches * self.batch_size

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of step number `step`, the first being 0."""
        last = self.lr_decay_iters or self.max_iters
        low = self.learning_rate / 10 if self.min_lr is None else self.min_lr
        if step < self.warmup_iters:
            return self.learning_rate * (step + 1) / (self.warmup_iters + 1)
        if not self.decays:
            return self.learning_rate
        if step >= last:
            return low
        if self.lr_schedule == "wsd":
            length = max(1, min(round(self.decay_fraction * last), last - self.warmup_iters))
            share = min(1.0, (last - step) / length)  # 1 until the decay begins
        else:
            share = 0.5 * (1 + math.cos(math.pi * (step - self.warmup_iters) / (last - self.warmup_iters)))
        return low + share * (self.learning_rate - low)
