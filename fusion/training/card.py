"""The model card of a fused model that a stage has trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerState

from fusion.card import VLM_SNIPPET
from fusion.training.options import DataOptions, Stage
from fusion.training.plan import StagePlan
from vision_core.model_card import write_model_card
from vision_core.printable import in_code
from vision_core.processes.distributed import world_size
from vision_core.runs.run_facts import batch_text, data_licence, made_with, run_again
from vision_core.trainer.preview import number_of_elements
from vision_core.trainer.run_trainer import RunTrainer

LIMITS = (
    "A loss does not judge answers; recipes/evaluate_vlm.py does, beside the same model without images. "
    "What it says of other pictures, and whether it is true, is not known; "
    "nothing was done about biases in the data."
)


def write_stage_card(
    folder: Path, stage: Stage, plan: StagePlan, data: DataOptions, trainer: RunTrainer
) -> None:
    """Write README.md of the run's folder, with the last losses of the run that `trainer` has
    made."""
    sources = "; ".join(in_code(text) for text in data.conversations)
    launcher = "deepspeed" if trainer.args.deepspeed else "python"
    write_model_card(
        folder / "README.md",
        title=f"Fused vision-language model after stage {stage.name}",
        summary=what_trained(plan),
        training_command=run_again(stage.program, folder, launcher),
        data=f"{sources}\n\n{data_licence(data.conversations)}",
        results=last_losses(trainer.state, data.held_out),
        settings=facts_of_run(trainer) | dict(stage.card_settings),
        note=f"{how_much_was_seen(trainer)} {LIMITS}",
        tags=["vision", "fusion"],
        pipeline_tag="image-text-to-text",
        loading=VLM_SNIPPET,
    )


def last_losses(state: TrainerState, held_out: Sequence[str]) -> list[dict[str, str]]:
    """Rows of the card's table of results; a loss that was never logged has none."""
    titles = {
        "loss": "training loss, at the end",
        "eval_loss": f"loss of held-out conversations ({'; '.join(held_out)})",
    }
    rows = []
    for name, title in titles.items():
        values = [line[name] for line in state.log_history if name in line]
        if values:
            rows.append({"figure": title, "value": f"{values[-1]:.4f}"})
    return rows


def facts_of_run(trainer: RunTrainer) -> dict[str, str]:
    """What a reader compares first: size, images, batch, steps, and with what it was made."""
    args = trainer.args
    return {
        "parameters": f"{number_of_parameters(trainer.model) / 1e6:.2f} M",
        "image sizes": image_sizes(trainer.model.config.vision_config),
        "conversations": batch_text(args.per_device_train_batch_size, args.gradient_accumulation_steps),
        "steps": f"{trainer.state.global_step:,}",
        **made_with(),
    }


def number_of_parameters(model: nn.Module) -> int:
    """The model's parameters, counted as if it was not sharded, also under ZeRO-3."""
    return sum(map(number_of_elements, model.parameters()))


def image_sizes(vision_config: Any) -> str:
    """The encoders' image sizes and the grid of tokens, in words."""
    sizes = []
    for encoder in vision_config.encoder_configs:
        sizes.append(" x ".join(map(str, encoder.transform["size"])))
    grid = vision_config.grid
    return f"{', '.join(sizes)}, a grid of {grid} x {grid} tokens"


def how_much_was_seen(trainer: RunTrainer) -> str:
    """A sentence about steps, conversations and passes over the data."""
    args = trainer.args
    state = trainer.state
    samples_of_a_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * world_size()
    return (
        f"It was trained for {state.global_step:,} steps on {state.global_step * samples_of_a_step:,} "
        f"conversations at most, {state.epoch or 0:.2f} passes over the data."
    )


def what_trained(plan: StagePlan) -> str:
    """A sentence about the parts of the model that changed, and what they learned."""
    if plan.language_model == "frozen":
        return (
            "The connector, and the layers of the language model that look into the encoders again, were trained; "
            "encoders and language model were frozen."
        )
    if plan.language_model == "lora":
        return (
            f"The connector, and by LoRA of rank {plan.lora_rank} the language model, were trained to answer; "
            "encoders were frozen."
        )
    if plan.encoder_learning_rate is not None:
        return "Encoders, connector and language model were trained to answer."
    return "Connector and language model were trained to answer; encoders were frozen."
