"""The model card of a trained fused model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusion.save import VLM_SNIPPET
from vision_core.distributed import world_size
from vision_core.model_card import write_model_card

# what tells two runs apart; config.yaml beside the card has every option
SHOWN = (
    "init_from", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "sampler_learning_rate", "encoder_learning_rate",
    "lora_rank", "warmup_steps", "lr_scheduler_type", "weight_decay", "max_length", "packing", "bf16", "deepspeed", "seed",
)  # fmt: skip


def write_card(folder: Path, stage: str, options: Mapping[str, Any], log: Sequence[Mapping[str, Any]]) -> None:
    """README.md of the run's folder. options: the run's, as it ran. log: the Trainer's, of which the last losses are shown."""
    losses = {name: next((line[name] for line in reversed(log) if name in line), None) for name in ("loss", "eval_loss")}
    held_out = "; ".join(options["eval_conversations"])
    names = {"loss": "training loss, at the end", "eval_loss": f"loss of held-out conversations ({held_out})"}
    write_model_card(
        folder / "README.md",
        title=f"Fused vision-language model after stage {stage}",
        summary=what_trained(stage, options),
        training_command=f"{'deepspeed' if options['deepspeed'] or world_size() > 1 else 'python'} recipes/sva_{stage}.py config.yaml",
        data="; ".join(f"`{text}`" for text in options["conversations"]),
        results=[{"figure": names[name], "value": f"{value:.4f}"} for name, value in losses.items() if value is not None],
        settings={name: options[name] for name in SHOWN if options.get(name) is not None},
        note="A loss is no judgement of answers; recipes/evaluate_vlm.py judges them.",
        tags=["vision", "fusion"],
        pipeline_tag="image-text-to-text",
        loading=VLM_SNIPPET,
    )


def what_trained(stage: str, options: Mapping[str, Any]) -> str:
    """A sentence."""
    if stage == "align":
        return "The connector, and the layers of the language model that look into the encoders again, were trained; encoders and language model were frozen."
    if options["lora_rank"]:
        return (
            f"The connector, and by LoRA of rank {options['lora_rank']} the language model, were trained to answer; encoders were frozen."
        )
    if options["encoder_learning_rate"] is not None:
        return "Encoders, connector and language model were trained to answer."
    return "Connector and language model were trained to answer; encoders were frozen."
