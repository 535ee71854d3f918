"""What a run on `RunTrainer` is, said before it trains: its data, its steps, and what trains at which rate.

`--dry_run` draws a batch too.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

from torch import Tensor, nn

from vision_core.distributed import world_size
from vision_core.run_trainer import RunTrainer, check_warmup


def preview(trainer: RunTrainer, checkpoint: str = "") -> list[str]:
    """Lines for the user. Draws one training batch, and one held-out batch, as the run would, with all that can go wrong in it.

    checkpoint: from which the run would go on, "" for a new one. Raises UserError where the run would: for a checkpoint
    that it cannot take up, or a sample that cannot be trained on.
    """
    loader, args = trainer.get_train_dataloader(), trainer.args
    steps = number_of_steps(trainer, len(loader))
    trainer.rehearse_resume(checkpoint, steps)
    check_warmup(args.warmup_steps, steps)
    batch = next(iter(loader))
    if trainer.eval_dataset is not None:
        next(iter(trainer.get_eval_dataloader()))
    trainer.create_optimizer()
    return [
        "dry run: nothing is trained, nothing is written",
        *course(trainer, len(loader)),
        "one batch of this process:",
        *(f"  {name:<18}{shape_of(value)}" for name, value in batch.items()),
        *trained_parts(trainer),
    ]


def introduction(trainer: RunTrainer) -> list[str]:
    """Lines for the user before the first step; draws nothing."""
    return [*course(trainer, number_of_batches(trainer)), *trained_parts(trainer)]


def course(trainer: RunTrainer, batches: int) -> list[str]:
    """Rows, what makes a step, epochs and steps. batches: of one process and epoch."""
    args, steps = trainer.args, number_of_steps(trainer, batches)
    batch, micro_batches = args.per_device_train_batch_size, args.gradient_accumulation_steps
    a_step = batch * micro_batches * world_size()
    lines = [
        f"training rows    {len(trainer.train_dataset):,}",
        f"a step           {batch} x {micro_batches} batches x {world_size()} processes",
        f"steps            {steps:,}",
        f"epochs           {steps * a_step / len(trainer.train_dataset):.3g}",
    ]
    return lines if trainer.eval_dataset is None else [*lines, f"held-out rows    {len(trainer.eval_dataset):,}"]


def number_of_batches(trainer: RunTrainer) -> int:
    """Of one process and epoch, without making a loader."""
    together = trainer.args.train_batch_size * world_size()
    whole, rest = divmod(len(trainer.train_dataset), together)
    return whole + (rest > 0 and not trainer.args.dataloader_drop_last)


def number_of_steps(trainer: RunTrainer, batches: int) -> int:
    """Of the whole run, as transformers' Trainer counts them. batches: of one process and epoch."""
    if trainer.args.max_steps > 0:
        return trainer.args.max_steps
    to_an_epoch = max(math.ceil(batches / trainer.args.gradient_accumulation_steps), 1)
    return math.ceil(trainer.args.num_train_epochs * to_an_epoch)


def shape_of(value: Any) -> str:
    """Of a tensor, or of several."""
    if isinstance(value, Tensor):
        return str(list(value.shape))
    return ", ".join(map(shape_of, value)) if isinstance(value, list | tuple) else str(value)


def trained_parts(trainer: RunTrainer) -> list[str]:
    """A line for every part of the model and learning rate: its parameters, and how many are frozen."""
    sizes: dict[tuple[str, float | None], int] = defaultdict(int)
    for name, parameter in trainer.model.named_parameters():
        if "original_module" not in name.split("."):  # LoRA keeps one of each module that trains whole, and does not use it
            rate = trainer.rate_of(name) if parameter.requires_grad else None
            sizes[part_of(name), rate] += number_of_elements(parameter)
    return ["what trains:"] + [
        f"  {part:<36}{size:15,} parameters, {'frozen' if rate is None else f'at {rate:g}'}" for (part, rate), size in sizes.items()
    ]


def part_of(name: str) -> str:
    """The first two names of a parameter's module, without LoRA's wrappers: `vision_model.connector`."""
    names = name.removeprefix("base_model.model.").split(".")[:-1]
    return ".".join(names[:1] + [each for each in names[1:2] if not each.isdigit()]) or name


def number_of_elements(parameter: nn.Parameter) -> int:
    """Of the whole parameter, also where ZeRO-3 has left this process an empty one."""
    return getattr(parameter, "ds_numel", parameter.numel())
