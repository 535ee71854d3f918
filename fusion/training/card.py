"""The model card of a trained fused model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerState

from fusion.card import VLM_SNIPPET
from vision_core.model_card import write_model_card
from vision_core.printable import in_code
from vision_core.processes.distributed import world_size
from vision_core.runs.run_facts import batch_text, data_licence, made_with, run_again
from vision_core.trainer.preview import number_of_elements

# what tells two runs apart; config.yaml beside the card has every option
SHOWN = (
    "init_from", "learning_rate", "sampler_learning_rate", "encoder_learning_rate",
    "lora_rank", "warmup_steps", "lr_scheduler_type", "weight_decay", "max_length", "packing", "bf16", "deepspeed", "seed",
)  # fmt: skip


def write_card(
    folder: Path, stage: str, program: str, options: Mapping[str, Any], model: nn.Module, state: TrainerState
) -> None:
    """README.md of the run's folder. program: its script. options: the run's, as it ran. state: the
    Trainer's, of which the last losses are shown."""
    log = state.log_history
    losses = {
        name: next((line[name] for line in reversed(log) if name in line), None)
        for name in ("loss", "eval_loss")
    }
    held_out = "; ".join(options["eval_conversations"])
    data = "; ".join(in_code(text) for text in options["conversations"])
    names = {"loss": "training loss, at the end", "eval_loss": f"loss of held-out conversations ({held_out})"}
    write_model_card(
        folder / "README.md",
        title=f"Fused vision-language model after stage {stage}",
        summary=what_trained(stage, options),
        training_command=run_again(program, folder, "deepspeed" if options["deepspeed"] else "python"),
        data=f"{data}\n\n{data_licence(options['conversations'])}",
        results=[
            {"figure": names[name], "value": f"{value:.4f}"}
            for name, value in losses.items()
            if value is not None
        ],
        settings=facts(options, model, state)
        | {name: options[name] for name in SHOWN if options.get(name) is not None},
        note=f"{seen(options, state)} A loss is no judgement of answers; recipes/evaluate_vlm.py judges them, beside the same model without "
        "images. What it says of other pictures, and whether it is true, is not known; nothing was done about biases in the data.",
        tags=["vision", "fusion"],
        pipeline_tag="image-text-to-text",
        loading=VLM_SNIPPET,
    )


def facts(options: Mapping[str, Any], model: nn.Module, state: TrainerState) -> dict[str, str]:
    """What a reader compares first: size, images, batch, steps, and with what it was made."""
    vision_config = model.config.vision_config
    sides = [encoder.transform["size"] for encoder in vision_config.encoder_configs]
    return {
        "parameters": f"{sum(map(number_of_elements, model.parameters())) / 1e6:.2f} M",
        "image sizes": ", ".join(" x ".join(map(str, size)) for size in sides)
        + f", a grid of {vision_config.grid} x {vision_config.grid} tokens",
        "conversations": batch_text(
            options["per_device_train_batch_size"], options["gradient_accumulation_steps"]
        ),
        "steps": f"{state.global_step:,}",
        **made_with(),
    }


def seen(options: Mapping[str, Any], state: TrainerState) -> str:
    """How much the model has seen."""
    drawn = (
        state.global_step
        * options["per_device_train_batch_size"]
        * options["gradient_accumulation_steps"]
        * world_size()
    )
    return f"It was trained for {state.global_step:,} steps on {drawn:,} conversations at most, {state.epoch or 0:.2f} passes over the data."


def what_trained(stage: str, options: Mapping[str, Any]) -> str:
    """Which parts of the model changed, and what they learnt."""
    if stage == "align":
        return "The connector, and the layers of the language model that look into the encoders again, were trained; encoders and language model were frozen."
    if options["lora_rank"]:
        return f"The connector, and by LoRA of rank {options['lora_rank']} the language model, were trained to answer; encoders were frozen."
    if options["encoder_learning_rate"] is not None:
        return "Encoders, connector and language model were trained to answer."
    return "Connector and language model were trained to answer; encoders were frozen."
