"""What a run on `RunTrainer` would be, without training: its data, one batch, its steps, and what trains at which rate."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

from torch import Tensor, nn

from vision_core.distributed import world_size
from vision_core.run_trainer import RunTrainer, check_warmup


def preview(trainer: RunTrainer) -> list[str]:
    """Lines for the user. Draws one training batch, and one held-out batch, as the run would, with all that can go wrong in it.

    Raises UserError for a sample that cannot be trained on.
    """
    loader, args = trainer.get_train_dataloader(), trainer.args
    check_warmup(args.warmup_steps, number_of_steps(trainer, len(loader)))
    batch = next(iter(loader))
    lines = [
        "dry run: nothing is trained, nothing is written",
        f"training rows    {len(trainer.train_dataset):,}",
        f"a step           {args.per_device_train_batch_size} x {args.gradient_accumulation_steps} batches x {world_size()} processes",
        f"steps            {number_of_steps(trainer, len(loader)):,}",
        "one batch of this process:",
        *(f"  {name:<18}{shape_of(value)}" for name, value in batch.items()),
    ]
    if trainer.eval_dataset is not None:
        next(iter(trainer.get_eval_dataloader()))
        lines.append(f"held-out rows    {len(trainer.eval_dataset):,}")
    return [*lines, "what trains:", *trained_parts(trainer)]


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
    model = trainer.model
    rates = {parameter: group["lr"] for group in trainer.create_optimizer().param_groups for parameter in group["params"]}
    sizes: dict[tuple[str, float | None], int] = defaultdict(int)
    for name, parameter in model.named_parameters():
        if "original_module" not in name.split("."):  # LoRA keeps one of each module that trains whole, and does not use it
            sizes[part_of(name), rates.get(parameter)] += number_of_elements(parameter)
    return [
        f"  {part:<36}{size / 1e6:12.2f} M parameters, {'frozen' if rate is None else f'at {rate:g}'}"
        for (part, rate), size in sizes.items()
    ]


def part_of(name: str) -> str:
    """The first two names of a parameter's module, without LoRA's wrappers: `vision_model.connector`."""
    names = name.removeprefix("base_model.model.").split(".")[:-1]
    return ".".join(names[:1] + [each for each in names[1:2] if not each.isdigit()]) or name


def number_of_elements(parameter: nn.Parameter) -> int:
    """Of the whole parameter, also where ZeRO-3 has left this process an empty one."""
    return getattr(parameter, "ds_numel", parameter.numel())
