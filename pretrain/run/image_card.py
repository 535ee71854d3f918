"""Writes the model card of a SigLIP or MAE run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import Trainer

from pretrain.run.image_args import program_of
from vision_core.images.source import ImageSource
from vision_core.model_card import write_model_card
from vision_core.processes.distributed import world_size
from vision_core.runs.run_facts import batch_text, data_licence, made_with, millions, run_again
from vision_core.trainer.options import TrainerOptions

IMAGE_CARD_SETTINGS = ("learning_rate", "weight_decay", "warmup_steps", "bf16", "fp16", "seed")
FIGURES = {"loss": "training loss, at the end", "eval_loss": "loss of held-out images"}


def write_image_card(
    folder: Path,
    name: str,
    options: TrainerOptions,
    trainer: Trainer,
    *,
    dataset: str,
    source: ImageSource,
    init_from: str | None,
    texts: Mapping[str, Any],
) -> None:
    """Write README.md of the run's folder, with the last losses of the log.

    name: `siglip` or `mae`. texts: title, summary and more of `write_model_card`.
    """
    settings = first_facts(options, trainer) | {"init_from": init_from}
    for setting in IMAGE_CARD_SETTINGS:
        settings[setting] = getattr(options, setting)
    write_model_card(
        folder / "README.md",
        training_command=run_again(program_of(name), folder, "accelerate launch"),
        data=f"{source.description}. Source: `{dataset}`.\n\n{data_licence([dataset])}",
        results=loss_rows(trainer.state.log_history),
        settings=settings,
        note=f"{seen_text(options, trainer, len(source))} A loss does not judge features; "
        "recipes/evaluate_encoder.py judges them. What the model makes of other images is not known, "
        "and nothing was done about biases in the data.",
        **texts,
    )


def loss_rows(log: list[dict[str, float]]) -> list[dict[str, str]]:
    """The last of each loss in the Trainer's log, as rows of a table."""
    rows = []
    for key, words in FIGURES.items():
        values = [line[key] for line in log if key in line]
        if values:
            rows.append({"figure": words, "value": f"{values[-1]:.4f}"})
    return rows


def first_facts(options: TrainerOptions, trainer: Trainer) -> dict[str, Any]:
    """What a reader compares first: size, images, batch, steps, and with what it was made."""
    config = getattr(trainer.model.config, "vision_config", trainer.model.config)
    side = config.image_size
    return {
        "parameters": millions([trainer.model]),
        "image sizes": f"{side} x {side} in patches of {config.patch_size}",
        "images": batch_text(options.per_device_train_batch_size, options.gradient_accumulation_steps),
        "steps": f"{trainer.state.global_step:,}",
        **made_with(),
    }


def seen_text(options: TrainerOptions, trainer: Trainer, num_images: int) -> str:
    """How much the model has seen."""
    step = trainer.state.global_step
    drawn = step * options.per_device_train_batch_size * options.gradient_accumulation_steps * world_size()
    return (
        f"It was trained for {step:,} steps and has seen {drawn:,} images, "
        f"{drawn / num_images:.1f} passes over {num_images:,}."
    )
