"""The options of every program that trains with `run_trainer.RunTrainer`. This module imports
nothing heavy. This module imports nothing heavy."""

from dataclasses import dataclass, replace
from typing import Literal

from vision_core.arguments import arguments_to_yaml, option
from vision_core.errors import UserError
from vision_core.processes.launchers import is_first_launched
from vision_core.runs.folder_checks import check_folder, check_program, end_if_all_is_done

COUNTS = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "logging_steps",
    "eval_steps",
    "save_steps",
)


@dataclass
class TrainerOptions:
    """What every program on this trainer asks for; names are those of transformers'
    TrainingArguments where it has them."""

    per_device_train_batch_size: int = option(16, "samples per process and step", "optimisation")
    gradient_accumulation_steps: int = option(1, "batches to one step", "optimisation")
    num_train_epochs: float = option(1.0, "passes over the data", "optimisation")
    max_steps: int = option(-1, "steps, in place of epochs", "optimisation")
    learning_rate: float = option(1e-3, "at its highest", "optimisation")
    warmup_steps: float = option(0.03, "steps, or below 1 their share", "optimisation")
    lr_scheduler_type: str = option("cosine", "as in transformers", "optimisation")
    weight_decay: float = option(0.0, "of matrices", "optimisation")
    max_grad_norm: float = option(1.0, "gradients are clipped to it", "optimisation")
    bf16: bool = option(False, "mixed precision", "memory")
    fp16: bool = option(
        False, "mixed precision with a loss scale, on GPUs without bfloat16 (V100, T4)", "memory"
    )
    logging_steps: float = option(10, "steps between lines of the log", "run")
    eval_steps: float = option(100, "steps between measurements of the loss on held-out data", "run")
    save_steps: float = option(500, "steps between checkpoints", "run")
    save_total_limit: int | None = option(2, "checkpoints that are kept", "run")
    dataloader_num_workers: int = option(0, "processes that read data", "run")
    seed: int = option(0, "of every random draw", "run")
    output_dir: str | None = option(None, "a new folder; default outputs/<name>-<n>", "run")
    resume_from_checkpoint: str | None = option(
        None,
        "auto: start, go on, or say that all is done; true: the newest checkpoint of --output_dir; or a "
        "checkpoint-<step> folder",
        "run",
    )
    changed_data: Literal["note", "refuse"] = option(
        "note",
        "what a run that goes on does about data added, removed or written anew since its checkpoint",
        "run",
    )
    grace_seconds: float = option(
        30.0,
        "how long the scheduler lets a run live after its signal: a step that leaves too little of it for "
        "a save is broken off",
        "run",
    )
    dry_run: bool = option(
        False, "look at everything, say what the run would be, train and write nothing", "run"
    )


def check_counts(options: TrainerOptions) -> None:
    """Raises UserError for a batch or an interval without which nothing could be counted:
    transformers divides by them."""
    for name in COUNTS:
        value = getattr(options, name)
        if not value > 0:
            raise UserError(f"--{name} {value}: it must be above 0")


def check_output(name: str, program: str, options: TrainerOptions) -> None:
    """Refuse, before anything is loaded, counts of 0 and a folder that the run of `program` could
    not use, or another program's.

    Raises UserError, and AllDone where nothing is left to do. The first process alone looks: it is
    in its folder soon, maybe before another one looks. A checkpoint, which takes long to verify, is
    looked at when it is resumed.
    """
    check_counts(options)
    end_if_all_is_done(options.output_dir, config_of(options), options.resume_from_checkpoint, program)
    check_program(options.output_dir, name, options.resume_from_checkpoint, program)
    if is_first_launched() and not options.resume_from_checkpoint:
        check_folder(options.output_dir, name, program=program)


def config_of(options: TrainerOptions) -> str:
    """What config.yaml says of the options. How a run was started is no part of what it is."""
    return arguments_to_yaml(replace(options, resume_from_checkpoint=None))
